"""Every image of a data set decoded once, in parallel: size, kind, a hash of its pixels, or why it cannot be read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialfeat.console import FrameBar, frame_bar
from spatialfeat.data.images import PNG_HEADER, ImageError, decode_rgb, png_header, quick_look, read_image_file
from spatialfeat.errors import SpatialfeatError
from spatialfeat.signals import leave_signals_to_main_process

CHUNK = 32
"""Images per piece of work: the bar moves every second even where one takes 30 ms."""


class ImageFacts(NamedTuple):
    """What one file holds.

    pixels: a hash of the decoded RGB pixels and their size, 0 where they were not decoded. one_colour: all pixels are
    equal. reason: why it cannot be read, None if it can; the rest is then meaningless.
    """

    width: int = 0
    height: int = 0
    kind: str = ""
    num_bytes: int = 0
    pixels: int = 0
    one_colour: bool = False
    reason: str | None = None


@dataclass(eq=False)
class ImageScan:
    """F images. ids: (F,) str, sorted; widths, heights: (F,) int32; kinds: (F,) str; sizes_bytes: (F,) int64.

    pixels: (F,) uint64, equal for equal pictures, and one_colour: (F,) bool; both meaningless unless `decoded`.
    reasons: {index: why it cannot be read}. seconds: how long it took with `processes` of them.
    """

    ids: NDArray[Any]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    kinds: NDArray[Any]
    sizes_bytes: NDArray[np.int64]
    pixels: NDArray[np.uint64]
    one_colour: NDArray[np.bool_]
    reasons: dict[int, str]
    decoded: bool
    seconds: float
    processes: int

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(F,): which images could be read."""
        readable = np.ones(len(self.ids), dtype=bool)
        readable[list(self.reasons)] = False
        return readable


def scan_images(img_dir: Path, ids: Sequence[str], *, workers: int, decode: bool) -> ImageScan:
    """Look at `{img_dir}/{id}.png` of every id (sorted, each once), which must be there.

    Args:
        workers: processes; 0 decodes in this one.
        decode: False reads only the ends of the files: damage in the middle and equal pictures stay unknown.

    Raises:
        SpatialfeatError: a decoding process died.
    """
    count = len(ids)
    scan = ImageScan(
        ids=np.array(ids, dtype=str),
        widths=np.zeros(count, dtype=np.int32),
        heights=np.zeros(count, dtype=np.int32),
        kinds=np.full(count, "", dtype="<U24"),
        sizes_bytes=np.zeros(count, dtype=np.int64),
        pixels=np.zeros(count, dtype=np.uint64),
        one_colour=np.zeros(count, dtype=bool),
        reasons={},
        decoded=decode,
        seconds=0.0,
        processes=max(1, workers),
    )
    start = time.monotonic()
    look = partial(_look_at_all, str(img_dir), decode=decode)
    chunks = [list(ids[index : index + CHUNK]) for index in range(0, count, CHUNK)]
    with frame_bar(count, "decoding images" if decode else "looking at images") as bar, _mapper(workers, chunks) as run:
        _collect(run(look, chunks), scan, bar)
    scan.seconds = time.monotonic() - start
    return scan


def look_at(path: Path, *, decode: bool) -> ImageFacts:
    """The facts of one file."""
    try:
        if not decode:
            reason = quick_look(path)
            if reason is not None:
                return ImageFacts(reason=reason)
            with path.open("rb") as file:
                return ImageFacts(*png_header(file.read(PNG_HEADER.size)), path.stat().st_size)
        content = read_image_file(path)
        rgb = decode_rgb(content)
        width, height, kind = png_header(content)
    except ImageError as error:
        return ImageFacts(reason=str(error))
    except OSError as error:
        return ImageFacts(reason=error.strerror or str(error))
    # Pixels, not the file's bytes: the same picture saved by another program is still the same picture.
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=8)
    digest.update(rgb.tobytes())
    one_colour = rgb.getcolors(maxcolors=1) is not None
    return ImageFacts(width, height, kind, len(content), int.from_bytes(digest.digest(), "little"), one_colour)


def _look_at_all(img_dir: str, ids: list[str], *, decode: bool) -> list[ImageFacts]:
    return [look_at(Path(img_dir) / f"{frame_id}.png", decode=decode) for frame_id in ids]


@contextmanager
def _mapper(workers: int, chunks: Sequence[object]) -> Iterator[Any]:
    """`map` over the processes that are worth starting."""
    if workers == 0 or len(chunks) < 2:
        yield map
        return
    # Processes, not threads: Pillow lets other threads run while it inflates, but not while it converts and copies.
    pool = ProcessPoolExecutor(min(workers, len(chunks)), initializer=leave_signals_to_main_process)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise SpatialfeatError(
            "a decoding process died, perhaps for want of memory; pass fewer --workers, or 0"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(results: Any, scan: ImageScan, bar: FrameBar) -> None:
    index = 0
    for facts in results:
        for fact in facts:
            if fact.reason is not None:
                scan.reasons[index] = fact.reason
            scan.widths[index], scan.heights[index] = fact.width, fact.height
            scan.kinds[index], scan.sizes_bytes[index] = fact.kind, fact.num_bytes
            scan.pixels[index], scan.one_colour[index] = fact.pixels, fact.one_colour
            index += 1
        bar.advance(len(facts))
