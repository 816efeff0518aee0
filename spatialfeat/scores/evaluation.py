"""What one evaluation knows: the data that tables, pictures and the report are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.scores.metrics import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedVideo:
    """One video's T frames, in time order: by segment, then by frame number.

    frame_ids: (T,) texts. segments, frames: (T,) int64, parsed from the ids; frame number / fps = seconds
    within a segment. labels: (T,) int64, -100 where unlabelled. predictions: (T,) int64, 0..C-1.
    probabilities: (T, C) float32, rows that sum to 1, or None if the predictions came without.
    """

    video_id: str
    patient_id: str
    frame_ids: npt.NDArray[np.str_]
    segments: IntArray
    frames: IntArray
    labels: IntArray
    predictions: IntArray
    probabilities: npt.NDArray[np.float32] | None

    def __post_init__(self) -> None:
        num_frames = len(self.frame_ids)
        for name in ("segments", "frames", "labels", "predictions"):
            assert getattr(self, name).shape == (num_frames,), (name, getattr(self, name).shape, num_frames)
        assert self.probabilities is None or len(self.probabilities) == num_frames, self.video_id


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One set of predictions, scored.

    name: what tells it from others, for example the stem of the predictions file. metrics: the content of
    metrics.json (`summary.summarize`), calibration included when there are probabilities. per_video: rows of
    `scoring.per_video_rows`. Several evaluations of one run hold the same videos with the same labels.
    """

    name: str
    videos: tuple[EvaluatedVideo, ...]
    metrics: dict[str, Any]
    per_video: list[dict[str, Any]]
