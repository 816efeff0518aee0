"""The demo data set: files match tables, ids are as awkward as real ones, other folders are left alone."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_demo_data.py"
SPLITS = ("train", "val", "test")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Worker processes look the drawing function up by this name.
    spec.loader.exec_module(module)
    return module


demo = _load()
TINY = {"num_train": 2, "num_val": 1, "num_test": 1, "frames_per_patient": 14, "size_px": (96, 64)}


def _rows(folder: Path, split: str) -> list[tuple[str, int]]:
    with (folder / f"{split}_ResNet_DB.csv").open(newline="", encoding="utf-8") as table:
        return [(row["id"], int(row["label"])) for row in csv.DictReader(table)]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    demo.make_demo_data(folder, **TINY)
    return folder


def test_pictures_match_the_tables(tiny: Path) -> None:
    ids = [frame_id for split in SPLITS for frame_id, _ in _rows(tiny, split)]
    assert len(set(ids)) == len(ids) == 4 * 14
    assert {path.name for path in (tiny / "images").iterdir()} == {f"{frame_id}.png" for frame_id in ids}
    for frame_id in ids:
        with Image.open(tiny / "images" / f"{frame_id}.png") as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (96, 64))
            pixels = np.asarray(picture)
        assert not pixels[:4, :4].any()  # The surround is black,
        assert pixels[24:40, 38:58].std() > 3  # and the view is not empty.


def test_text_files(tiny: Path) -> None:
    names = (tiny / "phase_names.txt").read_bytes()
    assert names.endswith(b"\n")
    assert b"\r" not in names
    assert len(set(names.decode().split("\n")[:-1])) == 7
    assert not any(" " in name for name in names.decode().splitlines())
    for split in SPLITS:
        content = (tiny / f"{split}_ResNet_DB.csv").read_bytes()
        assert content.startswith(b"id,label\n")
        assert b"\r" not in content


def test_every_split_has_all_phases_and_its_own_patients(tiny: Path) -> None:
    owner: dict[int, str] = {}
    for split in SPLITS:
        rows = _rows(tiny, split)
        assert {label for _, label in rows} == set(range(7))
        for frame_id, _ in rows:
            assert owner.setdefault(int(frame_id.split("_")[0]), split) == split


@pytest.mark.parametrize("seed", range(5))
def test_ids_have_gaps_and_varying_widths_and_stay_in_time_order(seed: int) -> None:
    videos = demo.plan_videos({"train": 8, "val": 2, "test": 3}, 75, seed)
    widths: list[set[int]] = [set(), set(), set()]
    crossings = 0
    for video in videos:
        segments: dict[int, list[int]] = defaultdict(list)
        for frame_id in video.ids:
            patient, segment, frame = frame_id.split("_")
            assert patient == str(int(patient)) == video.patient
            segments[int(segment)].append(int(frame))
            for seen, field in zip(widths, (patient, segment, frame), strict=True):
                seen.add(len(field))
        assert list(segments) == list(range(1, len(segments) + 1))
        assert len(segments) in (2, 3)
        for frames in segments.values():
            steps = np.diff(frames)
            assert steps.min() == 1
            assert steps.max() > 1
        assert video.seconds == sorted(set(video.seconds))
        assert len({len(frame_id.split("_")[1]) for frame_id in video.ids}) == 1
        crossings += video.ids != sorted(video.ids)
    assert all(len(seen) > 1 for seen in widths)
    assert crossings >= 2  # Some operations would be put out of order by sorting their ids as text.


@pytest.mark.parametrize("seed", range(5))
def test_phases_run_in_order(seed: int) -> None:
    videos = demo.plan_videos({"train": 8, "val": 2, "test": 3}, 75, seed)
    changes = {video.patient: np.diff(video.labels) for video in videos}
    assert [patient for patient, steps in changes.items() if steps.min() < 0] == [videos[0].patient]
    assert changes[videos[0].patient].min() == -1
    assert [video.patient for video in videos if set(video.labels) != set(range(7))] == [videos[7].patient]
    assert all(len(video.labels) == len(video.ids) == 75 for video in videos)


def test_many_patients_stay_distinct() -> None:
    videos = demo.plan_videos({"train": 60, "val": 2, "test": 3}, 14, 0)
    assert len({int(video.patient) for video in videos}) == 65


def test_same_seed_same_bytes_and_another_seed_other_pictures(tiny: Path, tmp_path: Path) -> None:
    demo.make_demo_data(tmp_path / "again", **TINY)
    assert _contents(tmp_path / "again") == _contents(tiny)
    demo.make_demo_data(tmp_path / "other", **TINY, seed=1)
    assert _contents(tmp_path / "other").keys() != _contents(tiny).keys()


def test_processes_do_not_change_the_pictures(tmp_path: Path) -> None:
    larger = TINY | {"size_px": (240, 160)}  # Large enough for worker processes to be started.
    for workers in (1, 2):
        demo.make_demo_data(tmp_path / str(workers), **larger, workers=workers)
    assert _contents(tmp_path / "1") == _contents(tmp_path / "2")


def test_a_complete_folder_is_left_alone(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    demo.make_demo_data(tiny, **TINY)
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_other_folders_are_refused(tiny: Path, tmp_path: Path) -> None:
    before = _contents(tiny)
    with pytest.raises(ValueError, match="not this demo data set"):
        demo.make_demo_data(tiny, **TINY, seed=1)
    assert _contents(tiny) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not this demo data set"):
        demo.make_demo_data(tmp_path, **TINY)
    with pytest.raises(ValueError, match="not this demo data set"):
        demo.make_demo_data(tmp_path / "notes.txt", **TINY)
    assert _contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("wrong", [{"num_val": 0}, {"frames_per_patient": 6}, {"size_px": (16, 64)}, {"seed": -1}])
def test_impossible_parameters_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at the least"):
        demo.make_demo_data(tmp_path / "new", **(TINY | wrong))
    assert not (tmp_path / "new").exists()


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--patients-train 2 --patients-val 1 --patients-test 1 --frames-per-patient 14 --width 96 --height 64"
    monkeypatch.setattr(sys, "argv", ["make_demo_data.py", str(tmp_path / "new"), *sizes.split()])
    assert demo.main() == 0
    assert demo.main() == 0
    monkeypatch.setattr(sys, "argv", ["make_demo_data.py", str(tmp_path), *sizes.split()])
    assert demo.main() == 2
    assert "error:" in capsys.readouterr().err
