"""The only reader of frame CSVs and ids: validation and parsing.

An id is `PATIENT_SEGMENT_FRAME` (`1050_1_000001`) or `VIDEO_FRAME` (`video01_000123`). The last field is the frame
number, everything before it is the video. Fields are compared as integers, never as text: frame_10 is after frame_9.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError

UNLABELLED = -100
"""The label of a frame without a phase; PyTorch's cross-entropy ignores it by default."""

FIRST_ROW = 2
"""Rows are counted as a text editor or spreadsheet shows them: the header is row 1."""

# Ids become file names: no separators or control characters, nothing hidden, no blanks at the ends, and room for ".png"
# in the 255 bytes that file systems allow.
_SAFE_ID = r"[^\s./\\\x00-\x1f\x7f](?:[^/\\\x00-\x1f\x7f]{0,248}[^\s/\\\x00-\x1f\x7f])?"
_ID = r"^(?P<video>.+)_(?P<frame>[0-9]{1,18})$"
_PATIENT_SEGMENT = re.compile(r"(?P<patient>.+)_(?P<segment>[0-9]{1,18})")


@dataclass(frozen=True)
class FrameTable:
    """The rows of one CSV, in file order (N rows).

    Attributes:
        source: the CSV file.
        img_dir: the folder that holds `{id}.png`.
        split: "train", "val", "test" or a name that the user gave.
        ids: (N,) str. labels: (N,) int64, UNLABELLED where there is none.
        videos: (N,) str, the id without its frame number. patients: (N,) str.
        segments, frames: (N,) int64, the parsed fields; segment is 0 for ids of the form VIDEO_FRAME.
        row_numbers: (N,) int64, the row in the CSV, the header being row 1.
    """

    source: Path
    img_dir: Path
    split: str
    ids: NDArray[Any]
    labels: NDArray[np.int64]
    videos: NDArray[Any]
    patients: NDArray[Any]
    segments: NDArray[np.int64]
    frames: NDArray[np.int64]
    row_numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def image_path(self, row: int) -> Path:
        return self.img_dir / f"{self.ids[row]}.png"

    def where(self, row: int) -> str:
        """`train.csv row 812`, as every message about a row begins."""
        return f"{self.source} row {self.row_numbers[row]}"


def read_frames(
    csv_path: Path,
    img_dir: Path,
    *,
    split: str,
    num_classes: int | None = None,
    labels_required: bool = True,
) -> FrameTable:
    """Read and validate a CSV with the columns `id` and `label`.

    Args:
        num_classes: labels must lie in 0..num_classes-1; None checks only that they are not negative.
        labels_required: False also takes a CSV without a `label` column, and the label -100 for an unlabelled frame.

    Raises:
        SpatialfeatError: with the row, the value and the remedy.
    """
    csv = _read_csv(csv_path)
    _require_columns(csv_path, csv, ["id", "label"] if labels_required else ["id"])
    csv = csv[~(csv == "").all(axis="columns")]  # A blank line is harmless, and dropping it keeps the row numbers.
    if csv.empty:
        raise SpatialfeatError(f"{csv_path}: has no rows; add one row `id,label` per frame")
    row_numbers = csv.index.to_numpy(dtype=np.int64) + FIRST_ROW
    ids = csv["id"]
    fields = _parse_ids(csv_path, ids, row_numbers)
    if "label" in csv:
        labels = _parse_labels(csv_path, csv["label"], row_numbers, num_classes, allow_unlabelled=not labels_required)
    else:
        labels = np.full(len(csv), UNLABELLED, dtype=np.int64)
    table = FrameTable(
        source=csv_path,
        img_dir=img_dir,
        split=split,
        ids=ids.to_numpy(dtype=str),
        labels=labels,
        videos=fields["video"].to_numpy(dtype=str),
        patients=fields["patient"].to_numpy(dtype=str),
        segments=fields["segment"].to_numpy(dtype=np.int64),
        frames=fields["frame"].to_numpy(dtype=np.int64),
        row_numbers=row_numbers,
    )
    _refuse_repeated_frames(table)
    refuse_two_spellings([table])
    return table


def natural_key(text: str) -> tuple[object, ...]:
    """Sort key that compares runs of digits as integers: video2 before video10, and 007 equal to 7."""
    parts = re.split(r"([0-9]+)", text)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def refuse_two_spellings(tables: Iterable[FrameTable]) -> None:
    """Refuse `1050_1` beside `1050_01`: one video under two names would become two half-empty feature files."""
    spellings: dict[tuple[object, ...], tuple[str, str]] = {}
    for table in tables:
        videos, first_rows = np.unique(table.videos, return_index=True)
        for video, row in zip(videos.tolist(), first_rows.tolist(), strict=True):
            where = table.where(row)
            known, known_where = spellings.setdefault(natural_key(video), (video, where))
            if known != video:
                raise SpatialfeatError(
                    f"{where}: video {video} is the same as {known} in {known_where}, written differently; "
                    "use one spelling"
                )


