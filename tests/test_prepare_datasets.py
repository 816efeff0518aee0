"""Miniatures of public data sets in their exact form, against tables of the right labels made by hand.

`MINIATURES` writes each, with the traps of the real one: see docs/data.md. Every miniature goes through all commands.
"""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from drawn_videos import draw_video, labels_of, per_video, prepare, read_number
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.sources.datasets import DATA_SETS

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing", "no_contact_sheets")

OFFSET = 512
"""The first frame of a data set's n-th video has the number n times this, so that no two pictures are the same."""


class Miniature:
    """A folder that a data set's builder fills. rates: {video: (frames a second, number in its first frame)}."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rates: dict[str, tuple[Fraction, int]] = {}

    def video(self, video: str, path: str, num_frames: int, rate: Fraction | int = 25) -> None:
        first = OFFSET * len(self.rates)
        draw_video(self.folder / path, num_frames, rate, first=first)
        self.rates[video] = (Fraction(rate), first)

    def text(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(text.encode())


def runs(*lengths: tuple[int, str | int]) -> list[str]:
    """A phase per row, from (rows, phase)."""
    return [str(phase) for count, phase in lengths for _ in range(count)]


def rows(phases: list[str], separator: str, first: int = 0) -> str:
    return "".join(f"{number}{separator}{phase}\n" for number, phase in enumerate(phases, first))


Expected = dict[str, dict[str, str]]
"""{split: {video: the label of each sample that has one}}, by hand; a dot where a sample has none."""


def cholec80(data: Miniature) -> Expected:
    # Sample 3 is frame 75, where a phase begins. Names decide: Packaging is 4, Cleaning 5, Retraction 6. The last two
    # frames have no row.
    for video in ("video01", "video02", "video41", "video49"):
        data.video(video, f"videos/{video}.mp4", 110)
        phases = runs((40, "Preparation"), (35, "CalotTriangleDissection"), (25, "GallbladderPackaging"))
        phases += runs((4, "CleaningCoagulation"), (4, "GallbladderRetraction"))
        data.text(f"phase_annotations/{video}-phase.txt", "Frame\tPhase\n" + rows(phases, "\t"))
        data.text(f"tool_annotations/{video}-tool.txt", "Frame\tGrasper\n0\t1\n")
    return {
        "train": {"video01": "00145", "video02": "00145"},
        "val": {"video41": "00145"},
        "test": {"video49": "00145"},
    }


def m2cai16(data: Miniature) -> Expected:
    for video, num_rows in (("workflow_video_01", 25), ("workflow_video_02", 85), ("test_workflow_video_01", 30)):
        data.video(video, f"{video}.mp4", 110)
        phases = runs((25, "TrocarPlacement"), (num_rows, "GallbladderRetraction"))
        data.text(f"{video}.txt", "Frame\tPhase\n" + rows(phases, "\t"))
    # Annotations of 50, 110 and 55 frames.
    return {
        "*": {"workflow_video_01": "07...", "workflow_video_02": "07777"},
        "test": {"test_workflow_video_01": "077.."},
    }


def heichole(data: Miniature) -> Expected:
    for video in ("Hei-Chole1", "hei-chole2", "Hei-Chole3"):
        data.video(video, f"Videos/Full/{video}.mp4", 80)
        data.text(f"Annotations/Phase/{video}_Annotation_Phase.csv", rows(runs((26, 0), (24, 5), (30, 6)), ","))
    return {"*": {"Hei-Chole1": "0066", "hei-chole2": "0066", "Hei-Chole3": "0066"}}


def autolaparo(data: Miniature) -> Expected:
    # A line a second, counted from 1: line 2 is second 1. Phases run from 1 to 7 over all files.
    for video, phases in (("01", "1127"), ("02", "1222"), ("11", "3344"), ("15", "5677")):
        data.video(video, f"videos/{video}.mp4", 100)
        data.text(f"labels/label_{video}.txt", "Frame\tPhase\n" + rows(list(phases), "\t", 1))
    return {"train": {"01": "0016", "02": "0111"}, "val": {"11": "2233"}, "test": {"15": "4566"}}


def pitvis(data: Miniature) -> Expected:
    header = "int_video,int_time,int_step,int_instrument1,int_instrument2\n"
    for number, rate in (("02", 24), ("03", 24), ("19", 24), ("24", 25)):
        data.video(f"video_{number}", f"26531686/video_{number}.mp4", 4 * rate, rate)
        if number != "19":  # Which is missing in the download.
            steps = [-1, 1, 1, 14, -1]  # One row more than seconds.
            lines = (f"{int(number)},{second},{step},0,-2\n" for second, step in enumerate(steps))
            data.text(f"26531686/annotations_{number}.csv", header + "".join(lines))
    data.text("26531686/map_steps.csv", "int_step,str_step\n-1,operation_not_started\n1,nasal_corridor_creation \n")
    return {"train": {"video_02": ".00(13)", "video_03": ".00(13)"}, "val": {"video_24": ".00(13)"}}


def cataracts(data: Miniature) -> Expected:
    # 29.18 frames a second: the frames 0, 29, 58 and 87 are on display at 0, 1, 2 and 3 s. Rows count from 1: row 30
    # is frame 29, the first of step 3.
    for video, folder in (("train01", "train"), ("train02", "train"), ("test01", "dev"), ("test02", "test")):
        data.video(video, f"videos/{video}.mp4", 90, Fraction(7500, 257))
        steps = runs((29, 0), (29, 3), (29, 18), (3, 5))
        table = "Frame,Steps\n" + rows(steps, ",", 1)
        data.text(f"ground_truth/CATARACTS_2020/{folder}_gt/{video}.csv", table)
    return {
        "train": {"train01": "03(18)5", "train02": "03(18)5"},
        "val": {"test01": "03(18)5"},
        "test": {"test02": "03(18)5"},
    }


def cataract101(data: Miniature) -> Expected:
    starts, lengths = "VideoID;FrameNo;Phase\n", "VideoID;Frames;FPS;Surgeon;Experience\n"
    for number in (269, 270, 276):
        data.video(f"case_{number}", f"videos/case_{number}.mp4", 110)
        lengths += f"{number};110;25;1;1\n"
    # Nothing before frame 25; 270 ends at frame 75 with a row that repeats the last phase.
    starts += "269;25;1\n269;50;10\n270;25;1\n270;26;2\n270;75;2\n276;0;3\n276;51;4\n"
    data.text("annotations.csv", starts)
    data.text("videos.csv", lengths)
    data.text("phases.csv", "Phase;Meaning\n1;Incision\n")
    return {"*": {"case_269": ".0999", "case_270": ".011.", "case_276": "22233"}}


def cataract1k(data: Miniature) -> Expected:
    header = "caseId,comment,frame,endFrame,sec,endSec\n"
    tables = {
        # The frames belong to another rate: the seconds count. A gap, and a row of length zero.
        "5013": "5013,Incision,0,60,0.0,1.0\n5013,Viscoelastic,120,240,2.0,4.4\n"
        "5013,Lens positioning,240,240,4.0,4.0\n",
        "5014": "5014,Capsule Pulishing,0,120,0.0,2.0\n5014,Lens Positioning,120,240,2.0,4.4\n",
        "5015": "5015,capsule polishing,0,120,0.0,2.0\n5015,Irrigation/Aspiration,120,240,2.0,4.4\n",
    }
    for number, table in tables.items():
        data.video(f"case_{number}", f"videos/case_{number}.mp4", 110)
        data.text(f"annotations/case_{number}/case_{number}_annotations_phases.csv", header + table)
    return {"*": {"case_5013": "0.111", "case_5014": "66888", "case_5015": "66555"}}


def ophnet(data: Miniature) -> Expected:
    for number in (2, 3, 5, 8):
        data.video(f"case_000{number}", f"videos/case_000{number}.mp4", 110)
    lines = (
        "video_id,start,end,split,surgery_id,phase_id,operation_id",
        "case_0002,0.0,2.5,train,1,4,7",
        "case_0002,2.0,4.4,train,1,0,3",  # From 2.0 on, the one that started later counts.
        "case_0003,3.0,4.2,train,1,1,3",  # Not sorted, and a gap.
        "case_0003,0.5,1.5,train,1,2,3",
        "case_0005,0.0,4.4,val,1,3,3",
        "case_0008,0.0,4.4,test,1,4,3",
    )
    data.text("OphNet2024_loca_all.csv", "\ufeff" + "\r\n".join(lines) + "\r\n")
    return {
        "train": {"case_0002": "44000", "case_0003": ".2.11"},
        "val": {"case_0005": "33333"},
        "test": {"case_0008": "44444"},
    }


def multibypass140(data: Miniature) -> Expected:
    # Both ends belong to an interval, the later start counts; 12 and 13 lie over the phases and do not.
    intervals = [(900, 2000, 0), (1200, 2100, 12), (2000, 3000, 7), (2500, 2600, 13), (3500, 4000, 11)]
    phases = [{"start": s, "end": e, "label_name": f"n{i}", "label_id": i} for s, e, i in intervals]
    for video in ("BBP01", "BBP02", "SBP01"):
        data.video(video, f"{video[0]}/videos/{video}.mp4", 125)
        data.text(f"labels/{video[0]}/labels_by70/{video}.mp4.json", json.dumps({"phases": phases, "steps": phases}))
    return {"*": dict.fromkeys(("BBP01", "BBP02", "SBP01"), ".077(11)")}


def ydgpzm(data: Miniature) -> Expected:
    for patient, segments in ((1050, ("1", "2")), (1051, ("01",)), (1052, ("1",))):
        tasks = []
        for segment in segments:
            video = f"{patient}_{segment}"
            data.video(video, f"{patient}/{video}.mp4", 125)
            tricks = [(0.4, 1.9, "Fase 1"), (1.2, 3.7, "Fase 2"), (4.0, 4.6, "No step")]
            tasks.append(
                {
                    "id": len(tasks),
                    "video_url": f"/data/upload/3/8f2a-{video}.mp4",
                    "tricks": [{"start": s, "end": e, "channel": 0, "labels": [label]} for s, e, label in tricks],
                }
            )
        data.text(f"{patient}/{patient}.json", json.dumps(tasks))
    # Second 0 is skipped; 1 belongs to both, and the first counts; 3 is the last of Fase 2.
    return {"*": dict.fromkeys(("1050_1", "1050_2", "1051_01", "1052_1"), ".1220")}


def jigsaws(data: Miniature) -> Expected:
    # 30 frames a second, counted from 1, ends included: frame 30 (from 0) is line 31.
    for video in ("Suturing_B001", "Suturing_B002", "Suturing_C001", "Suturing_D003"):
        data.video(video, f"Suturing/video/{video}_capture1.avi", 120, 30)
        (data.folder / f"Suturing/video/{video}_capture2.avi").write_bytes(b"the other eye")
        data.text(f"Suturing/transcriptions/{video}.txt", "1 30 G1 \n31 61 G5 \n91 120 G11 \n")
    return {"*": dict.fromkeys(("Suturing_B001", "Suturing_B002", "Suturing_C001", "Suturing_D003"), "044(10)")}


def sarrarp50(data: Miniature) -> Expected:
    # 10 rows a second, numbered by frames at 60 a second.
    actions = runs((10, 0), (10, 3), (10, 7))
    for video, folder in (("video_1", "train"), ("video_2", "train"), ("video_41", "test")):
        data.video(video, f"{folder}/{video}/video_left.avi", 180, 60)
        table = "".join(f"{6 * index:09d},{action}\n" for index, action in enumerate(actions))
        data.text(f"{folder}/{video}/action_discrete.txt", table)
    return {"*": {"video_1": "037", "video_2": "037"}, "test": {"video_41": "037"}}


BUILDERS: dict[str, tuple[Callable[[Miniature], Expected], tuple[str, ...]]] = {
    "cholec80": (cholec80, ()),
    "m2cai16": (m2cai16, ("--val", "0.5")),
    "heichole": (heichole, ("--val", "0.3", "--test", "0.3")),
    "autolaparo": (autolaparo, ()),
    "pitvis": (pitvis, ()),
    "cataracts": (cataracts, ()),
    "cataract101": (cataract101, ("--val", "0.3", "--test", "0.3")),
    "cataract1k": (cataract1k, ("--val", "0.3", "--test", "0.3")),
    "ophnet": (ophnet, ()),
    "multibypass140": (multibypass140, ("--val", "0.3", "--test", "0.3")),
    "ydgpzm": (ydgpzm, ("--val", "0.3", "--test", "0.3")),
    "jigsaws": (jigsaws, ("--val", "0.3", "--test", "0.3")),
    "sarrarp50": (sarrarp50, ("--val", "0.5")),
}


def test_every_data_set_has_a_miniature() -> None:
    assert set(BUILDERS) == set(DATA_SETS)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_miniature_goes_through_all_commands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, options = BUILDERS[name]
    data, out = Miniature(tmp_path / "data"), tmp_path / "out"
    expected = build(data)
    result = prepare(name, data.folder, out, *options)
    assert result.exit_code == 0, result.output
    splits = [split for split in ("train", "val", "test") if (out / f"{split}_ResNet_DB.csv").exists()]
    found = {split: labels_of(out, split) for split in splits}
    by_hand = {
        f"{video}_{k:06d}": (split, label)
        for split, videos in expected.items()
        for video, text in videos.items()
        for k, label in enumerate(cells(text))
        if label != "."
    }
    assert {frame_id: label for labels in found.values() for frame_id, label in labels.items()} == {
        frame_id: label for frame_id, (_, label) in by_hand.items()
    }
    for split, labels in found.items():
        assert all(by_hand[frame_id][0] in (split, "*") for frame_id in labels)
        for frame_id in labels:
            rate, first = data.rates[frame_id[:-7]]
            number = int(rate * int(frame_id[-6:]))  # The last frame that begins at k seconds or before.
            assert read_number(out / "images" / f"{frame_id}.png") == (first + number) % 2**16
    monkeypatch.chdir(out)
    names = Path("phase_names.txt").read_text().splitlines()
    quick = ("--device", "cpu", "--workers", "0")
    tests = ("--test-csv", "test_ResNet_DB.csv") if "test" in found else ()
    steps = (
        ("check", *tests, *quick, "--no-estimate", "--image-size", "64"),
        ("finetune", *quick, "--weights", "random", "--image-size", "64", "--epochs", "1",
         "--freeze-until", "9", "--no-tensorboard"),
        ("extract", *quick),
        ("export", "ms-tcn", "features", "mstcn", "--allow-small-bundles", "--name-replacement", "_", "--val-to",
         "own" if tests else "test", "--skip-short"),
    )  # fmt: skip
    for step in steps:
        result = CliRunner().invoke(app, step)
        assert result.exit_code == 0, f"{step}: {result.output}"
    truth = Path("mstcn/groundTruth")
    for video, text in {video: text for videos in expected.values() for video, text in videos.items()}.items():
        labels = [label for label in cells(text) if label != "."]
        if len(labels) > 1:
            written = (truth / f"{video}.txt").read_text().splitlines()
            assert written == [names[int(label)].replace(" ", "_") for label in labels]


def cells(text: str) -> list[str]:
    """`03(18)5` -> 0, 3, 18, 5."""
    found: list[str] = []
    for part in text.replace("(", " (").replace(")", ") ").split():
        found += [part[1:-1]] if part.startswith("(") else list(part)
    return found


def test_published_splits_by_name(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    cholec80(data)
    expected = {"train": ["video01", "video02"], "test": ["video41", "video49"]}
    for split in ("32/8/40", "40/40"):
        out = tmp_path / split.replace("/", "-")
        result = prepare("cholec80", data.folder, out, "--split", split, "--fps", "0.5")
        assert result.exit_code == 0, result.output
        for name, videos in expected.items():
            assert sorted(per_video(labels_of(out, name))) == videos
        assert "no videos are published for validation: pass --val" in result.output  # Of those that are here.
    result = prepare("cholec80", data.folder, tmp_path / "40-40", "--split", "40/40", "--fps", "0.5", "--val", "0.5")
    assert result.exit_code == 0, result.output
    shared_out = [list(per_video(labels_of(tmp_path / "40-40", name))) for name in ("train", "val")]
    assert [len(videos) for videos in shared_out] == [1, 1]
    assert sorted(per_video(labels_of(tmp_path / "40-40", "test"))) == expected["test"]
    result = prepare("cholec80", data.folder, tmp_path / "x", "--split", "70/10")
    assert "--split 70/10: Cholec80, 80 cholecystectomies has 40/8/32, 32/8/40, 40/40" in result.output


def test_the_folds_of_multibypass140_are_read_without_unpickling(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    data = Miniature(tmp_path / "data")
    multibypass140(data)
    for split, video in (("train", "BBP01"), ("val", "BBP02"), ("test", "SBP01")):
        content = pickle.dumps({video: [{"Frame_id": 1, "path": f"{video}/img1.jpg"}], "x": Evil()})
        name = "1fps_100_2.pickle" if split == "train" else "1fps_2.pickle"
        path = data.folder / "labels" / "multi" / "labels" / split / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    out = tmp_path / "out"
    assert prepare("multibypass140", data.folder, out, "--split", "fold2").exit_code == 0
    assert [list(per_video(labels_of(out, split))) for split in ("train", "val", "test")] == [
        ["BBP01"],
        ["BBP02"],
        ["SBP01"],
    ]
    assert not (tmp_path / "pwned").exists()
    result = prepare("multibypass140", data.folder, tmp_path / "y", "--split", "fold3")
    assert "--split fold3: no file train/1fps_3.pickle" in result.output


def test_surgeons_of_jigsaws_are_its_patients(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    jigsaws(data)
    prepare("jigsaws", data.folder, tmp_path / "out", "--fps", "0.5")
    with (tmp_path / "out" / "all_ResNet_DB.csv").open() as file:
        assert {row["id"][:13]: row["patient"] for row in csv.DictReader(file)} == {
            "Suturing_B001": "B",
            "Suturing_B002": "B",
            "Suturing_C001": "C",
            "Suturing_D003": "D",
        }


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = prepare("cholec80", tmp_path / "empty", tmp_path / "out")
    assert result.exit_code == 2
    assert "phase_annotations/video01-phase.txt" in result.output
    result = prepare("cholec81", tmp_path / "empty", tmp_path / "out")
    assert "SOURCE cholec81: is none of videos, frames, cholec80" in result.output
    data = Miniature(tmp_path / "data")
    pitvis(data)
    result = prepare("pitvis", data.folder, tmp_path / "out")
    assert "left out, there is no annotation: video_19" in result.output


@pytest.mark.parametrize(
    ("phases", "parts"),
    [("1123", ["the phases run from 1 to 3", "--first-phase 1", "--first-phase 0"]), ("0127", ["phase 7 is outside"])],
)
def test_autolaparo_is_refused_where_its_numbers_have_two_readings_or_none(
    phases: str, parts: list[str], tmp_path: Path
) -> None:
    data = Miniature(tmp_path / "data")
    data.video("01", "videos/01.mp4", 100)
    data.text("labels/label_01.txt", "Frame\tPhase\n" + rows(list(phases), "\t", 1))
    result = prepare("autolaparo", data.folder, tmp_path / "out")
    assert result.exit_code == 2
    for part in parts:
        assert part in result.output


def test_all_label_files_of_autolaparo_tell_where_phases_begin(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    data.video("01", "videos/01.mp4", 100)
    for video, phases in (("01", "1123"), ("02", "4567")):  # Of the second there is no video.
        data.text(f"labels/label_{video}.txt", "Frame\tPhase\n" + rows(list(phases), "\t", 1))
    result = prepare("autolaparo", data.folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert per_video(labels_of(tmp_path / "out", "train")) == {"01": "0012"}


def test_a_table_in_another_form_is_refused(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    data.video("video01", "videos/video01.mp4", 30)
    data.text("phase_annotations/video01-phase.txt", "Frame\tTool\n0\tPreparation\n")
    result = prepare("cholec80", data.folder, tmp_path / "out")
    assert result.exit_code == 2
    assert "video01-phase.txt line 1: 'Frame\\tTool' is not the header 'Frame\\tPhase'" in result.output


def test_the_help_lists_every_data_set_and_what_is_assumed_of_it() -> None:
    text = CliRunner().invoke(app, ["prepare", "--help"]).output
    one_line = " ".join(text.split())
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    for name, data_set in DATA_SETS.items():
        assert f"{name}: {data_set.title}" in text
        assert data_set.layout.splitlines()[0] in text
        assert (f"assumed, not published: {data_set.assumed};" in one_line) == bool(data_set.assumed)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert ("**Assumed:**" in row) == bool(data_set.assumed)


@pytest.mark.parametrize(
    ("starts", "lengths", "message"),
    [
        ("269;0;1\n269;110;2\n", "269;110", "annotations.csv line 3: frame 110 of video 269, which has 110 frames"),
        ("269;0;1\n269;111;1\n", "269;110", "annotations.csv line 3: frame 111 of video 269, which has 110 frames"),
        ("269;0;1\n", "270;110", "videos.csv: has no line for video 269"),
    ],
)
def test_cataract101_is_refused_where_its_frames_do_not_count_from_0(
    starts: str, lengths: str, message: str, tmp_path: Path
) -> None:
    data = Miniature(tmp_path / "data")
    data.video("case_269", "videos/case_269.mp4", 110)
    data.text("annotations.csv", f"VideoID;FrameNo;Phase\n{starts}")
    data.text("videos.csv", f"VideoID;Frames;FPS;Surgeon;Experience\n{lengths};25;1;1\n")
    result = prepare("cataract101", data.folder, tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_ydgpzm_is_refused_where_its_json_names_no_video(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    ydgpzm(data)
    path = data.folder / "1051" / "1051.json"
    path.write_text(path.read_text().replace("1051_01.mp4", "first.mp4"))
    result = prepare("ydgpzm", data.folder, tmp_path / "out")
    assert result.exit_code == 2
    assert "1051.json: is not of the form [{video: .../1050_1.mp4, tricks:" in " ".join(result.output.split())


def test_videos_of_the_test_alone_are_for_extraction(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    cholec80(data)
    left_out = ("--leave-out", "video01", "--leave-out", "video02")
    result = prepare("cholec80", data.folder, tmp_path / "out", "--fps", "0.5", *left_out)
    assert "extract --csv val_ResNet_DB.csv --csv test_ResNet_DB.csv --weights WEIGHTS --fps 0.5" in result.output


def test_what_is_assumed_of_a_data_set_is_said(tmp_path: Path) -> None:
    data = Miniature(tmp_path / "data")
    cataract101(data)
    result = prepare("cataract101", data.folder, tmp_path / "out", "--fps", "0.5")
    assert "note: assumed, not published: its frames are counted from 0" in " ".join(result.output.split())
