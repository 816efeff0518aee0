"""`spatialfeat prepare videos`: from a person's own videos and tables to a study folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_videos import damage, draw_video, labels_of, per_video, prepare, read_number
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from spatialfeat import read_features
from spatialfeat.cli import app

pytestmark = pytest.mark.usefixtures("no_drawing", "no_contact_sheets")

NUM_FRAMES = 110  # At 25 fps: samples at 0, 1, 2, 3 and 4 s, the frames 0, 25, 50, 75 and 100.


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """op1.mp4 and op2.mkv, of 4.4 s."""
    folder = tmp_path_factory.mktemp("videos")
    draw_video(folder / "op1.mp4", NUM_FRAMES)
    draw_video(folder / "op2.mkv", NUM_FRAMES)
    return folder


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


INTERVALS = "video,start,end,phase\nop1,0,2,cut\nop1,2,4.4,sew\nop2,1,3.5,sew\n"


@pytest.mark.usefixtures("drawing")
def test_a_table_of_intervals_in_seconds(videos: Path, tmp_path: Path) -> None:
    result = prepare("videos", videos, tmp_path / "out", "--annotations", table(tmp_path / "a.csv", INTERVALS))
    assert result.exit_code == 0, result.output
    # By hand: 0 and 1 s cut, 2, 3 and 4 s sew; op2 has phases at 1, 2 and 3 s only.
    assert labels_of(tmp_path / "out") == {
        "op1_000000": "0",
        "op1_000001": "0",
        "op1_000002": "1",
        "op1_000003": "1",
        "op1_000004": "1",
        "op2_000001": "1",
        "op2_000002": "1",
        "op2_000003": "1",
    }
    for frame_id in labels_of(tmp_path / "out"):
        assert read_number(tmp_path / "out" / "images" / f"{frame_id}.png") == 25 * int(frame_id[-6:])
    assert (tmp_path / "out" / "phase_names.txt").read_text() == "cut\nsew\n"
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8
    manifest = json.loads((tmp_path / "out" / "prepare.json").read_text())
    facts = {video["video"]: video for video in manifest["videos"]}
    assert facts["op2"]["source_frames"] == NUM_FRAMES
    assert (facts["op2"]["samples"], facts["op2"]["rows"], facts["op2"]["unlabelled"]) == (5, 3, 2)
    rows = (tmp_path / "out" / "prepare" / "op2" / "rows.csv").read_text().splitlines()
    assert rows[1] == ",-100,,0,0.0,0,0.0,"
    assert rows[2] == "op2_000001,1,sew,1,1.0,25,1.0,"
    for video in ("op1", "op2"):
        assert Image.open(tmp_path / "out" / "prepare" / f"{video}.png").size[0] > 1000
    (line,) = [line for line in result.output.splitlines() if line.startswith("op2 ")]
    assert line.split() == ["op2", "all", "0:00:04", "110", "3.50", "s", "-0.90", "s", "5", "3", "2"]


FORMS = {
    "semicolons, byte order mark, CRLF, decimal commas": (
        "\ufeffVideo;Beginn;start;end;Phase\r\nop1.mp4;x;0;2,0;cut\r\nop1.mp4;x;2,0;4,4;sew\r\nop2.mkv;x;0,0;4,4;cut\r\n",
        (),
    ),
    "tabs, h:m:s": ("video\tstart\tend\tphase\nop1\t0:00:00\t0:00:02\tcut\nop1\t0:00:02\t0:00:04\tsew\n"
                    "op1\t0:04\t0:04.4\tsew\nop2\t0:00:00\t0:00:04.400\tcut\n", ()),
    "no header": ("op1,0.0,2.0,cut\nop1,2.0,4.4,sew\nop2,0.0,4.4,cut\n", ()),
    "frames": ("video,start_frame,end_frame,phase\nop1,0,49,cut\nop1,50,109,sew\nop2,0,109,cut\n", ()),
    "frames from 1": ("video,start_frame,end_frame,phase\nop1,1,50,cut\nop1,51,110,sew\nop2,1,110,cut\n",
                      ("--first-frame", "1")),
    "frames, end not in it": ("video,start_frame,end_frame,phase\nop1,0,50,cut\nop1,50,110,sew\nop2,0,110,cut\n", ()),
    "milliseconds": ("video,start_ms,end_ms,phase\nop1,0,2000,cut\nop1,2000,4400,sew\nop2,0,4400,cut\n", ()),
    "unit told": ("video,start,end,phase\nop1,0,2,cut\nop1,2,4,sew\nop1,4,5,sew\nop2,0,5,cut\n", ("--unit", "second")),
    "no header, decimal commas": ("op1;0,0;2,0;cut\nop1;2,0;4,4;sew\nop2;0,0;4,4;cut\n", ()),
    "h:m:s with decimal commas": ("video;start;end;phase\nop1;0:00:00,0;0:00:01,5;cut\nop1;0:00:01,5;0:00:02;cut\n"
                                  "op1;0:00:02;0:00:04,4;sew\nop2;00:00:00;00:00:04;cut\nop2;0:04;0:04,4;cut\n", ()),
    "paths of another machine": ("file,start_s,end_s,phase\nC:\\data\\OP1.MP4,0,2,cut\nD:\\op1.mxf,2,4.4,sew\n"
                                 "/data/op2.mkv,0,4.4,cut\n", ()),
    "UTF-16 of a spreadsheet": ("video\tstart_s\tend_s\tphase\nop1\t0\t2\tcut\nop1\t2\t5\tsew\nop2\t0\t5\tcut\n", ()),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_intervals_says_the_same(form: str, videos: Path, tmp_path: Path) -> None:
    text, options = FORMS[form]
    path = table(tmp_path / "a.csv", text, "utf-16" if "UTF-16" in form else "utf-8")
    result = prepare("videos", videos, tmp_path / "out", "--annotations", path, *options)
    assert result.exit_code == 0, result.output
    assert per_video(labels_of(tmp_path / "out")) == {"op1": "00111", "op2": "00000"}


def frames_table(first: int, header: str = "frame,phase\n", num_rows: int = NUM_FRAMES) -> str:
    """Phase 0 for 50 frames, then phase 1."""
    return header + "".join(f"{frame + first},{int(frame >= 50)}\n" for frame in range(num_rows))


DENSE = {
    "frames from 0": (frames_table(0), ()),
    "frames from 1": (frames_table(1), ("--first-frame", "1")),
    "without header": (frames_table(0, ""), ("--unit", "frame")),
    "tabs": (frames_table(0).replace(",", "\t"), ()),
    "blanks": (frames_table(0, "").replace(",", " "), ("--unit", "frame")),
    "labels alone": ("".join(f"{int(frame >= 50)}\n" for frame in range(NUM_FRAMES)), ("--unit", "frame")),
    "names alone": ("".join(f"{'ab'[frame >= 50]}\n" for frame in range(NUM_FRAMES)), ("--unit", "frame")),
    "a header and names": ("Phase\n" + "a\n" * 50 + "b\n" * 60, ("--unit", "frame")),
    "seconds": ("second,phase\n0,0\n1,0\n2,1\n3,1\n4,1\n", ()),
    "seconds from 1": ("second,phase\n1,0\n2,0\n3,1\n4,1\n5,1\n", ("--first-frame", "1")),
    "clock": ("time,phase\n0:00:00,0\n0:00:01,0\n0:00:02,1\n0:00:03,1\n0:00:04,1\n", ()),
    "half seconds": ("time_s,phase\n" + "".join(f"{half / 2},{int(half >= 4)}\n" for half in range(9)), ()),
    "numbers with .0": ("second,phase\n0,0.0\n1,0.0\n2,1.0\n3,1.0\n4,1.0\n", ()),
}


@pytest.mark.parametrize("form", DENSE)
def test_every_form_of_a_row_per_frame_or_second_says_the_same(form: str, videos: Path, tmp_path: Path) -> None:
    text, options = DENSE[form]
    for video in ("op1", "op2"):
        table(tmp_path / "labels" / f"{video}-phase.txt", text)
    pattern = str(tmp_path / "labels" / "{video}-phase.txt")
    result = prepare("videos", videos, tmp_path / "out", "--annotations", pattern, *options)
    assert result.exit_code == 0, result.output
    assert per_video(labels_of(tmp_path / "out")) == {"op1": "00111", "op2": "00111"}


REFUSED = {
    "frames or seconds": (
        "video,start,end,phase\nop1,0,2,cut\nop2,0,4,cut\n",
        (),
        ["at frame 2 of 110, or at 2 s of 4 s", "--unit frame or --unit second"],
    ),
    "from 0 or 1": (
        "video,start_frame,end_frame,phase\nop1,1,50,cut\nop1,51,109,sew\nop2,51,60,cut\n",
        (),
        ["line 2: the lowest frame is 1", "--first-frame 0 or --first-frame 1"],
    ),
    "is the end in it": (
        "video,start_frame,end_frame,phase\nop1,0,50,cut\nop2,20,60,cut\n",
        (),
        ["line 2: does cut include frame 50, its end", "--interval-end inclusive or --interval-end exclusive"],
    ),
    "overlap": (
        "video,start,end,phase\nop1,0.0,2.5,cut\nop1,2.0,4.0,sew\nop2,0.0,4.0,cut\n",
        (),
        ["line 3: sew of op1 begins before cut of line 2 has ended", "--overlap later"],
    ),
    "a video without rows": ("video,start,end,phase\nop1,0,4.4,cut\n", (), ["nothing about op2", "--leave-out"]),
    "an end before its start": (
        "video,start,end,phase\nop1,3.0,2.0,cut\nop2,0,4.4,cut\n",
        (),
        ["line 2: ends at 2, before its start 3"],
    ),
    "times where frames are counted": (
        "video,start_frame,end_frame,phase\nop1,0:00:00,0:00:04,cut\nop2,0,4,cut\n",
        (),
        ["line 2: 0:00:00 is a time, but positions are frames", "--unit second"],
    ),
    "half a frame": ("video,start,end,phase\nop1,0,1.5,cut\n", ("--unit", "frame"), ["line 2: 1.5 is a time"]),
    "a video that only its first line names": (
        "video,start,end,phase\nop1,0.0,2.0,cut\n,2.0,4.4,sew\nop2,0.0,4.4,cut\n",
        (),
        ["line 3: names no video"],
    ),
    "minutes for seconds": (
        "video,start,end,phase\nop1,0.0,0.074,cut\nop2,0.0,4.4,cut\n",
        (),
        ["the annotation has 0.07 s, the video 4.40 s", "its positions are minutes", "--allow-length-difference"],
    ),
    "seconds for milliseconds": (
        "video,start,end,phase\nop1,0.0,4.4,cut\nop2,0.0,4.4,cut\n",
        ("--unit", "ms"),
        ["the annotation has 0.00 s, the video 4.40 s", "its positions are seconds (--unit)"],
    ),
    "milliseconds for seconds": (
        "video,start,end,phase\nop1,0,4400,cut\nop2,0,4400,cut\n",
        ("--unit", "second"),
        ["line 2: the annotation has 4400.00 s", "its positions are milliseconds (--unit)"],
    ),
    "no number": ("video,start,end,phase\nop1,0,two,cut\nop2,0,4.4,cut\n", (), ["line 2: 'two' is no number"]),
    "unknown columns": ("a,b,c,d\nop1,0,2,cut\n", (), ["line 1: 'a,b,c,d' does not say", "video,start,end,phase"]),
    "uneven lines": ("video,start,end,phase\nop1,0,2\n", (), ["line 2: has 3 cells, the first line 4"]),
    "phases from 0 or 1": (
        "video,start,end,phase\nop1,0.0,2.0,1\nop1,2.0,4.4,2\nop2,0.0,4.4,3\n",
        (),
        ["the phases run from 1 to 3", "--first-phase 1", "--first-phase 0"],
    ),
    "longer than the video": (
        "video,start,end,phase\nop1,0.0,9.5,cut\nop2,0.0,4.4,cut\n",
        (),
        ["has 9.50 s, the video 4.40 s", "5.1 s more", "--allow-length-difference", "1 video of 2"],
    ),
    "a phase that is not among the names": (
        INTERVALS,
        ("--phase-names", "cut,close"),
        ["line 3: the phase 'sew' is none of cut, close"],
    ),
    "no such file": (None, (), ["no such file, folder or pattern"]),
    "nothing that is meant": (INTERVALS, ("--split", "40/40"), ["--split does nothing for videos"]),
    "no such video": (INTERVALS, ("--leave-out", "op7"), ["--leave-out op7: is none of the videos, which are op1"]),
    "out in dir": (INTERVALS, ("OUT in DIR",), ["lies in DIR"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_or_wrong_is_refused(case: str, videos: Path, tmp_path: Path) -> None:
    text, options, parts = REFUSED[case]
    path = tmp_path / "a.csv"
    if text is not None:
        table(path, text)
    out = videos / "out" if "OUT in DIR" in options else tmp_path / "out"
    result = prepare(
        "videos", videos, out, "--annotations", path, *(option for option in options if option != "OUT in DIR")
    )
    assert result.exit_code == 2
    for part in parts:
        assert part in result.output.replace("\n", " "), result.output
    assert not list(tmp_path.glob("out/*.csv"))


DENSE_REFUSED = {
    "where phases begin": ("frame,phase\n0,1\n40,2\n104,3\n", ["line 4: rows are 40 to 64 apart", "`start,end,phase`"]),
    "frames or seconds": (frames_table(0, ""), ["frame 109 of 110, or at 109 s of 4"]),
    "from 0 or 1": (frames_table(1), ["the first row is frame 1.", "--first-frame 1", "--first-frame 0"]),
    "too short": (frames_table(0, num_rows=80), ["80 frames, the video 110", "1.2 s less", "--allow-length"]),
    "another rate": (
        frames_table(0, num_rows=132),
        ["132 frames, the video 110", "a copy with 30 frames a second (this one has 25.00)"],
    ),
    "not in order": ("frame,phase\n0,1\n2,1\n1,1\n", ["line 4: frame 1 is not after"]),
    "twice": ("frame,phase\n0,1\n1,1\n1,1\n", ["line 4: frame 1 is not after"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DENSE_REFUSED)
def test_dense_tables_that_are_refused(case: str, videos: Path, tmp_path: Path) -> None:
    text, parts = DENSE_REFUSED[case]
    pattern = table(tmp_path / "labels" / "op1.csv", text).parent
    options = ("--annotations", pattern, "--leave-out", "op2", "--fps", "5")
    result = prepare("videos", videos, tmp_path / "out", *options)
    assert result.exit_code == 2
    for part in parts:
        assert part in result.output, result.output


def test_what_a_new_user_of_excel_brings(videos: Path, tmp_path: Path) -> None:
    """Umlauts, in files in the form that a Mac writes; `.MP4` and `.Csv`; Windows' encoding; a table of no video."""
    data, labels = tmp_path / "data", tmp_path / "labels"
    data.mkdir()
    for name in ("Müller_1.MP4", "Jäger_2.mp4", "Müller_10.mp4"):
        (data / name).symlink_to(videos / "op1.mp4")
    text = "Frame;Phase\r\n" + "".join(f"{frame};{'Präparation' if frame < 50 else 'Naht'}\r\n" for frame in range(110))
    for name in ("Müller_1", "Jäger_2", "Müller_10", "Weiß_3"):
        table(labels / unicodedata.normalize("NFD", f"{name} Phasen.Csv"), text, "utf-8-sig")
    command = ("videos", data, tmp_path / "out", "--annotations", str(labels / "{video} Phasen.csv"))
    result = prepare(*command)
    assert result.exit_code == 0, result.output
    found = per_video(labels_of(tmp_path / "out"))
    assert found == dict.fromkeys(("Jäger_2", "Müller_1", "Müller_10"), "00111")
    assert (tmp_path / "out" / "phase_names.txt").read_text(encoding="utf-8") == "Präparation\nNaht\n"
    assert "1 video that is not here, or left out: Wei" in result.output
    assert prepare(*command[:2], tmp_path / "out2", "--annotations", labels).exit_code == 0
    assert per_video(labels_of(tmp_path / "out2")) == found
    # `CSV` of a German Excel, which is not its `CSV UTF-8`.
    for path in labels.iterdir():
        path.write_bytes(text.encode("cp1252"))
    result = prepare(*command[:2], tmp_path / "out3", *command[3:])
    assert result.exit_code == 2
    assert "is not UTF-8 text" in result.output
    assert "CSV UTF-8" in result.output


