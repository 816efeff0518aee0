"""How fast is `spatialfeat prepare videos`, against `ffmpeg -vf fps=1,scale` on the same video and the same cores?

Where there is no ffmpeg program, the same decoder, filters and PNG encoder run through PyAV, which brings FFmpeg. The
video is drawn: smooth colours that move, under camera noise, so that it decodes as slowly as one of an operation.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from measuring import Spread, load_average, paired_ratios, run_measured

RATE = 25
SIZE = (854, 480)
DRAWN_SECONDS = 20
"""So much is drawn, and repeated until the video is long enough."""


def draw(path: Path, minutes: float) -> None:
    """A video of so many minutes, encoded as H.264 with key frames every 10 s: the same seconds again and again."""
    width, height = SIZE
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    noise = [rng.normal(0, 3, (height, width, 1)).astype(np.float32) for _ in range(5)]
    num_drawn = DRAWN_SECONDS * RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "21", "g": "250"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets: list[av.Packet[Any]] = []
        for number in range(num_drawn):
            phase = number / RATE
            waves = [np.sin(x / (60 + 9 * c) + phase) * np.cos(y / (45 + 7 * c) - phase / 2) for c in range(3)]
            drawn = np.clip(120 + 60 * np.stack(waves, axis=2) + noise[number % 5], 0, 255).astype(np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24"))
        packets += stream.encode()
        pieces = [(bytes(packet), packet.pts or 0, packet.dts or 0, packet.is_keyframe) for packet in packets]
        time_base = packets[0].time_base
        ticks = num_drawn * int(1 / (time_base * RATE))
        for repeat in range(round(minutes * 60 / DRAWN_SECONDS)):
            for content, pts, dts, is_keyframe in pieces:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, is_keyframe
                packet.pts, packet.dts = pts + repeat * ticks, dts + repeat * ticks
                container.mux(packet)


def filter_with_pyav(video: Path, out: Path) -> None:
    """What the ffmpeg program does, by its libraries: every frame through the filters, PNGs by its encoder."""
    with av.open(str(video)) as source, av.open(str(out / "%06d.png"), "w", format="image2") as target:
        stream = source.streams.video[0]
        stream.thread_type = "AUTO"
        graph = av.filter.Graph()
        nodes = (("fps", "1"), ("scale", "-2:256"), ("format", "rgb24"), ("buffersink", None))
        graph.link_nodes(graph.add_buffer(template=stream), *(graph.add(*node) for node in nodes)).configure()
        written = target.add_stream("png", rate=1)
        assert isinstance(written, av.VideoStream)
        written.pix_fmt = "rgb24"

        def pull() -> None:
            while True:
                try:
                    frame = graph.vpull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    return
                if not written.codec_context.is_open:
                    written.width, written.height = frame.width, frame.height
                target.mux(written.encode(frame))

        for frame in source.decode(stream):
            graph.vpush(frame)
            pull()
        graph.vpush(None)
        pull()
        target.mux(written.encode())


def reference(video: Path, out: Path) -> list[str]:
    """The command line of the other way."""
    if shutil.which("ffmpeg"):
        return ["ffmpeg", "-v", "error", "-i", str(video), "-vf", "fps=1,scale=-2:256", str(out / "%06d.png")]
    return [sys.executable, __file__, "--filter", str(video), str(out)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--filter", nargs=2, type=Path, metavar=("VIDEO", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.filter:
        filter_with_pyav(*options.filter)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "videos").mkdir()
        video = work / "videos" / "op1.mp4"
        print(f"load average {load_average():.1f}; drawing {options.minutes:g} minutes of {SIZE[0]}x{SIZE[1]}")
        draw(video, options.minutes)
        ours: list[float] = []
        theirs: list[float] = []
        for repeat in range(options.repeats):
            out = work / f"reference{repeat}"
            out.mkdir()
            theirs.append(run_measured(reference(video, out), cwd=work).seconds)
            command = [sys.executable, "-m", "spatialfeat", "prepare", "videos", "videos", f"out{repeat}"]
            ours.append(run_measured(command, cwd=work).seconds)
            counts = [len(list(place.glob("*.png"))) for place in (out, work / f"out{repeat}" / "images")]
            print(f"frames written: {counts[0]} and {counts[1]}")
        name = "ffmpeg" if shutil.which("ffmpeg") else "FFmpeg through PyAV"
        print(f"{name}: {Spread.of(theirs).text()} s; spatialfeat prepare, whole command: {Spread.of(ours).text()} s")
        print(f"rate of prepare, as a part of the other's: {paired_ratios(theirs, ours).text()}")


if __name__ == "__main__":
    main()
