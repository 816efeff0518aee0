"""A file that HDF5 can be closed on even when the disk is full."""

from __future__ import annotations

import fcntl
import io
import os
import time
from pathlib import Path

from spatialfeat.errors import SpatialfeatError, describe_os_error, os_errors_named
from spatialfeat.files import is_name_of

LOCK_ATTEMPTS = 4
SECONDS_BETWEEN_ATTEMPTS = 0.05


class GuardedFile(io.FileIO):
    """A new file for h5py to write, open in this process alone. `final_path` is what messages name.

    A failed write, on a full disk for example, is kept from HDF5 and raised by `check`. HDF5 itself would try again
    at close and at exit, print a traceback per object, and crash the process. It also reads back what it has written,
    and crashes on anything else: what could not be written is remembered, until `check` ends the file.

    Raises:
        SpatialfeatError: another process is writing the file.
    """

    def __init__(self, path: Path, final_path: Path) -> None:
        with os_errors_named(final_path):
            super().__init__(_open_locked(path, final_path), "r+")
        self._final_path = final_path
        self._failure: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def write(self, data: object) -> int:
        """Write all of `data`; after the first failure only pretend to."""
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(rest)
        while len(rest) and self._failure is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self._failure = error
        if len(rest):
            self._unwritten.append((self.tell(), bytes(rest)))
            self.seek(len(rest), os.SEEK_CUR)
        return size

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` with what was written here, or pretended to be; zeros where nothing was."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        start = self.tell()
        num_read = 0
        while num_read < len(view) and (more := super().readinto(view[num_read:])):
            num_read += more
        if self._failure is None:
            return num_read
        view[num_read:] = bytes(len(view) - num_read)
        for position, data in self._unwritten:
            first, last = max(position, start), min(position + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - position : last - position]
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size; after the first failure only pretend to."""
        size = self.tell() if size is None else size
        if self._failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self._failure = error
        return size

    def check(self) -> None:
        """Raise SpatialfeatError if a write has failed."""
        if self._failure is not None:
            message = describe_os_error(self._failure, self._final_path)
            raise SpatialfeatError(
                message or f"{self._final_path}: cannot be written ({self._failure}); choose another place"
            ) from self._failure


def _open_locked(path: Path, final_path: Path) -> int:
    """The descriptor of the empty file `path`, which no other process of this program writes to."""
    for attempt in range(LOCK_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Locked before it is emptied: what another process is writing must not be lost.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have finished between the two calls: then this is its finished file, under the final name.
            if is_name_of(path, descriptor):
                os.ftruncate(descriptor, 0)
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            # One that is only looking whether the file was left behind holds it for a moment.
            time.sleep(SECONDS_BETWEEN_ATTEMPTS if attempt < LOCK_ATTEMPTS - 1 else 0)
        except BaseException:
            os.close(descriptor)
            raise
    raise SpatialfeatError(f"{final_path}: another process is writing this file; wait for it to end")
