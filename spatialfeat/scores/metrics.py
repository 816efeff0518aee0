"""Frame-wise scores: counts of frames, scores of each phase and their averages over videos and phases, calibration.

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
NUM_BINS = 15


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


def softmax(logits: npt.ArrayLike) -> FloatArray:
    """Turn finite logits (N, C) into probabilities (N, C) float64."""
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def calibration(probabilities: npt.NDArray[np.floating[Any]], labels: IntArray) -> dict[str, Any]:
    """Bin frames by the probability of their most probable phase (the first on a tie): whether confidence 0.8 is right
    in 80 % of cases.

    Expected calibration error after Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015, for the confidence of the predicted phase as in Guo et al., "On Calibration of Modern Neural Networks",
    2017: the mean of |accuracy - confidence| over bins of equal width, (0, 1/15], ..., (14/15, 1], weighted by their
    frames.

    probabilities: (N, C), rows that sum to 1. labels: (N,) int64; frames labelled -100 are left out.
    Returns {"expected_calibration_error", "num_bins", "num_frames", "bins": [{"low", "high", "num_frames",
    "confidence", "accuracy"}, ...]}. A bin's confidence and accuracy are means, NaN without frames.
    """
    labelled = labels != UNLABELLED
    table, truth = probabilities[labelled].astype(np.float64), labels[labelled]
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    confidence = np.minimum(table.max(axis=1), 1.0)
    # side="left": a confidence equal to an edge belongs to the bin that ends there.
    bins = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    counts = np.bincount(bins, minlength=NUM_BINS)
    right = (table.argmax(axis=1) == truth).astype(np.float64)
    summed_confidence = np.bincount(bins, weights=confidence, minlength=NUM_BINS)
    summed_right = np.bincount(bins, weights=right, minlength=NUM_BINS)
    columns = {
        "low": edges[:-1],
        "high": edges[1:],
        "num_frames": counts,
        "confidence": ratio(summed_confidence, counts),
        "accuracy": ratio(summed_right, counts),
    }
    return {
        "expected_calibration_error": float(ratio(np.abs(summed_right - summed_confidence).sum(), len(truth))),
        "num_bins": NUM_BINS,
        "num_frames": len(truth),
        "bins": [{name: values[index].item() for name, values in columns.items()} for index in range(NUM_BINS)],
    }
