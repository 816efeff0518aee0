"""The network on several devices: every process has all of it, and they learn as one.

A step on shares of a batch is the step on the whole batch: the losses are weighted so that DistributedDataParallel's
mean of the gradients is the gradient of the whole batch's mean loss, and BatchNorm layers in training normalize with
the statistics of the whole batch. Weights keep their names.

One update of the weights: the frozen part in its fastest form, the rest in the chosen precision.

One epoch of fine-tuning, one validation, and the rule that says when to stop.

The moving parts of one training: network, loaders, optimizer, schedule. Writes no file.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from spatialfeat.config import FinetuneConfig
from spatialfeat.console import frame_bar
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import (
    EpochSampler,
    FrameBatch,
    FrameDataset,
    SharedBatches,
    frames_of,
    make_loader,
    refuse_failures,
)
from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import DTYPES, random_state, restore_random_state
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.inference import run_inference
from spatialfeat.network.resnet import (
    AVGPOOL,
    FIRST_STAGE,
    FoldedStages,
    PhaseResNet50,
    freeze,
    frozen_children,
    set_training_mode,
)
from spatialfeat.network.weights import StateDict, snapshot
from spatialfeat.training.data import StudyData, study_transforms
from spatialfeat.training.history import EpochRecord


class Replicas:
    """The part of `model` from child `start` on, as it is trained by all processes of `group`; alone, simply called.

    To be made after freezing: frozen children keep their plain BatchNorm.
    """

    def __init__(self, model: PhaseResNet50, group: ProcessGroup | None, *, freeze_until: int, start: int) -> None:
        self._model, self._group = model, group
        self._network: nn.Module = _Part(model, start)
        if group is not None and group.gradients is not None:
            _synchronize_batch_norm(model, freeze_until, group)
            self._network = DistributedDataParallel(
                self._network,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                process_group=group.gradients,
                **_without_sending_buffers(),
            )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), what child `start` takes of this process's share of a batch, which may be none (B = 0)."""
        logits: torch.Tensor = self._network(x)
        return logits

    def loss_to_differentiate(self, share_of_loss: torch.Tensor) -> torch.Tensor:
        """The loss whose backward pass gives every process the gradient of the sum of all processes' shares."""
        # DistributedDataParallel takes the mean over the processes.
        return share_of_loss if self._group is None else share_of_loss * self._group.size

    def require_equal(self) -> None:
        """The processes must never drift apart: nobody would notice that they average unrelated gradients."""
        if self._group is None or self._group.size == 1:
            return
        with torch.no_grad():
            parts = [float(parameter.sum(dtype=torch.float64)) for parameter in self._model.parameters()]
        sums = self._group.gather(float(sum(parts)).hex())
        assert len(set(sums)) == 1, f"the processes' weights differ: {sums}"


class _Part(nn.Module):
    """The children of a network from `start` on, as a module of their own."""

    def __init__(self, model: PhaseResNet50, start: int) -> None:
        super().__init__()
        self._model, self._start = model, start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._model.logits_from(x, self._start)


def _without_sending_buffers() -> dict[str, Any]:
    """BatchNorm's running statistics are equal everywhere, since each is computed from the whole batch."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.15 has a new name for the option and warns of the old one.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the statistics of the batch of all processes, on the CPU, where torch's SyncBatchNorm refuses."""

    def __init__(self, num_features: int, *, eps: float, momentum: float | None, group: ProcessGroup) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self._group = group

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: (B, C, H, W), B >= 0; there must be a frame in one of the processes."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = values.numel() // values.size(1)
        mean = values.sum((0, 2, 3)) / max(count, 1)
        squares = (values - _per_channel(mean)).square().sum((0, 2, 3))
        row = torch.cat([mean, squares, mean.new_tensor([count])])
        # Means and squares are joined instead of sums over all values, whose squares would lose digits.
        rows: torch.Tensor = _GatherRows.apply(row, self._group)
        means, all_squares, counts = rows[:, : len(mean)], rows[:, len(mean) : -1], rows[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        squares = (all_squares + counts * (means - mean).square()).sum(0)
        with torch.no_grad():
            self._keep(mean, squares / (total - 1))
        scale = self.weight * torch.rsqrt(squares / total + self.eps)
        return ((values - _per_channel(mean)) * _per_channel(scale) + _per_channel(self.bias)).to(input.dtype)

    def _keep(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _GatherRows(torch.autograd.Function):
    """One row (K,) of each process as a matrix (processes, K) in all of them."""

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        rows = row.new_zeros(group.size, len(row))
        rows[group.rank] = row
        dist.all_reduce(rows, group=group.gradients)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group.gradients)
        return total[ctx.group.rank], None


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


def _synchronize_batch_norm(model: PhaseResNet50, freeze_until: int, group: ProcessGroup) -> None:
    frozen = {id(module) for child in frozen_children(model, freeze_until) for module in child.modules()}
    plain = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d) and id(child) not in frozen
    ]
    for parent, name, child in plain:
        setattr(parent, name, _synchronized(child, group))


