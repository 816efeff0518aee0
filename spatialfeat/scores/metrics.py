"""Frame-wise metrics: confusion counts, pooled scores, video-wise scores and their averages.

Everything is a pure function on arrays. Scores are fractions, 0..1; NaN where a quantity is undefined.

Two rules hold in every metric of this package and are stated only here:

* The phases are always `range(num_phases)`, never the set that happens to occur.
* Frames labelled `IGNORED_LABEL` (-100, unlabelled) are removed first, together with their predictions.
  What remains is one gapless sequence: segments and windows are counted in labelled frames.

Where a phase is missing from a video, the scores follow strategy A or B of Funke et al., "Metrics Matter in
Surgical Phase Recognition", 2023, arXiv 2305.13961 (see `missing_phases`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from spatialfeat.errors import SpatialfeatError

IGNORED_LABEL = -100

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Strategy: TypeAlias = Literal["A", "B"]

STRATEGIES: tuple[Strategy, ...] = ("A", "B")
SCORE_NAMES = ("precision", "recall", "jaccard", "f1")


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseScores:
    """Scores per phase, each (..., C) float64, NaN where the formula divides by zero.

    precision = TP/(TP+FP), recall = TP/(TP+FN), jaccard = TP/(TP+FP+FN), f1 = 2TP/(2TP+FP+FN).
    support (..., C) int64: ground-truth frames, TP+FN.
    """

    precision: FloatArray
    recall: FloatArray
    jaccard: FloatArray
    f1: FloatArray
    support: IntArray


@dataclass(frozen=True, kw_only=True)
class PooledScores:
    """Scores of all frames counted together; macro = unweighted mean over all C phases, undefined as 0."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_jaccard: float
    macro_f1: float


@dataclass(frozen=True, kw_only=True)
class ScoreAverages:
    """Three averages of a (V, C) table of scores in which NaN is left out; standard deviations use ddof=1.

    video_macro: mean over videos of each video's mean over phases.
    cell_mean: mean over all defined cells.
    phase_macro: mean over phases of each phase's mean over videos.
    """

    video_macro: float
    std_over_videos: float
    cell_mean: float
    phase_macro: float
    std_over_phases: float


def scored_frames(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, num_phases: int, place: str = "labels and predictions"
) -> tuple[IntArray, IntArray]:
    """Return the labelled frames of one sequence.

    labels: (T,) integers in 0..num_phases-1 or `IGNORED_LABEL`. predictions: (T,) integers in
    0..num_phases-1 wherever the frame is labelled. place: opens an error message ("video 1050_1").
    Returns labels and predictions, each (N,) int64 with N <= T, every value in 0..num_phases-1.
    Raises SpatialfeatError where shapes, types or values are different from that.
    """
    assert num_phases >= 1, num_phases
    truth = _sequence(labels, f"{place}: labels")
    predicted = _sequence(predictions, f"{place}: predictions")
    if len(truth) != len(predicted):
        raise SpatialfeatError(
            f"{place}: {len(truth)} labels but {len(predicted)} predictions; give one prediction per frame"
        )
    labelled = truth != IGNORED_LABEL
    remedy = f"is outside 0..{num_phases - 1}; correct it or the number of phases"
    for name, values in (("label", truth), ("prediction", predicted)):
        wrong = np.flatnonzero(labelled & ((values < 0) | (values >= num_phases)))
        if len(wrong):
            raise SpatialfeatError(f"{place}, frame at index {wrong[0]}: {name} {values[wrong[0]]} {remedy}")
    return truth[labelled], predicted[labelled]


def _sequence(values: npt.ArrayLike, place: str) -> IntArray:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.ndim != 1:
        raise SpatialfeatError(f"{place} have shape {array.shape}; expected one dimension, one value per frame")
    if len(array) and not np.issubdtype(array.dtype, np.integer):
        raise SpatialfeatError(f"{place} have type {array.dtype}; expected integers, 0 for the first phase")
    return array.astype(np.int64)


def confusion_counts(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_phases: int) -> IntArray:
    """Count frames by (ground truth, prediction).

    labels, predictions: (T,) integers, as `scored_frames` takes them.
    Returns (C, C) int64; row = ground truth, column = prediction. Raises SpatialfeatError as `scored_frames`.
    """
    truth, predicted = scored_frames(labels, predictions, num_phases)
    cells = np.bincount(truth * num_phases + predicted, minlength=num_phases**2)
    return cells.reshape(num_phases, num_phases).astype(np.int64)


