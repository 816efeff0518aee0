"""Calibration: does a frame predicted with confidence 0.8 turn out right in 80 % of cases?

Expected calibration error after Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
2015, for the confidence of the predicted phase as in Guo et al., "On Calibration of Modern Neural Networks", 2017: 15
bins of equal width, (0, 1/15], (1/15, 2/15], ..., (14/15, 1]. The error is the mean of |accuracy - confidence| over the
bins, weighted by their frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.data.frames import UNLABELLED
from spatialfeat.scores.metrics import FloatArray, IntArray, ratio

NUM_BINS = 15


def softmax(logits: npt.ArrayLike) -> FloatArray:
    """Turn finite logits (N, C) into probabilities (N, C) float64."""
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def calibration(
    probabilities: npt.NDArray[np.floating[Any]], labels: IntArray, num_bins: int = NUM_BINS
) -> dict[str, Any]:
    """Bin frames by the probability of their most probable phase (the first on a tie).

    probabilities: (N, C), rows that sum to 1. labels: (N,) int64; frames labelled -100 are left out.
    Returns {"expected_calibration_error", "num_bins", "num_frames", "bins": [{"low", "high", "num_frames",
    "confidence", "accuracy"}, ...]}. A bin's confidence and accuracy are means, NaN without frames.
    """
    labelled = labels != UNLABELLED
    table, truth = probabilities[labelled].astype(np.float64), labels[labelled]
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    confidence = np.minimum(table.max(axis=1), 1.0)
    # side="left": a confidence equal to an edge belongs to the bin that ends there.
    bins = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    counts = np.bincount(bins, minlength=num_bins)
    right = (table.argmax(axis=1) == truth).astype(np.float64)
    summed_confidence = np.bincount(bins, weights=confidence, minlength=num_bins)
    summed_right = np.bincount(bins, weights=right, minlength=num_bins)
    columns = {
        "low": edges[:-1],
        "high": edges[1:],
        "num_frames": counts,
        "confidence": ratio(summed_confidence, counts),
        "accuracy": ratio(summed_right, counts),
    }
    return {
        "expected_calibration_error": float(ratio(np.abs(summed_right - summed_confidence).sum(), len(truth))),
        "num_bins": num_bins,
        "num_frames": len(truth),
        "bins": [{name: values[index].item() for name, values in columns.items()} for index in range(num_bins)],
    }
