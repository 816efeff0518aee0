"""Frames grouped into videos or whole patients, each in time order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spatialfeat.data.frames import FrameTable, refuse_two_spellings
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key, same_name_key


@dataclass(frozen=True)
class Video:
    """One feature file's worth of frames: `rows` are (T,) indices into `table`, in time order."""

    video_id: str
    patient_id: str
    table: FrameTable
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def group_videos(tables: Sequence[FrameTable], group_by: str = "video") -> list[Video]:
    """Group rows into videos (or whole patients), each in time order, the videos in numeric order of their ids.

    Raises:
        SpatialfeatError: a video (or, grouped so, a patient) occurs in two splits, or in two spellings.
    """
    refuse_two_spellings(tables)
    found: dict[str, Video] = {}
    for table in tables:
        for video in videos_of(table, group_by):
            if video.video_id in found:
                other = found[video.video_id]
                raise SpatialfeatError(
                    f"{table.where(int(video.rows[0]))}: {group_by} {video.video_id} is listed here (split "
                    f"{table.split}) and in {other.table.where(int(other.rows[0]))} (split {other.table.split}); "
                    f"keep each {group_by} in one CSV"
                )
            found[video.video_id] = video
    for before, video in pairwise(sorted(found.values(), key=lambda video: same_name_key(video.video_id))):
        if same_name_key(before.video_id) == same_name_key(video.video_id):
            raise SpatialfeatError(
                f"{video.table.where(int(video.rows[0]))}: {group_by} {video.video_id} is the same as "
                f"{before.video_id} in {before.table.where(int(before.rows[0]))}, written differently; use one spelling"
            )
    return [found[key] for key in sorted(found, key=natural_key)]


def videos_of(table: FrameTable, group_by: str = "video") -> Iterator[Video]:
    """The videos (or whole patients) of one table, each in time order, in the order of their names as text."""
    keys, key_of_row = np.unique(table.videos if group_by == "video" else table.patients, return_inverse=True)
    # One sort for all videos: picking each video's rows out of 200,000 takes seconds when there are many.
    order = np.lexsort((table.frames, table.segments, key_of_row))
    ends = np.cumsum(np.bincount(key_of_row))
    for key, rows in zip(keys.tolist(), np.split(order, ends[:-1]), strict=True):
        yield Video(key, str(table.patients[rows[0]]), table, rows)


def shared_patients(tables: Sequence[FrameTable]) -> dict[str, dict[str, int]]:
    """The patients that are in more than one split: see `patients_in_several_splits`."""
    return patients_in_several_splits(
        (str(patient), table.split, int(count))
        for table in tables
        for patient, count in zip(*np.unique(table.patients, return_counts=True), strict=True)
    )


def patients_in_several_splits(frames: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """How many frames in which split: {patient: {split: frames}} of the patients that are in more than one.

    Scores on such splits are too good. A patient that is written in several ways is shown so: `P1 (also p1)`.

    Args:
        frames: (patient, split, number of frames), any number of them for a patient.
    """
    found: dict[tuple[object, ...], tuple[dict[str, None], dict[str, int]]] = {}
    for patient, split, count in frames:
        spellings, splits = found.setdefault(same_name_key(patient), ({}, {}))
        spellings[patient] = None
        splits[split] = splits.get(split, 0) + count
    return {_spellings_text(list(spellings)): splits for spellings, splits in found.values() if len(splits) > 1}


def _spellings_text(spellings: Sequence[str]) -> str:
    first, *others = spellings
    return f"{first} (also {', '.join(others)})" if others else first
