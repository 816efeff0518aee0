"""One training: the update of the weights, an epoch of updates, validation. Writes no file."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
from spatialfeat.data.dataset import EpochBatches, FrameDataset, make_loader
from spatialfeat.data.staging import staged
from spatialfeat.data.transforms import Preprocessing, evaluation_transform, normalize, training_transform
from spatialfeat.device import DTYPES, augments_on_device, random_state, records_graphs, restore_random_state
from spatialfeat.distributed import ProcessGroup, Ranks
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork, PhaseClassifier
from spatialfeat.network.graphs import Recorded
from spatialfeat.network.inference import run_inference
from spatialfeat.network.tensorfiles import StateDict
from spatialfeat.network.weights import snapshot
from spatialfeat.training.data import StudyData
from spatialfeat.training.history import EpochRecord

STEPS_BETWEEN_LOOKS = 10
"""So often the progress bar gets a GPU's numbers, and a loss that is no number ends the run."""


OPTIONS_OF_DEVICE = ("fused", "capturable", "foreach")
"""Options of an optimizer that say how it computes, not what."""


class StepScore(NamedTuple):
    """A batch before its update, on the device, so that the program does not have to wait for it.

    loss: () float32, what these frames contribute to the mean loss of the whole batch; of a whole one, the mean loss.
    correct: () int64, how many of these frames were right.
    """

    loss: torch.Tensor
    correct: torch.Tensor


class TrainingStep:
    """Computes loss and gradient of a batch and updates the weights.

    Where the whole stem of a ResNet-50 is frozen, it and the frozen stages behind it run with folded BatchNorm and
    without any bookkeeping for gradients. Weights, gradients, BatchNorm statistics and the optimizer stay float32
    whatever the precision; bf16 and fp16 are the precision of convolutions and of the activations between them.

    Several processes make a step together, each on its share of the batch: the losses are weighted so that
    DistributedDataParallel's mean of the gradients is the gradient of the whole batch's mean loss. On GPUs the
    BatchNorm layers in training normalize with the statistics of the whole batch; on CPUs, for which torch has no such
    layer, with those of the share.

    On one GPU in fp32 or bf16, without clipping, steps on whole batches are recorded anew in every epoch (`Recorded`).
    A recording holds the learning rate, and stands on the weights' and the optimizer's places in memory.

    Args:
        model: on the device to compute on, frozen as it is going to be. optimizer: from `make_optimizer`.
        criterion: maps logits (B, C) float32 and labels (B,) int64 to the mean loss.
        clip_grad_norm: scale the gradient down to this norm where it is longer; None never does.
        group: None is this process alone.
    """

    def __init__(
        self,
        model: PhaseClassifier,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module,
        *,
        preprocessing: Preprocessing,
        precision: str,
        clip_grad_norm: float | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self._optimizer, self._criterion, self._clip_grad_norm = optimizer, criterion, clip_grad_norm
        self._group = group = group or ProcessGroup(Ranks(), model.device)
        self.preprocessing, self._precision, self._dtype = preprocessing, precision, DTYPES[precision]
        self._fixed: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._trained: nn.Module = _Trained(model, model.num_fixed)
        if group.gradients is not None:
            if group.device.type == "cuda":
                for name, child in model.named_children():
                    if any(weight.requires_grad for weight in child.parameters()):
                        synchronize: Any = nn.SyncBatchNorm.convert_sync_batchnorm
                        setattr(model, name, synchronize(child, group.gradients))
            self._trained = DistributedDataParallel(
                self._trained,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                process_group=group.gradients,
            )
        # fp16 has too narrow a range for gradients, which are therefore scaled up and back.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._records = (
            records_graphs(self.device)
            and group.size == 1
            and clip_grad_norm is None
            and precision != "fp16"
            and all(options.get("capturable") for options in optimizer.param_groups)
        )
        self._recorded: Recorded | None = None

    @property
    def device(self) -> torch.device:
        """Where images and labels must be."""
        return self.model.device

    def start_epoch(self) -> None:
        """Training mode, and the frozen part folded from the weights as they are: also after loading others."""
        self.model.train()
        if self.model.num_fixed:
            self._fixed = self.model.fixed_stages(self.preprocessing, self._precision)
        self._recorded = Recorded(self._update, "training step") if self._records else None

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0) -> StepScore:
        """images (B, 3, S, S) uint8 and labels (B,) int64, on the device: a whole batch, or this process's share.

        A share may be empty (B = 0): the process still takes part in the step. weight: what the share counts in the
        batch's mean loss; those of all processes add up to 1.
        """
        if self._recorded is None:
            return StepScore(*self._update(images, labels, weight))
        assert weight == 1
        return StepScore(*self._recorded(images, labels))

    def _update(self, images: torch.Tensor, labels: torch.Tensor, weight: float = 1.0) -> tuple[torch.Tensor, ...]:
        """What StepScore holds."""
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._logits(images)
        loss = self._criterion(logits, labels) * weight if len(labels) else logits.sum()
        # DistributedDataParallel takes the mean over the processes, where the sum is wanted.
        scaled = self._scaler.scale(loss * self._group.size)
        scaled.backward()
        if self._clip_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def end_epoch(self) -> None:
        """Make sure that all processes have the same network: they must never drift apart."""
        self._recorded = None  # Validation can use its memory.
        if self._group.gradients is None:
            return
        with torch.no_grad():
            parts = [float(parameter.sum(dtype=torch.float64)) for parameter in self.model.parameters()]
        sums = self._group.gather(sum(parts))
        assert len(set(sums)) == 1, f"the processes' weights differ: {sums}"
        for buffer in self.model.buffers():  # On CPUs, running statistics of shares.
            dist.broadcast(buffer, 0, group=self._group.gradients)

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step beside model and optimizer: the scale of fp16's gradients."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, num_classes) float32, differentiable by the parameters that are trained."""
        with torch.no_grad():
            # Of no frames, the shape of the activations is found with one.
            size_px = self.preprocessing.crop_px
            frames = images if len(images) else images.new_zeros(1, 3, size_px, size_px)
            x = normalize(frames, self.preprocessing) if self._fixed is None else self._fixed(frames)
        with torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits: torch.Tensor = self._trained(x[: len(images)])
        return logits.float()


