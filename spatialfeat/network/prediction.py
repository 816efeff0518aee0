"""Frames in, predicted phases out: the step that evaluation and the test stage of fine-tuning share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from spatialfeat.console import frame_bar
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import FrameDataset, make_loader, refuse_failures
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.transforms import Preprocessing, evaluation_transform
from spatialfeat.distributed import ProcessGroup
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluating.evaluationinput import NETWORK_NAME, FramePredictions, PredictionSet
from spatialfeat.files import write_csv
from spatialfeat.network.inference import NOT_FINITE, run_inference
from spatialfeat.network.model import PhaseResNet50
from spatialfeat.scores.calibration import softmax


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
