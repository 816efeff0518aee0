"""What there is to work with: cores, memory and disk that are free now."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from spatialfeat.checking.estimate import Machine
from spatialfeat.device import choose_workers, describe_device, usable_cores


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
