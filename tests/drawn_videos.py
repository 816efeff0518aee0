"""Drawn videos for tests: every frame carries its number in its pixels, as 16 black or white blocks."""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from spatialfeat.cli import app

COLUMNS, ROWS = 8, 2
SIZE = (64, 48)


def drawn_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 3): bit b of `number` is the brightness of block b, row by row from the top left."""
    bits = np.array([number >> bit & 1 for bit in range(COLUMNS * ROWS)], dtype=np.uint8).reshape(ROWS, COLUMNS)
    blocks = np.kron(bits, np.ones((size[1] // ROWS, size[0] // COLUMNS), dtype=np.uint8))
    return np.repeat(blocks[:, :, None] * np.uint8(200) + np.uint8(30), 3, axis=2)


def read_number(image: Path | Image.Image) -> int:
    """The number in a frame, whatever its size has become."""
    grey = np.asarray((Image.open(image) if isinstance(image, Path) else image).convert("L"))
    height, width = grey.shape
    bits = [
        grey[int((row + 0.5) * height / ROWS), int((column + 0.5) * width / COLUMNS)] > 128
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return sum(int(bit) << index for index, bit in enumerate(bits))


def draw_video(
    path: Path,
    num_frames: int,
    rate: Fraction | int = 25,
    *,
    ticks: Sequence[int] | None = None,
    codec: str = "",
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    first: int = 0,
    frames: Sequence[np.ndarray[Any, np.dtype[np.uint8]]] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video of `num_frames` frames at a constant rate, or at `ticks` milliseconds each.

    first: the number in the first frame. rotation: degrees, clockwise, by which it is to be shown turned. frames:
    pictures instead of numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or ("mpeg4" if path.suffix == ".avi" else "libx264")
    time_base = Fraction(1, 1000) if ticks is not None else 1 / Fraction(rate)
    default = {"crf": "10", "preset": "ultrafast", "g": "12"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=default | (options or {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        if codec == "mpeg4":
            stream.bit_rate = 2_000_000
        for number in range(num_frames):
            picture = frames[number] if frames is not None else drawn_frame(first + number, size)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:
        turn(path, rotation)
    return path


def turn(path: Path, rotation: int) -> None:
    """Tell players of an MP4 to show it turned clockwise, by the matrix in its track header (ISO 14496-12, 8.3.2)."""
    sine, cosine = round(math.sin(math.radians(rotation)), 9), round(math.cos(math.radians(rotation)), 9)
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 14)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *(round(value * 65536) for value in matrix))
    path.write_bytes(content)


def damage(path: Path, packet: int) -> Path:
    """Overwrite the start of one packet, counted from 0, with what no decoder takes for a frame."""
    with av.open(str(path)) as container:
        places = [(found.pos, found.size) for found in container.demux(video=0) if found.size]
    content = bytearray(path.read_bytes())
    start, size = places[packet]
    assert start is not None
    content[start : start + min(size, 12)] = bytes(min(size, 12))
    path.write_bytes(content)
    return path


def prepare(*arguments: str | Path) -> Result:
    """Run `spatialfeat prepare` here, in this process."""
    more = [] if "--workers" in arguments else ["--workers", "1"]
    return CliRunner().invoke(app, ["prepare", *map(str, arguments), *more], catch_exceptions=False)


def labels_of(out: Path, split: str = "all") -> dict[str, str]:
    """{id: label} of one of the CSVs that were written."""
    with (out / f"{split}_ResNet_DB.csv").open(encoding="utf-8") as file:
        return {row["id"]: row["label"] for row in csv.DictReader(file)}


def per_video(labels: dict[str, str]) -> dict[str, str]:
    """{video: a character per sample}, from {id: label of one digit}."""
    found: dict[str, str] = {}
    for frame_id, label in labels.items():
        video = frame_id.rpartition("_")[0]
        found[video] = found.get(video, "") + (label if len(label) == 1 else f"({label})")
    return found
