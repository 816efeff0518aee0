"""The one evaluation-mode loop: validation, evaluate and extract all use it, so their numbers cannot drift apart.

Frames in, predicted phases out: the step that evaluation and the test stage of fine-tuning share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from spatialfeat.console import frame_bar
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import FrameBatch, FrameDataset, make_loader, refuse_failures
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.transforms import Preprocessing, evaluation_transform
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import write_csv
from spatialfeat.network.resnet import InferenceNetwork, PhaseResNet50
from spatialfeat.scores.calibration import softmax
from spatialfeat.scores.predictions import NETWORK_NAME, FramePredictions, PredictionSet

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


@dataclass(frozen=True)
class Predictions:
    """Predicted phases of N frames, in CSV order.

    ids: (N,) str. labels, predicted: (N,) int64. logits: (N, num_classes) float32.
    """

    ids: NDArray[Any]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """The fraction of frames whose phase is right, all frames counted alike."""
        return float((self.predicted == self.labels).mean())


def predict_frames(
    model: PhaseResNet50,
    table: FrameTable,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int,
    title: str,
    cache: FrameCache | None = None,
    group: ProcessGroup | None = None,
) -> Predictions:
    """Run the network over every row of `table`. Raises SpatialfeatError for an image that cannot be decoded.

    Args:
        group: processes that share the work, each of which gets all predictions; None is this one alone.
    """
    rank, size = (group.rank, group.size) if group else (0, 1)
    dataset = FrameDataset.from_table(table, evaluation_transform(preprocessing), cache=cache)
    rows = range(rank, len(table), size)
    loader = make_loader(dataset, batch_size=batch_size, rows=rows, workers=workers, device=device)
    logits = np.zeros((len(table), model.fc.out_features), np.float32)
    with frame_bar(len(table), title) as bar:
        for outputs in run_inference(model, loader, device, preprocessing, precision, batch_size):
            refuse_failures(dataset, outputs.failures)
            for row in outputs.rows_not_finite():
                raise SpatialfeatError(f"{dataset.image_path(row)}: {NOT_FINITE}")
            logits[outputs.rows] = outputs.logits
            bar.advance(len(outputs.rows) * size)
    if group:
        logits = group.sum(logits)  # Every row is zero in all processes but one.
    return Predictions(table.ids, table.labels, logits.argmax(axis=1), logits)


def as_set(table: FrameTable, predictions: Predictions) -> PredictionSet:
    """The predictions of `table`'s frames, with softmax probabilities, ready to be scored."""
    probabilities = softmax(predictions.logits).astype(np.float32)
    part = FramePredictions(table=table, predicted=predictions.predicted, probabilities=probabilities)
    return PredictionSet(name=NETWORK_NAME, parts=(part,))


def write_predictions_csv(path: Path, predictions: Predictions | FramePredictions) -> None:
    """The specification's `img_id,true_label,predicted_label`, one line per row of the CSV, in its order."""
    frame = pd.DataFrame(
        {"img_id": predictions.ids, "true_label": predictions.labels, "predicted_label": predictions.predicted}
    )
    write_csv(path, frame)
