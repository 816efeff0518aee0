"""`spatialfeat prepare videos`: from a person's own videos and tables to a study folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_videos import draw_video, labels_of, per_video, prepare, read_number
from PIL import Image

pytestmark = pytest.mark.usefixtures("no_drawing")

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
    "nothing that is meant": (INTERVALS, ("--split", "40/40"), ["--split: has no meaning for videos"]),
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


def test_unlabelled_frames_are_kept_on_request(videos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", INTERVALS)
    prepare("videos", videos, tmp_path / "out", "--annotations", path, "--unlabelled", "keep")
    assert per_video(labels_of(tmp_path / "out"))["op2"] == "(-100)111(-100)"


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


def test_videos_in_folders_of_their_own(videos: Path, tmp_path: Path) -> None:
    for video in ("op1.mp4", "op2.mkv"):
        (tmp_path / "data" / video[:3]).mkdir(parents=True)
        (tmp_path / "data" / video[:3] / f"video{video[3:]}").symlink_to(videos / video)
    prepare("videos", tmp_path / "data", tmp_path / "out")
    assert "op2_000004" in (tmp_path / "out" / "all_ResNet_DB.csv").read_text()


def test_splits_keep_patients_whole(videos: Path, tmp_path: Path) -> None:
    names = [f"{patient}_{segment}" for patient in range(1001, 1005) for segment in (1, 2)]
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / f"{name}.mp4").symlink_to(videos / "op1.mp4")
    text = "video,start,end,phase\n" + "".join(f"{name},0.0,4.4,cut\n" for name in names)
    options = ("--annotations", table(tmp_path / "a.csv", text), "--val", "0.25", "--test", "0.25", "--fps", "0.5")
    assert prepare("videos", tmp_path / "data", tmp_path / "out", *options).exit_code == 0
    patients = {
        split: {frame_id.split("_")[0] for frame_id in labels_of(tmp_path / "out", split)}
        for split in ("train", "val", "test")
    }
    assert [len(patients[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert set.union(*patients.values()) == {str(patient) for patient in range(1001, 1005)}
    result = prepare("videos", tmp_path / "data", tmp_path / "out2", *options, "--val", "0.9")
    assert result.exit_code == 2
    assert "leaves no patient of 4 for training" in result.output


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


def test_a_cut_video_is_refused_and_the_others_are_kept(videos: Path, tmp_path: Path) -> None:
    whole = draw_video(tmp_path / "data" / "op1.mkv", 200)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "data" / "op2.mp4").symlink_to(videos / "op1.mp4")
    result = prepare("videos", tmp_path / "data", tmp_path / "out")
    assert result.exit_code == 2
    assert "op1.mkv: ends too early" in result.output
    assert "1 video of 2 could not be prepared" in result.output
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
