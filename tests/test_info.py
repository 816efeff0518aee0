"""What `spatialfeat info` says about folders and files, and its exit codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinydata import PROVENANCE, TIME_FIRST_PROVENANCE, make_header, write_feature_file
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.console import clock_text, size_text
from spatialfeat.data.frames import count_gaps
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.schema import Provenance
from spatialfeat.info import FolderSummary, VideoSummary, describe, format_phases, render

run = CliRunner().invoke


def _write(
    folder: Path, video_id: str, num_frames: int = 10, split: str = "train", provenance: Provenance = PROVENANCE
) -> Path:
    header = replace(make_header(num_frames, video_id), split=split)
    return write_feature_file(folder / f"{video_id}.h5", header, provenance, attributes={"images_stat": "1f"})


def _folder(path: Path) -> FolderSummary:
    summary = describe(path)
    assert isinstance(summary, FolderSummary)
    return summary


def _video(path: Path) -> VideoSummary:
    summary = describe(path)
    assert isinstance(summary, VideoSummary)
    return summary


def test_a_sound_folder(tmp_path: Path) -> None:
    _write(tmp_path, "1050_10", 10)
    _write(tmp_path, "1050_9", 6)
    _write(tmp_path, "77_1", 3, split="test", provenance=TIME_FIRST_PROVENANCE)
    summary = _folder(tmp_path)
    assert [video.file.video_id for video in summary.videos] == ["77_1", "1050_9", "1050_10"]
    # Its frames are 1, 3, 5, ... at one frame number per second.
    doubt = (
        "frame numbers advance by 2, so at --fps 1 frames are 2 s apart; if that is one frame a second, pass --fps 2 "
        "to extract and check"
    )
    assert (summary.problems, summary.notes, summary.flagged) == ([], [doubt], set())
    result = run(app, ["info", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout == render(summary) + "\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["video", "split", "frames", "duration", "gaps", "phases", "unlabelled", "weights", "precision",
                        "size"]  # fmt: skip
    # Frames 1, 3, 5, ... at 1 fps: 6 frames last 12 seconds. Labels 0, 1, 2, -100, 0, 1.
    assert lines[3][:9] == ["1050_9", "train", "6", "0:00:12", "0", "0-2", "1", "aaaaaaaa", "fp32"]
    assert ["2", "videos", "train", "16", "0:00:32", "0", "0-2", "3"] in [line[:8] for line in lines]
    assert ["1", "video", "test", "3", "0:00:06", "0", "0-2", "0"] in [line[:8] for line in lines]
    assert ["3", "videos", "all", "19", "0:00:38", "0", "0-2", "3"] in [line[:8] for line in lines]
    assert "layout: time-first and channel-first" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_problems_are_reported_and_the_rest_is_shown(tmp_path: Path) -> None:
    for video_id in ("1_1", "2_1", "3_1"):
        _write(tmp_path, video_id)
    _write(tmp_path, "4_1", provenance=replace(PROVENANCE, weights_sha256="b" * 64))
    _write(tmp_path, "5_1", provenance=replace(PROVENANCE, preprocessing='{"image_size_px": 112}'))
    truncated = _write(tmp_path, "6_1")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "3_1.h5").rename(tmp_path / "renamed.h5")
    _write(tmp_path, "3_1")
    summary = _folder(tmp_path)
    assert [video.file.video_id for video in summary.videos] == ["1_1", "2_1", "3_1", "3_1", "4_1", "5_1"]
    assert {path.name for path in summary.flagged} == {"4_1.h5", "5_1.h5", "renamed.h5"}
    result = run(app, ["info", str(tmp_path)])
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    for sentence in (
        "problem: 6_1.h5: is not a whole HDF5 file (truncated file",
        "problem: other.h5: is not a feature file of spatialfeat; keep other files elsewhere",
        "problem: 4_1.h5 was made with other weights (bbbbbbbb against aaaaaaaa) than 1_1.h5; extract it again",
        "problem: 5_1.h5 was made with other preprocessing (image_size_px 112 against 224) than 1_1.h5; extract it",
        "problem: 3_1.h5 and renamed.h5 both hold video 3_1; extract it again, or move it away",
    ):
        assert sentence in text
    assert "All files can be used together" not in text
    flagged_lines = [line.split()[0] for line in result.stdout.splitlines() if line.endswith("  !")]
    assert flagged_lines == ["3_1", "4_1", "5_1"]
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_a_folder_of_unreadable_files_only(tmp_path: Path) -> None:
    (tmp_path / "1_1.h5").write_text("nothing")
    result = run(app, ["info", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stdout.startswith("problem: 1_1.h5: is not a whole HDF5 file")


def test_notes_are_no_problems(tmp_path: Path) -> None:
    _write(tmp_path, "1050_1", split="train")
    _write(tmp_path, "1050_2", split="test")
    (tmp_path / ".1050_3.h5.partial").write_text("")
    result = run(app, ["info", str(tmp_path)])
    assert result.exit_code == 0
    assert "note: patient 1050 is in the splits test and train: scores on them are too good" in result.stdout
    assert "note: .1050_3.h5.partial is unfinished: an extraction is running, or was cut off" in result.stdout


@pytest.mark.parametrize("provenance", [PROVENANCE, TIME_FIRST_PROVENANCE], ids=["channel-first", "time-first"])
def test_one_file(tmp_path: Path, provenance: Provenance) -> None:
    path = _write(tmp_path, "1050_1", provenance=provenance)
    result = run(app, ["info", str(path)])
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    matrix = "(2048, 10) float32 channel,time" if provenance is PROVENANCE else "(10, 2048) float32 time,channel"
    for line in (
        "10 frames in 1 segment, 0:00:20 at 1 fps, 0 gaps in frame numbers (usual step 2)",
        f"features {matrix}",
        "labels (10,) int64 time",
        "frame_ids (10,) UTF-8 time",
        "0 nasal 3 30.0%",
        "2 sellar 2 20.0%",
        "unlabelled 2 20.0%",
        f"weights_sha256 {'a' * 64}",
        "images_stat 1f",
        "preprocessing image_size_px 224",
        "versions spatialfeat 0.1.0",
        "phase_names nasal, sphenoid, sellar",
    ):
        assert line in lines
    with h5py.File(path) as file:
        shown = {line.split()[0] for line in lines[lines.index("attributes") + 1 :]}
        assert set(file.attrs) <= shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder; pass a folder of feature files, or one of them"),
        (lambda path: path.mkdir(), "holds no feature file"),
        (lambda path: path.write_text("x"), "is not a whole HDF5 file"),
    ],
    ids=["missing", "empty folder", "foreign file"],
)
def test_a_path_that_cannot_be_shown(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "features.h5"
    assert callable(make)
    make(path)
    result = run(app, ["info", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert message in result.stderr


def test_a_label_outside_the_phases(tmp_path: Path) -> None:
    path = _write(tmp_path, "1_1")
    with h5py.File(path, "r+") as file:
        file["labels"][4] = 9
    with pytest.raises(SpatialfeatError, match=r"1_1\.h5: frame \S+ has label 9, which is outside 0\.\.2; extract"):
        describe(path)
    assert run(app, ["info", str(tmp_path)]).exit_code == 1


@pytest.mark.parametrize(
    ("segments", "frames", "expected"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], (1, 0)),
        ([1, 1, 1, 1, 1], [1, 2, 5, 6, 9], (1, 2)),
        ([1, 1, 1, 1], [25, 50, 75, 125], (25, 1)),
        ([1, 1, 2, 2], [8, 9, 1, 2], (1, 0)),  # The step from one segment to the next is no gap.
        ([1, 1, 1], [1, 2, 4], (1, 1)),  # Of two steps equally common the smaller one is usual.
        ([1], [7], (1, 0)),
        ([1, 2], [7, 3], (1, 0)),
    ],
)
def test_gaps(segments: list[int], frames: list[int], expected: tuple[int, int]) -> None:
    assert count_gaps(np.array(segments), np.array(frames)) == expected


def test_the_duration_counts_gaps_and_each_segment(tmp_path: Path) -> None:
    header = replace(
        make_header(6), segments=np.array([1, 1, 1, 2, 2, 2]), frame_numbers=np.array([25, 50, 150, 25, 50, 75])
    )
    video = _video(write_feature_file(tmp_path / "1_1.h5", header, replace(PROVENANCE, fps=25.0)))
    assert (video.frame_step, video.num_gaps, video.num_segments) == (25, 1, 2)
    assert video.duration_s == 6 + 3


@given(st.sets(st.integers(0, 30)))
def test_phase_ranges_can_be_read_back(phases: set[int]) -> None:
    text = format_phases(sorted(phases))
    read: set[int] = set()
    for part in [] if text == "-" else text.split(","):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == phases


def test_formats() -> None:
    assert format_phases([0, 1, 2, 3, 5]) == "0-3,5"
    assert format_phases([]) == "-"
    assert clock_text(3723.4) == "1:02:03"
    assert [size_text(size) for size in (999, 1000, 999_950, 12_345_678, 3_000_000_000_000_000)] == [
        "999 B", "1.0 kB", "1.0 MB", "12.3 MB", "3000.0 TB",
    ]  # fmt: skip
