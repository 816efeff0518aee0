"""What finetune and extract will take here: speeds and memory measured in seconds, times the number of frames."""

from __future__ import annotations

import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spatialfeat.checks.findings import Finding
from spatialfeat.config import CheckConfig, FinetuneConfig
from spatialfeat.console import count_text, size_text
from spatialfeat.data.dataset import FrameDataset
from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.data.transforms import FrameTransform, evaluation_transform, training_transform
from spatialfeat.device import (
    augments_on_device,
    choose_workers,
    describe_device,
    prepare_processor,
    usable_cores,
    use_true_float32,
)
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.training.files import study_bytes
from spatialfeat.training.trainer import TrainingStep, make_optimizer

CPU_BATCH = 8
"""A smaller batch than the study's suffices on a CPU, where the time of a frame hardly depends on it."""
SECONDS = 2.0
"""Each of the four measurements ends at about this time."""
SAMPLE_FRAMES = 24

ROW_BYTES = 64
"""What a feature file holds of a frame besides its features and logits: the id, the label, two parsed fields."""
VIDEO_BYTES = 40_000
"""What a feature file holds besides numbers per frame."""
FREE_SHARE = 0.9
"""Results may take this share of the free disk: a full disk makes other programs fail too."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the work is going to be done. gpu_bytes: memory of the GPU, None on a CPU; free_*: now, None if unknown."""

    device: str
    gpu_bytes: int | None
    cores: int
    workers: int
    free_memory_bytes: int | None
    free_disk_bytes: int


