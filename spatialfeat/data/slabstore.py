"""Bytes under 16-byte keys in a few large files, written and read by many processes at once.

Each process appends to a slab of its own, so writers never meet. A record is written after its entry, and an entry
carries its whole key and a checksum: what is torn, flipped or not yet there is a miss, never a wrong answer.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import numpy as np

from spatialfeat.data.slabs import HEADER, RECORD, Records, SlabFolder, SlabWriter, StoreFullError

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
