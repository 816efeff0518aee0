"""Rows of a CSV as text, with the row numbers that messages name. Used by every reader of a CSV."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError

FIRST_ROW = 2
"""Rows are counted as a text editor or spreadsheet shows them: the header is row 1."""


@dataclass(frozen=True, eq=False)
class CsvRows:
    """N rows of a file. columns: N texts per column. row_numbers: (N,) int64, the header being row 1."""

    path: Path
    columns: pd.DataFrame
    row_numbers: NDArray[np.int64]

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
        raise SpatialfeatError(f"{self.path} row {self.row_numbers[first]}: {what}{others}; {remedy}")

    def phases(
        self, column: str, *, num_phases: int | None, also: int | None = None, name: str = "label", hint: str = ""
    ) -> NDArray[np.int64]:
        """(N,) int64: the column's whole numbers, which must lie in 0..num_phases-1 (None: not be negative).

        also: one more number that is allowed. name: what a message calls the value. hint: ends a remedy.
        """
        texts = self.columns[column].str.strip()
        not_integer = ~texts.str.fullmatch(r"[+-]?[0-9]+").to_numpy(dtype=bool)
        self.refuse(column, not_integer, f"{name} {{value!r}} is not an integer", f"write the phase's number{hint}")
        # A number that does not fit in int64 is outside any range of phases, as -1 is.
        numbers = texts.mask(texts.str.len() > 18, "-1").to_numpy(dtype=str).astype(np.int64)
        outside = (numbers < 0) if num_phases is None else (numbers < 0) | (numbers >= num_phases)
        if also is not None:
            outside &= numbers != also
        allowed = "0 and above" if num_phases is None else f"0..{num_phases - 1}"
        self.refuse(column, outside, f"{name} {{value}} is outside {allowed}", "fix the row or pass --num-classes")
        return numbers


def read_rows(csv_path: Path, header: str, required: Sequence[str], *, unit: str = "frame") -> CsvRows:
    """Read a CSV as text; blank lines are dropped.

    Args:
        header: the columns as a message shows them, e.g. "id,label".
        required: columns that must be there, once.
        unit: what a row stands for.

    Raises:
        SpatialfeatError: no such file, not a CSV, columns missing or repeated, or no rows.
    """
    csv = _read_csv(csv_path, header)
    _require_columns(csv_path, csv, header, required)
    csv = csv[~(csv == "").all(axis="columns")]  # A blank line is harmless, and dropping it keeps the row numbers.
    if csv.empty:
        raise SpatialfeatError(f"{csv_path}: has no rows; add one row `{header}` per {unit}")
    return CsvRows(csv_path, csv, csv.index.to_numpy(dtype=np.int64) + FIRST_ROW)


def _read_csv(csv_path: Path, header: str) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops surplus fields; here a row with surplus fields is an error.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            csv = pd.read_csv(csv_path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False,
                              encoding="utf-8-sig", skipinitialspace=True)  # fmt: skip
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{csv_path}: no such file; pass the right path") from error
    except pd.errors.EmptyDataError as error:
        raise SpatialfeatError(f"{csv_path}: is empty; the first line must be `{header}`") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise SpatialfeatError(f"{csv_path}{_malformed_row(csv_path)}") from error
    except UnicodeDecodeError as error:
        raise SpatialfeatError(f"{csv_path}: is not UTF-8 text ({error.reason}); save it as UTF-8 CSV") from error
    except OSError as error:
        raise SpatialfeatError(f"{csv_path}: cannot be read ({error.strerror})") from error
    csv.columns = csv.columns.str.strip()
    return csv


def _malformed_row(csv_path: Path) -> str:
    """Where and why pandas gave up: its own messages count rows from 0 or 1, or name none."""
    number = 1
    with csv_path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv_reader(file, skipinitialspace=True, strict=True)
        try:
            num_columns = len(next(rows))
            for number, fields in enumerate(rows, FIRST_ROW):
                if len(fields) > num_columns:
                    return f" row {number}: has {len(fields)} fields, the header {num_columns}; remove surplus commas"
        except CsvError as error:
            return f" row {number + 1}: is not valid CSV ({error}); mend the quotes of that row"
    return ": is not a valid CSV; save it again as UTF-8 CSV with commas"


def _require_columns(csv_path: Path, csv: pd.DataFrame, header: str, required: Sequence[str]) -> None:
    missing = [name for name in required if name not in csv]
    if missing:
        found = ", ".join(map(str, csv.columns))
        remedy = "save it with commas" if ";" in found or "\t" in found else f"the header must be `{header}`"
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(missing)} is missing (found: {found}); {remedy}")
    refuse_repeated_columns(csv_path, csv, header.split(","))


def refuse_repeated_columns(csv_path: Path, csv: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse a column that is there twice: nobody could tell which one was meant."""
    # pandas renames the second of two equal columns to `label.1`.
    repeated = [name for name in names if f"{name}.1" in csv or list(csv.columns).count(name) > 1]
    if repeated:
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(repeated)} is there twice; keep one")
