"""The table of overall scores: resamples of patients, intervals, and what a new score takes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import compared, evaluation_of, small_video

from spatialfeat.reports.report import write_report
from spatialfeat.reports.tables import comparison_table, score_tables
from spatialfeat.scores.metrics import MEASURES, FloatArray, confusion_counts, count_scores, ratio
from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.segmental import edit_score, f1_of_matches, match_runs
from spatialfeat.scores.summary import Evaluation, ScoreOptions, compare, score
from spatialfeat.scores.table import POOLED, SCORES, Resamples, Score, Tallies, interval, pooled_phase_scores, tally

C = 3
PATIENTS = ("b", "a", "c", "a", "d")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_videos(seed: int, patients: Sequence[str], share_right: float = 0.6) -> list[EvaluatedVideo]:
    """Labels depend on the seed alone, so that two predictions of the same frames can be made."""
    videos = []
    for number, patient in enumerate(patients):
        rng = np.random.default_rng((seed, number))
        labels = np.repeat(rng.integers(C, size=4), rng.integers(1, 8, size=4))
        wrong = rng.random(len(labels)) >= share_right
        predictions = np.where(wrong, rng.integers(C, size=len(labels)), labels)
        videos.append(small_video(f"{patient}_{number}", labels, predictions, patient))
    return videos


def resampled(tallies: Tallies, num_samples: int, seed: int) -> dict[str, FloatArray]:
    """Every overall score and its resamples, (1 + S,) each."""
    resamples = Resamples.draw(tallies.patient_ids, num_samples, seed)
    return {key: found.compute(tallies, resamples) for key, found in SCORES.items()}


def scored(videos: Sequence[EvaluatedVideo], num_samples: int, seed: int = 0) -> Evaluation:
    num_phases = 1 + max(int(video.labels.max()) for video in videos)
    names = "abcdefg"[: max(C, num_phases)]
    return score("x", videos, names, ScoreOptions(num_samples=num_samples, seed=seed))


def test_two_patients_by_hand() -> None:
    # One patient all right, one all wrong, two frames each. The accuracy of a resample is 0, 1/2 or 1 with
    # probability 1/4, 1/2, 1/4: the middle 95 % reach from 0 to 1.
    tallies = tally([small_video("a", [0, 0], [0, 0]), small_video("b", [1, 1], [0, 0])], 2)
    accuracy = resampled(tallies, 4000, 0)["accuracy"]
    assert accuracy[0] == 0.5
    shares = {value: count / 4000 for value, count in Counter(accuracy[1:].tolist()).items()}
    assert shares == {
        0.0: pytest.approx(0.25, abs=0.03),
        0.5: pytest.approx(0.5, abs=0.03),
        1.0: pytest.approx(0.25, abs=0.03),
    }
    assert interval(accuracy[1:]) == [0.0, 1.0]


def test_whole_patients_are_drawn() -> None:
    weights = Resamples.draw(PATIENTS, 500, 3).weights
    assert weights.shape == (500, 5)
    np.testing.assert_array_equal(weights[:, 1], weights[:, 3])
    # Four patients are drawn each time; patient a is counted once though it has two videos.
    np.testing.assert_array_equal(weights[:, [0, 1, 2, 4]].sum(axis=1), 4)
    assert weights.mean(axis=0) == pytest.approx([1] * 5, abs=0.15)


def test_drawing_is_fixed_by_the_seed_and_the_patient_not_by_order() -> None:
    weights = Resamples.draw(PATIENTS, 50, 7).weights
    np.testing.assert_array_equal(weights, Resamples.draw(PATIENTS, 50, 7).weights)
    assert not np.array_equal(weights, Resamples.draw(PATIENTS, 50, 8).weights)
    order = [4, 2, 0, 3, 1]
    moved = Resamples.draw([PATIENTS[i] for i in order], 50, 7).weights
    np.testing.assert_array_equal(moved, weights[:, order])


@pytest.mark.parametrize("seed", range(5))
def test_resampled_scores_match_repeating_the_videos(seed: int) -> None:
    videos = random_videos(seed, PATIENTS)
    tallies = tally(videos, C)
    resamples = Resamples.draw(tallies.patient_ids, 20, seed)
    found, phases = resampled(tallies, 20, seed), pooled_phase_scores(tallies, resamples)
    for row, times in enumerate([np.ones(len(videos)), *resamples.weights]):  # First, the scores themselves.
        drawn = [video for video, count in zip(videos, times.astype(int), strict=True) for _ in range(count)]
        labels = np.concatenate([video.labels for video in drawn])
        predictions = np.concatenate([video.predictions for video in drawn])
        per_phase = count_scores(confusion_counts(labels, predictions, C))
        f1 = f1_of_matches(sum(match_runs(video.labels, video.predictions) for video in drawn))
        expected = {f"macro_{name}": np.nan_to_num(per_phase[name]).mean() for name in MEASURES} | {
            "accuracy": np.mean(labels == predictions),
            "video_wise_accuracy": np.mean([np.mean(video.labels == video.predictions) for video in drawn]),
            "edit": np.mean([edit_score(video.labels, video.predictions) for video in drawn]),
            "f1_10": f1[0],
            "f1_25": f1[1],
            "f1_50": f1[2],
        }
        assert {name: column[row] for name, column in found.items()} == pytest.approx(expected)
        for name in MEASURES:
            np.testing.assert_allclose(phases[name][row], per_phase[name])


def test_intervals_are_percentiles() -> None:
    # 0, 1, ..., 40: 2.5 % of the way is 1, 97.5 % is 39.
    assert interval(np.arange(41.0)) == pytest.approx([1, 39])
    assert interval(np.array([np.nan, 1.0, np.nan])) == [1.0, 1.0]
    assert interval(np.array([np.nan])) is None


def test_intervals_hold_the_score() -> None:
    metrics = scored(random_videos(1, tuple("abcdefgh")), 500).metrics
    for key, found in SCORES.items():
        low, high = metrics["intervals"][key]
        value = found.value_in(metrics)
        assert value is not None
        assert 0 <= low <= value <= high <= 1, key
        assert low < high, key


@pytest.mark.parametrize("patients", [("a",), ("a", "a", "a")])
def test_one_patient_has_no_interval(patients: tuple[str, ...]) -> None:
    evaluation = scored(random_videos(0, patients), 100)
    intervals = evaluation.metrics["intervals"]
    assert {intervals[key] for key in SCORES} == {None}
    for row in intervals["per_phase"]:
        assert {row[name] for name in MEASURES} == {None}
    differences = compare(evaluation, evaluation, num_samples=100, seed=0)["differences"]
    assert all(found == {"difference": 0, "interval": None} for found in differences.values())


def test_no_samples_no_interval() -> None:
    intervals = scored(random_videos(0, PATIENTS), 0).metrics["intervals"]
    assert {intervals[key] for key in SCORES} == {None}


def test_an_absent_phase_has_no_interval() -> None:
    rows = scored([small_video("a", [0, 1], [0, 0]), small_video("b", [0], [0])], 200).metrics["intervals"]["per_phase"]
    assert rows[2] == {"phase": 2, "precision": None, "recall": None, "jaccard": None, "f1": None}
    # Phase 1 is never predicted and occurs in one patient only: its recall is 0 wherever it is defined.
    zero = [0.0, 0.0]
    assert rows[1] == {"phase": 1, "precision": None, "recall": zero, "jaccard": zero, "f1": zero}


def test_equal_predictions_do_not_differ() -> None:
    evaluation = scored(random_videos(2, PATIENTS), 0)
    for found in compare(evaluation, evaluation, num_samples=200, seed=0)["differences"].values():
        assert found == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_paired_differences_cancel_what_is_hard_for_both() -> None:
    # Ten patients, ten frames each. The first prediction has 0..9 of them right, the second one more
    # everywhere: the accuracies themselves vary widely, their difference is 1/10 in every resample.
    def made(extra: int) -> Evaluation:
        right = [k + extra for k in range(10)]
        return scored([small_video(str(k), [0] * 10, [0] * n + [1] * (10 - n)) for k, n in enumerate(right)], 500)

    first, second = made(0), made(1)
    found = compare(first, second, num_samples=500, seed=0)["differences"]["accuracy"]
    assert found["difference"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx([0.1, 0.1])
    low, high = first.metrics["intervals"]["accuracy"]
    assert high - low > 0.2


def test_differences_are_second_minus_first_on_the_same_resamples() -> None:
    first, second = (scored(random_videos(4, PATIENTS, share), 0) for share in (0.4, 0.9))
    found = compare(first, second, num_samples=300, seed=5)
    facts = {"level": 0.95, "unit": "patient", "num_patients": 4, "samples": 300, "seed": 5}
    assert {name: found[name] for name in facts} == facts
    before, after = (resampled(evaluation.tallies, 300, 5) for evaluation in (first, second))
    assert set(found["differences"]) == set(SCORES)
    for key, entry in found["differences"].items():
        samples = after[key] - before[key]
        assert entry["difference"] == samples[0]
        assert entry["interval"] == pytest.approx(list(np.percentile(samples[1:], [2.5, 97.5])))
    assert found["differences"]["accuracy"]["difference"] > 0


def test_other_frames_are_not_compared() -> None:
    first = scored([small_video("a", [0, 1], [0, 0])], 0)
    with pytest.raises(AssertionError, match="different labels"):
        compare(first, scored([small_video("a", [0, 0], [0, 0])], 0), num_samples=9, seed=0)
    with pytest.raises(AssertionError, match="different videos"):
        compare(first, scored([small_video("b", [0, 1], [0, 0])], 0), num_samples=9, seed=0)


def share_of_phase_0(tallies: Tallies, resamples: Resamples) -> FloatArray:
    """A score that nobody needs: how many frames are predicted as phase 0."""
    return ratio(resamples.total(tallies.predicted[:, 0]), resamples.total(tallies.num_frames))


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("bootstrapped", [True, False])
def test_a_new_score_is_one_function_and_one_line(
    bootstrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Score("zero", "pooled.zero", "zeros", "Share of phase 0", POOLED, share_of_phase_0, bootstrapped)
    monkeypatch.setitem(SCORES, line.key, line)
    truth = {"1_1": [0, 1, 1, 1], "2_1": [0, 0, 1, 1]}
    first, second = (
        evaluation_of(name, [small_video(video, labels, predicted) for video, labels in truth.items()], "ab")
        for name, predicted in (("resnet", [0, 0, 0, 1]), ("tcn", [0, 1, 1, 1]))
    )
    metrics = first.metrics
    assert metrics["pooled"]["zero"] == 0.75
    assert metrics["intervals"].get("zero") == ([0.75, 0.75] if bootstrapped else None)
    assert ("zero" in metrics["intervals"]) == bootstrapped
    (comparison,) = compared([first, second])
    assert comparison["differences"]["zero"] == {"difference": -0.5, "interval": [-0.5, -0.5] if bootstrapped else None}
    own, differing = ("0.7500 to 0.7500", "-0.5000 to -0.5000") if bootstrapped else ("-", "-")
    lines = [" ".join(line.split()) for line in score_tables(first).splitlines()]
    assert f"zeros all frames together 0.7500 {own}" in lines
    lines = [" ".join(line.split()) for line in comparison_table(comparison, [first, second]).splitlines()]
    assert f"zeros all frames together 0.7500 0.2500 -0.5000 {differing}" in lines
    write_report(tmp_path, [first, second], [comparison], fps=1.0, title="Report", facts={})
    page = (tmp_path / "report.html").read_text()
    values = ["0.7500 [0.7500, 0.7500]", "0.2500 [0.2500, 0.2500]"] if bootstrapped else ["0.7500", "0.2500"]
    cells = "".join(f"<td>{cell}</td>" for cell in values)
    assert f'<th scope="row">Share of phase 0</th>{cells}' in page.replace("\n", "")
    assert '<th scope="row">Share of phase 0</th><td>0.7500</td><td>0.2500</td><td>-0.5000</td>' in page.replace(
        "\n", ""
    )
