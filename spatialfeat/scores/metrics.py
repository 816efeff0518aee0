"""Frame-wise scores: counts of frames, scores of each phase, and how they are averaged over videos and phases.

Everything is a pure function on arrays. Scores are fractions, 0..1; NaN where a quantity is undefined.

Two rules hold for every score of this package and are stated only here:

* The phases are always `range(num_phases)`, never the set that happens to occur.
* Unlabelled frames (-100) are removed first, together with their predictions. What remains is one sequence without
  gaps: runs and windows are counted in labelled frames.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from spatialfeat.data.frames import UNLABELLED

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Strategy: TypeAlias = Literal["A", "B"]
PhaseScores: TypeAlias = dict[str, FloatArray]
"""{measure: (..., C) float64}, one entry per measure in MEASURES (relaxed scores have no F1)."""

STRATEGIES: tuple[Strategy, ...] = ("A", "B")
MEASURES = ("precision", "recall", "jaccard", "f1")


def labelled_frames(labels: IntArray, predictions: IntArray, num_phases: int) -> tuple[IntArray, IntArray]:
    """The true and the predicted phase of the labelled frames of one sequence.

    labels: (T,) int64 in 0..num_phases-1, or -100. predictions: (T,) int64 in 0..num_phases-1. Returns two arrays (N,)
    with N <= T. Every function below that takes `truth` and `predicted` wants them so.
    """
    assert labels.shape == predictions.shape == (len(labels),), (labels.shape, predictions.shape)
    labelled = labels != UNLABELLED
    truth, predicted = labels[labelled], predictions[labelled]
    for values in (truth, predicted):
        assert ((values >= 0) & (values < num_phases)).all(), f"a phase outside 0..{num_phases - 1}"
    return truth, predicted


def confusion_counts(truth: IntArray, predicted: IntArray, num_phases: int) -> IntArray:
    """Count frames by (true phase, predicted phase): (C, C) int64, row = true phase."""
    cells = np.bincount(truth * num_phases + predicted, minlength=num_phases**2)
    return cells.reshape(num_phases, num_phases).astype(np.int64)


def phase_scores(hits: npt.NDArray[Any], support: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> PhaseScores:
    """Score each phase from numbers of frames, each (..., C): right ones (TP), true ones (TP+FN), predicted (TP+FP).

    precision = TP/(TP+FP), recall = TP/(TP+FN), jaccard = TP/(TP+FP+FN), f1 = 2TP/(2TP+FP+FN); NaN where the divisor
    is 0.
    """
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "jaccard": ratio(hits, support + predicted - hits),
        "f1": ratio(2 * hits, support + predicted),
    }


def count_scores(counts: IntArray) -> PhaseScores:
    """`phase_scores` of confusion counts (..., C, C)."""
    return phase_scores(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2))


def missing_phases(scores: FloatArray, support: IntArray, strategy: Strategy) -> FloatArray:
    """Apply a strategy for phases missing from a video.

    | in labels | predicted | A                                        | B          |
    |-----------|-----------|------------------------------------------|------------|
    | no        | no        | all NaN                                  | all NaN    |
    | no        | yes       | precision, f1, jaccard are 0; recall NaN | all NaN    |
    | yes       | no        | precision NaN; recall, f1, jaccard are 0 | the same   |

    A punishes hallucinated phases, B forgives them. A is what the formulas give, so it changes nothing. Both are from
    Funke et al., "Metrics Matter in Surgical Phase Recognition", 2023, arXiv 2305.13961.

    scores: (V, C) float64 of one measure. support: (V, C) int64, labelled frames. Returns (V, C) float64.
    """
    return scores if strategy == "A" else np.where(support > 0, scores, np.nan)


def strategy_averages(tables: PhaseScores, support: IntArray) -> dict[str, Any]:
    """{strategy: {measure: `average_scores`}} of one (V, C) table per measure."""
    return {
        strategy: {
            measure: average_scores(missing_phases(table, support, strategy)) for measure, table in tables.items()
        }
        for strategy in STRATEGIES
    }


def average_scores(table: FloatArray) -> dict[str, Any]:
    """Average a (V, C) table in three ways. NaN is left out, and so is a video or phase that has nothing else.

    video_macro: mean over videos of each video's mean over phases. cell_mean: mean over all cells. phase_macro: mean
    over phases of each phase's mean over videos.
    """
    return {
        "video_macro": mean_and_deviation(nan_mean(table, axis=1), over="videos"),
        "cell_mean": float(nan_mean(table)),
        "phase_macro": mean_and_deviation(nan_mean(table, axis=0), over="phases"),
    }


def mean_and_deviation(values: FloatArray, *, over: str) -> dict[str, float]:
    """{"mean", "std_over_..."} of what is not NaN in (N,). The deviation has ddof=1 and needs two values."""
    defined = values[~np.isnan(values)]
    deviation = float(np.std(defined, ddof=1)) if len(defined) >= 2 else float("nan")
    return {"mean": float(nan_mean(values)), f"std_over_{over}": deviation}


def nan_mean(values: FloatArray, axis: int | None = None) -> FloatArray:
    """Mean of what is not NaN; NaN, without a warning, where nothing is left. axis None: over everything."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=axis), defined.sum(axis=axis))


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Divide element by element; NaN, without a warning, where the denominator is 0."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient
