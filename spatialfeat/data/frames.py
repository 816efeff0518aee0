"""The only reader of frame CSVs and ids: validation and parsing.

An id is `PATIENT_SEGMENT_FRAME` (`1050_1_000001`) or `VIDEO_FRAME` (`video01_000123`). The last field is the frame
number, everything before it is the video. Fields are compared as integers, never as text: frame_10 is after frame_9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.data.csvrows import Origin, Rows, read_rows
from spatialfeat.data.images import list_pngs
from spatialfeat.errors import SpatialfeatError
from spatialfeat.safetext import MAX_NAME_BYTES, PLAIN_NAME, name_problem, spelling_key

UNLABELLED = -100
"""The label of a frame without a phase; PyTorch's cross-entropy ignores it by default."""

_ID = r"^(?P<video>.+)_(?P<frame>[0-9]{1,18})$"
_PATIENT_SEGMENT = re.compile(r"(?P<patient>.+)_(?P<segment>[0-9]{1,18})")


@dataclass(frozen=True)
class FrameTable:
    """The rows of one CSV, in file order (N rows), or the images of one folder.

    Attributes:
        origin: the CSV file with the row numbers, the header being row 1; or the folder.
        img_dir: the folder that holds `{image name}.png`.
        split: "train", "val", "test" or a name that the user gave.
        ids: (N,) str. labels: (N,) int64, UNLABELLED where there is none.
        videos: (N,) str, the id without its frame number. patients: (N,) str.
        segments, frames: (N,) int64, the parsed fields; segment is 0 for ids of the form VIDEO_FRAME.
        own_image_names: (N,) str, None where the images are named by the ids, as all are but those of pseudonyms.
    """

    origin: Origin
    img_dir: Path
    split: str
    ids: NDArray[Any]
    labels: NDArray[np.int64]
    videos: NDArray[Any]
    patients: NDArray[Any]
    segments: NDArray[np.int64]
    frames: NDArray[np.int64]
    own_image_names: NDArray[Any] | None = None

    @property
    def image_names(self) -> NDArray[Any]:
        """(N,) str: the name of each row's PNG in `img_dir`, without the suffix."""
        return self.ids if self.own_image_names is None else self.own_image_names

    @property
    def source(self) -> Path:
        return self.origin.path

    def __len__(self) -> int:
        return len(self.ids)

    def image_path(self, row: int) -> Path:
        return self.img_dir / f"{self.image_names[row]}.png"

    def where(self, row: int) -> str:
        """`train.csv row 812`, as every message about a row begins."""
        return self.origin.where(row, str(self.ids[row]))


def read_frames(
    csv_path: Path,
    img_dir: Path,
    *,
    split: str,
    num_classes: int | None = None,
    labels_required: bool = True,
    allow_unlabelled: bool | None = None,
    more_classes: str = "pass --num-classes",
) -> FrameTable:
    """Read and validate a CSV with the columns `id` and `label`.

    Args:
        num_classes: labels must lie in 0..num_classes-1; None checks only that they are not negative.
        more_classes: what the message for a label outside advises beside mending the row.
        labels_required: False also takes a CSV without a `label` column.
        allow_unlabelled: True also takes the label -100 for an unlabelled frame. None: where labels are not required.

    Raises:
        SpatialfeatError: with the row, the value and the remedy.
    """
    rows = read_rows(csv_path, "id,label", ["id", "label"] if labels_required else ["id"])
    if allow_unlabelled is None:
        allow_unlabelled = not labels_required
    labels = None
    if "label" in rows.columns:
        also = UNLABELLED if allow_unlabelled else None
        labels = rows.phases("label", num_classes, also=also, more_classes=more_classes)
    return make_table(rows, img_dir, split, labels)


def list_frames(img_dir: Path, *, split: str) -> FrameTable:
    """Every PNG of a folder as an unlabelled frame, in alphabetic order.

    Raises:
        SpatialfeatError: the folder cannot be read, holds no PNG, or one whose name is not an id.
    """
    names = sorted(list_pngs(img_dir))
    if not names:
        raise SpatialfeatError(f"--img-dir {img_dir}: holds no PNG file; pass the folder of the frames")
    return make_table(Rows(Origin(img_dir, None), pd.DataFrame({"id": names}, dtype=str)), img_dir, split, None)


