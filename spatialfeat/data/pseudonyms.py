"""`--pseudonymize MAP.csv`: another name for every patient, the same in every run and command, its map kept apart.

    patient_id,pseudonym
    1050,P473920

`1050_1_000001` becomes `P473920_1_000001`: only the patient's part of an id changes. Where an id does not begin with
its patient, as a column `patient` allows, its video gets a pseudonym of its own behind that of the patient. Pseudonyms
are drawn at random, so that neither they nor their order reveal anything.
"""

from __future__ import annotations

import fcntl
import io
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spatialfeat.data.frames import FrameTable, refuse_two_spellings
from spatialfeat.data.ids import USUAL_RULE, VIDEO_FRAME, frame_field
from spatialfeat.data.tables import Rows, read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import CsvTable
from spatialfeat.names import name_problem, natural_key, same_name_key

HEADER = ("patient_id", "pseudonym")
NUM_DIGITS = 6
# No `_`, so that ids keep their fields; nothing at which a reader of an exported tree would cut a name.
_PSEUDONYM = r"[A-Za-z0-9][A-Za-z0-9-]{0,59}"
_OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Pseudonyms:
    """The pseudonym of each patient, and of videos not named by it, as the map file at `path` holds them."""

    path: Path
    of_patient: Mapping[str, str]

    def video(self, video_id: str, patient_id: str) -> str:
        """A video's id with the pseudonym in the patient's place."""
        rest = _behind_patient(video_id, patient_id)
        return self.of_patient[patient_id] + (f"_{self.of_patient[video_id]}" if rest is None else rest)

    def frame(self, frame_id: str, frame_number: int, video_id: str, patient_id: str) -> str:
        """A frame's id with the pseudonym in the patient's place. Nothing of it stays but the frame's own field."""
        field = frame_field(frame_id, video_id)
        return self.video(video_id, patient_id) + (f"_{frame_number:06d}" if field is None else field)

    def table(self, table: FrameTable) -> FrameTable:
        """The same frames under pseudonyms; their images keep their names."""
        videos, patients = table.videos.tolist(), table.patients.tolist()
        frames = zip(table.ids.tolist(), table.frame_numbers.tolist(), videos, patients, strict=True)
        return replace(
            table,
            ids=np.array([self.frame(*frame) for frame in frames]),
            videos=np.array(list(map(self.video, videos, patients))),
            patients=np.array([self.of_patient[patient] for patient in patients]),
            own_image_names=table.image_names,
            # What was read by another rule is now written as every rule but that for segments reads it.
            id_rule=table.id_rule if table.id_rule.form == VIDEO_FRAME else USUAL_RULE,
            patients_given=True,
        )


def names_to_hide(videos: Iterable[tuple[str, str]]) -> list[str]:
    """What needs a pseudonym of (video, patient) pairs: every patient, and videos that are not named by theirs."""
    pairs = dict.fromkeys(videos)
    named_otherwise = [video for video, patient in pairs if _behind_patient(video, patient) is None]
    return list(dict.fromkeys([*(patient for _, patient in pairs), *named_otherwise]))


def _behind_patient(video_id: str, patient_id: str) -> str | None:
    """What follows the patient in the id of a video, `_1`; None where the video is not named by its patient."""
    rest = video_id.removeprefix(patient_id)
    # A longer id that comes again would be seen; `1` in `1_1` is a number.
    again = len(patient_id) > 3 and patient_id in rest
    return None if again or rest == video_id or rest[:1] not in ("", "_", "/") else rest


def pseudonymized(tables: Sequence[FrameTable], map_path: Path, out_dir: Path) -> tuple[list[FrameTable], Pseudonyms]:
    """The tables under pseudonyms, in the order given, and the map. Patients that are new to the map are added to it.

    Raises:
        SpatialfeatError: as `open_pseudonyms`, or a video in two spellings.
    """
    refuse_two_spellings(tables)
    pairs = (pair for table in tables for pair in zip(table.videos.tolist(), table.patients.tolist(), strict=True))
    pseudonyms = open_pseudonyms(map_path, names_to_hide(pairs), outputs=[out_dir])
    return [pseudonyms.table(table) for table in tables], pseudonyms


