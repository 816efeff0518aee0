"""PNG frames: decoded as Pillow does it, and damage found by the quick look or by the decoder."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinydata import png_bytes

from spatialfeat.data.images import ImageError, content_digest, decode_rgb, find_broken_images, list_pngs


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _gradient(mode: str) -> Image.Image:
    ramp = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
    return Image.fromarray(ramp * 2).convert("RGB").convert(mode)


def _sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(120, dtype=np.uint16) * 500).reshape(10, 12))


def _grey_alpha() -> Image.Image:
    image = _gradient("LA")
    image.putalpha(Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)))
    return image


def _half_transparent() -> Image.Image:
    image = _gradient("RGBA")
    image.putalpha(100)
    return image


@pytest.mark.parametrize(
    "make",
    [
        lambda: _gradient("RGB"),
        lambda: _gradient("L"),
        lambda: _gradient("P"),
        lambda: _gradient("1"),
        _half_transparent,
        _grey_alpha,
        _sixteen_bit,
    ],
    ids=["rgb", "grey", "palette", "bilevel", "alpha", "grey-alpha", "16-bit"],
)
def test_odd_but_valid_pngs_decode_as_pillow_does(make: Callable[[], Image.Image], tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(_encode(make()))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode_rgb(path.read_bytes())
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)
    assert find_broken_images([path], progress=False) == {}


def test_pixels_survive() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode_rgb(_encode(Image.fromarray(pixels)))), pixels)


def test_bytes_behind_the_image_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(png_bytes() + b"appended by a frame grabber")
    assert find_broken_images([path], progress=False) == {}
    assert decode_rgb(path.read_bytes()).tobytes() == decode_rgb(png_bytes()).tobytes()


def test_broken_files_are_told_apart(tmp_path: Path) -> None:
    whole = png_bytes()
    contents = {
        "good": whole,
        "empty": b"",
        "text": b"not an image",
        "jpeg": _encode(_gradient("RGB"), "JPEG"),
        "truncated": whole[: len(whole) // 2],
        "head only": whole[:8],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    names = [*contents, "folder", "gone"]
    broken = find_broken_images([tmp_path / f"{name}.png" for name in names], progress=False)
    reasons = {names[index]: reason for index, reason in broken.items()}
    assert set(reasons) == set(names) - {"good"}
    assert reasons["empty"] == "the file is empty"
    assert reasons["text"] == reasons["jpeg"] == "the content is not a PNG image"
    assert "cannot be decoded" in reasons["truncated"]
    assert "cannot be decoded" in reasons["head only"]
    assert "directory" in reasons["folder"]
    assert reasons["gone"] == "No such file or directory"


def test_cut_anywhere_a_png_is_refused_or_has_all_its_pixels() -> None:
    whole = png_bytes()
    pixels = decode_rgb(whole).tobytes()
    refused = 0
    for length in range(len(whole)):
        try:
            assert decode_rgb(whole[:length]).tobytes() == pixels
        except ImageError:
            refused += 1
    # Only the end marker and the checksum before it may be lost without loss of pixels.
    assert refused > len(whole) - 30


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"], ids=["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", [b"iCCP", b"tRNS", b"gAMA", b"cHRM", b"acTL", b"fcTL", b"eXIf", b"zTXt", b"IHDR"])
def test_damaged_chunks_are_image_errors_or_harmless(kind: bytes, place: bytes) -> None:
    whole = png_bytes()
    cut = whole.index(place) - 4
    for length in (0, 1, 3):
        try:
            decoded = decode_rgb(whole[:cut] + _chunk(kind, bytes(length)) + whole[cut:])
        except ImageError:
            continue
        assert decoded.tobytes() == decode_rgb(whole).tobytes()


def test_flipped_pixel_bytes_are_noticed() -> None:
    damaged = bytearray(png_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_rgb(bytes(damaged))


def test_list_pngs(tmp_path: Path) -> None:
    for name in ("1_1_1.png", "1_1_2.PNG", "a.png.txt", "b.jpg", "1_1.5_3.png"):
        (tmp_path / name).touch()
    assert list_pngs(tmp_path) == {"1_1_1", "1_1.5_3"}


def test_digest_tells_content_apart() -> None:
    assert content_digest(b"a") != content_digest(b"b")
    assert content_digest(b"a") == content_digest(b"a")
    assert len(content_digest(b"")) == 16
