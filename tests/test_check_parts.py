"""The parts of check, where a whole data set would be too much: names, flicker, shares, estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinydata import make_table, write_csv, write_images

from spatialfeat.checks.estimate import (
    Machine,
    Speeds,
    estimate_runs,
    features_bytes,
    frame_seconds,
    free_memory,
    measure_speeds,
)
from spatialfeat.checks.images import check_missing, scan_images
from spatialfeat.checks.rows import check_ids, read_tables
from spatialfeat.checks.videos import check_videos, video_facts
from spatialfeat.config import CheckConfig, FinetuneConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.errors import SpatialfeatError


def privacy_codes(folder: Path, *videos: str) -> list[str]:
    table = make_table(folder, [f"{video}_000001" for video in videos])
    return [finding.code.removeprefix("id-looks-like-") for finding in check_ids([table])]


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        (["1050_1", "1050_2", "1051_1"], []),
        (["video01", "video02", "video80"], []),
        (["train_01", "test_02", "case12_1"], []),
        (["cholec80-12", "cholec80-13", "cholec80-14"], []),
        (["mydataset_1", "mydataset_2"], ["name"]),  # One patient with two segments: nobody else shares the word.
        (["1_20190531", "2_1"], ["date"]),
        (["2019-05-31_1"], ["date"]),
        (["31.05.2019-a_1"], ["date"]),
        (["05-31-2019_1"], ["date"]),
        (["31-05-19_1"], ["date"]),
        (["2019_05_31"], ["date"]),
        (["1999_1", "2024_1"], []),
        (["12345_1"], []),
        (["123456_1"], ["number"]),
        (["Doe_1", "Roe_1", "1050_1"], ["name"]),
        (["doe-jane_1", "1050_1"], ["name"]),
        (["a3f9bc12de_1", "77e0aabbcc_1"], []),
        (["Doe_20190531_4711089_1", "1_1"], ["date", "number", "name"]),
    ],
)
def test_ids_that_tell_who_it_is(tmp_path: Path, videos: list[str], expected: list[str]) -> None:
    assert privacy_codes(tmp_path, *videos) == expected


def test_a_word_that_most_patients_share_is_the_data_sets(tmp_path: Path) -> None:
    assert privacy_codes(tmp_path, *[f"heichole{index}_1" for index in range(6)]) == []
    assert privacy_codes(tmp_path, *[f"heichole{index}_1" for index in range(6)], "smith_1") == ["name"]


def flickers(folder: Path, labels: list[int], frames: list[int] | None = None) -> tuple[str, ...]:
    ids = [f"1_1_{frame}" for frame in frames or range(1, len(labels) + 1)]
    (facts,) = video_facts([make_table(folder, ids, labels=labels)])
    return facts.flickers


def test_flicker_is_a_short_run_between_two_of_one_other_phase(tmp_path: Path) -> None:
    assert flickers(tmp_path, [0, 0, 0, 1, 0, 0]) == ("1_1_4 (0 1 0)",)
    assert flickers(tmp_path, [0, 0, 0, 1, 1, 0, 0]) == ("1_1_4 (0 1 0)",)
    assert flickers(tmp_path, [0, 0, 0, 1, 1, 1, 0, 0, 0]) == ()
    assert flickers(tmp_path, [0, 0, 0, 1, 2, 2, 2]) == ()
    assert flickers(tmp_path, [0, 0, 0, 0, 0, 1]) == ()
    assert flickers(tmp_path, [2, 2, 2, 0, 1, 0, 2, 2]) == ("1_1_5 (0 1 0)",)
    assert flickers(tmp_path, [0]) == ()
    # Beside a gap, frames without a label may have belonged to the run.
    assert flickers(tmp_path, [0, 0, 1, 0, 0], frames=[1, 2, 3, 9, 10]) == ()
    assert flickers(tmp_path, [0, 0, 1, 0, 0], frames=[0, 25, 50, 75, 100]) == ("1_1_50 (0 1 0)",)


def test_rows_out_of_order_are_put_in_order_first(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_3", "1_1_1", "1_1_10", "1_1_2"], labels=[1, 0, 2, 0])
    (facts,) = video_facts([table])
    assert (facts.num_gaps, facts.missing_frames, facts.gap_after, facts.flickers) == (1, 6, "1_1_3", ())


def test_frames_every_25_numbers_suggest_another_fps(tmp_path: Path) -> None:
    videos = video_facts([make_table(tmp_path, [f"video01_{frame}" for frame in range(0, 250, 25)])])
    (finding,) = check_videos(videos, fps=1.0)
    assert finding.code == "frame-step"
    assert "pass --fps 25" in finding.remedy
    assert check_videos(videos, fps=25.0) == []


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("1_1_2.PNG", "rename to .png, in small letters, the 1 file such as"),
        ("1_1_2.jpg", "convert to PNG the 1 file such as"),
        ("1_1_0002.png", "write 1 id as the file is named: 1_1_0002 for 1_1_2"),
        ("1_1/1_1_2.png", "put all images into one folder: this one is in"),
    ],
)
def test_where_a_missing_image_may_be(tmp_path: Path, file: str, remedy: str) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    target = table.images.path / file
    target.parent.mkdir(exist_ok=True)
    table.image_path(1).rename(target)
    if table.image_path(1).exists():
        pytest.skip("this file system does not tell upper from lower case")
    (finding,) = check_missing(table.images.path, [table], table.images.names())
    assert finding.remedy.startswith(remedy)


def test_an_image_folder_without_images(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"])
    (table.images.path / "1050_1").mkdir(parents=True)
    (finding,) = check_missing(table.images.path, [table], set())
    assert "pass the folder of the frames as --img-dir: it holds 1 folder, such as 1050_1" in finding.remedy


def test_a_csv_of_which_nothing_is_left(tmp_path: Path) -> None:
    config = CheckConfig(
        train_csv=write_csv(tmp_path / "train.csv", [("no frame", 0), ("1.png", 0)]), val_csv=tmp_path / "absent.csv"
    )
    checked = read_tables(config)
    assert checked.tables == []
    assert [finding.code for finding in checked.findings] == ["no-test-csv", "bad-id", "unreadable-csv"]
    bad = checked.findings[1]
    assert (bad.count, [place.rpartition("/")[2][:15] for place in bad.places]) == (
        2,
        ["train.csv row 2", "train.csv row 3"],
    )


def test_the_reader_goes_on_after_a_fault_only_when_told_to(tmp_path: Path) -> None:
    csv_path = write_csv(tmp_path / "train.csv", [("1_1_1", 9), ("bad", 0), ("1_1_1", 0), ("1_1_2", "x"), ("1_1_3", 2)])
    problems: list[Any] = []
    table = read_frames(csv_path, tmp_path, split="train", num_classes=7, on_problem=problems.append)
    assert table.ids.tolist() == ["1_1_1", "1_1_2", "1_1_3"]
    assert table.labels.tolist() == [-100, -100, 2]
    assert [table.where(row).rpartition("/")[2] for row in range(3)] == [
        "train.csv row 2",
        "train.csv row 5",
        "train.csv row 6",
    ]
    told = [problem.describe(int(problem.rows[0])).rpartition("/")[2] for problem in problems]
    assert told[:3] == [
        "train.csv row 5: label 'x' is not an integer",
        "train.csv row 2: label 9 is outside 0..6",
        "train.csv row 3: id 'bad' does not end in _FRAME",
    ]
    assert [problem.kind for problem in problems][3] == "repeated-id"
    with pytest.raises(SpatialfeatError, match="label 'x' is not an integer"):
        read_frames(csv_path, tmp_path, split="train", num_classes=7)


def test_processes_see_what_one_process_sees(tmp_path: Path) -> None:
    table = make_table(tmp_path, [f"1_1_{frame}" for frame in range(70)])
    write_images(table)
    table.image_path(40).write_bytes(b"")
    ids = sorted(table.ids.tolist())
    alone, together = (scan_images(table.images, ids, workers=workers, decode=True) for workers in (0, 2))
    np.testing.assert_array_equal(alone.pixels, together.pixels)
    np.testing.assert_array_equal(alone.widths, together.widths)
    assert alone.reasons == together.reasons == {ids.index("1_1_40"): "the file is empty"}
    assert len(np.unique(alone.pixels[alone.readable])) == 69


CPU = Machine(
    device="cpu", gpu_bytes=None, cores=4, workers=2, free_memory_bytes=None, free_disk_bytes=1_000_000_000_000
)
SPEEDS = Speeds(
    train_s=0.1,
    inference_s=0.05,
    load_train_s=0.04,
    load_eval_s=0.02,
    train_bytes=2_000_000_000,
    inference_bytes=1_000_000_000,
    frame_bytes=50_000_000,
    trained_bytes=90_000_000,
    probe_batch=8,
)


def test_seconds_of_a_frame() -> None:
    gpu = replace(CPU, gpu_bytes=80_000_000_000)
    # On a CPU, loading takes time from the network; on a GPU the slower of the two decides.
    assert frame_seconds(0.1, 0.04, CPU) == pytest.approx(0.11)
    assert frame_seconds(0.001, 0.04, CPU) == pytest.approx(0.02)
    assert frame_seconds(0.001, 0.04, gpu) == pytest.approx(0.02)
    assert frame_seconds(0.1, 0.04, gpu) == pytest.approx(0.1)
    assert frame_seconds(0.1, 0.04, replace(gpu, workers=0)) == pytest.approx(0.14)


def test_an_estimate_adds_up() -> None:
    rows = {"train": 1000, "val": 100, "test": 50}
    estimate = estimate_runs(FinetuneConfig(), rows, 10, SPEEDS, CPU)
    assert estimate.epoch_s == pytest.approx(1000 * 0.11 + 100 * 0.055)
    assert estimate.first_stop_s == pytest.approx(11 * 115.5 + 50 * 0.055)
    assert estimate.most_s == pytest.approx(50 * 115.5 + 50 * 0.055)
    assert estimate.extract_s == pytest.approx(1150 * 0.055)
    assert estimate.finetune_memory_bytes is not None
    # Twenty-four more frames in a batch than were measured.
    assert estimate.finetune_memory_bytes > 2_000_000_000 + 24 * 50_000_000
    assert estimate.extract_disk_bytes == features_bytes(1150, 10, 7) > 1150 * 2048 * 4
    only_test = estimate_runs(FinetuneConfig(), {"test": 50}, 10, SPEEDS, CPU)
    assert only_test.epoch_s is only_test.finetune_disk_bytes is None


def test_the_probe_measures_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.checks.estimate.SECONDS", 0.0)
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    config = FinetuneConfig(image_size_px=64, batch_size=2, precision="fp32")
    threads = torch.get_num_threads()
    speeds = measure_speeds(config, [table], torch.device("cpu"))
    assert min(speeds.train_s, speeds.inference_s, speeds.load_train_s, speeds.load_eval_s) > 0
    # layer3, layer4 and fc of a ResNet-50 with 7 classes.
    assert speeds.trained_bytes == 4 * 22_077_447
    # Of a 64 px frame some 4 MB stay until the backward pass; everything unfrozen it would be 14.
    assert 1_000_000 < speeds.frame_bytes < 10_000_000
    assert speeds.train_bytes >= speeds.inference_bytes > 100_000_000
    assert speeds.probe_batch == 2
    assert torch.get_num_threads() == threads


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0.0}, "--fps 0: must be a positive number"),
        ({"num_classes": 1}, "--num-classes 1: must be at least 2"),
        ({"workers": -1}, "--workers -1: must be at least 0"),
        ({"csvs": ("a_test.csv",), "val_csv": Path("v.csv")}, "--csv and --val-csv: name the CSVs in one way"),
    ],
)
def test_options_that_finetune_would_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        CheckConfig(**options)
    assert str(caught.value).startswith(message)


def test_the_study_that_is_checked_for_is_finetunes_own() -> None:
    assert CheckConfig().study() == FinetuneConfig()
