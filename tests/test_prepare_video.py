"""Videos whose frames carry their number in their pixels: which frames are taken, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from drawn_videos import SIZE, damage, draw_video, drawn_frame, read_number
from PIL import Image

from spatialfeat.errors import SpatialfeatError
from spatialfeat.sources.video import Box, Facts, Sample, find_box, header_length, sample_video

RATES = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(7500, 257))


def take(path: Path, fps: float | str = 1, **more: Any) -> tuple[Facts, list[Sample], list[Image.Image]]:
    """All samples of a video, and their pictures."""
    samples: list[Sample] = []
    pictures: list[Image.Image] = []

    def write(sample: Sample, picture: Image.Image) -> None:
        samples.append(sample)
        pictures.append(picture)

    options: dict[str, Any] = {"short_side": None, "box": None, "threads": 1, "wanted": lambda _: True} | more
    facts = sample_video(path, fps=Fraction(fps), write=write, advance=lambda _: None, **options)
    assert [sample.k for sample in samples] == list(range(len(samples)))
    # The number in the pixels is the number that is told.
    if pictures and "box" not in more:
        assert [read_number(picture) for picture in pictures] == [sample.frame for sample in samples]
    return facts, samples, pictures


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("fps", [1, 5])
def test_the_frame_on_display_is_taken(rate: Fraction, suffix: str, fps: int, tmp_path: Path) -> None:
    facts, samples, _ = take(draw_video(tmp_path / f"a{suffix}", 80, rate), fps)
    # A Matroska file has whole milliseconds: they are what a player goes by.
    tick = {".mkv": Fraction(1, 1000), ".ts": Fraction(1, 90_000)}.get(suffix, 1 / rate)
    times = [round(frame / rate / tick) * tick for frame in range(80)]
    expected = []
    while Fraction(len(expected), fps) < 80 / rate:
        expected.append(max(frame for frame in range(80) if times[frame] <= Fraction(len(expected), fps)))
    assert [sample.frame for sample in samples] == expected
    assert facts.num_frames == 80
    assert len(samples) == ceil(80 * fps / rate)
    assert (facts.cut, facts.notes) == ("", [])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate(suffix: str, tmp_path: Path) -> None:
    ticks = [0, 40, 400, 999, 1000, 1001, 2500, 2600, 4040]
    _, samples, _ = take(draw_video(tmp_path / f"a{suffix}", len(ticks), ticks=ticks))
    # By hand: at 0, 1, 2, 3 and 4 s the frames 0, 4 (at 1.000), 5, 7 and 7 are on display.
    assert [sample.frame for sample in samples] == [0, 4, 5, 7, 7]
    assert [sample.time for sample in samples] == [Fraction(tick, 1000) for tick in (0, 1000, 1001, 2600, 2600)]


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    ticks = [5000 + 40 * number for number in range(60)]
    _, samples, _ = take(draw_video(tmp_path / "a.mkv", 60, ticks=ticks))
    assert [sample.frame for sample in samples] == [0, 25, 50]


def test_more_samples_than_frames_repeat_them(tmp_path: Path) -> None:
    _, samples, _ = take(draw_video(tmp_path / "a.mp4", 3, 2), 4)
    assert [sample.frame for sample in samples] == [0, 0, 1, 1, 2, 2]


def test_a_stream_without_time_stamps_goes_by_its_rate(tmp_path: Path) -> None:
    facts, samples, _ = take(draw_video(tmp_path / "a.h264", 60, 25))
    assert [sample.frame for sample in samples] == [0, 25, 50]
    assert facts.num_frames == 60


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_upright(rotation: int, tmp_path: Path) -> None:
    white = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    white[:16, :16] = 255  # The corner at the top left of what is stored.
    path = draw_video(tmp_path / "a.mp4", 3, 1, rotation=rotation, frames=[white] * 3)
    facts, _, pictures = take(path, box=Box(0, 0, *SIZE))
    # Turned clockwise, the top left goes to the top right, the bottom right, the bottom left.
    corner = {90: (-1, 0), 180: (-1, -1), 270: (0, -1)}[rotation]
    pixels = np.asarray(pictures[0])
    assert pixels.shape[:2] == ((SIZE[1], SIZE[0]) if rotation == 180 else SIZE)
    bright = {(x, y) for x in (0, -1) for y in (0, -1) if pixels[y, x].mean() > 128}
    assert bright == {corner}
    assert facts.notes == ["turned upright, as players do"]


@pytest.mark.parametrize("rotation", [45, 91])
def test_a_turn_that_is_no_quarter_is_refused(rotation: int, tmp_path: Path) -> None:
    path = draw_video(tmp_path / "a.mp4", 3, 1, rotation=rotation)
    with pytest.raises(SpatialfeatError, match=r"a.mp4: is to be shown turned by .* degrees, .* --leave-out"):
        take(path)


def test_time_stamps_that_run_backwards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p"
        for number, tick in enumerate((0, 40, 120, 80, 160)):
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn_frame(number), format="rgb24")):
                packet.time_base, packet.pts, packet.dts = Fraction(1, 1000), tick, number
                container.mux(packet)
    with pytest.raises(SpatialfeatError, match=r"a.mkv: frame 3 is shown at 0.080 s, before frame 2 at 0.120 s"):
        take(path, 25)


def test_interlaced_frames_are_deinterlaced_and_stay_in_place(tmp_path: Path) -> None:
    options = {"x264-params": "interlaced=1"}
    facts, samples, _ = take(draw_video(tmp_path / "a.mp4", 60, 25, options=options, size=(64, 64)), 5)
    assert [sample.frame for sample in samples] == list(range(0, 60, 5))
    assert facts.num_frames == 60
    assert facts.notes == ["interlaced: deinterlaced (bwdif)"]
    # A bar that moves between the two fields of a frame has combs at its sides, and none after that.
    frames = [np.zeros((64, 64, 3), dtype=np.uint8) for _ in range(6)]
    for number, frame in enumerate(frames):
        for field in (0, 1):
            left = 4 * (2 * number + field)
            frame[field::2, left : left + 16] = 255
    path = draw_video(tmp_path / "b.mp4", 6, 5, options=options, size=(64, 64), frames=frames)
    _, _, pictures = take(path, 5, box=Box(0, 0, 64, 64))
    combs = [np.abs(np.diff(np.asarray(image).astype(int), axis=0)).mean() for image in (pictures[3], frames[3])]
    assert combs[0] < combs[1] / 3


def test_shrunk_to_the_short_side_and_never_enlarged(tmp_path: Path) -> None:
    path = draw_video(tmp_path / "a.mp4", 2, 1, size=(128, 96))
    assert take(path, short_side=48)[0].size_written == (64, 48)
    assert take(path, short_side=480)[0].size_written == (128, 96)
    assert take(path)[0].size_written == (128, 96)


def test_colours_are_those_of_the_video(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), dtype=np.uint8)
    red[:] = (200, 40, 90)
    _, _, pictures = take(
        draw_video(tmp_path / "a.mp4", 1, 1, frames=[red]), short_side=24, box=None, wanted=lambda _: 1
    )
    assert np.abs(np.asarray(pictures[0]).astype(int) - (200, 40, 90)).max() < 12


def cut(path: Path, part: float) -> Path:
    """The first part of a file; its header, in front, tells of all of it."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    return path


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_cut_file_is_told_with_the_time_it_ends(suffix: str, options: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        for number in range(250):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn_frame(number), format="rgb24")))
        container.mux(stream.encode())
    assert take(path)[0].cut == ""
    facts, samples, _ = take(cut(path, 0.6))
    assert 50 < facts.num_frames < 200
    assert len(samples) == ceil(facts.num_frames / 25)
    assert facts.cut


