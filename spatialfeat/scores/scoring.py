"""Videos with labels and predictions: check them, count what each contributes, score each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.bootstrap import VideoTallies
from spatialfeat.scores.metrics import (
    SCORE_NAMES,
    STRATEGIES,
    FloatArray,
    accuracies,
    confusion_counts,
    missing_phases,
    nan_mean,
    phase_scores,
    scored_frames,
)
from spatialfeat.scores.segments import IOU_PERCENTS, edit_score, segment_f1, segment_matches


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredVideo:
    """One video to score: labels and predictions (T,), in time order, as for `metrics.scored_frames`."""

    video_id: str
    patient_id: str
    labels: npt.NDArray[np.integer[Any]]
    predictions: npt.NDArray[np.integer[Any]]


def labelled_videos(videos: Sequence[ScoredVideo], num_phases: int) -> list[ScoredVideo]:
    """Check every video and keep those with a labelled frame, reduced to their labelled frames.

    Raises SpatialfeatError for a repeated video id, as `metrics.scored_frames`, and if nothing is labelled.
    """
    seen: set[str] = set()
    kept = []
    for video in videos:
        if video.video_id in seen:
            raise SpatialfeatError(f"video {video.video_id}: occurs twice; give each video once")
        seen.add(video.video_id)
        labels, predictions = scored_frames(
            video.labels, video.predictions, num_phases, place=f"video {video.video_id}"
        )
        if len(labels):
            kept.append(
                ScoredVideo(
                    video_id=video.video_id,
                    patient_id=video.patient_id,
                    labels=labels,
                    predictions=predictions,
                )
            )
    if not kept:
        raise SpatialfeatError(f"none of {len(videos)} videos has a labelled frame; metrics need labels")
    return kept


def tally(videos: Sequence[ScoredVideo], num_phases: int) -> VideoTallies:
    """Count what each video contributes; every video needs a labelled frame (`labelled_videos`)."""
    sequences = [(video.labels, video.predictions, num_phases) for video in videos]
    return VideoTallies(
        patient_ids=tuple(video.patient_id for video in videos),
        counts=np.stack([confusion_counts(*sequence) for sequence in sequences]),
        edit=np.array([edit_score(*sequence) for sequence in sequences]),
        matches=np.stack([segment_matches(*sequence) for sequence in sequences]),
    )


def per_video_rows(videos: Sequence[ScoredVideo], num_phases: int) -> list[dict[str, Any]]:
    """One row per scored video, for a table.

    {"video_id", "patient_id", "num_frames", "accuracy", "edit", "f1_10", "f1_25", "f1_50"} and, for
    precision, recall, jaccard and f1, "macro_<score>_A" and "macro_<score>_B": mean over the phases where
    defined, None where none is. Raises SpatialfeatError as `labelled_videos`.
    """
    scored = labelled_videos(videos, num_phases)
    tallies = tally(scored, num_phases)
    scores = phase_scores(tallies.counts)
    columns: dict[str, FloatArray] = {"accuracy": accuracies(tallies.counts)}
    for strategy in STRATEGIES:
        for name in SCORE_NAMES:
            table = missing_phases(getattr(scores, name), scores.support, strategy)
            columns[f"macro_{name}_{strategy}"] = nan_mean(table, axis=1)
    columns["edit"] = tallies.edit
    matched = segment_f1(tallies.matches)
    columns |= {f"f1_{percent}": matched[:, index] for index, percent in enumerate(IOU_PERCENTS)}
    num_frames = tallies.counts.sum(axis=(1, 2))
    return [
        {"video_id": video.video_id, "patient_id": video.patient_id, "num_frames": int(num_frames[row])}
        | {name: None if np.isnan(values[row]) else float(values[row]) for name, values in columns.items()}
        for row, video in enumerate(scored)
    ]