class _Trained(nn.Module):
    """The stages of a network from `start` on, as a module of their own."""

    def __init__(self, model: PhaseClassifier, start: int) -> None:
        super().__init__()
        self._model, self._start = model, start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), what stage `start` takes of this process's share of a batch. Returns (B, num_classes)."""
        return self._model.logits_from(x, self._start)


@dataclass
class RunningScore:
    """Loss and accuracy averaged over frames, whatever the batch sizes."""

    loss_sum: float = 0.0
    correct: int = 0
    frames: int = 0

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

    @property
    def text(self) -> dict[str, str]:
        """For a progress bar."""
        return {"loss": f"{self.loss:.4f}", "acc": f"{self.accuracy:.4f}"} if self.frames else {}


def train_one_epoch(
    step: TrainingStep,
    loader: DataLoader[Any],
    *,
    shares: Iterable[tuple[int, float]],
    group: ProcessGroup,
    title: str,
) -> RunningScore:
    """Update the model once per batch. The score is that of the augmented frames while the weights still move.

    Args:
        loader: this process's shares of the batches. shares: for each of them the frames of the whole batch, and the
            share's weight in its mean loss.

    Raises:
        SpatialfeatError: a frame that cannot be decoded, or a loss that is no number any more.
    """
    dataset, tally = _frames_of(loader), _Tally(step.device)
    steps_between_looks = 1 if step.device.type == "cpu" else STEPS_BETWEEN_LOOKS
    loading = iter(loader)  # Decoding begins, while the step is made ready.
    step.start_epoch()
    batches = zip(staged(loading, step.device, step.preprocessing), shares, strict=True)
    with frame_bar(len(dataset), title) as advance:
        for number, ((batch, images, labels), (whole_frames, weight)) in enumerate(batches, start=1):
            dataset.refuse_failures(batch.failures)
            tally.add(step(images, labels, weight), len(labels), whole_frames)
            looks = number % steps_between_looks == 0 or number == len(loader)
            score = tally.look(wait=number == len(loader)) if looks else None
            if score and not math.isfinite(score.loss_sum):
                raise SpatialfeatError(
                    f"{title}: the training loss became {score.loss_sum}; lower --lr, or start from other --weights"
                )
            advance(whole_frames, **(score.text if score else {}))
    step.end_epoch()
    return tally.look(wait=True).of_all(group)


