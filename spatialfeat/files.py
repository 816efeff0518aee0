"""Writing files so that a name only ever points at a whole file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatialfeat.errors import SpatialfeatError

FSYNC_FILES = 1000
"""Above so many files, one flush of the whole system is faster than one of each file."""

logger = logging.getLogger(__name__)


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


@contextmanager
def atomic_folder(final_dir: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `final_dir`; on success flush it to disk and rename it to `final_dir`.

    `final_dir` must not exist or be an empty folder. On any exception the hidden folder is removed. What a killed run
    left behind is removed too; a run that is still writing there is told by its lock.

    Raises:
        SpatialfeatError: another process is writing the same folder.
    """
    partial_dir = final_dir.with_name(f".{final_dir.name}.partial")
    final_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir.mkdir(exist_ok=True)
    lock = os.open(partial_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpatialfeatError(f"{final_dir}: another process is writing it; wait for it to end") from error
        try:
            _empty_folder(partial_dir)
            yield partial_dir
            _flush_folder(partial_dir)
            if final_dir.exists():
                # An empty folder that somebody prepared, with the rights of a group for example, keeps those rights.
                stat = final_dir.stat()
                os.chown(partial_dir, stat.st_uid, stat.st_gid)
                partial_dir.chmod(stat.st_mode & 0o7777)
            partial_dir.replace(final_dir)
        except BaseException:
            shutil.rmtree(partial_dir, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _flush_folder(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if len(files) > FSYNC_FILES:
        os.sync()
        return
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def write_atomically(final_path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then give it its final name."""
    with atomic_path(final_path) as temporary_path:
        write(temporary_path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented UTF-8 JSON with a final newline. NaN is refused: JSON has no such number."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, or {} if there is no such file or it holds no JSON object: for hints, never for data."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    return parse_json_object(text) or {}


def parse_json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text from anywhere holds, None if it holds none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def move_aside(out_dir: Path, names: Sequence[str]) -> None:
    """Move those of `names` that are in `out_dir` into a new folder `previous1`, `previous2`, ... beside them.

    A night of work is not overwritten by the first minutes of another run, and results of two runs are never mixed.
    """
    found = [name for name in names if (out_dir / name).exists()]
    if not found:
        return
    number = 1
    while (aside_dir := out_dir / f"previous{number}").exists():
        number += 1
    aside_dir.mkdir()
    for name in found:
        (out_dir / name).replace(aside_dir / name)
    logger.info("results of an earlier run are now in %s", aside_dir)


def prepare_output_dir(out_dir: Path, option: str = "--out") -> None:
    """Create `out_dir` if needed and make sure that a file can be written in it, before any long work starts."""
    if out_dir.exists() and not out_dir.is_dir():
        raise SpatialfeatError(f"{option} {out_dir}: is a file, not a folder; choose another name")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe_path = out_dir / f".spatialfeat-probe-{os.getpid()}"
        probe_path.write_bytes(b"")
        probe_path.unlink()
    except OSError as error:
        raise SpatialfeatError(
            f"{option} {out_dir}: cannot write there ({error.strerror}); choose a folder that you may write to"
        ) from error