def test_a_damaged_frame_in_the_middle_ends_the_video_there(tmp_path: Path) -> None:
    """What is behind it might be numbered wrong: refused, or with --allow-cut taken until there."""
    facts, samples, _ = take(damage(draw_video(tmp_path / "a.mp4", 100), 60), 5)
    assert facts.num_frames == 60
    assert [sample.frame for sample in samples] == list(range(0, 60, 5))
    assert "cannot be decoded any further" in facts.cut


def test_lost_frames_are_found_by_their_time_stamps(tmp_path: Path) -> None:
    """A damaged transport stream or Matroska file just lacks frames: those behind keep their time, not their number."""
    path = damage(draw_video(tmp_path / "a.ts", 100), 30)
    samples: list[Sample] = []
    pictures: list[Image.Image] = []

    def write(sample: Sample, picture: Image.Image) -> None:
        samples.append(sample)
        pictures.append(picture)

    facts = sample_video(
        path, fps=Fraction(5), short_side=None, box=None, threads=1, wanted=lambda _: True, write=write,
        advance=lambda _: None,
    )  # fmt: skip
    assert (facts.num_frames, facts.lost) == (99, 1)
    assert facts.notes == ["1 frame missing by the time stamps, the most behind frame 29"]
    assert [sample.frame for sample in samples] == [*range(0, 30, 5), 29, *range(34, 99, 5)]
    assert [read_number(picture) for picture in pictures[8:]] == list(range(40, 100, 5))


