"""The machine: device, processor cores, seeds, and the promise that float32 means float32."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialfeat.errors import SpatialfeatError

MAX_WORKERS = 16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision by name, as options and files say it."""

GAIN_OF_BF16 = "measured on an H200: the network alone is 5 times as fast, to train and to extract"
"""Against float32 without TF32, batches of 32: 6,127 to 1,203 and 12,274 to 2,456 frames/s (benchmarks/results)."""

NO_CUDA_DEVICE = "no CUDA device is visible"

FREED_MEMORY_TO_KEEP = 1 << 30
CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""
CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what each processor can do."""

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
        if problem != NO_CUDA_DEVICE:
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
            return NO_CUDA_DEVICE
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
    cores = usable_cores()
    return f"cpu ({cores} core{'' if cores == 1 else 's'})"


def choose_precision(requested: str, device: torch.device) -> str:
    """The precision to compute in: "auto" is bf16 where the device computes it natively, else fp16, else fp32.

    That is bf16 on GPUs since Ampere and on processors with AVX512-BF16, AMX or ARM's BF16, fp16 on GPUs with older
    tensor cores, fp32 elsewhere.

    Raises:
        SpatialfeatError: the device could only emulate the precision asked for, at a loss of speed.
    """
    native = _native_precisions(device)
    if requested == "auto":
        return next(name for name in ("bf16", "fp16", "fp32") if name in native)
    if requested not in native:
        raise SpatialfeatError(
            f"--precision {requested}: {describe_device(device)} does not compute it natively; "
            f"pass one of auto, {', '.join(native)}"
        )
    return requested


def _native_precisions(device: torch.device) -> list[str]:
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return ["fp32"] + ["bf16"] * (major >= 8) + ["fp16"] * (major >= 7)
    return ["fp32"] + ["bf16"] * bool({"avx512_bf16", "amx_bf16", "bf16"} & _processor_flags())


def _processor_flags() -> set[str]:
    """Instruction sets as Linux names them; empty on other systems."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")  # The second on ARM.
    return set(flags.partition(":")[2].split())


def prepare_processor() -> None:
    """Compute on the cores that are granted, not on all that show, and keep memory between batches."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    # The C library would hand freed memory back to the system each time. Activations are tens of megabytes; fresh pages
    # for each of them cost 5 to 40 % of a network's time on a CPU.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # macOS and musl have none.
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, FREED_MEMORY_TO_KEEP)
        mallopt(mmap_threshold, FREED_MEMORY_TO_KEEP)


def describe_arithmetic(device: torch.device, precision: str) -> str:
    """`cpu (2 cores), fp32; --precision auto would take bf16, which is faster`: what computes, for people."""
    text = f"{describe_device(device)}, {precision}"
    fastest = choose_precision("auto", device)
    if precision == "fp32" != fastest:
        text += f"; --precision auto would take {fastest}, which is faster and slightly less exact"
        text += f" ({GAIN_OF_BF16})" if device.type == "cuda" and fastest == "bf16" else ""
    return text


def records_graphs(device: torch.device) -> bool:
    """Whether training steps and evaluation are recorded as CUDA graphs: on GPUs, unless the environment says no."""
    return _choice("SPATIALFEAT_CUDA_GRAPHS", ("1", "0"), "1") == "1" and device.type == "cuda"


def augments_on_device(device: torch.device) -> bool:
    """Whether training frames are augmented in batches on the device, or one by one in the decoding processes.

    On a GPU the first, on a CPU the second, unless the environment says otherwise; the same up to rounding.
    """
    usual = "device" if device.type == "cuda" else "workers"
    return _choice("SPATIALFEAT_AUGMENT", ("device", "workers"), usual) == "device"


def _choice(name: str, values: tuple[str, ...], usual: str) -> str:
    """A switch for comparisons, from the environment."""
    value = os.environ.get(name, usual)
    if value not in values:
        raise SpatialfeatError(f"environment variable {name}={value}: must be {' or '.join(values)}; unset it")
    return value


def usable_cores() -> int:
    """Processor cores that this process may use: its affinity, and a container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Microseconds of processor time that a container grants per period, and the period. Version 2 of cgroups has one
    # file with both, and `max` for no limit; version 1 a file each, and -1.
    files = [CGROUPS / "cpu.max"]
    if not files[0].is_file():
        files = [CGROUPS / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
    if not files[0].is_file():
        return cores
    quota_us, period_us = " ".join(path.read_text() for path in files).split()
    return cores if quota_us in ("max", "-1") else min(cores, max(1, int(quota_us) // int(period_us)))


def choose_workers(requested: int | None, device: torch.device, *, processes: int = 1) -> int:
    """Decoding processes: as asked, else all cores beside a GPU, or half of them where the CPU also computes.

    Args:
        processes: so many processes on this machine ask for theirs; each gets its share of the cores.
    """
    if requested is not None:
        return requested
    cores = max(1, usable_cores() // processes)
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