def test_jpeg_frames_go_through_all_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["video,start,end,phase"]
    for number in range(3):
        draw_video(tmp_path / "data" / f"op{number}.mp4", NUM_FRAMES, first=512 * number)
        lines += [f"op{number},0.0,2.0,cut", f"op{number},2.0,4.4,sew"]
    rows = ("--annotations", table(tmp_path / "a.csv", "\n".join(lines)), "--val", "0.33", "--test", "0.33")
    result = prepare("videos", tmp_path / "data", tmp_path / "out", *rows, "--format", "jpeg")
    assert result.exit_code == 0, result.output
    assert " s of video" in result.output  # The progress bar's unit.
    assert {path.suffix for path in (tmp_path / "out" / "images").iterdir()} == {".jpg"}
    monkeypatch.chdir(tmp_path / "out")
    quick = ("--device", "cpu", "--workers", "0")
    for step in (
        ("check", "--test-csv", "test_ResNet_DB.csv", *quick, "--no-estimate", "--image-size", "64"),
        ("finetune", *quick, "--weights", "random", "--image-size", "64", "--epochs", "1", "--no-tensorboard"),
        ("extract", *quick),
    ):
        result = CliRunner().invoke(app, step)
        assert result.exit_code == 0, f"{step}: {result.output}"
        # The names come from the file that prepare wrote, of the weights from then on.
        assert ("phases: the 2 names in phase_names.txt" in result.output) == (step[0] != "extract")
    assert json.loads(Path("best_spatial_study_weights.json").read_text())["phase_names"] == ["cut", "sew"]
    for video in read_features(Path("features")):
        assert list(video.frame_ids) == [f"{video.video_id}_{k:06d}" for k in range(5)]
        assert video.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_difference_of_a_sample_is_noted_and_a_larger_one_allowed_on_request(videos: Path, tmp_path: Path) -> None:
    annotations = ("--annotations", tmp_path / "labels", "--leave-out", "op2")
    table(tmp_path / "labels" / "op1.csv", frames_table(0, num_rows=105))
    result = prepare("videos", videos, tmp_path / "out", *annotations)
    assert result.exit_code == 0
    assert "the annotation has 105 frames, the video 110: within one sample" in result.output
    table(tmp_path / "labels" / "op1.csv", frames_table(0, num_rows=60))
    result = prepare("videos", videos, tmp_path / "short", *annotations, "--allow-length-difference")
    assert result.exit_code == 0
    assert per_video(labels_of(tmp_path / "short")) == {"op1": "001"}


