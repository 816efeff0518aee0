"""`spatialfeat split`: one CSV divided by patient into the specification's three, once or for every fold."""

from __future__ import annotations

import errno
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import SplitConfig, csv_name
from spatialfeat.console import count_text, wrap
from spatialfeat.data.frames import UNLABELLED, FrameTable, read_frames
from spatialfeat.data.ids import IdRule
from spatialfeat.data.patients import show_reading
from spatialfeat.data.splits import Part, fold_rows, part_of, parts_text, split_rows
from spatialfeat.data.tables import row_texts
from spatialfeat.errors import SpatialfeatError, translate_os_errors
from spatialfeat.files import atomic_folder, require_new_folder, write_csv
from spatialfeat.names import natural_key
from spatialfeat.phases import DEFAULT_NUM_PHASES, default_phase_names, write_names
from spatialfeat.reports.plots import save_figure, split_figure
from spatialfeat.runrecord import RunRecord

IMAGES_NAME = "images"
UNKNOWN_FOLDER = "FOLDER"
"""What a printed command names where only the user knows the folder of the frames."""

HIGHEST_UNNAMED = 1000
"""Unless they are named, a higher label is taken for a slip: every phase up to it would get a line."""

FAR = 0.05
"""A share that differs by more from what was asked gets an explanation."""

logger = logging.getLogger(__name__)


def split(config: SplitConfig) -> list[Part]:
    """Write the folder `config.out`, whole or not at all, and show what came out.

    Returns the parts: train, val and test (if there is one), of each fold in order.

    Raises:
        SpatialfeatError: anything that the user can fix.
    """
    require_new_folder(config.out)
    table = _read(config)
    images = _find_images(config)
    if config.folds is None:
        folders = {"": split_rows(table, config.shares, seed=config.seed)}
    else:
        found = fold_rows(table, config.folds, val=config.val, seed=config.seed)
        folders = {f"fold{number}": splits for number, splits in enumerate(found, start=1)}
    phase_names = config.phase_names or default_phase_names(int(table.labels.max()) + 1)
    parts = [
        part_of(table, splits == name, len(phase_names), split=name, folder=folder, asked=asked)
        for folder, splits in folders.items()
        for name, asked in config.shares.items()
    ]
    out = config.out.resolve()
    with (
        translate_os_errors(config.out),
        atomic_folder(out) as target,
        RunRecord(target, "split", config, [config.csv]) as record,
    ):
        _write(config, table, folders, parts, phase_names, target)
        is_linked = images is not None and all(
            _link_images(target / folder, os.path.relpath(images, out / folder)) for folder in folders
        )
        record.finish(parts=[_facts(part) for part in parts])
    _show(config, table, parts, phase_names, "" if is_linked else str(images or UNKNOWN_FOLDER))
    return parts


def _read(config: SplitConfig) -> FrameTable:
    table = read_frames(
        config.csv,
        config.csv.parent / IMAGES_NAME,
        split="all",
        id_rule=IdRule.given(config.id_form, config.id_pattern),
        num_classes=len(config.phase_names) if config.phase_names else HIGHEST_UNNAMED,
        phase_names=config.phase_names,
        more_classes="name more --phase-names",
    )
    show_reading([table])
    return table


def _find_images(config: SplitConfig) -> Path | None:
    """The folder of the images, without a link on the way to it, but perhaps one itself. None if it is not there."""
    folder = config.img_dir or config.csv.parent / IMAGES_NAME
    if not folder.is_dir():
        if config.img_dir is not None:
            raise SpatialfeatError(f"--img-dir {folder}: no such folder; pass the folder of the frames")
        logger.info("no folder %s: pass --img-dir to what comes next, or to split, which then makes a link", folder)
        return None
    return folder.parent.resolve() / folder.name


