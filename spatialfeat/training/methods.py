"""`methods.md`: a study in the words of a Methods section, from the options, data and versions that were used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from spatialfeat.config import CHILDREN, IMAGENET, FinetuneConfig
from spatialfeat.console import count_text
from spatialfeat.data.augmentation import DEGREES, JITTER, RATIO, SCALE
from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.data.patients import shared_patients
from spatialfeat.data.transforms import IMAGENET_MEAN, IMAGENET_STD, SQUASH
from spatialfeat.files import write_atomically
from spatialfeat.network.backbone import RESNET50, find_backbone
from spatialfeat.network.weights import pretrained_text
from spatialfeat.training.data import StudyData
from spatialfeat.training.history import EpochRecord, best_epoch, stopped_early

METHODS_NAME = "methods.md"
SPLIT_PURPOSES = {"train": "training", "val": "validation", "test": "test"}


def write_methods(
    config: FinetuneConfig, data: StudyData, history: Sequence[EpochRecord], environment: Mapping[str, str]
) -> None:
    """Write methods.md. environment: the device and versions."""
    parts = [recipe(config), _data(data), _outcome(config, history), _software(config, environment)]
    text = "# Methods\n\n" + "\n\n".join(parts) + "\n"
    write_atomically(config.out_dir / METHODS_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def recipe(config: FinetuneConfig) -> str:
    """What is trained and how, by the options alone: network, augmentation, optimization, selection."""
    return " ".join([_network(config), _augmentation(config), _optimization(config)])


def _network(config: FinetuneConfig) -> str:
    backbone = find_backbone(config.backbone)
    if config.weights == IMAGENET:
        start = pretrained_text(backbone)
    elif config.weights == "random":
        start = "with random initial weights"
    else:
        start = f"initialized with the weights {Path(config.weights).name}"
    network = "a ResNet-50 (He et al., 2016)" if backbone is RESNET50 else f"the encoder {backbone.title}"
    text = f"We trained {network}, {start}, to assign each single frame to one of {config.num_classes} phases."
    if config.weights in (IMAGENET, "random") or config.reset_classifier:
        text += f" Its last layer was replaced by a linear classifier with {config.num_classes} outputs."
    frozen = backbone.stages[: config.freeze_until]
    if not frozen:
        return f"{text} All layers were trained."
    kept = ", at their random weights" if config.weights == "random" else ""
    named = frozen[0] if len(frozen) == 1 else f"{frozen[0]} to {frozen[-1]}"
    is_resnet = backbone.stages == CHILDREN
    parts, norms = ("children", "their") if is_resnet else ("stages", "any")
    return (
        f"{text} The first {config.freeze_until} of its {len(backbone.stages)} {parts} ({named}) were frozen{kept}, "
        f"with the statistics of {norms} batch normalization{'' if is_resnet else ' in them'}."
    )


def _augmentation(config: FinetuneConfig) -> str:
    side, preprocessing = config.image_size_px, find_backbone(config.backbone).preprocessing(config.image_size_px)
    resized = f"{preprocessing.resize_px} pixels on the shorter side"
    if preprocessing.resize == SQUASH:
        resized = (
            f"{preprocessing.resize_px} x {preprocessing.width_px or preprocessing.resize_px} pixels (height x width)"
        )
    normalized = "the mean and standard deviation of ImageNet"
    if (preprocessing.mean, preprocessing.std) != (IMAGENET_MEAN, IMAGENET_STD):
        normalized = (
            f"the mean {preprocessing.mean} and the standard deviation {preprocessing.std} of red, green and blue"
        )
    smallest, largest = (100 * share for share in SCALE)
    narrowest, widest = (Fraction(ratio).limit_denominator(100) for ratio in RATIO)
    shrunk = config.training_frames_px
    first = "" if shrunk is None else f"shrunk to at most {shrunk} pixels on the shorter side, then "
    return (
        f"Training frames were {first}augmented by a random crop of {smallest:g} to {largest:g} % of their area "
        f"(aspect ratio {narrowest} to {widest}) resized to {side} x {side} pixels, a horizontal flip with probability "
        f"0.5, a rotation by up to {DEGREES[1]:g} degrees, and random changes of brightness, contrast and saturation "
        f"by up to {100 * (JITTER[1] - 1):.0f} %. Validation and test frames were resized to {resized} and cropped to "
        f"the central {side} x {side}. All were normalized with {normalized}."
    )


def _optimization(config: FinetuneConfig) -> str:
    loss = "cross-entropy"
    if config.class_weights == "balanced":
        loss += ", weighted inversely to the number of training frames of each phase,"
    if config.label_smoothing:
        loss += f" with label smoothing of {config.label_smoothing:g}"
    clipping = (
        "" if config.clip_grad_norm is None else f"; gradients were clipped to a norm of {config.clip_grad_norm:g}"
    )
    return (
        f"We minimized the {loss} with Adam (beta 0.9 and 0.999, no weight decay; initial learning rate {config.lr:g}) "
        f"in batches of {config.batch_size} for at most {count_text(config.epochs, 'epoch')}{clipping}. The learning "
        f"rate was to be multiplied by {config.lr_factor:g} after more than {count_text(config.lr_patience, 'epoch')} "
        f"without a better validation accuracy, and training to stop after {config.patience} such epochs. The weights "
        "of the epoch with the best validation accuracy were kept, the earliest of equal ones."
    )


def _data(data: StudyData) -> str:
    counts = [f"{_counted(table)} for {SPLIT_PURPOSES[table.split]}" for table in data.tables]
    text = f"The data were {', '.join(counts[:-1])} and {counts[-1]}; frames without a phase were not counted."
    if data.test is not None:
        text += " No choice was made by the test frames."
    shared = shared_patients(data.tables)
    if shared:
        verb = "is" if len(shared) == 1 else "are"
        text += f" {count_text(len(shared), 'patient')} {verb} in more than one of these sets: scores are too good."
    return text


def _counted(table: FrameTable) -> str:
    videos, patients = (len(np.unique(names)) for names in (table.videos, table.patients))
    frames = int((table.labels != UNLABELLED).sum())
    return f"{count_text(frames, 'frame')} of {count_text(videos, 'video')} ({count_text(patients, 'patient')})"


def _outcome(config: FinetuneConfig, history: Sequence[EpochRecord]) -> str:
    best = history[best_epoch(history) - 1]
    how = "was stopped" if stopped_early(history, config.patience) else "ended"
    return (
        f"Training {how} after {count_text(len(history), 'epoch')}; the weights kept are those of epoch {best.epoch}, "
        f"with a validation accuracy of {best.val_acc:.4f}."
    )


def _software(config: FinetuneConfig, environment: Mapping[str, str]) -> str:
    decoded = " JPEG frames were decoded on the GPU (nvJPEG)." if config.jpeg_on_device else ""
    return (
        f"We used spatialfeat {environment['spatialfeat']} with PyTorch {environment['torch']} and torchvision "
        f"{environment['torchvision']} (Python {environment['python']}) on {environment['device']}, in "
        f"{config.precision} arithmetic, with seed {config.seed}.{decoded}"
    )