class _Tally:
    """Adds up the scores of steps on the device, which does not have to wait for a look at the sums."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._frames = 0
        self._on_their_way: deque[tuple[torch.Tensor, torch.cuda.Event, int]] = deque()
        self._seen = RunningScore()

    def add(self, score: StepScore, frames: int, whole_frames: int) -> None:
        """The score of so many frames, out of a batch of `whole_frames`."""
        self._sums[0] += score.loss.double() * whole_frames
        self._sums[1] += score.correct
        self._frames += frames

    def look(self, *, wait: bool) -> RunningScore:
        """The score of all steps; of a GPU's, without `wait`, of those up to an earlier look."""
        if self._sums.is_cuda:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._on_their_way.append((self._sums.to("cpu", non_blocking=True), copied, self._frames))
            copied.record(torch.cuda.current_stream(self._sums.device))
            while self._on_their_way and (wait or _is_done(self._on_their_way[0][1])):
                sums, copied, frames = self._on_their_way.popleft()
                copied.synchronize()
                self._see(sums, frames)
        else:
            self._see(self._sums, self._frames)
        return self._seen

    def _see(self, sums: torch.Tensor, frames: int) -> None:
        loss_sum, correct = sums.tolist()
        self._seen = RunningScore(loss_sum, int(correct), frames)


def _is_done(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]


def validate(network: InferenceNetwork, loader: DataLoader[Any], *, group: ProcessGroup, title: str) -> RunningScore:
    """Loss and accuracy in evaluation mode, each frame counted once. `loader` has this process's share of the frames.

    Raises:
        SpatialfeatError: a frame that cannot be decoded, or a loss that is no number any more.
    """
    dataset, score = _frames_of(loader), RunningScore()
    with frame_bar(len(dataset), title) as advance:
        for outputs in run_inference(network, loader):
            dataset.refuse_failures(outputs.failures)
            logits, labels = torch.from_numpy(outputs.logits), torch.from_numpy(outputs.labels)
            score.loss_sum += float(nn.functional.cross_entropy(logits, labels)) * len(labels)
            score.correct += int((logits.argmax(dim=1) == labels).sum())
            score.frames += len(labels)
            advance(len(labels) * group.size, **score.text)
    score = score.of_all(group)
    if not math.isfinite(score.loss):
        raise SpatialfeatError(f"{title}: the validation loss became {score.loss}; lower --lr")
    return score


def _frames_of(loader: DataLoader[Any]) -> FrameDataset:
    assert isinstance(loader.dataset, FrameDataset)
    return loader.dataset


