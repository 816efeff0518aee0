from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialfeat.scores.segments import edit_score, find_segments, levenshtein, segment_f1, segment_matches

C = 3
# Runs, so that segments are longer than one frame.
runs = st.lists(st.tuples(st.integers(0, C - 1), st.integers(1, 6)), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def expand(chosen: list[tuple[int, int]]) -> list[int]:
    return [label for label, length in chosen for _ in range(length)]


def brute_segments(sequence: list[int]) -> list[tuple[int, int, int]]:
    found, start = [], 0
    for label, group in itertools.groupby(sequence):
        length = len(list(group))
        found.append((label, start, start + length))
        start += length
    return found


def brute_edit_distance(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Try every edit, without a table."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        brute_edit_distance(first[1:], second) + 1,
        brute_edit_distance(first, second[1:]) + 1,
        brute_edit_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def brute_matches(labels: list[int], predictions: list[int], overlap: float) -> list[int]:
    """Greedy matching, one predicted segment after the other, frames as sets."""
    truth, taken, tp, fp = brute_segments(labels), set(), 0, 0
    for label, start, end in brute_segments(predictions):
        best, chosen = 0.0, -1
        for index, (other, other_start, other_end) in enumerate(truth):
            here, there = set(range(start, end)), set(range(other_start, other_end))
            iou = len(here & there) / len(here | there) if label == other else 0.0
            if iou > best:
                best, chosen = iou, index
        if best >= overlap and chosen not in taken:
            tp += 1
            taken.add(chosen)
        else:
            fp += 1
    return [tp, fp, len(truth) - len(taken)]


def test_find_segments() -> None:
    segments = find_segments(np.array([2, 2, 0, 2]))
    assert segments.labels.tolist() == [2, 0, 2]
    assert segments.starts.tolist() == [0, 2, 3]
    assert segments.ends.tolist() == [2, 3, 4]
    assert len(find_segments(np.zeros(0, dtype=np.int64))) == 0


def test_edit_score_by_hand() -> None:
    # Segments 0 1 2 against 0 1 0 1 2: two insertions, five segments: 1 - 2/5. Durations do not matter.
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    predictions = [0, 0, 1, 0, 0, 0, 1, 1, 1, 2]
    assert edit_score(labels, predictions, 3) == pytest.approx(1 - 2 / 5)


def test_segment_f1_by_hand() -> None:
    # Ground truth:  0 in [0, 10), 1 in [10, 20).
    # Prediction:    0 in [0, 4), 1 in [4, 6), 0 in [6, 9), 1 in [9, 20).
    # IoU: first 0: 4/10; first 1: no overlap; second 0: 3/10; second 1: 10/11.
    #   k = 10, 25: the first 0 takes the 0; the first 1 is false; the second 0 finds its candidate taken:
    #               false; the second 1 is true. TP 2, FP 2, FN 0: F1 = 4/6.
    #   k = 50:     only the second 1: TP 1, FP 3, FN 1: F1 = 2/6.
    labels = [0] * 10 + [1] * 10
    predictions = [0] * 4 + [1] * 2 + [0] * 3 + [1] * 11
    counts = segment_matches(labels, predictions, 2)
    assert counts.tolist() == [[2, 2, 0], [2, 2, 0], [1, 3, 1]]
    np.testing.assert_allclose(segment_f1(counts), [4 / 6, 4 / 6, 2 / 6])


def test_an_overlap_equal_to_the_threshold_counts() -> None:
    # IoU exactly 1/10, 1/4 and 1/2.
    for percent, share in ((10, 10), (25, 4), (50, 2)):
        labels, predictions = [0] * share, [0] + [1] * (share - 1)
        assert segment_matches(labels, predictions, 2, (percent,)).tolist() == [[1, 1, 0]]
        assert segment_matches([*labels, 0], [*predictions, 1], 2, (percent,)).tolist() == [[0, 2, 1]]


def test_a_taken_candidate_is_not_replaced_by_the_second_best() -> None:
    # Ground truth: 0 in [0, 3), 1 in [3, 4), 0 in [4, 14). Prediction: all 0, so one segment with IoU 3/14
    # and 10/14: it takes the longer one, and the shorter is missed.
    labels = [0] * 3 + [1] + [0] * 10
    assert segment_matches(labels, [0] * 14, 2, (10,)).tolist() == [[1, 0, 2]]
    # Both predicted 0s prefer the long segment [1, 11); the second could have had [12, 13) but does not ask.
    labels = [2] + [0] * 10 + [1] + [0] + [2] * 2
    predictions = [0] * 6 + [1] + [0] * 6 + [2] * 2
    assert segment_matches(labels, predictions, 3, (10,)).tolist() == [[2, 2, 3]]


def test_the_earlier_of_two_equal_candidates_is_chosen() -> None:
    # Ground truth: 0 in [0, 2) and [3, 9). Prediction: 0 in [0, 6) and [7, 9). The first has IoU 2/6 with the
    # one and 3/9 with the other and takes the earlier, which leaves the later to the second.
    labels = [0] * 2 + [1] + [0] * 6
    predictions = [0] * 6 + [1] + [0] * 2
    assert segment_matches(labels, predictions, 2, (25,)).tolist() == [[2, 1, 1]]


def test_counts_are_pooled_over_videos() -> None:
    # Two videos: (TP, FP, FN) = (1, 0, 0) and (0, 1, 1): pooled F1 = 2/4.
    total = segment_matches([0], [0], 2) + segment_matches([0], [1], 2)
    np.testing.assert_allclose(segment_f1(total), [0.5] * 3)


def test_unlabelled_frames_join_what_they_separate() -> None:
    labels, predictions = [0, -100, 0, 1], [0, 1, 0, 1]
    assert edit_score(labels, predictions, 2) == 1.0
    assert segment_matches(labels, predictions, 2).tolist() == [[2, 0, 0]] * 3


def test_no_labelled_frame_and_one_frame() -> None:
    assert math.isnan(edit_score([-100], [0], 2))
    assert segment_matches([-100], [0], 2).tolist() == [[0, 0, 0]] * 3
    assert np.isnan(segment_f1([0, 0, 0]))
    assert edit_score([1], [1], 2) == 1.0
    assert edit_score([1], [0], 2) == 0.0


def test_constant_prediction() -> None:
    # One predicted segment against 0 1 0: two deletions of three.
    assert edit_score([0, 1, 0], [0, 0, 0], 2) == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_levenshtein_matches_brute_force(first: list[int], second: list[int]) -> None:
    found = levenshtein(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    assert found == brute_edit_distance(tuple(first), tuple(second))


@settings(max_examples=300, deadline=None)
@given(runs, runs)
def test_matches_match_brute_force(labels: list[tuple[int, int]], predictions: list[tuple[int, int]]) -> None:
    truth, predicted = expand(labels), expand(predictions)
    length = min(len(truth), len(predicted))
    truth, predicted = truth[:length], predicted[:length]
    found = segment_matches(truth, predicted, C)
    assert found.tolist() == [brute_matches(truth, predicted, k) for k in (0.1, 0.25, 0.5)]
    segments = [tuple(label for label, _, _ in brute_segments(x)) for x in (truth, predicted)]
    expected = 1 - levenshtein(*map(np.array, segments)) / max(map(len, segments))
    assert edit_score(truth, predicted, C) == pytest.approx(expected)
