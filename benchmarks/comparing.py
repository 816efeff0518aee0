"""Are the results of both ways the same? Features frame by frame, learning curves epoch by epoch."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spatialfeat import read_features

ALLOWED_RELATIVE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""Relative norm of the difference to float32 features: of the worst frame in fp32, of the mean frame below.

Rounding to 8 bits is random: with random weights, the worst frame of hundreds has a quarter more of it than the mean.
"""
ALLOWED_COSINE = 0.9999


class FeatureDifference(NamedTuple):
    """How far feature files are from the plain features, over all frames.

    max_relative: largest |b - a| / |a| of a frame; mean_relative: its mean; min_cosine: of a frame.
    """

    frames: int
    max_relative: float
    mean_relative: float
    min_cosine: float

    def allowed(self, precision: str) -> bool:
        """Whether the features may be called the same; the cosine is always the worst frame's."""
        relative = self.max_relative if precision == "fp32" else self.mean_relative
        return relative <= ALLOWED_RELATIVE[precision] and self.min_cosine > ALLOWED_COSINE


def compare_features(plain_dir: Path, feature_dir: Path) -> FeatureDifference:
    """Hold every frame of the feature files in `feature_dir` against `plain_dir/{id}.npy`.

    Raises:
        ValueError: the two hold different frames.
    """
    relative: list[float] = []
    cosine: list[float] = []
    ids: list[str] = []
    for video in read_features(feature_dir):
        ids += list(video.frame_ids)
        for frame_id, feature in zip(video.frame_ids, video.features(axes="time,channel"), strict=True):
            plain = np.load(plain_dir / f"{frame_id}.npy").astype(np.float64)
            norm = np.linalg.norm(plain)
            relative.append(float(np.linalg.norm(feature - plain) / norm))
            cosine.append(float(feature @ plain / (np.linalg.norm(feature.astype(np.float64)) * norm)))
    if sorted(ids) != sorted(path.stem for path in plain_dir.glob("*.npy")):
        raise ValueError(f"{feature_dir} holds {len(ids)} frames, and not those of {plain_dir}")
    return FeatureDifference(len(ids), max(relative), statistics.mean(relative), min(cosine))


class Epoch(NamedTuple):
    """One line of a history.csv, either way's."""

    train_loss: float
    val_loss: float
    val_acc: float
    seconds: float


def read_history(path: Path) -> list[Epoch]:
    """The epochs of a history.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Epoch(*(float(row[name]) for name in Epoch._fields)) for row in csv.DictReader(file)]


class CurveGap(NamedTuple):
    """One quantity in one epoch: the means of both ways over seeds, and how far the plain way's seeds lie apart."""

    plain: float
    fast: float
    plain_range: float

    @property
    def within_noise(self) -> bool:
        """The ways differ by no more than the plain way differs from itself when only its seed changes."""
        return abs(self.fast - self.plain) <= self.plain_range


def compare_curves(plain: Sequence[Sequence[Epoch]], fast: Sequence[Sequence[Epoch]], name: str) -> list[CurveGap]:
    """Compare the quantity `name` epoch by epoch; each history is one seed's."""
    gaps = []
    for plain_epochs, fast_epochs in zip(zip(*plain, strict=True), zip(*fast, strict=True), strict=True):
        of_plain = [float(getattr(epoch, name)) for epoch in plain_epochs]
        of_fast = [float(getattr(epoch, name)) for epoch in fast_epochs]
        spread = max(of_plain) - min(of_plain)
        gaps.append(CurveGap(statistics.mean(of_plain), statistics.mean(of_fast), spread))
    return gaps