def machine_for(workers: int | None, device: torch.device) -> Machine:
    """The machine as a run in this folder would find it. workers: as `--workers`."""
    on_gpu = device.type == "cuda"
    return Machine(
        device=describe_device(device),
        gpu_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        cores=usable_cores(),
        workers=choose_workers(workers, device),
        free_memory_bytes=free_memory(),
        free_disk_bytes=shutil.disk_usage(Path()).free,
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a program can still get: of the machine, or of the container it is in. None if unknown."""
    free: list[int] = []
    meminfo, cgroup = root / "proc/meminfo", root / "sys/fs/cgroup"
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free.append(max(0, int(text) - int(used.read_text())))
    return min(free, default=None)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of one frame, and memory in bytes, as measured.

    train_s, inference_s: in the network. load_train_s, load_eval_s: read, decode and transform it in one process.
    train_bytes, inference_bytes: the most memory, on a GPU of the device, else of this process, after batches of
    `probe_batch` frames.
    """

    train_s: float
    inference_s: float
    load_train_s: float
    load_eval_s: float
    train_bytes: int
    inference_bytes: int
    probe_batch: int


def measure_speeds(config: FinetuneConfig, tables: Sequence[FrameTable], device: torch.device) -> Speeds:
    """Load a few frames, run a few batches. `tables` must hold only frames whose images are readable.

    On a GPU a batch is the study's, on a CPU it is CPU_BATCH. `config.precision` is one that the device has, not
    "auto".

    Raises:
        torch.OutOfMemoryError: a batch does not fit into the GPU.
    """
    backbone = find_backbone(config.backbone)
    preprocessing = backbone.preprocessing(config.image_size_px)
    on_device = augments_on_device(device)
    training = training_transform(preprocessing, config.training_frames_px, on_device=on_device)
    load_train_s = _seconds_to_load(tables, training)
    load_eval_s = _seconds_to_load(tables, evaluation_transform(preprocessing))

    batch = config.batch_size if device.type == "cuda" else min(config.batch_size, CPU_BATCH)
    shape = (batch, 3, config.image_size_px, config.image_size_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    labels = torch.arange(batch, device=device) % config.num_classes
    model = backbone.build(config.num_classes).to(device)
    network = InferenceNetwork(model, preprocessing, config.precision, batch)
    inference_s = _seconds_per_call(lambda: network(images), device) / batch
    inference_bytes = _peak_bytes(device)

    model.freeze(config.freeze_until)
    step = TrainingStep(
        model,
        make_optimizer(model, config.lr),
        nn.CrossEntropyLoss(),
        preprocessing=preprocessing,
        precision=config.precision,
    )
    step.start_epoch()
    return Speeds(
        train_s=_seconds_per_call(lambda: step(images, labels), device) / batch,
        inference_s=inference_s,
        load_train_s=load_train_s,
        load_eval_s=load_eval_s,
        train_bytes=_peak_bytes(device),
        inference_bytes=inference_bytes,
        probe_batch=batch,
    )


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


def _peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds and bytes. finetune_* and the first three are None without a training and a validation CSV.

    first_stop_s: after patience + 1 epochs, the earliest end of a training. most_s: after all epochs.
    memory: this program's with a batch, as measured on a CPU. gpu: the device's, as measured on a GPU. The other is
    None.
    """

    epoch_s: float | None
    first_stop_s: float | None
    most_s: float | None
    finetune_memory_bytes: int | None
    finetune_gpu_bytes: int | None
    finetune_disk_bytes: int | None
    extract_s: float
    extract_memory_bytes: int | None
    extract_gpu_bytes: int | None
    extract_disk_bytes: int
    machine: Machine
    speeds: Speeds

    def as_dict(self) -> dict[str, Any]:
        """As check.json has it."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def estimate_runs(
    config: FinetuneConfig, tables: Sequence[FrameTable], num_videos: int, speeds: Speeds, machine: Machine
) -> Estimate:
    """What finetune and extract will take. num_videos: of all tables."""
    rows: dict[str, int] = {}
    for table in tables:
        # Training and validation leave unlabelled frames out, test and extraction compute them too.
        num_rows = len(table) if table.split == "test" else int((table.labels != UNLABELLED).sum())
        rows[table.split] = rows.get(table.split, 0) + num_rows
    frames = sum(map(len, tables))
    train_s = frame_seconds(speeds.train_s, speeds.load_train_s, machine)
    eval_s = frame_seconds(speeds.inference_s, speeds.load_eval_s, machine)
    on_gpu = machine.gpu_bytes is not None

    backbone = find_backbone(config.backbone)
    epoch_s = first_stop_s = most_s = train_bytes = finetune_disk_bytes = None
    if rows.get("train") and rows.get("val"):
        epoch_s = rows["train"] * train_s + rows["val"] * eval_s
        test_s = rows.get("test", 0) * eval_s
        first_stop_s = min(config.patience + 1, config.epochs) * epoch_s + test_s
        most_s = config.epochs * epoch_s + test_s
        train_bytes = speeds.train_bytes
        finetune_disk_bytes = study_bytes(backbone.build_empty(config.num_classes), config.freeze_until)

    numbers_bytes = (backbone.num_features + config.num_classes) * np.dtype(np.float32).itemsize
    return Estimate(
        epoch_s=epoch_s,
        first_stop_s=first_stop_s,
        most_s=most_s,
        finetune_memory_bytes=None if on_gpu else train_bytes,
        finetune_gpu_bytes=train_bytes if on_gpu else None,
        finetune_disk_bytes=finetune_disk_bytes,
        extract_s=frames * eval_s,
        extract_memory_bytes=None if on_gpu else speeds.inference_bytes,
        extract_gpu_bytes=speeds.inference_bytes if on_gpu else None,
        extract_disk_bytes=frames * (numbers_bytes + ROW_BYTES) + num_videos * VIDEO_BYTES,
        machine=machine,
        speeds=speeds,
    )


def frame_seconds(network_s: float, load_s: float, machine: Machine) -> float:
    """Seconds per frame when `workers` processes load frames while the network computes.

    On a CPU both compete for the same cores; a GPU waits only if the processes are too slow.
    """
    if machine.workers == 0:
        return network_s + load_s
    if machine.gpu_bytes is not None:
        return max(network_s, load_s / min(machine.workers, machine.cores))
    return max(network_s + load_s / machine.cores, load_s / machine.workers)


def check_room(estimate: Estimate) -> Iterator[Finding]:
    """Does all of it fit on this machine?"""
    machine = estimate.machine
    disk = (estimate.finetune_disk_bytes or 0) + estimate.extract_disk_bytes
    if disk > FREE_SHARE * machine.free_disk_bytes:
        free = size_text(machine.free_disk_bytes)
        message = f"finetune and extract write about {size_text(disk)} here, {free} are free"
        yield Finding("disk-too-small", message, "make room, or pass --out on another disk to both")
    memory = max(estimate.finetune_memory_bytes or 0, estimate.extract_memory_bytes or 0)
    if machine.free_memory_bytes is not None and memory > machine.free_memory_bytes:
        batch, free = count_text(estimate.speeds.probe_batch, "frame"), size_text(machine.free_memory_bytes)
        message = f"a batch of {batch} took {size_text(memory)} of memory, {free} were free"
        yield Finding("memory-too-small", message, "close other programs, or lower --batch-size and --workers")


def estimate_study(
    config: CheckConfig, tables: Sequence[FrameTable], num_videos: int, readable: Sequence[str], device: torch.device
) -> tuple[Estimate | None, list[Finding]]:
    """Measure and multiply. Returns the estimate, None where a batch does not fit into the GPU, and what does not fit.

    `config.precision` is one that the device has. num_videos: of all tables. readable: names of the images that can be
    read, at least one.
    """
    logger.info("measuring how fast this machine trains: a few seconds")
    use_true_float32()
    prepare_processor()
    study, machine = config.study(), machine_for(config.workers, device)
    sound = [table.take(np.isin(table.image_names, readable)) for table in tables]
    try:
        speeds = measure_speeds(study, [table for table in sound if len(table)], device)
    except torch.OutOfMemoryError:
        message = f"a training batch of {config.batch_size} frames does not fit into the memory of {device}"
        return None, [Finding("gpu-memory-too-small", message, "lower --batch-size, or free the GPU of other programs")]
    estimate = estimate_runs(study, tables, num_videos, speeds, machine)
    return estimate, list(check_room(estimate))
