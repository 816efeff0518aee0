"""PNG frames on disk: the one decoder, and the quick look at every file before long work starts."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from spatialfeat.errors import SpatialfeatError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class ImageError(Exception):
    """A frame that cannot be decoded; the message is the reason, without the path."""


def decode_rgb(content: bytes) -> Image.Image:
    """Decode the bytes of a PNG file into an RGB Pillow image, as the specification's `convert("RGB")` does.

    Raises ImageError for anything that is not a whole, decodable PNG.
    """
    if not content:
        raise ImageError("the file is empty")
    if not content.startswith(PNG_SIGNATURE):
        raise ImageError("the content is not a PNG image")
    # Pillow reads the chunks behind the pixels unguarded: a damaged one raises whatever its parser stumbles over.
    damage = (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            rgb: Image.Image = image.convert("RGB")
    except damage as error:
        raise ImageError(f"the PNG cannot be decoded ({error})") from error
    return rgb


def content_digest(content: bytes) -> bytes:
    """A 16-byte digest of a file's bytes (BLAKE2b), to tell later whether a frame has changed."""
    return hashlib.blake2b(content, digest_size=16).digest()


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


def find_broken_images(paths: Sequence[Path], *, progress: bool = True) -> dict[int, str]:
    """Look at the first and last bytes of each PNG. Returns {index in `paths`: reason} for those that are unreadable.

    Catches empty, foreign and truncated files at about 30 us a file; damage in the middle shows when the frame is
    decoded. A file whose last bytes are unusual is decoded in full, since bytes after the image are allowed.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        reasons = pool.map(_quick_look, paths, chunksize=256)
        bar = tqdm(
            reasons,
            total=len(paths),
            desc="checking images",
            unit=" files",
            disable=None if progress else True,
            leave=False,
        )
        return {index: reason for index, reason in enumerate(bar) if reason is not None}


def _quick_look(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(len(PNG_SIGNATURE))
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(PNG_END)))
            tail = file.read()
        if head == PNG_SIGNATURE and tail == PNG_END:
            return None
        decode_rgb(path.read_bytes())
    except OSError as error:
        return str(error.strerror or error)
    except ImageError as error:
        return str(error)
    return None
