"""The only reader of frame CSVs and ids: parsed, checked, and grouped into videos or patients in time order.

`ids` says what an id means; a column `patient` says whose frame it is, whatever its id. Fields are compared as
integers, never as text: frame_10 is after frame_9.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import TEST_CSV, TRAIN_CSV, VAL_CSV
from spatialfeat.console import count_text
from spatialfeat.data.ids import USUAL_RULE, IdRule, is_only_a_frame
from spatialfeat.data.images import ImageFolder
from spatialfeat.data.tables import (
    Origin,
    ProblemHandler,
    RowProblem,
    Rows,
    read_rows,
    refuse,
    refuse_repeated_columns,
)
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import MAX_NAME_BYTES, PLAIN_ID, id_problem, name_problem, natural_key, same_name_key

UNLABELLED = -100
"""The label of a frame without a phase; PyTorch's cross-entropy ignores it by default."""

NO_LABELLED_FRAME = "has no labelled frame; training and scores need the true phases of some frames"

UNNAMED_SPLIT = "all"
"""The split of frames that come from a folder, without a CSV."""

_WORDS = {"train": "train training", "val": "val valid validation", "test": "test testing"}
_SPLIT_WORDS = {word: split for split, words in _WORDS.items() for word in words.split()}
"""Words in a CSV's name that name its split."""

_COLUMNS = ("ids", "labels", "videos", "patients", "segments", "frame_numbers")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameTable:
    """The rows of one CSV, in file order (N rows), or the images of one folder.

    Attributes:
        origin: the CSV file with the row numbers, the header being row 1; or the folder.
        images: the folder of the images.
        split: "train", "val", "test" or a name that the user gave.
        ids: (N,) str. labels: (N,) int64, UNLABELLED where there is none.
        videos: (N,) str, the id without its frame number. patients: (N,) str.
        segments, frame_numbers: (N,) int64, the parsed fields; segment is 0 for ids of the form VIDEO_FRAME.
        id_rule: how the ids were read. patients_given: a column `patient` named the patients instead.
        own_image_names: (N,) str, None where the images are named by the ids, as all are but those of pseudonyms.
    """

    origin: Origin
    images: ImageFolder
    split: str
    ids: NDArray[Any]
    labels: NDArray[np.int64]
    videos: NDArray[Any]
    patients: NDArray[Any]
    segments: NDArray[np.int64]
    frame_numbers: NDArray[np.int64]
    id_rule: IdRule = USUAL_RULE
    patients_given: bool = False
    own_image_names: NDArray[Any] | None = None

    @property
    def image_names(self) -> NDArray[Any]:
        """(N,) str: the name of each row's image in `images`."""
        return self.ids if self.own_image_names is None else self.own_image_names

    @property
    def source(self) -> Path:
        return self.origin.path

    def __len__(self) -> int:
        return len(self.ids)

    def image_path(self, row: int) -> Path:
        return self.images.file(str(self.image_names[row]))

    def where(self, row: int) -> str:
        """`train.csv row 812`, as every message about a row begins."""
        return self.origin.where(row, str(self.ids[row]))

    def take(self, keep: NDArray[np.bool_]) -> FrameTable:
        """The rows where `keep` (N,)."""
        if keep.all():
            return self
        columns = {name: getattr(self, name)[keep] for name in _COLUMNS}
        if self.own_image_names is not None:
            columns["own_image_names"] = self.own_image_names[keep]
        return replace(self, origin=self.origin.take(keep), **columns)