def test_rows_that_are_missing_are_unlabelled_and_noted(videos: Path, tmp_path: Path) -> None:
    rows = frames_table(0).splitlines(keepends=True)
    table(tmp_path / "labels" / "op1.csv", "".join(rows[:20] + rows[30:]))  # Without the frames 19 to 28.
    result = prepare("videos", videos, tmp_path / "out", "--annotations", tmp_path / "labels", "--leave-out", "op2")
    assert list(labels_of(tmp_path / "out")) == [f"op1_00000{k}" for k in (0, 2, 3, 4)]
    assert "lacks rows in 1 place" in result.output


def test_videos_that_neither_file_nor_folder_tells_apart_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "in" / day / "left" / name for day, name in (("day1", "op1.mp4"), ("day2", "OP01.mp4"))]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    result = prepare("videos", tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{paths[0]} and {paths[1]}: would be one video, OP01; rename one of them" in " ".join(result.output.split())


def test_rows_of_frames_that_the_video_has_lost_are_refused(tmp_path: Path) -> None:
    """One lost frame shifts all rows behind it by one: too little for the length, too much for a label."""
    damage(draw_video(tmp_path / "data" / "op1.ts", NUM_FRAMES), 30)
    rows = ("--annotations", table(tmp_path / "op1.csv", frames_table(0)))
    result = prepare("videos", tmp_path / "data", tmp_path / "out", *rows)
    assert result.exit_code == 2
    assert "has 110 frames, the video 109" in result.output
    assert "1 frame of the video got lost, which the annotation still counts" in result.output
    table(tmp_path / "op1.csv", frames_table(0, num_rows=109))  # Of the video as it is.
    result = prepare("videos", tmp_path / "data", tmp_path / "out", *rows)
    assert result.exit_code == 0
    assert "1 frame missing by the time stamps" in result.output


@pytest.mark.parametrize("unlabelled", ["drop", "keep"])
def test_the_picture_of_a_video_shows_all_of_it(
    unlabelled: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were frames without a phase left out of the ribbon, its times would not be those of the pictures."""
    shown: dict[str, Any] = {}

    def draw(video: str, *facts: Any) -> Figure:
        shown[video] = facts
        return Figure()

    monkeypatch.setattr("spatialfeat.prepare.contact_sheet", draw)
    options = ("--annotations", table(tmp_path / "a.csv", INTERVALS), "--unlabelled", unlabelled)
    assert prepare("videos", videos, tmp_path / "out", *options).exit_code == 0
    numbers, labels, fps, names, pictures = shown["op2"]
    assert (numbers, labels, fps, names) == ([0, 1, 2, 3, 4], [-100, 1, 1, 1, -100], 1, ("cut", "sew"))
    own = [(label, seconds, path.name) for label, seconds, path in pictures]
    assert own == [(1, 2.0, "op2_000002.png")] if unlabelled == "drop" else (1, 2.0, "op2_000002.png") in own


def test_unlabelled_frames_are_kept_on_request(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", INTERVALS)
    prepare("videos", videos, tmp_path / "out", "--annotations", path, "--unlabelled", "keep")
    assert per_video(labels_of(tmp_path / "out"))["op2"] == "(-100)111(-100)"


MISSPELT = "video,start_s,end_s,phase\nop1,0,2,Resection\nop1,2,3,Ressection\nop1,3,4.4,Closing\nop2,0,4.4,Resection\n"


def test_the_phases_are_listed_and_slips_named(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", MISSPELT)
    result = prepare("videos", videos, tmp_path / "out", "--annotations", path)
    assert result.exit_code == 0, result.output
    # By hand: op1 is sampled at 0..4 s, op2 too.
    rows = [line.split() for line in result.output.splitlines()]
    start = rows.index(["label", "phase", "videos", "frames"])
    assert rows[start + 1 : start + 4] == [
        ["0", "Resection", "2", "7", "(70.0%)"],
        ["1", "Ressection", "1", "1", "(10.0%)"],
        ["2", "Closing", "1", "2", "(20.0%)"],
    ]
    warnings = " ".join(result.stderr.split())
    for part in (f"{path} line 3 (video op1)", "'Ressection'", "'Resection'", "--phase-map", "--phase-names"):
        assert part in warnings
    assert f"'Closing' ({path} line 4 (video op1))" in warnings
    notes = json.loads((tmp_path / "out" / "prepare.json").read_text())["notes"]
    assert any("'Ressection'" in note for note in notes)
    # The remedies: names that are given refuse others, a map joins them; then nothing is doubtful.
    refused = prepare("videos", videos, tmp_path / "o2", "--annotations", path, "--phase-names", "Resection,Closing")
    assert refused.exit_code == 2
    for part in (f"{path} line 3", "'Ressection'", "nearest: Resection", "--phase-map"):
        assert part in refused.stderr
    joined = table(tmp_path / "map.csv", "Resection,Resection\nRessection,Resection\nClosing,Closing\n")
    mapped = prepare("videos", videos, tmp_path / "o3", "--annotations", path, "--phase-map", joined)
    assert mapped.exit_code == 0
    assert "warning" not in mapped.stderr


def test_phases_per_split(patients: Path, tmp_path: Path) -> None:
    rows = "".join(
        f"{patient}_{part},0,2,cut\n{patient}_{part},2,4.4,sew\n" for patient in range(1001, 1007) for part in (1, 2)
    )
    path = table(tmp_path / "a.csv", f"video,start_s,end_s,phase\n{rows}")
    result = prepare(
        "videos", patients / "videos", tmp_path / "out", "--annotations", path, "--val", "0.2", "--test", "0.2"
    )
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    start = lines.index(["label", "phase", "videos", "frames", "train", "val", "test"])
    for line, name in zip(lines[start + 1 : start + 3], ("cut", "sew"), strict=True):
        counted = [
            sum(label == line[0] for label in labels_of(tmp_path / "out", split).values())
            for split in ("train", "val", "test")
        ]
        assert line[1:3] == [name, "12"]
        assert line[3::2] == [str(sum(counted)), *map(str, counted)]
        assert line[4] == f"({sum(counted) / 60:.1%})"
    assert "warning" not in result.stderr


def test_a_map_of_phases(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "video,start,end,phase\nop1,0,1.0,7\nop1,1,3,9\nop1,3,4.4,8\nop2,0,4.4,9\n")
    names = table(tmp_path / "map.csv", "from,to\n9,work\n7,start\n8,\n")
    result = prepare("videos", videos, tmp_path / "out", "--annotations", path, "--phase-map", names)
    assert result.exit_code == 0, result.output
    assert per_video(labels_of(tmp_path / "out")) == {"op1": "100", "op2": "00000"}
    assert (tmp_path / "out" / "phase_names.txt").read_text() == "work\nstart\n"
    table(tmp_path / "map.csv", "9,work\n7,start\n")
    result = prepare("videos", videos, tmp_path / "other", "--annotations", path, "--phase-map", names)
    assert "--phase-map: has no line for 8" in result.output


def test_without_annotations_the_frames_are_for_extraction(videos: Path, tmp_path: Path) -> None:
    result = prepare("videos", videos, tmp_path / "out", "--fps", "2", "--format", "jpeg", "--short-side", "24")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "all_ResNet_DB.csv").read_text().splitlines()
    assert lines[:2] == ["id", "op1_000000"]
    assert len(lines) == 1 + 2 * 9
    image = Image.open(tmp_path / "out" / "images" / "op2_000003.jpg")
    assert (image.size, image.format, read_number(image)) == ((32, 24), "JPEG", 37)
    assert not (tmp_path / "out" / "phase_names.txt").exists()
    assert "extract --csv all=all_ResNet_DB.csv --weights WEIGHTS --fps 2" in result.output


def test_frames_have_256_pixels_on_the_shorter_side_or_their_own_size(tmp_path: Path) -> None:
    draw_video(tmp_path / "data" / "op1.mp4", 2, 1, size=(640, 480))
    for options, size in (((), (341, 256)), (("--short-side", "original"), (640, 480))):
        out = tmp_path / f"{size[0]}"
        assert prepare("videos", tmp_path / "data", out, *options).exit_code == 0
        assert Image.open(out / "images" / "op1_000001.png").size == size


def test_videos_in_folders_of_their_own(videos: Path, tmp_path: Path) -> None:
    for video in ("op1.mp4", "op2.mkv"):
        (tmp_path / "data" / video[:3]).mkdir(parents=True)
        (tmp_path / "data" / video[:3] / f"video{video[3:]}").symlink_to(videos / video)
    prepare("videos", tmp_path / "data", tmp_path / "out")
    assert "op2_000004" in (tmp_path / "out" / "all_ResNet_DB.csv").read_text()


@pytest.fixture(scope="module")
def patients(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of each of six patients, 1001 to 1006, and phases.csv; only the last two patients have `close`."""
    folder = tmp_path_factory.mktemp("patients")
    names = [f"{patient}_{segment}" for patient in range(1001, 1007) for segment in (1, 2)]
    (folder / "videos").mkdir()
    for name in names:
        (folder / "videos" / f"{name}.mp4").symlink_to(videos / "op1.mp4")
    second = {"1005_1": "close", "1006_2": "close"}
    lines = (f"{name},0.0,2.0,cut\n{name},2.0,4.4,{second.get(name, 'sew')}\n" for name in names)
    table(folder / "phases.csv", "video,start,end,phase\n" + "".join(lines))
    return folder


def test_splits_keep_patients_whole_and_are_those_of_split(patients: Path, tmp_path: Path) -> None:
    command = ("videos", patients / "videos", "--annotations", patients / "phases.csv")
    shares = ("--val", "0.33", "--test", "0.17")
    result = prepare(*command[:2], tmp_path / "out", *command[2:], *shares)
    assert result.exit_code == 0, result.output
    found = {split: labels_of(tmp_path / "out", split) for split in ("train", "val", "test")}
    of_split = {split: {frame_id.split("_")[0] for frame_id in labels} for split, labels in found.items()}
    assert [len(of_split[split]) for split in found] == [3, 2, 1]
    assert set.union(*of_split.values()) == {str(patient) for patient in range(1001, 1007)}
    # Both patients with `close` in one split would leave the others without it.
    assert sum("2" in labels.values() for labels in found.values()) == 2
    lines = [line.split() for line in result.output.splitlines()]
    assert ["train", "3", "6", "30", "30", "50.0%", "50.0%"] in lines
    assert ["test", "1", "2", "10", "10", "16.7%", "17.0%"] in lines
    # Without shares, all goes back into one CSV, of which `spatialfeat split` makes the same again.
    result = prepare(*command[:2], tmp_path / "out", *command[2:])
    assert "12 videos already there" in result.output
    assert "spatialfeat split all_ResNet_DB.csv folds --folds 5" in result.output
    assert [path.name for path in (tmp_path / "out").glob("*.csv")] == ["all_ResNet_DB.csv"]
    arguments = ("split", tmp_path / "out" / "all_ResNet_DB.csv", tmp_path / "split", *shares)
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    assert {split: labels_of(tmp_path / "split", split) for split in found} == found


def test_splits_that_cannot_be(patients: Path, tmp_path: Path) -> None:
    command = ("videos", patients / "videos", tmp_path / "out", "--annotations", patients / "phases.csv")
    left_out = [option for patient in range(1003, 1007) for n in (1, 2) for option in ("--leave-out", f"{patient}_{n}")]
    result = prepare(*command, "--val", "0.2", "--test", "0.2", *left_out)
    assert result.exit_code == 2
    assert "has 2 patients, but train, val, test need one each" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    result = prepare(*command, "--val", "0.5", "--test", "0.5")
    assert (result.exit_code, "leave nothing to train on" in result.output) == (2, True)
    result = prepare(*command[:3], "--val", "0.2")
    assert (result.exit_code, "--val does nothing without --annotations" in result.output) == (2, True)


def images(out: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "images").iterdir()}


def contents(files: dict[str, tuple[bytes, int]]) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files.items()}


