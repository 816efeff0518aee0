"""Segmental metrics: edit score and F1@k as in Farha and Gall, "MS-TCN: Multi-Stage Temporal Convolutional
Network for Action Segmentation", CVPR 2019 (introduced by Lea et al., CVPR 2017).

A segment is a longest run of frames with one label. Unlabelled frames are removed before segments are formed
(see `metrics`), so two runs of one phase on either side of an unlabelled stretch are one segment. There is no
background class: every phase counts. Scores are fractions 0..1, where MS-TCN prints 0..100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spatialfeat.scores.metrics import FloatArray, IntArray, ratio, scored_frames

IOU_PERCENTS = (10, 25, 50)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segments:
    """Runs of equal labels in time order; run i covers frames [starts[i], ends[i]). Each (S,) int64."""

    labels: IntArray
    starts: IntArray
    ends: IntArray

    def __len__(self) -> int:
        return len(self.labels)


def find_segments(sequence: IntArray) -> Segments:
    """Cut a label sequence (T,) into its runs; none for an empty sequence."""
    if len(sequence) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return Segments(labels=empty, starts=empty, ends=empty)
    changes = np.flatnonzero(sequence[1:] != sequence[:-1]) + 1
    starts = np.concatenate([[0], changes]).astype(np.int64)
    ends = np.concatenate([changes, [len(sequence)]]).astype(np.int64)
    return Segments(labels=sequence[starts], starts=starts, ends=ends)


def edit_score(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_phases: int) -> float:
    """1 - Levenshtein distance / larger number of segments, over the two sequences of segment labels.

    labels, predictions: (T,) integers of one video. Returns 0..1, NaN without a labelled frame.
    Raises SpatialfeatError as `metrics.scored_frames`.
    """
    truth, predicted = scored_frames(labels, predictions, num_phases)
    if len(truth) == 0:
        return float("nan")
    runs, predicted_runs = find_segments(truth).labels, find_segments(predicted).labels
    return 1.0 - levenshtein(runs, predicted_runs) / max(len(runs), len(predicted_runs))


def levenshtein(first: IntArray, second: IntArray) -> int:
    """Fewest insertions, deletions and substitutions that turn `first` (M,) into `second` (N,)."""
    short, long = sorted((first, second), key=len)
    columns = np.arange(len(long) + 1)
    row = columns
    for number, label in enumerate(short, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (long != label))
        # A step along the row costs 1 per column: subtract the column, and the rest is a running minimum.
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def segment_matches(
    labels: npt.ArrayLike,
    predictions: npt.ArrayLike,
    num_phases: int,
    iou_percents: Sequence[int] = IOU_PERCENTS,
) -> IntArray:
    """Count matched segments of one video at each overlap, as MS-TCN does.

    Predicted segments are visited in time order. Each looks at one candidate only: the ground-truth segment
    of its label with the highest intersection over union in frames (the earliest on a tie). It is a true
    positive if that IoU >= k and the candidate is not matched yet, else a false positive, even if its second
    best was free. Ground-truth segments left unmatched are false negatives.

    labels, predictions: (T,) integers of one video. iou_percents: K values in 1..100.
    Returns (K, 3) int64: true positives, false positives, false negatives. Add these over videos, then
    `segment_f1`.
    Raises SpatialfeatError as `metrics.scored_frames`.
    """
    assert all(0 < percent <= 100 for percent in iou_percents), iou_percents
    truth, predicted = scored_frames(labels, predictions, num_phases)
    truth_runs, predicted_runs = find_segments(truth), find_segments(predicted)
    best_iou, candidate = _best_overlaps(truth_runs, predicted_runs)
    counts = np.zeros((len(iou_percents), 3), dtype=np.int64)
    for row, percent in enumerate(iou_percents):
        # Each candidate is matched once, by the first to claim it: the matches are the distinct candidates.
        matched = len(np.unique(candidate[best_iou >= percent / 100]))
        counts[row] = matched, len(predicted_runs) - matched, len(truth_runs) - matched
    return counts


def _best_overlaps(truth: Segments, predicted: Segments) -> tuple[FloatArray, IntArray]:
    """Each predicted segment's highest same-label IoU, and that ground-truth segment's index (-1: none)."""
    best_iou = np.zeros(len(predicted))
    candidate = np.full(len(predicted), -1, dtype=np.int64)
    for index, (label, start, end) in enumerate(zip(truth.labels, truth.starts, truth.ends, strict=True)):
        shared = np.minimum(predicted.ends, end) - np.maximum(predicted.starts, start)
        spanned = np.maximum(predicted.ends, end) - np.minimum(predicted.starts, start)
        iou = np.where(predicted.labels == label, np.maximum(shared, 0) / spanned, 0.0)
        better = iou > best_iou
        best_iou[better] = iou[better]
        candidate[better] = index
    return best_iou, candidate


def segment_f1(counts: npt.ArrayLike) -> FloatArray:
    """F1 from (..., 3) true positives, false positives, false negatives; NaN where all three are 0."""
    totals = np.asarray(counts, dtype=np.float64)
    true, false, missed = totals[..., 0], totals[..., 1], totals[..., 2]
    return ratio(2 * true, 2 * true + false + missed)
