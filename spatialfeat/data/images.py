"""Frames on disk: where a name becomes a file and pixels. The one decoder, and a quick look before long work starts."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from spatialfeat.console import count_text, new_bar
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key, same_name_key

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of files that are frames, in any letter case. What a file is its first bytes say: JPEG data named .png is fine."""

OTHER_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2")
"""Of pictures that would have to be converted."""

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

LOOKED_AT_TOGETHER = 64
"""Handing a thread a single file takes as long as looking at it."""

HEAD_BYTES = 4096
"""So much of a file holds the size of almost every image: JPEGs may have pictures and profiles before it."""

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
ADOBE_MARKER = 0xEE
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Of the header (SOF, ITU T.81, B.2.2) that has the size; the three others are tables, and reserved."""
JPEG_KINDS = {1: "grey", 3: "RGB", 4: "CMYK"}
"""By the number of channels."""

FOREIGN = {
    rb"II\*\0|MM\0\*": "a TIFF image",
    rb"BM": "a BMP image",
    rb"GIF8": "a GIF image",
    rb"RIFF....WEBP": "a WebP image",
    rb"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    rb"....ftyp(?:hei|mif|avi)": "a HEIC or AVIF image",
    rb"version https://git-lfs": "a Git LFS pointer",
    rb"\s*<": "a web page",
}
"""How other files begin that are found under the names of images."""

MISSING = "the file does not exist"

CLIPPED_KIND = "grey, 16 bit"
"""The one kind of PNG that `convert("RGB")` does not scale to 8 bits: it clips at 255."""

COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
"""PNG's numbers for what a pixel holds."""

logger = logging.getLogger(__name__)


class ImageError(Exception):
    """A frame that cannot be decoded; the message is the reason, without the path."""


def decode_rgb(content: bytes) -> Image.Image:
    """Decode the bytes of a PNG or JPEG file into an RGB Pillow image, as the specification's `convert("RGB")` does.

    Raises ImageError for anything that is not a whole, decodable image of these two.
    """
    form = _form(content)
    image_header(content)
    # Pillow reads the chunks behind the pixels unguarded: a damaged one raises any kind of error.
    damage = (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(BytesIO(content), formats=[form]) as image:
            _check_size(*image.size)  # Again: a second header counts for Pillow. Nothing is decoded before `load`.
            image.load()
            rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")  # Which would copy it.
    except damage as error:
        # Pillow names the place in memory of what it does not recognize.
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"the {form} cannot be decoded ({reason})") from error
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
        except Exception:  # noqa: BLE001, S110  # kornia-rs raises nothing narrower. Pillow says what is wrong.
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


