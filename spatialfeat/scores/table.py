"""The table of overall scores, SCORES: each with its titles, how it is averaged, and how it is computed.

Every overall score is a function of sums over videos (confusion counts, matched runs, values of each video). So a
resample of patients is a row of weights, and one call gives the score itself and all its bootstrap resamples.

Intervals are 95 % percentiles (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Frames of one patient
are not independent, so whole patients are resampled: each resample draws as many patients as there are, with
replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.scores.metrics import (
    FloatArray,
    IntArray,
    PhaseScores,
    confusion_counts,
    labelled_frames,
    phase_scores,
    ratio,
)
from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.segmental import IOU_PERCENTS, edit_score, f1_of_matches, match_runs

LEVEL = 0.95
NUM_SAMPLES = 2000

FEWEST_FOR_A_CLAIM = 5
"""With fewer patients nobody says that an interval excludes 0. Where all n differ in one direction, it always does,
and that happens by chance in 2 of 2^n cases: with 4 patients in one case of eight."""

MEASURE_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "jaccard": "Jaccard"}
"""Titles of `metrics.MEASURES`, in the order of tables of averages."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tallies:
    """What each of V videos with a labelled frame contributes to the scores of one set of predictions.

    video_ids, patient_ids: V texts. counts: (V, C, C) int64, row = true phase. edit: (V,) float64 edit scores.
    matches: (V, K, 3) int64 from `segmental.match_runs`.
    """

    video_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    counts: IntArray
    edit: FloatArray
    matches: IntArray

    @property
    def hits(self) -> IntArray:
        """(V, C): frames of each phase that are right."""
        return np.diagonal(self.counts, axis1=1, axis2=2)

    @property
    def support(self) -> IntArray:
        """(V, C): frames of each phase."""
        return np.asarray(self.counts.sum(axis=2))

    @property
    def predicted(self) -> IntArray:
        """(V, C): frames predicted as each phase."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def num_frames(self) -> IntArray:
        """(V,): labelled frames."""
        return np.asarray(self.counts.sum(axis=(1, 2)))

    @property
    def accuracy(self) -> FloatArray:
        """(V,): share of each video's frames that are right."""
        return ratio(self.hits.sum(axis=1), self.num_frames)


