"""CSV files as text: what is broken in one is told with its row. Meaning is given to the cells elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from csv import Error as CsvError
from csv import reader as csv_reader
from pathlib import Path

import pandas as pd

from spatialfeat.errors import SpatialfeatError

FIRST_ROW = 2
"""Rows are counted as a text editor or spreadsheet shows them: the header is row 1."""


def read_csv_text(csv_path: Path, header: str) -> pd.DataFrame:
    """Every cell as text, the index counting rows from 0; blank lines stay, so that row numbers are right.

    header: the columns as a message shows them, e.g. "id,label".

    Raises:
        SpatialfeatError: with the row and the remedy, if the file cannot be read as a CSV.
    """
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops surplus fields; here a row with surplus fields is an error.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            csv = pd.read_csv(
                csv_path,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
            )
    except FileNotFoundError as error:
        raise SpatialfeatError(
            f"{csv_path}: no such file; go to the folder of your data, or pass the right path"
        ) from error
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


def require_columns(csv_path: Path, csv: pd.DataFrame, required: Sequence[str], header: str) -> None:
    """Refuse a CSV that lacks a required column, or has one of the header's columns twice."""
    missing = [name for name in required if name not in csv]
    if missing:
        found = ", ".join(map(str, csv.columns))
        remedy = "save it with commas" if ";" in found or "\t" in found else f"the header must be `{header}`"
        raise SpatialfeatError(f"{csv_path}: no column {' and '.join(missing)} (found: {found}); {remedy}")
    refuse_repeated_columns(csv_path, csv, header.split(","))


def refuse_repeated_columns(csv_path: Path, csv: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuse a column that is there twice: nobody could tell which one was meant."""
    # pandas renames the second of two equal columns to `label.1`.
    repeated = [name for name in names if f"{name}.1" in csv or list(csv.columns).count(name) > 1]
    if repeated:
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(repeated)} is there twice; keep one")
