"""One update of the weights: the frozen part in its fastest form, the rest in the chosen precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import DTYPES
from spatialfeat.distributed import ProcessGroup
from spatialfeat.network.fastnetwork import FoldedStages
from spatialfeat.network.model import AVGPOOL, FIRST_STAGE, PhaseResNet50, set_training_mode
from spatialfeat.network.replicas import Replicas


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
