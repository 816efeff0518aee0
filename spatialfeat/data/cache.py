"""Decoded, resized frames on disk, so that a frame is decoded once and not in every epoch.

What is stored of a frame is the result of its transform's fixed steps, uint8, and the digest of its file. It is found
again by the file's real path, size and modification time and by the fixed steps' description: a frame that changes, or
another way of resizing, asks for another entry. `slabstore` keeps the entries.

A folder of large files that entries are appended to, and what bounds it on disk. See `slabstore` for its use.

A slab `slabs/NAME` holds entries one behind the other; its index `index/NAME` holds one record per entry. Each slab has
one writer, which reserves its whole size and holds a lock on it, so that other processes see whether it still lives.

Bytes under 16-byte keys in a few large files, written and read by many processes at once.

Each process appends to a slab of its own, so writers never meet. A record is written after its entry, and an entry
carries its whole key and a checksum: what is torn, flipped or not yet there is a miss, never a wrong answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import multiprocessing
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.console import count_text
from spatialfeat.errors import SpatialfeatError

TAG_NAME = "CACHEDIR.TAG"
TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# spatialfeat frame cache, schema 1
#
# Decoded video frames, kept so that training and extraction need not decode them again. The first line tells backup
# programs to leave this folder out. The frames in it are as confidential as the images that they were made from.
# Deleting the folder loses nothing but time, and is safe while no run uses it.
"""
DIGEST_BYTES = 16
_SHAPE = struct.Struct(f"<{DIGEST_BYTES}sII")  # Digest of the PNG file, height, width; then the pixels, (H, W, 3).
_FROM_CACHE, _DECODED, _NOTICE_GIVEN = range(3)

logger = logging.getLogger(__name__)


class CachedFrame(NamedTuple):
    """pixels: (3, H, W) uint8, laid out in memory as Pillow gives them. digest: 16 bytes, of the PNG file."""

    pixels: torch.Tensor
    digest: bytes


class FrameCache:
    """The cache of one run, shared by its datasets and their decoding processes.

    Raises:
        SpatialfeatError: `cache_dir` is something else than a cache or a new folder, or cannot be used.
    """

    def __init__(self, cache_dir: Path, limit_gb: float) -> None:
        self._cache_dir = cache_dir
        self._real_dirs: dict[str, str] = {}
        # Counted by every decoding process of the run.
        self._counts = multiprocessing.Array("q", 3)
        _claim_folder(cache_dir)
        try:
            self._store = SlabStore(cache_dir, int(limit_gb * 1e9))
            self._store.files.trim()
            self._store.files.shrink()
            self._store.refresh()
        except OSError as error:
            raise _unusable(cache_dir, error) from error

    def key(self, path: Path, stat: os.stat_result, recipe: str) -> bytes:
        """16 bytes that stand for this state of a file, and for what the fixed steps described by `recipe` make of it.

        Only the folder of the frames is resolved, once: frames that are links count as files of the folder.
        """
        folder = str(path.parent)
        if folder not in self._real_dirs:
            self._real_dirs[folder] = os.path.realpath(folder)
        identity = f"{self._real_dirs[folder]}\0{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{recipe}"
        return blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    def holds(self, path: Path, recipe: str) -> bool:
        """Was the frame cached, as its file is now, when the run began? Safe to call from several threads."""
        return self._store.holds(self.key(path, path.stat(), recipe))

    def get(self, key: bytes) -> CachedFrame | None:
        """The frame, or None if it has to be decoded."""
        body = self._store.get(key)
        self._count(_DECODED if body is None else _FROM_CACHE)
        if body is None:
            return None
        digest, height, width = _SHAPE.unpack_from(body)
        pixels = np.frombuffer(body, np.uint8, offset=_SHAPE.size).reshape(height, width, 3)
        return CachedFrame(torch.from_numpy(pixels).permute(2, 0, 1), digest)

    def put(self, key: bytes, frame: CachedFrame) -> None:
        """Store the frame if there is room; the first time that there is none, say so."""
        pixels = frame.pixels.permute(1, 2, 0).contiguous().numpy()
        shape = _SHAPE.pack(frame.digest, *pixels.shape[:2])
        self._store.put(key, shape, pixels.reshape(-1).data)
        if self._store.full is not None and self._is_first_notice():
            logger.warning(
                "the frame cache %s takes no more frames: %s; the others are decoded every time. Raise --cache-limit, "
                "choose a --cache folder with more room, or delete what is in it",
                self._cache_dir,
                self._store.full,
            )

    def close(self) -> dict[str, int]:
        """Give back reserved space. Returns frames_from_cache, frames_decoded and the folder's bytes."""
        self._store.close()
        num_bytes = 0
        try:
            self._store.files.trim()
            num_bytes = self._store.files.usage_bytes()
        except OSError as error:  # A finished study is not lost because its cache is.
            logger.warning("the frame cache %s cannot be read any more (%s)", self._cache_dir, error.strerror)
        facts = {
            "frames_from_cache": int(self._counts[_FROM_CACHE]),
            "frames_decoded": int(self._counts[_DECODED]),
            "bytes": num_bytes,
        }
        logger.info(
            "frame cache %s: %s from it, %d decoded; it now holds %.2f GB",
            self._cache_dir,
            count_text(facts["frames_from_cache"], "frame"),
            facts["frames_decoded"],
            facts["bytes"] / 1e9,
        )
        return facts

    def _count(self, which: int) -> None:
        with self._counts.get_lock():
            self._counts[which] += 1

    def _is_first_notice(self) -> bool:
        with self._counts.get_lock():
            self._counts[_NOTICE_GIVEN] += 1
            return bool(self._counts[_NOTICE_GIVEN] == 1)


