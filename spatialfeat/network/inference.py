"""The one evaluation-mode loop: validation, evaluate and extract all use it, so their numbers cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.data.dataset import FrameBatch
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.network.fastnetwork import InferenceNetwork
from spatialfeat.network.model import PhaseResNet50

NOT_FINITE = "the network's output is NaN or infinite; use other weights, or a finer --precision"


class FrameOutputs(NamedTuple):
    """What the network says of G frames, in the order of the loader.

    features (G, 2048) float32, logits (G, num_classes) float32, rows and labels (G,) int64, digests: G times 16 bytes,
    failures: (row, reason) of the frames that could not be decoded.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    digests: list[bytes]
    failures: list[tuple[int, str]]

    def rows_not_finite(self) -> list[int]:
        """Rows whose features or logits hold NaN or infinity: nobody must take such numbers for results."""
        finite = np.isfinite(self.features).all(axis=1) & np.isfinite(self.logits).all(axis=1)
        found: list[int] = self.rows[~finite].tolist()
        return found


def run_inference(
    model: PhaseResNet50,
    batches: Iterable[FrameBatch],
    device: torch.device,
    preprocessing: Preprocessing,
    precision: str,
    batch_size: int,
) -> Iterator[FrameOutputs]:
    """Run the model, as its weights are now, over `batches` on `device`: one FrameOutputs per batch.

    The model is moved to `device`; its training mode has no influence and is left as it is.
    """
    network = InferenceNetwork(model.to(device), preprocessing, precision, batch_size)
    running: _Running | None = None
    for batch in batches:
        # A GPU works on this batch while the results of the one before are copied and written.
        started = _Running(network, batch, device)
        if running is not None:
            yield running.outputs()
        running = started
    if running is not None:
        yield running.outputs()


class _Running:
    """A batch that was handed to the device; on a GPU, its results are on their way."""

    def __init__(self, network: InferenceNetwork, batch: FrameBatch, device: torch.device) -> None:
        self._batch = batch
        self._results: tuple[torch.Tensor, ...] = (torch.empty(0, 0), torch.empty(0, 0))
        self._copied: torch.cuda.Event | None = None
        if len(batch.rows):
            results = network(batch.images.to(device, non_blocking=True))
            self._results = tuple(result.to("cpu", non_blocking=True) for result in results)
            if device.type == "cuda":
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(device))

    def outputs(self) -> FrameOutputs:
        """Wait for the results."""
        if self._copied is not None:
            self._copied.synchronize()
        features, logits = (result.numpy() for result in self._results)
        batch = self._batch
        return FrameOutputs(features, logits, batch.rows.numpy(), batch.labels.numpy(), batch.digests, batch.failures)