def tally(videos: Sequence[EvaluatedVideo], num_phases: int) -> Tallies:
    """Count what each video contributes. Videos without a labelled frame are left out."""
    scored = [video for video in videos if video.num_labelled]
    frames = [labelled_frames(video.labels, video.predictions, num_phases) for video in scored]
    return Tallies(
        video_ids=tuple(video.video_id for video in scored),
        patient_ids=tuple(video.patient_id for video in scored),
        # The shapes hold without a video, too.
        counts=np.array([confusion_counts(*pair, num_phases) for pair in frames], np.int64).reshape(
            -1, num_phases, num_phases
        ),
        edit=np.array([edit_score(*pair) for pair in frames], np.float64),
        matches=np.array([match_runs(*pair) for pair in frames], np.int64).reshape(-1, len(IOU_PERCENTS), 3),
    )


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each of V videos counts in each of S resamples. weights: (S, V) float64."""

    weights: FloatArray

    @classmethod
    def draw(cls, patient_ids: Sequence[str], num_samples: int, seed: int) -> Resamples:
        """Draw patients with replacement; a video counts as often as its patient was drawn.

        Drawing goes by the sorted patient ids, so the order of videos does not matter. With fewer than two patients
        nothing can vary: S is 0.
        """
        patients, patient_of_video = np.unique(np.asarray(patient_ids, dtype=np.str_), return_inverse=True)
        count = len(patients)
        if count < 2:
            return cls(np.zeros((0, len(patient_ids))))
        draws = np.random.default_rng(seed).integers(count, size=(num_samples, count))
        cells = np.arange(num_samples)[:, None] * count + draws
        drawn = np.bincount(cells.ravel(), minlength=num_samples * count).reshape(num_samples, count)
        return cls(drawn[:, patient_of_video.reshape(-1)].astype(np.float64))

    def total(self, values: npt.NDArray[Any]) -> FloatArray:
        """Sum (V, ...) over videos: (1 + S, ...), first with every video once, then of each resample."""
        resampled = (self.weights @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        return np.concatenate([values.sum(axis=0, dtype=np.float64)[None], resampled])

    def mean(self, values: FloatArray) -> FloatArray:
        """(1 + S,): mean of (V,) over videos."""
        return ratio(self.total(values), self.total(np.ones(len(values))))


def pooled_phase_scores(tallies: Tallies, resamples: Resamples) -> PhaseScores:
    """Scores of each phase with all frames counted together, (1 + S, C) each."""
    return phase_scores(*map(resamples.total, (tallies.hits, tallies.support, tallies.predicted)))


def interval(samples: FloatArray) -> list[float] | None:
    """[low, high]: cut (1 - LEVEL) / 2 off each end of (S,) samples, interpolating linearly.

    Resamples in which the score is undefined (NaN) are left out; None where none remains.
    """
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


@dataclass(frozen=True)
class Averaging:
    """How a score is averaged. short: for a terminal, where {unit} is "video" or "patient". long: for the report."""

    short: str
    long: str


POOLED = Averaging("all frames together", "all frames of all videos counted together")
MACRO = Averaging("pooled, mean over phases", f"{POOLED.long}, then the mean over all phases (undefined counts as 0)")
VIDEO_MEAN = Averaging("mean over {unit}s", "per video, then the mean over videos")
ALL_RUNS = Averaging("segments of all {unit}s", "segments of all videos counted together")


@dataclass(frozen=True)
class Score:
    """One number about a set of predictions.

    key: its name in `intervals` and comparison.json. place: where it is in metrics.json, as "pooled.accuracy".
    title: for a terminal, beside how it is averaged. heading: for the report. compute: gives (1 + S,) float64, the
    score and its resamples. bootstrapped: whether it has an interval.
    """

    key: str
    place: str
    title: str
    heading: str
    averaging: Averaging
    compute: Callable[[Tallies, Resamples], FloatArray]
    bootstrapped: bool = True

    def value_in(self, metrics: Mapping[str, Any]) -> float | None:
        """The score in the content of metrics.json."""
        found: Any = metrics
        for key in self.place.split("."):
            found = found[key]
        return None if found is None else float(found)


def accuracy(tallies: Tallies, resamples: Resamples) -> FloatArray:
    """Share of all frames that are right."""
    return ratio(resamples.total(tallies.hits.sum(axis=1)), resamples.total(tallies.num_frames))


def macro(measure: str, tallies: Tallies, resamples: Resamples) -> FloatArray:
    """Mean over all phases, undefined as 0: scikit-learn's with labels=range(C), average="macro", zero_division=0."""
    scores = pooled_phase_scores(tallies, resamples)[measure]
    return np.asarray(np.nan_to_num(scores, nan=0.0).mean(axis=-1))


def run_f1(percent: int, tallies: Tallies, resamples: Resamples) -> FloatArray:
    """F1 of the runs of all videos, at an overlap of so many percent."""
    return f1_of_matches(resamples.total(tallies.matches[:, IOU_PERCENTS.index(percent)]))


SCORES = {
    score.key: score
    for score in (
        Score("accuracy", "pooled.accuracy", "accuracy", "Accuracy, pooled", POOLED, accuracy),
        *(
            Score(
                f"macro_{m}", f"pooled.macro_{m}", f"macro {title}", f"Macro {title}, pooled", MACRO, partial(macro, m)
            )
            for m, title in MEASURE_TITLES.items()
        ),
        Score(
            "video_wise_accuracy",
            "video_wise.accuracy.mean",
            "accuracy",
            "Accuracy, video-wise",
            VIDEO_MEAN,
            lambda tallies, resamples: resamples.mean(tallies.accuracy),
        ),
        Score(
            "edit",
            "segmental.edit",
            "edit score",
            "Edit score",
            VIDEO_MEAN,
            lambda tallies, resamples: resamples.mean(tallies.edit),
        ),
        *(
            Score(f"f1_{p}", f"segmental.f1_{p}", f"F1@{p}", f"Segmental F1@{p}", ALL_RUNS, partial(run_f1, p))
            for p in IOU_PERCENTS
        ),
    )
}
"""{key: score}, in the order of the tables. One more line makes a new score appear wherever the others do."""
