"""How ids are read: the usual rule, the forms and patterns that a user may choose, and what is shown and asked."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tinydata import make_table

from spatialfeat.config import CheckConfig, EvaluateConfig, ExtractConfig, FinetuneConfig
from spatialfeat.data.frames import FrameTable, group_videos, list_frames, read_frames
from spatialfeat.data.ids import USUAL_RULE, IdRule
from spatialfeat.data.patients import id_questions, ids_as_read, shared_patients, show_reading
from spatialfeat.data.pseudonyms import pseudonymized
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import file_name
from spatialfeat.options import Options


def fields(rule: IdRule, frame_id: str) -> tuple[str, str, int, int] | None:
    """(video, patient, segment, frame), None for an id that does not follow the rule."""
    video, patient, segment, frame = rule.read(pd.Series([frame_id], dtype=object)).iloc[0]
    return None if frame is None else (video, patient, int(segment), int(frame))


@pytest.mark.parametrize(
    ("frame_id", "expected"),
    [
        # The forms that always were.
        ("1050_1_000001", ("1050_1", "1050", 1, 1)),
        ("P473920_1_000001", ("P473920_1", "P473920", 1, 1)),
        ("video01_000123", ("video01", "video01", 0, 123)),
        ("case-A_b_000124", ("case-A_b", "case-A_b", 0, 124)),
        ("001_02_7", ("001_02", "001", 2, 7)),
        ("a__1", ("a_", "a_", 0, 1)),
        # A last-but-one number behind a word without a digit is no segment.
        ("video_01_000031", ("video_01", "video_01", 0, 31)),
        ("case_01_00031", ("case_01", "case_01", 0, 31)),
        ("lap_chole_01_00031", ("lap_chole_01", "lap_chole_01", 0, 31)),
        ("Hei-Chole_1_5", ("Hei-Chole_1", "Hei-Chole_1", 0, 5)),
        # The last number is the frame, also behind a word or a hyphen.
        ("video01_frame000123", ("video01", "video01", 0, 123)),
        ("video01_frame_000123", ("video01", "video01", 0, 123)),
        ("video_01_Frame-5", ("video_01", "video_01", 0, 5)),
        ("1050_1_img000007", ("1050_1", "1050", 1, 7)),
        ("case_269-000123", ("case_269", "case_269", 0, 123)),
        ("2019-05-31_000001", ("2019-05-31", "2019-05-31", 0, 1)),
        # Folders.
        ("video01/000031", ("video01", "video01", 0, 31)),
        ("video_01/frame_000031", ("video_01", "video_01", 0, 31)),
        ("1050/1/000031", ("1050/1", "1050", 1, 31)),
        ("1050_1/000031", ("1050_1", "1050", 1, 31)),
        ("video01/video01_000031", ("video01", "video01", 0, 31)),
        ("1050/1050_1_000031", ("1050_1", "1050", 1, 31)),
        ("1050/1050_1/000031", ("1050_1", "1050", 1, 31)),
        ("12/2_000031", ("12/2", "12", 2, 31)),
        ("1/1/000031", ("1/1", "1", 1, 31)),
        ("xvideo1/video1_5", ("xvideo1/video1", "xvideo1/video1", 0, 5)),
        ("centre2/video_01/000031", ("centre2/video_01", "centre2/video_01", 0, 31)),
        ("centre2/1050_1/000031", ("centre2/1050_1", "centre2/1050", 1, 31)),
        # What is no id.
        ("000031", None),
        ("x", None),
        ("_5", None),
        ("video01", None),
        ("1_1_-5", None),
        ("1_1_1.5", None),
        ("1_1_1.png", None),
        ("1_1_" + "9" * 19, None),
    ],
)
def test_the_usual_rule(frame_id: str, expected: tuple[str, str, int, int] | None) -> None:
    assert fields(USUAL_RULE, frame_id) == expected


@pytest.mark.parametrize(
    ("rule", "frame_id", "expected"),
    [
        ("video-frame", "1050_1_000001", ("1050_1", "1050_1", 0, 1)),
        ("patient-segment-frame", "video_01_000031", ("video_01", "video", 1, 31)),
        ("patient-segment-frame", "1050_1_000001", ("1050_1", "1050", 1, 1)),
        ("patient-segment-frame", "video01_000031", None),
        (r"pattern:frame(?P<frame>\d+)_(?P<video>.+)", "frame000004_01", ("01", "01", 0, 4)),
        (r"pattern:op(?P<patient>\d+)(?P<segment>\d)t(?P<frame>\d+)", "op4712t9", ("471_2", "471", 2, 9)),
        (r"pattern:(?P<patient>P\d+)(?P<video>\w+?)-(?P<frame>\d+)", "P3liver-7", ("liver", "P3", 0, 7)),
        (r"pattern:(?P<video>\w+)_(?P<frame>\d+)", "a_1.jpg", None),  # As a whole.
        (r"pattern:(?P<video>\w+)_(?P<frame>\w+)", "a_1_b", None),
    ],
)
def test_forms_and_patterns(rule: str, frame_id: str, expected: tuple[str, str, int, int] | None) -> None:
    assert fields(IdRule.parse(rule), frame_id) == expected
    assert str(IdRule.parse(rule)) == rule


def test_many_ids_are_read_as_each_alone() -> None:
    ids = [f"video_{video:02d}_{frame:05d}" for video in range(3) for frame in range(500)] + ["x", "1050_1_1"]
    together = USUAL_RULE.read(pd.Series(ids, dtype=object))
    for place in (0, 700, 1499, 1500, 1501):
        video, patient, segment, frame = together.iloc[place]
        found = None if frame is None else (video, patient, int(segment), int(frame))
        assert found == fields(USUAL_RULE, ids[place])


@pytest.mark.parametrize(
    "text", ["", "video", "pattern", "pattern:(", "pattern:(?P<frame>.)", 3, None, "pattern:" + "a" * 2000]
)
def test_no_rule(text: object) -> None:
    with pytest.raises(SpatialfeatError):
        IdRule.parse(text)


@pytest.mark.parametrize("kind", [FinetuneConfig, ExtractConfig, EvaluateConfig, CheckConfig])
def test_options_that_name_no_rule(kind: type[Options]) -> None:
    for options, message in (
        ({"id_form": "guess"}, "--id-form guess: must be one of auto, patient-segment-frame, video-frame"),
        ({"id_pattern": "(?P<video>"}, "--id-pattern (?P<video>: is no regular expression (missing ), unterminated"),
        (
            {"id_pattern": r"(?P<video>.+)"},
            "--id-pattern (?P<video>.+): must name the groups patient, segment and",
        ),
        ({"id_form": "auto", "id_pattern": r"(?P<video>.+)_(?P<frame>\d+)"}, "--id-form and --id-pattern: say in one"),
    ):
        with pytest.raises(SpatialfeatError) as caught:
            kind(**options)  # type: ignore[arg-type]
        assert str(caught.value).startswith(message)


def read(folder: Path, lines: list[str], header: str = "id,label", rule: str = "auto") -> FrameTable:
    path = folder / "train.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return read_frames(path, folder / "images", split="train", id_rule=IdRule.parse(rule))


@pytest.mark.parametrize(
    ("rule", "good", "problem", "remedy"),
    [
        ("auto", "a_1", "does not end in _FRAME", "write PATIENT_SEGMENT_FRAME or VIDEO_FRAME, e.g. 1050_1_000001"),
        ("video-frame", "a_1", "does not end in _FRAME", "write VIDEO_FRAME, e.g. video01_000123"),
        ("patient-segment-frame", "a_1_1", "does not end in _SEGMENT_FRAME", "write PATIENT_SEGMENT_FRAME, e.g. 1050"),
        (
            r"pattern:(?P<video>\w{1,9})_(?P<frame>\d{6})",
            "a_000001",
            r"does not match --id-pattern (?P<video>\w{1,9})_(?P<frame>\d{6}) as a whole",
            "fix the pattern or the id",
        ),
    ],
)
def test_an_id_that_does_not_follow_the_rule_is_told(
    tmp_path: Path, rule: str, good: str, problem: str, remedy: str
) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        read(tmp_path, [f"{good},0", "x{0},0"], rule=rule)
    assert str(caught.value).startswith(f"{tmp_path}/train.csv row 3: id 'x{{0}}' {problem}")
    assert f"; {remedy}" in str(caught.value)


def test_a_column_patient_wins_over_the_id(tmp_path: Path) -> None:
    lines = ["1050_1_000001,0,A7", "video01_000001,0,A7", "video02_000001,0,B"]
    for rule in ("auto", "video-frame"):
        table = read(tmp_path, lines, "id,label,patient", rule)
        assert table.patients.tolist() == ["A7", "A7", "B"]
        assert table.videos.tolist() == ["1050_1", "video01", "video02"]
    videos = group_videos([table], "patient")
    assert [(video.video_id, video.table.ids[video.rows].tolist()) for video in videos] == [
        ("A7", ["1050_1_000001", "video01_000001"]),
        ("B", ["video02_000001"]),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a_1,0,P1", "a_2,0,"], "row 3: patient '' cannot be part of a file name: it is empty"),
        (["a_1,0,P1", "a_2,0,../x"], "row 3: patient '../x' cannot be part of a file name: it "),
        (["a_1,0,P1", "a_2,0,P2", "a_3,0,P2"], "row 3: video a is of patient P2, but of P1 in "),
    ],
)
def test_a_column_patient_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        read(tmp_path, lines, "id,label,patient")
    assert str(caught.value).startswith(f"{tmp_path}/train.csv {message}")
    with pytest.raises(SpatialfeatError, match="column patient is there twice"):
        read(tmp_path, ["a_1,0,P1,P1"], "id,label,patient,patient")


def test_a_patient_of_the_column_is_found_in_two_splits(tmp_path: Path) -> None:
    tables = []
    for split, frame_id in (("train", "video01_1"), ("test", "video02_1")):
        (tmp_path / "a.csv").write_text(f"id,label,patient\n{frame_id},0,A\n")
        tables.append(read_frames(tmp_path / "a.csv", tmp_path, split=split))
    assert shared_patients(tables) == {"A": {"train": 1, "test": 1}}


def test_a_patients_videos_stay_apart_where_ids_have_no_segment(tmp_path: Path) -> None:
    """Frame numbers begin anew in each video: sorted by number alone they would be shuffled into each other."""
    lines = [f"{video}_{frame},0,A" for frame in (2, 1) for video in ("v10", "v2")]
    (video,) = group_videos([read(tmp_path, lines, "id,label,patient")], "patient")
    assert video.table.ids[video.rows].tolist() == ["v2_1", "v2_2", "v10_1", "v10_2"]
    assert video.segments.tolist() == [1, 1, 2, 2]
    (own,) = group_videos([make_table(tmp_path, ["7_3_1", "7_5_1", "7_5_2"])], "patient")
    assert own.segments.tolist() == [3, 5, 5]


def test_three_ids_are_shown_as_read(tmp_path: Path) -> None:
    table = read(tmp_path, [f"video_{video:02d}_{frame:06d},0" for video in range(1, 13) for frame in (31, 32)])
    assert ids_as_read([table]) == [
        "video_01_000031: patient video_01, frame 31",
        "video_06_000031: patient video_06, frame 31",
        "video_12_000031: patient video_12, frame 31",
    ]
    assert ids_as_read([make_table(tmp_path, ["1050_1_000001"])]) == ["1050_1_000001: patient 1050, segment 1, frame 1"]
    given = read(tmp_path, ["video01_000001,0,A7"], "id,label,patient")
    assert ids_as_read([given]) == ["video01_000001: patient A7, video video01, frame 1"]


def test_what_looks_like_a_misreading_is_asked_unless_it_was_said(tmp_path: Path) -> None:
    many = [f"op2024_{video}_{frame},0" for video in range(10) for frame in (1, 2)]
    (question,) = id_questions([read(tmp_path, many)])
    assert question.code == "many-videos"
    assert question.message.startswith("patient op2024 has 10 videos: is it one patient")
    assert "--id-form, --id-pattern, or a column patient" in question.remedy
    assert id_questions([read(tmp_path, many, rule="patient-segment-frame")]) == []
    assert id_questions([read(tmp_path, many, rule="video-frame")]) == []
    assert id_questions([read(tmp_path, [f"{line},A" for line in many], "id,label,patient")]) == []
    assert id_questions([read(tmp_path, many[:18])]) == []
    single = [f"frame{frame:06d}_01,0" for frame in range(5)]
    (question,) = id_questions([read(tmp_path, single)])
    assert question.code == "one-frame-videos"
    assert "5 of 5 videos have one frame each, such as video frame000000" in question.message


def test_what_is_asked_is_no_patient_in_two_splits_until_it_is_said(tmp_path: Path) -> None:
    for rule, column in (("auto", ""), ("patient-segment-frame", ""), ("auto", ",A")):
        tables = []
        for split, videos in (("train", range(9)), ("test", range(9, 11))):
            lines = [f"op2024_{video}_{frame},0{column}" for video in videos for frame in (1, 2)]
            (tmp_path / "a.csv").write_text("\n".join(["id,label" + ",patient" * bool(column), *lines]))
            tables.append(read_frames(tmp_path / "a.csv", tmp_path, split=split, id_rule=IdRule.parse(rule)))
        questions = [question.message for question in id_questions(tables)]
        if rule == "auto" and not column:
            assert shared_patients(tables) == {}
            assert questions[0].startswith(
                "patient op2024 has 11 videos, in train and test, so that scores would be too"
            )
        else:
            assert shared_patients(tables) == {"A" if column else "op2024": {"train": 18, "test": 4}}
            assert questions == []


def test_finetune_and_extract_show_and_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        show_reading([read(tmp_path, [f"frame{frame:06d}_01,0" for frame in range(5)])])
    levels = [(record.levelname, record.message) for record in caplog.records]
    assert levels[0] == ("INFO", "id frame000000_01: patient frame000000, frame 1")
    assert [level for level, _ in levels] == ["INFO"] * 3 + ["WARNING"]
    assert "is the last number of these ids the frame?; see how the ids are read; --id-form" in levels[3][1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_folder_of_bare_numbers_is_a_video(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 10):
        for folder in ("video01", "video02"):
            (tmp_path / "frames" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "frames" / folder / f"{number:06d}{suffix}").touch()
    one = list_frames(tmp_path / "frames" / "video01", split="all")
    assert one.ids.tolist() == ["video01/000001", "video01/000002", "video01/000010"]
    assert set(one.videos) == set(one.patients) == {"video01"}
    assert one.frame_numbers.tolist() == [1, 2, 10]
    assert one.image_path(2) == tmp_path / "frames" / "video01" / f"000010{suffix}"
    all_of_them = list_frames(tmp_path / "frames", split="all")
    assert all_of_them.ids.tolist() == [f"{video}/{n:06d}" for video in ("video01", "video02") for n in (1, 2, 10)]
    assert all_of_them.image_path(0) == one.image_path(0)
    monkeypatch.chdir(tmp_path / "frames" / "video01")
    assert list_frames(Path(), split="all").ids.tolist() == one.ids.tolist()


def test_folders_beside_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "thumbs").mkdir()
    for name in ("1_1_1.png", "thumbs/1_1_1.png"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert list_frames(tmp_path, split="all").ids.tolist() == ["1_1_1"]
    assert "taking the images in the folder itself, and none of 1 folder of images in it, such as thumbs" in caplog.text


def test_no_two_ids_get_one_file_name() -> None:
    parts = ["a", "b", "a+b", "a+", "a++b", "b+a"]
    ids = parts + [f"{one}/{two}" for one in parts for two in parts]
    ids += [f"{one}/{two}/{three}" for one in parts for two in parts for three in parts]
    names = list(map(file_name, ids))
    assert len(set(names)) == len(ids)
    assert not any("/" in name for name in names)
    assert file_name("centre1/video01") == "centre1+video01"
    assert file_name("1050_1") == "1050_1"


def hidden(folder: Path, table: FrameTable) -> tuple[FrameTable, dict[str, str]]:
    folder.mkdir(exist_ok=True)
    (renamed,), pseudonyms = pseudonymized([table], folder / "map.csv", folder / "out")
    return renamed, dict(pseudonyms.of_patient)


@pytest.mark.parametrize(
    ("lines", "header", "rule"),
    [
        (["video_01_000031,0", "video_02_000031,0"], "id,label", "auto"),
        (["anna/anna_000031,0", "berta/berta_000031,0"], "id,label", "auto"),
        (["anna_frame000031,0", "berta-000031,0"], "id,label", "auto"),
        (["frame1_anna,0", "frame1_berta,0"], "id,label", r"pattern:frame(?P<frame>\d+)_(?P<video>.+)"),
        (["anna_000031,0,north", "berta_000031,0,north", "clara_000031,0,south"], "id,label,patient", "auto"),
    ],
)
def test_pseudonyms_hide_every_form_of_id(tmp_path: Path, lines: list[str], header: str, rule: str) -> None:
    table = read(tmp_path, lines, header, rule)
    renamed, names = hidden(tmp_path / "map", table)
    texts = " ".join([*renamed.ids, *renamed.videos, *renamed.patients])
    assert not re.search("anna|berta|clara|video_0|north|south", texts)
    assert renamed.patients.tolist() == [names[patient] for patient in table.patients]
    assert len(set(renamed.ids)) == len(set(renamed.videos)) == len(lines)
    assert renamed.frame_numbers.tolist() == table.frame_numbers.tolist()
    assert renamed.image_names.tolist() == table.ids.tolist()
    # Whoever reads the new ids by the rule that is stored with them finds the same videos and numbers.
    again = renamed.id_rule.read(pd.Series(renamed.ids.tolist(), dtype=object))
    assert again["video"].tolist() == renamed.videos.tolist()
    np.testing.assert_array_equal(again["frame"].astype(int), table.frame_numbers)
