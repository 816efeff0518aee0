from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evaluation_data import small_video
from sklearn.metrics import f1_score, jaccard_score, precision_recall_fscore_support

from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.relaxed import CHOLEC80, transition_graph
from spatialfeat.scores.summary import ScoreOptions, score

NAMES = ("start", "middle", "end")
AVERAGES = {
    "video_macro": {"mean": None, "std_over_videos": None},
    "cell_mean": None,
    "phase_macro": {"mean": None, "std_over_phases": None},
}
STRATEGY = dict.fromkeys(("precision", "recall", "jaccard", "f1"), AVERAGES)
POOLED = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "macro_jaccard")
SEGMENTAL = ("edit", "f1_10", "f1_25", "f1_50")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# The two videos of test_metrics.py, by hand there, with an unlabelled frame in the first, and a third video
# without any label.
VIDEOS = [
    small_video("1_1", [0, 0, -100, 1, 1], [0, 0, 2, 1, 2]),
    small_video("2_1", [0, 0, 0, 2], [0, 0, 2, 2]),
    small_video("3_1", [-100], [0]),
]
OPTIONS = ScoreOptions(relaxed=transition_graph(3, [(0, 1), (1, 2)]), sampling_fps=0.1, num_samples=50, seed=3)


def summarize(videos: Sequence[EvaluatedVideo], options: ScoreOptions | None = OPTIONS) -> dict[str, Any]:
    return score("x", videos, NAMES, options).metrics


def keys(value: Any) -> Any:
    """The structure of a dictionary, without its numbers."""
    return {name: keys(item) for name, item in value.items()} if isinstance(value, dict) else None


def test_schema_has_exactly_these_keys() -> None:
    summary = summarize(VIDEOS)
    found = keys(summary)
    assert found.pop("relaxed").keys() >= {
        "window_s",
        "sampling_fps",
        "accuracy",
        "precision",
        "recall",
        "jaccard",
    }
    assert found == {
        "schema": None,
        "num_videos": None,
        "num_frames": None,
        "num_phases": None,
        "phase_names": None,
        "pooled": dict.fromkeys(POOLED),
        "occurring": dict.fromkeys(("num_phases", *POOLED[1:])),
        "video_wise": {"accuracy": {"mean": None, "std_over_videos": None}, "A": STRATEGY, "B": STRATEGY},
        "per_phase": None,
        "confusion_matrix": None,
        "segmental": dict.fromkeys(SEGMENTAL),
        "intervals": dict.fromkeys(
            (
                "level",
                "unit",
                "num_patients",
                "samples",
                "seed",
                *POOLED,
                *SEGMENTAL,
                "video_wise_accuracy",
                "per_phase",
            )
        ),
        "grouped_by": None,
    }
    assert summary["schema"] == 1
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_frame_wise_numbers_by_hand() -> None:
    summary = summarize(VIDEOS)
    assert (summary["num_videos"], summary["num_frames"], summary["num_phases"]) == (2, 8, 3)
    assert summary["phase_names"] == list(NAMES)
    assert summary["confusion_matrix"] == [[4, 0, 1], [0, 1, 1], [0, 0, 1]]
    # Pooled: phase 0 TP 4, FN 1; phase 1 TP 1, FN 1; phase 2 TP 1, FP 2.
    assert summary["pooled"] == pytest.approx(
        {
            "accuracy": 6 / 8,
            "macro_precision": (1 + 1 + 1 / 3) / 3,
            "macro_recall": (4 / 5 + 1 / 2 + 1) / 3,
            "macro_jaccard": (4 / 5 + 1 / 2 + 1 / 3) / 3,
            "macro_f1": (8 / 9 + 2 / 3 + 1 / 2) / 3,
        }
    )
    assert summary["per_phase"][2] == {
        "phase": 2,
        "name": "end",
        "support": 1,
        "precision": pytest.approx(1 / 3),
        "recall": 1.0,
        "jaccard": pytest.approx(1 / 3),
        "f1": 0.5,
    }
    video_wise = summary["video_wise"]
    assert video_wise["accuracy"] == {"mean": 0.75, "std_over_videos": 0.0}
    assert video_wise["A"]["f1"]["video_macro"]["mean"] == pytest.approx(29 / 45)
    assert video_wise["A"]["f1"]["video_macro"]["std_over_videos"] == pytest.approx(8 / 45 / math.sqrt(2))
    assert video_wise["A"]["f1"]["cell_mean"] == pytest.approx(47 / 75)
    assert video_wise["A"]["f1"]["phase_macro"]["mean"] == pytest.approx(19 / 30)
    assert video_wise["B"]["f1"]["phase_macro"]["mean"] == pytest.approx(67 / 90)
    # Precision, A: (1, 1, 0) and (1, -, 1/2); B leaves out the 0.
    assert video_wise["A"]["precision"]["cell_mean"] == pytest.approx(3.5 / 5)
    assert video_wise["B"]["precision"]["cell_mean"] == pytest.approx(3.5 / 4)


