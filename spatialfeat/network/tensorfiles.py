"""Files of tensors from anybody: PyTorch's own and safetensors. Nothing in them is executed.

Such a file may come from a stranger, or be no weights at all. What would unpack to gigabytes or be rounded is refused,
and a file that is something else is called what it is.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from spatialfeat.errors import SpatialfeatError

SAVE_AGAIN = "save the weights with torch.save(model.state_dict(), path)"

# What torch's restricted unpickler raises on bytes that no torch.save has written; it does not wrap them itself.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, AttributeError, TypeError, struct.error,
    AssertionError, ArithmeticError, MemoryError,
)  # fmt: skip

StateDict = Mapping[str, torch.Tensor]

ZIP_START = b"PK\x03\x04"
"""torch itself distinguishes its two kinds of files by this."""
OLD_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""In the first bytes of files that torch.save wrote before version 1.6; other pickles do not have it."""

HEAD_BYTES = 1024
MAX_PICKLE_BYTES = 64_000_000
"""The pickle in a file of PyTorch holds names and shapes: a few hundred kilobytes."""

PICKLES_OF_OLD_FILE = 4
"""Before version 1.6, torch.save wrote three pickles about the file and the machine, and then the content."""

NAMED_OBJECTS, MOST_POPS = 5, 50
"""A message names so many objects, more would bury the first; and its lines of Python take out so many."""


def read_content(path: Path) -> Any:
    """What a file holds: tensors, numbers, texts, lists and dicts, on the CPU.

    Raises:
        SpatialfeatError: no such file, something else than weights, damaged, or holding objects of other kinds.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        _refuse_other_files(path, head)
        if _is_safetensors(head):
            return _read_safetensors(path)
        # Mapped, not read: a record shorter than a tensor needs is then an error in every version of torch.
        is_archive = head.startswith(ZIP_START)
        if is_archive:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except SpatialfeatError:
        raise
    except FileNotFoundError as error:
        raise SpatialfeatError(
            f"{path}: no such weights file; train with `spatialfeat finetune` or pass --weights PATH"
        ) from error
    except OSError as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DAMAGED_FILE_ERRORS as error:
        # torch's own text advises to load the file unsafely; that advice is not passed on.
        raise SpatialfeatError(_why_refused(path, error)) from error


def tensors_by_keys(content: Mapping[Any, Any]) -> dict[tuple[str, ...], StateDict]:
    """{keys that lead to it: its tensors by name} of every dictionary with tensors, however deep; outer ones first."""
    found: dict[tuple[str, ...], StateDict] = {}
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen: set[int] = set()  # A dictionary may hold itself.
    for keys, mapping in waiting:
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        tensors = {name: value for name, value in mapping.items() if isinstance(value, torch.Tensor)}
        if tensors:
            found[keys] = tensors
        waiting += [((*keys, str(key)), value) for key, value in mapping.items() if isinstance(value, Mapping)]
    return found


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """torch.save, so that equal content gives equal bytes and a full disk an OSError."""
    # Given a path, it would write the name into the file, and report a full disk in words of its own.
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        # What torch says when it cannot end the archive, because a write before has failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def loading_line(path: Path) -> tuple[str, str]:
    """(what to import, what to call) to read a file that holds nothing but tensors and plain values."""
    with path.open("rb") as file:
        is_safetensors = _is_safetensors(file.read(HEAD_BYTES))
    if is_safetensors:
        return "torch, safetensors.torch", f"safetensors.torch.load_file({str(path)!r})"
    return "torch", f"torch.load({str(path)!r}, map_location='cpu', weights_only=True)"


def _refuse_other_files(path: Path, head: bytes) -> None:
    """Call by its name what people take for weights: failed downloads, pointers of Git LFS, tables and other texts."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise SpatialfeatError(
            f"{path}: is a web page (HTML), not weights: the download brought a page that asks or reports something; "
            "open the file in a browser to read it, then download the weights again"
        )
    if text.startswith(b"version https://git-lfs"):
        size = re.search(rb"^size (\d{1,15})\s*$", text, re.MULTILINE)
        stands_for = f", which stands for a file of {int(size[1]) / 1e6:.1f} MB" if size else ""
        raise SpatialfeatError(
            f"{path}: is a Git LFS pointer{stands_for}, not the weights themselves; run `git lfs pull` in the "
            "repository that it comes from"
        )
    shown = _text_of(head)
    if shown:
        description = "; the JSON file only describes the weights that it lies beside" if shown[0] == "{" else ""
        raise SpatialfeatError(
            f"{path}: is a text file, which begins with {shown.splitlines()[0][:60]!r}, not weights{description}; pass "
            "a file of torch.save (.pth, .pt, .ckpt, .bin) or a .safetensors file"
        )


