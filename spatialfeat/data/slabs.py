"""A folder of large files that entries are appended to, and what bounds it on disk. See `slabstore` for its use.

A slab `slabs/NAME` holds entries one behind the other; its index `index/NAME` holds one record per entry. Each slab has
one writer, which reserves its whole size and holds a lock on it, so that other processes see whether it still lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_SLAB_BYTES = 256 * 2**20
SLABS_PER_LIMIT = 256
"""A slab is this part of the limit, so that what many writers reserve is little of it."""
KEEP_FREE_BYTES = 2 * 10**9
"""Left free on the disk: the cache must not be what makes a run fail to write its weights."""
IN_USE_SECONDS = 6 * 3600
"""A slab read within this time belongs to work that goes on, and is not given up for new entries."""

HEADER = struct.Struct("<8s16sII")
"""Before each entry: magic, key, length of the body in bytes, CRC-32 of key and body."""
RECORD = np.dtype([("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("slab", "<u4")])
"""In the index: the first 8 bytes of the key, where the header begins, length of the body. `slab` is for readers."""

Records = NDArray[Any]
"""(N,) RECORD."""


class StoreFullError(Exception):
    """No room for another slab; the message is the reason."""


class SlabFiles(NamedTuple):
    """A slab and its index: bytes of both, and when an entry was last written or read (seconds since 1970)."""

    last_use: float
    name: str
    size: int


class SlabFolder:
    """The files, and the rules by which they come and go. Those that change files run under one lock.

    Args:
        folder: an existing folder that is used for nothing else. limit_bytes: the most that the files may occupy.
    Raises:
        OSError: the folder cannot be written, or its file system has no file locks.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._slabs, self._index, self._lock_path = folder / "slabs", folder / "index", folder / "lock"
        for path in (self._slabs, self._index):
            path.mkdir(mode=0o700, exist_ok=True)

    def slab_path(self, name: str) -> Path:
        return self._slabs / name

    def index_path(self, name: str) -> Path:
        return self._index / name

    def names(self) -> list[str]:
        """Every slab, in the order in which they were begun."""
        return sorted(path.name for path in self._index.iterdir())

    def usage_bytes(self) -> int:
        """Bytes of all files, with what writers have reserved."""
        return sum(files.size for files in self._list())

    def records_from(self, name: str, start: int) -> Records:
        """The whole records behind byte `start` of an index."""
        with self.index_path(name).open("rb") as file:
            file.seek(start)
            content = file.read()
        records: Records = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize).copy()
        return records

    def is_finished(self, name: str) -> bool:
        """Has the slab no room any more, because its writer gave it back?"""
        used = self._used_bytes(name)
        return 0 < used == self.slab_path(name).stat().st_size

    def trim(self) -> None:
        """Cut slabs without a living writer down to their entries; remove the empty ones."""
        with _locked(self._lock_path):
            self._trim()

    def shrink(self) -> None:
        """Remove the least recently used slabs until the rest is within the limit: it may have been larger before."""
        with _locked(self._lock_path):
            self._evict(self.limit_bytes, unused_seconds=0)

    def new_writer(self, entry_bytes: int) -> SlabWriter:
        """A new slab with room for an entry of so many bytes. Slabs that nobody used for long make way for it.

        Raises:
            StoreFullError: there is no room.
        """
        size = max(entry_bytes, min(MAX_SLAB_BYTES, self.limit_bytes // SLABS_PER_LIMIT))
        with _locked(self._lock_path):
            self._make_room(size)
            name = f"{time.time_ns():016x}-{secrets.token_hex(4)}"
            return SlabWriter(self.slab_path(name), self.index_path(name), size)

    def _make_room(self, slab_bytes: int) -> None:
        if self.usage_bytes() + slab_bytes > self.limit_bytes:
            self._trim()
            self._evict(self.limit_bytes - slab_bytes, unused_seconds=IN_USE_SECONDS)
        used = self.usage_bytes()
        if used + slab_bytes > self.limit_bytes:
            raise StoreFullError(f"{used / 1e9:.2f} GB of at most {self.limit_bytes / 1e9:.2f} GB are taken")
        disk = os.statvfs(self._slabs)
        if disk.f_bavail * disk.f_frsize - slab_bytes < KEEP_FREE_BYTES:
            raise StoreFullError(f"less than {KEEP_FREE_BYTES / 1e9:.0f} GB are free on the disk")

    def _list(self) -> list[SlabFiles]:
        """All slabs, the least recently used first."""
        found = []
        for path in self._slabs.iterdir():
            parts = []
            for part in (path, self.index_path(path.name)):
                with contextlib.suppress(FileNotFoundError):
                    parts.append(part.stat())
            if parts:
                last_use = max(stat.st_mtime for stat in parts)
                found.append(SlabFiles(last_use, path.name, sum(stat.st_size for stat in parts)))
        return sorted(found)

    def _used_bytes(self, name: str) -> int:
        """Where the last entry of a slab ends, as its index says. The farthest end: one record may be damaged."""
        records = self.records_from(name, 0)
        ends = zip(records["offset"].tolist(), records["length"].tolist(), strict=True)
        return max((offset + HEADER.size + length for offset, length in ends), default=0)

    def _trim(self) -> None:
        for files in self._list():
            with _lock_of_dead_writer(self.slab_path(files.name)) as fd:
                if fd is None:
                    continue
                used = self._used_bytes(files.name) if self.index_path(files.name).exists() else 0
                if not used:
                    self._remove(files.name)
                elif os.fstat(fd).st_size > used:
                    os.ftruncate(fd, used)

    def _evict(self, target_bytes: int, *, unused_seconds: float) -> None:
        """Remove the least recently used slabs without a living writer until no more than `target_bytes` are left."""
        slabs = self._list()
        total = sum(files.size for files in slabs)
        for files in slabs:
            if total <= target_bytes or time.time() - files.last_use < unused_seconds:
                break
            with _lock_of_dead_writer(self.slab_path(files.name)) as fd:
                if fd is not None:
                    self._remove(files.name)
                    total -= files.size

    def _remove(self, name: str) -> None:
        self.index_path(name).unlink(missing_ok=True)
        self.slab_path(name).unlink(missing_ok=True)


class SlabWriter:
    """The slab that one process appends to. Its whole size is reserved at once, and locked while the writer lives."""

    def __init__(self, slab_path: Path, index_path: Path, slab_bytes: int) -> None:
        self.pid = os.getpid()
        self._slab_path, self._index_path = slab_path, index_path
        self._size, self._end = slab_bytes, 0
        self._slab = os.open(slab_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._slab, fcntl.LOCK_EX)
        os.ftruncate(self._slab, slab_bytes)
        self._index = os.open(index_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._size - self._end

    def append(self, key_prefix: int, parts: Sequence[bytes | memoryview]) -> None:
        """Write an entry, header first, then its record. An entry that cannot be written whole gets no record."""
        size = sum(len(part) for part in parts)
        if os.pwritev(self._slab, parts, self._end) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._slab_path))
        os.write(self._index, np.array([(key_prefix, self._end, size - HEADER.size, 0)], RECORD).tobytes())
        self._end += size

    def close(self) -> None:
        """Give back the space behind the last entry."""
        os.ftruncate(self._slab, self._end)
        os.close(self._index)
        os.close(self._slab)

    def remove(self) -> None:
        """Give up the slab with everything in it."""
        self._index_path.unlink(missing_ok=True)
        self._slab_path.unlink(missing_ok=True)
        self.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lock_of_dead_writer(slab_path: Path) -> Iterator[int | None]:
    """The open slab, locked, if nobody writes it any more; None if somebody does, or its writer just removed it."""
    try:
        fd = os.open(slab_path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield fd
    finally:
        os.close(fd)
