"""Decoded, resized frames on disk (`--cache`), so that a frame is decoded once and not in every epoch.

What is kept of a frame is the result of its transform's fixed steps, uint8, and the digest of its file: an entry for
training, and one for evaluation. Its key is made of the file's real path, size and modification time and of the fixed
steps: a frame that changes, or another way of resizing, has another key.

    CACHEDIR.TAG    marks the folder; its second line names the schema
    slabs/NAME      entries one behind the other, each a header (magic, key, length, checksum) and its content
    index/NAME      a record per entry: first 8 bytes of the key, offset, length

Each process appends to files of its own, so writers never meet. A record is written after its entry, and an entry
carries its whole key and a checksum: what is torn, flipped or not yet there is a miss, never a wrong answer.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.console import count_text
from spatialfeat.data.images import ImageFolder
from spatialfeat.errors import SpatialfeatError

TAG_NAME = "CACHEDIR.TAG"
TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# spatialfeat frame cache, schema 1
#
# Decoded video frames, kept so that training and extraction need not decode them again. The first line asks backup
# programs to leave this folder out. The frames in it are as confidential as the images that they were made from.
# Deleting the folder loses nothing but time, and is safe while no run uses it.
"""

KEEP_FREE_BYTES = 2 * 10**9
"""Left free on the disk: the cache must not be what makes a run fail to write its weights."""
MEASURE_EVERY_BYTES = 64 * 2**20
"""After so many bytes of its own, a process looks again at what all of them have written."""
MAX_OPEN_FILES = 64
MERGE_AT = 4096

