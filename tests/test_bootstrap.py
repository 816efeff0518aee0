from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import accuracies, confusion_counts, phase_scores, pooled_scores
from spatialfeat.scores.segments import edit_score, segment_f1, segment_matches
from spatialfeat.scores.summary import ScoredVideo, tally
from spatialfeat.scores.table import (
    VideoTallies,
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_phase_intervals,
    percentile_interval,
    resampled_phase_scores,
    resampled_scores,
    resampling_weights,
)

C = 3


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def video(video_id: str, patient_id: str, labels: list[int], predictions: list[int]) -> ScoredVideo:
    return ScoredVideo(
        video_id=video_id,
        patient_id=patient_id,
        labels=np.array(labels),
        predictions=np.array(predictions),
    )


def random_videos(seed: int, patients: tuple[str, ...], share_right: float = 0.6) -> list[ScoredVideo]:
    """Labels depend on the seed alone, so that two predictions of the same frames can be made."""
    videos = []
    for number, patient in enumerate(patients):
        rng = np.random.default_rng((seed, number))
        labels = np.repeat(rng.integers(C, size=4), rng.integers(1, 8, size=4))
        wrong = rng.random(len(labels)) >= share_right
        predictions = np.where(wrong, rng.integers(C, size=len(labels)), labels)
        videos.append(video(f"{patient}_{number}", patient, labels.tolist(), predictions.tolist()))
    return videos


PATIENTS = ("b", "a", "c", "a", "d")


def test_two_patients_by_hand() -> None:
    # One patient all right, one all wrong, two frames each. The accuracy of a resample is 0, 1/2 or 1 with
    # probability 1/4, 1/2, 1/4: the middle 95 % reach from 0 to 1.
    tallies = tally([video("a", "a", [0, 0], [0, 0]), video("b", "b", [1, 1], [0, 0])], 2)
    weights = resampling_weights(tallies.patient_ids, 4000, 0)
    accuracy = resampled_scores(tallies, weights)["accuracy"]
    shares = {value: count / 4000 for value, count in Counter(accuracy.tolist()).items()}
    assert shares == {
        0.0: pytest.approx(0.25, abs=0.03),
        0.5: pytest.approx(0.5, abs=0.03),
        1.0: pytest.approx(0.25, abs=0.03),
    }
    assert bootstrap_intervals(tallies, num_samples=4000, seed=0)["accuracy"] == (0.0, 1.0)


def test_whole_patients_are_drawn() -> None:
    weights = resampling_weights(PATIENTS, 500, 3)
    assert weights.shape == (500, 5)
    np.testing.assert_array_equal(weights[:, 1], weights[:, 3])
    # Four patients are drawn each time; patient a is counted once though it has two videos.
    np.testing.assert_array_equal(weights[:, [0, 1, 2, 4]].sum(axis=1), 4)
    assert weights.mean(axis=0) == pytest.approx([1] * 5, abs=0.15)


def test_drawing_is_fixed_by_the_seed_and_the_patient_not_by_order() -> None:
    weights = resampling_weights(PATIENTS, 50, 7)
    np.testing.assert_array_equal(weights, resampling_weights(PATIENTS, 50, 7))
    assert not np.array_equal(weights, resampling_weights(PATIENTS, 50, 8))
    order = [4, 2, 0, 3, 1]
    moved = resampling_weights([PATIENTS[i] for i in order], 50, 7)
    np.testing.assert_array_equal(moved, weights[:, order])


@pytest.mark.parametrize("seed", range(5))
def test_resampled_scores_match_repeating_the_videos(seed: int) -> None:
    videos = random_videos(seed, PATIENTS)
    tallies = tally(videos, C)
    weights = resampling_weights(tallies.patient_ids, 20, seed)
    found, phases = resampled_scores(tallies, weights), resampled_phase_scores(tallies, weights)
    for row, counts in enumerate(weights.astype(int)):
        drawn = [v for v, times in zip(videos, counts, strict=True) for _ in range(times)]
        labels = np.concatenate([v.labels for v in drawn])
        predictions = np.concatenate([v.predictions for v in drawn])
        f1 = segment_f1(sum(segment_matches(v.labels, v.predictions, C) for v in drawn))
        expected = asdict(pooled_scores(labels, predictions, C)) | {
            "video_wise_accuracy": np.mean([np.mean(v.labels == v.predictions) for v in drawn]),
            "edit": np.mean([edit_score(v.labels, v.predictions, C) for v in drawn]),
            "f1_10": f1[0],
            "f1_25": f1[1],
            "f1_50": f1[2],
        }
        assert {name: column[row] for name, column in found.items()} == pytest.approx(expected)
        per_phase = phase_scores(confusion_counts(labels, predictions, C))
        for name in ("precision", "recall", "jaccard", "f1", "support"):
            np.testing.assert_allclose(getattr(phases, name)[row], getattr(per_phase, name))