def _text_of(head: bytes) -> str:
    """The text that a file begins with, "" if it is none: weights have control characters from the start."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # A letter may be cut at the end.
    except UnicodeDecodeError:
        return ""
    return text.strip() if all(letter.isprintable() or letter in "\t\r\n" for letter in text) else ""


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes say how long the JSON is that follows.
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 30


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError  # Most files are of the other kind, and need not wait for this.
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise SpatialfeatError(f"{path}: is a damaged safetensors file ({error}); fetch it again") from error
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that torch.save has not written, such as one that would unpack to more than itself.

    Raises:
        SpatialfeatError: packed entries, or entries that overlap: torch.save packs nothing. Or a TorchScript program.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SpatialfeatError(f"{path}: is damaged ({error}); {SAVE_AGAIN}") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise SpatialfeatError(f"{path}: is a TorchScript program (torch.jit.save), not weights; {SAVE_AGAIN}")
    declared_bytes = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or declared_bytes > path.stat().st_size:
        raise SpatialfeatError(
            f"{path}: is a packed archive that would unpack to {declared_bytes} bytes and is not loaded for safety; "
            f"{SAVE_AGAIN}"
        )


def _why_refused(path: Path, error: Exception) -> str:
    """Which objects of a file stand in the way of loading it, if these can be found, and how to save it without."""
    found = _foreign_objects(path, error)
    if not found:
        return f"{path}: is damaged, or holds other things than tensors and is not loaded for safety; {SAVE_AGAIN}"
    copy = str(path.with_name(f"{path.stem}-tensors.pth"))
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    imports, load = "torch", f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    if not head.startswith(ZIP_START) and OLD_MAGIC not in head:
        imports, load = "pickle, torch", f"pickle.load(open({str(path)!r}, 'rb'))"
    if () in found:
        what = f"holds other things than tensors: it is a whole object, {found[()][:80]},"
        lines = f"import {imports}; model = {load}\n    torch.save(model.state_dict(), {copy!r})"
    else:
        named = [f"{'.'.join(keys)[:80]!r} ({kind[:80]})" for keys, kind in found.items()]
        more = f" and {len(named) - NAMED_OBJECTS} more" if len(named) > NAMED_OBJECTS else ""
        what = f"holds other things than tensors, {', '.join(named[:NAMED_OBJECTS])}{more},"
        pops = "; ".join(
            "content" + "".join(f"[{key[:80]!r}]" for key in keys[:-1]) + f".pop({keys[-1][:80]!r})"
            for keys in [*found][:MOST_POPS]
        )
        lines = f"import {imports}; content = {load}\n    {pops}; torch.save(content, {copy!r})"
    return (
        f"{path}: {what} and is not loaded for safety: loading such objects runs their code. "
        f"Whoever trusts the file can save it without them:\n    {lines}"
    )


def _foreign_objects(path: Path, error: Exception) -> dict[tuple[str, ...], str]:
    """{keys that lead to it: its kind} of each object that torch's restricted unpickler refuses; () is all of the file.

    The pickle's instructions are read as text. Nothing is built from them.
    """
    refused = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    try:
        pickled = _pickled_bytes(path)
        if zipfile.is_zipfile(path):
            refused |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not refused:
                return {}  # Something else is wrong with it.
        return _objects_by_key(pickled, refused)
    except (OSError, zipfile.BadZipFile, *DAMAGED_FILE_ERRORS):
        return {}


def _pickled_bytes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(MAX_PICKLE_BYTES)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as entry:
            return entry.read(MAX_PICKLE_BYTES)


class _Value:
    """Something on the stack of a pickle's machine: its text if it is one, and the refused objects inside it by key."""

    def __init__(self, text: str | None = None, objects: Mapping[tuple[str, ...], str] | None = None) -> None:
        self.text = text
        self.objects = dict(objects or {})


