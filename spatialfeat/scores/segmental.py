"""Segmental scores: the edit score and F1@k of MS-TCN, which see over-segmentation where frame-wise scores do not.

Source: Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for Action Segmentation", CVPR 2019; first
in Lea et al., CVPR 2017. What they call a segment is a *run* here: a longest stretch of frames with one phase.
Unlabelled frames are removed before runs are formed, so two runs of one phase on either side of an unlabelled stretch
are one. There is no background class: every phase counts. Scores are fractions 0..1, where MS-TCN prints 0..100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spatialfeat.scores.metrics import BoolArray, FloatArray, IntArray, ratio

IOU_PERCENTS = (10, 25, 50)


@dataclass(frozen=True, eq=False)
class Runs:
    """R runs of equal values in time order; run i covers the frames [starts[i], ends[i]). Each (R,) int64."""

    values: IntArray
    starts: IntArray
    ends: IntArray

    def __len__(self) -> int:
        return len(self.values)


def find_runs(sequence: IntArray, breaks: BoolArray | bool = False) -> Runs:
    """Cut a sequence (T,) into its runs; none for an empty sequence.

    breaks: (T-1,) bool, where a run also ends although the value stays the same.
    """
    if len(sequence) == 0:
        return Runs(*np.zeros((3, 0), dtype=np.int64))
    changes = np.flatnonzero((sequence[1:] != sequence[:-1]) | breaks) + 1
    starts, ends = np.insert(changes, 0, 0), np.append(changes, len(sequence))
    return Runs(sequence[starts], starts, ends)


def edit_score(truth: IntArray, predicted: IntArray) -> float:
    """1 - Levenshtein distance / larger number of runs, over the two sequences of the runs' phases.

    truth, predicted: (N,) int64 of one video, N >= 1, all labelled. Returns 0..1.
    """
    true_runs, predicted_runs = find_runs(truth).values, find_runs(predicted).values
    return 1.0 - levenshtein(true_runs, predicted_runs) / max(len(true_runs), len(predicted_runs))


def levenshtein(first: IntArray, second: IntArray) -> int:
    """Fewest insertions, deletions and substitutions that turn `first` (M,) into `second` (N,)."""
    short, long = sorted((first, second), key=len)
    columns = np.arange(len(long) + 1)
    row = columns
    for number, value in enumerate(short, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (long != value))
        # A step along the row costs 1 per column: subtract the column, and the rest is a running minimum.
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def match_runs(truth: IntArray, predicted: IntArray, iou_percents: Sequence[int] = IOU_PERCENTS) -> IntArray:
    """Count matched runs of one video at each overlap, as MS-TCN does.

    Predicted runs are visited in time order. Each looks at one candidate only: the true run of its phase with the
    highest intersection over union in frames (the earliest on a tie). It is a true positive if that IoU >= k and the
    candidate is not matched yet, else a false positive, even if its second best was free. True runs left unmatched are
    false negatives.

    truth, predicted: (N,) int64 of one video, all labelled. iou_percents: K values in 1..100.
    Returns (K, 3) int64: true positives, false positives, false negatives. Add these over videos, then `f1_of_matches`.
    """
    true_runs, predicted_runs = find_runs(truth), find_runs(predicted)
    best_iou, candidate = _best_overlaps(true_runs, predicted_runs)
    counts = np.zeros((len(iou_percents), 3), dtype=np.int64)
    for row, percent in enumerate(iou_percents):
        # Each candidate is matched once, by the first to claim it: the matches are the distinct candidates.
        matched = len(np.unique(candidate[best_iou >= percent / 100]))
        counts[row] = matched, len(predicted_runs) - matched, len(true_runs) - matched
    return counts


def _best_overlaps(true_runs: Runs, predicted_runs: Runs) -> tuple[FloatArray, IntArray]:
    """Each predicted run's highest IoU with a true run of its phase, and the index of that run (-1: none)."""
    best_iou = np.zeros(len(predicted_runs))
    candidate = np.full(len(predicted_runs), -1, dtype=np.int64)
    for index, (value, start, end) in enumerate(zip(true_runs.values, true_runs.starts, true_runs.ends, strict=True)):
        shared = np.minimum(predicted_runs.ends, end) - np.maximum(predicted_runs.starts, start)
        spanned = np.maximum(predicted_runs.ends, end) - np.minimum(predicted_runs.starts, start)
        iou = np.where(predicted_runs.values == value, np.maximum(shared, 0) / spanned, 0.0)
        better = iou > best_iou
        best_iou[better] = iou[better]
        candidate[better] = index
    return best_iou, candidate


def f1_of_matches(counts: npt.ArrayLike) -> FloatArray:
    """F1 from (..., 3) true positives, false positives, false negatives; NaN where all three are 0."""
    totals = np.asarray(counts, dtype=np.float64)
    true, false, missed = totals[..., 0], totals[..., 1], totals[..., 2]
    return ratio(2 * true, 2 * true + false + missed)
