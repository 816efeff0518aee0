"""Descriptions of the networks that encode frames: what differs from one to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spatialfeat.config import CHILDREN
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.network.resnet import NUM_FEATURES, PhaseResNet50


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One architecture, as weights files and feature files name it.

    build: a network of so many classes, with fresh weights from torch's global random number generator.
    num_features, layer: D, and where in the network the features are taken.
    children: what --freeze-until counts, in order. classifier: how the names of the classifier's parameters begin.
    preprocessing: what is done to frames for an input of so many pixels, unless a weights file says otherwise.
    """

    name: str
    build: Callable[[int], PhaseResNet50]
    num_features: int
    layer: str
    children: tuple[str, ...]
    classifier: str
    preprocessing: Callable[[int], Preprocessing]


RESNET50 = Backbone(
    name="resnet50",
    build=PhaseResNet50,
    num_features=NUM_FEATURES,
    layer="avgpool",
    children=CHILDREN,
    classifier="fc.",
    preprocessing=Preprocessing.for_image_size,
)
