"""Calibration: does a frame predicted with confidence 0.8 turn out right in 80 % of cases?

Expected calibration error after Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian
Binning", AAAI 2015, for the predicted class's confidence as in Guo et al., "On Calibration of Modern Neural
Networks", 2017: 15 bins of equal width, (0, 1/15], (1/15, 2/15], ..., (14/15, 1]; ECE is the mean of
|accuracy - confidence| over bins, weighted by their frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import IGNORED_LABEL, FloatArray, IntArray, ratio, scored_frames

NUM_BINS = 15


@dataclass(frozen=True, eq=False, kw_only=True)
class ReliabilityCurve:
    """edges: (B + 1,) float64, 0..1. confidence, accuracy: (B,) float64, means of a bin, NaN if empty.

    counts: (B,) int64 frames. expected_calibration_error: 0..1, NaN without a labelled frame.
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray
    expected_calibration_error: float


def softmax(logits: npt.ArrayLike) -> FloatArray:
    """Turn logits (N, C) into probabilities (N, C) float64. Raises SpatialfeatError unless all are finite."""
    scores = np.asarray(logits, dtype=np.float64)
    _require_finite_rows(scores, "logits")
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def reliability_curve(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, num_bins: int = NUM_BINS
) -> ReliabilityCurve:
    """Bin frames by the probability of their most probable phase (the first on a tie).

    probabilities: (N, C), rows that sum to 1; from logits, through `softmax`. Feature files hold logits as
    (C, T): transpose them. labels: (N,) integers; frames labelled -100 are left out, whatever their row
    holds.
    Raises SpatialfeatError for shapes that disagree, a row that is no probability distribution, or a label
    outside 0..C-1.
    """
    assert num_bins >= 1, num_bins
    table, truth = _labelled_rows(probabilities, labels)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    confidence = np.minimum(table.max(axis=1), 1.0)
    # side="left": a confidence equal to an edge belongs to the bin that ends there.
    bins = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    counts = np.bincount(bins, minlength=num_bins).astype(np.int64)
    right = (table.argmax(axis=1) == truth).astype(np.float64)
    summed_confidence = np.bincount(bins, weights=confidence, minlength=num_bins)
    summed_right = np.bincount(bins, weights=right, minlength=num_bins)
    gaps = np.abs(summed_right - summed_confidence)
    return ReliabilityCurve(
        edges=edges,
        counts=counts,
        confidence=ratio(summed_confidence, counts),
        accuracy=ratio(summed_right, counts),
        expected_calibration_error=float(ratio(gaps.sum(), len(truth))),
    )


def _labelled_rows(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    """Check, and leave out unlabelled frames."""
    table, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if table.ndim != 2 or table.shape[1] < 1 or truth.shape != table.shape[:1]:
        raise SpatialfeatError(
            f"probabilities {table.shape} and labels {truth.shape}: expected (N, C) and (N,); "
            "give one row per frame, one column per phase"
        )
    scored_frames(truth, np.zeros(len(truth), dtype=np.int64), table.shape[1], place="calibration")
    labelled = truth != IGNORED_LABEL
    table = table[labelled]
    _require_finite_rows(table, "probabilities")
    wrong = np.flatnonzero((np.abs(table.sum(axis=1) - 1) > 1e-3) | (table.min(axis=1, initial=0) < 0))
    if len(wrong):
        raise SpatialfeatError(
            f"probabilities of labelled frame {wrong[0]} are {table[wrong[0]].tolist()}: not a distribution; "
            "give rows that sum to 1, or logits through softmax"
        )
    return table, truth[labelled].astype(np.int64)


def _require_finite_rows(table: FloatArray, name: str) -> None:
    if table.ndim != 2 or table.shape[1] < 1:
        raise SpatialfeatError(f"{name} have shape {table.shape}; give (N, C), one row per frame")
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise SpatialfeatError(
            f"{name} of frame {wrong[0]} hold {table[wrong[0]].tolist()}; recompute them, all must be finite"
        )