MAGIC = b"SFSLAB01"
HEADER = struct.Struct("<8s16sII")
"""Before each entry: magic, key, length of the content in bytes, CRC-32 of key and content."""
RECORD = np.dtype([("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("slab", "<u4")])
"""In the index: the first 8 bytes of the key, where the header begins, length of the content. `slab` is for readers."""

DIGEST_BYTES = 16
_SHAPE = struct.Struct(f"<{DIGEST_BYTES}sII")  # Digest of the image file, height, width; then the pixels, (H, W, 3).
_FROM_CACHE, _DECODED, _WARNED = range(3)

logger = logging.getLogger(__name__)

Place = tuple[int, int, int]
"""Offset of an entry's header, length of its content, number of its slab: as in RECORD."""


class CachedFrame(NamedTuple):
    """pixels: (3, H, W) uint8, laid out in memory as Pillow gives them. digest: 16 bytes, of the image file."""

    pixels: torch.Tensor
    digest: bytes


class FrameCache:
    """The cache of one run, shared by its datasets and their decoding processes.

    Raises:
        SpatialfeatError: `cache_dir` is something else than a cache or a new folder, or cannot be used.
    """

    def __init__(self, cache_dir: Path, limit_gb: float) -> None:
        self._cache_dir = cache_dir
        self._real_dirs: dict[Path, str] = {}
        self._counts = multiprocessing.Array("q", 3)  # Counted by every decoding process of the run.
        _claim_folder(cache_dir)
        try:
            self._store = PackStore(cache_dir, int(limit_gb * 1e9))
        except OSError as error:
            raise _unusable(cache_dir, error) from error

    def key(self, images: ImageFolder, name: str, fixed_steps: str) -> bytes:
        """16 bytes that stand for an image as its file is now, and for what `fixed_steps` describe. Raises OSError.

        Only the folder of the frames is resolved, once: frames that are links count as files of the folder.
        """
        if images.path not in self._real_dirs:
            self._real_dirs[images.path] = os.path.realpath(images.path)
        size_bytes, modified_ns = images.fingerprint(name)
        parts = (self._real_dirs[images.path], images.file_name(name), size_bytes, modified_ns, fixed_steps)
        return blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=16).digest()

    def get(self, key: bytes) -> CachedFrame | None:
        """The frame, or None if it has to be decoded."""
        content = self._store.get(key)
        self._count(_DECODED if content is None else _FROM_CACHE)
        if content is None:
            return None
        digest, height, width = _SHAPE.unpack_from(content)
        pixels = np.frombuffer(content, np.uint8, offset=_SHAPE.size).reshape(height, width, 3)
        return CachedFrame(torch.from_numpy(pixels).permute(2, 0, 1), digest)

    def holds(self, images: ImageFolder, name: str, fixed_steps: str) -> bool:
        """Whether the frame was there when the cache was opened; not whether it is whole, which `get` finds out."""
        try:
            return self._store.holds(self.key(images, name, fixed_steps))
        except OSError:
            return False

    def put(self, key: bytes, frame: CachedFrame) -> None:
        """Store the frame if there is room; the first time that there is none, say so."""
        pixels = frame.pixels.permute(1, 2, 0).contiguous().numpy()
        shape = _SHAPE.pack(frame.digest, *pixels.shape[:2])
        self._store.put(key, shape, pixels.reshape(-1).data)
        if self._store.full is not None and self._count(_WARNED) == 1:
            logger.warning(
                "the frame cache %s takes no more frames: %s; the others are decoded every time. Raise --cache-limit, "
                "choose a --cache folder with more room, or delete what is in it",
                self._cache_dir,
                self._store.full,
            )

    def close(self) -> dict[str, int]:
        """Returns frames_from_cache, frames_decoded and the folder's bytes, as run.json records them."""
        self._store.close()
        num_bytes = 0
        try:
            num_bytes = self._store.usage_bytes()
        except OSError as error:  # A finished study is not lost because its cache is.
            logger.warning("the frame cache %s cannot be read any more (%s)", self._cache_dir, error.strerror)
        num_cached, num_decoded = int(self._counts[_FROM_CACHE]), int(self._counts[_DECODED])
        logger.info(
            "frame cache %s: %s from it, %d decoded; it now holds %.2f GB",
            self._cache_dir,
            count_text(num_cached, "frame"),
            num_decoded,
            num_bytes / 1e9,
        )
        return {"frames_from_cache": num_cached, "frames_decoded": num_decoded, "bytes": num_bytes}

    def _count(self, which: int) -> int:
        with self._counts.get_lock():
            counts: Any = self._counts.get_obj()  # Which takes the lock no second time.
            counts[which] += 1
            return int(counts[which])


def total_use(uses: Sequence[dict[str, int]]) -> dict[str, int]:
    """What processes that share one folder return at `close`, as one: frames add up, the folder's bytes do not."""
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
        # A second run may be claiming the same folder: its unfinished tag does not count as content.
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
        f"--cache {cache_dir}: cannot be used ({error.strerror}); choose a folder that you may write to"
    )


class PackStore:
    """Bytes under 16-byte keys in a few large files, written and read by many processes at once.

    Pickled or forked, it goes on in the other process with files of that process's own. Entries that other processes
    add are found as soon as they are asked for. Faults of the disk raise nothing after the start: what cannot be read
    is a miss, and `full` says why nothing more is written.

    Args:
        folder: an existing folder that is used for nothing else. limit_bytes: about the most that its files may take.
    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._arguments = (folder, limit_bytes)
        self._slabs, self._index, self._limit_bytes = folder / "slabs", folder / "index", limit_bytes
        for path in (self._slabs, self._index):
            path.mkdir(mode=0o700, exist_ok=True)
        self.full: str | None = None
        self._names: list[str] = []
        self._read_bytes: dict[str, int] = {}  # What was read of each index.
        self._places = _PlaceTable()
        self._open_slabs: dict[int, int] = {}
        self._writer: _Writer | None = None
        self._refresh()

    def __getstate__(self) -> tuple[Path, int]:
        return self._arguments

    def __setstate__(self, arguments: tuple[Path, int]) -> None:
        self.__init__(*arguments)  # type: ignore[misc]

    def get(self, key: bytes) -> memoryview | None:
        """The content stored under `key`, writable and not shared, or None."""
        prefix = _prefix(key)
        while (place := self._find(prefix)) is not None:
            content = self._read(place, key)
            if content is not None:
                return content
            self._places.forget(prefix)  # Another process may have replaced it.
        return None

    def holds(self, key: bytes) -> bool:
        """Whether there was such a key at the last look into the indexes. May be asked by many threads."""
        return self._places.find(_prefix(key)) is not None

    def put(self, key: bytes, *parts: bytes | memoryview) -> None:
        """Store the joined parts, unless they are stored already or `full` says why nothing is stored."""
        if self.full is not None or self._find(_prefix(key)) is not None:
            return
        length, checksum = sum(map(len, parts)), zlib.crc32(key)
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        try:
            writer = self._writer_of_this_process()
            if writer.bytes_before_measuring < HEADER.size + length + RECORD.itemsize:
                self.full = self._why_full(HEADER.size + length + RECORD.itemsize)
                if self.full is not None:
                    return
                writer.bytes_before_measuring = min(MEASURE_EVERY_BYTES, self._limit_bytes // 256)
            writer.append(_prefix(key), [HEADER.pack(MAGIC, key, length, checksum), *parts])
        except OSError as error:
            self.full = error.strerror or str(error)
            # If the disk is full, the run's own files want the space more than the cache does.
            if self._writer is not None:
                self._writer.remove()

    def usage_bytes(self) -> int:
        """Bytes of all files. Raises OSError."""
        return sum(entry.stat().st_size for folder in (self._slabs, self._index) for entry in os.scandir(folder))

    def close(self) -> None:
        """Close the files of this process."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close()
        self._writer = None
        while self._open_slabs:
            os.close(self._open_slabs.popitem()[1])

    def _find(self, prefix: int) -> Place | None:
        place = self._places.find(prefix)
        if place is None:
            self._refresh()
            place = self._places.find(prefix)
        return place

    def _refresh(self) -> None:
        """Read what the indexes have gained since the last time, the oldest first: of two entries the later counts."""
        try:
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self._index)}
        except OSError as error:  # Somebody deletes the folder while it is in use.
            self.full = error.strerror or str(error)
            return
        for name in sorted(sizes):
            if name not in self._read_bytes:
                self._read_bytes[name] = 0
                self._names.append(name)
            start = self._read_bytes[name]
            if sizes[name] - start < RECORD.itemsize:
                continue
            with suppress(OSError), (self._index / name).open("rb") as file:
                file.seek(start)
                content = file.read()
                records = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize).copy()
                records["slab"] = self._names.index(name)
                self._read_bytes[name] = start + records.nbytes
                self._places.add(records)

    def _read(self, place: Place, key: bytes) -> memoryview | None:
        offset, length, slab = place
        try:
            descriptor = self._open(slab)
            if offset + HEADER.size + length > os.fstat(descriptor).st_size:
                return None
            entry = np.empty(HEADER.size + length, np.uint8).data  # Unlike a bytearray, not filled with zeros.
            if os.preadv(descriptor, [entry], offset) != len(entry):
                return None
        except OSError:  # Deleted, here or on another machine of a network file system.
            return None
        content = entry[HEADER.size :]
        expected = (MAGIC, key, length, zlib.crc32(content, zlib.crc32(key)))
        return content if HEADER.unpack_from(entry) == expected else None

    def _open(self, slab: int) -> int:
        if slab not in self._open_slabs:
            if len(self._open_slabs) >= MAX_OPEN_FILES:
                os.close(self._open_slabs.pop(next(iter(self._open_slabs))))
            self._open_slabs[slab] = os.open(self._slabs / self._names[slab], os.O_RDONLY)
        return self._open_slabs[slab]

    def _writer_of_this_process(self) -> _Writer:
        if self._writer is None or self._writer.pid != os.getpid():  # It belongs to the process that was forked.
            name = f"{time.time_ns():016x}-{secrets.token_hex(4)}"
            self._writer = _Writer(self._slabs / name, self._index / name)
        return self._writer

    def _why_full(self, more_bytes: int) -> str | None:
        used = self.usage_bytes()
        if used + more_bytes > self._limit_bytes:
            return f"{used / 1e9:.2f} GB of at most {self._limit_bytes / 1e9:.2f} GB are taken"
        disk = os.statvfs(self._slabs)
        if disk.f_bavail * disk.f_frsize - more_bytes < KEEP_FREE_BYTES:
            return f"less than {KEEP_FREE_BYTES / 1e9:.0f} GB are free on the disk"
        return None


