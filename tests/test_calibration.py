from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialfeat.scores.metrics import calibration, softmax


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(probabilities: Any, labels: list[int]) -> dict[str, Any]:
    return calibration(np.array(probabilities, dtype=np.float64), np.array(labels, dtype=np.int64))


def column(found: dict[str, Any], name: str) -> list[float]:
    return [entry[name] for entry in found["bins"]]


def test_bins_by_hand() -> None:
    # Two phases, 15 bins: (8/15, 9/15] holds 0.55 (right); (11/15, 12/15] holds 0.75 (right) and 0.8 (wrong), 0.8
    # being the bin's upper edge; (13/15, 14/15] holds 0.9 (right). The last frame is unlabelled.
    probabilities = [[0.55, 0.45], [0.25, 0.75], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]]
    found = curve(probabilities, [0, 1, 1, 1, -100])
    np.testing.assert_allclose(column(found, "low"), np.arange(15) / 15)
    np.testing.assert_allclose(column(found, "high"), np.arange(1, 16) / 15)
    assert column(found, "num_frames") == [0] * 8 + [1, 0, 0, 2, 0, 1, 0]
    nan = np.nan
    np.testing.assert_allclose(column(found, "confidence"), [nan] * 8 + [0.55, nan, nan, 0.775, nan, 0.9, nan])
    np.testing.assert_allclose(column(found, "accuracy"), [nan] * 8 + [1, nan, nan, 0.5, nan, 1, nan])
    # (1 * 0.45 + 2 * 0.275 + 1 * 0.1) / 4
    assert found["expected_calibration_error"] == pytest.approx(1.1 / 4)
    assert (found["num_bins"], found["num_frames"]) == (15, 4)


def test_confident_and_right_is_calibrated_confident_and_wrong_is_not() -> None:
    certain = np.eye(3)
    assert curve(certain, [0, 1, 2])["expected_calibration_error"] == 0
    assert curve(certain, [1, 2, 0])["expected_calibration_error"] == 1
    assert column(curve(certain, [0, 1, 2]), "num_frames") == [0] * 14 + [3]


def test_softmax_by_hand_and_without_overflow() -> None:
    np.testing.assert_allclose(softmax([[0.0, math.log(3)]]), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax([[1000.0, 1000.0], [-1000.0, 1000.0]]), [[0.5, 0.5], [0, 1]])
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1)


def test_no_labelled_frame() -> None:
    found = curve([[0.5, 0.5]], [-100])
    assert math.isnan(found["expected_calibration_error"])
    assert found["num_frames"] == 0
    assert np.isnan(column(found, "accuracy")).all()


def test_rows_of_unlabelled_frames_do_not_matter() -> None:
    assert curve([[np.nan, 7.0], [0.0, 1.0]], [-100, 1])["expected_calibration_error"] == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
def test_matches_brute_force(seed: int, num_frames: int, num_phases: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(scale=3, size=(num_frames, num_phases)))
    labels = rng.integers(num_phases, size=num_frames)
    found = curve(probabilities, labels)
    error = 0.0
    for number, entry in enumerate(found["bins"]):
        low, high = number / 15, (number + 1) / 15
        inside = [
            (max(row), float(row.index(max(row)) == label))
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if low < max(row) <= high or (number == 14 and max(row) > high)
        ]
        assert entry["num_frames"] == len(inside)
        if inside:
            confidence, accuracy = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            assert (entry["confidence"], entry["accuracy"]) == pytest.approx((confidence, accuracy))
            error += len(inside) / num_frames * abs(accuracy - confidence)
    assert found["expected_calibration_error"] == pytest.approx(error)
