"""Writing files so that a name only ever points at a whole file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatialfeat.errors import SpatialfeatError


@contextmanager
def atomic_path(final_path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final_path`; on success flush it to disk and rename it over `final_path`.

    On any exception the temporary file is removed and whatever stood under the final name stays untouched.
    The temporary name is hidden but keeps the suffix, because writers such as matplotlib choose the format by it.
    """
    temporary_path = final_path.with_name(f".{final_path.stem}.partial{final_path.suffix}")
    try:
        yield temporary_path
        commit(temporary_path, final_path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise


def commit(temporary_path: Path, final_path: Path) -> None:
    """Flush `temporary_path` to disk, then rename it to `final_path` in one step."""
    with temporary_path.open("rb+") as file:
        os.fsync(file.fileno())
    temporary_path.replace(final_path)


def write_atomically(final_path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then give it its final name."""
    with atomic_path(final_path) as temporary_path:
        write(temporary_path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented UTF-8 JSON with a final newline. NaN is refused: JSON has no such number."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare_output_dir(out_dir: Path, option: str = "--out") -> None:
    """Create `out_dir` if needed and make sure that a file can be written in it, before any long work starts."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe_path = out_dir / f".spatialfeat-probe-{os.getpid()}"
        probe_path.write_bytes(b"")
        probe_path.unlink()
    except OSError as error:
        raise SpatialfeatError(
            f"{option} {out_dir}: cannot write there ({error.strerror}); choose a folder that you may write to"
        ) from error
