"""A video file -> the frames on display at k / fps, in one pass, decoded in order with PyAV (FFmpeg).

Frames are counted by decoding, and timed by their own time stamps: what the header says is only compared.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from spatialfeat.console import clock_text, count_text
from spatialfeat.errors import SpatialfeatError

ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Pillow's way of turning a picture by so many degrees against the clock."""

DEINTERLACER = "bwdif", "mode=send_frame:deint=interlaced"
"""One frame for each frame; frames that are not interlaced pass unchanged."""

LOOKS = 24
"""Places along a video at which the black border is looked for."""

BLACK = 28
"""Grey values up to this, of 255, are border: compression makes black a little brighter."""

LIT_FRACTION = 0.02
"""A row or column with more brighter pixels than this belongs to the picture; a time or logo in the border does not."""

IRREGULAR = 0.05
"""A video of which a larger part of the steps from frame to frame is longer than usual has a variable rate."""

SMALLEST_BOX = 0.1
"""A box smaller than this part of the picture is no picture in a border, but a dark video."""


@dataclass(frozen=True)
class Box:
    """What is left of a picture: columns left..right-1 and rows top..bottom-1 of the stored frame."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Sample:
    """Sample k is the source's frame number `frame`, which has been on display since `time`."""

    k: int
    frame: int
    time: Fraction


@dataclass
class Facts:
    """What decoding a video has shown. end: when the last frame ends, in seconds since the first one.

    lost: how many frames seem to be missing between others.
    """

    num_frames: int = 0
    end: Fraction = Fraction(0)
    size: tuple[int, int] = (0, 0)
    size_written: tuple[int, int] = (0, 0)
    cut: str = ""
    lost: int = 0
    notes: list[str] = field(default_factory=list)


def load_av() -> Any:
    """The module `av`. Raises SpatialfeatError where PyAV is not installed."""
    try:
        import av
        import av.filter
    except ImportError as error:
        raise SpatialfeatError(
            "videos are read with PyAV, which is not installed; run: pip install 'spatialfeat[video]'"
        ) from error
    av.logging.set_level(av.logging.PANIC)  # This program reports what is wrong, once.
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its video stream)."""
    av = load_av()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpatialfeatError(
            f"{path}: cannot be opened as a video ({reason}); it is cut, damaged or no video: get it again, or leave "
            "it out with --leave-out"
        ) from error
    with container:
        pictures = [stream for stream in container.streams.video if not stream.disposition.value & _ATTACHED]
        if not pictures:
            raise SpatialfeatError(f"{path}: holds no video stream; get it again, or leave it out with --leave-out")
        yield container, pictures[0]


_ATTACHED = 0x400
"""FFmpeg's mark of a stream that is a cover picture."""


def header_length(path: Path) -> tuple[int | None, float | None]:
    """(frames, seconds) as the header says, for progress bars and messages only; None where it does not."""
    with _opened(path) as (container, stream):
        seconds = _promised(container, stream)
        rate = stream.average_rate
        frames = stream.frames or (round(seconds * rate) if seconds and rate else None)
        return frames, float(seconds) if seconds is not None else None


def _promised(container: Any, stream: Any) -> Fraction | None:
    """Seconds of the video stream by the header."""
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, 1_000_000)
    return None


