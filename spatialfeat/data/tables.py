"""CSV files as rows of text, and what gives the cells their meaning. Every fault is reported with its row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.console import name_some
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import read_text
from spatialfeat.phases import NO_PHASE

FIRST_ROW = 2
"""Rows are counted as a text editor or spreadsheet shows them: the header is row 1."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SHOWN_NAMES = 10
"""A message lists so many phase names."""

_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]+)(\.0*)?")
_TOO_LARGE = 10**18


def row_texts(csv_path: Path) -> list[str]:
    """Of a CSV that can be read, each row's own text without its line end: row n is item n - 1, the header row 1."""
    text, separator = _read_text(csv_path, ("id", "label"))
    lines = list(io.StringIO(text, newline=""))
    # A quoted cell may hold line ends.
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    ends = [0, *(reader.line_num for _ in reader)]
    return ["".join(lines[start:end]).rstrip("\r\n") for start, end in pairwise(ends)]


def _read_text(csv_path: Path, names: Sequence[str]) -> tuple[str, str]:
    """(text, what separates the cells of its header: of several signs in it, the one that gives most of `names`)."""
    text = read_text(csv_path)
    # Python 3.10's reader gives up on NUL, later ones let it pass; no CSV needs it.
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise SpatialfeatError(f"{csv_path} row {row}: holds a NUL character; save it as plain UTF-8 text")
    first_line = text.partition("\n")[0]
    there = [sign for sign in SEPARATORS if sign in first_line]
    cells = {sign: [cell.strip(' \r"') for cell in first_line.split(sign)] for sign in there}
    return text, max(there, key=lambda sign: sum(name in cells[sign] for name in names), default=",")


def _refuse_other_separator(where: str, fields: Sequence[str], names: Sequence[str], separator: str) -> None:
    """Refuse `video05/000014;-1` under the header `id,label`: read as one cell, it would be an id that nobody wrote."""
    for sign in SEPARATORS:
        if len(fields) == 1 < len(names) == len(fields[0].split(sign)):
            shown = {",": "`,`", ";": "`;`", "\t": "tabs"}
            fix = "with tabs" if sign == "\t" else f"as `{sign.join(names)}`"
            raise SpatialfeatError(
                f"{where}: its cells are separated by {shown[sign]}, those of the header by {shown[separator]}; "
                f"use one separator in all rows: write the header {fix}, or the rows like the header"
            )


def _parse(csv_path: Path, text: str, separator: str) -> list[list[str]]:
    # Not by pandas: its versions differ in what they let pass, and its messages count rows in several ways.
    rows: list[list[str]] = []
    try:
        lines = io.StringIO(text, newline="")
        rows.extend(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True))
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
        raise SpatialfeatError(
            f"{csv_path}: no column {' and '.join(missing)} (found: {found}); the header must be `{header}`"
        )
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

    def take(self, keep: NDArray[np.bool_]) -> Origin:
        """Of the rows where `keep` (N,)."""
        return Origin(self.path, None if self.row_numbers is None else self.row_numbers[keep])

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
        return replace(self, origin=self.origin.take(keep), columns=self.columns[keep])

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
        phase_names: Sequence[str] | None = None,
        unlabelled: int | None = None,
        name: str = "label",
        more_classes: str = "pass --num-classes",
    ) -> NDArray[np.int64]:
        """(N,) int64: the phases in a column, which must lie in 0..num_phases-1 (None: not be negative).

        A phase is written as a whole number (`3`, `3.0`), or by its name where names are known. A name that is itself
        the number of another phase, or means an unlabelled frame, could be read in two ways and is refused. Where
        `on_problem` lets a fault pass, the number is -1.

        phase_names: C names in label order. unlabelled: the number to give for -100, -1 and empty cells; None where
        every row needs a phase. name: what a message calls the value. more_classes: what the message for a number
        outside advises beside fixing the row.
        """
        texts = self.columns[column].str.strip()
        read = {text: _number(text, unlabelled) for text in texts.unique()}
        named = {phase_name.strip(): phase for phase, phase_name in enumerate(phase_names or ())}
        limit = _TOO_LARGE if num_phases is None else num_phases
        allowed = "0 and above" if num_phases is None else f"0..{num_phases - 1}"
        found, faults = dict[str, int](), dict[str, str]()
        for text, number in read.items():
            phase = named.get(text, number)
            found[text] = -1
            if phase is None:
                faults[text] = "no phase"
            elif number not in (None, phase):
                faults[text] = "two meanings"
            elif phase == unlabelled or 0 <= phase < limit:
                found[text] = phase
            else:
                faults[text] = "negative" if phase < 0 else "too large"

        numbers = [number for number in read.values() if number is not None and number != unlabelled]
        if num_phases is not None and numbers and min(numbers) == 1 and max(numbers) == num_phases:
            more_classes = f"count phases from 0: these run from 1 to {num_phases}, so subtract 1 everywhere"
        no_label = "" if unlabelled is None else "; a frame without a label has -100, -1 or nothing"
        if named:
            wrong = f"{name} {{value!r}} is no phase"
            remedy = (
                f"write {allowed} or one of {name_some(named, SHOWN_NAMES)}, or give other names with --phase-names"
            )
        else:
            wrong = f"{name} {{value!r}} is not an integer"
            remedy = "write the phase's number, e.g. 3, or pass --phase-names if these are the names of phases"
        two_meanings = f"{name} {{value}} is a number, and the name of another phase"
        outside = f"{name} {{value}} is outside {allowed}"
        for fault, problem, advice, kind in (
            ("no phase", wrong, remedy + no_label, "label-not-a-number"),
            ("two meanings", two_meanings, "give names with --phase-names that are no numbers", "label-not-a-number"),
            ("too large", outside, f"fix the row or {more_classes}", "label-out-of-range"),
            ("negative", outside, f"fix the row: phases count from 0{no_label}", "label-out-of-range"),
        ):
            if fault in faults.values():
                self.refuse(column, (texts.map(faults) == fault).to_numpy(dtype=bool), problem, advice, kind)
        return texts.map(found).to_numpy(dtype=np.int64)


