"""Relaxed scores, and the transition graphs they go by: the built-in one, CSVs with names or numbers, wrong rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions_data import Rows, write_rows

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import PhaseScores, confusion_counts, count_scores, labelled_frames
from spatialfeat.scores.relaxed import (
    CHOLEC80,
    forgiven_frames,
    relaxed_graph,
    relaxed_scores,
    transition_graph,
    window_frames,
)

NAMES = ("prepare", "cut", "close")

# Cholec80's tolerated p - y, for its phases numbered 1..7.
AT_START = {1: {-1}, 2: {-1}, 3: {-1}, 4: {-1}, 5: {-1}, 6: {-1, -2}, 7: {-1, -2}}
AT_END = {1: {1}, 2: {1}, 3: {1}, 4: {1, 2}, 5: {1, 2}, 6: {1, 2}, 7: {1, 2}}
runs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def relaxed(
    labels: Sequence[int], predictions: Sequence[int], window: int, graph: np.ndarray = CHOLEC80
) -> tuple[float, PhaseScores]:
    frames = labelled_frames(np.array(labels), np.array(predictions), len(graph))
    return relaxed_scores(*frames, graph, window)


def brute_right(labels: list[int], predictions: list[int], window: int) -> list[bool]:
    """Walk to the ends of each frame's run; phases 1..7 and offsets as Cholec80 states them."""
    right = []
    for i, (y, p) in enumerate(zip(labels, predictions, strict=True)):
        start = end = i
        while start > 0 and labels[start - 1] == y:
            start -= 1
        while end < len(labels) - 1 and labels[end + 1] == y:
            end += 1
        t = min(window, end - start + 1)
        late = i - start < t and p - y in AT_START[y + 1]
        early = end - i < t and p - y in AT_END[y + 1]
        right.append(p == y or late or early)
    return right


def test_relaxed_scores_by_hand() -> None:
    # A window of 2 frames. Phase 0 in frames 0-3, phase 1 in frames 4-8.
    #   frame        0  1  2  3 | 4  5  6  7  8
    #   label        0  0  0  0 | 1  1  1  1  1
    #   prediction   0  0  0  1 | 0  0  0  1  1
    # Frame 3 predicts the successor in the last two frames, 4 and 5 the predecessor in the first two:
    # forgiven. Frame 6 is the third: wrong. Accuracy 8/9.
    # Phase 0: union frames 0-6, 6 right; 6 predicted, 4 labelled: jaccard 6/7, precision 6/6, recall 6/4.
    # Phase 1: union frames 3-8, 5 right; 3 predicted, 5 labelled: jaccard 5/6, precision 5/3, recall 5/5.
    accuracy, found = relaxed([0] * 4 + [1] * 5, [0, 0, 0, 1, 0, 0, 0, 1, 1], window=2)
    assert accuracy == pytest.approx(8 / 9)
    np.testing.assert_allclose(found["jaccard"], [6 / 7, 5 / 6] + [np.nan] * 5)
    np.testing.assert_allclose(found["precision"], [1, 1] + [np.nan] * 5)
    np.testing.assert_allclose(found["recall"], [1, 1] + [np.nan] * 5)


def test_hallucinated_and_missed_phases() -> None:
    # Phase 3 twice, then 4 once, predicted 3 5 5. The first 5 is the successor's successor: 3 -> 5 is allowed
    # at the end of phase 3. The second is at the end of phase 4: 4 -> 5 is allowed. Phase 5 has no label: no
    # recall, but precision 2/2. Phase 4 is never predicted: no precision, recall 1/1.
    accuracy, found = relaxed([3, 3, 4], [3, 5, 5], window=1)
    assert accuracy == 1.0
    assert math.isnan(found["recall"][5])
    assert found["precision"][5] == 1.0
    assert math.isnan(found["precision"][4])
    assert found["recall"][4] == 1.0


@pytest.mark.parametrize("y", range(7))
@pytest.mark.parametrize("p", range(7))
def test_cholec80_tolerates_the_published_offsets(y: int, p: int) -> None:
    labels = np.full(3, y)
    predictions = np.full(3, y)
    for position, tolerated in ((0, AT_START), (1, {}), (2, AT_END)):
        changed = predictions.copy()
        changed[position] = p
        found = forgiven_frames(labels, changed, CHOLEC80, window=1)
        expected = p - y in tolerated.get(y + 1, set())
        assert found.tolist() == [i == position and expected for i in range(3)]


def test_a_run_shorter_than_the_window_is_forgiven_at_both_ends() -> None:
    labels = np.array([2, 2, 2])
    assert forgiven_frames(labels, np.array([1, 3, 1]), CHOLEC80, window=50).all()
    assert not forgiven_frames(labels, np.array([0, 4, 6]), CHOLEC80, window=50).any()