def read_frames(
    csv_path: Path,
    img_dir: Path,
    *,
    split: str,
    id_rule: IdRule = USUAL_RULE,
    num_classes: int | None = None,
    phase_names: Sequence[str] | None = None,
    labels_required: bool = True,
    more_classes: str = "pass --num-classes",
    on_problem: ProblemHandler = refuse,
) -> FrameTable:
    """Read and validate a CSV with the columns `id` and `label`, and perhaps `patient`.

    The label -100, -1 or nothing is UNLABELLED.

    Args:
        id_rule: how ids are read. A column `patient` wins over the patient that it reads.
        num_classes: labels must lie in 0..num_classes-1; None checks only that they are not negative.
        phase_names: names that may stand for labels, in label order; None if they are not known.
        more_classes: what the message for a label outside advises beside fixing the row.
        labels_required: False also takes a CSV without a `label` column.
        on_problem: receives the faulty rows. Unless it raises, the table comes without rows whose id is faulty or
            repeated, and with UNLABELLED for a faulty label.

    Raises:
        SpatialfeatError: with the row, the value and the remedy.
    """
    required = ["id", "label"] if labels_required else ["id"]
    rows = read_rows(csv_path, "id,label", required, on_problem=on_problem)
    labels = None
    if "label" in rows.columns:
        labels = rows.phases(
            "label", num_classes, phase_names=phase_names, unlabelled=UNLABELLED, more_classes=more_classes
        )
        labels = np.where(labels < 0, UNLABELLED, labels)
    return make_table(rows, img_dir, split, labels, id_rule=id_rule)


def unlabelled_text(table: FrameTable, num_faulty: int = 0) -> str | None:
    """`3 of 20 train frames in train.csv without a label`, or None if all have one.

    num_faulty: so many have one that could not be read.
    """
    count = int((table.labels == UNLABELLED).sum()) - num_faulty
    return f"{count} of {len(table)} {table.split} frames in {table.source} without a label" if count else None


def unlabelled_videos(table: FrameTable) -> list[str]:
    """The videos none of whose frames has a label, in numeric order; none if there is no label at all."""
    labelled = set(table.videos[table.labels != UNLABELLED].tolist())
    return sorted(set(table.videos.tolist()) - labelled, key=natural_key) if labelled else []


def labelled_frames(table: FrameTable, fate: str = "left out") -> FrameTable:
    """The rows with a label. Says how many have none, and their fate; raises SpatialfeatError if none has one."""
    keep = table.labels != UNLABELLED
    if not keep.any():
        raise SpatialfeatError(f"{table.source}: {NO_LABELLED_FRAME}")
    if text := unlabelled_text(table):
        logger.info("%s: %s", text, fate)
    if videos := unlabelled_videos(table):
        more = count_text(len(videos) - 1, "other video")
        have = "has" if len(videos) == 1 else f"and {more} have"
        logger.warning("%s: %s %s no label at all: %s", table.source, videos[0], have, fate)
    return table.take(keep)


def list_frames(img_dir: Path, *, split: str, id_rule: IdRule = USUAL_RULE) -> FrameTable:
    """Every image of a folder as an unlabelled frame, in alphabetic order.

    Of images that are bare numbers, as `frames/video01/000031.png`, the folder is the video, and `video01/000031` the
    id. Without images of its own, a folder stands for all that are in folders in it, which get such ids, too.

    Raises:
        SpatialfeatError: the folder cannot be read, holds no image, or one whose name is not an id.
    """
    images = ImageFolder(img_dir)
    names = sorted(images.names())
    inner = images.folders()
    if names and inner:
        logger.warning(
            "--img-dir %s: taking the images in the folder itself, and none of %s in it, such as %s",
            img_dir,
            count_text(len(inner), "folder of images", "folders of images"),
            inner[0],
        )
    if not names:
        names = sorted(images.names(inner))
    elif all(map(is_only_a_frame, names)):
        folder = img_dir if img_dir.name not in ("", "..") else img_dir.resolve()
        problem = name_problem(folder.name)
        if problem is not None:
            raise SpatialfeatError(
                f"--img-dir {img_dir}: its images are bare numbers, such as {names[0]}, so the folder's name would be "
                f"that of the video, but it {problem}; rename the folder"
            )
        images, names = ImageFolder(folder.parent), [f"{folder.name}/{name}" for name in names]
    if not names:
        raise SpatialfeatError(f"--img-dir {img_dir}: holds no PNG or JPEG file; pass the folder of the frames")
    rows = Rows(Origin(img_dir, None), pd.DataFrame({"id": names}, dtype=str))
    return make_table(rows, images.path, split, None, id_rule=id_rule)


