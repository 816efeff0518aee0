"""The benchmarks' own parts: frames, ratios, comparisons, the plain way's results, the GPU check. Nothing is timed."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import bench_extract
import bench_finetune
import bench_gpu
import bench_seeds
import conftest
import numpy as np
import plain_extract
import plain_finetune
import pytest
import torch
from bench_frames import COLOURS, FrameSet, link_frames, make_frames
from bench_scaling import Arrangement, Result, scaling_table
from bench_setup import Study, markdown_table, write_results
from bench_weights import make_weights
from comparing import Epoch, FeatureDifference, compare_curves, compare_features, read_history
from conftest import load_script
from measuring import BenchmarkError, Measured, Rate, Spread, paired_ratios, run_measured, together
from PIL import Image

from spatialfeat.config import ExtractConfig
from spatialfeat.extract import extract

SIZE = {"width": 64, "height": 48}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    return make_frames(tmp_path_factory.mktemp("frames"), **SIZE, count=35, seed=0, workers=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "w.pth", image_size_px=64)


def rows_of(path: Path) -> list[tuple[str, int]]:
    with path.open(newline="") as file:
        return [(row["id"], int(row["label"])) for row in csv.DictReader(file)]


def test_frames_are_there_with_every_phase_in_both_splits_and_no_patient_in_two(frames: FrameSet) -> None:
    train, val = rows_of(frames.train_csv), rows_of(frames.val_csv)
    assert (len(train), len(train) + len(val)) == (frames.num_train, 35)
    assert {label for _, label in train} == {label for _, label in val} == set(range(len(COLOURS)))
    assert {path.stem for path in frames.img_dir.iterdir()} == {frame_id for frame_id, _ in train + val}
    patients = [{frame_id.split("_")[0] for frame_id, _ in rows} for rows in (train, val)]
    assert patients[0].isdisjoint(patients[1])
    with Image.open(frames.img_dir / f"{train[0][0]}.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 48))


def test_frames_are_as_hard_to_compress_as_photographs_and_coloured_by_phase(frames: FrameSet) -> None:
    assert frames.mean_png_bytes > 64 * 48  # More than 8 of 24 bits per pixel remain.
    means: dict[int, list[np.ndarray]] = {}
    for frame_id, label in rows_of(frames.train_csv):
        pixels = np.asarray(Image.open(frames.img_dir / f"{frame_id}.png"))
        means.setdefault(label, []).append(pixels.mean(axis=(0, 1)))
    for label, found in means.items():
        assert np.abs(np.mean(found, axis=0) - COLOURS[label]).max() < 30
    assert not np.array_equal(*(found for found in means[0][:2]))


def test_the_same_parameters_reuse_the_folder_and_others_are_refused(frames: FrameSet, tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in frames.folder.rglob("*")}
    assert make_frames(frames.folder, **SIZE, count=35, seed=0) == frames
    assert {path: path.stat().st_mtime_ns for path in frames.folder.rglob("*")} == stamps
    with pytest.raises(ValueError, match=r"holds frames made with .*delete it or choose another"):
        make_frames(frames.folder, **SIZE, count=35, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no whole set of frames"):
        make_frames(tmp_path, **SIZE, count=35, seed=0)
    with pytest.raises(ValueError, match="count 34: must be at least 35"):
        make_frames(tmp_path / "few", **SIZE, count=34, seed=0)


def test_with_max_drawn_the_others_are_links_within_split_and_phase(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", **SIZE, count=70, seed=0, max_drawn=14, workers=1)
    places: dict[int, set[tuple[Path, int]]] = {}
    for path in frames.csv_paths:
        for frame_id, label in rows_of(path):
            inode = (frames.img_dir / f"{frame_id}.png").stat().st_ino
            places.setdefault(inode, set()).add((path, label))
    assert 14 <= len(places) <= 21
    assert all(len(where) == 1 for where in places.values())


def test_linked_frames_make_sets_of_any_length(frames: FrameSet, tmp_path: Path) -> None:
    few, many = link_frames(frames, tmp_path / "few", 3), link_frames(frames, tmp_path / "many", 80)
    assert rows_of(few.train_csv) == rows_of(frames.train_csv)[:3]
    assert few.csv_paths == [few.train_csv]
    ids = [frame_id for frame_id, _ in rows_of(many.train_csv)]
    assert len(set(ids)) == 80 == len(list(many.img_dir.iterdir()))
    again = link_frames(frames, tmp_path / "many", 2)
    assert sorted(path.stem for path in again.img_dir.iterdir()) == sorted(
        frame_id for frame_id, _ in rows_of(again.train_csv)
    )
    assert len(rows_of(again.train_csv)) == 2  # Replaced, not added to.


def test_weights_are_repeatable_and_keep_activations_sane(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    again = torch.load(make_weights(tmp_path / "again.pth", image_size_px=64), weights_only=True)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert state["fc.bias"].shape == (7,)
    assert float(state["layer4.2.bn3.running_var"].mean()) != 1.0


def test_the_plain_way_and_spatialfeat_write_the_same_features(frames: FrameSet, weights: Path, tmp_path: Path) -> None:
    """Two independent programs: classic transforms and a hook there, tensor transforms and HDF5 here."""
    few = link_frames(frames, tmp_path / "few", 4)
    plain_dir, reference_dir, fast_dir = (tmp_path / name for name in ("plain", "reference", "features"))
    plain_options = {"batch_size": 4, "workers": 0, "device": "cpu"}
    plain_extract.extract(few.csv_paths, few.img_dir, weights, plain_dir, **plain_options)
    plain_extract.extract(few.csv_paths, few.img_dir, weights, reference_dir, **plain_options, reference=True)
    options = ExtractConfig(
        csvs=(str(few.train_csv),), img_dir=few.img_dir, weights=weights, out_dir=fast_dir, precision="fp32",
        batch_size=4, workers=0, device="cpu",
    )  # fmt: skip
    extract(options)
    difference = compare_features(reference_dir, fast_dir)
    assert difference.frames == 4
    assert difference.allowed("fp32"), difference
    # Pillow's own resizing rounds a few pixels the other way.
    assert compare_features(plain_dir, fast_dir).max_relative < 0.02
    plain_dir = reference_dir
    # The comparison sees a difference where there is one, and a missing frame.
    victim = next(plain_dir.glob("*.npy"))
    np.save(victim, np.load(victim) * 1.001)
    assert compare_features(plain_dir, fast_dir).max_relative == pytest.approx(1e-3, rel=0.1)
    assert not compare_features(plain_dir, fast_dir).allowed("fp32")
    np.save(plain_dir / "1_1_1.npy", np.load(victim))
    with pytest.raises(ValueError, match="holds 4 frames, and not those of"):
        compare_features(plain_dir, fast_dir)


def test_the_plain_fine_tuning_learns_and_writes_a_history(frames: FrameSet, weights: Path, tmp_path: Path) -> None:
    small = link_frames(frames, tmp_path / "small", 2)
    arguments = {"--train-csv": small.train_csv, "--val-csv": small.train_csv, "--img-dir": small.img_dir,
                 "--weights": weights, "--out": tmp_path / "study", "--epochs": 1, "--workers": 0, "--batch-size": 2,
                 "--device": "cpu"}  # fmt: skip
    plain_finetune.main([str(part) for pair in arguments.items() for part in pair])
    epochs = read_history(tmp_path / "study" / "history.csv")
    assert len(epochs) == 1
    assert all(np.isfinite(epoch.train_loss) and 0 <= epoch.val_acc <= 1 for epoch in epochs)
    before, after = (torch.load(path, weights_only=True) for path in (weights, tmp_path / "study" / "best.pth"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer3", "layer4", "fc"}


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine slows down by half from the first repeat to the last; the ratio of neighbours does not notice.
    assert paired_ratios([10, 15, 20], [5, 7.5, 10]) == Spread(2, 2, 2)
    assert paired_ratios([10, 30, 20], [10, 10, 10]).text() == "2.00 (1.00 to 3.00)"
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_ratios([1, 2], [1])


def test_start_up_and_steady_rate_come_from_two_lengths() -> None:
    # 5 s of start-up and 20 frames/s.
    assert Rate.of(15, 200, 6, 20) == Rate(frames_per_second=20, startup_seconds=5)
    assert Rate.of(6, 200, 6, 20) is None


def test_what_two_ceilings_allow_together() -> None:
    assert together(30, 60, device="cpu") == pytest.approx(20)
    assert together(30, 60, device="cuda") == 30
    rates = {"training": 10.0, "network": 20.0, "decode_augmented": 40.0, "decode": 5.0}
    seconds = bench_finetune.epoch_ceiling_seconds(80, 20, "cpu", **rates)
    assert seconds == pytest.approx(80 / 10 + 80 / 40 + 20 / 20 + 20 / 5)
    assert bench_finetune.epoch_ceiling_seconds(80, 20, "cuda:1", **rates) == pytest.approx(80 / 10 + 20 / 5)


def measured(*seconds: float) -> list[Measured]:
    return [Measured(value, 900_000_000, "") for value in seconds]


def extract_result() -> bench_extract.SizeResult:
    """A plain way of 5 s start-up and 10 frames/s, spatialfeat of 5 s and 20 frames/s, three repeats of 100 frames."""
    return bench_extract.SizeResult(
        "456x256",
        frames=100,
        few_frames=20,
        mean_png_bytes=180_000,
        plain_seconds_by_workers={0: 20.0, 1: 15.0},
        plain_workers=1,
        plain=measured(15, 15, 15),
        plain_few=measured(7, 7, 7),
        spatialfeat={"fp32": measured(10, 10, 10)},
        spatialfeat_few={"fp32": measured(6, 6, 6)},
        network_frames_per_second={"fp32": [30, 30, 30]},
        decode_frames_per_second=[60, 60, 60],
        difference={"fp32": FeatureDifference(100, 2e-3, 1e-3, 0.9999)},
        difference_to_reference={"fp32": FeatureDifference(100, 2e-5, 1e-5, 0.9999999)},
    )


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_extract_tables_say_what_was_measured() -> None:
    result = extract_result()
    _, _, plain, fast = cells_of(bench_extract.speed_table(result, "cpu"))
    assert plain == ["(a) plain, 1 workers", "15.0 (15.0 to 15.0)", "6.7", "10.0", "5.0", "900", "1", "1", ""]
    assert fast[2:] == ["10.0", "20.0", "5.0", "900", "1.50 (1.50 to 1.50)", "2.00", "1.9: MISSED"]
    # On a GPU the target is that of the steady rate.
    assert cells_of(bench_extract.speed_table(result, "cuda"))[-1][-1] == "10.0 steady: MISSED"
    ceilings = cells_of(bench_extract.ceiling_table(result, "cpu"))[-1]
    assert ceilings == ["fp32", "30.0", "60.0", "20.0", "0.50 (0.50 to 0.50)", "1.00"]
    assert cells_of(bench_extract.difference_table(result))[-1][-1] == "yes"
    result.difference_to_reference["fp32"] = FeatureDifference(100, 2e-4, 1e-5, 0.9999999)
    assert cells_of(bench_extract.difference_table(result))[-1][-1] == "NO"
    result.spatialfeat_few["fp32"] = measured(11, 11, 11)
    assert cells_of(bench_extract.speed_table(result, "cpu"))[-1][3] == "not known"
    assert "100 frames 900 MB, 1000 frames not known MB" in bench_extract.memory_text(
        [(100, 900_000_000), (1000, None)], "456x256", "fp32"
    )


def test_the_finetune_tables_say_what_was_measured() -> None:
    def runs(first: float, later: float) -> list[Study]:
        epochs = [Epoch(1.5, 1.2, 0.5, first), Epoch(1.0, 0.8, 0.7, later), Epoch(0.5, 0.4, 0.9, later)]
        return [Study(60, 900_000_000, epochs)] * 2

    result = bench_finetune.SizeResult(
        "456x256",
        train_frames=80,
        frames=100,
        mean_png_bytes=180_000,
        plain=runs(20, 20),
        spatialfeat={"fp32": runs(10, 5)},
        training_frames_per_second={"fp32": [20, 20]},
        network_frames_per_second={"fp32": [40, 40]},
        decode_augmented_frames_per_second=[80, 80],
        decode_frames_per_second=[80, 80],
    )
    fast = cells_of(bench_finetune.speed_table(result, "cpu"))[-1]
    assert fast[1:4] == ["6.7 (6.7 to 6.7)", "10.0 (10.0 to 10.0)", "5.0 (5.0 to 5.0)"]
    assert fast[6:] == ["3.00 (3.00 to 3.00)", "4.00 (4.00 to 4.00)", "2.5: met"]
    # 80 / 20 + 80 / 80 + 20 / 40 + 20 / 80 = 5.75 s allowed.
    assert cells_of(bench_finetune.ceiling_table(result, "cpu"))[-1][5:] == [
        "5.8", "0.86 (0.86 to 0.86)", "1.15 (1.15 to 1.15)"
    ]  # fmt: skip
    curves = cells_of(bench_finetune.curve_table(result))
    assert curves[2] == ["train_loss fp32", "1", "1.5000", "1.5000", "0.0000", "yes"]
    assert len(curves) == 2 + 9


def test_the_scaling_table_compares_with_one_process() -> None:
    peaks: list[int | None] = [900_000_000, 800_000_000]
    results = {
        Arrangement("1 process, 2 cores"): Result([20, 20], [4, 4], [10, 10], peaks),
        Arrangement("2 processes", processes=2): Result([12, 10], [3, 3], [8, 8], [None, None]),
        Arrangement("2 jobs", shards=2): Result([11, 11], extract_peak_bytes=peaks),
    }
    # 320 frames in 16 s, and in 8 s.
    base, processes, shards = cells_of(scaling_table(results, num_frames=340, num_few=20))[2:]
    assert base[1:6] == ["20.0 (20.0 to 20.0)", "1.00 (1.00 to 1.00)", "20.0", "1.00", "900"]
    assert processes[1:6] == ["11.0 (10.0 to 12.0)", "1.83 (1.67 to 2.00)", "40.0", "2.00", "not known"]
    assert processes[6:] == ["8.0 (8.0 to 8.0)", "1.25 (1.25 to 1.25)"]
    assert shards[1:] == ["11.0 (11.0 to 11.0)", "1.82 (1.82 to 1.82)", "", "", "900", "", ""]


def test_several_processes_are_started_by_torchrun_and_one_core_by_taskset() -> None:
    line = ["python", "-m", "spatialfeat", "extract"]
    assert Arrangement("").started(line) == line
    assert Arrangement("", cores=1).started(line) == ["taskset", "--cpu-list", "0-0", *line]
    started = " ".join(Arrangement("", processes=2).started(line))
    assert started == "python -m torch.distributed.run --standalone --nproc-per-node=2 -m spatialfeat extract"


def test_curves_are_apart_when_the_ways_differ_by_more_than_the_seeds() -> None:
    plain = [[Epoch(1.0, 0, 0, 0)], [Epoch(1.2, 0, 0, 0)]]
    (gap,) = compare_curves(plain, [[Epoch(1.25, 0, 0, 0)], [Epoch(1.25, 0, 0, 0)]], "train_loss")
    assert gap.within_noise
    (gap,) = compare_curves(plain, [[Epoch(1.5, 0, 0, 0)], [Epoch(1.5, 0, 0, 0)]], "train_loss")
    assert not gap.within_noise


def test_the_seeds_table_has_differences_with_their_errors(frames: FrameSet) -> None:
    # Means 3 and 2; variances 2/3 and 10/3 of 4 values each.
    one, other = [2.0, 3.0, 3.0, 4.0], [0.0, 1.0, 3.0, 4.0]
    assert bench_seeds.Difference.of(one, other) == pytest.approx((1.0, ((2 / 3) / 4 + (10 / 3) / 4) ** 0.5))
    plain = [[Epoch(1.0, 2.0, 0.5, 1)], [Epoch(1.2, 2.0, 0.5, 1)]]
    ours = [[Epoch(1.1, 2.0, 0.75, 1)], [Epoch(1.3, 2.0, 0.75, 1)]]
    curves = {bench_seeds.PLAIN: plain, bench_seeds.WORKERS: ours, bench_seeds.DEVICE: plain}
    table = cells_of(bench_seeds.parts(curves, frames)[-1])
    assert table[2] == ["train_loss", "1", "1.100", "+0.100 +- 0.141", "+0.000 +- 0.141"]
    assert table[4] == ["val_acc", "1", "0.500", "+0.250 +- 0.000", "+0.000 +- 0.000"]


def test_the_gpu_table_tells_what_it_measured_and_what_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: FrameSet
) -> None:
    """The parts themselves are rehearsed by `bench_gpu.py --device cpu --quick`."""
    calls: list[str] = []

    class Bench:
        def __init__(self, _plan: object, _work: Path, results: bench_gpu.Results) -> None:
            self._results = results

        def parts(self) -> list[tuple[str, object]]:
            def measure() -> None:
                calls.append("first")
                self._results.add("finetune bf16: later epoch", "456x256", 2412.4, training=2600)
                self._results.add("extract bf16: steady", "456x256", None, frames=8)
                monkeypatch.setattr(bench_gpu.time, "monotonic", lambda: 1e9)

            def fail() -> None:
                raise RuntimeError("no kernel image\nmore for programmers")

            return [("broken", fail), ("first", measure), ("second", measure)]

    monkeypatch.setattr(bench_gpu, "Bench", Bench)
    results = bench_gpu.measure(replace(bench_gpu.REHEARSAL), tmp_path, tmp_path / "table", minutes=5)
    assert calls == ["first"]
    text = (tmp_path / "table.md").read_text()
    assert re.search(r"\| finetune bf16: later epoch +\| +456x256 \| +2,412 \| +training 2600 \|", text)
    assert "not known" in text
    assert "Not measured: second." in text
    assert "**FAILED**: broken (RuntimeError: ['no kernel image'])." in text
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == results.rows


def test_results_are_written_with_the_machine_and_without_what_commands_printed(tmp_path: Path) -> None:
    facts = {"device": "cpu", "processor": "P", "cores": 2, "memory_gib": 4, "system": "Linux", "cuda": None,
             "versions": {"torch": "2"}, "commit": "c", "load_average": 0.9}  # fmt: skip
    study = Study(60, None, [Epoch(1.5, 1.2, 0.5, 50)])
    data = {"sizes": [extract_result()], "studies": {"fp32": [study]}}
    text = write_results(tmp_path / "out" / "r", "extract", facts, ["| table |"], data)
    assert text.startswith("## bench_extract\n\ncpu; P, 2 cores")
    assert "(BUSY: these figures are disturbed)\n\n| table |" in text
    assert (tmp_path / "out" / "r.md").read_text() == text + "\n"
    stored = json.loads((tmp_path / "out" / "r.json").read_text())
    assert (stored["benchmark"], stored["machine"]) == ("extract", facts)
    assert stored["sizes"][0]["plain"][0] == {"seconds": 15, "peak_bytes": 900_000_000}
    assert stored["sizes"][0]["difference"]["fp32"]["frames"] == 100
    epoch = {"train_loss": 1.5, "val_loss": 1.2, "val_acc": 0.5, "seconds": 50}
    assert stored["studies"] == {"fp32": [{"seconds": 60, "peak_bytes": None, "epochs": [epoch]}]}


def test_tables_line_up() -> None:
    assert markdown_table(["a", "long"], [["value", "1"]]) == "| a     | long |\n|-------|-----:|\n| value |    1 |"


def test_a_measured_command_counts_its_children_and_tells_why_it_failed(tmp_path: Path) -> None:
    # The child holds 64 MB for longer than two samples lie apart.
    child = "import time; block = bytearray(b'x') * 64_000_000; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    run = run_measured([sys.executable, "-c", parent], cwd=tmp_path)
    assert run.output == "done\n"
    assert run.peak_bytes is None or run.peak_bytes > 64_000_000
    with pytest.raises(BenchmarkError, match=r"(?s)exit code 3 of: .*too few frames"):
        run_measured([sys.executable, "-c", "import sys; print('too few frames'); sys.exit(3)"], cwd=tmp_path)


class _Item:
    """As much of a pytest item as conftest's hook looks at."""

    def __init__(self, marked: bool) -> None:
        self._marked = marked

    def get_closest_marker(self, name: str) -> object:
        return object() if self._marked and name == "gpu" else None


