"""Options of the training loss against plain computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from spatialfeat.config import FinetuneConfig
from spatialfeat.training.trainer import balanced_weights, training_loss

LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 3, 3], dtype=np.int64)


def plain_loss(logits: torch.Tensor, labels: list[int], weights: list[float], smoothing: float) -> float:
    """Cross-entropy written out: smoothed targets, each phase's share weighted, divided by the frames' weights."""
    total, weight_sum = 0.0, 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for phase, value in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing) * (phase == label)
            total += target * weights[phase] * (log_sum - value)
        weight_sum += weights[label]
    return total / weight_sum


def test_balanced_weights_are_scikit_learns_and_absent_phases_get_none() -> None:
    weights = balanced_weights(LABELS, 5)
    assert weights.dtype == torch.float32
    expected = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected)
    assert weights[[2, 4]].tolist() == [0, 0]
    assert weights[torch.from_numpy(LABELS)].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_what_the_options_say(class_weights: str, smoothing: float) -> None:
    config = FinetuneConfig(num_classes=4, class_weights=class_weights, label_smoothing=smoothing)
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), [0, 1, 1, 3, 0]
    weights = [1.0] * 4 if class_weights == "none" else [10 / 18, 10 / 6, 0.0, 10 / 6]
    loss = training_loss(config, LABELS)(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(plain_loss(logits, labels, weights, smoothing), rel=1e-5)


def test_the_specified_recipe_has_none_of_these_options() -> None:
    config = FinetuneConfig()
    assert (config.class_weights, config.label_smoothing, config.clip_grad_norm) == ("none", 0, None)
    criterion = training_loss(config, LABELS)
    assert criterion.weight is None
    assert criterion.label_smoothing == 0
    assert training_loss(replace(config, class_weights="balanced"), LABELS).weight is not None
