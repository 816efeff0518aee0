"""CSV files as text: what is broken in one is told with its row. Meaning is given to the cells elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
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
            f"{csv_path} row {len(rows) + 1}: is not valid CSV ({error}); mend the quotes of that row"
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
    """Refuse a column that is there twice: nobody could tell which one was meant."""
    repeated = [name for name in names if list(table.columns).count(name) > 1]
    if repeated:
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(repeated)} is there twice; keep one")