def total_use(uses: Sequence[dict[str, int]]) -> dict[str, int]:
    """What processes that share one folder tell at `close`, as one: frames add up, the folder's bytes do not."""
    return {name: (max if name == "bytes" else sum)(use[name] for use in uses) for name in uses[0]}


def open_cache(cache_dir: Path | None, limit_gb: float) -> FrameCache | None:
    """The cache that the options name; None without `--cache`."""
    return None if cache_dir is None else FrameCache(cache_dir, limit_gb)


def _claim_folder(cache_dir: Path) -> None:
    """Make sure that the folder is a cache of ours, or make it one if it is new or empty."""
    if cache_dir.exists() and not cache_dir.is_dir():
        raise SpatialfeatError(f"--cache {cache_dir}: is a file, not a folder; choose another name")
    tag_path = cache_dir / TAG_NAME
    try:
        if not cache_dir.is_dir():
            cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A second run may be claiming the same folder: its unfinished tag is no stranger.
        names = {path.name for path in cache_dir.iterdir() if not path.name.startswith(f".{TAG_NAME}")}
        if not names:
            unfinished = cache_dir / f".{TAG_NAME}-{secrets.token_hex(4)}"
            unfinished.write_text(TAG, encoding="utf-8")
            unfinished.replace(tag_path)
        content = tag_path.read_text(encoding="utf-8") if tag_path.is_file() else ""
    except OSError as error:
        raise _unusable(cache_dir, error) from error
    if content.splitlines()[:2] != TAG.splitlines()[:2]:
        reason = "a cache of another version of spatialfeat" if "spatialfeat" in content else "not a frame cache"
        raise SpatialfeatError(f"--cache {cache_dir}: is {reason} and not empty; choose a new or empty folder for it")


def _unusable(cache_dir: Path, error: OSError) -> SpatialfeatError:
    return SpatialfeatError(
        f"--cache {cache_dir}: cannot be used ({error.strerror}); choose a folder that you may write to, "
        "on a file system with file locks"
    )


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


TOUCH_SECONDS = 600
"""So often a slab that is read is marked as used."""
MAX_OPEN_SLABS = 64
MERGE_AT = 4096

MAGIC = b"SFSLAB01"

Place = tuple[int, int, int]
"""Slab number, offset of the entry's header, length of its body."""