def make_table(
    rows: Rows, img_dir: Path, split: str, labels: NDArray[np.int64] | None, *, id_rule: IdRule = USUAL_RULE
) -> FrameTable:
    """The table of the frames that `rows.id_column` names. labels: (N,) int64, None if all are unlabelled.

    Raises:
        SpatialfeatError: an id that cannot be a file name or does not follow the rule, a frame that is there twice, a
            video in two spellings or of two patients.
    """
    refuse_repeated_columns(rows.origin.path, rows.columns, ["patient"])
    sound, fields = _parse_ids(rows, id_rule)
    rows = rows.take(sound)
    ids = rows.columns[rows.id_column]
    table = FrameTable(
        origin=rows.origin,
        images=ImageFolder(img_dir),
        split=split,
        ids=ids.to_numpy(dtype=str),
        labels=np.full(len(ids), UNLABELLED, dtype=np.int64) if labels is None else labels[sound],
        videos=fields["video"].to_numpy(dtype=str),
        patients=fields["patient"].to_numpy(dtype=str),
        segments=fields["segment"].to_numpy(dtype=np.int64),
        frame_numbers=fields["frame"].to_numpy(dtype=np.int64),
        id_rule=id_rule,
        patients_given="patient" in rows.columns,
    )
    table = _without_repeated_frames(table, rows.on_problem)
    for problem in (*_videos_of_two_patients(table), *two_spellings([table])):
        rows.on_problem(problem)
    return table


def refuse_two_spellings(tables: Iterable[FrameTable]) -> None:
    """Refuse `1050_1` beside `1050_01`, or `Video1` beside `video1`: one video under two names.

    They would become two half-empty feature files, or one file on a disk that ignores letter case.
    """
    for problem in two_spellings(tables):
        refuse(problem)


def two_spellings(tables: Iterable[FrameTable]) -> Iterator[RowProblem]:
    """One problem, with the first row, for every video that is written in another way than before."""
    spellings: dict[tuple[object, ...], tuple[str, str]] = {}
    for table in tables:
        videos, first_rows = np.unique(table.videos, return_index=True)
        for video, row in zip(videos.tolist(), first_rows.tolist(), strict=True):
            where = table.where(row)
            known, known_where = spellings.setdefault(same_name_key(video), (video, where))
            if known != video:
                what = f"{where}: video {video} is the same as {known} in {known_where}, written differently"
                describe = partial("{}".format, what)  # Of a row, which needs no further words.
                yield RowProblem("two-spellings", np.array([row]), describe, "use one spelling")


def _parse_ids(rows: Rows, id_rule: IdRule) -> tuple[NDArray[np.bool_], pd.DataFrame]:
    """((N,): which rows have an id that can be used, their parsed fields). `on_problem` receives the others."""
    ids = rows.columns[rows.id_column]
    parsed = id_rule.read(ids)
    faulty = _refuse_unsafe(rows, rows.id_column, ids, "id {value!r} cannot be a file name: it")
    unread: NDArray[np.bool_] = ~faulty & parsed["frame"].isna().to_numpy(dtype=bool)
    rows.refuse(rows.id_column, unread, "id {value!r} " + _literal(id_rule.problem), id_rule.remedy, "bad-id")
    faulty |= unread
    # `a _1`: the blank is inside the id, but at an end of the video, which names a file too.
    for name in ("video", "patient"):
        names = parsed[name].mask(faulty, "refused")
        faulty |= _refuse_unsafe(rows, rows.id_column, names, f"the {name} of id {{value!r}} cannot be a file name: it")
    if "patient" in rows.columns:
        parsed["patient"] = rows.columns["patient"].str.strip()
        names = parsed["patient"].mask(faulty, "refused")
        faulty |= _refuse_unsafe(rows, "patient", names, "patient {value!r} cannot be part of a file name: it")
    parsed = parsed[~faulty]
    return ~faulty, parsed.astype({"segment": np.int64, "frame": np.int64})


