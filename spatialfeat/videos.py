"""Frames grouped into videos or whole patients, each in time order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.frames import FrameTable, natural_key, refuse_two_spellings


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
        keys = table.videos if group_by == "video" else table.patients
        order = np.lexsort((table.frames, table.segments))
        for key in dict.fromkeys(keys.tolist()):
            rows = order[keys[order] == key]
            if key in found:
                other = found[key]
                raise SpatialfeatError(
                    f"{table.where(int(rows[0]))}: {group_by} {key} is listed here (split {table.split}) and in "
                    f"{other.table.where(int(other.rows[0]))} (split {other.table.split}); "
                    f"keep each {group_by} in one CSV"
                )
            found[key] = Video(key, str(table.patients[rows[0]]), table, rows)
    return [found[key] for key in sorted(found, key=natural_key)]


def shared_patients(tables: Sequence[FrameTable]) -> dict[str, list[str]]:
    """Patients that occur in more than one table: {patient: splits}. Scores on such splits are too good."""
    splits: dict[tuple[object, ...], tuple[str, list[str]]] = {}
    for table in tables:
        for patient in dict.fromkeys(table.patients.tolist()):
            splits.setdefault(natural_key(patient), (patient, []))[1].append(table.split)
    return {patient: names for patient, names in splits.values() if len(names) > 1}
