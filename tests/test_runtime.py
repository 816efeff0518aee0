"""The machine: which device, how many cores, repeatable seeds. No GPU is needed: torch's answers are replaced."""

from __future__ import annotations

import json
import logging
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialfeat import device as runtime
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    prepare_processor,
    random_state,
    restore_random_state,
    seed_everything,
    select_device,
    usable_cores,
    use_true_float32,
)
from spatialfeat.errors import SpatialfeatError

CUDA_804 = (
    "CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error 804: forward compatibility was attempted on non "
    "supported HW (Triggered internally at CUDAFunctions.cpp:109.)"
)


def _pretend_cuda(monkeypatch: pytest.MonkeyPatch, devices: int, error: str | None = None) -> list[str]:
    """Let torch see that many CUDA devices; a kernel on them fails with `error`. Returns the devices tried."""
    tried: list[str] = []
    cpu_ones = torch.ones

    def ones(size: int, device: torch.device) -> torch.Tensor:
        tried.append(str(device))
        if error is not None:
            raise RuntimeError(error)
        return cpu_ones(size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch, "ones", ones)
    return tried


def test_auto_without_cuda_is_the_cpu_and_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _pretend_cuda(monkeypatch, devices=0)
    assert select_device("auto") == torch.device("cpu")
    assert caplog.messages == []


def test_auto_takes_the_first_visible_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _pretend_cuda(monkeypatch, devices=4)
    # No index: CUDA_VISIBLE_DEVICES decides which device is the first.
    assert select_device() == torch.device("cuda")
    assert tried == ["cuda"]


def test_auto_falls_back_to_the_cpu_when_the_device_does_not_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _pretend_cuda(monkeypatch, devices=1, error="CUDA error: no kernel image is available\nCompile with TORCH_USE_")
    with caplog.at_level(logging.WARNING):
        assert select_device("auto") == torch.device("cpu")
    assert caplog.messages == [
        "computing on the CPU: the CUDA device cannot be used (CUDA error: no kernel image is available)"
    ]


def test_a_named_device_is_used_or_refused_but_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuda(monkeypatch, devices=2)
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("cuda") == torch.device("cuda")
    assert select_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SpatialfeatError, match=r"--device cuda:2: only 2 CUDA device\(s\) are visible; pass --device"):
        select_device("cuda:2")
    _pretend_cuda(monkeypatch, devices=0)
    with pytest.raises(SpatialfeatError, match="--device cuda: no CUDA device is visible; pass --device cpu"):
        select_device("cuda")
    _pretend_cuda(monkeypatch, devices=1, error="CUDA error: out of memory")
    with pytest.raises(SpatialfeatError, match="--device cuda: CUDA error: out of memory; pass --device cpu"):
        select_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "0", "cuda:", "cuda:-1", "cuda:x", "mps", "meta", "cpu:3"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(SpatialfeatError, match=f"--device {name}: .*use auto, cpu, cuda or cuda:N"):
        select_device(name)