def test_gpu_tests_are_skipped_without_a_device_and_fail_where_one_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SPATIALFEAT_REQUIRE_GPU", raising=False)
    conftest.pytest_runtest_setup(_Item(marked=False))
    with pytest.raises(pytest.skip.Exception, match="no CUDA device; scripts/gpu_check"):
        conftest.pytest_runtest_setup(_Item(marked=True))
    monkeypatch.setenv("SPATIALFEAT_REQUIRE_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="torch sees no CUDA device"):
        conftest.pytest_runtest_setup(_Item(marked=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    conftest.pytest_runtest_setup(_Item(marked=True))


@pytest.mark.parametrize(
    ("counts", "good"),
    [
        ('tests="9" failures="0" errors="0" skipped="0"', True),
        ('tests="9" failures="0" errors="0" skipped="1"', False),
        ('tests="9" failures="1" errors="0" skipped="0"', False),
        ('tests="9" failures="0" errors="1" skipped="0"', False),
        ('tests="0" failures="0" errors="0" skipped="0"', False),
    ],
)
def test_the_gpu_check_accepts_no_skipped_test(counts: str, good: bool) -> None:
    check = load_script("run_gpu_check")
    assert check.judge_tests(f'<testsuites><testsuite name="pytest" {counts}/></testsuites>')[1] is good


def test_the_gpu_check_names_its_result_after_day_and_device_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = load_script("run_gpu_check")
    path = check.result_path(tmp_path, "cuda (NVIDIA H100 80GB HBM3)", date(2026, 1, 31))
    assert path == tmp_path / "2026-01-31-nvidia-h100-80gb-hbm3.md"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--out", str(tmp_path)]) == 2
    assert "error: no CUDA device to check (--device cuda: no CUDA device is visible" in capsys.readouterr().err
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "pytest" else object())
    assert check.main(["--out", str(tmp_path)]) == 2
    assert "has no pytest. Install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
