"""Rows whose cells are still text, and what gives them meaning: whatever is wrong is told with the row's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.data.csvtext import FIRST_ROW, read_csv_text, require_columns
from spatialfeat.errors import SpatialfeatError


@dataclass(frozen=True)
class Origin:
    """Where rows come from, as messages name it: `train.csv row 812`, or `images: 1050_1_000812` without numbers."""

    path: Path
    row_numbers: NDArray[np.int64] | None

    def where(self, row: int, frame_id: str) -> str:
        if self.row_numbers is None:
            return f"{self.path}: {frame_id}"
        return f"{self.path} row {self.row_numbers[row]}"


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows. columns: N texts per column. id_column: names a row whose origin has no row numbers."""

    origin: Origin
    columns: pd.DataFrame
    id_column: str = "id"

    def refuse(self, column: str, wrong: NDArray[np.bool_], problem: str, remedy: str) -> None:
        """Raise for the first row where `wrong` (N,), if any: `train.csv row 812: label 9 is outside 0..6; fix it`.

        problem: may hold `{value}`, the text of that row in `column`.
        """
        if not wrong.any():
            return
        first = int(np.flatnonzero(wrong)[0])
        others = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        value = str(self.columns[column].iloc[first])
        # A stray quote can make one field of thousands of lines.
        what = problem.format(value=value if len(value) <= 80 else f"{value[:80]}...")
        frame_id = str(self.columns[self.id_column].iloc[first]) if self.id_column in self.columns else ""
        raise SpatialfeatError(f"{self.origin.where(first, frame_id)}: {what}{others}; {remedy}")

    def phases(
        self,
        column: str,
        num_phases: int | None,
        *,
        also: int | None = None,
        name: str = "label",
        more_classes: str = "pass --num-classes",
    ) -> NDArray[np.int64]:
        """(N,) int64: the column's whole numbers, which must lie in 0..num_phases-1 (None: not be negative).

        also: the number of an unlabelled frame, where that is allowed. name: what a message calls the value.
        more_classes: what the message for a number outside advises beside mending the row.
        """
        texts = self.columns[column].str.strip()
        not_integer = ~texts.str.fullmatch(r"[+-]?[0-9]+").to_numpy(dtype=bool)
        hint = "" if also is None else f", or {also} for an unlabelled frame"
        self.refuse(
            column, not_integer, f"{name} {{value!r}} is not an integer", f"write the phase's number, e.g. 3{hint}"
        )
        # A number that does not fit in int64 is outside any range of phases, as -1 is.
        numbers = texts.mask(texts.str.len() > 18, "-1").to_numpy(dtype=str).astype(np.int64)
        outside = (numbers < 0) if num_phases is None else (numbers < 0) | (numbers >= num_phases)
        if also is not None:
            outside &= numbers != also
        if num_phases is not None and numbers.min() == 1 and numbers.max() == num_phases:
            more_classes = f"count phases from 0: these run from 1 to {num_phases}, so subtract 1 everywhere"
        allowed = "0 and above" if num_phases is None else f"0..{num_phases - 1}"
        self.refuse(column, outside, f"{name} {{value}} is outside {allowed}", f"fix the row or {more_classes}")
        return numbers


def read_rows(csv_path: Path, header: str, required: Sequence[str], *, unit: str = "frame") -> Rows:
    """Read a CSV as text; blank lines are dropped.

    Args:
        header: the columns as a message shows them, e.g. "id,label"; none may be there twice.
        required: columns that must be there.
        unit: what a row stands for.

    Raises:
        SpatialfeatError: no such file, not a CSV, columns missing or repeated, or no rows.
    """
    csv = read_csv_text(csv_path, header)
    require_columns(csv_path, csv, required, header)
    csv = csv[~(csv == "").all(axis="columns")]  # A blank line is harmless, and dropping it keeps the row numbers.
    if csv.empty:
        raise SpatialfeatError(f"{csv_path}: has no rows; add one row `{header}` per {unit}")
    return Rows(Origin(csv_path, csv.index.to_numpy(dtype=np.int64) + FIRST_ROW), csv)