def phase_scores(counts: IntArray) -> PhaseScores:
    """Score each phase. counts: (..., C, C) int64 from `confusion_counts`, leading axes kept."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return scores_from_totals(hits, counts.sum(axis=-1), counts.sum(axis=-2))


def scores_from_totals(hits: npt.NDArray[Any], support: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> PhaseScores:
    """Score from frame totals, each (..., C): hits = TP, support = TP+FN, predicted = TP+FP."""
    return PhaseScores(
        precision=ratio(hits, predicted),
        recall=ratio(hits, support),
        jaccard=ratio(hits, support + predicted - hits),
        f1=ratio(2 * hits, support + predicted),
        support=np.asarray(support, dtype=np.int64),
    )


def pooled_scores(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_phases: int) -> PooledScores:
    """Score all frames counted together, as scikit-learn does with labels=range(C) and zero_division=0.

    labels, predictions: (T,) integers of all videos, concatenated. Every score is NaN without a labelled
    frame.
    Raises SpatialfeatError as `scored_frames`.
    """
    return pooled_scores_of_counts(confusion_counts(labels, predictions, num_phases))


def pooled_scores_of_counts(counts: IntArray) -> PooledScores:
    """As `pooled_scores`, from (C, C) counts."""
    scores = phase_scores(counts)
    return PooledScores(
        accuracy=float(accuracies(counts)),
        macro_precision=float(macro(scores.precision, scores.support)),
        macro_recall=float(macro(scores.recall, scores.support)),
        macro_jaccard=float(macro(scores.jaccard, scores.support)),
        macro_f1=float(macro(scores.f1, scores.support)),
    )


def macro(scores: FloatArray, support: npt.NDArray[Any]) -> FloatArray:
    """Average (..., C) scores over all phases with undefined ones as 0; NaN without any frame."""
    has_frames = support.sum(axis=-1) > 0
    return np.where(has_frames, np.nan_to_num(scores, nan=0.0).mean(axis=-1), np.nan)


def accuracies(counts: IntArray) -> FloatArray:
    """Share of frames predicted right. counts: (..., C, C). Returns (...) float64, NaN without frames."""
    return ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum(axis=(-2, -1)))


def missing_phases(scores: FloatArray, support: IntArray, strategy: Strategy) -> FloatArray:
    """Apply a strategy for phases missing from a video (Funke et al. 2023).

    | in labels | predicted | A                                        | B          |
    |-----------|-----------|------------------------------------------|------------|
    | no        | no        | all NaN                                  | all NaN    |
    | no        | yes       | precision, f1, jaccard are 0; recall NaN | all NaN    |
    | yes       | no        | precision NaN; recall, f1, jaccard are 0 | the same   |

    A punishes hallucinated phases, B forgives them. A is what the formulas give, so it changes nothing.
    scores: (V, C) float64, one field of `PhaseScores`. support: (V, C) int64. Returns (V, C) float64.
    """
    assert strategy in STRATEGIES, strategy
    return scores if strategy == "A" else np.where(support > 0, scores, np.nan)


def average_scores(scores: FloatArray) -> ScoreAverages:
    """Average a (V, C) table three ways. A video or phase without a defined cell is left out as well."""
    per_video = nan_mean(scores, axis=1)
    per_phase = nan_mean(scores, axis=0)
    return ScoreAverages(
        video_macro=float(nan_mean(per_video)),
        std_over_videos=nan_std(per_video),
        cell_mean=float(nan_mean(scores)),
        phase_macro=float(nan_mean(per_phase)),
        std_over_phases=nan_std(per_phase),
    )


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Divide element by element; NaN, without a warning, where the denominator is 0."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient


def nan_mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Mean of what is not NaN; NaN, without a warning, where nothing is left. axis None: over everything."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=axis), defined.sum(axis=axis))


def nan_std(values: FloatArray) -> float:
    """Sample standard deviation (ddof=1) of what is not NaN in (N,); NaN for fewer than two values."""
    defined = values[~np.isnan(values)]
    return float(np.std(defined, ddof=1)) if len(defined) >= 2 else float("nan")
