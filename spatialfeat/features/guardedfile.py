"""A file that HDF5 can be closed on even when the disk is full."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path

from spatialfeat.errors import SpatialfeatError


class GuardedFile(io.FileIO):
    """A new file for h5py to write, open in this process alone. `final_path` is what messages name.

    A failed write, on a full disk for example, is kept from HDF5 and raised by `check`. HDF5 itself would try again
    at close and at exit, print a traceback per object, and crash the process.

    Raises:
        SpatialfeatError: another process is writing the file.
    """

    def __init__(self, path: Path, final_path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Locked before it is emptied: what another process is writing must not be lost.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
        except BlockingIOError as error:
            os.close(descriptor)
            raise SpatialfeatError(f"{final_path}: another process is writing this file; wait for it to end") from error
        super().__init__(descriptor, "r+")
        self._final_path = final_path
        self._failure: OSError | None = None

    def write(self, data: object) -> int:
        """Write all of `data`; after the first failure only pretend to."""
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(rest)
        while len(rest) and self._failure is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self._failure = error
        self.seek(len(rest), os.SEEK_CUR)
        return size

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
            reason = os.strerror(self._failure.errno) if self._failure.errno else str(self._failure)
            raise SpatialfeatError(
                f"{self._final_path}: cannot be written ({reason}); make room, or choose another place, and run again"
            ) from self._failure
