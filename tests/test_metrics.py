from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
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

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import (
    SCORE_NAMES,
    accuracies,
    average_scores,
    confusion_counts,
    missing_phases,
    nan_std,
    phase_scores,
    pooled_scores,
    scored_frames,
)

NAN = float("nan")
C = 4
frames = st.lists(st.tuples(st.sampled_from([-100, 0, 1, 2, 3]), st.integers(0, C - 1)), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def split(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


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
COUNTS = np.stack([confusion_counts([0, 0, 1, 1], [0, 0, 1, 2], 3), confusion_counts([0, 0, 0, 2], [0, 0, 2, 2], 3)])
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
    counts = confusion_counts([0, 0, 1, -100], [0, 1, 1, 2], 3)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("strategy", ["A", "B"])
@pytest.mark.parametrize("name", SCORE_NAMES)
def test_strategies_by_hand(strategy: str, name: str) -> None:
    scores = phase_scores(COUNTS)
    table = missing_phases(getattr(scores, name), scores.support, strategy)
    np.testing.assert_allclose(table, BY_HAND[strategy][name])


@pytest.mark.parametrize("strategy", ["A", "B"])
def test_a_phase_never_predicted_has_no_precision_and_zero_for_the_rest(strategy: str) -> None:
    scores = phase_scores(confusion_counts([0, 1], [0, 0], 2)[None])
    found = {name: missing_phases(getattr(scores, name), scores.support, strategy)[0, 1] for name in SCORE_NAMES}
    assert math.isnan(found.pop("precision"))
    assert found == {"recall": 0, "jaccard": 0, "f1": 0}


def test_three_averages_of_f1_under_a() -> None:
    # Videos: (1 + 2/3 + 0) / 3 = 5/9 and (4/5 + 2/3) / 2 = 11/15; mean 29/45; they lie 8/45 apart.
    # Cells: (1 + 2/3 + 0 + 4/5 + 2/3) / 5 = 47/75.
    # Phases: 9/10, 2/3, (0 + 2/3) / 2 = 1/3; mean 19/30.
    found = average_scores(np.array(BY_HAND["A"]["f1"]))
    assert found.video_macro == pytest.approx(29 / 45)
    assert found.std_over_videos == pytest.approx(8 / 45 / math.sqrt(2))
    assert found.cell_mean == pytest.approx(47 / 75)
    assert found.phase_macro == pytest.approx(19 / 30)
    # Deviations from 19/30: 8/30, 1/30, -9/30; squares sum to 146/900; divided by 3 - 1.
    assert found.std_over_phases == pytest.approx(math.sqrt(146 / 900 / 2))
    assert len({round(x, 9) for x in (found.video_macro, found.cell_mean, found.phase_macro)}) == 3


def test_three_averages_of_f1_under_b() -> None:
    # Videos: 5/6, 11/15; mean 47/60. Cells: (1 + 2/3 + 4/5 + 2/3) / 4 = 47/60. Phases: 9/10, 2/3, 2/3.
    found = average_scores(np.array(BY_HAND["B"]["f1"]))
    assert found.video_macro == pytest.approx(47 / 60)
    assert found.cell_mean == pytest.approx(47 / 60)
    assert found.phase_macro == pytest.approx(67 / 90)


def test_video_wise_accuracy_weighs_videos_not_frames() -> None:
    # 1 of 1 frame and 1 of 3 frames: pooled 2/4, video-wise (1 + 1/3) / 2.
    counts = np.stack([confusion_counts([0], [0], 2), confusion_counts([0, 1, 1], [0, 0, 0], 2)])
    assert accuracies(counts).tolist() == pytest.approx([1, 1 / 3])
    assert pooled_scores([0, 0, 1, 1], [0, 0, 0, 0], 2).accuracy == 0.5


def test_macro_f1_is_the_mean_of_f1s() -> None:
    # Labels 0 0 0 1, predictions 0 1 1 1: phase 0 has P 1, R 1/3, F1 1/2; phase 1 has P 1/3, R 1, F1 1/2.
    # The F1 of mean precision and recall would be 2/3.
    found = pooled_scores([0, 0, 0, 1], [0, 1, 1, 1], 2)
    assert found.macro_precision == found.macro_recall == pytest.approx(2 / 3)
    assert found.macro_f1 == pytest.approx(1 / 2)


def test_one_video_has_no_standard_deviation() -> None:
    found = average_scores(np.array([[0.5, 1.0]]))
    assert found.video_macro == 0.75
    assert math.isnan(found.std_over_videos)
    assert math.isnan(nan_std(np.array([0.5, NAN])))


def test_everything_undefined_stays_undefined() -> None:
    found = average_scores(np.full((2, 3), NAN))
    assert all(math.isnan(value) for value in vars(found).values())
    assert all(math.isnan(value) for value in vars(pooled_scores([-100], [0], 3)).values())


def test_a_video_without_a_defined_cell_is_left_out() -> None:
    # One frame of phase 0, predicted as 1: under B precision is NaN in every phase.
    counts = np.stack([confusion_counts([0], [1], 2), confusion_counts([0], [0], 2)])
    scores = phase_scores(counts)
    found = average_scores(missing_phases(scores.precision, scores.support, "B"))
    assert found.video_macro == 1.0
    assert average_scores(missing_phases(scores.precision, scores.support, "A")).video_macro == 0.5


@settings(max_examples=150, deadline=None)
@given(frames)
def test_phase_scores_match_brute_force(pairs: list[tuple[int, int]]) -> None:
    scores = phase_scores(confusion_counts(*split(pairs), C))
    for phase in range(C):
        for name, value in brute_scores(pairs, phase).items():
            np.testing.assert_allclose(getattr(scores, name)[phase], value)


@settings(max_examples=100, deadline=None)
@given(st.lists(frames, min_size=1, max_size=5), st.sampled_from(["A", "B"]))
def test_averages_match_brute_force(videos: list[list[tuple[int, int]]], strategy: str) -> None:
    counts = np.stack([confusion_counts(*split(pairs), C) for pairs in videos])
    scores = phase_scores(counts)
    for name in SCORE_NAMES:
        found = average_scores(missing_phases(getattr(scores, name), scores.support, strategy))
        rows = []
        for pairs in videos:
            cells = [brute_scores(pairs, phase) for phase in range(C)]
            rows.append([cell[name] if strategy == "A" or cell["support"] else NAN for cell in cells])
        flat = [x for row in rows for x in row]
        columns = list(zip(*rows, strict=True))
        assert found.cell_mean == pytest.approx(mean(flat), nan_ok=True)
        assert found.video_macro == pytest.approx(mean([mean(row) for row in rows]), nan_ok=True)
        assert found.phase_macro == pytest.approx(mean([mean(column) for column in columns]), nan_ok=True)
        assert found.std_over_videos == pytest.approx(deviation([mean(row) for row in rows]), nan_ok=True)
        assert found.std_over_phases == pytest.approx(deviation([mean(c) for c in columns]), nan_ok=True)


def mean(values: list[float] | tuple[float, ...]) -> float:
    kept = [x for x in values if not math.isnan(x)]
    return sum(kept) / len(kept) if kept else NAN


def deviation(values: list[float]) -> float:
    kept = [x for x in values if not math.isnan(x)]
    centre = mean(kept)
    return math.sqrt(sum((x - centre) ** 2 for x in kept) / (len(kept) - 1)) if len(kept) > 1 else NAN


@settings(max_examples=60, deadline=None)
@given(frames)
def test_pooled_scores_match_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    kept = [pair for pair in pairs if pair[0] != -100] or [(0, 1)]
    labels, predictions = split(kept)
    found = pooled_scores(labels, predictions, C)
    chosen = {"labels": range(C), "average": "macro", "zero_division": 0}
    assert found.accuracy == pytest.approx(accuracy_score(labels, predictions))
    assert found.macro_precision == pytest.approx(precision_score(labels, predictions, **chosen))
    assert found.macro_recall == pytest.approx(recall_score(labels, predictions, **chosen))
    assert found.macro_jaccard == pytest.approx(jaccard_score(labels, predictions, **chosen))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predictions, **chosen))
    expected = confusion_matrix(labels, predictions, labels=range(C))
    assert confusion_counts(labels, predictions, C).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 0], "video 7, frame at index 1: label 3 is outside 0..2; correct it"),
        ([0, -1], [0, 0], "label -1 is outside 0..2"),
        ([0, 1], [5, 0], "index 0: prediction 5 is outside 0..2"),
        ([0, 1], [-100, 0], "prediction -100 is outside 0..2"),
        ([0, 1], [0], "video 7: 2 labels but 1 predictions; give one prediction per frame"),
        ([0.0, 1.0], [0, 1], "labels have type float64; expected integers"),
        ([[0]], [[0]], r"labels have shape \(1, 1\); expected one dimension"),
    ],
)
def test_bad_frames_are_told(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(SpatialfeatError, match=message):
        scored_frames(labels, predictions, 3, place="video 7")


def test_predictions_of_unlabelled_frames_do_not_matter() -> None:
    labels, predictions = scored_frames([-100, 2, 0], [99, 1, 0], 3)
    assert (labels.tolist(), predictions.tolist()) == ([2, 0], [1, 0])
