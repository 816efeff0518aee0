"""The one evaluation-mode loop: validation, evaluate and extract all use it, so their numbers cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.data.dataset import FrameBatch
from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.network.model import PhaseResNet50


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


def run_inference(
    model: PhaseResNet50, batches: Iterable[FrameBatch], device: torch.device, preprocessing: Preprocessing
) -> Iterator[FrameOutputs]:
    """Put the model into evaluation mode on `device` and run it over `batches`, one FrameOutputs per batch."""
    model.to(device).eval()
    for batch in batches:
        if len(batch.rows):
            with torch.inference_mode():
                images = normalize(batch.images.to(device, non_blocking=True), preprocessing)
                features, logits = model.features_and_logits(images)
            arrays = features.cpu().numpy(), logits.cpu().numpy()
        else:
            arrays = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        yield FrameOutputs(*arrays, batch.rows.numpy(), batch.labels.numpy(), batch.digests, batch.failures)