class SlabStore:
    """One process's view of a store. Entries that other processes add show when they are asked for.

    Pickled or forked, it goes on in the other process with a slab of that process's own. Faults of the disk raise
    nothing after the start: what cannot be read is a miss, and `full` tells why nothing more is written.

    Args:
        folder, limit_bytes: see `SlabFolder`.
    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._init_args = (folder, limit_bytes)
        self.files = SlabFolder(folder, limit_bytes)
        self.full: str | None = None
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._ends: list[int] = []  # Bytes of each index that were read.
        self._growing: set[int] = set()
        self._places = _PlaceTable()
        self._fds: dict[int, int] = {}
        self._touched: dict[int, float] = {}
        self._writer: SlabWriter | None = None
        self.refresh()

    def __getstate__(self) -> tuple[Path, int]:
        return self._init_args

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def holds(self, key: bytes) -> bool:
        """Was there an entry when the store was last refreshed? Safe to call from several threads."""
        return self._places.find(_prefix(key)) is not None

    def get(self, key: bytes) -> memoryview | None:
        """The body stored under `key`, writable and nobody else's, or None."""
        prefix = _prefix(key)
        place = self._places.find(prefix)
        if place is None:
            self.refresh()
            place = self._places.find(prefix)
        if place is None:
            return None
        body = self._read(place, key)
        if body is None:
            self._places.forget(prefix)
        return body

    def put(self, key: bytes, *parts: bytes | memoryview) -> None:
        """Store the joined parts, unless another process was faster or `full` says why nothing is stored."""
        if self.full is not None:
            return
        self.refresh()
        if self.holds(key):
            return
        checksum = zlib.crc32(key)
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        length = sum(len(part) for part in parts)
        header = HEADER.pack(MAGIC, key, length, checksum)
        try:
            self._writer_for(HEADER.size + length).append(_prefix(key), (header, *parts))
        except StoreFullError as error:
            self.full = str(error)
        except OSError as error:
            self.full = error.strerror or str(error)
            # If the disk is full, the run's own files want the space more than the cache does.
            if self._writer is not None:
                self._writer.remove()
                self._writer = None

    def close(self) -> None:
        """Give back what this process's slab reserved. Safe to leave out: the next `trim` does it."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close()
        self._writer = None
        while self._fds:
            os.close(self._fds.popitem()[1])

    def refresh(self) -> None:
        """Read what the indexes have gained since the last time."""
        try:
            names = [name for name in self.files.names() if name not in self._numbers]
        except OSError as error:  # Somebody deletes the folder while it is in use.
            self.full = error.strerror or str(error)
            return
        for name in names:  # The oldest first: of two entries for one key the later one is found.
            self._numbers[name] = len(self._names)
            self._growing.add(len(self._names))
            self._names.append(name)
            self._ends.append(0)
        for number in sorted(self._growing):
            try:
                self._read_index(number)
            except OSError:  # Given up for new entries meanwhile.
                self._growing.discard(number)

    def _read_index(self, number: int) -> None:
        name = self._names[number]
        if self.files.index_path(name).stat().st_size - self._ends[number] < RECORD.itemsize:
            if self.files.is_finished(name):
                self._growing.discard(number)
            return
        records = self.files.records_from(name, self._ends[number])
        self._ends[number] += records.nbytes
        records["slab"] = number
        self._places.add(records)

    def _read(self, place: Place, key: bytes) -> memoryview | None:
        number, offset, length = place
        try:
            fd = self._open_slab(number)
            if offset + HEADER.size + length > os.fstat(fd).st_size:
                return None
            entry = bytearray(HEADER.size + length)
            if os.preadv(fd, [entry], offset) != len(entry):
                return None
        except OSError:  # Given up for new entries, here or on another machine of a network file system.
            return None
        body = memoryview(entry)[HEADER.size :]
        expected = (MAGIC, key, length, zlib.crc32(body, zlib.crc32(key)))
        return body if HEADER.unpack_from(entry) == expected else None

    def _open_slab(self, number: int) -> int:
        name = self._names[number]
        if number not in self._fds:
            if len(self._fds) >= MAX_OPEN_SLABS:
                os.close(self._fds.pop(next(iter(self._fds))))
            self._fds[number] = os.open(self.files.slab_path(name), os.O_RDONLY)
        if time.monotonic() - self._touched.get(number, float("-inf")) >= TOUCH_SECONDS:
            self._touched[number] = time.monotonic()
            os.utime(self.files.index_path(name))
        return self._fds[number]

    def _writer_for(self, entry_bytes: int) -> SlabWriter:
        if self._writer is not None and self._writer.pid != os.getpid():
            self._writer = None  # It belongs to the process that this one was forked from.
        if self._writer is not None and self._writer.room < entry_bytes:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = self.files.new_writer(entry_bytes)
        return self._writer


class _PlaceTable:
    """Where entries are, by the first 8 bytes of their keys: 24 bytes per entry, not Python objects for each."""

    def __init__(self) -> None:
        self._sorted: Records = np.empty(0, RECORD)
        self._recent: dict[int, Place | None] = {}

    def find(self, prefix: int) -> Place | None:
        if prefix in self._recent:
            return self._recent[prefix]
        position = int(np.searchsorted(self._sorted["key"], np.uint64(prefix)))
        if position == len(self._sorted) or int(self._sorted["key"][position]) != prefix:
            return None
        record = self._sorted[position]
        return int(record["slab"]), int(record["offset"]), int(record["length"])

    def add(self, records: Records) -> None:
        """Later records go before earlier ones of the same key."""
        if len(records) + len(self._recent) <= MERGE_AT:
            self._recent |= {key: (slab, offset, length) for key, offset, length, slab in records.tolist()}
            return
        forgotten = np.array([key for key, place in self._recent.items() if place is None], "<u8")
        kept = self._sorted[~np.isin(self._sorted["key"], forgotten)]
        recent = [(key, place[1], place[2], place[0]) for key, place in self._recent.items() if place is not None]
        # The latest first: of equal keys, np.unique takes the first.
        candidates = np.concatenate([records[::-1], np.array(recent, RECORD), kept])
        _, first = np.unique(candidates["key"], return_index=True)
        self._sorted, self._recent = candidates[first], {}

    def forget(self, prefix: int) -> None:
        """The entry turned out to be damaged or gone."""
        self._recent[prefix] = None


def _prefix(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")
