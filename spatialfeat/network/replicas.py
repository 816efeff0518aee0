"""The network on several devices: every process has all of it, and they learn as one.

A step on shares of a batch is the step on the whole batch: the losses are weighted so that DistributedDataParallel's
mean of the gradients is the gradient of the whole batch's mean loss, and BatchNorm layers in training normalize with
the statistics of the whole batch. Weights keep their names.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spatialfeat.distributed import ProcessGroup
from spatialfeat.network.model import PhaseResNet50, frozen_children


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
