from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.summary import ScoredVideo, compare

SCORES = {
    "accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "macro_jaccard",
    "video_wise_accuracy",
    "edit",
    "f1_10",
    "f1_25",
    "f1_50",
}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def video(video_id: str, labels: list[int], predictions: list[int]) -> ScoredVideo:
    return ScoredVideo(
        video_id=video_id,
        patient_id=video_id.split("_")[0],
        labels=np.array(labels, dtype=np.int64),
        predictions=np.array(predictions, dtype=np.int64),
    )


# Accuracy 3/4 and 3/4; edit 2/3 (segments 0 1 against 0 1 2) and 1 (0 2 against 0 2). The third has no label.
VIDEOS = [
    video("1_1", [0, 0, -100, 1, 1], [0, 0, 2, 1, 2]),
    video("2_1", [0, 0, 0, 2], [0, 0, 2, 2]),
    video("3_1", [-100], [0]),
]


def test_compare() -> None:
    better = [replace(v, predictions=np.maximum(v.labels, 0)) for v in VIDEOS]
    found = compare(VIDEOS, better[::-1], 3, num_samples=100, seed=1)
    assert (found["level"], found["unit"], found["num_patients"], found["samples"], found["seed"]) == (
        0.95,
        "patient",
        2,
        100,
        1,
    )
    assert found["differences"]["accuracy"] == {"difference": 0.25, "interval": [0.25, 0.25]}
    assert found["differences"]["edit"]["difference"] == pytest.approx(1 / 6)
    assert found["differences"]["edit"]["interval"] == pytest.approx([0, 1 / 3])
    assert set(found["differences"]) == SCORES
    single = compare(VIDEOS[:1], better[:1], 3)
    assert single["samples"] == 0
    assert single["differences"]["accuracy"] == {"difference": 0.25, "interval": None}


def test_compare_refuses_different_frames() -> None:
    with pytest.raises(SpatialfeatError, match="2 videos are in one prediction only \\(2_1, 3_1\\); predict the same"):
        compare(VIDEOS, VIDEOS[:1], 3)
    with pytest.raises(SpatialfeatError, match="video 1_1: occurs twice"):
        compare(VIDEOS[:1], [VIDEOS[0], VIDEOS[0]], 3)
    for change in ({"patient_id": "9"}, {"labels": np.array([0, 0, 0, 1, 1])}):
        with pytest.raises(SpatialfeatError, match="video 1_1: patient or labels differ"):
            compare(VIDEOS[:1], [replace(VIDEOS[0], **change)], 3)
