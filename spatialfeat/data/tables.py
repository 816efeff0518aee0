"""CSV files as rows of text, and what gives the cells their meaning. Every fault is reported with its row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError

FIRST_ROW = 2
"""Rows are counted as a text editor or spreadsheet shows them: the header is row 1."""


def read_csv_text(csv_path: Path, header: str) -> pd.DataFrame:
    """Every cell as text, the index counting rows from 0; blank lines stay, so that row numbers are right.

    header: the columns as a message shows them, e.g. "id,label".

    Raises:
        SpatialfeatError: with the row and the remedy, if the file cannot be read as a CSV.
    """
    names, *rows = _parse(csv_path, _read_text(csv_path)) or [[]]
    if not names:
        raise SpatialfeatError(f"{csv_path}: is empty; the first line must be `{header}`")
    for number, fields in enumerate(rows, FIRST_ROW):
        if len(fields) > len(names):
            raise SpatialfeatError(
                f"{csv_path} row {number}: has {len(fields)} fields, the header {len(names)}; remove surplus commas"
            )
    padded = [fields + [""] * (len(names) - len(fields)) for fields in rows]
    table: pd.DataFrame = pd.DataFrame(padded, columns=[name.strip() for name in names], dtype=str)
    return table


def row_texts(csv_path: Path) -> list[str]:
    """Of a CSV that can be read, each row's own text without its line end: row n is item n - 1, the header row 1."""
    lines = list(io.StringIO(_read_text(csv_path), newline=""))
    # A quoted cell may hold line ends.
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    ends = [0, *(reader.line_num for _ in reader)]
    return ["".join(lines[start:end]).rstrip("\r\n") for start, end in pairwise(ends)]


def _read_text(csv_path: Path) -> str:
    try:
        text = csv_path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise SpatialfeatError(
            f"{csv_path}: no such file; go to the folder of your data, or pass the right path"
        ) from error
    except UnicodeDecodeError as error:
        raise SpatialfeatError(f"{csv_path}: is not UTF-8 text ({error.reason}); save it as UTF-8 CSV") from error
    except OSError as error:
        raise SpatialfeatError(f"{csv_path}: cannot be read ({error.strerror})") from error
    # Python 3.10's reader gives up on NUL, later ones let it pass; no CSV needs it.
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise SpatialfeatError(f"{csv_path} row {row}: holds a NUL character; save it as plain UTF-8 text")
    return text


def _parse(csv_path: Path, text: str) -> list[list[str]]:
    # Not by pandas: its versions differ in what they let pass, and its messages count rows in several ways.
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise SpatialfeatError(
            f"{csv_path} row {len(rows) + 1}: is not valid CSV ({error}); fix the quotes of that row"
        ) from error
    return rows


def require_columns(csv_path: Path, table: pd.DataFrame, required: Sequence[str], header: str) -> None:
    """Refuse a CSV that lacks a required column, or has one of the header's columns twice."""
    missing = [name for name in required if name not in table]
    if missing:
        found = ", ".join(map(str, table.columns))
        remedy = "save it with commas" if ";" in found or "\t" in found else f"the header must be `{header}`"
        raise SpatialfeatError(f"{csv_path}: no column {' and '.join(missing)} (found: {found}); {remedy}")
    refuse_repeated_columns(csv_path, table, header.split(","))


