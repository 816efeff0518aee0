"""Grouping: frames in time order by number, segments in order, and no video in two places."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinydata import make_table

from spatialfeat.data.frames import Video, group_videos
from spatialfeat.data.patients import shared_patients
from spatialfeat.errors import SpatialfeatError


def _ids(video: Video) -> list[str]:
    ids: list[str] = video.table.ids[video.rows].tolist()
    return ids


def test_frames_are_in_numeric_order(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_10", "1_1_9", "1_1_0100", "1_1_2"], labels=[3, 2, 4, 1])
    (video,) = group_videos([table])
    assert _ids(video) == ["1_1_2", "1_1_9", "1_1_10", "1_1_0100"]
    assert video.table.labels[video.rows].tolist() == [1, 2, 3, 4]
    assert len(video) == 4


def test_videos_are_in_numeric_order_and_their_frames_never_mix(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["video10_2", "video2_5", "video10_1", "video1_9", "video2_3"])
    videos = group_videos([table])
    assert [video.video_id for video in videos] == ["video1", "video2", "video10"]
    assert [_ids(video) for video in videos] == [["video1_9"], ["video2_3", "video2_5"], ["video10_1", "video10_2"]]


def test_videos_of_several_tables_keep_their_table(tmp_path: Path) -> None:
    train = make_table(tmp_path, ["20_1_1", "3_1_1"])
    test = make_table(tmp_path, ["10_1_1"], split="test")
    videos = group_videos([train, test])
    assert [(video.video_id, video.table.split) for video in videos] == [
        ("3_1", "train"),
        ("10_1", "test"),
        ("20_1", "train"),
    ]
    assert _ids(videos[1]) == ["10_1_1"]


def test_a_patient_is_all_its_segments_in_order(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["7_10_1", "7_2_50", "8_1_1", "7_2_6", "7_10_0"])
    videos = group_videos([table], "patient")
    assert [video.video_id for video in videos] == ["7", "8"]
    assert [video.patient_id for video in videos] == ["7", "8"]
    assert _ids(videos[0]) == ["7_2_6", "7_2_50", "7_10_0", "7_10_1"]


def test_grouped_by_video_segments_stay_apart(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["7_10_1", "7_2_50"])
    videos = group_videos([table])
    assert [(video.video_id, video.patient_id) for video in videos] == [("7_2", "7"), ("7_10", "7")]


def test_a_video_in_two_files_names_both_rows(tmp_path: Path) -> None:
    train = make_table(tmp_path, ["9_1_1", "7_1_1", "7_1_2"])
    val = make_table(tmp_path, ["8_1_1", "7_1_9", "7_1_3"], split="val")
    with pytest.raises(SpatialfeatError) as caught:
        group_videos([train, val])
    # The first row in time order: frame 3 of val.csv stands in row 4.
    assert str(caught.value) == (
        f"{tmp_path}/val.csv row 4: video 7_1 is listed here (split val) and in {tmp_path}/train.csv row 3 "
        "(split train); keep each video in one CSV"
    )


def test_a_patient_in_two_files_matters_only_when_grouped_by_patient(tmp_path: Path) -> None:
    tables = [make_table(tmp_path, ["7_1_1"]), make_table(tmp_path, ["7_2_1"], split="val")]
    assert [video.video_id for video in group_videos(tables)] == ["7_1", "7_2"]
    with pytest.raises(SpatialfeatError, match="patient 7 is listed here"):
        group_videos(tables, "patient")


def test_one_video_in_two_spellings_across_files(tmp_path: Path) -> None:
    tables = [make_table(tmp_path, ["7_1_1"]), make_table(tmp_path, ["7_01_2"], split="val")]
    with pytest.raises(SpatialfeatError, match="use one spelling"):
        group_videos(tables)


def test_one_patient_in_two_spellings_would_become_two_files(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["7_1_1", "007_2_1"])
    assert len(group_videos([table])) == 2
    with pytest.raises(SpatialfeatError) as caught:
        group_videos([table], "patient")
    for part in ("patient 7 ", " 007 ", "row 2", "row 3", "use one spelling"):
        assert part in str(caught.value)


def test_many_videos(tmp_path: Path) -> None:
    # 3,000 videos, rows interleaved and backwards: picking each video's rows separately would take minutes.
    ids = [f"{video}_1_{frame}" for frame in range(19, -1, -1) for video in range(3000)]
    videos = group_videos([make_table(tmp_path, ids)])
    assert [video.video_id for video in videos] == [f"{video}_1" for video in range(3000)]
    assert _ids(videos[1234]) == [f"1234_1_{frame}" for frame in range(20)]
    assert sum(map(len, videos)) == 60_000


def test_shared_patients(tmp_path: Path) -> None:
    train = make_table(tmp_path, ["7_1_1", "7_2_1", "8_1_1"])
    val = make_table(tmp_path, ["9_1_1", "07_3_1"], split="val")
    test = make_table(tmp_path, ["10_1_1"], split="test")
    assert shared_patients([train, val, test]) == {"7 (also 07)": {"train": 2, "val": 1}}
    assert shared_patients([train, test]) == {}
