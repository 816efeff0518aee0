"""Writing files so that a name only ever points at a whole file. CSVs are written here only: UTF-8, LF, no formulas."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from spatialfeat.errors import SpatialfeatError, translate_os_errors
from spatialfeat.names import spreadsheet_cell

if TYPE_CHECKING:
    import pandas as pd


FSYNC_FILES = 1000
"""Above so many files, one flush of the whole system is faster than one of each file."""

logger = logging.getLogger(__name__)


@contextmanager
def atomic_path(final_path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final_path`; on success flush it to disk and rename it over `final_path`.

    On any exception the temporary file is removed and whatever stood under the final name stays untouched.
    The temporary name is hidden but keeps the suffix, because writers such as matplotlib choose the format by it.

    Raises:
        SpatialfeatError: the disk is full, read-only or broken; it names the final path.
    """
    temporary_path = final_path.with_name(f".{final_path.stem}.partial{final_path.suffix}")
    try:
        with translate_os_errors(final_path):
            yield temporary_path
            commit(temporary_path, final_path)
    except BaseException:
        # A file system that has just failed may refuse this too; the first failure is the one to report.
        with suppress(OSError):
            temporary_path.unlink()
        raise


def commit(temporary_path: Path, final_path: Path) -> None:
    """Flush `temporary_path` to disk, then rename it to `final_path` in one step."""
    _flush(temporary_path)
    temporary_path.replace(final_path)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(final_dir: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `final_dir`; on success flush it to disk and rename it to `final_dir`.

    `final_dir` must not exist or be an empty folder. On any exception the hidden folder is removed.

    Raises:
        SpatialfeatError: another process is writing the same folder.
    """
    final_dir.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(final_dir.with_name(f".{final_dir.name}.partial"), final_dir) as partial_dir:
        yield partial_dir
        _flush_folder(partial_dir)
        if final_dir.exists():
            # An empty folder that somebody prepared, with the rights of a group for example, keeps those rights.
            stat = final_dir.stat()
            os.chown(partial_dir, stat.st_uid, stat.st_gid)
            partial_dir.chmod(stat.st_mode & 0o7777)
        partial_dir.replace(final_dir)


@contextmanager
def working_folder(folder: Path, purpose: Path) -> Iterator[Path]:
    """Yield the empty new `folder`, and remove it in the end if it is still there. `purpose` is what messages name.

    What a killed run left behind is removed too; a run that is still writing there is known by its lock.

    Raises:
        SpatialfeatError: another process is using the folder.
    """
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpatialfeatError(f"{purpose}: another process is writing it; wait for it to end") from error
        try:
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            yield folder
        finally:
            # Not what another process has begun under this name since the folder was renamed.
            if is_name_of(folder, lock):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def move_into(source_dir: Path, target_dir: Path, *, last: str) -> None:
    """Move all files of a folder, each in one step and over an older one of its name; the file `last` comes last."""
    _flush_folder(source_dir)
    files = [path.relative_to(source_dir) for path in source_dir.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (str(path) == last, path)):
        (target_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (source_dir / path).replace(target_dir / path)


def is_name_of(path: Path, descriptor: int) -> bool:
    """Whether `path` still, or already, stands for what `descriptor` has open: others may rename and remove."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _flush_folder(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if len(files) > FSYNC_FILES:
        os.sync()
        return
    for path in files:
        _flush(path)


def write_atomically(final_path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then give it its final name."""
    with atomic_path(final_path) as temporary_path:
        write(temporary_path)


def json_text(content: dict[str, Any]) -> str:
    """Indented JSON with a final newline, to be written as UTF-8. NaN is refused: JSON has no such number."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `json_text(content)`."""
    text = json_text(content)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_text(path: Path) -> str:
    """The text of somebody's file, UTF-8, or UTF-16 with a byte order mark; without the mark.

    Raises:
        SpatialfeatError: it cannot be read, or is something else.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError as error:
        raise SpatialfeatError(
            f"{path}: no such file; go to the folder of your data, or pass the right path"
        ) from error
    except UnicodeDecodeError as error:
        raise SpatialfeatError(
            f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8 (of Excel's forms: CSV UTF-8)"
        ) from error
    except OSError as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error.strerror}); pass the right path") from error


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


def text_sha256s(path: Path) -> frozenset[str]:
    """SHA-256 of a text file's bytes as they are, with LF, and with CRLF as line ends: what counts as the same text."""
    content = path.read_bytes()
    lf = content.replace(b"\r\n", b"\n")
    return frozenset(hashlib.sha256(form).hexdigest() for form in (content, lf, lf.replace(b"\n", b"\r\n")))


ASIDE_NAME = "previous"
"""`previous1`, `previous2`, ...: folders of results that were moved aside."""


def move_aside(out_dir: Path, names: Sequence[str]) -> Path | None:
    """Move those of `names` that are in `out_dir` into a new folder beside them. Returns it, None if none is there.

    A night of work is not overwritten by the first minutes of another run, and results of two runs are never mixed.
    """
    found = [name for name in names if (out_dir / name).exists()]
    if not found:
        return None
    number = 1
    while (aside_dir := out_dir / f"{ASIDE_NAME}{number}").exists():
        number += 1
    aside_dir.mkdir()
    for name in found:
        (out_dir / name).replace(aside_dir / name)
    logger.info("results of an earlier run are now in %s", aside_dir)
    return aside_dir


def prepare_output_dir(out_dir: Path) -> None:
    """Create `out_dir` if needed and make sure that a file can be written in it, before any long work starts."""
    if out_dir.exists() and not out_dir.is_dir():
        raise SpatialfeatError(f"--out {out_dir}: is a file, not a folder; choose another name")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe_path = out_dir / f".spatialfeat-probe-{os.getpid()}"
        probe_path.write_bytes(b"")
        # Jobs on several machines may have the same process id, and have removed it already.
        probe_path.unlink(missing_ok=True)
    except OSError as error:
        raise SpatialfeatError(
            f"--out {out_dir}: cannot write there ({error.strerror}); choose a folder that you may write to"
        ) from error


@contextmanager
def output_dir(out_dir: Path) -> Iterator[None]:
    """`prepare_output_dir`; folders that it has made do not stay where the work ends with an error before any file."""
    made = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    prepare_output_dir(out_dir)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # There are files in it by now.
            for folder in made:
                folder.rmdir()
        raise


def require_new_folder(out: Path) -> None:
    """Refuse a positional OUT that is a file, or a folder that is not empty: nothing there is overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise SpatialfeatError(f"OUT {out}: {what}; remove it or choose another folder")


def require_room(out_dir: Path, num_bytes: int, what: str, option: str = "--out") -> None:
    """Refuse early what would fill the disk that `out_dir` lies on.

    Args:
        what: what takes `num_bytes`, as the message begins to say it: "the export takes".
    """
    place = next(folder for folder in (out_dir.absolute(), *out_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise SpatialfeatError(
            f"{option} {out_dir}: {what} about {num_bytes / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free there; "
            "make room or choose another place"
        )


class CsvTable:
    """Rows written one after the other to an open text file (`open_csv_text`)."""

    def __init__(self, text: TextIO, header: Sequence[str]) -> None:
        self._writer = csv.writer(text, lineterminator="\n")
        self.add([header])

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Write rows of as many values as the header has."""
        self._writer.writerows([spreadsheet_cell(value) for value in row] for row in rows)


def open_csv_text(path: Path) -> TextIO:
    """A new file for a CSV."""
    return path.open("w", encoding="utf-8", newline="")


def write_frame(frame: pd.DataFrame, target: Path | TextIO, *, header: bool = True) -> None:
    """Write a table, numbers with as many digits as give back the same number."""
    safe = frame.rename(columns=spreadsheet_cell)
    for name in safe:
        if safe[name].dtype.kind not in "biuf":
            safe[name] = safe[name].map(spreadsheet_cell)
    safe.to_csv(target, index=False, header=header, lineterminator="\n", encoding="utf-8")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table to a file that appears under its name only when whole."""
    write_atomically(path, lambda temporary: write_frame(frame, temporary))