def _number(text: str, unlabelled: int | None) -> int | None:
    """The whole number that a cell holds, `unlabelled` if it means that, None if it holds something else."""
    match = _WHOLE_NUMBER.fullmatch(text)
    digits = match[1] if match else text
    if unlabelled is not None and digits in NO_PHASE:
        return unlabelled
    if match is None:
        return None
    # Python refuses to read thousands of digits; no phase has so many.
    return int(digits) if len(digits) <= 18 else (-_TOO_LARGE if digits[0] == "-" else _TOO_LARGE)


def read_rows(
    csv_path: Path,
    header: str,
    required: Sequence[str],
    *,
    unit: str = "frame",
    on_problem: ProblemHandler = refuse,
) -> Rows:
    """Read a CSV as text; blank lines are dropped.

    Cells are separated by commas, or by the semicolons or tabs that the file's own header is written with.

    Args:
        header: the columns as a message shows them, e.g. "id,label"; none may be there twice.
        required: columns that must be there.
        unit: what a row stands for.
        on_problem: receives the rows with a fault, when the cells are given a meaning.

    Raises:
        SpatialfeatError: no such file, not a CSV, columns missing or repeated, or no rows.
    """
    text, separator = _read_text(csv_path, header.split(","))
    names, *cells = _parse(csv_path, text, separator) or [[]]
    if not names:
        raise SpatialfeatError(f"{csv_path}: is empty; the first line must be `{header}`")
    for number, fields in enumerate(cells, FIRST_ROW):
        _refuse_other_separator(f"{csv_path} row {number}", fields, names, separator)
        if len(fields) > len(names):
            raise SpatialfeatError(
                f"{csv_path} row {number}: has {len(fields)} fields, the header {len(names)}; remove surplus "
                f"{SEPARATORS[separator]}"
            )
    padded = [fields + [""] * (len(names) - len(fields)) for fields in cells]
    table: pd.DataFrame = pd.DataFrame(padded, columns=[name.strip() for name in names], dtype=str)
    require_columns(csv_path, table, required, header)
    # A blank line is harmless, and dropping it keeps the row numbers.
    table = table[~(table == "").all(axis="columns")]
    if table.empty:
        raise SpatialfeatError(f"{csv_path}: has no rows; add one row `{header}` per {unit}")
    return Rows(Origin(csv_path, table.index.to_numpy(dtype=np.int64) + FIRST_ROW), table, on_problem=on_problem)