def make_table(rows: Rows, img_dir: Path, split: str, labels: NDArray[np.int64] | None) -> FrameTable:
    """The table of the frames that `rows.id_column` names. labels: (N,) int64, None if all are unlabelled.

    Raises:
        SpatialfeatError: an id that cannot be a file name or does not end in a frame number, a frame that is there
            twice, or a video in two spellings.
    """
    ids, fields = rows.columns[rows.id_column], _parse_ids(rows)
    table = FrameTable(
        origin=rows.origin,
        img_dir=img_dir,
        split=split,
        ids=ids.to_numpy(dtype=str),
        labels=np.full(len(ids), UNLABELLED, dtype=np.int64) if labels is None else labels,
        videos=fields["video"].to_numpy(dtype=str),
        patients=fields["patient"].to_numpy(dtype=str),
        segments=fields["segment"].to_numpy(dtype=np.int64),
        frames=fields["frame"].to_numpy(dtype=np.int64),
    )
    _refuse_repeated_frames(table)
    refuse_two_spellings([table])
    return table


def natural_key(text: str) -> tuple[object, ...]:
    """Sort key that compares runs of digits as integers: video2 before video10, and 007 equal to 7."""
    parts = re.split(r"([0-9]+)", text)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def refuse_two_spellings(tables: Iterable[FrameTable]) -> None:
    """Refuse `1050_1` beside `1050_01`, or `Video1` beside `video1`: one video under two names.

    They would become two half-empty feature files, or one file on a disk that does not tell letter cases apart.
    """
    spellings: dict[tuple[object, ...], tuple[str, str]] = {}
    for table in tables:
        videos, first_rows = np.unique(table.videos, return_index=True)
        for video, row in zip(videos.tolist(), first_rows.tolist(), strict=True):
            where = table.where(row)
            known, known_where = spellings.setdefault(natural_key(spelling_key(video)), (video, where))
            if known != video:
                raise SpatialfeatError(
                    f"{where}: video {video} is the same as {known} in {known_where}, written differently; "
                    "use one spelling"
                )


def _parse_ids(rows: Rows) -> pd.DataFrame:
    column, ids = rows.id_column, rows.columns[rows.id_column]
    _refuse_unsafe(rows, ids, "id {value!r} cannot be a file name: it")
    parsed = ids.str.extract(_ID)
    rows.refuse(
        column,
        parsed["frame"].isna().to_numpy(dtype=bool),
        "id {value!r} does not end in _FRAME",
        "write PATIENT_SEGMENT_FRAME or VIDEO_FRAME, e.g. 1050_1_000001, without .png",
    )
    # `a _1`: the blank is inside the id, but at an end of the video, which names a file too.
    _refuse_unsafe(rows, parsed["video"], "the video of id {value!r} cannot be a file name: it")
    # A few hundred videos stand for hundreds of thousands of frames: split each video's name once.
    splits = {video: _split_video(video) for video in parsed["video"].unique()}
    parsed["patient"] = parsed["video"].map({video: patient for video, (patient, _) in splits.items()})
    _refuse_unsafe(rows, parsed["patient"], "the patient of id {value!r} cannot be a file name: it")
    parsed["segment"] = parsed["video"].map({video: segment for video, (_, segment) in splits.items()})
    parsed["frame"] = parsed["frame"].astype(np.int64)
    return parsed


def _refuse_unsafe(rows: Rows, names: pd.Series[str], problem: str) -> None:
    """Ids, videos and patients become file names; `problem` begins the message."""
    unsafe = ~names.str.fullmatch(PLAIN_NAME).to_numpy(dtype=bool)
    reasons = {name: name_problem(name) for name in names[unsafe].unique()}
    unsafe[unsafe] = [reasons[name] is not None for name in names[unsafe]]
    if unsafe.any():
        reason = reasons[names[unsafe].iloc[0]]
        rows.refuse(
            rows.id_column, unsafe, f"{problem} {reason}", f"use at most {MAX_NAME_BYTES} letters, digits, - and _"
        )


def _split_video(video: str) -> tuple[str, int]:
    match = _PATIENT_SEGMENT.fullmatch(video)
    return (match["patient"], int(match["segment"])) if match else (video, 0)


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
            f"{table.where(row)}: id {table.ids[row]} repeats {table.ids[first]} of {table.where(first)}{others}; "
            "remove one of them"
        )
