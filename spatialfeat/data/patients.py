"""Whose frames a data set holds: ids as they are read, what to ask about that, and patients in several splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spatialfeat.console import count_text
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.ids import AUTO
from spatialfeat.names import same_name_key

MANY_VIDEOS = 10
"""A patient of so many videos is asked about: perhaps it is a word that all ids begin with."""

SINGLE_FRAMES = 3
"""So many videos of one frame, if they are most of all, are asked about, too."""

logger = logging.getLogger(__name__)


def ids_as_read(tables: Sequence[FrameTable]) -> list[str]:
    """`video_01_000031: patient video_01, frame 31` for an id of the first video, the middle one and the last."""
    firsts = [(table, int(row)) for table in tables for row in np.unique(table.videos, return_index=True)[1]]
    chosen = sorted({0, (len(firsts) - 1) // 2, len(firsts) - 1}) if firsts else []
    return [_as_read(*firsts[index]) for index in chosen]


def _as_read(table: FrameTable, row: int) -> str:
    video, patient, segment = str(table.videos[row]), str(table.patients[row]), int(table.segments[row])
    parts = [f"patient {patient}"]
    if segment:
        parts.append(f"segment {segment}")
    if video != patient and not (segment and video.startswith(patient)):
        parts.append(f"video {video}")
    return f"{table.ids[row]}: {', '.join(parts)}, frame {table.frame_numbers[row]}"


@dataclass(frozen=True)
class IdQuestion:
    """What looks as if ids were read otherwise than they were meant. code: as `check` calls it.

    patients: those that it is about.
    """

    code: str
    message: str
    remedy: str
    places: list[str]
    patients: frozenset[str] = frozenset()


def id_questions(tables: Sequence[FrameTable]) -> list[IdQuestion]:
    """Many videos of one patient, and videos of one frame each: normal in some data sets, a misreading in others.

    Nothing is asked of patients whom a column names, nor of what the user has said how to read.
    """
    guessed = [table for table in tables if table.id_rule.form == AUTO]
    remedy = "see how the ids are read; --id-form, --id-pattern, or a column patient in the CSV say otherwise"
    questions = []
    videos_of: dict[str, set[str]] = {}
    splits_of: dict[str, list[str]] = {}
    for table in guessed:
        if not table.patients_given:
            for video, row in zip(*np.unique(table.videos, return_index=True), strict=True):
                videos_of.setdefault(str(table.patients[row]), set()).add(str(video))
                splits_of.setdefault(str(table.patients[row]), []).append(table.split)
    many = sorted(
        (p for p, videos in videos_of.items() if len(videos) >= MANY_VIDEOS), key=lambda p: -len(videos_of[p])
    )
    if many:
        places = []
        for patient in many:
            splits = list(dict.fromkeys(splits_of[patient]))
            leak = (
                f", in {' and '.join(splits)}, so that scores would be too good if it is one" if len(splits) > 1 else ""
            )
            places.append(f"patient {patient} has {len(videos_of[patient])} videos{leak}")
        message = f"{places[0]}: is it one patient, and the number before the frame a segment of an operation?"
        questions.append(IdQuestion("many-videos", message, remedy, places, frozenset(many)))
    sizes = Counter(video for table in guessed for video in table.videos.tolist())
    single = [f"video {video}" for video, count in sizes.items() if count == 1]
    if len(single) >= SINGLE_FRAMES and 2 * len(single) > len(sizes):
        message = (
            f"{len(single)} of {count_text(len(sizes), 'video')} have one frame each, such as {single[0]}: is the last "
            "number of these ids the frame?"
        )
        questions.append(IdQuestion("one-frame-videos", message, remedy, single))
    return questions


def show_reading(tables: Sequence[FrameTable]) -> None:
    """Show how ids are read, and ask where that looks wrong."""
    for line in ids_as_read(tables):
        logger.info("id %s", line)
    for question in id_questions(tables):
        logger.warning("%s; %s", question.message, question.remedy)


def shared_patients(tables: Sequence[FrameTable]) -> dict[str, dict[str, int]]:
    """The patients that are in more than one split: see `patients_in_several_splits`.

    Those that `id_questions` asks about are left out: a word that all ids begin with is no patient.
    """
    asked = {patient for question in id_questions(tables) for patient in question.patients}
    return patients_in_several_splits(
        (str(patient), table.split, int(count))
        for table in tables
        for patient, count in zip(*np.unique(table.patients, return_counts=True), strict=True)
        if patient not in asked
    )


def patients_in_several_splits(frames: Iterable[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    """How many frames in which split: {patient: {split: frames}} of the patients that are in more than one.

    Scores on such splits are too good. A patient that is written in several ways is shown so: `P1 (also p1)`.

    Args:
        frames: (patient, split, number of frames), any number of them for a patient.
    """
    found: dict[tuple[object, ...], tuple[list[str], Counter[str]]] = {}
    for patient, split, count in frames:
        spellings, splits = found.setdefault(same_name_key(patient), ([], Counter()))
        spellings += [patient] if patient not in spellings else []
        splits[split] += count
    shared = [(spellings, dict(splits)) for spellings, splits in found.values() if len(splits) > 1]
    return {f"{first} (also {', '.join(others)})" if others else first: splits for (first, *others), splits in shared}