def test_segmental_numbers_by_hand() -> None:
    # Video 1: runs 0 1 against 0 1 2: edit 1 - 1/3; IoUs 1 and 1/2, the 2 is false.
    # Video 2: runs 0 2 against 0 2: edit 1; IoUs 2/3 and 1/2.
    # Pooled TP 4, FP 1, FN 0 at every overlap: F1 = 8/9. Fractions, not percent.
    assert summarize(VIDEOS)["segmental"] == pytest.approx(
        {"edit": (2 / 3 + 1) / 2, "f1_10": 8 / 9, "f1_25": 8 / 9, "f1_50": 8 / 9}
    )


def test_relaxed_numbers_by_hand() -> None:
    # 10 s at 0.1 frames per second: a window of one frame.
    # Video 1: the last frame predicts 2 at the end of phase 1: forgiven. Video 2: 2 at the end of 0: no
    # transition. Accuracy (1 + 3/4) / 2. Jaccard: video 1 phase 0 2/2, phase 1 2/2, phase 2 hallucinated 1/1
    # (A) or left out (B); video 2 phase 0 2/3, phase 2 1/2. Under B phase_macro = ((1 + 2/3) / 2 + 1 + 1/2) /
    # 3 = 7/9, under A ((1 + 2/3) / 2 + 1 + (1 + 1/2) / 2) / 3 = 31/36.
    relaxed = summarize(VIDEOS)["relaxed"]
    assert (relaxed["window_s"], relaxed["sampling_fps"], relaxed["window_frames"]) == (10.0, 0.1, 1)
    assert relaxed["transitions"] == [[0, 1], [1, 2]]
    assert relaxed["accuracy"] == relaxed["video_wise"]["accuracy"]["mean"] == 7 / 8
    assert relaxed["jaccard"] == pytest.approx(7 / 9)
    assert relaxed["video_wise"]["A"]["jaccard"]["phase_macro"]["mean"] == pytest.approx(31 / 36)
    # Precision, B: phase 0 1 and 1, phase 1 min(1, 2/1), phase 2 1/2. Recall: 1 and 2/3; 1; 1.
    assert relaxed["precision"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert relaxed["recall"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert summarize(VIDEOS, None)["relaxed"] is None


def test_intervals() -> None:
    intervals = summarize(VIDEOS)["intervals"]
    assert {name: intervals[name] for name in ("level", "unit", "num_patients", "samples", "seed")} == {
        "level": 0.95,
        "unit": "patient",
        "num_patients": 2,
        "samples": 50,
        "seed": 3,
    }
    # Both videos have 3 of 4 frames right, whichever are drawn.
    assert intervals["accuracy"] == intervals["video_wise_accuracy"] == [0.75, 0.75]
    assert intervals["edit"] == pytest.approx([2 / 3, 1])
    assert [row["phase"] for row in intervals["per_phase"]] == [0, 1, 2]
    assert intervals["per_phase"][1]["f1"] == pytest.approx([2 / 3, 2 / 3])


def test_the_order_of_videos_does_not_matter() -> None:
    assert json.dumps(summarize(VIDEOS)) == json.dumps(summarize(VIDEOS[::-1]))


def test_a_single_video_of_one_frame() -> None:
    summary = summarize([small_video("1_1", [1], [1])])
    assert summary["video_wise"]["accuracy"] == {"mean": 1.0, "std_over_videos": None}
    assert summary["video_wise"]["A"]["f1"]["phase_macro"] == {"mean": 1.0, "std_over_phases": None}
    assert summary["pooled"]["macro_f1"] == pytest.approx(1 / 3)
    assert summary["per_phase"][0]["f1"] is None
    assert summary["intervals"]["accuracy"] is None
    assert summary["intervals"]["samples"] == 0
    assert summary["intervals"]["per_phase"][1]["recall"] is None
    assert summary["segmental"] == {"edit": 1.0, "f1_10": 1.0, "f1_25": 1.0, "f1_50": 1.0}
    occurring = {"macro_precision": 1.0, "macro_recall": 1.0, "macro_f1": 1.0, "macro_jaccard": 1.0}
    assert summary["occurring"] == {"num_phases": 1, **occurring}
    json.dumps(summary, allow_nan=False)


def test_macro_scores_over_the_phases_that_occur() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 3], [0, 0, 2, 1, 0, 0]
    summary = score("x", [small_video("1_1", labels, predictions)], "abcd").metrics
    # Phase 2 has no frame; phase 3 is never predicted: its precision is undefined, and counts as 0.
    expected = precision_recall_fscore_support(labels, predictions, labels=[0, 1, 3], average="macro", zero_division=0)
    found = summary["occurring"]
    assert [found[name] for name in ("macro_precision", "macro_recall", "macro_f1")] == pytest.approx(expected[:3])
    assert found["macro_jaccard"] == pytest.approx(
        jaccard_score(labels, predictions, labels=[0, 1, 3], average="macro", zero_division=0)
    )
    assert found["num_phases"] == 3


def test_constant_prediction_and_random_videos() -> None:
    rng = np.random.default_rng(0)
    videos = [
        small_video(f"{k}_1", rng.integers(3, size=9).tolist(), [2] * 9 if k % 2 else rng.integers(3, size=9).tolist())
        for k in range(6)
    ]
    summary = summarize(videos)
    labels, predictions = (np.concatenate([getattr(v, name) for v in videos]) for name in ("labels", "predictions"))
    expected = f1_score(labels, predictions, labels=range(3), average="macro", zero_division=0)
    assert summary["pooled"]["macro_f1"] == pytest.approx(expected)
    json.dumps(summary, allow_nan=False)


def test_calibration_is_there_with_probabilities() -> None:
    video = small_video("1_1", [0, 0], [0, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]], dtype=np.float32)
    found = summarize([replace(video, probabilities=probabilities)])["calibration"]
    assert found["expected_calibration_error"] == pytest.approx((0.1 + 0.7) / 2)
    assert (found["num_bins"], found["num_frames"], len(found["bins"])) == (15, 2, 15)
    empty = {"low": 0.0, "high": pytest.approx(1 / 15), "num_frames": 0, "confidence": None, "accuracy": None}
    assert found["bins"][0] == empty
    assert found["bins"][13]["confidence"] == pytest.approx(0.9)
    assert "calibration" not in summarize(VIDEOS)