def _synchronized(plain: nn.BatchNorm2d, group: ProcessGroup) -> nn.Module:
    """The same layer, with the same parameters and buffers, over the batch of all processes."""
    made: nn.Module
    if group.device.type == "cuda":
        made = nn.SyncBatchNorm(
            plain.num_features, eps=plain.eps, momentum=plain.momentum, process_group=group.gradients
        )
    else:
        made = GlobalBatchNorm2d(plain.num_features, eps=plain.eps, momentum=plain.momentum, group=group)
    made.weight, made.bias = plain.weight, plain.bias
    for name, buffer in plain.named_buffers():
        setattr(made, name, buffer)
    return made.train(plain.training)


class BatchShare(NamedTuple):
    """What the frames of this process are of a batch: it has `whole_frames`, and theirs is `weight` of the mean loss.

    The weights of all processes' shares add up to 1.
    """

    whole_frames: int
    weight: float


class StepScore(NamedTuple):
    """A batch before its update, on the device, so that nobody has to wait for it.

    loss: () float32, what these frames contribute to the mean loss of the whole batch, which has `whole_frames`; alone
    it is the mean loss. correct: () int64, how many of these `frames` were right.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    frames: int
    whole_frames: int


class TrainingStep:
    """Computes loss and gradient of a batch and updates the weights.

    Where the whole stem is frozen, it and the frozen stages behind it run with folded BatchNorm and without any
    bookkeeping for gradients. Weights, gradients, BatchNorm statistics and the optimizer stay float32 whatever the
    precision; bf16 and fp16 are the precision of convolutions and of the activations between them.

    Args:
        model: on the device to compute on, frozen by `model.freeze`. criterion: maps logits (B, C) float32 and labels
            (B,) int64 to the mean loss. clip_grad_norm: scale the gradient down to this norm where it is longer; None
            never does. group: processes that make the step together, each on its share of the batch; None is this one
            alone.
    """

    def __init__(
        self,
        model: PhaseResNet50,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module,
        *,
        freeze_until: int,
        preprocessing: Preprocessing,
        precision: str,
        clip_grad_norm: float | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self._optimizer, self._criterion, self._clip_grad_norm = optimizer, criterion, clip_grad_norm
        self._freeze_until, self._preprocessing, self._dtype = freeze_until, preprocessing, DTYPES[precision]
        self._start = min(freeze_until, AVGPOOL) if freeze_until >= FIRST_STAGE else 0
        self._replicas = Replicas(model, group, freeze_until=freeze_until, start=self._start)
        self._frozen: FoldedStages | None = None
        self._precision = precision
        # fp16 has too narrow a range for gradients, which are therefore scaled up and back.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def device(self) -> torch.device:
        """Where images and labels must be."""
        parameter: nn.Parameter = self.model.fc.weight
        return parameter.device

    def start_epoch(self) -> None:
        """Training mode, and the frozen part folded from the weights as they are: also after loading others."""
        set_training_mode(self.model, self._freeze_until)
        if self._start:
            self._frozen = FoldedStages(self.model, self._start, self._preprocessing, self._precision)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, share: BatchShare | None = None) -> StepScore:
        """images (B, 3, S, S) uint8 and labels (B,) int64, on the device: a whole batch, or this share of one.

        A share may be empty (B = 0): the process takes part in the step all the same.
        """
        share = share or BatchShare(len(labels), 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._logits(images)
        loss = self._criterion(logits, labels) * share.weight if len(labels) else logits.sum()
        self._scaler.scale(self._replicas.loss_to_differentiate(loss)).backward()  # type: ignore[no-untyped-call]
        if self._clip_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        return StepScore(loss.detach(), correct, len(labels), share.whole_frames)

    def require_equal_weights(self) -> None:
        """See `Replicas.require_equal`."""
        self._replicas.require_equal()

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step beside model and optimizer: the scale of fp16's gradients."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, num_classes) float32, differentiable by the parameters that are trained."""
        with torch.no_grad():
            # Of no frames, the shape of the activations is found with one.
            size_px = self._preprocessing.crop_px
            frames = images if len(images) else images.new_zeros(1, 3, size_px, size_px)
            x = normalize(frames, self._preprocessing) if self._frozen is None else self._frozen(frames)
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._replicas.logits(x[: len(images)])
        return logits.float()


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
