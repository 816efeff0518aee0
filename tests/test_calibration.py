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


def curve(probabilities: Any, labels: list[int], **options: int) -> dict[str, Any]:
    return calibration(np.array(probabilities, dtype=np.float64), np.array(labels, dtype=np.int64), **options)


def column(found: dict[str, Any], name: str) -> list[float]:
    return [entry[name] for entry in found["bins"]]


def test_bins_by_hand() -> None:
    # Two phases, 5 bins: (0.4, 0.6] holds 0.55 (right); (0.6, 0.8] holds 0.7 (right) and 0.8 (wrong), 0.8
    # being the bin's upper edge; (0.8, 1] holds 0.9 (right). The last frame is unlabelled.
    probabilities = [[0.55, 0.45], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]]
    found = curve(probabilities, [0, 1, 1, 1, -100], num_bins=5)
    np.testing.assert_allclose(column(found, "low"), [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(column(found, "high"), [0.2, 0.4, 0.6, 0.8, 1])
    assert column(found, "num_frames") == [0, 0, 1, 2, 1]
    np.testing.assert_allclose(column(found, "confidence"), [np.nan, np.nan, 0.55, 0.75, 0.9])
    np.testing.assert_allclose(column(found, "accuracy"), [np.nan, np.nan, 1, 0.5, 1])
    # (1 * 0.45 + 2 * 0.25 + 1 * 0.1) / 4
    assert found["expected_calibration_error"] == pytest.approx(1.05 / 4)
    assert (found["num_bins"], found["num_frames"]) == (5, 4)


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
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 15), st.integers(1, 5))
def test_matches_brute_force(seed: int, num_frames: int, num_bins: int, num_phases: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(scale=3, size=(num_frames, num_phases)))
    labels = rng.integers(num_phases, size=num_frames)
    found = curve(probabilities, labels, num_bins=num_bins)
    error = 0.0
    for number, entry in enumerate(found["bins"]):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = [
            (max(row), float(row.index(max(row)) == label))
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if low < max(row) <= high or (number == num_bins - 1 and max(row) > high)
        ]
        assert entry["num_frames"] == len(inside)
        if inside:
            confidence, accuracy = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            assert (entry["confidence"], entry["accuracy"]) == pytest.approx((confidence, accuracy))
            error += len(inside) / num_frames * abs(accuracy - confidence)
    assert found["expected_calibration_error"] == pytest.approx(error)