def test_per_video_rows() -> None:
    rows = score("x", VIDEOS, NAMES).per_video
    assert [(row["video_id"], row["patient_id"], row["num_frames"]) for row in rows] == [
        ("1_1", "1", 4),
        ("2_1", "2", 4),
    ]
    assert rows[0]["accuracy"] == 0.75
    assert (rows[0]["macro_f1_A"], rows[0]["macro_f1_B"]) == pytest.approx((5 / 9, 5 / 6))
    assert (rows[1]["macro_f1_A"], rows[1]["macro_f1_B"]) == pytest.approx((11 / 15, 11 / 15))
    assert (rows[0]["edit"], rows[0]["f1_50"]) == pytest.approx((2 / 3, 4 / 5))
    (lone,) = score("x", [small_video("1_1", [0], [1])], NAMES).per_video
    assert lone["macro_precision_B"] is None
    assert lone["macro_precision_A"] == 0.0


def test_phases_outside_the_range_are_an_error_of_the_caller() -> None:
    for labels, predictions in (([0, 3], [0, 0]), ([0], [3])):
        with pytest.raises(AssertionError, match=r"outside 0\.\.2"):
            summarize([small_video("1_1", labels, predictions)])
    with pytest.raises(AssertionError, match=r"\(7, 3\)"):
        summarize(VIDEOS, ScoreOptions(relaxed=CHOLEC80, sampling_fps=1))
