"""Compare two predictions of the same frames, for `metrics.json` and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.bootstrap import NUM_SAMPLES, bootstrap_differences, resampling_facts
from spatialfeat.scores.scoring import ScoredVideo, labelled_videos, tally


def compare(
    first: Sequence[ScoredVideo],
    second: Sequence[ScoredVideo],
    num_phases: int,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two predictions of the same frames by paired bootstrap over patients.

    Returns {"level", "unit", "num_patients", "samples", "seed", "differences": {score: {"difference": second
    - first, "interval": [low, high] or None}}}, scores as `bootstrap.resampled_scores` names them.
    Raises SpatialfeatError if videos, patients or labels disagree, and as `scoring.labelled_videos`.
    """
    scored, other_scored = labelled_videos(first, num_phases), labelled_videos(second, num_phases)
    _require_same_frames(first, second)
    others = {video.video_id: video for video in other_scored}
    tallies = tally(scored, num_phases)
    other_tallies = tally([others[video.video_id] for video in scored], num_phases)
    found = bootstrap_differences(tallies, other_tallies, num_samples=num_samples, seed=seed)
    return resampling_facts(tallies, num_samples=num_samples, seed=seed) | {
        "differences": {
            name: {
                "difference": item.estimate,
                "interval": None if item.interval is None else list(item.interval),
            }
            for name, item in found.items()
        },
    }


def _require_same_frames(first: Sequence[ScoredVideo], second: Sequence[ScoredVideo]) -> None:
    others = {video.video_id: video for video in second}
    lone = sorted({video.video_id for video in first} ^ set(others))
    if lone:
        raise SpatialfeatError(
            f"{len(lone)} videos are in one prediction only ({', '.join(lone[:5])}); predict the same videos"
        )
    for video in first:
        other = others[video.video_id]
        if video.patient_id != other.patient_id or not np.array_equal(video.labels, other.labels):
            raise SpatialfeatError(
                f"video {video.video_id}: patient or labels differ between predictions; use the same frames"
            )