def usual_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of a whole JPEG as cameras and ffmpeg write them; None for all other files.

    That is: three channels of 8 bits in YCbCr, baseline or progressive, nothing behind the end.
    """
    if not content.startswith(JPEG_START) or not content.endswith(JPEG_END):
        return None
    header = _jpeg_header(content)
    if header is None or ADOBE_MARKER in header.before:  # The marker may say that the colours are others.
        return None
    height, width = header.height, header.width
    usual = header.marker <= 0xC2 and (header.bits, header.channels) == (8, 3) and 0 < width * height <= MAX_PIXELS
    return (height, width) if usual and content[header.place + 10] != ord("R") else None


def _is_sound(content: bytes, place: int, length: int) -> bool:
    """Whether the checksum of a chunk is right."""
    stored = int.from_bytes(content[place + 8 + length : place + 12 + length], "big")
    return zlib.crc32(content[place + 4 : place + 8 + length]) == stored


def image_header(head: bytes) -> tuple[int, int, str]:
    """(width, height, kind) of an image from its first bytes; kind is e.g. `RGB`, `grey, 16 bit`.

    It is (0, 0, "") where they do not say it: of a JPEG, more bytes may; of damaged files, Pillow says what is wrong.

    Raises ImageError unless they are the first bytes of a frame: of a PNG or a JPEG, and not of too many pixels.
    """
    if _form(head) == "JPEG":
        header = _jpeg_header(head)
        if header is None:
            return 0, 0, ""
        width, height, channels = header.width, header.height, header.channels
        kind = JPEG_KINDS.get(channels, f"{channels} channels") if channels else ""
    elif len(head) < PNG_HEADER.size:
        raise ImageError("the PNG cannot be decoded (it ends in its header)")
    else:
        _, chunk, width, height, bits, colour_type = PNG_HEADER.unpack_from(head)
        if chunk != b"IHDR":
            return 0, 0, ""
        kind = COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
        kind += "" if bits == 8 or colour_type == 3 else f", {bits} bit"
    _check_size(width, height)
    return width, height, kind


class _Listing(NamedTuple):
    """Which files a folder holds. usual: the suffix of most, "" without images. others: {stem: suffix} of the rest.

    several: {stem: the files} where there are two for one name.
    """

    usual: str
    others: dict[str, str]
    several: dict[str, list[str]]


_listings: dict[str, _Listing] = {}
"""Of this process, by folder. A listing is small, whatever the folder holds, if its images are all of one kind."""


@dataclass(frozen=True)
class ImageFolder:
    """The frames of one folder. Here and nowhere else a frame's name becomes its file, say `{name}.png`, and pixels.

    A name may begin with folders, `video01/000031`. Folders are listed, once per process and whenever `names` is asked
    for: looking for a file of every suffix would take minutes for 300,000 frames on a drive in the network.
    """

    path: Path

    def file(self, name: str) -> Path:
        """Where the image of this name lies, whether it is there or not."""
        return self.path / self.file_name(name)

    def file_name(self, name: str) -> str:
        """`video01/000031.jpg`: the file of `file`, seen from the folder."""
        return name + (self._suffix(name) or SUFFIXES[0])

    def shown(self, name: str) -> str:
        """`images/video01/000031.jpg`, of a missing image; `... .png or .jpg` where no other image says which."""
        return f"{self.path / name}{self._suffix(name) or ' or '.join(SUFFIXES[:2])}"

    def _suffix(self, name: str) -> str:
        """Of an image; of one that is not there, that of most others. "" if none is known here."""
        folder, _, stem = name.rpartition("/")
        listing = self._listing(folder)
        if listing is not None and listing.usual:
            return listing.others.get(stem, listing.usual)
        own = [
            listing.usual
            for place, listing in _listings.items()
            if listing.usual and (place == str(self.path) or place.startswith(f"{self.path}/"))
        ]
        return Counter(own).most_common(1)[0][0] if own else ""

    def names(self, folders: Iterable[str] = ("",)) -> set[str]:
        """Names of all images in these folders, by one listing of each; "" is this folder itself.

        Raises:
            SpatialfeatError: a folder cannot be read; one that is missing in this one holds nothing.
        """
        found: set[str] = set()
        for folder in folders:
            try:
                stems = _list(self._place(folder))
            except OSError as error:
                if folder and self.path.is_dir() and isinstance(error, FileNotFoundError | NotADirectoryError):
                    continue
                place, beside = self.path / folder, ""
                if not self.path.exists():
                    place, beside = self.path, self._beside(folders)
                raise SpatialfeatError(
                    f"--img-dir {place}: cannot be read ({error.strerror}); pass the folder of the images{beside}"
                ) from error
            found |= {f"{folder}/{stem}" for stem in stems} if folder else stems
        return found

    def _beside(self, folders: Iterable[str]) -> str:
        """`, such as frames, which holds video01`: a folder beside this one that holds the folders of the ids."""
        inner = sorted(filter(None, folders), key=natural_key)
        with suppress(OSError):
            for path in sorted(self.path.parent.iterdir()):
                found = next((folder for folder in inner if path.name[0] != "." and (path / folder).is_dir()), None)
                if found is not None:
                    return f", such as {path}, which holds {found}"
        return ""

    def folders(self) -> list[str]:
        """The folders within this one that hold images, `video01` or `centre1/video01`, in numeric order.

        Raises:
            SpatialfeatError: a folder cannot be read.
        """
        found = []
        seen: set[tuple[int, int]] = set()
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                status = (self.path / folder).stat()
                with os.scandir(self._place(folder)) as entries:
                    shown = [entry for entry in entries if entry.name[0] != "."]
                if folder and any(_is_image(entry.name) and not entry.is_dir() for entry in shown):
                    found.append(folder)
                # A link may lead back to a folder above.
                if (status.st_dev, status.st_ino) not in seen:
                    waiting += [f"{folder}/{entry.name}".lstrip("/") for entry in shown if entry.is_dir()]
                seen.add((status.st_dev, status.st_ino))
            except OSError as error:
                raise SpatialfeatError(
                    f"--img-dir {self.path / folder}: cannot be read ({error.strerror}); pass the folder of the images"
                ) from error
        return sorted(found, key=natural_key)

    def where_else(self, missing: Sequence[str]) -> str:
        """What to do about images that are there under another name or in another place; "" if they are not.

        missing: the names of all images without a file.
        """
        example = missing[0]
        folder, _, stem = example.rpartition("/")
        others: dict[str, str] = {}
        inner: list[str] = []
        places = dict.fromkeys(["", *(name.rpartition("/")[0] for name in missing)])
        for place in places:
            with suppress(OSError), os.scandir(self._place(place)) as entries:
                for entry in entries:
                    start, dot, suffix = f"{place}/{entry.name}".lstrip("/").rpartition(".")
                    if f".{suffix}".lower() in OTHER_SUFFIXES:
                        others[start] = entry.path
                    elif not place and not dot and entry.is_dir():
                        inner.append(entry.name)
        found = [others[name] for name in missing if name in others]
        if found:
            left = len(missing) - len(found)
            rest = f"; the other {left} have no such file: restore it, or remove the row" if left else ""
            return f"convert to PNG or JPEG the {count_text(len(found), 'file')} such as {found[0]}{rest}"
        alike = [name for name in inner if name != folder and same_name_key(name) == same_name_key(folder)]
        if alike and folder not in inner:
            return f"write the folder of the ids as it is named: {alike[0]}, not {folder}"
        present = self.names(places)
        spellings = {same_name_key(name): name for name in present}
        respelt = [(name, spellings[key]) for name in missing if (key := same_name_key(name)) in spellings]
        if respelt:
            row_name, file_name = respelt[0]
            return (
                f"write {count_text(len(respelt), 'id')} as the file is named: {file_name} for {row_name}, "
                "in the same letter case and with as many zeros"
            )
        if folder and any((self.path.parent / f"{example}{suffix}").exists() for suffix in SUFFIXES):
            return f"pass --img-dir {self.path.parent}: the ids name the folder {folder} themselves"
        for place in sorted(inner, key=natural_key) if folder else ():
            if (self.path / place / folder).is_dir():
                return f"pass --img-dir {self.path / place}, which holds the folder {folder} of the ids"
        if folder and stem in present:
            return f"write the ids without their folder, {stem} for {example}: this one is {self.file(stem)}"
        for place in sorted(inner, key=natural_key) if not folder and not present else ():
            if not stem.startswith(place) and self.names([place]).issuperset(f"{place}/{name}" for name in missing):
                return f"pass --img-dir {self.path / place}: all of them are there"
        # `video01_000031` may be 000031 in the folder video01, or lie there under its whole name.
        start, _, number = stem.rpartition("_")
        candidates = [f"{start}/{number}", *(f"{place}/{stem}" for place in sorted(inner, key=natural_key))]
        for name in candidates if start and not folder else ():
            if name in self.names([name.rpartition("/")[0]]):
                return f"write the folder in the ids, {name} for {example}: this one is {self.file(name)}"
        if not present and folder and self._suffix(example):
            return ""  # Other folders of the ids are here.
        if not present:
            folders = f"it holds {count_text(len(inner), 'folder')}, such as {min(inner)}" if inner else ""
            return f"pass the folder of the frames as --img-dir: {folders or 'it has no PNG or JPEG'}"
        if len(set(missing)) > 10 * len(present):
            other = self.file(min(present)).name
            return f"is {self.path} the right --img-dir? It holds {count_text(len(present), 'image')}, such as {other}"
        return ""

    def _place(self, folder: str) -> str:
        return f"{self.path}/{folder}" if folder else str(self.path)

    def _listing(self, folder: str) -> _Listing | None:
        """None where the folder cannot be read."""
        place = self._place(folder)
        if place not in _listings:
            with suppress(OSError):
                _list(place)
        return _listings.get(place)

    def _open(self, name: str) -> AbstractContextManager[BinaryIO]:
        folder, _, stem = name.rpartition("/")
        listing = self._listing(folder)
        if listing is not None and stem in listing.several:
            raise ImageError(f"there are {' and '.join(listing.several[stem])}: keep the one that is the frame")
        return _open_frame(self.file(name))

    def fingerprint(self, name: str) -> tuple[int, int]:
        """(bytes, modification time in ns) of an image: cheap, and another one after every change. Raises OSError."""
        status = os.stat(f"{self.path}/{self.file_name(name)}")  # noqa: PTH116  # A Path takes longer than the look.
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        """The bytes of an image, for `decode_rgb`.

        Raises ImageError for what is no file, such as a pipe that would be waited for without end, and for a file too
        large to be a frame; OSError if it cannot be read.
        """
        with self._open(name) as file:
            return file.read()

    def look(self, name: str) -> tuple[int, int, str]:
        """`image_header` of an image that is a whole PNG or JPEG, judged by its first and last bytes.

        Catches empty, foreign and truncated files in about 30 us; damage in the middle shows when the frame is decoded.
        A file whose last bytes are unusual is decoded in full, since bytes after the image are allowed.

        Raises ImageError if it is none; OSError if it cannot be read.
        """
        with self._open(name) as file:
            head = file.read(HEAD_BYTES)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(PNG_END)))
            tail = file.read()
        header = image_header(head)
        if not tail.endswith(PNG_END if _form(head) == "PNG" else JPEG_END):
            decode_rgb(self.read(name))
        return header

    def find_broken(self, names: Sequence[str], *, is_known: Callable[[str], bool] | None = None) -> dict[int, str]:
        """`look` at many images. Returns {index in `names`: reason} for those that are unreadable.

        Warns of 16-bit grey images. Those of which `is_known` says so are not opened.
        """

        def look(name: str) -> tuple[str | None, str]:
            """Why an image is unreadable, or None; and its kind."""
            try:
                return None, "" if is_known is not None and is_known(name) else self.look(name)[2]
            except OSError as error:
                return error.strerror or str(error), ""
            except ImageError as error:
                return str(error), ""

        chunks = [names[start : start + LOOKED_AT_TOGETHER] for start in range(0, len(names), LOOKED_AT_TOGETHER)]
        found: list[tuple[str | None, str]] = []
        with ThreadPoolExecutor(max_workers=8) as pool:
            try:
                # disable None: shown on a terminal only.
                with new_bar(total=len(names), desc="checking images", unit=" files", disable=None) as bar:
                    for of_chunk in pool.map(lambda chunk: [look(name) for name in chunk], chunks):
                        found += of_chunk
                        bar.update(len(of_chunk))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the other files.
                raise
        clipped = [name for name, (_, kind) in zip(names, found, strict=True) if kind == CLIPPED_KIND]
        if clipped:
            logger.warning(
                '%s: is 16-bit grey, of which convert("RGB") keeps the values up to 255 and makes all others white '
                "(%d of %d images); save such frames with 8 bits",
                self.file(min(clipped)),
                len(clipped),
                len(names),
            )
        return {index: reason for index, (reason, _) in enumerate(found) if reason is not None}


@contextmanager
def _open_frame(path: Path) -> Iterator[BinaryIO]:
    try:
        # Opening a pipe would wait for its other end, were it not for O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise ImageError(f"it is a link to {path.readlink()}, which does not exist") from None
        raise
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


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name[0] != "."  # Such as the `._1.png` of some file systems.


def _list(place: str) -> set[str]:
    """The stems of all images in a folder, listed anew. Raises OSError."""
    with os.scandir(place) as entries:
        files = sorted(entry.name for entry in entries if _is_image(entry.name))
    suffix_of: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for name in files:
        stem, dot, suffix = name.rpartition(".")
        if stem in suffix_of:
            several.setdefault(stem, [stem + suffix_of[stem]]).append(name)
            several[stem].sort()
        suffix_of[stem] = dot + suffix
    counts = Counter(suffix_of.values())
    usual = min(counts, key=lambda suffix: (-counts[suffix], suffix), default="")
    others = {stem: suffix for stem, suffix in suffix_of.items() if suffix != usual}
    _listings[place] = _Listing(usual, others, several)
    return set(suffix_of)


def _form(content: bytes) -> str:
    """What a file is by its first bytes, "PNG" or "JPEG". Raises ImageError if it is neither."""
    if not content:
        raise ImageError("the file is empty")
    if content.startswith(PNG_SIGNATURE):
        return "PNG"
    if content.startswith(JPEG_START):
        return "JPEG"
    for start, what in FOREIGN.items():
        if re.match(start, content, re.DOTALL):
            raise ImageError(f"it is {what}, whatever its name says, not a PNG or JPEG image")
    raise ImageError("the content is not a PNG or JPEG image")


class _JpegHeader(NamedTuple):
    """What the first frame header says. place: where it stands. before: the markers before it."""

    marker: int
    place: int
    before: list[int]
    bits: int
    height: int
    width: int
    channels: int


def _jpeg_header(content: bytes) -> _JpegHeader | None:
    """None where these bytes hold no frame header."""
    before: list[int] = []
    for marker, place in _jpeg_segments(content):
        if marker in FRAME_MARKERS:
            return _JpegHeader(marker, place, before, *struct.unpack_from(">BHHB", content, place + 4))
        before.append(marker)
    return None


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where it stands) of the segments from the start of a JPEG, as far as these bytes hold them."""
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker != 0xFF:
            yield marker, place
        # Any number of bytes FF may stand before a marker; every other segment begins with its length.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(content[place + 2 : place + 4], "big")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"it claims {width} x {height} pixels, too many for a frame")


def content_digest(content: bytes) -> bytes:
    """A 16-byte digest of a file's bytes, to find out later whether a frame has changed.

    The first half of a SHA-256: processors compute it in hardware, in less than half of the time of a BLAKE2b.
    """
    return hashlib.sha256(content).digest()[:16]
