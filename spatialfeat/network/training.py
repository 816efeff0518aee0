"""One epoch of fine-tuning, one validation, and the rule that says when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from spatialfeat.console import frame_bar
from spatialfeat.data.dataset import FrameBatch, frames_of, refuse_failures
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.history import EpochRecord
from spatialfeat.network.inference import run_inference
from spatialfeat.network.model import PhaseResNet50
from spatialfeat.network.trainingstep import BatchShare, StepScore, TrainingStep

STEPS_BETWEEN_LOOKS = 10


@dataclass
class RunningScore:
    """Loss and accuracy averaged over frames, whatever the batch sizes."""

    loss_sum: float = 0.0
    correct: int = 0
    frames: int = 0

    def add(self, loss_sum: float, correct: int, frames: int) -> None:
        """Frames: their losses added up, how many were right, how many there were."""
        self.loss_sum += loss_sum
        self.correct += correct
        self.frames += frames

    def of_all(self, group: ProcessGroup) -> RunningScore:
        """The score of the frames of all processes: the same bits in each, as decisions hang on them."""
        losses, counts = np.array([self.loss_sum]), np.array([self.correct, self.frames])
        correct, frames = group.sum(counts).tolist()
        return RunningScore(group.sum(losses).item(), correct, frames)

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
    step: TrainingStep, loader: DataLoader[Any], *, shares: Iterable[BatchShare], group: ProcessGroup, title: str
) -> RunningScore:
    """Update the model once per batch. The score is that of the augmented frames while the weights still move.

    Args:
        loader: this process's shares of the batches. shares: what each of them is of the whole batch.

    Raises:
        SpatialfeatError: a frame that cannot be decoded, or a loss that is no number any more.
    """
    dataset = frames_of(loader)
    score = RunningScore()
    device = step.device
    # Asking a GPU for a number makes it wait for the program; on a CPU it costs nothing.
    steps_between_looks = 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS
    unseen: list[StepScore] = []
    step.start_epoch()
    with frame_bar(len(dataset), title) as bar:
        batch: FrameBatch
        for number, (batch, share) in enumerate(zip(loader, shares, strict=True), start=1):
            refuse_failures(dataset, batch.failures)
            images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
            unseen.append(step(images, labels, share))
            if len(unseen) == steps_between_looks or number == len(loader):
                for seen in unseen:
                    _add_step(score, seen, title)
                unseen.clear()
            bar.advance(share.whole_frames, **({} if unseen else _shown(score)))
    return score.of_all(group)


def _add_step(score: RunningScore, step: StepScore, title: str) -> None:
    loss = step.loss.item()
    if not math.isfinite(loss):
        raise SpatialfeatError(f"{title}: the training loss became {loss}; lower --lr, or start from other --weights")
    score.add(loss * step.whole_frames, int(step.correct), step.frames)


def _shown(score: RunningScore) -> dict[str, str]:
    return {"loss": f"{score.loss:.4f}", "acc": f"{score.accuracy:.4f}"} if score.frames else {}


def validate(
    model: PhaseResNet50,
    loader: DataLoader[Any],
    *,
    group: ProcessGroup,
    preprocessing: Preprocessing,
    precision: str,
    batch_size: int,
    title: str,
) -> RunningScore:
    """Loss and accuracy in evaluation mode, each frame counted once. `loader` has this process's share of the rows."""
    dataset = frames_of(loader)
    score = RunningScore()
    with frame_bar(len(dataset), title) as bar:
        for outputs in run_inference(model, loader, group.device, preprocessing, precision, batch_size):
            refuse_failures(dataset, outputs.failures)
            logits, labels = torch.from_numpy(outputs.logits), torch.from_numpy(outputs.labels)
            correct = int((logits.argmax(dim=1) == labels).sum())
            score.add(float(nn.functional.cross_entropy(logits, labels)) * len(labels), correct, len(labels))
            bar.advance(len(labels) * group.size, **_shown(score))
    score = score.of_all(group)
    if not np.isfinite(score.loss):
        raise SpatialfeatError(f"{title}: the validation loss became {score.loss}; lower --lr")
    return score
