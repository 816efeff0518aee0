"""From measured speeds and the number of frames to time, memory and disk of finetune and extract: estimates.

What there is to work with: cores, memory and disk that are free now.

How fast is this machine, and how much memory does a batch take? Measured in seconds, with random weights.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spatialfeat.checks.findings import Finding
from spatialfeat.config import FinetuneConfig
from spatialfeat.console import size_text
from spatialfeat.data.dataset import FrameDataset
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.transforms import FrameTransform, Preprocessing, evaluation_transform, training_transform
from spatialfeat.device import choose_workers, describe_device, usable_cores
from spatialfeat.network.resnet import InferenceNetwork, PhaseResNet50
from spatialfeat.training.trainer import TrainingStep

FEATURES = 2048
WEIGHTS_BYTES = 94_400_000
"""A ResNet-50, on disk and in memory."""
VIDEO_BYTES = 40_000
"""What a feature file holds besides numbers per frame."""
WORKER_BYTES = 180_000_000
"""What a decoding process has for itself."""
GPU_HOST_BYTES = 3_000_000_000
PREFETCHED = 2
"""Batches that every decoding process keeps ready."""
TRANSIENT_BYTES_PER_PX = 210
"""Of one more frame in evaluation, per input pixel: the widest layer's input and output, and a copy."""
FREE_SHARE = 0.9
"""A file system fuller than this share of what is free is asking for trouble."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is going to be done. gpu_bytes: memory of the GPU, None on a CPU; free_*: now, None if unknown."""

    device: str
    gpu_bytes: int | None
    cores: int
    workers: int
    free_memory_bytes: int | None
    free_disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds and bytes. finetune_* are None without a training and a validation CSV.

    first_stop_s: after patience + 1 epochs, the earliest end of a training. most_s: after all epochs.
    memory: of the program with its decoding processes. gpu: on the GPU, None on a CPU.
    """

    epoch_s: float | None
    first_stop_s: float | None
    most_s: float | None
    finetune_memory_bytes: int | None
    finetune_gpu_bytes: int | None
    finetune_disk_bytes: int | None
    extract_s: float
    extract_memory_bytes: int
    extract_gpu_bytes: int | None
    extract_disk_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(self).items()}


def frame_seconds(network_s: float, load_s: float, machine: Machine) -> float:
    """Seconds per frame when `workers` processes load frames while the network computes.

    On a CPU both compete for the same cores; a GPU waits only if the processes are too slow.
    """
    if machine.workers == 0:
        return network_s + load_s
    if machine.gpu_bytes is not None:
        return max(network_s, load_s / min(machine.workers, machine.cores))
    return max(network_s + load_s / machine.cores, load_s / machine.workers)


def estimate_runs(
    config: FinetuneConfig, rows: dict[str, int], num_videos: int, speeds: Speeds, machine: Machine
) -> Estimate:
    """What finetune and extract will take.

    Args:
        rows: {split: frames}. num_videos: of all splits.
    """
    train_s = frame_seconds(speeds.train_s, speeds.load_train_s, machine)
    eval_s = frame_seconds(speeds.inference_s, speeds.load_eval_s, machine)
    frames = sum(rows.values())
    trains = "train" in rows and "val" in rows
    epoch_s = rows["train"] * train_s + rows["val"] * eval_s if trains else None
    test_s = rows.get("test", 0) * eval_s
    on_gpu = machine.gpu_bytes is not None
    more_frames = 0 if on_gpu else config.batch_size - speeds.probe_batch
    workers_bytes = machine.workers * (WORKER_BYTES + PREFETCHED * config.batch_size * 3 * config.image_size_px**2)
    transient = more_frames * TRANSIENT_BYTES_PER_PX * config.image_size_px**2
    copies = 2 * WEIGHTS_BYTES + 2 * speeds.trained_bytes  # The best weights, and an epoch's state on its way to disk.
    # On a GPU the process itself is mostly libraries and the CUDA driver.
    train_bytes, eval_bytes = (GPU_HOST_BYTES,) * 2 if on_gpu else (speeds.train_bytes, speeds.inference_bytes)
    train_bytes += more_frames * speeds.frame_bytes + copies
    return Estimate(
        epoch_s=epoch_s,
        first_stop_s=None if epoch_s is None else min(config.patience + 1, config.epochs) * epoch_s + test_s,
        most_s=None if epoch_s is None else config.epochs * epoch_s + test_s,
        finetune_memory_bytes=train_bytes + workers_bytes if trains else None,
        finetune_gpu_bytes=speeds.train_bytes if trains and on_gpu else None,
        finetune_disk_bytes=study_bytes(speeds.trained_bytes) + 200 * rows.get("test", 0) if trains else None,
        extract_s=frames * eval_s,
        extract_memory_bytes=eval_bytes + transient + workers_bytes,
        extract_gpu_bytes=speeds.inference_bytes if on_gpu else None,
        extract_disk_bytes=features_bytes(frames, num_videos, config.num_classes),
    )


def study_bytes(trained_bytes: int) -> int:
    """What a study has on disk while it saves an epoch: the old and the new weights, the old and the new state.

    A state holds the network, its best weights, and Adam's two numbers per trained parameter.
    """
    return 2 * WEIGHTS_BYTES + 2 * (2 * WEIGHTS_BYTES + 2 * trained_bytes)


def features_bytes(frames: int, num_videos: int, num_classes: int) -> int:
    """Size of all feature files: float32 features and logits, labels, ids and two parsed fields per frame."""
    return frames * ((FEATURES + num_classes) * 4 + 3 * 8 + 40) + num_videos * VIDEO_BYTES


def check_room(estimate: Estimate, machine: Machine) -> list[Finding]:
    """Does all of it fit on this machine?"""
    findings = []
    disk = (estimate.finetune_disk_bytes or 0) + estimate.extract_disk_bytes
    if disk > FREE_SHARE * machine.free_disk_bytes:
        findings.append(
            Finding(
                code="disk-too-small",
                message=f"finetune and extract write about {size_text(disk)} here, "
                f"{size_text(machine.free_disk_bytes)} are free",
                remedy="make room, or pass --out on another disk to both",
                unit="disk",
            )
        )
    memory = max(estimate.finetune_memory_bytes or 0, estimate.extract_memory_bytes)
    if machine.free_memory_bytes is not None and memory > machine.free_memory_bytes:
        findings.append(
            Finding(
                code="memory-too-small",
                message=f"a run takes about {size_text(memory)} of memory, "
                f"{size_text(machine.free_memory_bytes)} are free now",
                remedy="close other programs, or lower --batch-size and --workers",
                unit="machine",
            )
        )
    return findings


def rows_by_split(tables: Sequence[Any]) -> dict[str, int]:
    """{split: frames}."""
    rows: dict[str, int] = {}
    for table in tables:
        rows[table.split] = rows.get(table.split, 0) + len(table)
    return rows


def machine_for(workers: int | None, device: torch.device, disk: Path) -> Machine:
    """The machine as a run would find it. workers: as `--workers`. disk: a folder on the disk of the results."""
    on_gpu = device.type == "cuda"
    return Machine(
        device=describe_device(device),
        gpu_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        cores=usable_cores(),
        workers=choose_workers(workers, device),
        free_memory_bytes=free_memory(),
        free_disk_bytes=shutil.disk_usage(disk).free,
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a program can still get: of the machine, or of the container it is in. None where nobody tells."""
    free = [
        room for room in (_of_machine(root / "proc/meminfo"), _of_container(root / "sys/fs/cgroup")) if room is not None
    ]
    return min(free, default=None)


def _of_machine(meminfo: Path) -> int | None:
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_container(cgroup: Path) -> int | None:
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not (limit.is_file() and used.is_file()):
        return None
    text = limit.read_text().strip()
    return None if text == "max" else max(0, int(text) - int(used.read_text()))


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
    model.freeze(config.freeze_until)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    step = TrainingStep(
        model,
        torch.optim.Adam(trained, lr=config.lr),
        nn.CrossEntropyLoss(),
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
            FrameDataset(table, transform)[loaded * len(table) // SAMPLE_FRAMES]
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