def sample_video(
    path: Path,
    *,
    fps: Fraction,
    short_side: int | None,
    box: Box | None,
    threads: int,
    wanted: Callable[[Sample], bool],
    write: Callable[[Sample, Image.Image], None],
    advance: Callable[[float], None],
) -> Facts:
    """Decode a video once, from its first frame to its last, and write what is on display at 0, 1 / fps, 2 / fps, ...

    Args:
        short_side: pixels of the shorter side, never enlarged (swscale's bicubic, widened where it shrinks); None
            keeps the size.
        box: what to keep of each frame.
        wanted: whether a sample is to be converted and written.
        write: is given every wanted sample, in order.
        advance: called for every second of video.

    Raises:
        SpatialfeatError: the video cannot be opened, has no frame, or time stamps that run backwards.
    """
    facts, reformatter = Facts(), load_av().video.reformatter.VideoReformatter()
    k, reported, shown, usual = 0, Fraction(0), None, Fraction(0)
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        steps: deque[Fraction] = deque(maxlen=101)
        all_steps: Counter[Fraction] = Counter()
        longest = Fraction(0), 0

        def emit(end: Fraction) -> None:
            nonlocal k
            while Fraction(k) / fps < end:
                assert shown is not None
                sample = Sample(k, shown[0], shown[1])
                if wanted(sample):
                    picture = _picture(path, shown[2], reformatter, short_side, box)
                    facts.size_written = picture.size
                    write(sample, picture)
                k += 1

        for index, time, frame in _deinterlaced(_timed(path, container, stream, facts), facts):
            if shown is not None:
                if time < shown[1]:
                    raise SpatialfeatError(
                        f"{path}: frame {index} is shown at {float(time):.3f} s, before frame {index - 1} at "
                        f"{float(shown[1]):.3f} s; fix the time stamps (ffmpeg -i IN -c copy OUT), or leave it out "
                        "with --leave-out"
                    )
                steps.append(time - shown[1])
                all_steps[time - shown[1]] += 1
                longest = max(longest, (time - shown[1], -shown[0]))
                emit(time)
            shown = (index, time, frame)
            if time - reported >= 1:
                advance(float(time - reported))
                reported = time
        if shown is None:
            raise SpatialfeatError(f"{path}: no frame can be decoded; get it again, or leave it out with --leave-out")
        usual = sorted(steps)[len(steps) // 2] if steps else 1 / (stream.average_rate or Fraction(25))
        facts.num_frames, facts.end = shown[0] + 1, shown[1] + usual
        emit(facts.end)
        facts.size = (shown[2].width, shown[2].height)
        _look_for_losses(all_steps, -longest[1], facts)
        _compare_with_header(container, stream, facts, 1 / fps)
        _note_looks(stream, shown[2], facts)
    return facts


def _timed(path: Path, container: Any, stream: Any, facts: Facts) -> Iterator[tuple[int, Fraction, Any]]:
    """(number, seconds since the first frame, frame) of every frame, in order of display."""
    av = load_av()
    first: Fraction | None = None
    rate = stream.average_rate or stream.guessed_rate
    index = damaged = 0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                damaged += frame.is_corrupt
                if frame.pts is None and not rate:
                    raise SpatialfeatError(
                        f"{path}: has neither time stamps nor a frame rate; give it one (ffmpeg -r RATE -i IN -c copy "
                        "OUT.mp4), or leave it out with --leave-out"
                    )
                if frame.pts is None:
                    time = index / Fraction(rate)
                    if index == 0:
                        facts.notes.append(f"no time stamps: timed by its frame rate, {float(rate):g}")
                else:
                    own = Fraction(frame.pts * frame.time_base)
                    first = own if first is None else first
                    time = own - first
                yield index, time, frame
                index += 1
    except (av.error.FFmpegError, OSError) as error:
        facts.cut = f"it cannot be decoded any further ({getattr(error, 'strerror', None) or error})"
    if damaged:
        facts.notes.append(
            f"{count_text(damaged, 'frame')} damaged: filled in by the decoder, and so may be those that build on them"
        )


def _deinterlaced(frames: Iterator[tuple[int, Fraction, Any]], facts: Facts) -> Iterator[tuple[int, Fraction, Any]]:
    """The same frames, from the first interlaced one on as the deinterlacer shows them."""
    av = load_av()
    graph: Any = None
    waiting: deque[tuple[int, Fraction]] = deque()

    def ready() -> Iterator[tuple[int, Fraction, Any]]:
        while waiting:
            try:
                frame = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield (*waiting.popleft(), frame)

    for index, time, frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield index, time, frame
            continue
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(source, graph.add(*DEINTERLACER), graph.add("buffersink")).configure()
            facts.notes.append(f"interlaced: deinterlaced ({DEINTERLACER[0]})")
        waiting.append((index, time))
        frame.pts = index  # The filter wants ascending ones; the true time goes beside it.
        graph.vpush(frame)
        yield from ready()
    if graph is not None:
        graph.vpush(None)
        yield from ready()


def _picture(path: Path, frame: Any, reformatter: Any, short_side: int | None, box: Box | None) -> Image.Image:
    """A frame as RGB, cut, shrunk and upright. reformatter: PyAV's, which keeps its filters from frame to frame."""
    width, height = frame.width, frame.height
    if box is not None:
        width, height = box.right - box.left, box.bottom - box.top
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if box is None:
        rgb = reformatter.reformat(frame, width=size[0], height=size[1], format="rgb24", interpolation="BICUBIC")
        picture: Image.Image = rgb.to_image()
    else:
        whole: Image.Image = frame.to_image()
        picture = whole.crop((box.left, box.top, box.right, box.bottom))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
    turn = round(frame.rotation) % 360
    if turn and turn not in ROTATIONS:
        raise SpatialfeatError(
            f"{path}: is to be shown turned by {turn} degrees, which is no quarter turn; turn it with ffmpeg, or leave "
            "it out with --leave-out"
        )
    return picture.transpose(ROTATIONS[turn]) if turn else picture


def _look_for_losses(steps: Counter[Fraction], before: int, facts: Facts) -> None:
    """Damaged containers lose frames without a word: of a constant rate, their places in time stay empty.

    before: the frame with the longest step behind it.
    """
    usual = max(steps, key=lambda step: (steps[step], -step), default=Fraction(0))
    longer = {step: number for step, number in steps.items() if usual and step > usual * Fraction(3, 2)}
    if longer and sum(longer.values()) <= IRREGULAR * steps.total():
        facts.lost = sum((round(step / usual) - 1) * number for step, number in longer.items())
        facts.notes.append(
            f"{count_text(facts.lost, 'frame')} missing by the time stamps, the most behind frame {before}"
        )


def _compare_with_header(container: Any, stream: Any, facts: Facts, sample_s: Fraction) -> None:
    promised = _promised(container, stream)
    if promised is None:
        facts.notes.append("the header gives no length: all that could be decoded is there")
        return
    tolerance = max(sample_s, Fraction(1, 2))
    lengths = f"the header says {clock_text(float(promised))}, the pictures end at {clock_text(float(facts.end))}"
    if facts.end < promised - tolerance:
        facts.cut = facts.cut or lengths
    elif facts.end > promised + tolerance:
        facts.notes.append(lengths)


def _note_looks(stream: Any, frame: Any, facts: Facts) -> None:
    if frame.rotation:
        facts.notes.append("turned upright, as players do")
    ratio = stream.sample_aspect_ratio
    if ratio and ratio != 1:
        facts.notes.append(f"its pixels are not square ({ratio}): kept as they are stored")


def find_box(path: Path, picture_path: Path) -> Box | None:
    """The rectangle in which anything is ever bright, from frames all along the video; None where that is all of it.

    Writes a picture to `picture_path`: the brightest that was seen of each pixel, with the box.
    """
    with _opened(path) as (container, stream):
        brightest = _brightest(path, container, stream)
    height, width, _ = brightest.shape
    lit = brightest.max(axis=2) > BLACK
    columns = np.flatnonzero(lit.mean(axis=0) > LIT_FRACTION)
    rows = np.flatnonzero(lit.mean(axis=1) > LIT_FRACTION)
    box: Box | None = None
    if len(columns) and len(rows):
        found = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        area = (found.right - found.left) * (found.bottom - found.top)
        margins = (found.left, found.top, width - found.right, height - found.bottom)
        if area >= SMALLEST_BOX * width * height and max(margins) > 0.01 * max(width, height):
            box = found
    picture = Image.fromarray(brightest)
    if box is not None:
        corners = (box.left, box.top, box.right - 1, box.bottom - 1)
        ImageDraw.Draw(picture).rectangle(corners, outline=(255, 220, 0), width=max(1, min(width, height) // 100))
    picture.thumbnail((320, 320))
    picture.save(picture_path)
    return box


def _brightest(path: Path, container: Any, stream: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 3) uint8: the brightest seen of every pixel, at LOOKS places, or in the first frames."""
    av = load_av()
    brightest: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    promised = _promised(container, stream)
    for look in range(LOOKS):
        try:
            if promised is not None:
                # To the key frame before it: cheap, and near enough.
                container.seek(int(promised * look / LOOKS / stream.time_base), stream=stream)
            frame = next(container.decode(stream))
        except (av.error.FFmpegError, StopIteration, OSError):
            continue
        pixels = frame.to_ndarray(format="rgb24")
        brightest = pixels if brightest is None else np.maximum(brightest, pixels)
    if brightest is None:
        raise SpatialfeatError(f"{path}: no frame can be decoded; get it again, or leave it out with --leave-out")
    return brightest
