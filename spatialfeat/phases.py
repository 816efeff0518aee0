"""The names of the phases: where they are read from, what they must be, and what phases without names are called."""

from __future__ import annotations

import json
import logging
import os
import pkgutil
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import write_atomically
from spatialfeat.names import label_problem

CHOLEC80_PHASES = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)
"""In label order."""

NAMES_FILE = "phase_names.txt"
"""Beside the CSVs of a study: the phases in label order, for commands that are not told their names or number."""

DEFAULT_NUM_PHASES = 7
"""The specification's number of phases, where neither weights, feature files nor options say it."""

NO_PHASE = ("", "-1", "-100")
"""What stands for no phase, in CSVs of frames and in annotations."""

logger = logging.getLogger(__name__)


def default_phase_names(num_phases: int) -> tuple[str, ...]:
    """`phase_0`, `phase_1`, ...: used where the phases have no names."""
    return tuple(f"phase_{phase}" for phase in range(num_phases))


def check_phase_names(phase_names: tuple[str, ...] | None, num_phases: int) -> None:
    """Refuse names that are too few, too many, empty or repeated."""
    if phase_names is None:
        return
    if len(phase_names) != num_phases:
        raise SpatialfeatError(
            f"--phase-names: {len(phase_names)} names for {num_phases} phases; "
            "give one name per phase, in label order, or pass --num-classes"
        )
    for name in phase_names:
        problem = label_problem(name)
        if problem is not None:
            raise SpatialfeatError(f"--phase-names: {name[:80]!r} {problem}; every name must be present and unique")
    if len(set(phase_names)) != num_phases:
        raise SpatialfeatError(f"--phase-names: {', '.join(phase_names)}: every name must be present and unique")


def read_phase_names(text: str) -> tuple[str, ...]:
    """Names from a list with commas, a text file, the JSON beside weights, or feature files (a folder, or one).

    A text file has one name per line, or lines `number name` as MS-TCN's mapping.txt has.
    """
    if "," in text and not os.path.exists(text):  # noqa: PTH110  # A path would not take a text of any length.
        return tuple(name.strip() for name in text.split(","))
    path = Path(text)
    if path.is_dir() or path.suffix == ".h5":
        stored: tuple[str, ...] = pkgutil.resolve_name("spatialfeat.features.folder:read_features")(path)[0].phase_names
        return stored
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpatialfeatError(
            f"--phase-names {text}: cannot be read ({reason}); pass a text file, one name per line, or NAME,NAME,..."
        ) from error
    return _names_beside_weights(text, content) if path.suffix == ".json" else _names_of_lines(text, content)


def names_beside(csv: Path) -> tuple[str, ...] | None:
    """The names in phase_names.txt in the folder of a CSV, and a line that says so; None where there is no such file.

    Raises:
        SpatialfeatError: the file holds no names of phases.
    """
    path = csv.parent / NAMES_FILE
    if not path.is_file():
        return None
    try:
        names = read_phase_names(str(path))
        check_phase_names(names, max(len(names), 2))
    except SpatialfeatError as error:
        raise SpatialfeatError(
            f"{path}: is read for the names of the phases, as neither --phase-names nor --num-classes is given, but "
            f"it cannot be used; correct the file, or pass one of these options ({error})"
        ) from error
    logger.info("phases: the %d names in %s", len(names), path)
    return names


def write_names(folder: Path, phase_names: Sequence[str]) -> None:
    """Write phase_names.txt, which `names_beside` reads."""
    text = "".join(f"{name}\n" for name in phase_names)
    write_atomically(folder / NAMES_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _names_beside_weights(text: str, content: str) -> tuple[str, ...]:
    try:
        names = json.loads(content)["phase_names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpatialfeatError(f"--phase-names {text}: holds no list phase_names; pass the JSON file beside weights")
    return tuple(names)


def _names_of_lines(text: str, content: str) -> tuple[str, ...]:
    lines = {number: line.strip() for number, line in enumerate(content.splitlines(), start=1) if line.strip()}
    numbered = {number: re.fullmatch(r"([0-9]{1,9})[\s,;]+(.+)", line) for number, line in lines.items()}
    if not any(numbered.values()):
        return tuple(lines.values())
    names: dict[int, str] = {}
    for number, match in numbered.items():
        if match is None or int(match[1]) in names:
            what = "has no number before the name, as others have" if match is None else f"has number {match[1]} again"
            raise SpatialfeatError(
                f"--phase-names {text} line {number}: {lines[number][:80]!r} {what}; number every line or none"
            )
        names[int(match[1])] = match[2]
    if sorted(names) != list(range(len(names))):
        lacking = max(names) - min(names) + 1 - len(names)
        first = next(number for number in count(min(names)) if number not in names)
        others = f" and {lacking - 1} others" if lacking > 1 else ""
        without = f", without {first}{others}" if lacking else ""
        raise SpatialfeatError(
            f"--phase-names {text}: its lines are numbered {min(names)} to {max(names)}{without}; number "
            f"{len(names)} phases from 0 to {len(names) - 1}, each once"
        )
    return tuple(names[number] for number in range(len(names)))