def _refuse_unsafe(rows: Rows, column: str, names: pd.Series[str], problem: str) -> NDArray[np.bool_]:
    """(N,): which names cannot be used. Ids, videos and patients become file names; `problem` begins the message."""
    odd = names[~names.str.fullmatch(PLAIN_ID).to_numpy(dtype=bool)].unique()
    found = names.map({name: id_problem(name) for name in odd})
    remedy = f"use at most {MAX_NAME_BYTES} letters, digits, - and _"
    for reason in found.dropna().unique():
        text = f"{problem} {_literal(str(reason))}"
        rows.refuse(column, (found == reason).to_numpy(dtype=bool), text, remedy, "bad-id")
    return found.notna().to_numpy(dtype=bool, copy=True)


def _literal(text: str) -> str:
    """`text` for a message in which `{value}` stands for the row's value."""
    return text.replace("{", "{{").replace("}", "}}")


def _videos_of_two_patients(table: FrameTable) -> Iterator[RowProblem]:
    """One problem for all rows whose column `patient` names another patient than an earlier row of their video."""
    if table.patients_given:
        _, first, video_of_row = np.unique(table.videos, return_index=True, return_inverse=True)
        known = first[video_of_row]
        differing = np.flatnonzero(table.patients != table.patients[known])

        def describe(row: int) -> str:
            earlier = int(known[row])
            video = f"video {table.videos[row]} is of patient {table.patients[row]}"
            return f"{table.where(row)}: {video}, but of {table.patients[earlier]} in {table.where(earlier)}"

        if len(differing):
            yield RowProblem("two-patients", differing, describe, "a video is of one patient: fix the column patient")


def _without_repeated_frames(table: FrameTable, on_problem: ProblemHandler) -> FrameTable:
    """Report ids that occur twice, and of `1_1_9` beside `1_1_09`, which name the same frame; keep the first."""
    keys = pd.DataFrame({"video": table.videos, "frame": table.frame_numbers})
    repeated = keys.duplicated().to_numpy(dtype=bool)
    if repeated.any():
        place = pd.Series(np.arange(len(table)))
        first = place.groupby([table.videos, table.frame_numbers]).transform("first").to_numpy()

        def describe(row: int) -> str:
            known = int(first[row])
            other_label = ", with another label" if table.labels[row] != table.labels[known] else ""
            repeats = f"id {table.ids[row]} repeats {table.ids[known]} of {table.where(known)}"
            return f"{table.where(row)}: {repeats}{other_label}"

        on_problem(RowProblem("repeated-id", np.flatnonzero(repeated), describe, "remove one of them"))
    return table.take(~repeated)


@dataclass(frozen=True)
class Video:
    """One feature file's worth of frames: `rows` are (T,) indices into `table`, in time order."""

    video_id: str
    patient_id: str
    table: FrameTable
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def segments(self) -> NDArray[np.int64]:
        """(T,) int64: the segment of each frame, as its id says.

        Several videos of a patient may have one number, as all of the form VIDEO_FRAME have 0: then they are numbered
        from 1, so that frame numbers that begin anew are not taken for one video's.
        """
        own = self.table.segments[self.rows]
        videos = self.table.videos[self.rows]
        starts = np.concatenate([[True], videos[1:] != videos[:-1]])
        if len(np.unique(own[starts])) == starts.sum():
            return own
        return np.cumsum(starts, dtype=np.int64)


def group_videos(tables: Sequence[FrameTable], group_by: str = "video") -> list[Video]:
    """Group rows into videos (or whole patients), each in time order, the videos in numeric order of their ids.

    Raises:
        SpatialfeatError: a video (or, grouped so, a patient) occurs in two splits, or in two spellings.
    """
    refuse_two_spellings(tables)
    found: dict[tuple[object, ...], Video] = {}
    for video in chain.from_iterable(videos_of(table, group_by) for table in tables):
        other = found.setdefault(same_name_key(video.video_id), video)
        if other is not video:
            here, there = (one.table.where(int(one.rows[0])) for one in (video, other))
            if video.video_id != other.video_id:
                raise SpatialfeatError(
                    f"{here}: {group_by} {video.video_id} is the same as {other.video_id} in {there}, written "
                    "differently; use one spelling"
                )
            raise SpatialfeatError(
                f"{here}: {group_by} {video.video_id} is listed here (split {video.table.split}) and in {there} (split "
                f"{other.table.split}); keep each {group_by} in one CSV"
            )
    return sorted(found.values(), key=lambda video: natural_key(video.video_id))