def test_the_cuda_initialization_warning_is_silenced_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn(CUDA_804, UserWarning, stacklevel=1)
        warnings.warn("Can't initialize NVML", UserWarning, stacklevel=1)
        warnings.warn("CUDA initialization, but not torch's kind of warning", RuntimeWarning, stacklevel=1)
        warnings.warn("something about CUDA initialization", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert select_device("auto") == torch.device("cpu")
        # The filter ends with the look at the device.
        warnings.warn(CUDA_804, UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == [
        "Can't initialize NVML",
        "CUDA initialization, but not torch's kind of warning",
        "something about CUDA initialization",
        CUDA_804,
    ]


def _pretend_cores(monkeypatch: pytest.MonkeyPatch, cores: int, cpu_max: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(runtime, "CGROUPS", cpu_max.parent)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_usable_cores_respect_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        (None, 12),
        ("max 100000\n", 12),
        ("400000 100000\n", 4),
        ("50000 100000\n", 1),
        ("250000 100000\n", 2),
        ("6400000 100000\n", 12),
    ],
)
def test_usable_cores_respect_a_containers_quota(
    cpu_max: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpu_max is not None:
        (tmp_path / "cpu.max").write_text(cpu_max)
    _pretend_cores(monkeypatch, 12, tmp_path / "cpu.max")
    assert usable_cores() == expected


@pytest.mark.parametrize(("quota_us", "expected"), [(250_000, 2), (-1, 12), (1_000, 1)])
def test_usable_cores_respect_an_older_containers_quota(
    quota_us: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    _pretend_cores(monkeypatch, 12, tmp_path / "cpu.max")
    assert usable_cores() == expected


def test_computing_takes_the_granted_cores_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    _pretend_cores(monkeypatch, 12, tmp_path / "cpu.max")
    try:
        prepare_processor()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("cpu_count", "expected"), [(6, 6), (None, 1)])
def test_usable_cores_without_affinity(
    cpu_count: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_cores(monkeypatch, 1, tmp_path / "cpu.max")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cpu_count)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("requested", "device", "cores", "expected"),
    [
        (0, "cpu", 8, 0),
        (3, "cuda", 1, 3),
        (None, "cpu", 8, 4),
        (None, "cpu", 1, 1),
        (None, "cuda", 8, 8),
        (None, "cuda", 64, 16),
        (None, "cpu", 64, 16),
    ],
)
def test_workers(
    requested: int | None, device: str, cores: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_cores(monkeypatch, cores, tmp_path / "cpu.max")
    assert choose_workers(requested, torch.device(device)) == expected


def test_describe_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cores(monkeypatch, 5, tmp_path / "cpu.max")
    assert describe_device(torch.device("cpu")) == "cpu (5 cores)"
    _pretend_cores(monkeypatch, 1, tmp_path / "cpu.max")
    assert describe_device(torch.device("cpu")) == "cpu (1 core)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert describe_device(torch.device("cuda:1")) == "cuda:1 (NVIDIA H100 80GB HBM3)"


def test_the_same_seed_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def draw(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    first = draw(1)
    assert draw(1) == first
    assert all(one != other for one, other in zip(first, draw(2), strict=True))
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_every_generator_goes_on_where_its_state_was_taken() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(1))  # noqa: NPY002

    seed_everything(3)
    draw()  # Now the generators of normal numbers hold a second one back.
    state = random_state(torch.device("cpu"))
    expected = draw()
    seed_everything(4)
    restore_random_state(state, torch.device("cpu"))
    assert draw() == expected
    # Plain numbers only, whatever a file format makes of tuples.
    plain = {name: value for name, value in state.items() if name != "torch"}
    restore_random_state(json.loads(json.dumps(plain)) | {"torch": state["torch"]}, torch.device("cpu"))
    assert draw() == expected


def test_float32_is_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    use_true_float32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("capability", "flags", "native"),
    [
        ((9, 0), "", ["bf16", "fp16", "fp32"]),
        ((8, 6), "", ["bf16", "fp16", "fp32"]),
        ((7, 5), "", ["fp16", "fp32"]),
        ((6, 1), "", ["fp32"]),
        (None, "fpu avx512f avx512_bf16", ["bf16", "fp32"]),
        (None, "fpu amx_bf16", ["bf16", "fp32"]),
        (None, "fpu avx512f avx512_vnni", ["fp32"]),
        (None, "fp asimd sve i8mm bf16", ["bf16", "fp32"]),
        (None, "fp asimd fphp asimdhp", ["fp32"]),
    ],
)
def test_precision_is_what_the_device_computes_natively(
    capability: tuple[int, int] | None, flags: str, native: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_processor_flags", lambda: set(flags.split()))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    device = torch.device("cpu" if capability is None else "cuda")
    assert choose_precision("auto", device) == native[0]
    for precision in ("bf16", "fp16", "fp32"):
        if precision in native:
            assert choose_precision(precision, device) == precision
        else:
            with pytest.raises(SpatialfeatError, match=f"--precision {precision}: .* does not compute it natively"):
                choose_precision(precision, device)
    hint = f"--precision auto would take {native[0]}"
    assert (hint in describe_arithmetic(device, "fp32")) == (native[0] != "fp32")
    assert hint not in describe_arithmetic(device, native[0])
    # On a GPU, where it matters most, with what was measured, which was bf16.
    measured = "the network alone is 5 times as fast, to train and to extract"
    assert (measured in describe_arithmetic(device, "fp32")) == (device.type == "cuda" and native[0] == "bf16")


@pytest.mark.parametrize(
    ("lines", "precision"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 amx_bf16 avx512_fp16\nbugs\t\t: spectre_v1\n", "bf16"),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2\nvmx flags\t: vnmi\nbugs\t\t: amx_bf16\n", "fp32"),
        ("BogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve i8mm bf16 dgh\nCPU implementer\t: 0x41\n", "bf16"),
        ("BogoMIPS\t: 243.75\nFeatures\t: fp asimd evtstrm\nCPU implementer\t: 0x41\n", "fp32"),
        (None, "fp32"),
    ],
    ids=["Intel with AMX", "Intel without", "ARM with bf16", "ARM without", "not Linux"],
)
def test_what_a_processor_computes_is_read_where_linux_says_it(
    lines: str | None, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "CPU_INFO", tmp_path / "cpuinfo")
    if lines is not None:
        (tmp_path / "cpuinfo").write_text("".join(f"processor\t: {core}\n{lines}\n" for core in range(2)))
    assert choose_precision("auto", torch.device("cpu")) == precision


def test_processor_flags_are_those_that_linux_names() -> None:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        pytest.skip("only Linux has /proc/cpuinfo")
    assert ("avx2" in runtime._processor_flags()) == (" avx2 " in path.read_text())