class Trainer:
    """Runs epochs, and can be brought back to the state it had after any of them.

    `config.precision` is one that the device has, not "auto".
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: StudyData,
        model: PhaseClassifier,
        group: ProcessGroup,
        workers: int,
        cache: FrameCache | None = None,
    ) -> None:
        self._config, self._model, self._group = config, model, group
        self._preprocessing = find_backbone(config.backbone).preprocessing(config.image_size_px)
        self._batches = EpochBatches(len(data.train), config.batch_size, config.seed, rank=group.rank, size=group.size)
        evaluation = evaluation_transform(self._preprocessing)
        training = training_transform(
            self._preprocessing,
            config.training_frames_px,
            on_device=config.jpeg_on_device or augments_on_device(group.device),
        )
        self._train_loader = make_loader(
            # Kept for evaluation, too: `extract` computes the features of all frames.
            FrameDataset(
                data.train, training, cache=cache, also_kept=[evaluation], jpeg_on_device=config.jpeg_on_device
            ),
            batch_size=config.batch_size,
            batches=self._batches,
            workers=workers,
            device=group.device,
            keep_workers=True,
        )
        self._val_loader = make_loader(
            FrameDataset(data.val, evaluation, cache=cache, jpeg_on_device=config.jpeg_on_device),
            batch_size=group.share(config.batch_size),
            positions=range(group.rank, len(data.val), group.size),
            workers=workers,
            device=group.device,
            keep_workers=True,
        )
        criterion = training_loss(config, data.train.labels)
        self._loss_weights = frame_weights(criterion, data.train.labels)
        model.freeze(config.freeze_until)
        self._optimizer = make_optimizer(model, config.lr)
        self._step = TrainingStep(
            model,
            self._optimizer,
            criterion.to(group.device),
            preprocessing=self._preprocessing,
            precision=config.precision,
            clip_grad_norm=config.clip_grad_norm,
            group=group,
        )
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="max", factor=config.lr_factor, patience=config.lr_patience
        )

    def run_epoch(self, epoch: int) -> EpochRecord:
        """Train on every frame once, validate, and adapt the learning rate of the next epoch."""
        start = time.monotonic()
        group, title = self._group, f"epoch {epoch}/{self._config.epochs}"
        lr = float(self._optimizer.param_groups[0]["lr"])
        self._batches.epoch = epoch
        train = train_one_epoch(
            self._step, self._train_loader, shares=self._shares(), group=group, title=f"{title} train"
        )
        network = InferenceNetwork(
            self._model, self._preprocessing, self._config.precision, group.share(self._config.batch_size)
        )
        val = validate(network, self._val_loader, group=group, title=f"{title} val")
        self._scheduler.step(val.accuracy)
        seconds = round(time.monotonic() - start, 3)
        return EpochRecord(epoch, train.loss, train.accuracy, val.loss, val.accuracy, lr, seconds)

    def weights(self) -> StateDict:
        """A copy of the network's weights on the CPU, which later epochs do not change."""
        return snapshot(self._model)

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch; `load_state_dict` goes on from it. The batches need the epoch only."""
        return {
            "model": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "step": self._step.state_dict(),
            "random": random_state(self._group.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._step.load_state_dict(state["step"])
        restore_random_state(state["random"], self._group.device)

    def _shares(self) -> Iterator[tuple[int, float]]:
        """Of each batch of this epoch its frames, and the weight of this process's share in its mean loss."""
        for batch in self._batches.whole():
            mine, whole = ([frame.position for frame in frames] for frames in (self._batches.share(batch), batch))
            yield len(batch), float(self._loss_weights[mine].sum() / self._loss_weights[whole].sum())


def make_optimizer(model: PhaseClassifier, lr: float) -> torch.optim.Adam:
    """Adam over what is trained of a model; on a GPU as one kernel, which can be recorded."""
    on_gpu = model.device.type == "cuda"
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.Adam(trained, lr, fused=True, capturable=True) if on_gpu else torch.optim.Adam(trained, lr)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a state, but not how another device computed: a study may go on on another one."""
    own = optimizer.param_groups
    groups = [
        {**stored, **{name: options[name] for name in OPTIONS_OF_DEVICE if name in options}}
        for stored, options in zip(state["param_groups"], own, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def training_loss(config: FinetuneConfig, labels: NDArray[np.int64]) -> nn.CrossEntropyLoss:
    """The loss that training minimizes: plain cross-entropy, unless options weight the phases or smooth the labels.

    labels: (N,) int64, the phases of the training frames.
    """
    weights = balanced_weights(labels, config.num_classes) if config.class_weights == "balanced" else None
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing)


def frame_weights(criterion: nn.CrossEntropyLoss, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) float64: what each frame counts in the mean that `criterion` takes of the losses. labels: (N,) int64."""
    if criterion.weight is None:
        return np.ones(len(labels))
    return criterion.weight.numpy().astype(np.float64)[labels]


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Weights by which every phase counts alike, however many frames it has; averaged over the frames they are 1.

    Returns (num_classes,) float32: N / (P * n_c) for a phase of n_c of the N frames, P being the number of phases with
    frames, as scikit-learn's "balanced" does. A phase without frames has weight 0: no frame could use it.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.zeros(num_classes, np.float32)
    weights[counts > 0] = len(labels) / (np.count_nonzero(counts) * counts[counts > 0])
    return torch.from_numpy(weights)