def _objects_by_key(pickled: bytes, refused: Set[str]) -> dict[tuple[str, ...], str]:
    """Follow the instructions of the pickles in a file, up to the first that has a refused object.

    refused: kinds of objects; empty, where torch gave up before it met one: all but its own.
    """
    stream = io.BytesIO(pickled)
    for _ in range(PICKLES_OF_OLD_FILE):
        stack: list[_Value | None] = []  # None is a mark.
        memo: dict[int, _Value | None] = {}
        for code, argument, _ in pickletools.genops(stream):
            _follow(code, argument, stack, memo, refused)
        if stack and stack[-1] is not None and stack[-1].objects:
            return stack[-1].objects
    return {}


def _follow(
    code: pickletools.OpcodeInfo,
    argument: Any,
    stack: list[_Value | None],
    memo: dict[int, _Value | None],
    refused: Set[str],
) -> None:
    name = code.name
    if name == "STOP":
        return
    if name == "MARK":
        stack.append(None)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if argument is None else int(argument)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    else:
        taken = list(_take(code, stack))
        if name in ("SETITEM", "SETITEMS"):
            # In place: the memo may hold the same dictionary.
            holder, pairs = taken[0], taken[1:]
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                keys = (key.text or "?",)
                holder.objects |= {keys + inner: kind for inner, kind in value.objects.items()}
            stack.append(holder)
            return
        if name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if name == "GLOBAL" else [value.text or "?" for value in taken]
            kind = ".".join(parts)
            is_refused = kind in refused if refused else not kind.startswith(("torch.", "collections."))
            made = _Value(objects={(): kind} if is_refused else {})
        else:
            made = _Value(argument if isinstance(argument, str) else None, _joined(taken))
        stack.extend([made] * len(code.stack_after))


def _take(code: pickletools.OpcodeInfo, stack: list[_Value | None]) -> Iterator[_Value]:
    """Take what an instruction takes, in the order of the stack, marks left out."""
    count = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        mark = len(stack) - 1 - stack[::-1].index(None)
        count = len(stack) - mark + code.stack_before.index(pickletools.markobject)
    elif code.name == "POP":
        count = 1
    taken = stack[len(stack) - count :] if count else []
    del stack[len(stack) - count :]
    return (value for value in taken if value is not None)


def _joined(values: list[_Value]) -> dict[tuple[str, ...], str]:
    """The objects inside something made of these values; what is made by a refused object is that object."""
    objects: dict[tuple[str, ...], str] = {}
    for value in values:
        objects = {**value.objects, **objects}
    return {(): objects[()]} if () in objects else objects


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
                f"{path}: {name[:80]!r} is declared as {tuple(tensor.shape)}, but the file holds less; {SAVE_AGAIN}"
            )


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


def convert_exactly(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor, network: str) -> torch.Tensor:
    """`tensor` in the type of `expected`: weights in half precision are taken, no number is rounded.

    network: what the file should hold, for the message: "a torchvision ResNet-50".

    Raises:
        SpatialfeatError: another shape or kind of numbers, numbers that would be rounded, NaN or infinity.
    """
    if tensor.shape != expected.shape:
        raise SpatialfeatError(
            f"{path}: is not {network} ({name} is {tuple(tensor.shape)}, "
            f"expected {tuple(expected.shape)}); pass the state dict of one"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise SpatialfeatError(f"{path}: {name} is {tensor.dtype}, expected {expected.dtype}; {SAVE_AGAIN}")
    converted = tensor.detach().to(expected.dtype)
    if converted.numel() and not torch.isfinite(torch.stack(converted.aminmax())).all():
        raise SpatialfeatError(f"{path}: {name} holds NaN or infinity; the training that made it has diverged")
    # Half precision fits into float32 with every number.
    is_wider = torch.promote_types(tensor.dtype, converted.dtype) == converted.dtype
    if not is_wider and not torch.equal(converted.to(tensor.dtype), tensor):
        raise SpatialfeatError(
            f"{path}: {name} is {tensor.dtype} and would be rounded to {expected.dtype}; "
            "save the weights of model.float()"
        )
    return converted