def open_pseudonyms(map_path: Path, patients: Sequence[str], *, outputs: Sequence[Path]) -> Pseudonyms:
    """Read the map, and add the patients that it lacks. Safe against other runs that do so at the same time.

    Args:
        outputs: folders and files that are to be shared, from which the map must stay apart.

    Raises:
        SpatialfeatError: a map inside an output or that cannot be read or written, one that gives a patient two
            pseudonyms or two patients one, and pseudonyms that are no part of an id, or a patient's real id.
    """
    path = map_path.resolve()
    for output in outputs:
        place = output.resolve()
        if place == path or place in path.parents:
            raise SpatialfeatError(
                f"--pseudonymize {map_path}: lies in {output}, which the map would be passed on with; "
                "keep it in another folder"
            )
    try:
        with _locked(path):
            known = _read_map(map_path) if path.stat().st_size else {}
            _check(map_path, known, patients)
            new = sorted(set(patients) - set(known), key=natural_key)
            if new:
                drawn = _draw(len(new), taken=[*known, *known.values(), *patients])
                known |= dict(zip(new, drawn, strict=True))
                _replace(path, known)
    except OSError as error:
        raise SpatialfeatError(
            f"--pseudonymize {map_path}: cannot be read or written ({error.strerror}); choose a place that you may "
            "write to"
        ) from error
    return Pseudonyms(map_path, known)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the map alone; it is made, readable by its owner only, if it is not there."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _OWNER_ONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another run may have put a longer map in its place while this one waited.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _read_map(map_path: Path) -> dict[str, str]:
    rows = read_rows(map_path, ",".join(HEADER), HEADER, unit="patient")
    if tuple(rows.columns.columns) != HEADER:
        raise SpatialfeatError(f"{map_path}: has other columns than {','.join(HEADER)}; keep these two, in this order")
    patients, names = (rows.columns[column].str.strip() for column in HEADER)
    unsafe = np.array([name_problem(patient) is not None for patient in patients], dtype=bool)
    rows.refuse("patient_id", unsafe, "patient_id {value!r} cannot be part of an id", "write it as in the frames' ids")
    odd = ~names.str.fullmatch(_PSEUDONYM).to_numpy(dtype=bool)
    rows.refuse("pseudonym", odd, "pseudonym {value!r} cannot be part of an id", "use at most 60 letters, digits and -")
    _refuse_repeated(rows, "patient_id", patients.tolist())
    _refuse_repeated(rows, "pseudonym", names.tolist())
    return dict(zip(patients.tolist(), names.tolist(), strict=True))


def _refuse_repeated(rows: Rows, column: str, values: Sequence[str]) -> None:
    """Refuse `P1` beside `P01` and `p1`, too: they sort alike, and may be one file."""
    seen: set[tuple[object, ...]] = set()
    repeated = []
    for value in values:
        repeated.append(same_name_key(value) in seen)
        seen.add(same_name_key(value))
    rows.refuse(column, np.array(repeated, dtype=bool), f"{column} {{value}} is there twice", "keep one row of it")


def _check(map_path: Path, known: Mapping[str, str], patients: Iterable[str]) -> None:
    """Refuse patients that the map spells otherwise, and pseudonyms that are the id of a patient."""
    names = {same_name_key(patient): patient for patient in known}
    pseudonyms = {same_name_key(pseudonym): patient for patient, pseudonym in known.items()}
    for patient in patients:
        spelled = names.setdefault(same_name_key(patient), patient)
        if spelled != patient:
            raise SpatialfeatError(f"{map_path}: patient {patient} is written {spelled} there; use one spelling")
    for key, patient in names.items():
        if key in pseudonyms:
            raise SpatialfeatError(
                f"{map_path}: patient {patient} is also the pseudonym of {pseudonyms[key]}; give that one another "
                "pseudonym, or leave --pseudonymize out if the ids are pseudonyms already"
            )


def _draw(number: int, *, taken: Sequence[str]) -> list[str]:
    """So many new pseudonyms, at random and of equal length."""
    forbidden = {same_name_key(name) for name in taken}
    # A long id inside a pseudonym would be a coincidence, but one that looks like a leak.
    inside = re.compile("|".join(re.escape(name) for name in taken if len(name) > 3) or r"(?!)")
    source = random.SystemRandom()
    drawn: list[str] = []
    tries = 1000 * (number + 1)
    for attempt in range(tries):
        if len(drawn) == number:
            return drawn
        name = f"P{source.randrange(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS)}"
        avoidable = attempt < tries // 2 and inside.search(name)
        if same_name_key(name) not in forbidden and not avoidable:
            forbidden.add(same_name_key(name))
            drawn.append(name)
    raise SpatialfeatError("--pseudonymize: no more pseudonyms are free; start another map")


def _replace(path: Path, known: Mapping[str, str]) -> None:
    """Put a longer map in the map's place: whole or not at all, with the same rights; with commas, whatever it had."""
    rows = io.StringIO(newline="")
    CsvTable(rows, HEADER).add(known.items())
    temporary_path = path.with_name(f".{path.name}.partial")
    descriptor = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(rows.getvalue())
            file.flush()
            os.fsync(file.fileno())
        temporary_path.replace(path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