class _Writer:
    """The two files that one process appends to."""

    def __init__(self, slab_path: Path, index_path: Path) -> None:
        self.pid = os.getpid()
        self.bytes_before_measuring = 0
        self._paths, self._end = (slab_path, index_path), 0
        # Unbuffered: an entry is in its file before its record is.
        self._slab, self._index = (path.open("xb", buffering=0) for path in self._paths)

    def append(self, prefix: int, parts: Sequence[bytes | memoryview]) -> None:
        """Write an entry, header first, then its record. An entry that cannot be written whole gets no record."""
        size = sum(map(len, parts))
        if os.writev(self._slab.fileno(), parts) != size:
            raise OSError("the disk took only a part of an entry")
        self._index.write(np.array([(prefix, self._end, size - HEADER.size, 0)], RECORD).tobytes())
        self._end += size
        self.bytes_before_measuring -= size + RECORD.itemsize

    def close(self) -> None:
        self._index.close()
        self._slab.close()

    def remove(self) -> None:
        """Give up the files with everything in them."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self.close()


class _PlaceTable:
    """Where entries are, by the first 8 bytes of their keys: 24 bytes per entry, not Python objects for each."""

    def __init__(self) -> None:
        self._sorted: NDArray[Any] = np.empty(0, RECORD)
        self._recent: dict[int, Place | None] = {}

    def find(self, prefix: int) -> Place | None:
        if prefix in self._recent:
            return self._recent[prefix]
        position = int(np.searchsorted(self._sorted["key"], np.uint64(prefix)))
        if position == len(self._sorted) or int(self._sorted["key"][position]) != prefix:
            return None
        _, offset, length, slab = self._sorted[position].item()
        return offset, length, slab

    def add(self, records: NDArray[Any]) -> None:
        """records: (N,) RECORD. Later ones go before earlier ones of the same key."""
        self._recent |= {key: (offset, length, slab) for key, offset, length, slab in records.tolist()}
        if len(self._recent) <= MERGE_AT:
            return
        kept = self._sorted[~np.isin(self._sorted["key"], np.fromiter(self._recent, "<u8", len(self._recent)))]
        recent = [(key, *place) for key, place in self._recent.items() if place is not None]
        merged = np.concatenate([kept, np.array(recent, RECORD)])
        self._sorted, self._recent = merged[np.argsort(merged["key"])], {}

    def forget(self, prefix: int) -> None:
        """The entry turned out to be damaged or gone."""
        self._recent[prefix] = None


def _prefix(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")
