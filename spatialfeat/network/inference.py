"""The one evaluation-mode loop: validation, evaluate and extract all use it, so their numbers cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.console import frame_bar
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import FrameBatch, FrameDataset, make_loader
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.transforms import evaluation_transform
from spatialfeat.device import choose_workers, prepare_processor, use_true_float32
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError, translate_computing_faults
from spatialfeat.network.resnet import InferenceNetwork
from spatialfeat.network.weights import Checkpoint

NOT_FINITE = "the network's output is NaN or infinite; use other weights, or a finer --precision"


class FrameOutputs(NamedTuple):
    """The network's outputs for G frames, in the order of the loader.

    features (G, D) float32, logits (G, num_classes) float32, positions in the dataset and labels (G,) int64, digests: G
    times 16 bytes, failures: (position, reason) of the frames that could not be decoded.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    digests: list[bytes]
    failures: list[tuple[int, str]]

    def not_finite(self) -> list[int]:
        """Positions of the frames whose features or logits hold NaN or infinity, which must not pass for results."""
        finite = np.isfinite(self.features).all(axis=1) & np.isfinite(self.logits).all(axis=1)
        found: list[int] = self.positions[~finite].tolist()
        return found


def run_inference(network: InferenceNetwork, batches: Iterable[FrameBatch]) -> Iterator[FrameOutputs]:
    """Run the network over `batches`: one FrameOutputs per batch."""
    running: _Running | None = None
    for batch in batches:
        # A GPU works on this batch while the results of the one before are copied and written.
        started = _Running(network, batch)
        if running is not None:
            yield running.outputs()
        running = started
    if running is not None:
        yield running.outputs()


def predict_logits(
    network: InferenceNetwork,
    table: FrameTable,
    *,
    workers: int,
    title: str,
    cache: FrameCache | None = None,
    group: ProcessGroup | None = None,
) -> NDArray[np.float32]:
    """Run the network over every row of `table`, with a progress bar. Returns (N, num_classes) float32.

    Args:
        group: processes that share the work, each of which gets all logits; None is this one alone.

    Raises:
        SpatialfeatError: an image that cannot be decoded, or an output that is not finite.
    """
    rank, size = (group.rank, group.size) if group else (0, 1)
    dataset = FrameDataset(table, evaluation_transform(network.preprocessing), cache=cache)
    loader = make_loader(
        dataset,
        batch_size=network.batch_size,
        positions=range(rank, len(table), size),
        workers=workers,
        device=network.device,
    )
    logits = np.zeros((len(table), network.num_classes), np.float32)
    with frame_bar(len(table), title) as advance:
        for outputs in run_inference(network, loader):
            dataset.refuse_failures(outputs.failures)
            for row in outputs.not_finite():
                raise SpatialfeatError(f"{table.image_path(row)}: {NOT_FINITE}")
            logits[outputs.positions] = outputs.logits
            advance(len(outputs.positions) * size)
    return group.sum(logits) if group else logits  # Every row is zero in all processes but one.


def compute_logits(
    checkpoint: Checkpoint,
    table: FrameTable,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int | None,
    title: str,
) -> NDArray[np.float32]:
    """`predict_logits` of a weights file's network, with the processor prepared for it and faults as messages."""
    use_true_float32()
    prepare_processor()
    num_workers = choose_workers(workers, device)
    with translate_computing_faults(batch_size=batch_size, workers=num_workers):
        network = InferenceNetwork(checkpoint.model.to(device), checkpoint.preprocessing, precision, batch_size)
        return predict_logits(network, table, workers=num_workers, title=title)


class _Running:
    """A batch that was handed to the device; on a GPU, its results are on their way."""

    def __init__(self, network: InferenceNetwork, batch: FrameBatch) -> None:
        self._batch = batch
        self._results: tuple[torch.Tensor, ...] = (torch.empty(0, 0), torch.empty(0, 0))
        self._copied: torch.cuda.Event | None = None
        if len(batch.positions):
            results = network(batch.images.to(network.device, non_blocking=True))
            self._results = tuple(result.to("cpu", non_blocking=True) for result in results)
            if network.device.type == "cuda":
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(network.device))

    def outputs(self) -> FrameOutputs:
        """Wait for the results."""
        if self._copied is not None:
            self._copied.synchronize()
        features, logits = (result.numpy() for result in self._results)
        batch = self._batch
        positions, labels = batch.positions.numpy(), batch.labels.numpy()
        return FrameOutputs(features, logits, positions, labels, batch.digests, batch.failures)
