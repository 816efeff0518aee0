from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from evaluation_data import small_video
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from spatialfeat.scores.metrics import (
    MEASURES,
    average_scores,
    confusion_counts,
    count_scores,
    labelled_frames,
    mean_and_deviation,
    missing_phases,
)
from spatialfeat.scores.summary import score

NAN = float("nan")
C = 4
frames = st.lists(st.tuples(st.sampled_from([-100, 0, 1, 2, 3]), st.integers(0, C - 1)), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def counts_of(labels: Sequence[int], predictions: Sequence[int], num_phases: int) -> np.ndarray:
    """Confusion counts of the labelled frames."""
    arrays = (np.array(values, dtype=np.int64) for values in (labels, predictions))
    return confusion_counts(*labelled_frames(*arrays, num_phases), num_phases)


def counts_of_pairs(pairs: list[tuple[int, int]]) -> np.ndarray:
    return counts_of([y for y, _ in pairs], [p for _, p in pairs], C)


def brute_scores(pairs: list[tuple[int, int]], phase: int) -> dict[str, float]:
    """TP, FP and FN counted one frame at a time."""
    kept = [(y, p) for y, p in pairs if y != -100]
    tp = sum(y == phase and p == phase for y, p in kept)
    fp = sum(y != phase and p == phase for y, p in kept)
    fn = sum(y == phase and p != phase for y, p in kept)
    return {
        "precision": tp / (tp + fp) if tp + fp else NAN,
        "recall": tp / (tp + fn) if tp + fn else NAN,
        "jaccard": tp / (tp + fp + fn) if tp + fp + fn else NAN,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else NAN,
        "support": tp + fn,
    }


# Two videos, three phases, worked by hand.
#   video 1: labels 0 0 1 1, predictions 0 0 1 2. Phase 2 is hallucinated.
#   video 2: labels 0 0 0 2, predictions 0 0 2 2. Phase 1 is absent from both.
#            phase 0               phase 1               phase 2
#   video 1  TP 2                  TP 1, FN 1            FP 1
#   video 2  TP 2, FN 1            -                     TP 1, FP 1
COUNTS = np.stack([counts_of([0, 0, 1, 1], [0, 0, 1, 2], 3), counts_of([0, 0, 0, 2], [0, 0, 2, 2], 3)])
SUPPORT = COUNTS.sum(axis=2)
BY_HAND = {
    "A": {
        "precision": [[1, 1, 0], [1, NAN, 1 / 2]],
        "recall": [[1, 1 / 2, NAN], [2 / 3, NAN, 1]],
        "jaccard": [[1, 1 / 2, 0], [2 / 3, NAN, 1 / 2]],
        "f1": [[1, 2 / 3, 0], [4 / 5, NAN, 2 / 3]],
    },
    "B": {
        "precision": [[1, 1, NAN], [1, NAN, 1 / 2]],
        "recall": [[1, 1 / 2, NAN], [2 / 3, NAN, 1]],
        "jaccard": [[1, 1 / 2, NAN], [2 / 3, NAN, 1 / 2]],
        "f1": [[1, 2 / 3, NAN], [4 / 5, NAN, 2 / 3]],
    },
}


def test_confusion_counts_have_ground_truth_in_rows() -> None:
    counts = counts_of([0, 0, 1, -100], [0, 1, 1, 2], 3)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("strategy", ["A", "B"])
@pytest.mark.parametrize("name", MEASURES)
def test_strategies_by_hand(strategy: str, name: str) -> None:
    table = missing_phases(count_scores(COUNTS)[name], SUPPORT, strategy)
    np.testing.assert_allclose(table, BY_HAND[strategy][name])


@pytest.mark.parametrize("strategy", ["A", "B"])
def test_a_phase_never_predicted_has_no_precision_and_zero_for_the_rest(strategy: str) -> None:
    counts = counts_of([0, 1], [0, 0], 2)[None]
    scores = count_scores(counts)
    found = {name: missing_phases(scores[name], counts.sum(axis=2), strategy)[0, 1] for name in MEASURES}
    assert math.isnan(found.pop("precision"))
    assert found == {"recall": 0, "jaccard": 0, "f1": 0}


def test_three_averages_of_f1_under_a() -> None:
    # Videos: (1 + 2/3 + 0) / 3 = 5/9 and (4/5 + 2/3) / 2 = 11/15; mean 29/45; they lie 8/45 apart.
    # Cells: (1 + 2/3 + 0 + 4/5 + 2/3) / 5 = 47/75.
    # Phases: 9/10, 2/3, (0 + 2/3) / 2 = 1/3; mean 19/30.
    found = average_scores(np.array(BY_HAND["A"]["f1"]))
    assert found["video_macro"] == pytest.approx({"mean": 29 / 45, "std_over_videos": 8 / 45 / math.sqrt(2)})
    assert found["cell_mean"] == pytest.approx(47 / 75)
    # Deviations from 19/30: 8/30, 1/30, -9/30; squares sum to 146/900; divided by 3 - 1.
    assert found["phase_macro"] == pytest.approx({"mean": 19 / 30, "std_over_phases": math.sqrt(146 / 900 / 2)})


def test_three_averages_of_f1_under_b() -> None:
    # Videos: 5/6, 11/15; mean 47/60. Cells: (1 + 2/3 + 4/5 + 2/3) / 4 = 47/60. Phases: 9/10, 2/3, 2/3.
    found = average_scores(np.array(BY_HAND["B"]["f1"]))
    assert found["video_macro"]["mean"] == pytest.approx(47 / 60)
    assert found["cell_mean"] == pytest.approx(47 / 60)
    assert found["phase_macro"]["mean"] == pytest.approx(67 / 90)


def test_one_video_has_no_standard_deviation() -> None:
    found = average_scores(np.array([[0.5, 1.0]]))
    assert found["video_macro"]["mean"] == 0.75
    assert math.isnan(found["video_macro"]["std_over_videos"])
    assert math.isnan(mean_and_deviation(np.array([0.5, NAN]), over="videos")["std_over_videos"])


def test_everything_undefined_stays_undefined() -> None:
    found = average_scores(np.full((2, 3), NAN))
    assert all(math.isnan(value) for value in [found["cell_mean"], *found["video_macro"].values()])
    assert all(math.isnan(value) for value in found["phase_macro"].values())


def test_a_video_without_a_defined_cell_is_left_out() -> None:
    # One frame of phase 0, predicted as 1: under B precision is NaN in every phase.
    counts = np.stack([counts_of([0], [1], 2), counts_of([0], [0], 2)])
    precision, support = count_scores(counts)["precision"], counts.sum(axis=2)
    means = {s: average_scores(missing_phases(precision, support, s))["video_macro"]["mean"] for s in ("A", "B")}
    assert means == {"A": 0.5, "B": 1.0}


@settings(max_examples=75, deadline=None)
@given(frames)
def test_phase_scores_match_brute_force(pairs: list[tuple[int, int]]) -> None:
    scores = count_scores(counts_of_pairs(pairs))
    for phase in range(C):
        for name in MEASURES:
            np.testing.assert_allclose(scores[name][phase], brute_scores(pairs, phase)[name])


@settings(max_examples=100, deadline=None)
@given(st.lists(frames, min_size=1, max_size=5), st.sampled_from(["A", "B"]))
def test_averages_match_brute_force(videos: list[list[tuple[int, int]]], strategy: str) -> None:
    counts = np.stack([counts_of_pairs(pairs) for pairs in videos])
    for name, table in count_scores(counts).items():
        found = average_scores(missing_phases(table, counts.sum(axis=2), strategy))
        rows = []
        for pairs in videos:
            cells = [brute_scores(pairs, phase) for phase in range(C)]
            rows.append([cell[name] if strategy == "A" or cell["support"] else NAN for cell in cells])
        flat = [x for row in rows for x in row]
        columns = list(zip(*rows, strict=True))
        by_video, by_phase = [mean(row) for row in rows], [mean(column) for column in columns]
        expected = {"mean": mean(by_video), "std_over_videos": deviation(by_video)}
        assert found["video_macro"] == pytest.approx(expected, nan_ok=True)
        assert found["cell_mean"] == pytest.approx(mean(flat), nan_ok=True)
        expected = {"mean": mean(by_phase), "std_over_phases": deviation(by_phase)}
        assert found["phase_macro"] == pytest.approx(expected, nan_ok=True)


def mean(values: list[float] | tuple[float, ...]) -> float:
    kept = [x for x in values if not math.isnan(x)]
    return sum(kept) / len(kept) if kept else NAN


def deviation(values: list[float]) -> float:
    kept = [x for x in values if not math.isnan(x)]
    centre = mean(kept)
    return math.sqrt(sum((x - centre) ** 2 for x in kept) / (len(kept) - 1)) if len(kept) > 1 else NAN


@settings(max_examples=60, deadline=None)
@given(frames)
def test_counts_and_pooled_scores_match_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = zip(*([pair for pair in pairs if pair[0] != -100] or [(0, 1)]), strict=True)
    assert counts_of(labels, predictions, C).tolist() == confusion_matrix(labels, predictions, labels=range(C)).tolist()
    pooled = score("x", [small_video("1_1", labels, predictions)], "abcd").metrics["pooled"]
    chosen = {"labels": range(C), "average": "macro", "zero_division": 0}
    assert pooled == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predictions),
            "macro_precision": precision_score(labels, predictions, **chosen),
            "macro_recall": recall_score(labels, predictions, **chosen),
            "macro_jaccard": jaccard_score(labels, predictions, **chosen),
            "macro_f1": f1_score(labels, predictions, **chosen),
        }
    )


def test_unlabelled_frames_are_removed_whatever_was_predicted_there() -> None:
    truth, predicted = labelled_frames(np.array([-100, 2, 0]), np.array([99, 1, 0]), 3)
    assert (truth.tolist(), predicted.tolist()) == ([2, 0], [1, 0])
