"""95 % bootstrap intervals over patients, by percentiles (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993).

Frames of one patient are not independent, so whole patients are resampled: each of S resamples draws as many
patients as there are, with replacement, and every score is computed anew. Every score here is a function of
sums over videos (confusion counts, segment matches, per-video values), so a resample is a row of patient
weights and all resamples are one matrix product. Two predictions of the same frames are compared with the
same resamples.

Compare two predictions of the same frames, for `metrics.json` and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import (
    SCORE_NAMES,
    FloatArray,
    IntArray,
    PhaseScores,
    accuracies,
    macro,
    ratio,
    scores_from_totals,
)
from spatialfeat.scores.segments import IOU_PERCENTS, segment_f1

LEVEL = 0.95
NUM_SAMPLES = 2000

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoTallies:
    """What each of V videos contributes to the scores.

    patient_ids: V texts. counts: (V, C, C) int64 confusion counts, each video with at least one frame.
    edit: (V,) float64 edit scores. matches: (V, K, 3) int64 from `segments.segment_matches`.
    """

    patient_ids: tuple[str, ...]
    counts: IntArray
    edit: FloatArray
    matches: IntArray

    def __post_init__(self) -> None:
        num_videos, num_phases = self.counts.shape[:2]
        assert self.counts.shape == (num_videos, num_phases, num_phases), self.counts.shape
        assert self.edit.shape == (num_videos,), self.edit.shape
        assert self.matches.shape == (num_videos, len(IOU_PERCENTS), 3), self.matches.shape
        assert len(self.patient_ids) == num_videos, (len(self.patient_ids), num_videos)
        assert (self.counts.sum(axis=(1, 2)) > 0).all(), "a video without a labelled frame"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first score, and the interval of that difference (None for fewer than two patients)."""

    estimate: float
    interval: Interval | None


def resampling_weights(patient_ids: Sequence[str], num_samples: int, seed: int) -> FloatArray:
    """Draw patients with replacement.

    Returns (num_samples, V) float64: how often each video's patient was drawn. Drawing goes by the sorted
    patient ids, so the order of videos does not matter. With fewer than two patients nothing can vary: shape
    (0, V).
    Raises SpatialfeatError for a negative number of samples or seed.
    """
    for name, value in (("number of bootstrap samples", num_samples), ("bootstrap seed", seed)):
        if value < 0:
            raise SpatialfeatError(f"{name} is {value}; give 0 or more")
    patients, patient_of_video = np.unique(np.asarray(patient_ids, dtype=np.str_), return_inverse=True)
    count = len(patients)
    if count < 2:
        return np.zeros((0, len(patient_ids)))
    draws = np.random.default_rng(seed).integers(count, size=(num_samples, count))
    cells = np.arange(num_samples)[:, None] * count + draws
    drawn = np.bincount(cells.ravel(), minlength=num_samples * count).reshape(num_samples, count)
    return drawn[:, patient_of_video.reshape(-1)].astype(np.float64)


def resampled_phase_scores(tallies: VideoTallies, weights: FloatArray) -> PhaseScores:
    """Score each phase, all frames of a resample pooled. weights: (S, V). Every field is (S, C)."""
    hits = np.diagonal(tallies.counts, axis1=1, axis2=2)
    return scores_from_totals(
        weights @ hits, weights @ tallies.counts.sum(axis=2), weights @ tallies.counts.sum(axis=1)
    )


def resampled_scores(tallies: VideoTallies, weights: FloatArray) -> dict[str, FloatArray]:
    """Compute every overall score for each row of weights (S, V); a row of ones gives the scores themselves.

    Returns (S,) float64 per name: accuracy and macro_* are pooled over frames, video_wise_accuracy and edit
    are means over videos, f1_10, f1_25 and f1_50 pool segments over videos.
    """
    phases = resampled_phase_scores(tallies, weights)
    hits = np.trace(tallies.counts, axis1=1, axis2=2)
    num_videos = weights.sum(axis=1)
    matches = np.einsum("sv,vki->ski", weights, tallies.matches.astype(np.float64))
    scores = {
        "accuracy": ratio(weights @ hits, weights @ tallies.counts.sum(axis=(1, 2))),
        "macro_f1": macro(phases.f1, phases.support),
        "macro_precision": macro(phases.precision, phases.support),
        "macro_recall": macro(phases.recall, phases.support),
        "macro_jaccard": macro(phases.jaccard, phases.support),
        "video_wise_accuracy": ratio(weights @ accuracies(tallies.counts), num_videos),
        "edit": ratio(weights @ tallies.edit, num_videos),
    }
    f1 = segment_f1(matches)
    return scores | {f"f1_{percent}": f1[:, index] for index, percent in enumerate(IOU_PERCENTS)}


def percentile_interval(samples: FloatArray, level: float = LEVEL) -> Interval | None:
    """Cut (1 - level) / 2 off each end of (S,) samples, interpolating linearly.

    Resamples in which the score is undefined (NaN) are left out; None where none remains.
    """
    assert 0 < level < 1, level
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampling_facts(tallies: VideoTallies, *, num_samples: int, seed: int) -> dict[str, Any]:
    """What intervals rest on, as metrics.json and comparison.json say it; 0 samples with fewer than two patients."""
    num_patients = len(set(tallies.patient_ids))
    return {
        "level": LEVEL,
        "unit": "patient",
        "num_patients": num_patients,
        "samples": num_samples if num_patients >= 2 else 0,
        "seed": seed,
    }


def bootstrap_intervals(tallies: VideoTallies, *, num_samples: int, seed: int) -> dict[str, Interval | None]:
    """Interval per score of `resampled_scores`; None for fewer than two patients or no samples."""
    weights = resampling_weights(tallies.patient_ids, num_samples, seed)
    return {name: percentile_interval(column) for name, column in resampled_scores(tallies, weights).items()}


def bootstrap_phase_intervals(
    tallies: VideoTallies, *, num_samples: int, seed: int
) -> list[dict[str, Interval | None]]:
    """Intervals of each phase's pooled precision, recall, jaccard and f1: C dictionaries, in phase order."""
    weights = resampling_weights(tallies.patient_ids, num_samples, seed)
    scores = resampled_phase_scores(tallies, weights)
    return [
        {name: percentile_interval(getattr(scores, name)[:, phase]) for name in SCORE_NAMES}
        for phase in range(tallies.counts.shape[1])
    ]


def bootstrap_differences(
    first: VideoTallies, second: VideoTallies, *, num_samples: int, seed: int
) -> dict[str, Difference]:
    """Compare two predictions of the same frames: second minus first, per score of `resampled_scores`.

    Both must list the same videos in the same order. Each resample scores both on the same patients, so what
    the two find equally hard cancels out of the interval.
    """
    assert first.patient_ids == second.patient_ids, "different videos"
    assert (first.counts.sum(axis=2) == second.counts.sum(axis=2)).all(), "different labels"
    weights = resampling_weights(first.patient_ids, num_samples, seed)
    everything = np.ones((1, len(first.patient_ids)))
    first_samples, second_samples = resampled_scores(first, weights), resampled_scores(second, weights)
    first_scores, second_scores = resampled_scores(first, everything), resampled_scores(second, everything)
    return {
        name: Difference(
            estimate=float(second_scores[name][0] - first_scores[name][0]),
            interval=percentile_interval(second_samples[name] - first_samples[name]),
        )
        for name in first_scores
    }
