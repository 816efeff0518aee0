"""What check finds in the CSVs alone: rows that are refused, names of people, gaps, flicker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_data import make_clean
from tinydata import make_table, write_csv

from spatialfeat.checks.rows import read_tables
from spatialfeat.checks.videos import check_videos, video_facts
from spatialfeat.config import CheckConfig, FinetuneConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.errors import SpatialfeatError


def privacy_codes(folder: Path, *videos: str) -> list[str]:
    table = make_table(folder, [f"{video}_000001" for video in videos])
    codes = [finding.code for finding in check_videos(video_facts(table), fps=1)]
    return [code.removeprefix("id-looks-like-") for code in codes if code.startswith("id-")]


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        (["1050_1", "1050_2", "1051_1"], []),
        (["video01", "video02", "video80"], []),
        (["train_01", "test_02", "case12_1"], []),
        (["cholec80-12", "cholec80-13", "cholec80-14"], []),
        (["mydataset_1", "mydataset_2"], []),  # Two patients share the word.
        (["mydataset5_1", "mydataset5_2"], ["name"]),  # One patient with two segments: nobody else shares it.
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
    (facts,) = video_facts(make_table(folder, ids, labels=labels))
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
    (facts,) = video_facts(table)
    assert (facts.num_gaps, facts.missing_frames, facts.gap_after, facts.flickers) == (1, 6, "1_1_3", ())


def test_frames_every_25_numbers_suggest_another_fps(tmp_path: Path) -> None:
    videos = video_facts(make_table(tmp_path, [f"video01_{frame}" for frame in range(0, 250, 25)]))
    (finding,) = check_videos(videos, fps=1.0)
    assert finding.code == "frame-step"
    assert "pass --fps 25" in finding.remedy
    assert list(check_videos(videos, fps=25.0)) == []


def test_a_csv_of_which_nothing_is_left(tmp_path: Path) -> None:
    config = CheckConfig(
        train_csv=write_csv(tmp_path / "train.csv", [("no frame", 0), ("1.png", 0)]), val_csv=tmp_path / "absent.csv"
    )
    tables, findings = read_tables(config)
    assert tables == []
    assert [finding.code for finding in findings] == ["no-test-csv", "bad-id", "unreadable-csv"]
    bad = findings[1]
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


def test_two_csvs_of_one_split_have_their_own_times(tmp_path: Path) -> None:
    data = make_clean(tmp_path)
    first, second = data.rows["train"][:4], data.rows["train"][4:9]
    data.rows = {"a": first, "b": second}
    csvs = (f"train={data.csv('a')}", f"train={data.csv('b')}")
    report = data.report(csvs=csvs, train_csv=CheckConfig.train_csv, val_csv=CheckConfig.val_csv, test_csv=None, fps=2)
    assert [(split["num_rows"], split["num_videos"], split["seconds"]) for split in report.splits] == [
        (4, 1, 2.0),
        (5, 1, 2.5),
    ]
    assert report.phase_counts == {"train": [3, 3, 3]}


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
