"""Batches on their way to the device. To a GPU they are copied and augmented one batch ahead, beside its other work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from spatialfeat.data.augmentation import augment_batch
from spatialfeat.data.dataset import FrameBatch


class StagedBatch(NamedTuple):
    """A batch, with its images (G, 3, S, S) uint8 and labels (G,) int64 on the device, ready for the network."""

    batch: FrameBatch
    images: torch.Tensor
    labels: torch.Tensor


def staged(batches: Iterable[FrameBatch], device: torch.device, size_px: int) -> Iterator[StagedBatch]:
    """Bring batches to the device and do there what workers have left to do. size_px: S, side of the network's input.

    On a GPU this runs on a stream of its own while the network computes on the batch before.
    """
    if device.type == "cpu":
        for batch in batches:
            yield _moved(batch, device, size_px)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[StagedBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved, done = _moved(batch, device, size_px), torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = moved, done
    if ahead is not None:
        yield _arrived(*ahead)


def _moved(batch: FrameBatch, device: torch.device, size_px: int) -> StagedBatch:
    images = batch.images.to(device, non_blocking=True)
    if batch.left_to_do.size:
        images = augment_batch(images, _sent(torch.from_numpy(batch.left_to_do), device), size_px)
    return StagedBatch(batch, images, _sent(torch.from_numpy(batch.labels), device))


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, for which the program does not wait: only from pinned memory is it sure not to."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def _arrived(moved: StagedBatch, done: torch.cuda.Event) -> StagedBatch:
    """Make what is computed from now on wait for the batch; the program itself goes on."""
    stream = torch.cuda.current_stream(moved.images.device)
    stream.wait_event(done)
    for tensor in (moved.images, moved.labels):
        tensor.record_stream(stream)  # Its memory must not be used again before that.
    return moved
