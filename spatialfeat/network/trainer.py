"""The moving parts of one training: network, loaders, optimizer, schedule. Writes no file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spatialfeat.config import FinetuneConfig
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import EpochSampler, FrameDataset, SharedBatches, make_loader
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.device import random_state, restore_random_state
from spatialfeat.distributed import ProcessGroup
from spatialfeat.network.checkpoint import StateDict, snapshot
from spatialfeat.network.history import EpochRecord
from spatialfeat.network.model import PhaseResNet50, freeze
from spatialfeat.network.training import train_one_epoch, validate
from spatialfeat.network.trainingstep import BatchShare, TrainingStep
from spatialfeat.training.data import StudyData, study_transforms


class Trainer:
    """Runs epochs, and can be brought back to the state it had after any of them.

    `config.precision` is one that the device has, not "auto".
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: StudyData,
        model: PhaseResNet50,
        group: ProcessGroup,
        workers: int,
        cache: FrameCache | None = None,
    ) -> None:
        self._config, self._model, self._group = config, model, group
        self._preprocessing = Preprocessing.for_image_size(config.image_size_px)
        transforms = study_transforms(config)
        self._sampler = EpochSampler(len(data.train), config.seed)
        self._batches = SharedBatches(self._sampler, config.batch_size, rank=group.rank, size=group.size)
        self._train_loader = make_loader(
            FrameDataset.from_table(data.train, transforms.train, cache=cache),
            batch_size=config.batch_size,
            batches=self._batches,
            workers=workers,
            device=group.device,
        )
        self._val_loader = make_loader(
            FrameDataset.from_table(data.val, transforms.evaluation, cache=cache),
            batch_size=group.share(config.batch_size),
            rows=range(group.rank, len(data.val), group.size),
            workers=workers,
            device=group.device,
        )
        criterion = training_loss(config, data.train.labels)
        self._loss_weights = frame_weights(criterion, data.train.labels)
        freeze(model, config.freeze_until)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=config.lr)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="max", factor=config.lr_factor, patience=config.lr_patience
        )
        self._step = TrainingStep(
            model,
            self._optimizer,
            criterion.to(group.device),
            freeze_until=config.freeze_until,
            preprocessing=self._preprocessing,
            precision=config.precision,
            clip_grad_norm=config.clip_grad_norm,
            group=group,
        )

    def run_epoch(self, epoch: int) -> EpochRecord:
        """Train on every frame once, validate, and adapt the learning rate of the next epoch."""
        start = time.monotonic()
        lr = float(self._optimizer.param_groups[0]["lr"])
        self._sampler.epoch = epoch
        title = f"epoch {epoch}/{self._config.epochs}"
        train = train_one_epoch(
            self._step, self._train_loader, shares=self._shares(), group=self._group, title=f"{title} train"
        )
        self._step.require_equal_weights()
        val = validate(
            self._model,
            self._val_loader,
            group=self._group,
            preprocessing=self._preprocessing,
            precision=self._config.precision,
            batch_size=self._group.share(self._config.batch_size),
            title=f"{title} val",
        )
        self._scheduler.step(val.accuracy)
        seconds = round(time.monotonic() - start, 3)
        return EpochRecord(epoch, train.loss, train.accuracy, val.loss, val.accuracy, lr, seconds)

    def weights(self) -> StateDict:
        """A copy of the network's weights on the CPU, which later epochs do not change."""
        return snapshot(self._model)

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch; `load_state_dict` goes on from it. The sampler needs the epoch only."""
        return {
            "model": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "step": self._step.state_dict(),
            "random": random_state(self._group.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._step.load_state_dict(state["step"])
        restore_random_state(state["random"], self._group.device)

    def _shares(self) -> Iterator[BatchShare]:
        """What this process has of each batch of this epoch."""
        for batch in self._batches.whole():
            mine, whole = ([row.row for row in rows] for rows in (self._batches.share(batch), batch))
            yield BatchShare(len(batch), float(self._loss_weights[mine].sum() / self._loss_weights[whole].sum()))


def training_loss(config: FinetuneConfig, labels: NDArray[np.int64]) -> nn.CrossEntropyLoss:
    """The loss that training minimizes: plain cross-entropy, unless options weight the phases or smooth the labels."""
    weights = balanced_weights(labels, config.num_classes) if config.class_weights == "balanced" else None
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing)


def frame_weights(criterion: nn.CrossEntropyLoss, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) float64: what each frame counts in the mean that `criterion` takes of the losses. labels: (N,) int64."""
    if criterion.weight is None:
        return np.ones(len(labels))
    return criterion.weight.numpy().astype(np.float64)[labels]


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Weights by which every phase counts alike, however many frames it has; averaged over the frames they are 1.

    Args:
        labels: (N,) int64, the phases of the training frames.

    Returns:
        (num_classes,) float32: N / (P * n_c) for a phase of n_c frames, P being the number of phases with frames.
        A phase without frames has weight 0: no frame could use it.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return torch.from_numpy(weights)
