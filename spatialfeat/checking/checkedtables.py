"""The CSVs of a data set, read to the end whatever is wrong in them, and rows that do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.checking.findings import Finding, finding_of, first_places
from spatialfeat.config import TEST_CSV, CheckConfig
from spatialfeat.console import count_text
from spatialfeat.data.frames import FrameTable, named_csvs, read_frames, shared_patients, two_spellings
from spatialfeat.data.tables import RowProblem
from spatialfeat.errors import SpatialfeatError


@dataclass
class CheckedTables:
    """The sound rows of every CSV that could be read, and what was wrong with the others."""

    tables: list[FrameTable] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.tables))


def read_tables(config: CheckConfig) -> CheckedTables:
    """Read the CSVs as finetune does, or as extract does where `config.csvs` names them.

    Raises:
        SpatialfeatError: `--csv` in a form that extract would refuse.
    """
    checked = CheckedTables()
    for split, path in _csvs(config, checked.findings):
        problems: list[RowProblem] = []
        try:
            table = read_frames(
                path,
                config.img_dir,
                split=split,
                num_classes=config.num_classes,
                labels_required=not config.csvs,
                on_problem=problems.append,
            )
        except SpatialfeatError as error:
            message, _, remedy = str(error).partition("; ")
            remedy = remedy or "mend the file, or pass another one"
            checked.findings.append(Finding(code="unreadable-csv", message=message, remedy=remedy, unit="file"))
            continue
        checked.findings += [finding_of(problem) for problem in problems if problem.kind != "two-spellings"]
        if len(table):
            checked.tables.append(table)
    checked.findings += _two_spellings(checked.tables)
    checked.findings += _shared_frames(checked.tables)
    checked.findings += _shared_patients(checked.tables)
    return checked


def _csvs(config: CheckConfig, findings: list[Finding]) -> list[tuple[str, Path]]:
    if config.csvs:
        return named_csvs(config.csvs)
    csvs = [("train", config.train_csv), ("val", config.val_csv)]
    test_csv = config.test_csv or TEST_CSV
    if config.test_csv is not None or test_csv.exists():
        return [*csvs, ("test", test_csv)]
    findings.append(
        Finding(
            code="no-test-csv",
            message=f"no {TEST_CSV} here: finetune ends without test results",
            remedy="pass --test-csv if there is one",
            unit="file",
        )
    )
    return csvs


def _two_spellings(tables: Sequence[FrameTable]) -> list[Finding]:
    problems = list(two_spellings(tables))
    if not problems:
        return []
    first = finding_of(problems[0])
    places = first_places(problem.describe(int(problem.rows[0])) for problem in problems)
    return [replace(first, count=len(problems), unit="video", places=places)]


def _shared_frames(tables: Sequence[FrameTable]) -> list[Finding]:
    """Frames that are in two CSVs; extract refuses them, and scores on them are worthless."""
    findings = []
    for index, table in enumerate(tables):
        for other in tables[:index]:
            keys, other_keys = _frame_keys(table), _frame_keys(other)
            rows = np.flatnonzero(np.isin(keys, other_keys))
            if len(rows):
                row_of = dict(zip(other_keys.tolist(), range(len(other)), strict=True))
                places = first_places(
                    f"{table.where(row)}: id {table.ids[row]} is also in {other.where(row_of[str(keys[row])])}"
                    for row in rows.tolist()
                )
                findings.append(
                    Finding(
                        code="frame-in-two-splits",
                        message=places[0],
                        remedy=f"remove these rows from {table.source} or {other.source}",
                        count=len(rows),
                        places=places,
                    )
                )
    return findings


def _frame_keys(table: FrameTable) -> NDArray[Any]:
    """(N,) str, equal for rows of the same frame, however wide its number is written."""
    return np.char.add(np.char.add(table.videos, "_"), table.frames.astype(str))


def _shared_patients(tables: Sequence[FrameTable]) -> list[Finding]:
    shared = shared_patients(tables)
    if not shared:
        return []
    texts = [
        f"patient {patient}: "
        + ", ".join(f"{count_text(count, 'frame')} in {split}" for split, count in frames.items())
        for patient, frames in shared.items()
    ]
    return [
        Finding(
            code="patient-in-two-splits",
            message=f"{texts[0]}; scores on patients that were trained on are too good",
            remedy="give each patient to one split, with all segments",
            count=len(shared),
            unit="patient",
            places=first_places(texts),
        )
    ]