def _write(
    config: SplitConfig,
    table: FrameTable,
    folders: Mapping[str, NDArray[Any]],
    parts: Sequence[Part],
    phase_names: Sequence[str],
    target: Path,
) -> None:
    """All but the links and the record."""
    header, *_ = texts = row_texts(config.csv)
    assert table.origin.row_numbers is not None
    own_texts = [texts[number - 1] for number in table.origin.row_numbers.tolist()]
    for folder, splits in folders.items():
        (target / folder).mkdir(exist_ok=True)
        for name in config.shares:
            rows = np.flatnonzero(splits == name).tolist()
            lines = "".join(f"{line}\n" for line in (header, *(own_texts[row] for row in rows)))
            (target / folder / csv_name(name)).write_bytes(lines.encode("utf-8"))
        if config.phase_names:
            write_names(target / folder, config.phase_names)
    # In which split, or in the test set of which fold, every spelling of a patient's name is.
    if config.folds is None:
        column, place = "split", folders[""]
    else:
        tested = [splits == "test" for splits in folders.values()]
        column, place = "fold", 1 + np.argmax(tested, axis=0)
    places = pd.DataFrame({"patient": table.patients, column: place})
    counted = places.groupby(["patient", column]).size().reset_index(name="frames")
    counted = counted.sort_values("patient", key=lambda names: names.map(natural_key), kind="stable")
    write_csv(target / ("patients.csv" if config.folds is None else "folds.csv"), counted)
    shown = {part.folder or part.split: part for part in parts if config.folds is None or part.split == "test"}
    save_figure(
        split_figure(
            {name: [frames for frames in part.patient_frames.values() if frames] for name, part in shown.items()},
            {name: part.frames_per_phase.tolist() for name, part in shown.items()},
            phase_names,
        ),
        target / "split.png",
    )


def _link_images(folder: Path, to: str) -> bool:
    """Make `images` in the folder a link to the images. Returns whether the disk has links."""
    try:
        (folder / IMAGES_NAME).symlink_to(to, target_is_directory=True)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.warning("%s: this disk has no links; pass --img-dir to finetune and extract", folder.name)
        return False
    return True


def _facts(part: Part) -> dict[str, Any]:
    """A part as `run.json` records it, without names of patients."""
    return {
        "folder": part.folder,
        "split": part.split,
        "num_rows": part.num_rows,
        "num_videos": part.num_videos,
        "num_patients": len(part.patient_frames),
        "share": round(part.share, 6),
        "frames_per_phase": part.frames_per_phase.tolist(),
    }


def _show(
    config: SplitConfig, table: FrameTable, parts: Sequence[Part], phase_names: Sequence[str], img_dir: str
) -> None:
    """The tables, what is not as one would wish, and what to do next. img_dir: what its commands must name."""
    logger.info("%s\n", parts_text(table, parts, phase_names))
    num_unlabelled = int((table.labels == UNLABELLED).sum())
    if num_unlabelled:
        logger.info("%s without a label: kept, not counted for the balance", count_text(num_unlabelled, "row"))
    for warning in _warnings(parts, phase_names):
        logger.warning("%s", "\n".join(wrap(warning)))
    logger.info("%s: CSVs, split.png, %s", config.out, "patients.csv" if config.folds is None else "folds.csv")
    folder = shlex.quote(str(config.out / parts[0].folder))
    # The names that stand in phase_names.txt there say how many phases there are.
    is_many = len(phase_names) > DEFAULT_NUM_PHASES and not config.phase_names
    options = f" --num-classes {len(phase_names)}" if is_many else ""
    options += f" --id-form {config.id_form}" if config.id_form else ""
    options += f" --id-pattern {shlex.quote(config.id_pattern)}" if config.id_pattern else ""
    where = f" --img-dir {shlex.quote(img_dir)}" if img_dir else ""
    others = f"\nwith the whole path of the frames' folder for {UNKNOWN_FOLDER}" if img_dir == UNKNOWN_FOLDER else ""
    others += "\nand the same in the other folds (docs/training.md)" if config.folds else ""
    logger.info(
        "Next:\n  cd %s && spatialfeat check%s && spatialfeat finetune%s && spatialfeat extract%s%s",
        folder, options + where, options + where, where, others,
    )  # fmt: skip


def _warnings(parts: Sequence[Part], phase_names: Sequence[str]) -> Iterator[str]:
    occurring = np.sum([part.frames_per_phase for part in parts], axis=0) > 0
    for part in parts:
        missing = np.flatnonzero(occurring & (part.frames_per_phase == 0)).tolist()
        absent = [f"{phase} ({phase_names[phase]})" for phase in missing]
        if absent:
            effect = "it cannot be learned there" if part.split == "train" else "scores there say nothing about it"
            yield f"{part.name}: no frame of phase {', '.join(absent)}: too few patients have it; {effect}"
    far = [(part, part.asked) for part in parts if part.asked is not None and abs(part.share - part.asked) > FAR]
    if far:
        longest, frames = max(
            (pair for part in parts for pair in part.patient_frames.items()), key=lambda pair: pair[1]
        )
        total = sum(part.frames_per_phase.sum() for part in parts if part.folder == parts[0].folder)
        named = ", ".join(f"{part.name} {part.share:.0%} of the frames instead of {asked:.0%}" for part, asked in far)
        yield (
            f"{named}: patients stay whole, and the longest, {longest}, has {frames / total:.0%} of all labelled frames"
        )