def test_run_again_it_does_what_is_missing_or_has_changed(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", INTERVALS)
    command = ("videos", videos, tmp_path / "out", "--annotations", path)
    prepare(*command)
    before = images(tmp_path / "out")
    result = prepare(*command)
    assert "2 videos already there" in result.output
    assert images(tmp_path / "out") == before
    (tmp_path / "out" / "images" / "op2_000001.png").unlink()
    result = prepare(*command)
    assert "1 video already there" in result.output
    after = images(tmp_path / "out")
    assert contents(after) == contents(before)
    assert after["op1_000000.png"] == before["op1_000000.png"]
    # Another annotation, another set of frames: what is no longer labelled goes.
    table(path, INTERVALS.replace("op2,1,", "op2,2,"))
    prepare(*command)
    assert set(labels_of(tmp_path / "out")) | {"op2_000001"} == {name[:-4] for name in before}
    assert "op2_000001.png" not in images(tmp_path / "out")
    result = prepare(*command, "--fps", "2")
    assert result.exit_code == 2
    assert "was begun with fps 1.0, not 2.0" in result.output
    # A video that is left out later goes from images/, too.
    prepare(*command, "--leave-out", "op2")
    assert {name[:3] for name in images(tmp_path / "out")} == {"op1"}
    assert {frame_id[:3] for frame_id in labels_of(tmp_path / "out")} == {"op1"}
    (tmp_path / "foreign").mkdir()
    table(tmp_path / "foreign" / "notes.txt", "mine")
    result = prepare("videos", videos, tmp_path / "foreign", "--annotations", path)
    assert "is not empty, and not begun by prepare" in result.output


def test_what_an_earlier_run_has_made_stays_until_there_is_something_better(videos: Path, tmp_path: Path) -> None:
    path, out = table(tmp_path / "a.csv", INTERVALS), tmp_path / "out"
    command = ("videos", videos, out, "--annotations", path, "--unit", "second")
    prepare(*command)
    before, labels = images(out), labels_of(out)
    table(path, INTERVALS.replace("4.4", "60"))
    one = prepare(*command)
    assert "1 video of 2 could not be prepared (see above): op1. The others are kept; fix these" in one.output
    assert "Of an earlier run, and perhaps no longer true: all_ResNet_DB.csv" in one.output
    table(path, INTERVALS.replace("4.4", "60").replace("3.5", "60"))
    both = prepare(*command)
    assert "2 videos of 2 could not be prepared" in both.output
    assert "are kept" not in both.output
    assert contents(images(out)) == contents(before)
    assert labels_of(out) == labels
    table(path, INTERVALS)
    assert prepare(*command).exit_code == 0
    assert contents(images(out)) == contents(before)


def test_a_cut_video_is_refused_and_the_others_are_kept(videos: Path, tmp_path: Path) -> None:
    whole = draw_video(tmp_path / "data" / "op1.mkv", 200)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "data" / "op2.mp4").symlink_to(videos / "op1.mp4")
    result = prepare("videos", tmp_path / "data", tmp_path / "out")
    assert result.exit_code == 2
    assert "op1.mkv: ends too early" in result.output
    assert "1 video of 2 could not be prepared (see above): op1. The others" in result.output
    assert result.output.count("ends too early") == 1
    assert not list((tmp_path / "out").glob("*.csv"))
    assert {path.name[:3] for path in (tmp_path / "out" / "images").iterdir()} == {"op2"}
    result = prepare("videos", tmp_path / "data", tmp_path / "out", "--leave-out", "op1")
    assert result.exit_code == 0
    assert "1 video already there" in result.output
    assert prepare("videos", tmp_path / "data", tmp_path / "out2", "--allow-cut").exit_code == 0
    assert any(name.startswith("op1") for name in labels_of_ids(tmp_path / "out2"))


