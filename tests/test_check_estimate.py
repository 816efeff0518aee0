"""The estimate of check: what is measured, what is worked out from it, and what is free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from check_data import CPU, SPEEDS, make_clean
from feature_folders import make_video
from tinydata import make_table, write_images

from spatialfeat.checks.estimate import estimate_runs, frame_seconds, free_memory, measure_speeds
from spatialfeat.checks.report import render
from spatialfeat.config import FinetuneConfig
from spatialfeat.data.frames import FrameTable
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.training.files import study_bytes


def test_seconds_of_a_frame() -> None:
    gpu = replace(CPU, gpu_bytes=80_000_000_000)
    # On a CPU, loading takes time from the network; on a GPU the slower of the two decides.
    assert frame_seconds(0.1, 0.04, CPU) == pytest.approx(0.11)
    assert frame_seconds(0.001, 0.04, CPU) == pytest.approx(0.02)
    assert frame_seconds(0.001, 0.04, gpu) == pytest.approx(0.02)
    assert frame_seconds(0.1, 0.04, gpu) == pytest.approx(0.1)
    assert frame_seconds(0.1, 0.04, replace(gpu, workers=0)) == pytest.approx(0.14)


def study_tables(folder: Path) -> list[FrameTable]:
    sizes = {"train": 1000, "val": 100, "test": 50}
    return [make_table(folder, [f"1_1_{frame}" for frame in range(size)], split=split) for split, size in sizes.items()]


def test_an_estimate_adds_up(tmp_path: Path) -> None:
    config, tables = FinetuneConfig(), study_tables(tmp_path)
    estimate = estimate_runs(config, tables, 10, SPEEDS, CPU)
    assert estimate.epoch_s == pytest.approx(1000 * 0.11 + 100 * 0.055)
    assert estimate.first_stop_s == pytest.approx(11 * 115.5 + 50 * 0.055)
    assert estimate.most_s == pytest.approx(50 * 115.5 + 50 * 0.055)
    assert estimate.extract_s == pytest.approx(1150 * 0.055)
    assert estimate.finetune_disk_bytes == study_bytes(PhaseResNet50(config.num_classes), config.freeze_until)
    assert estimate.extract_disk_bytes == 1150 * ((2048 + 7) * 4 + 64) + 10 * 40_000
    only_test = estimate_runs(config, tables[2:], 10, SPEEDS, CPU)
    assert only_test.extract_s == pytest.approx(50 * 0.055)
    finetune = [value for name, value in only_test.as_dict().items() if name.startswith(("finetune", "epoch", "most"))]
    assert finetune == [None] * 5


def test_the_memory_is_what_was_measured(tmp_path: Path) -> None:
    tables, gpu = study_tables(tmp_path), replace(CPU, gpu_bytes=80_000_000_000)
    on_cpu, on_gpu = (estimate_runs(FinetuneConfig(), tables, 10, SPEEDS, machine) for machine in (CPU, gpu))
    assert (on_cpu.finetune_memory_bytes, on_cpu.extract_memory_bytes) == (2_000_000_000, 1_000_000_000)
    assert (on_cpu.finetune_gpu_bytes, on_cpu.extract_gpu_bytes) == (None, None)
    assert (on_gpu.finetune_memory_bytes, on_gpu.extract_memory_bytes) == (None, None)
    assert (on_gpu.finetune_gpu_bytes, on_gpu.extract_gpu_bytes) == (2_000_000_000, 1_000_000_000)
    report = make_clean(tmp_path / "data").report()
    for estimate, memory in ((on_cpu, "memory"), (on_gpu, "GPU memory")):
        text = render(replace(report, estimate=estimate))
        assert f"training on a batch of 8 frames took 2.0 GB of {memory}\n" in text
        assert f"of disk; a batch of 8 frames took 1.0 GB of {memory}\n" in text


def test_the_size_of_feature_files_is_that_of_real_ones(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 100
    made = make_video(tmp_path, "1_1", labels)
    table = make_table(tmp_path, [f"1_1_{frame:06d}" for frame in range(len(labels))])
    estimate = estimate_runs(FinetuneConfig(num_classes=3), [table], 1, SPEEDS, CPU)
    # HDF5 fills up the last chunk.
    assert estimate.extract_disk_bytes == pytest.approx(made.path.stat().st_size, rel=0.1)


def test_the_probe_measures_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.checks.estimate.SECONDS", 0.0)
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    config = FinetuneConfig(image_size_px=64, batch_size=2, precision="fp32")
    threads = torch.get_num_threads()
    speeds = measure_speeds(config, [table], torch.device("cpu"))
    assert min(speeds.train_s, speeds.inference_s, speeds.load_train_s, speeds.load_eval_s) > 0
    # At least the weights of a ResNet-50 and, in training, of two thirds of it the gradients and Adam's two numbers.
    assert speeds.inference_bytes > 94_000_000
    assert speeds.train_bytes >= max(speeds.inference_bytes, 94_000_000 + 3 * 88_000_000)
    assert speeds.probe_batch == 2
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
def test_on_a_gpu_the_memory_is_that_of_a_batch_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.checks.estimate.SECONDS", 0.0)
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    config = FinetuneConfig(image_size_px=64, batch_size=16, precision="fp32")
    speeds = measure_speeds(config, [table], torch.device("cuda"))
    assert speeds.probe_batch == 16
    total_bytes = torch.cuda.get_device_properties(torch.device("cuda")).total_memory
    assert total_bytes > speeds.train_bytes >= speeds.inference_bytes > 94_000_000


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert free_memory(tmp_path) == 1_024_000
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("100\n")
    assert free_memory(tmp_path) == 1_024_000
    (cgroup / "memory.max").write_text("700\n")
    assert free_memory(tmp_path) == 600
