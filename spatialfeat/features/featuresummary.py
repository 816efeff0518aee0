"""What a feature file, or a folder of them, holds in a few numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.data.frames import UNLABELLED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.featurefile import FeatureFile
from spatialfeat.features.featureschema import Recipe


@dataclass(frozen=True, kw_only=True)
class VideoSummary:
    """One video in a few numbers.

    frame_step: the usual difference of consecutive frame numbers within a segment: the most common one, the smallest
        of several, 1 where there is none.
    num_gaps: how often consecutive frame numbers within a segment differ by more than that.
    duration_s: from the first to the last frame of each segment, gaps included, by fps.
    frames_per_phase: (C,) int64. num_unlabelled: frames with label -100.
    """

    path: Path
    video_id: str
    patient_id: str
    split: str
    recipe: Recipe
    num_frames: int
    num_segments: int
    frame_step: int
    num_gaps: int
    duration_s: float
    frames_per_phase: NDArray[np.int64]
    num_unlabelled: int
    size_bytes: int

    @property
    def phases(self) -> list[int]:
        """The phases that occur, in order."""
        return [int(phase) for phase in np.flatnonzero(self.frames_per_phase)]


@dataclass(frozen=True, kw_only=True)
class FolderSummary:
    """The videos of a folder in numeric order, and one sentence per problem: unreadable, foreign or mixed files.

    flagged: the files among `videos` that have a problem, i.e. should not be used together with the others.
    notes: what may be on purpose: patients in several splits, unfinished files.
    """

    path: Path
    videos: list[VideoSummary]
    problems: list[str]
    flagged: set[Path]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """A dataset of a feature file; `axes` names its dimensions, e.g. "channel,time"."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: str


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """One feature file: its video, its datasets, and every root attribute as a Python value."""

    video: VideoSummary
    datasets: list[DatasetSummary]
    attributes: dict[str, Any]


def summarize_video(file: FeatureFile) -> VideoSummary:
    """Summarize one video from its labels and frame numbers.

    Raises:
        SpatialfeatError: the file cannot be read, or holds a label outside its phases.
    """
    labels, segments, frames = file.labels, file.segments, file.frames
    foreign = labels[(labels != UNLABELLED) & ((labels < 0) | (labels >= file.num_phases))]
    if len(foreign):
        raise SpatialfeatError(
            f"{file.path}: label {foreign[0]} is outside 0..{file.num_phases - 1}; extract the video again"
        )
    step, num_gaps = count_gaps(segments, frames)
    return VideoSummary(
        path=file.path,
        video_id=file.video_id,
        patient_id=file.patient_id,
        split=file.split,
        recipe=file.recipe,
        num_frames=len(file),
        num_segments=len(np.unique(segments)),
        frame_step=step,
        num_gaps=num_gaps,
        duration_s=_duration_frames(segments, frames, step) / file.fps,
        frames_per_phase=np.bincount(labels[labels != UNLABELLED], minlength=file.num_phases).astype(np.int64),
        num_unlabelled=int((labels == UNLABELLED).sum()),
        size_bytes=file.path.stat().st_size,
    )


def count_gaps(segments: NDArray[np.int64], frames: NDArray[np.int64]) -> tuple[int, int]:
    """(usual step, number of gaps) of the frame numbers (T,) of a video; see `VideoSummary`."""
    steps = np.diff(frames)[np.diff(segments) == 0]
    if len(steps) == 0:
        return 1, 0
    counts = Counter(steps.tolist())
    usual = min(counts, key=lambda step: (-counts[step], step))
    return usual, int((steps > usual).sum())


def _duration_frames(segments: NDArray[np.int64], frames: NDArray[np.int64], step: int) -> int:
    # The last frame of a segment stands for as much time as any other.
    return sum(int(np.ptp(frames[segments == segment])) + step for segment in np.unique(segments))