def test_a_file_without_its_end_cannot_be_opened(tmp_path: Path) -> None:
    path = cut(draw_video(tmp_path / "a.mp4", 100), 0.5)  # What tells the frames' places is behind them.
    with pytest.raises(SpatialfeatError, match=r"a.mp4: cannot be opened as a video .*--leave-out"):
        take(path)
    with pytest.raises(SpatialfeatError, match="cannot be opened as a video"):
        header_length(path)


def test_a_file_of_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(SpatialfeatError, match="holds no video stream"):
        take(path)


def test_the_header_is_not_believed(tmp_path: Path) -> None:
    """An AVI whose header tells of too few frames: they are counted by decoding."""
    path = draw_video(tmp_path / "a.avi", 100)
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        place = content.index(name) + offset
        assert int.from_bytes(content[place : place + 4], "little") == 100
        content[place : place + 4] = (30).to_bytes(4, "little")
    path.write_bytes(content)
    facts, samples, _ = take(path)
    assert facts.num_frames == 100
    assert [sample.frame for sample in samples] == [0, 25, 50, 75]


def test_the_black_border_is_one_box_for_the_whole_video(tmp_path: Path) -> None:
    frames = []
    for number in range(40):
        frame = np.full((96, 128, 3), 6, dtype=np.uint8)
        y, x = np.mgrid[:96, :128]
        frame[(x - 70) ** 2 + (y - 48) ** 2 < 40**2] = 40 if number % 4 else 220  # Mostly dark.
        frames.append(frame)
    path = draw_video(tmp_path / "a.mp4", 40, 10, size=(128, 96), frames=frames, options={"g": "5"})
    box = find_box(path, tmp_path / "box.png")
    assert box is not None
    expected = (30, 8, 110, 88)
    assert max(abs(a - b) for a, b in zip((box.left, box.top, box.right, box.bottom), expected, strict=True)) <= 4
    facts, _, _ = take(path, short_side=40, box=box)
    assert min(facts.size_written) == 40
    assert Image.open(tmp_path / "box.png").size == (128, 96)


def test_a_video_without_a_border_or_all_dark_is_kept_whole(tmp_path: Path) -> None:
    bright = np.full((48, 64, 3), 120, dtype=np.uint8)
    dark = np.full((48, 64, 3), 4, dtype=np.uint8)
    for name, frame in (("bright", bright), ("dark", dark)):
        assert find_box(draw_video(tmp_path / f"{name}.mp4", 10, frames=[frame] * 10), tmp_path / "box.png") is None
