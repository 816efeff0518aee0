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

    A weights file may keep the network under any keys and any common prefix of its names. So a file is read:

    may_lack: endings of names without which it is read all the same.
    preferred: keys and parts of prefixes that are taken where the file holds several such networks, best first.
    projected: keys and parts of prefixes under which the classifier's names mean a projection, which is not read.
    """

    name: str
    build: Callable[[int], PhaseResNet50]
    num_features: int
    layer: str
    children: tuple[str, ...]
    classifier: str
    preprocessing: Callable[[int], Preprocessing]
    may_lack: tuple[str, ...]
    preferred: tuple[str, ...]
    projected: tuple[str, ...]


RESNET50 = Backbone(
    name="resnet50",
    build=PhaseResNet50,
    num_features=NUM_FEATURES,
    layer="avgpool",
    children=CHILDREN,
    classifier="fc.",
    preprocessing=Preprocessing.for_image_size,
    # Files of very old PyTorch versions lack BatchNorm's counters, which nothing reads in this recipe.
    may_lack=("num_batches_tracked",),
    # What each method itself goes on with: MoCo's queries (versions 1, 2 and 3), the teacher of self-distillation and
    # of mean teachers, VISSL's model beside that of its loss, the best epoch of our own training state.
    preferred=("encoder_q", "base_encoder", "teacher", "base_model", "best_weights"),
    projected=("encoder_q",),
)
