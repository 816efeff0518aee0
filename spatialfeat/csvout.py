"""The one place that writes CSV files: UTF-8, LF, and no cell that a spreadsheet would run as a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from spatialfeat.files import write_atomically
from spatialfeat.safetext import spreadsheet_cell

if TYPE_CHECKING:
    import pandas as pd


class CsvTable:
    """Rows written one after the other to an open text file (`open_csv_text`)."""

    def __init__(self, text: TextIO, header: Sequence[str] | None = None) -> None:
        self._writer = csv.writer(text, lineterminator="\n")
        if header is not None:
            self.add([header])

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Write rows of as many values as the header has."""
        self._writer.writerows([spreadsheet_cell(value) for value in row] for row in rows)


def open_csv_text(path: Path) -> TextIO:
    """A new file for a CSV."""
    return path.open("w", encoding="utf-8", newline="")


def write_frame(frame: pd.DataFrame, target: Path | TextIO, *, header: bool = True) -> None:
    """Write a table, numbers with as many digits as give back the same number."""
    safe = frame.rename(columns=spreadsheet_cell)
    for name in safe:
        if safe[name].dtype.kind not in "biuf":
            safe[name] = safe[name].map(spreadsheet_cell)
    safe.to_csv(target, index=False, header=header, lineterminator="\n", encoding="utf-8")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table to a file that appears under its name only when whole."""
    write_atomically(path, lambda temporary: write_frame(frame, temporary))