def labels_of_ids(out: Path) -> list[str]:
    return (out / "all_ResNet_DB.csv").read_text().splitlines()[1:]


def test_several_processes_write_the_same(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", INTERVALS)
    for workers in ("1", "2"):
        out = tmp_path / workers
        result = prepare("videos", videos, out, "--annotations", path, "--workers", workers)
        assert result.exit_code == 0, result.output
    assert contents(images(tmp_path / "1")) == contents(images(tmp_path / "2"))
    assert labels_of(tmp_path / "1") == labels_of(tmp_path / "2")


def test_a_kill_loses_at_most_the_videos_in_progress(videos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    draw_video(data / "c.mp4", 500, 25, size=(320, 240))
    for name in ("a", "b"):
        (data / f"{name}.mp4").symlink_to(videos / "op1.mp4")
    command = [sys.executable, "-m", "spatialfeat", "prepare", "videos", data, out, "--workers", "2", "--fps", "25"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("prepare/.c.partial/images/*"))) < 4:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=30)
    time.sleep(1.5)  # Its decoding processes notice that it is gone.
    before = images(out)
    assert not (out / "prepare" / "c").exists(), "the machine was too slow to kill it in time"
    assert {name[0] for name in before} <= {"a", "b"}
    assert before
    assert not list(out.glob("*.csv"))
    result = prepare("videos", data, out, "--fps", "25")
    assert result.exit_code == 0, result.output
    assert "already there" in result.output
    after = images(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 500 + 2 * NUM_FRAMES
    assert not list(out.glob("prepare/.*"))


def test_a_kill_between_a_video_and_its_move_loses_nothing(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("videos", videos, out)
    # As a kill in the middle of moving would leave it.
    (out / "prepare" / "op1" / "images").mkdir()
    for name in ("op1_000003.png", "op1_000004.png"):
        (out / "images" / name).rename(out / "prepare" / "op1" / "images" / name)
    (out / "all_ResNet_DB.csv").unlink()
    result = prepare("videos", videos, out)
    assert "2 videos already there" in result.output
    assert (out / "images" / "op1_000004.png").exists()
    assert len(labels_of_ids(out)) == 10


@pytest.mark.usefixtures("drawing")
def test_black_borders_are_cut_off_and_shown(tmp_path: Path) -> None:
    frames = [np.full((96, 128, 3), 5, dtype=np.uint8) for _ in range(20)]
    for frame in frames:
        frame[16:80, 40:120] = 180
    draw_video(tmp_path / "data" / "op1.mp4", 20, 10, size=(128, 96), frames=frames)
    draw_video(tmp_path / "data" / "op2.mp4", 20, 10)
    assert prepare("videos", tmp_path / "data", tmp_path / "out", "--crop-border").exit_code == 0
    facts = json.loads((tmp_path / "out" / "prepare" / "op1" / "video.json").read_text())
    assert facts["size"] == [128, 96]
    assert Image.open(tmp_path / "out" / "images" / "op1_000001.png").size == tuple(facts["size_written"])
    box = facts["crop_box"]
    assert all(abs(box[name] - edge) <= 2 for name, edge in (("left", 40), ("top", 16), ("right", 120), ("bottom", 80)))
    assert np.asarray(Image.open(tmp_path / "out" / "images" / "op1_000001.png").convert("L"))[4:-4, 4:-4].min() > 120
    assert Image.open(tmp_path / "out" / "prepare" / "crop_boxes.png").size[0] > 1000
    assert json.loads((tmp_path / "out" / "prepare" / "op2" / "video.json").read_text())["crop_box"] is None


def test_without_pyav_videos_are_refused_with_what_to_install(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = prepare("videos", videos, tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'spatialfeat[video]'" in result.output


def test_a_table_named_for_another_video_is_not_taken(videos: Path, tmp_path: Path) -> None:
    """op1 is no part of op10, and a common beginning is no match."""
    table(tmp_path / "labels" / "op10.csv", frames_table(0))
    table(tmp_path / "labels" / "op2_phases.csv", frames_table(0))
    result = prepare("videos", videos, tmp_path / "out", "--annotations", tmp_path / "labels")
    assert result.exit_code == 2
    assert "nothing about op1;" in result.output


def test_lines_that_are_not_cut_into_columns_are_no_phases(videos: Path, tmp_path: Path) -> None:
    text = "".join(f"{frame} first part{' two' * (frame % 2)}\n" for frame in range(210))
    options = ("--annotations", table(tmp_path / "op1.csv", text), "--unit", "frame", "--leave-out", "op2")
    result = prepare("videos", videos, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "line 210: 210 different phases, such as '0 first part'" in result.output


def test_a_line_that_ends_after_the_video_and_columns_in_another_order(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", "video,start_s,end_s,phase\nop1,0,2,cut\nop1,2,99,sew\nop2,0,4.4,cut\n")
    result = prepare("videos", videos, tmp_path / "out", "--annotations", path)
    assert result.exit_code == 2
    assert f"{path} line 3: the annotation has 99.00 s, the video 4.40 s" in result.stderr
    path = table(tmp_path / "b.csv", "cut,op1,0.0,2.0\nsew,op1,2.0,4.4\n")
    result = prepare("videos", videos, tmp_path / "out2", "--annotations", path)
    assert result.exit_code == 2
    for part in (f"{path} line 1", "no header", "'cut'", "op1, op2", "video,start,end,phase"):
        assert part in result.stderr


def test_csvs_that_go_are_named_and_what_two_patients_allow(patients: Path, videos: Path, tmp_path: Path) -> None:
    command = ("videos", patients / "videos", tmp_path / "out", "--annotations", patients / "phases.csv")
    assert "removed" not in prepare(*command).output
    result = prepare(*command, "--val", "0.3", "--test", "0.3")
    (line,) = [line for line in result.output.splitlines() if "removed, as" in line]
    for part in ("all_ResNet_DB.csv", "train_ResNet_DB.csv", "val_ResNet_DB.csv", "test_ResNet_DB.csv"):
        assert part in line
    two = prepare("videos", videos, tmp_path / "two", "--annotations", table(tmp_path / "a.csv", INTERVALS))
    assert "2 patients cannot be divided" in two.output
    assert "--folds" not in two.output
