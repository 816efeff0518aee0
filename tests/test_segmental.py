from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialfeat.scores.metrics import labelled_frames
from spatialfeat.scores.segmental import IOU_PERCENTS, edit_score, f1_of_matches, find_runs, levenshtein, match_runs

C = 3
# (phase, length): most runs are longer than one frame.
runs = st.lists(st.tuples(st.integers(0, C - 1), st.integers(1, 6)), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def expand(chosen: list[tuple[int, int]]) -> list[int]:
    return [label for label, length in chosen for _ in range(length)]


def edit(labels: list[int], predictions: list[int]) -> float:
    return edit_score(*labelled_frames(np.array(labels), np.array(predictions), C))


def matches(labels: list[int], predictions: list[int], percents: Sequence[int] = IOU_PERCENTS) -> np.ndarray:
    return match_runs(*labelled_frames(np.array(labels), np.array(predictions), C), percents)


def brute_runs(sequence: list[int]) -> list[tuple[int, int, int]]:
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
    """Greedy matching, one predicted run after the other, frames as sets."""
    truth, taken, tp, fp = brute_runs(labels), set(), 0, 0
    for label, start, end in brute_runs(predictions):
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


def test_find_runs() -> None:
    found = find_runs(np.array([2, 2, 0, 2]))
    assert [found.values.tolist(), found.starts.tolist(), found.ends.tolist()] == [[2, 0, 2], [0, 2, 3], [2, 3, 4]]
    found = find_runs(np.array([2, 2, 0, 2]), np.array([True, False, False]))
    assert [found.values.tolist(), found.starts.tolist()] == [[2, 2, 0, 2], [0, 1, 2, 3]]
    assert len(find_runs(np.zeros(0, dtype=np.int64))) == 0


def test_edit_score_by_hand() -> None:
    # Runs 0 1 2 against 0 1 0 1 2: two insertions, five runs: 1 - 2/5. Durations do not matter.
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    predictions = [0, 0, 1, 0, 0, 0, 1, 1, 1, 2]
    assert edit(labels, predictions) == pytest.approx(1 - 2 / 5)


def test_f1_by_hand() -> None:
    # Ground truth:  0 in [0, 10), 1 in [10, 20).
    # Prediction:    0 in [0, 4), 1 in [4, 6), 0 in [6, 9), 1 in [9, 20).
    # IoU: first 0: 4/10; first 1: no overlap; second 0: 3/10; second 1: 10/11.
    #   k = 10, 25: the first 0 takes the 0; the first 1 is false; the second 0 finds its candidate taken:
    #               false; the second 1 is true. TP 2, FP 2, FN 0: F1 = 4/6.
    #   k = 50:     only the second 1: TP 1, FP 3, FN 1: F1 = 2/6.
    labels = [0] * 10 + [1] * 10
    predictions = [0] * 4 + [1] * 2 + [0] * 3 + [1] * 11
    counts = matches(labels, predictions)
    assert counts.tolist() == [[2, 2, 0], [2, 2, 0], [1, 3, 1]]
    np.testing.assert_allclose(f1_of_matches(counts), [4 / 6, 4 / 6, 2 / 6])


def test_an_overlap_equal_to_the_threshold_counts() -> None:
    # IoU exactly 1/10, 1/4 and 1/2.
    for percent, share in ((10, 10), (25, 4), (50, 2)):
        labels, predictions = [0] * share, [0] + [1] * (share - 1)
        assert matches(labels, predictions, (percent,)).tolist() == [[1, 1, 0]]
        assert matches([*labels, 0], [*predictions, 1], (percent,)).tolist() == [[0, 2, 1]]


def test_a_taken_candidate_is_not_replaced_by_the_second_best() -> None:
    # Ground truth: 0 in [0, 3), 1 in [3, 4), 0 in [4, 14). Prediction: all 0, so one run with IoU 3/14
    # and 10/14: it takes the longer one, and the shorter is missed.
    labels = [0] * 3 + [1] + [0] * 10
    assert matches(labels, [0] * 14, (10,)).tolist() == [[1, 0, 2]]
    # Both predicted 0s prefer the long run [1, 11); the second could have had [12, 13) but does not ask.
    labels = [2] + [0] * 10 + [1] + [0] + [2] * 2
    predictions = [0] * 6 + [1] + [0] * 6 + [2] * 2
    assert matches(labels, predictions, (10,)).tolist() == [[2, 2, 3]]


def test_the_earlier_of_two_equal_candidates_is_chosen() -> None:
    # Ground truth: 0 in [0, 2) and [3, 9). Prediction: 0 in [0, 6) and [7, 9). The first has IoU 2/6 with the
    # one and 3/9 with the other and takes the earlier, which leaves the later to the second.
    labels = [0] * 2 + [1] + [0] * 6
    predictions = [0] * 6 + [1] + [0] * 2
    assert matches(labels, predictions, (25,)).tolist() == [[2, 1, 1]]


def test_counts_are_pooled_over_videos() -> None:
    # Two videos: (TP, FP, FN) = (1, 0, 0) and (0, 1, 1): pooled F1 = 2/4.
    total = matches([0], [0]) + matches([0], [1])
    np.testing.assert_allclose(f1_of_matches(total), [0.5] * 3)


def test_unlabelled_frames_join_what_they_separate() -> None:
    labels, predictions = [0, -100, 0, 1], [0, 1, 0, 1]
    assert edit(labels, predictions) == 1.0
    assert matches(labels, predictions).tolist() == [[2, 0, 0]] * 3


def test_nothing_matched_and_one_frame() -> None:
    assert math.isnan(f1_of_matches([0, 0, 0]))
    assert edit([1], [1]) == 1.0
    assert edit([1], [0]) == 0.0


def test_constant_prediction() -> None:
    # One predicted run against 0 1 0: two deletions of three.
    assert edit([0, 1, 0], [0, 0, 0]) == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_levenshtein_matches_brute_force(first: list[int], second: list[int]) -> None:
    found = levenshtein(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    assert found == brute_edit_distance(tuple(first), tuple(second))


@settings(max_examples=150, deadline=None)
@given(runs, runs)
def test_matches_match_brute_force(labels: list[tuple[int, int]], predictions: list[tuple[int, int]]) -> None:
    truth, predicted = expand(labels), expand(predictions)
    length = min(len(truth), len(predicted))
    truth, predicted = truth[:length], predicted[:length]
    found = matches(truth, predicted)
    assert found.tolist() == [brute_matches(truth, predicted, k) for k in (0.1, 0.25, 0.5)]
    phases = [tuple(label for label, _, _ in brute_runs(x)) for x in (truth, predicted)]
    expected = 1 - levenshtein(*map(np.array, phases)) / max(map(len, phases))
    assert edit(truth, predicted) == pytest.approx(expected)
