"""PNG frames: decoded as Pillow does it, and damage found by the quick look or by the decoder."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tinydata import png_bytes, write_csv
from torchvision import transforms

from spatialfeat.config import ExtractConfig
from spatialfeat.data import images as images_module
from spatialfeat.data.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    PNG_SIGNATURE,
    ImageError,
    ImageFolder,
    content_digest,
    decode_pixels,
    decode_rgb,
    decoder_name,
    image_header,
)
from spatialfeat.extract import extract
from spatialfeat.network.resnet import PhaseResNet50


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _gradient(mode: str) -> Image.Image:
    ramp = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
    return Image.fromarray(ramp * 2).convert("RGB").convert(mode)


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def _sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(120, dtype=np.uint16) * 500).reshape(10, 12))


def _grey_alpha() -> Image.Image:
    image = _gradient("LA")
    image.putalpha(Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)))
    return image


def png_of_header(*header: int, scanlines: bytes) -> bytes:
    """A PNG made by hand, of forms that Pillow does not write. header: width, height, bits, colour type, 0, 0, 0."""
    pixels = _chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + _chunk(b"IDAT", zlib.compress(scanlines))
    return PNG_SIGNATURE + pixels + _chunk(b"IEND", b"")


def _sixteen_bit_rgb() -> bytes:
    values = np.random.default_rng(5).integers(0, 1 << 16, (10, 12 * 3)).astype(">u2")
    return png_of_header(12, 10, 16, 2, 0, 0, 0, scanlines=b"".join(b"\0" + row.tobytes() for row in values))


def _interlaced() -> bytes:
    """Seven passes, each with the pixels of its own grid (Adam7)."""
    values = np.random.default_rng(6).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [values[row::row_step, column::column_step] for row, column, row_step, column_step in starts]
    lines = b"".join(b"\0" + row.tobytes() for grid in passes for row in grid)
    return png_of_header(8, 8, 8, 2, 0, 0, 1, scanlines=lines)


def _palette_with_transparency() -> Image.Image:
    image = _gradient("P")
    image.info["transparency"] = 3
    return image


def _half_transparent() -> Image.Image:
    image = _gradient("RGBA")
    image.putalpha(100)
    return image


ODD_BUT_VALID: dict[str, Callable[[], Image.Image | bytes]] = {
    "rgb": lambda: _gradient("RGB"),
    "grey": lambda: _gradient("L"),
    "palette": lambda: _gradient("P"),
    "bilevel": lambda: _gradient("1"),
    "alpha": _half_transparent,
    "grey-alpha": _grey_alpha,
    "trns": _palette_with_transparency,
    "16-bit": _sixteen_bit,
    "16-bit-rgb": _sixteen_bit_rgb,
    "interlaced": _interlaced,
}


@pytest.mark.parametrize("make", ODD_BUT_VALID.values(), ids=ODD_BUT_VALID)
def test_odd_but_valid_pngs_decode_as_pillow_does(make: Callable[[], Image.Image | bytes], tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    made = make()
    path.write_bytes(made if isinstance(made, bytes) else _encode(made))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode_rgb(path.read_bytes())
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), expected)
    assert ImageFolder(tmp_path).find_broken([path.stem]) == {}


def test_pixels_survive() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode_rgb(_encode(Image.fromarray(pixels)))), pixels)


def test_bytes_behind_the_image_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(png_bytes() + b"appended by a frame grabber")
    assert ImageFolder(tmp_path).find_broken([path.stem]) == {}
    assert decode_rgb(path.read_bytes()).tobytes() == decode_rgb(png_bytes()).tobytes()


def test_broken_files_are_told_apart(tmp_path: Path) -> None:
    whole = png_bytes()
    contents = {
        "good": whole,
        "empty": b"",
        "text": b"not an image",
        "gif": _encode(_gradient("RGB"), "GIF"),
        "tiff": _encode(_gradient("RGB"), "TIFF"),
        "big-endian tiff": b"MM\0*\0\0\0\x08",
        "bmp": _encode(_gradient("RGB"), "BMP"),
        "webp": b"RIFF\x24\0\0\0WEBPVP8 ",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page": b"\n<!DOCTYPE html><html>",
        "cut jpeg": _encode(_noise(), "JPEG")[:1000],
        "truncated": whole[: len(whole) // 2],
        "head only": whole[:8],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    names = [*contents, "folder", "gone"]
    broken = ImageFolder(tmp_path).find_broken(names)
    reasons = {names[index]: reason for index, reason in broken.items()}
    assert set(reasons) == set(names) - {"good"}
    assert reasons["empty"] == "the file is empty"
    assert reasons["text"] == "the content is not a PNG or JPEG image"
    for name, what in {
        "gif": "a GIF image",
        "tiff": "a TIFF image",
        "big-endian tiff": "a TIFF image",
        "bmp": "a BMP image",
        "webp": "a WebP image",
        "pointer": "a Git LFS pointer",
        "page": "a web page",
    }.items():
        assert reasons[name] == f"it is {what}, whatever its name says, not a PNG or JPEG image"
    assert "the JPEG cannot be decoded" in reasons["cut jpeg"]
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


def test_the_reason_is_the_same_every_time() -> None:
    """Pillow's own names a place in memory."""
    damaged = png_bytes().replace(b"IHDR", b"JHDR")
    with pytest.raises(ImageError) as caught:
        decode_rgb(damaged)
    assert "0x" not in str(caught.value)
    assert "PNG cannot be decoded" in str(caught.value)