def test_a_phase_that_returns_is_relaxed_at_every_run() -> None:
    labels = np.array([4, 4, 4, 5, 4, 4, 4])
    predictions = np.array([3, 4, 5, 5, 3, 3, 5])
    assert forgiven_frames(labels, predictions, CHOLEC80, window=1).tolist() == [1, 0, 1, 0, 1, 0, 1]


def test_unlabelled_frames_are_removed_first() -> None:
    assert relaxed([0, -100, 0, 0], [0, 6, 1, 1], window=2)[0] == 1.0


def test_any_graph() -> None:
    # A loop 0 -> 1 -> 0: both orders are possible.
    graph = transition_graph(3, [(0, 1), (1, 0), (0, 1)])
    assert graph.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert relaxed([0, 0, 1, 1], [1, 1, 0, 2], 1, graph)[0] == 3 / 4


@pytest.mark.parametrize(
    ("window_s", "sampling_fps", "frames"),
    [(10, 1, 10), (10, 25, 250), (10, 0.25, 3), (10, 1 / 3, 3), (0, 25, 0)],
)
def test_window_frames(window_s: float, sampling_fps: float, frames: int) -> None:
    assert window_frames(window_s, sampling_fps) == frames


@settings(max_examples=100, deadline=None)
@given(runs, runs, st.integers(0, 10))
def test_relaxed_scores_match_brute_force(
    labels: list[tuple[int, int]], predictions: list[tuple[int, int]], window: int
) -> None:
    truth = [label for label, length in labels for _ in range(length)]
    predicted = [label for label, length in predictions for _ in range(length)]
    # Mostly near the truth, or nothing would ever be forgiven.
    predicted = [min(6, max(0, y + p - 3)) for y, p in zip(truth, predicted, strict=False)]
    truth = truth[: len(predicted)]
    right = brute_right(truth, predicted, window)
    accuracy, found = relaxed(truth, predicted, window)
    assert accuracy == pytest.approx(sum(right) / len(right))
    for phase in range(7):
        union = [i for i in range(len(truth)) if phase in (truth[i], predicted[i])]
        hits = sum(right[i] for i in union)
        in_truth, in_prediction = truth.count(phase), predicted.count(phase)
        expected = (
            hits / len(union) if union else math.nan,
            min(1.0, hits / in_prediction) if in_prediction else math.nan,
            min(1.0, hits / in_truth) if in_truth else math.nan,
        )
        actual = [found[name][phase] for name in ("jaccard", "precision", "recall")]
        np.testing.assert_allclose(actual, expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_without_a_window_the_scores_are_exact(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array(values) for values in zip(*pairs, strict=True))
    accuracy, found = relaxed(labels, predictions, window=0)
    exact = count_scores(confusion_counts(labels, predictions, 7))
    assert accuracy == pytest.approx((labels == predictions).mean())
    for name in ("precision", "recall", "jaccard"):
        np.testing.assert_allclose(found[name], exact[name])


def test_cholec80_is_built_in() -> None:
    assert relaxed_graph("cholec80", tuple("abcdefg")) is CHOLEC80
    with pytest.raises(SpatialfeatError, match="its graph has 7 phases, these data have 3; write your own"):
        relaxed_graph("cholec80", NAMES)


def test_names_and_numbers_may_be_mixed_and_repeated(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "graph.csv", "to,from,note", [(1, "prepare", "x"), ("close", 1, ""), ("cut", 0, "")])
    assert np.argwhere(relaxed_graph(str(path), NAMES)).tolist() == [[0, 1], [1, 2]]


def test_a_name_that_is_a_number_goes_before_the_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "graph.csv", "from,to", [("1", "2")])
    assert np.argwhere(relaxed_graph(str(path), ("1", "2", "3"))).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("from,to", [("prepare", "cut"), ("cut", "sew")], r" row 3: column to: 'sew' is no phase; write 0\.\.2 or one"),
        ("from,to", [("3", "cut")], r" row 2: column from: '3' is no phase"),
        ("from,to", [("", "cut")], r" row 2: column from: '' is no phase"),
        ("from,to", [("cut", "1")], r" row 2: cut follows itself; remove it"),
        ("from,to", [], r": has no rows; add one row `from,to` per allowed transition"),
        ("before,after", [("0", "1")], r": no column from and to \(found: before, after\)"),
        ("from,to,to", [("0", "1", "1")], r": column to is there twice"),
    ],
)
def test_wrong_rows_are_named(header: str, rows: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"graph\.csv" + message):
        relaxed_graph(str(write_rows(tmp_path / "graph.csv", header, rows)), NAMES)
