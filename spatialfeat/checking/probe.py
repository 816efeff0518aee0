"""How fast is this machine, and how much memory does a batch take? Measured in seconds, with random weights."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from spatialfeat.config import FinetuneConfig
from spatialfeat.data.dataset import FrameDataset
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.transforms import (
    FrameTransform,
    Preprocessing,
    evaluation_transform,
    training_transform,
)
from spatialfeat.network.resnet import InferenceNetwork, PhaseResNet50, freeze
from spatialfeat.training.trainer import TrainingStep

CPU_BATCH = 8
"""A smaller batch than the study's suffices on a CPU, where the time of a frame hardly depends on it."""
SECONDS = 2.0
"""Each of the four measurements ends at about this time."""
SAMPLE_FRAMES = 24


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of one frame, and memory in bytes.

    train_s, inference_s: in the network. load_train_s, load_eval_s: read, decode and transform it in one process.
    train_bytes, inference_bytes: on a GPU what a batch of the study takes there; else the main process with a batch of
    `probe_batch`. frame_bytes: what one more frame in a training batch adds. trained_bytes: the parameters that are
    trained, as float32.
    """

    train_s: float
    inference_s: float
    load_train_s: float
    load_eval_s: float
    train_bytes: int
    inference_bytes: int
    frame_bytes: int
    trained_bytes: int
    probe_batch: int


def measure_speeds(config: FinetuneConfig, tables: Sequence[FrameTable], device: torch.device) -> Speeds:
    """Load a few frames, run a few batches. `tables` must hold frames whose images are readable only.

    `config.precision` is one that the device has, not "auto".

    Raises:
        torch.OutOfMemoryError: a batch does not fit into the GPU.
    """
    preprocessing = Preprocessing.for_image_size(config.image_size_px)
    load_train_s = _seconds_to_load(tables, training_transform(preprocessing))
    load_eval_s = _seconds_to_load(tables, evaluation_transform(preprocessing))
    batch = config.batch_size if device.type == "cuda" else min(config.batch_size, CPU_BATCH)
    shape = (batch, 3, config.image_size_px, config.image_size_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    labels = torch.arange(batch, device=device) % config.num_classes
    model = PhaseResNet50(config.num_classes).to(device)
    network = InferenceNetwork(model, preprocessing, config.precision, batch)
    inference_s = _seconds_per_call(lambda: network(images), device) / batch
    inference_bytes = _peak_bytes(device)
    step, num_trained = _training_step(config, model, preprocessing)
    train_s = _seconds_per_call(lambda: step(images, labels), device) / batch
    return Speeds(
        train_s=train_s,
        inference_s=inference_s,
        load_train_s=load_train_s,
        load_eval_s=load_eval_s,
        train_bytes=_peak_bytes(device),
        inference_bytes=inference_bytes,
        frame_bytes=_saved_bytes_per_frame(step, images[:2], labels[:2]),
        probe_batch=batch,
        trained_bytes=4 * num_trained,
    )


def _training_step(
    config: FinetuneConfig, model: PhaseResNet50, preprocessing: Preprocessing
) -> tuple[TrainingStep, int]:
    """One update as in finetune, and the number of parameters that it trains."""
    freeze(model, config.freeze_until)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    step = TrainingStep(
        model,
        torch.optim.Adam(trained, lr=config.lr),
        nn.CrossEntropyLoss(),
        freeze_until=config.freeze_until,
        preprocessing=preprocessing,
        precision=config.precision,
    )
    step.start_epoch()
    return step, sum(weight.numel() for weight in trained)


def _seconds_per_call(call: Callable[[], object], device: torch.device) -> float:
    """The median of calls that follow a first one, which also pays for preparations."""
    call()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < SECONDS and len(seconds) < 50):
        start = time.monotonic()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - start)
    return float(np.median(seconds))


def _seconds_to_load(tables: Sequence[FrameTable], transform: FrameTransform) -> float:
    """The mean over frames from all over the tables, in one thread as in a decoding process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.monotonic()
        loaded = 0
        while not loaded or (loaded < SAMPLE_FRAMES and time.monotonic() - start < SECONDS):
            table = tables[loaded % len(tables)]
            FrameDataset.from_table(table, transform)[loaded * len(table) // SAMPLE_FRAMES]
            loaded += 1
        return (time.monotonic() - start) / loaded
    finally:
        torch.set_num_threads(threads)


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _saved_bytes_per_frame(step: TrainingStep, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that training keeps of one frame between the forward and the backward pass. images: (B, 3, S, S) uint8."""
    storages: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in step.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(images, labels)
    return sum(storages.values()) // len(images)