def test_sixteen_bit_grey_is_clipped_as_specified_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths[1:]:
        path.write_bytes(_encode(Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))))
    paths[0].write_bytes(_sixteen_bit_rgb())
    assert np.asarray(decode_rgb(paths[1].read_bytes()))[0, :, 0].tolist() == [0, 255, 255, 255]
    assert ImageFolder(tmp_path).find_broken([path.stem for path in paths]) == {}
    (warning,) = caplog.messages
    assert warning.startswith(f"{paths[1]}: is 16-bit grey, of which")
    assert "2 of 3 images" in warning


def test_an_interlaced_image_has_its_pixels() -> None:
    values = np.random.default_rng(6).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode_rgb(_interlaced())), values)


@pytest.mark.parametrize("size", [(60_000, 60_000), (MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_decompression_bomb_is_refused_undecoded(
    size: tuple[int, int], hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden: behind a harmless header stands a second one, which counts for Pillow."""
    bomb = png_of_header(*size, 1, 0, 0, 0, 0, scanlines=bytes(1000))
    if hidden:
        first = png_of_header(9, 9, 1, 0, 0, 0, 0, scanlines=b"")
        bomb = first[:33] + bomb[8:]
    (tmp_path / "bomb.png").write_bytes(bomb)

    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    with pytest.raises(ImageError, match=rf"it claims {size[0]} x {size[1]} pixels|exceeds limit"):
        decode_rgb(bomb)
    if not hidden:
        reason = f"it claims {size[0]} x {size[1]} pixels, too many for a frame"
        assert ImageFolder(tmp_path).find_broken(["bomb"]) == {0: reason}


def test_huge_text_beside_the_pixels_is_refused() -> None:
    whole = png_bytes()
    cut = whole.index(b"IDAT") - 4
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))
    with pytest.raises(ImageError, match=r"(?i)too large"):  # Pillow's words, which Pillow 10 wrote with capitals.
        decode_rgb(whole[:cut] + text + whole[cut:])


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.write(png_bytes())
        file.truncate(MAX_FILE_BYTES + 1)
    reasons = {
        "pipe": "it is a pipe or a device, not a file",
        "device": "it is a pipe or a device, not a file",
        "folder": "it is a directory, not a file",
        "large": "the file has 500 MB, too much for a frame",
    }
    for name, reason in reasons.items():
        assert ImageFolder(tmp_path).find_broken([name]) == {0: reason}
        with pytest.raises(ImageError, match=reason):
            ImageFolder(tmp_path).read(name)
    (loop,) = ImageFolder(tmp_path).find_broken(["loop"]).values()
    assert "symbolic links" in loop


def test_flipped_pixel_bytes_are_noticed() -> None:
    damaged = bytearray(png_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_rgb(bytes(damaged))


def _with_chunks(before: bytes = b"", after: bytes = b"") -> bytes:
    """A plain PNG with more chunks before and behind its pixels."""
    whole = png_bytes()
    first, last = whole.index(b"IDAT") - 4, len(whole) - 12
    return whole[:first] + before + whole[first:last] + after + whole[last:]


GAMMA, SIZE = _chunk(b"gAMA", (45455).to_bytes(4, "big")), _chunk(b"pHYs", bytes(9))
UNUSUAL: dict[str, bytes] = {
    "text": _with_chunks(_chunk(b"tEXt", b"Comment\0x")),
    "transparent": _with_chunks(_chunk(b"tRNS", bytes(6))),
    "behind": _with_chunks(after=GAMMA),
    "checksum": _with_chunks(GAMMA[:-1] + bytes([GAMMA[-1] ^ 1])),
    "length": _with_chunks(_chunk(b"gAMA", bytes(5))),
    "overlong": _with_chunks(b"\xff" * 4 + GAMMA[4:]),
    "appended": png_bytes() + b"x",
    "no end": png_bytes()[:-12],
    "interlaced": _interlaced(),
    "16-bit": _sixteen_bit_rgb(),
    "grey": _encode(_gradient("L")),
    "alpha": _encode(_half_transparent()),
    "empty": b"",
    "header": png_bytes()[:30],
    "text file": b"GIF89a",
}
PLAIN = {"rgb": png_bytes(), "large": png_bytes(size_px=(300, 200)), "harmless chunks": _with_chunks(GAMMA + SIZE)}


def outcome(decode: Callable[[bytes], Any], content: bytes) -> object:
    """The pixels, or the reason why there are none."""
    try:
        return np.asarray(decode(content)).tolist()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("name", [*PLAIN, *UNUSUAL])
def test_only_plain_files_go_to_the_fast_decoder_and_pillow_has_the_last_word(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, given = {**PLAIN, **UNUSUAL}[name], list[tuple[int, int]]()

    def refuse(_content: bytes, shape: tuple[int, int], _mode: str) -> NoReturn:
        given.append(shape)
        raise Exception("CRC error")  # What kornia-rs raises.

    monkeypatch.setattr(images_module, "_fast_decoder", lambda: refuse)
    assert outcome(decode_pixels, content) == outcome(decode_rgb, content)
    assert given == ([] if name in UNUSUAL else [(200, 300) if name == "large" else (7, 9)])


def test_the_fast_decoder_gives_pillows_pixels_also_of_damaged_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kornia_rs.io", reason="kornia-rs is not installed: pip install '.[fast]'")
    assert decoder_name() == "kornia-rs"
    contents = [*PLAIN.values(), *UNUSUAL.values()]
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(PLAIN[str(rng.choice(["rgb", "harmless chunks"]))])
        content[rng.integers(len(content))] = rng.integers(256)
        contents.append(bytes(content[: rng.integers(len(content) + 1)] if rng.random() < 0.3 else content))
    for content in contents:
        assert outcome(decode_pixels, content) == outcome(decode_rgb, content)
    pixels = decode_pixels(PLAIN["large"])
    assert (pixels.shape, pixels.dtype, pixels.flags.writeable) == ((200, 300, 3), np.uint8, True)


def test_the_names_of_a_folder(tmp_path: Path) -> None:
    for name in ("1_1_1.png", "1_1_2.PNG", "a.png.txt", "b.jpg", "1_1.5_3.png"):
        (tmp_path / name).touch()
    assert ImageFolder(tmp_path).names() == {"1_1_1", "1_1_2", "b", "1_1.5_3"}


JPEGS: dict[str, Callable[[], bytes]] = {
    "plain": lambda: _encode(_noise(), "JPEG"),
    "progressive": lambda: _encode(_noise(), "JPEG", progressive=True),
    "grey": lambda: _encode(_noise().convert("L"), "JPEG"),
    "cmyk": lambda: _encode(_noise().convert("CMYK"), "JPEG"),
    "behind a long comment": lambda: _encode(_noise(), "JPEG", comment=b"x" * 60_000),
    "bytes behind it": lambda: _encode(_noise(), "JPEG") + b"appended by a frame grabber",
}


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".Jpeg", ".png", ".PNG"])
@pytest.mark.parametrize("make", JPEGS.values(), ids=JPEGS)
def test_jpegs_decode_as_pillow_does_whatever_their_suffix(
    make: Callable[[], bytes], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"1_1_1{suffix}"
    path.write_bytes(make())
    images = ImageFolder(tmp_path)
    assert images.file("1_1_1") == path
    assert images.find_broken(["1_1_1"]) == {}
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode_rgb(images.read("1_1_1"))), expected)
    width, height, kind = image_header(images.read("1_1_1"))
    assert (width, height) == (120, 90)
    assert kind == {"L": "grey", "CMYK": "CMYK"}.get(image.mode, "RGB")


def test_a_jpeg_that_claims_too_many_pixels_is_refused_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(_encode(_noise(), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ImageError, match="it claims 60000 x 60000 pixels, too many for a frame"):
        decode_rgb(bytes(content))
    (tmp_path / "bomb.jpg").write_bytes(content)
    (reason,) = ImageFolder(tmp_path).find_broken(["bomb"]).values()
    assert reason == "it claims 60000 x 60000 pixels, too many for a frame"


def test_two_files_for_one_name_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("1_1_1.png", "1_1_1.jpg", "1_1_2.png"):
        (tmp_path / name).write_bytes(png_bytes())
    images = ImageFolder(tmp_path)
    reason = "there are 1_1_1.jpg and 1_1_1.png: keep the one that is the frame"
    assert images.find_broken(["1_1_1", "1_1_2"]) == {0: reason}
    with pytest.raises(ImageError, match=reason):
        images.read("1_1_1")


def test_files_of_several_suffixes_in_folders(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/3.PNG", "b/1.png", "b/deep/7.jpeg", "b/notes.txt", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes())
    (tmp_path / "b" / "above").symlink_to(tmp_path)  # A link in a circle ends the search, and not the program.
    images = ImageFolder(tmp_path)
    assert images.names() == set()
    assert images.names(["a", "b", "gone"]) == {"a/1", "a/2", "a/3", "b/1"}
    assert [folder for folder in images.folders() if "above" not in folder] == ["a", "b", "b/deep"]
    assert [images.file_name(name) for name in ("a/1", "a/3", "b/1", "b/deep/7")] == [
        "a/1.jpg", "a/3.PNG", "b/1.png", "b/deep/7.jpeg",
    ]  # fmt: skip
    assert images.file("a/9") == tmp_path / "a/9.jpg"  # As the others there are.


def test_a_broken_link_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "1_1_1.png").symlink_to("moved/1_1_1.png")
    assert ImageFolder(tmp_path).names() == {"1_1_1"}
    reason = "it is a link to moved/1_1_1.png, which does not exist"
    assert ImageFolder(tmp_path).find_broken(["1_1_1"]) == {0: reason}


def test_digest_tells_content_apart() -> None:
    assert content_digest(b"a") != content_digest(b"b")
    assert content_digest(b"a") == content_digest(b"a")
    assert len(content_digest(b"")) == 16


@pytest.mark.usefixtures("small_network")
def test_odd_but_valid_pngs_give_the_features_of_a_plain_pipeline(small_plain_weights: Path, tmp_path: Path) -> None:
    """Pillow's convert("RGB") and torchvision's transforms, written as the specification has them."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"9_1_{number:03}.png" for number in range(len(ODD_BUT_VALID))]
    for path, make in zip(paths, ODD_BUT_VALID.values(), strict=True):
        made = make()
        path.write_bytes(made if isinstance(made, bytes) else _encode(made))
    csv_path = write_csv(tmp_path / "test.csv", [(path.stem, 0) for path in paths])
    extract(
        ExtractConfig(
            csvs=(str(csv_path),), img_dir=tmp_path / "images", weights=small_plain_weights, out_dir=tmp_path, workers=0
        )
    )
    with h5py.File(tmp_path / "9_1.h5") as file:
        assert file["frame_ids"].asstr()[()].tolist() == [path.stem for path in paths]
        features = file["features"][()].T
    model = PhaseResNet50(7)
    model.load_state_dict(torch.load(small_plain_weights, weights_only=True))
    model.fc = torch.nn.Identity()
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    shape = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize])
    images = torch.stack([shape(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    differences = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert differences.max() < 1e-3, dict(zip(ODD_BUT_VALID, differences, strict=True))
