"""`--pseudonymize MAP.csv`: another name for every patient, the same in every run and command, its map kept apart.

    patient_id,pseudonym
    1050,P473920

`1050_1_000001` becomes `P473920_1_000001`: only the patient's part of an id changes. Pseudonyms of new patients are
drawn at random, so that neither they nor their order reveal anything.
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
from numpy.typing import NDArray

from spatialfeat.data.frames import FrameTable, refuse_two_spellings
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
    """The pseudonym of each patient, as the map file at `path` holds them."""

    path: Path
    of_patient: Mapping[str, str]

    def patient(self, patient_id: str) -> str:
        return self.of_patient[patient_id]

    def rename(self, name: str, patient_id: str) -> str:
        """A video's or frame's id with the pseudonym in the patient's place.

        Raises:
            SpatialfeatError: the id does not begin with the patient's.
        """
        rest = name.removeprefix(patient_id)
        if rest == name or (rest and not rest.startswith("_")):
            raise SpatialfeatError(
                f"id {name} does not begin with its patient {patient_id}, so --pseudonymize cannot hide the patient; "
                "extract the video again"
            )
        return self.of_patient[patient_id] + rest

    def table(self, table: FrameTable) -> FrameTable:
        """The same frames under pseudonyms; their images keep their names."""
        patients = table.patients.tolist()

        def renamed(names: Sequence[str]) -> NDArray[np.str_]:
            return np.array([self.rename(name, patient) for name, patient in zip(names, patients, strict=True)])

        return replace(
            table,
            ids=renamed(table.ids.tolist()),
            videos=renamed(table.videos.tolist()),
            patients=np.array([self.of_patient[patient] for patient in patients]),
            own_image_names=table.image_names,
        )


def pseudonymized(tables: Sequence[FrameTable], map_path: Path, out_dir: Path) -> tuple[list[FrameTable], Pseudonyms]:
    """The tables under pseudonyms, in the order given, and the map. Patients that are new to the map are added to it.

    Raises:
        SpatialfeatError: as `open_pseudonyms`, or a video in two spellings.
    """
    refuse_two_spellings(tables)
    patients = list(dict.fromkeys(patient for table in tables for patient in table.patients.tolist()))
    pseudonyms = open_pseudonyms(map_path, patients, outputs=[out_dir])
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
