"""Frames on disk: where a name becomes pixels. The one decoder, and the quick look before long work starts."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from spatialfeat.errors import SpatialfeatError

SUFFIX = ".png"

MAX_PIXELS = 50_000_000
"""A frame of 8K video has 33 million. Above this a small file can fill the memory: it is refused unread."""

MAX_FILE_BYTES = 500_000_000
"""More than MAX_PIXELS take without any compression."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">8xI4sIIBB")
"""The first bytes after the signature: length and name of the chunk, width, height, bits per channel, colour type."""

_CHUNK_HEADER = struct.Struct(">I4s")
HARMLESS_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}
"""Chunks that ffmpeg and others write before the pixels, and that change none of them; and their lengths."""

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


def decode_pixels(content: bytes) -> NDArray[np.uint8]:
    """What `decode_rgb` decodes, as (height, width, 3) uint8, writable.

    Plain files are decoded by kornia-rs where it is installed, in a third to a quarter of Pillow's time, with the same
    pixels. Whatever it does not decode is Pillow's: what counts as a frame, and what is said of one that is none.
    """
    decode = _fast_decoder()
    if decode is not None and (shape := _plain_shape(content)) is not None:
        try:
            pixels: NDArray[np.uint8] = decode(content, shape, "rgb")
        except Exception:  # noqa: BLE001, S110  # kornia-rs raises nothing narrower. Pillow tells what is wrong.
            pass
        else:
            return pixels
    return np.array(decode_rgb(content))


@cache
def _fast_decoder() -> Callable[[bytes, tuple[int, int], str], NDArray[np.uint8]] | None:
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    found: Callable[[bytes, tuple[int, int], str], NDArray[np.uint8]] = decode_image_png_u8
    return found


def decoder_name() -> str:
    """What decodes plain PNG files here."""
    return "Pillow" if _fast_decoder() is None else "kornia-rs"


def _plain_shape(content: bytes) -> tuple[int, int] | None:
    """(height, width) of an 8-bit RGB PNG without anything unusual in it; None for all others.

    kornia-rs checks header and pixels as strictly as Pillow does, but not what stands around them: that is looked at
    here. Nothing may follow the pixels but the end.
    """
    if len(content) < PNG_HEADER.size or not content.startswith(PNG_SIGNATURE) or not content.endswith(PNG_END):
        return None
    length, kind, width, height, bits, colour_type = PNG_HEADER.unpack_from(content)
    plain = (length, kind, bits, colour_type) == (13, b"IHDR", 8, 2) and content[26:29] == b"\0\0\0"
    if not plain or not 0 < width * height <= MAX_PIXELS:
        return None
    place, end, data_seen = 33, len(content) - len(PNG_END), False
    while place < end:
        length, kind = _CHUNK_HEADER.unpack_from(content, place)
        following = place + length + 12
        if kind == b"IDAT":
            data_seen = True
        elif data_seen or HARMLESS_CHUNKS.get(kind) != length or not _is_sound(content, place, length):
            return None
        place = following
    return (height, width) if data_seen and place == end else None


def _is_sound(content: bytes, place: int, length: int) -> bool:
    """Whether the checksum of a chunk is right."""
    stored = int.from_bytes(content[place + 8 + length : place + 12 + length], "big")
    return zlib.crc32(content[place + 4 : place + 8 + length]) == stored


def png_header(head: bytes) -> tuple[int, int, str]:
    """(width, height, kind) of a PNG from its first bytes; kind is e.g. `RGB`, `grey, 16 bit`.

    Raises ImageError where there is no such header.
    """
    bits, colour_type = _check_header(head)
    _, _, width, height, _, _ = PNG_HEADER.unpack_from(head)
    name = COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
    return width, height, name if bits == 8 or colour_type == 3 else f"{name}, {bits} bit"


@dataclass(frozen=True)
class ImageFolder:
    """The frames of one folder. Here and nowhere else a frame's name becomes a file, `{name}.png`, and its pixels."""

    path: Path

    def file(self, name: str) -> Path:
        """Where the image of this name lies, whether it is there or not."""
        return self.path / f"{name}{SUFFIX}"

    def exists(self, name: str) -> bool:
        return self.file(name).exists()

    def names(self) -> set[str]:
        """Names of all images in the folder, by one listing of it instead of a look at every file.

        Raises:
            SpatialfeatError: the folder does not exist or cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                # Hidden files, such as the `._1.png` of some file systems, are no frames.
                found = {entry.name for entry in entries if entry.name.endswith(SUFFIX) and entry.name[0] != "."}
        except OSError as error:
            raise SpatialfeatError(
                f"--img-dir {self.path}: cannot be read ({error.strerror}); pass the folder of the PNG files"
            ) from error
        return {name.removesuffix(SUFFIX) for name in found}

    def fingerprint(self, name: str) -> tuple[int, int]:
        """(bytes, modification time in ns) of an image: cheap, and another one after every change. Raises OSError."""
        status = self.file(name).stat()
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        """The bytes of an image, for `decode_rgb`.

        Raises ImageError for what is no file, such as a pipe that would be waited for without end, and for a file too
        large to be a frame; OSError if it cannot be read.
        """
        with _open_frame(self.file(name)) as file:
            return file.read()

    def look(self, name: str) -> str | None:
        """Why an image is no whole PNG, judged by its first and last bytes; None if nothing is wrong.

        Catches empty, foreign and truncated files in about 30 us; damage in the middle shows when the frame is decoded.
        A file whose last bytes are unusual is decoded in full, since bytes after the image are allowed.
        """
        return self._look(name)[0]

    def find_broken(
        self, names: Sequence[str], *, is_known: Callable[[str], bool] | None = None, progress: bool = True
    ) -> dict[int, str]:
        """`look` at many images. Returns {index in `names`: reason} for those that are unreadable.

        Warns of 16-bit grey images. Those of which `is_known` says so are not opened.
        """

        def look(name: str) -> tuple[str | None, bool]:
            return (None, False) if is_known is not None and is_known(name) else self._look(name)

        with ThreadPoolExecutor(max_workers=8) as pool:
            bar = tqdm(
                pool.map(look, names, chunksize=256),
                total=len(names),
                desc="checking images",
                unit=" files",
                disable=None if progress else True,
                leave=False,
            )
            try:
                found = list(bar)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the other files.
                raise
        clipped = [name for name, (_, is_clipped) in zip(names, found, strict=True) if is_clipped]
        if clipped:
            logger.warning(
                '%s: is 16-bit grey, of which convert("RGB") keeps the values up to 255 and makes all others white '
                "(%d of %d images); save such frames with 8 bits",
                self.file(min(clipped)),
                len(clipped),
                len(names),
            )
        return {index: reason for index, (reason, _) in enumerate(found) if reason is not None}

    def _look(self, name: str) -> tuple[str | None, bool]:
        """(why the image is unreadable or None, whether its values will be clipped)."""
        clipped = False
        try:
            with _open_frame(self.file(name)) as file:
                head = file.read(PNG_HEADER.size)
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - len(PNG_END)))
                tail = file.read()
            if not head:
                return EMPTY, False
            clipped = _check_header(head) == GREY_16_BIT
            if tail != PNG_END:
                decode_rgb(self.read(name))
        except OSError as error:
            return error.strerror or str(error), clipped
        except ImageError as error:
            return str(error), clipped
        return None, clipped


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
