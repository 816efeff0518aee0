"""`spatialfeat prepare frames`: frames that are files already are chosen, named and linked, not copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_videos import drawn_frame, labels_of, per_video, prepare, read_number
from PIL import Image

from spatialfeat.sources import study

pytestmark = pytest.mark.usefixtures("no_drawing")


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn_frame(number)).save(path, quality=95)


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Six frames of op1, as ffmpeg writes them: op1/000001.jpg to 000006.jpg; each shows its number."""
    for number in range(1, 7):
        draw(tmp_path / "frames" / "op1" / f"{number:06d}.jpg", number)
    return tmp_path / "frames"


FROM_1 = ("--first-frame", "1", "--source-fps", "1")


def test_frames_of_ffmpeg_with_a_row_each(frames: Path, tmp_path: Path) -> None:
    rows = table(tmp_path / "op1.csv", "frame,phase\n1,0\n2,0\n3,1\n4,1\n5,1\n6,0\n")
    out = tmp_path / "out"
    result = prepare("frames", frames, out, "--annotations", rows, *FROM_1)
    assert result.exit_code == 0, result.output
    assert per_video(labels_of(out)) == {"op1": "001110"}
    for k in range(6):
        image = out / "images" / f"op1_{k:06d}.jpg"
        assert read_number(image) == k + 1
        assert image.samefile(frames / "op1" / f"{k + 1:06d}.jpg")
        assert not image.is_symlink()
    assert "pass --taken-at middle" in result.output


def test_intervals_in_seconds_and_the_instant_a_frame_was_taken(frames: Path, tmp_path: Path) -> None:
    """ffmpeg's filter fps takes the middle of each second: at 2.5 s the phase has changed, at 2.0 s it has not."""
    rows = table(tmp_path / "a.csv", "video,start,end,phase\nop1,0.0,2.3,cut\nop1,2.3,6.0,sew\n")
    for taken_at, expected in (("start", "000111"), ("middle", "001111")):
        out = tmp_path / taken_at
        options = ("--annotations", rows, *FROM_1, "--taken-at", taken_at)
        assert prepare("frames", frames, out, *options).exit_code == 0
        assert per_video(labels_of(out)) == {"op1": expected}


@pytest.mark.parametrize(("taken_at", "expected"), [("start", "000111"), ("middle", "001111")])
def test_rows_of_the_videos_own_frames(taken_at: str, expected: str, frames: Path, tmp_path: Path) -> None:
    """At 25 frames a second, the phase changes at frame 62: the one that ffmpeg takes for the third second."""
    # The frames' own numbers begin at 1, those of the rows at 0; or at 1, which has to be told.
    for first, more in ((0, ()), (1, ("--first-row", "1"))):
        text = "".join(f"{n + first}\t{'ab'[n >= 62]}\n" for n in range(150))
        rows = table(tmp_path / "op1.csv", f"Frame\tPhase\n{text}")
        options = ("--annotations", rows, *FROM_1, "--annotation-fps", "25", "--taken-at", taken_at)
        result = prepare("frames", frames, tmp_path / f"out{first}", *options, *more)
        assert result.exit_code == 0, result.output
        assert per_video(labels_of(tmp_path / f"out{first}")) == {"op1": expected}
    result = prepare("frames", frames, tmp_path / "out", *options)
    assert "the first row is frame 1. Either they are counted from 1 (pass --first-row 1)" in result.output


def test_flat_names_of_any_numbering_and_a_lower_rate(tmp_path: Path) -> None:
    """Five frames a second, every fifth is wanted; one that is missing is not replaced by its neighbour."""
    for number in range(20):
        if number != 10:
            draw(tmp_path / "frames" / f"op_1_{number}.png", number)
    rows = table(tmp_path / "a.csv", "video,start,end,phase\nop_1,0.0,4.0,cut\n")
    result = prepare("frames", tmp_path / "frames", tmp_path / "out", "--annotations", rows, "--source-fps", "5")
    assert result.exit_code == 0, result.output
    assert list(labels_of(tmp_path / "out")) == ["op_1_000000", "op_1_000001", "op_1_000003"]
    assert read_number(tmp_path / "out" / "images" / "op_1_000003.png") == 15
    assert "1 sample without a file between the others" in result.output


def test_without_annotations_only_the_names_matter(frames: Path, tmp_path: Path) -> None:
    assert prepare("frames", frames, tmp_path / "out").exit_code == 0
    lines = (tmp_path / "out" / "all_ResNet_DB.csv").read_text().splitlines()
    assert lines == ["id", *(f"op1_{number:06d}" for number in range(1, 7))]


@pytest.mark.parametrize("refused", [("link",), ("link", "symlink")])
def test_where_links_are_not_allowed(
    refused: tuple[str, ...], frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in refused:
        monkeypatch.setattr(study.os, name, refuse)
    assert prepare("frames", frames, tmp_path / "out").exit_code == 0
    image = tmp_path / "out" / "images" / "op1_000003.jpg"
    assert image.is_symlink() == (refused == ("link",))
    assert image.read_bytes() == (frames / "op1" / "000003.jpg").read_bytes()


def test_run_again_it_links_what_is_missing(frames: Path, tmp_path: Path) -> None:
    prepare("frames", frames, tmp_path / "out")
    (tmp_path / "out" / "images" / "op1_000003.jpg").unlink()
    result = prepare("frames", frames, tmp_path / "out")
    assert "1 video already there" in result.output
    assert (tmp_path / "out" / "images" / "op1_000003.jpg").samefile(frames / "op1" / "000003.jpg")


ANY = "video,start,end,phase\nop1,0.0,6.0,cut\n"


@pytest.mark.parametrize(
    ("options", "extra", "parts"),
    [
        (("--source-fps", "1"), None, ["000001.jpg: the lowest frame is 1", "--first-frame 1", "--first-frame 0"]),
        (("--first-frame", "1"), None, ["how many of these frames make a second?", "--source-fps 1"]),
        (("--first-frame", "2", "--source-fps", "1"), None, ["000001.jpg: is frame 1, but --first-frame says", "2"]),
        ((*FROM_1, "--short-side", "128"), None, ["--short-side does nothing for frames, which are linked"]),
        ((*FROM_1, "--crop-border"), None, ["--crop-border does nothing for frames"]),
        (FROM_1, "op1/000007.png", ["op1: holds .jpg and .png files"]),
        (FROM_1, "op1/1.jpg", ["are both frame 1 of op1"]),
        (FROM_1, "op1/last.jpg", ["last.jpg: its name does not end in a frame number"]),
        (FROM_1, "000007.jpg", ["000007.jpg: does not say its video"]),
    ],
)
def test_refused(options: tuple[str, ...], extra: str | None, parts: list[str], frames: Path, tmp_path: Path) -> None:
    if extra is not None:
        draw(frames / extra, 7)
    rows = table(tmp_path / "a.csv", ANY)
    result = prepare("frames", frames, tmp_path / "out", "--annotations", rows, *options)
    assert result.exit_code == 2
    for part in parts:
        assert part in result.output, result.output
