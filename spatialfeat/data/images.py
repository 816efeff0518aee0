"""PNG frames on disk: the one decoder, and the quick look at every file before long work starts."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from tqdm import tqdm

from spatialfeat.errors import SpatialfeatError

MAX_PIXELS = 50_000_000
"""A frame of 8K video has 33 million. Above this a small file can fill the memory: it is refused unread."""

MAX_FILE_BYTES = 500_000_000
"""More than MAX_PIXELS take without any compression."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">8xI4sIIBB")
"""The first bytes after the signature: length and name of the chunk, width, height, bits per channel, colour type."""

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


GREY_16_BIT = (16, 0)
"""(bits per channel, colour type) of the one PNG that `convert("RGB")` does not scale to 8 bits: it clips at 255."""


COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
"""PNG's numbers for what a pixel holds."""

EMPTY = "the file is empty"

logger = logging.getLogger(__name__)


class ImageError(Exception):
    """A frame that cannot be decoded; the message is the reason, without the path."""


def decode_rgb(content: bytes) -> Image.Image:
    """Decode the bytes of a PNG file into an RGB Pillow image, as the specification's `convert("RGB")` does.

    Raises ImageError for anything that is not a whole, decodable PNG.
    """
    if not content:
        raise ImageError(EMPTY)
    _check_header(content)
    # Pillow reads the chunks behind the pixels unguarded: a damaged one raises whatever its parser stumbles over.
    damage = (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            _check_size(*image.size)  # Again: a second header counts for Pillow. Nothing is decoded before `load`.
            image.load()
            rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")  # Which would copy it.
    except damage as error:
        raise ImageError(f"the PNG cannot be decoded ({error})") from error
    return rgb


def png_header(head: bytes) -> tuple[int, int, str]:
    """(width, height, kind) of a PNG from its first bytes; kind is e.g. `RGB`, `grey, 16 bit`.

    Raises ImageError where there is no such header.
    """
    bits, colour_type = _check_header(head)
    _, _, width, height, _, _ = PNG_HEADER.unpack_from(head)
    name = COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
    return width, height, name if bits == 8 or colour_type == 3 else f"{name}, {bits} bit"


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises ImageError for what is no file, such as a pipe that would be waited for without end, and for a file too large
    to be a frame; OSError if it cannot be read.
    """
    with _open_frame(path) as file:
        return file.read()


@contextmanager
def _open_frame(path: Path) -> Iterator[BinaryIO]:
    # Opening a pipe would wait for its other end, were it not for O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise ImageError(f"it is {what}, not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"the file has {status.st_size / 1e6:.0f} MB, too much for a frame")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _check_header(content: bytes) -> tuple[int, int]:
    """(bits per channel, colour type) as the first bytes of a file say. Raises ImageError unless they are a frame's."""
    if not content.startswith(PNG_SIGNATURE):
        raise ImageError("the content is not a PNG image")
    if len(content) < PNG_HEADER.size:
        raise ImageError("the PNG cannot be decoded (it ends in its header)")
    _, chunk, width, height, bits, colour_type = PNG_HEADER.unpack_from(content)
    if chunk == b"IHDR":  # If it is not there, Pillow will tell what is wrong.
        _check_size(width, height)
    return bits, colour_type


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"it claims {width} x {height} pixels, too many for a frame")


def content_digest(content: bytes) -> bytes:
    """A 16-byte digest of a file's bytes, to tell later whether a frame has changed.

    The first half of a SHA-256: processors compute it in hardware, in less than half of the time of a BLAKE2b.
    """
    return hashlib.sha256(content).digest()[:16]


def list_pngs(img_dir: Path) -> set[str]:
    """Names of all `.png` files in a folder, without the suffix. One directory listing instead of a stat per frame.

    Raises:
        SpatialfeatError: the folder does not exist or cannot be read.
    """
    try:
        with os.scandir(img_dir) as entries:
            # Hidden files, such as the `._1.png` of some file systems, are nobody's frames.
            return {entry.name[:-4] for entry in entries if entry.name.endswith(".png") and entry.name[0] != "."}
    except OSError as error:
        raise SpatialfeatError(
            f"--img-dir {img_dir}: cannot be read ({error.strerror}); pass the folder of the PNG files"
        ) from error


def find_broken_images(
    paths: Sequence[Path], *, progress: bool = True, is_known: Callable[[Path], bool] | None = None
) -> dict[int, str]:
    """Look at the first and last bytes of each PNG. Returns {index in `paths`: reason} for those that are unreadable.

    Catches empty, foreign and truncated files at about 30 us a file; damage in the middle shows when the frame is
    decoded. A file whose last bytes are unusual is decoded in full, since bytes after the image are allowed.
    Files that `is_known` says yes to, called from several threads, are not opened.
    """
    clipped: list[Path] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        reasons = pool.map(partial(_quick_look, clipped=clipped, is_known=is_known), paths, chunksize=256)
        bar = tqdm(
            reasons,
            total=len(paths),
            desc="checking images",
            unit=" files",
            disable=None if progress else True,
            leave=False,
        )
        try:
            broken = {index: reason for index, reason in enumerate(bar) if reason is not None}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the other files.
            raise
    if clipped:
        logger.warning(
            '%s: is 16-bit grey, of which convert("RGB") keeps the values up to 255 and makes all others white (%d of '
            "%d images); save such frames with 8 bits",
            min(clipped),
            len(clipped),
            len(paths),
        )
    return broken


def quick_look(path: Path) -> str | None:
    """Why a file is no whole PNG, judged by its first and last bytes; None if nothing is wrong."""
    return _quick_look(path, [], None)


def _quick_look(path: Path, clipped: list[Path], is_known: Callable[[Path], bool] | None) -> str | None:
    """Why `path` is unreadable, or None. Adds it to `clipped` if its values will be."""
    try:
        if is_known is not None and is_known(path):
            return None
        with _open_frame(path) as file:
            head = file.read(PNG_HEADER.size)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(PNG_END)))
            tail = file.read()
        if not head:
            return EMPTY
        if _check_header(head) == GREY_16_BIT:
            clipped.append(path)
        if tail != PNG_END:
            decode_rgb(read_image_file(path))
    except OSError as error:
        return error.strerror or str(error)
    except ImageError as error:
        return str(error)
    return None