def _read_csv(csv_path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # pandas only warns when it drops surplus fields; here a row with surplus fields is an error.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            csv = pd.read_csv(csv_path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False,
                              encoding="utf-8-sig", skipinitialspace=True)  # fmt: skip
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{csv_path}: no such file; pass the right path") from error
    except pd.errors.EmptyDataError as error:
        raise SpatialfeatError(f"{csv_path}: is empty; the first line must be `id,label`") from error
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


def _require_columns(csv_path: Path, csv: pd.DataFrame, required: list[str]) -> None:
    missing = [name for name in required if name not in csv]
    if missing:
        found = ", ".join(map(str, csv.columns))
        remedy = "save it with commas" if ";" in found or "\t" in found else "the header must be `id,label`"
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(missing)} is missing (found: {found}); {remedy}")
    # pandas renames the second of two equal columns to `label.1`.
    repeated = [name for name in ("id", "label") if f"{name}.1" in csv or list(csv.columns).count(name) > 1]
    if repeated:
        raise SpatialfeatError(f"{csv_path}: column {' and '.join(repeated)} is there twice; keep one")


def _parse_ids(csv_path: Path, ids: pd.Series[str], row_numbers: NDArray[np.int64]) -> pd.DataFrame:
    unsafe = ~ids.str.fullmatch(_SAFE_ID).to_numpy(dtype=bool)
    _refuse(csv_path, ids, row_numbers, unsafe, "id {value!r} cannot be a file name",
            "use at most 250 letters, digits, - and _; no folder, leading dot or outer blank")  # fmt: skip
    parsed = ids.str.extract(_ID)
    unparsed = parsed["frame"].isna().to_numpy(dtype=bool)
    _refuse(csv_path, ids, row_numbers, unparsed, "id {value!r} does not end in _FRAME",
            "write PATIENT_SEGMENT_FRAME or VIDEO_FRAME, e.g. 1050_1_000001, without .png")  # fmt: skip
    # A few hundred videos stand for hundreds of thousands of frames: split each video's name once.
    splits = {video: _split_video(video) for video in parsed["video"].unique()}
    parsed["patient"] = parsed["video"].map({video: patient for video, (patient, _) in splits.items()})
    parsed["segment"] = parsed["video"].map({video: segment for video, (_, segment) in splits.items()})
    parsed["frame"] = parsed["frame"].astype(np.int64)
    return parsed


def _split_video(video: str) -> tuple[str, int]:
    match = _PATIENT_SEGMENT.fullmatch(video)
    return (match["patient"], int(match["segment"])) if match else (video, 0)


def _parse_labels(
    csv_path: Path,
    texts: pd.Series[str],
    row_numbers: NDArray[np.int64],
    num_classes: int | None,
    *,
    allow_unlabelled: bool,
) -> NDArray[np.int64]:
    texts = texts.str.strip()
    not_integer = ~texts.str.fullmatch(r"[+-]?[0-9]+").to_numpy(dtype=bool)
    unlabelled_hint = f", or {UNLABELLED} for an unlabelled frame" if allow_unlabelled else ""
    _refuse(csv_path, texts, row_numbers, not_integer, "label {value!r} is not an integer",
            f"write the phase's number{unlabelled_hint}")  # fmt: skip
    # A number that does not fit in int64 is outside any range of phases, as -1 is.
    labels = texts.mask(texts.str.len() > 18, "-1").to_numpy(dtype=str).astype(np.int64)
    outside = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if allow_unlabelled:
        outside &= labels != UNLABELLED
    allowed = "0 and above" if num_classes is None else f"0..{num_classes - 1}"
    _refuse(csv_path, texts, row_numbers, outside, f"label {{value}} is outside {allowed}",
            "fix the row or pass --num-classes")  # fmt: skip
    return labels


def _refuse(
    csv_path: Path,
    values: pd.Series[str],
    row_numbers: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    problem: str,
    remedy: str,
) -> None:
    """Raise for the first row where `wrong`, if any: `train.csv row 812: label 9 is outside 0..6; fix the row`."""
    if not wrong.any():
        return
    first = int(np.flatnonzero(wrong)[0])
    others = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
    value = values.iloc[first]
    # A stray quote can make one field of thousands of lines.
    what = problem.format(value=value if len(value) <= 80 else f"{value[:80]}...")
    raise SpatialfeatError(f"{csv_path} row {row_numbers[first]}: {what}{others}; {remedy}")


def _refuse_repeated_frames(table: FrameTable) -> None:
    """Refuse an id that occurs twice, and `1_1_9` beside `1_1_09`, which name the same frame."""
    keys = pd.DataFrame({"video": table.videos, "frame": table.frames})
    repeated = np.flatnonzero(keys.duplicated().to_numpy())
    if len(repeated):
        row = int(repeated[0])
        same = (table.videos == table.videos[row]) & (table.frames == table.frames[row])
        first = int(np.flatnonzero(same)[0])
        others = f" ({len(repeated)} repeated rows)" if len(repeated) > 1 else ""
        raise SpatialfeatError(
            f"{table.where(row)}: id {table.ids[row]} repeats {table.ids[first]} of row {table.row_numbers[first]}"
            f"{others}; remove one of them"
        )
