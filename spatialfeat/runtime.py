"""The machine: device, processor cores, seeds, and the promise that float32 means float32."""

from __future__ import annotations

import logging
import os
import platform
import random
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialfeat.errors import SpatialfeatError

MAX_WORKERS = 16

logger = logging.getLogger(__name__)


def select_device(requested: str = "auto") -> torch.device:
    """The device to compute on: with "auto" the first visible CUDA device if it works, else the CPU.

    `CUDA_VISIBLE_DEVICES` is respected, since CUDA itself hides the other devices.

    Raises:
        SpatialfeatError: an unknown name, or a CUDA device named by the user that cannot be used.
    """
    if requested == "auto":
        problem = _cuda_problem(torch.device("cuda"))
        if problem is None:
            return torch.device("cuda")
        if problem != "no CUDA device is visible":
            logger.warning("computing on the CPU: the CUDA device cannot be used (%s)", problem)
        return torch.device("cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise SpatialfeatError(f"--device {requested}: unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        problem = _cuda_problem(device)
        if problem is not None:
            raise SpatialfeatError(f"--device {requested}: {problem}; pass --device cpu to compute on the CPU")
    elif requested != "cpu":
        raise SpatialfeatError(f"--device {requested}: not supported; use auto, cpu, cuda or cuda:N")
    return device


def _cuda_problem(device: torch.device) -> str | None:
    """Why `device` cannot be used, or None. Runs one small kernel: a device can be visible and still not work."""
    with warnings.catch_warnings():
        # torch warns of a driver that does not fit (error 804 and its kin) and then reports no device.
        # This warning alone is silenced: the CPU is used, and the run says so.
        warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        if device.index is not None and device.index >= torch.cuda.device_count():
            return f"only {torch.cuda.device_count()} CUDA device(s) are visible"
        try:
            torch.ones(1, device=device).add_(1).item()
        except RuntimeError as error:
            return str(error).strip().split("\n")[0]
    return None


def describe_device(device: torch.device) -> str:
    """`cuda (NVIDIA H100 80GB HBM3)` or `cpu (2 cores)`, for people and for run.json."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({usable_cores()} cores)"


def usable_cores() -> int:
    """Processor cores that this process may use: its affinity, and a container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_path = Path("/sys/fs/cgroup/cpu.max")
    if quota_path.is_file():
        quota, period = quota_path.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def choose_workers(requested: int | None, device: torch.device) -> int:
    """Decoding processes: as asked, else all cores beside a GPU, or half of them where the CPU also computes."""
    if requested is not None:
        return requested
    cores = usable_cores()
    return min(cores if device.type == "cuda" else max(1, cores // 2), MAX_WORKERS)


def seed_everything(seed: int) -> None:
    """Seed every random number generator that this program's libraries draw from, and make CUDA repeatable."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # libraries may draw from the global generator
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the generators that `seed_everything` seeds, as numbers, lists and tensors."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": [list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached_gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `random_state` was taken. A GPU's generator has no counterpart on the CPU."""
    words, gauss = state["python"]
    random.setstate((random.getstate()[0], tuple(words), gauss))
    keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached_gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def use_true_float32() -> None:
    """Turn off TF32: GPUs would otherwise round inputs of convolutions to 10 bits and call it float32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def library_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    import PIL
    import torchvision

    from spatialfeat import __version__

    return {
        "spatialfeat": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # A subclass of str, which `training_state.pt` would refuse.
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "h5py": metadata.version("h5py"),
    }
