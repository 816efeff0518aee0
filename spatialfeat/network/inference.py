"""The one evaluation-mode loop: validation, evaluate and extract all use it, so their numbers cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.config import WeightsSource
from spatialfeat.console import frame_bar
from spatialfeat.data.cache import FrameCache, open_cache
from spatialfeat.data.dataset import FrameBatch, FrameDataset, make_loader, require_images
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.staging import require_jpeg_decoder, staged
from spatialfeat.data.transforms import evaluation_transform
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    prepare_processor,
    select_device,
    use_true_float32,
)
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError, translate_computing_faults
from spatialfeat.network.classifier import InferenceNetwork
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
    for batch, images, _ in staged(batches, network.device, network.preprocessing):
        # A GPU works on this batch while the results of the one before are copied and written.
        started = _Running(network, batch, images)
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
    jpeg_on_device: bool = False,
    group: ProcessGroup | None = None,
) -> NDArray[np.float32]:
    """Run the network over every row of `table`, with a progress bar. Returns (N, num_classes) float32.

    Args:
        group: processes that share the work, each of which gets all logits; None is this one alone.

    Raises:
        SpatialfeatError: an image that cannot be decoded, or an output that is not finite.
    """
    rank, size = (group.rank, group.size) if group else (0, 1)
    dataset = FrameDataset(
        table,
        evaluation_transform(network.preprocessing),
        cache=cache,
        jpeg_on_device=jpeg_on_device,
    )
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
            if rows := outputs.not_finite():
                raise SpatialfeatError(f"{table.image_path(rows[0])}: {NOT_FINITE}")
            logits[outputs.positions] = outputs.logits
            advance(len(outputs.positions) * size)
    return group.sum(logits) if group else logits  # Every row is zero in all processes but one.


class TableInference:
    """A weights file's network and the frames of a table: checked first, computed by `logits`.

    Attributes:
        arithmetic: what computes, for people. facts: for `run.json`. facts_after: what `logits` adds to them.

    Raises:
        SpatialfeatError: a device or precision that is not there, a cache that cannot be used, an image that cannot be
            read. Looking at all images takes seconds; what the cache keeps is not opened.
    """

    def __init__(self, checkpoint: Checkpoint, table: FrameTable, source: WeightsSource) -> None:
        """source: batch size, device, precision, workers and cache."""
        self._checkpoint, self._table, self._source = checkpoint, table, source
        self._device = select_device(source.device)
        self._precision = choose_precision(source.precision, self._device)
        if source.jpeg_on_device:
            require_jpeg_decoder(self._device)
        self._cache = cache = open_cache(source.cache_dir, source.cache_limit_gb)
        self.arithmetic = describe_arithmetic(self._device, self._precision)
        self.facts: dict[str, Any] = {
            "device": describe_device(self._device),
            "precision": self._precision,
            "weights_sha256": checkpoint.sha256,
        }
        self.facts_after: dict[str, Any] = {}
        steps = evaluation_transform(checkpoint.preprocessing).fixed_steps
        is_kept = None if cache is None else lambda table, name: cache.holds(table.images, name, steps)
        require_images([table], is_kept=is_kept)

    def logits(self, title: str) -> NDArray[np.float32]:
        """`predict_logits`, with the processor prepared for it and faults as messages. title: of the progress bar."""
        use_true_float32()
        prepare_processor()
        batch_size, workers = self._source.batch_size, choose_workers(self._source.workers, self._device)
        with translate_computing_faults(batch_size=batch_size, workers=workers):
            model = self._checkpoint.model.to(self._device)
            network = InferenceNetwork(model, self._checkpoint.preprocessing, self._precision, batch_size)
            logits = predict_logits(
                network,
                self._table,
                workers=workers,
                title=title,
                cache=self._cache,
                jpeg_on_device=self._source.jpeg_on_device,
            )
        if self._cache is not None:
            self.facts_after["cache"] = self._cache.close()
        return logits


class _Running:
    """A batch that was handed to the device; on a GPU, its results are on their way."""

    def __init__(self, network: InferenceNetwork, batch: FrameBatch, images: torch.Tensor) -> None:
        self._batch = batch
        self._results: tuple[torch.Tensor, ...] = (torch.empty(0, 0), torch.empty(0, 0))
        self._copied: torch.cuda.Event | None = None
        if len(batch.positions):
            results = network(images)
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
        return FrameOutputs(features, logits, batch.positions, batch.labels, batch.digests, batch.failures)