def test_intervals_are_percentiles() -> None:
    # 0, 1, ..., 40: 2.5 % of the way is 1, 97.5 % is 39.
    assert percentile_interval(np.arange(41.0)) == pytest.approx((1, 39))
    assert percentile_interval(np.arange(41.0), level=0.5) == pytest.approx((10, 30))
    assert percentile_interval(np.array([np.nan, 1.0, np.nan])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan])) is None


def test_intervals_hold_the_score() -> None:
    tallies = tally(random_videos(1, tuple("abcdefgh")), C)
    scores = resampled_scores(tallies, np.ones((1, 8)))
    for name, interval in bootstrap_intervals(tallies, num_samples=500, seed=0).items():
        assert interval is not None
        assert interval[0] <= scores[name][0] <= interval[1], name
        assert 0 <= interval[0] < interval[1] <= 1, name


@pytest.mark.parametrize("patients", [("a",), ("a", "a", "a")])
def test_one_patient_has_no_interval(patients: tuple[str, ...]) -> None:
    tallies = tally(random_videos(0, patients), C)
    assert set(bootstrap_intervals(tallies, num_samples=100, seed=0).values()) == {None}
    for row in bootstrap_phase_intervals(tallies, num_samples=100, seed=0):
        assert row == {"precision": None, "recall": None, "jaccard": None, "f1": None}
    differences = bootstrap_differences(tallies, tallies, num_samples=100, seed=0)
    assert all(item.interval is None and item.estimate == 0 for item in differences.values())


def test_no_samples_no_interval() -> None:
    tallies = tally(random_videos(0, PATIENTS), C)
    assert set(bootstrap_intervals(tallies, num_samples=0, seed=0).values()) == {None}


def test_an_absent_phase_has_no_interval() -> None:
    tallies = tally([video("a", "a", [0, 1], [0, 0]), video("b", "b", [0], [0])], 3)
    rows = bootstrap_phase_intervals(tallies, num_samples=200, seed=0)
    assert set(rows[2].values()) == {None}
    # Phase 1 is never predicted and occurs in one patient only: its recall is 0 wherever it is defined.
    assert rows[1] == {"precision": None, "recall": (0.0, 0.0), "jaccard": (0.0, 0.0), "f1": (0.0, 0.0)}


def test_equal_predictions_do_not_differ() -> None:
    tallies = tally(random_videos(2, PATIENTS), C)
    for item in bootstrap_differences(tallies, tallies, num_samples=200, seed=0).values():
        assert (item.estimate, item.interval) == (0.0, (0.0, 0.0))


def test_paired_differences_cancel_what_is_hard_for_both() -> None:
    # Ten patients, ten frames each. The first prediction has 0..9 of them right, the second one more
    # everywhere: the accuracies themselves vary widely, their difference is 1/10 in every resample.
    def made(extra: int) -> VideoTallies:
        return tally(
            [video(str(k), str(k), [0] * 10, [0] * (k + extra) + [1] * (10 - k - extra)) for k in range(10)],
            2,
        )

    first, second = made(0), made(1)
    item = bootstrap_differences(first, second, num_samples=500, seed=0)["accuracy"]
    assert item.estimate == pytest.approx(0.1)
    assert item.interval == pytest.approx((0.1, 0.1))
    low, high = bootstrap_intervals(first, num_samples=500, seed=0)["accuracy"] or (0, 0)
    assert high - low > 0.2


def test_differences_are_second_minus_first_on_the_same_resamples() -> None:
    first, second = tally(random_videos(4, PATIENTS, 0.4), C), tally(random_videos(4, PATIENTS, 0.9), C)
    assert accuracies(second.counts).mean() > accuracies(first.counts).mean()
    weights = resampling_weights(PATIENTS, 300, 5)
    found = bootstrap_differences(first, second, num_samples=300, seed=5)
    for name, item in found.items():
        samples = resampled_scores(second, weights)[name] - resampled_scores(first, weights)[name]
        assert item.interval == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))
    assert found["accuracy"].estimate > 0


def test_different_frames_are_refused() -> None:
    first = tally([video("a", "a", [0, 1], [0, 0])], 2)
    with pytest.raises(AssertionError, match="different labels"):
        bootstrap_differences(first, tally([video("a", "a", [0, 0], [0, 0])], 2), num_samples=9, seed=0)


def test_bad_counts_are_told() -> None:
    with pytest.raises(SpatialfeatError, match="number of bootstrap samples is -1; give 0 or more"):
        resampling_weights(PATIENTS, -1, 0)
    with pytest.raises(SpatialfeatError, match="bootstrap seed is -2"):
        resampling_weights(PATIENTS, 1, -2)
