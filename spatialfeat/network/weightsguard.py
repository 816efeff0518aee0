"""What is looked at in a weights file from a stranger, beyond that loading it executes nothing.

A file of kilobytes can unpack to gigabytes, or describe a tensor of terabytes; and a tensor can be of a kind that
copying into a network would crash on or round in silence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from spatialfeat.errors import SpatialfeatError

SAVE_AGAIN = "save the weights with torch.save(model.state_dict(), path)"


def refuse_zip_bomb(path: Path) -> bool:
    """Whether `path` is a zip archive, as torch.save writes; one that would unpack to more than itself is refused.

    Raises:
        SpatialfeatError: packed entries, or entries that overlap. torch.save packs nothing.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # By this torch itself tells the two kinds of files apart.
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SpatialfeatError(f"{path}: is damaged ({error}); {SAVE_AGAIN}") from error
    declared_bytes = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or declared_bytes > path.stat().st_size:
        raise SpatialfeatError(
            f"{path}: is a packed archive that would unpack to {declared_bytes} bytes and is not loaded for safety; "
            f"{SAVE_AGAIN}"
        )
    return True


def refuse_odd_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse keys that are no names, and tensors that are not plain numbers, all of them in the file.

    Raises:
        SpatialfeatError: with the tensor's name.
    """
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise SpatialfeatError(f"{path}: a tensor's name is {str(name)[:80]!r}, not a text; {SAVE_AGAIN}")
        kind = _odd_kind(tensor)
        if kind:
            raise SpatialfeatError(f"{path}: {name[:80]!r} is {kind}, not a plain tensor of numbers; {SAVE_AGAIN}")
        # An element may stand for many by a stride of 0, and one number become a tensor of terabytes.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise SpatialfeatError(
                f"{path}: {name[:80]!r} is declared as {_shape(tensor)}, but the file holds less; {SAVE_AGAIN}"
            )


def convert_exactly(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """`tensor` in the type of `expected`: weights in half precision are taken, no number is rounded.

    Raises:
        SpatialfeatError: another shape or kind of numbers, numbers that would be rounded, NaN or infinity.
    """
    if tensor.shape != expected.shape:
        raise SpatialfeatError(
            f"{path}: is not a torchvision ResNet-50 ({name} is {_shape(tensor)}, expected {_shape(expected)}); "
            "pass the state dict of one"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise SpatialfeatError(f"{path}: {name} is {tensor.dtype}, expected {expected.dtype}; {SAVE_AGAIN}")
    converted = tensor.detach().to(expected.dtype)
    if not torch.isfinite(converted).all():
        raise SpatialfeatError(f"{path}: {name} holds NaN or infinity; the training that made it has diverged")
    if not torch.equal(converted.to(tensor.dtype), tensor):
        raise SpatialfeatError(
            f"{path}: {name} is {tensor.dtype} and would be rounded to {expected.dtype}; "
            "save the weights of model.float()"
        )
    return converted


def _odd_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}, without its numbers"
    if tensor.is_quantized:
        return "quantized"
    return f"of type {tensor.dtype}" if tensor.is_complex() or tensor.dtype == torch.bool else None


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
