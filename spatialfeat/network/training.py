"""One epoch of fine-tuning, one validation, and the rule that says when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from spatialfeat.data.dataset import FrameBatch, frames_of, refuse_failures
from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.history import EpochRecord
from spatialfeat.network.inference import run_inference
from spatialfeat.network.model import PhaseResNet50, set_training_mode
from spatialfeat.progress import frame_bar


@dataclass
class RunningScore:
    """Loss and accuracy averaged over frames, whatever the batch sizes."""

    loss_sum: float = 0.0
    correct: int = 0
    frames: int = 0

    def add(self, logits: torch.Tensor, labels: torch.Tensor, mean_loss: float) -> None:
        """logits (B, C) float32, labels (B,) int64, the batch's mean cross-entropy."""
        self.loss_sum += mean_loss * len(labels)
        self.correct += int((logits.argmax(dim=1) == labels).sum())
        self.frames += len(labels)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.frames

    @property
    def accuracy(self) -> float:
        return self.correct / self.frames


@dataclass
class EarlyStopping:
    """Keeps the best validation accuracy and counts the epochs since. A tie is not better: the earlier epoch stays."""

    patience: int
    best_accuracy: float = -math.inf
    best_epoch: int = 0
    epochs_since_best: int = 0

    @classmethod
    def after(cls, history: Sequence[EpochRecord], patience: int) -> EarlyStopping:
        """As it stands after these epochs."""
        stopping = cls(patience)
        for record in history:
            stopping.update(record.epoch, record.val_acc)
        return stopping

    def update(self, epoch: int, accuracy: float) -> bool:
        """True if this epoch is the best so far."""
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch, self.epochs_since_best = accuracy, epoch, 0
            return True
        self.epochs_since_best += 1
        return False

    @property
    def should_stop(self) -> bool:
        return self.epochs_since_best >= self.patience


def train_one_epoch(
    model: PhaseResNet50,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    *,
    clip_grad_norm: float | None = None,
    device: torch.device,
    preprocessing: Preprocessing,
    freeze_until: int,
    title: str,
) -> RunningScore:
    """Update the model once per batch. The score is that of the augmented frames while the weights still move.

    Args:
        criterion: maps logits (B, C) and labels (B,) to the loss, which is also the one of the score.
        clip_grad_norm: scale the gradient down to this norm where it is longer; None never does.
    """
    dataset = frames_of(loader)
    score = RunningScore()
    set_training_mode(model, freeze_until)
    with frame_bar(len(dataset), title) as bar:
        batch: FrameBatch
        for batch in loader:
            refuse_failures(dataset, batch.failures)
            images = normalize(batch.images.to(device, non_blocking=True), preprocessing)
            labels = batch.labels.to(device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            logits = model(images)
            loss = criterion(logits, labels)
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise SpatialfeatError(
                    f"{title}: the training loss became {loss_value}; lower --lr, or start from other --weights"
                )
            loss.backward()
            if clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
            optimizer.step()
            score.add(logits.detach(), labels, loss_value)
            bar.advance(len(labels), loss=f"{score.loss:.4f}", acc=f"{score.accuracy:.4f}")
    return score


def validate(
    model: PhaseResNet50,
    loader: DataLoader[Any],
    *,
    device: torch.device,
    preprocessing: Preprocessing,
    title: str,
) -> RunningScore:
    """Loss and accuracy in evaluation mode, each frame counted once."""
    dataset = frames_of(loader)
    score = RunningScore()
    with frame_bar(len(dataset), title) as bar:
        for outputs in run_inference(model, loader, device, preprocessing):
            refuse_failures(dataset, outputs.failures)
            logits, labels = torch.from_numpy(outputs.logits), torch.from_numpy(outputs.labels)
            score.add(logits, labels, float(nn.functional.cross_entropy(logits, labels)))
            bar.advance(len(labels), loss=f"{score.loss:.4f}", acc=f"{score.accuracy:.4f}")
    if not np.isfinite(score.loss):
        raise SpatialfeatError(f"{title}: the validation loss became {score.loss}; lower --lr")
    return score