def videos_of(table: FrameTable, group_by: str = "video") -> Iterator[Video]:
    """The videos (or whole patients) of one table, each in time order, in the order of their names as text."""
    keys, key_of_row = np.unique(table.videos if group_by == "video" else table.patients, return_inverse=True)
    columns = [table.frame_numbers, table.segments, key_of_row]
    if group_by != "video":
        # A patient's videos may all have segment 0: each stays together, in the numeric order of their names.
        videos, video_of_row = np.unique(table.videos, return_inverse=True)
        place = np.argsort(sorted(range(len(videos)), key=lambda video: natural_key(str(videos[video]))))
        columns.insert(1, place[video_of_row])
    # One sort for all videos: picking each video's rows out of 200,000 takes seconds when there are many.
    order = np.lexsort(columns)
    ends = np.cumsum(np.bincount(key_of_row))
    for key, rows in zip(keys.tolist(), np.split(order, ends[:-1]), strict=True):
        yield Video(key, str(table.patients[rows[0]]), table, rows)


def count_gaps(segments: NDArray[np.int64], frame_numbers: NDArray[np.int64]) -> tuple[int, int]:
    """(usual step, number of gaps) of the frame numbers (T,) of a video in time order.

    The usual step is the most common difference of neighbours within a segment; a gap is where they differ by more.
    """
    steps = np.diff(frame_numbers)[np.diff(segments) == 0]
    usual = most_common_step(steps.tolist())
    return usual, int((steps > usual).sum())


def most_common_step(steps: Iterable[int]) -> int:
    """The smallest of several; 1 where there is none."""
    counts = Counter(steps)
    return min(counts, key=lambda step: (-counts[step], step), default=1)


def doubtful_fps(steps: Iterable[int], fps: float) -> str | None:
    """What is doubtful where frame numbers advance by 25 and count one per second, which is what `--fps` says unasked.

    Args:
        steps: the usual step of each video, as `count_gaps` gives it. fps: frame numbers per second.
    """
    step = most_common_step(steps)
    if step == 1 or fps != 1:
        return None
    return (
        f"frame numbers advance by {step}, so at --fps 1 frames are {step} s apart; if that is one frame a second, "
        f"pass --fps {step} to extract and check"
    )


def named_csvs(csvs: Sequence[str]) -> list[tuple[str, Path]]:
    """(split, path) of each `PATH` or `SPLIT=PATH`; with none given, those of the specification's files that are here.

    Raises:
        SpatialfeatError: a file name that does not name its split, or a file given twice.
    """
    if not csvs:
        defaults = [("train", TRAIN_CSV), ("val", VAL_CSV), ("test", TEST_CSV)]
        for _, path in defaults:
            if not path.exists():
                logger.info("no %s here: leaving it out", path)
        return [(split, path) for split, path in defaults if path.exists()]
    named = [_split_and_path(text) for text in csvs]
    paths = [path.resolve() for _, path in named]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise SpatialfeatError(f"--csv {named[index][1]}: is given twice; give each file once")
    return named


def _split_and_path(text: str) -> tuple[str, Path]:
    match = re.fullmatch(r"(?P<split>[A-Za-z0-9_-]+)=(?P<path>.+)", text)
    if match and not Path(text).exists():
        return match["split"], Path(match["path"]).expanduser()  # The shell expands no `~` behind `=`.
    path = Path(text)
    words = re.split(r"[^a-z]+", path.stem.lower())
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    if len(splits) != 1:
        raise SpatialfeatError(
            f"--csv {text}: the file's name does not say which split it is (train, val or test); "
            f"write --csv SPLIT={text}"
        )
    return splits.pop(), path