def refuse_repeated_columns(csv_path: Path, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse a column that is there twice: it is not known which one was meant."""
    repeated = [name for name in names if list(table.columns).count(name) > 1]
    if repeated:
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(repeated)} is there twice; keep one")


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
class RowProblem:
    """One fault that K >= 1 rows have.

    kind: a short name, the same for all faults of this sort. rows: (K,) their indices. describe: makes of such an index
    the row's place and its fault, `train.csv row 812: label 9 is outside 0..6`.
    """

    kind: str
    rows: NDArray[np.int64]
    describe: Callable[[int], str]
    remedy: str


ProblemHandler = Callable[[RowProblem], None]
"""Receives faulty rows: it raises, or keeps the problem, and reading goes on without the faulty values."""


def refuse(problem: RowProblem) -> None:
    """Raise for the first row: `train.csv row 812: label 9 is outside 0..6 (3 such rows); fix the row`."""
    others = f" ({len(problem.rows)} such rows)" if len(problem.rows) > 1 else ""
    raise SpatialfeatError(f"{problem.describe(int(problem.rows[0]))}{others}; {problem.remedy}")


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows. columns: N texts per column. id_column: names a row whose origin has no row numbers."""

    origin: Origin
    columns: pd.DataFrame
    id_column: str = "id"
    on_problem: ProblemHandler = refuse

    def where(self, row: int) -> str:
        """`train.csv row 812`."""
        frame_id = str(self.columns[self.id_column].iloc[row]) if self.id_column in self.columns else ""
        return self.origin.where(row, frame_id)

    def take(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows where `keep` (N,)."""
        if keep.all():
            return self
        numbers = self.origin.row_numbers
        origin = Origin(self.origin.path, None if numbers is None else numbers[keep])
        return replace(self, origin=origin, columns=self.columns[keep])

    def refuse(self, column: str, wrong: NDArray[np.bool_], problem: str, remedy: str, kind: str = "row") -> None:
        """Report to `on_problem`, which raises unless another was given, the rows where `wrong` (N,), if there are any.

        problem: may hold `{value}`, the row's text in `column`. kind: of the RowProblem.
        """

        def describe(row: int) -> str:
            value = str(self.columns[column].iloc[row])
            # A stray quote can make one field of thousands of lines.
            what = problem.format(value=value if len(value) <= 80 else f"{value[:80]}...")
            return f"{self.where(row)}: {what}"

        if wrong.any():
            self.on_problem(RowProblem(kind, np.flatnonzero(wrong), describe, remedy))

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

        Where they do not and `on_problem` lets that pass, the number is -1.

        also: the number of an unlabelled frame, where that is allowed. name: what a message calls the value.
        more_classes: what the message for a number outside advises beside mending the row.
        """
        texts = self.columns[column].str.strip()
        not_integer = ~texts.str.fullmatch(r"[+-]?[0-9]+").to_numpy(dtype=bool)
        hint = "" if also is None else f", or {also} for an unlabelled frame"
        self.refuse(
            column,
            not_integer,
            f"{name} {{value!r}} is not an integer",
            f"write the phase's number, e.g. 3{hint}",
            "label-not-a-number",
        )
        # A number that does not fit in int64 is outside any range of phases, as -1 is.
        numbers = texts.mask(not_integer | (texts.str.len() > 18), "-1").to_numpy(dtype=str).astype(np.int64)
        outside = (numbers < 0) if num_phases is None else (numbers < 0) | (numbers >= num_phases)
        if also is not None:
            outside &= numbers != also
        outside &= ~not_integer
        whole = numbers[~not_integer]
        if num_phases is not None and len(whole) and whole.min() == 1 and whole.max() == num_phases:
            more_classes = f"count phases from 0: these run from 1 to {num_phases}, so subtract 1 everywhere"
        allowed = "0 and above" if num_phases is None else f"0..{num_phases - 1}"
        self.refuse(
            column,
            outside,
            f"{name} {{value}} is outside {allowed}",
            f"fix the row or {more_classes}",
            "label-out-of-range",
        )
        return np.where(not_integer | outside, -1, numbers)


def read_rows(
    csv_path: Path,
    header: str,
    required: Sequence[str],
    *,
    unit: str = "frame",
    on_problem: ProblemHandler = refuse,
) -> Rows:
    """Read a CSV as text; blank lines are dropped.

    Args:
        header: the columns as a message shows them, e.g. "id,label"; none may be there twice.
        required: columns that must be there.
        unit: what a row stands for.
        on_problem: receives the rows with a fault, when the cells are given a meaning.

    Raises:
        SpatialfeatError: no such file, not a CSV, columns missing or repeated, or no rows.
    """
    csv = read_csv_text(csv_path, header)
    require_columns(csv_path, csv, required, header)
    csv = csv[~(csv == "").all(axis="columns")]  # A blank line is harmless, and dropping it keeps the row numbers.
    if csv.empty:
        raise SpatialfeatError(f"{csv_path}: has no rows; add one row `{header}` per {unit}")
    return Rows(Origin(csv_path, csv.index.to_numpy(dtype=np.int64) + FIRST_ROW), csv, on_problem=on_problem)
