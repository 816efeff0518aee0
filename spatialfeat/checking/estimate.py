"""From measured speeds and the number of frames to time, memory and disk of finetune and extract: estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spatialfeat.checking.findings import Finding
from spatialfeat.checking.probe import Speeds
from spatialfeat.config import FinetuneConfig
from spatialfeat.info import format_size

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
                message=f"finetune and extract write about {format_size(disk)} here, "
                f"{format_size(machine.free_disk_bytes)} are free",
                remedy="make room, or pass --out on another disk to both",
                unit="disk",
            )
        )
    memory = max(estimate.finetune_memory_bytes or 0, estimate.extract_memory_bytes)
    if machine.free_memory_bytes is not None and memory > machine.free_memory_bytes:
        findings.append(
            Finding(
                code="memory-too-small",
                message=f"a run takes about {format_size(memory)} of memory, "
                f"{format_size(machine.free_memory_bytes)} are free now",
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
