"""Open HDF5 files of this process: opened when first read, a bounded number at a time, never carried to another one.

HDF5 handles must not cross a fork: parent and child would share one file position and one lock. And a folder of a
thousand videos, read in random order, would pass the usual limit of 1024 open files.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from spatialfeat.errors import SpatialfeatError

MAX_OPEN_FILES = 64
_DAMAGE_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)
"""What h5py raises for a damaged file depends on where the damage is."""


class FileStamp(NamedTuple):
    """Tells a file from another one that took its name since."""

    inode: int
    size_bytes: int
    modified_ns: int


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        SpatialfeatError: there is no such file, it cannot be read, or it is not a whole HDF5 file.
    """
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{path}: no such feature file; make it with `spatialfeat extract`") from error
    except OSError as error:
        if error.errno is not None:
            reason = os.strerror(error.errno).lower()
            raise SpatialfeatError(f"{path}: cannot be read ({reason}); pass a readable feature file") from error
        reason = _in_one_line(error)
        raise SpatialfeatError(f"{path}: is not a whole HDF5 file ({reason}); extract the video again") from error


def stamp_of(path: Path) -> FileStamp:
    """The stamp of the file that has this name now.

    Raises:
        SpatialfeatError: there is no such file, or it cannot be looked at.
    """
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{path}: no such feature file; make it with `spatialfeat extract`") from error
    except OSError as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error.strerror}); pass a readable feature file") from error
    return FileStamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _in_one_line(error: BaseException) -> str:
    """h5py's reason without its preamble, e.g. `truncated file: eof = 13262, ...`."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    preamble, _, reason = text.partition(" (")
    return reason[:-1] if preamble.startswith(("Unable to", "Can't")) and reason.endswith(")") else text


class _Handles:
    """The open files of one process, the least recently used first."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self._files: OrderedDict[tuple[Path, FileStamp], h5py.File] = OrderedDict()

    def get(self, path: Path, stamp: FileStamp) -> h5py.File:
        key = (path, stamp)
        if key not in self._files:
            if stamp_of(path) != stamp:
                raise SpatialfeatError(f"{path}: has changed since it was opened; open it again")
            while len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[key] = open_h5(path)
        self._files.move_to_end(key)
        return self._files[key]

    def close(self, path: Path, stamp: FileStamp) -> None:
        file = self._files.pop((path, stamp), None)
        if file is not None:
            file.close()

    def close_all(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


_handles = _Handles()


def _handles_of_this_process() -> _Handles:
    global _handles
    if _handles.pid != os.getpid():
        inherited, _handles = _handles, _Handles()
        # HDF5 would hand out the parent's file again while its copy here is open. Its lock is not taken: a thread
        # that held it at the time of the fork does not exist here.
        inherited.close_all()
    return _handles


@contextmanager
def opened(path: Path, stamp: FileStamp) -> Iterator[h5py.File]:
    """Lend the open file; no other thread can close it meanwhile.

    Raises:
        SpatialfeatError: as `open_h5`, if the file is no longer the one with this stamp, and for damage that h5py
            meets while the file is lent.
    """
    handles = _handles_of_this_process()
    with handles.lock:
        try:
            yield handles.get(path, stamp)
        except SpatialfeatError:
            handles.close(path, stamp)
            raise
        except _DAMAGE_ERRORS as error:
            handles.close(path, stamp)
            raise SpatialfeatError(f"{path}: is damaged ({_in_one_line(error)}); extract the video again") from error


def close(path: Path, stamp: FileStamp) -> None:
    """Close the file if this process has it open; reading it again opens it again."""
    handles = _handles_of_this_process()
    with handles.lock:
        handles.close(path, stamp)


def plain(value: Any) -> Any:
    """An HDF5 attribute's value as a Python value; arrays become tuples."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
