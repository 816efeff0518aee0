"""What an evaluation starts from, wherever the predictions come from: frames, predicted phases, names, rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.data.frames import FrameTable, group_videos
from spatialfeat.scores.evaluation import EvaluatedVideo
from spatialfeat.scores.metrics import IntArray
from spatialfeat.scores.timeline import usual_step

NETWORK_NAME = "ResNet-50"
"""What pictures and tables call the predictions that come from weights or feature files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FramePredictions:
    """Predicted phases of the N frames of a table, in its order.

    predicted: (N,) int64, 0..C-1. probabilities: (N, C) float32, or None if the predictions came without.
    """

    table: FrameTable
    predicted: IntArray
    probabilities: npt.NDArray[np.float32] | None = None

    @property
    def ids(self) -> npt.NDArray[Any]:
        return self.table.ids

    @property
    def labels(self) -> IntArray:
        return self.table.labels


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionSet:
    """One set of predictions under the name that tells it from others; the parts are of different videos."""

    name: str
    parts: tuple[FramePredictions, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationInput:
    """A source that has been opened and checked.

    tables: the frames that are scored; every set is of these. phase_names: C names. stored_fps: frames per second of
    the frame numbers, where the source knows it. data: files that `run.json` gets hashes of. facts: more for
    `run.json`. notices: what a reader of the scores should know. predict: gives the sets; long work, if there is any,
    happens there.
    """

    tables: tuple[FrameTable, ...]
    phase_names: tuple[str, ...]
    predict: Callable[[], tuple[PredictionSet, ...]]
    stored_fps: float | None = None
    data: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def evaluated_videos(predictions: PredictionSet, group_by: str) -> tuple[EvaluatedVideo, ...]:
    """The set's frames as videos (or whole patients), each in time order, in numeric order of their ids."""
    part_of = {id(part.table): part for part in predictions.parts}
    videos = []
    for video in group_videos([part.table for part in predictions.parts], group_by):
        table, rows, part = video.table, video.rows, part_of[id(video.table)]
        videos.append(
            EvaluatedVideo(
                video_id=video.video_id,
                patient_id=video.patient_id,
                frame_ids=table.ids[rows],
                segments=table.segments[rows],
                frames=table.frames[rows],
                labels=table.labels[rows],
                predictions=part.predicted[rows],
                probabilities=None if part.probabilities is None else part.probabilities[rows],
            )
        )
    return tuple(videos)


@dataclass(frozen=True)
class Rates:
    """sampling_fps: scored frames per second, None if nobody said. numbering_fps: frame number / it = seconds."""

    sampling_fps: float | None
    numbering_fps: float


def find_rates(videos: Sequence[EvaluatedVideo], *, given_fps: float | None, stored_fps: float | None) -> Rates:
    """Tell the rate of the frames from the rate of their numbers.

    Every 25th frame of a 25 fps video is one frame per second whose numbers run at 25 per second: the usual step
    between neighbouring numbers stands between the two.

    Args:
        given_fps: scored frames per second, as the user says.
        stored_fps: frame numbers per second, as feature files say; `given_fps` goes before it.
    """
    step = usual_step(videos)
    if given_fps is None and stored_fps is not None:
        return Rates(stored_fps / step, stored_fps)
    return Rates(given_fps, (1.0 if given_fps is None else given_fps) * step)
