"""Reading one feature file (see `schema` for what is in it), from any number of processes and threads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.data.frames import UNLABELLED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.schema import (
    AXES_OF_LAYOUT,
    CHANNEL_FIRST,
    CHANNEL_TIME,
    LOGITS,
    MATRICES,
    PSEUDONYMIZED,
    TIME_CHANNEL,
    TYPES,
    Provenance,
    check_schema,
    read_frame_ids,
)

AGAIN = "extract the video again"
"""The remedy for a file that holds what this program never writes."""

MAX_OPEN_FILES = 64
"""A folder of a thousand videos, read in random order, would pass the usual limit of 1024 open files."""


class FeatureFile:
    """One video's features, read as they are asked for.

    Only the attributes are kept in memory: every array is read from the file at each access. The file is opened when
    first read, in each process anew, so a FeatureFile may be pickled, sent to workers, or used after a fork.

    Attributes:
        video_id, patient_id, split: of the video. fps: frames per second of the frame numbers.
        phase_names: in label order. provenance: how the file was made.
        num_frames, num_phases, num_channels: T, C and D. has_logits: whether the weights had a classifier of phases.
        attributes: all root attributes as Python values.

    Raises:
        SpatialfeatError: not an HDF5 file, truncated, not made by this program, or of another schema version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stamp = _stamp_of(self.path)
        try:
            with self._opened() as file:
                self.attributes = check_schema(self.path, file)
                shape = file["features"].shape
                self.has_logits: bool = LOGITS in file
        finally:
            self.close()
        fields = [name for name in Provenance.__dataclass_fields__ if name in self.attributes]
        self.provenance = Provenance(**{name: self.attributes[name] for name in fields})
        self.num_channels: int
        self.num_frames: int
        self.num_channels, self.num_frames = shape if self.provenance.layout == CHANNEL_FIRST else shape[::-1]
        self.video_id: str = self.attributes["video_id"]
        self.patient_id: str = self.attributes["patient_id"]
        self.split: str = self.attributes["split"]
        self.num_phases = len(self.provenance.phase_names)

    @property
    def recipe(self) -> Provenance:
        """The old name of `provenance`."""
        return self.provenance

    @property
    def fps(self) -> float:
        return self.provenance.fps

    @property
    def phase_names(self) -> tuple[str, ...]:
        return self.provenance.phase_names

    @property
    def is_pseudonymized(self) -> bool:
        """Whether `extract --pseudonymize` wrote the file."""
        return PSEUDONYMIZED in self.attributes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(T,) int64: phase, -100 where unlabelled."""
        return self._vector("labels")

    def phases(self) -> NDArray[np.int64]:
        """`labels`, for those who use them as phases. Raises SpatialfeatError for one that is no phase of the file."""
        labels = self.labels
        wrong = np.flatnonzero(((labels < 0) | (labels >= self.num_phases)) & (labels != UNLABELLED))
        if len(wrong):
            raise SpatialfeatError(
                f"{self.path}: frame {self.frame_ids[wrong[0]]} has label {labels[wrong[0]]}, which is outside "
                f"0..{self.num_phases - 1}; {AGAIN}"
            )
        return labels

    def labels_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Labels of the frames [start, stop), (n,) int64; nothing else is read."""
        return self._vector("labels", start, stop)

    @property
    def segments(self) -> NDArray[np.int64]:
        """(T,) int64: the segment of the operation that each frame is in, 0 where ids have none."""
        return self._vector("segment")

    @property
    def frames(self) -> NDArray[np.int64]:
        """(T,) int64: frame numbers, which increase within a segment and may have gaps."""
        return self._vector("frame")

    @property
    def frame_ids(self) -> NDArray[np.str_]:
        """(T,) str: the frames' ids in time order."""
        with self._opened() as file:
            return read_frame_ids(self.path, file["frame_ids"])

    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Features of the frames [start, stop), or to the end.

        Returns (D, n) float32 for axes="channel,time", (n, D) for "time,channel", whatever the file's layout;
        C-contiguous, in the machine's byte order.

        Raises:
            SpatialfeatError: frames that the video does not have, unknown axes, or a file that cannot be read.
        """
        return self._matrix("features", start, stop, axes)

    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """The classifier's raw scores of the frames [start, stop): (C, n) or (n, C) float32, as `features`.

        Raises SpatialfeatError also for a file without them.
        """
        self.require_logits("logits are asked for")
        return self._matrix("logits", start, stop, axes)

    def require_logits(self, why: str) -> None:
        """Refuse a file without logits. why: what they are needed for, as "tecno needs them"."""
        if not self.has_logits:
            raise SpatialfeatError(
                f"{self.path}: has no logits, because its weights have no classifier of phases, and {why}; "
                "extract with fine-tuned weights"
            )

    def describe_datasets(self) -> list[dict[str, Any]]:
        """Name, shape, dtype (as text) and axes (comma-separated) of each dataset, in the schema's order."""
        with self._opened() as file:
            return [
                {
                    "name": name,
                    "shape": file[name].shape,
                    "dtype": "UTF-8" if name == "frame_ids" else str(file[name].dtype),
                    "axes": AXES_OF_LAYOUT[self.provenance.layout] if name in MATRICES else "time",
                }
                for name in TYPES
                if name in file
            ]

    def close(self) -> None:
        """Close the file in this process. Reading again opens it again."""
        _open_files().close(self.path, self._stamp)

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def __repr__(self) -> str:
        return (
            f"FeatureFile({self.path.name!r}, video {self.video_id}, split {self.split}, "
            f"features ({self.num_channels}, {self.num_frames}), {self.num_phases} phases)"
        )

    def _vector(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        with self._opened() as file:
            return np.asarray(file[name][start:stop], dtype=np.int64)

    def _matrix(self, name: str, start: int, stop: int | None, axes: str) -> NDArray[np.float32]:
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise SpatialfeatError(
                f"{self.path}: frames [{start}, {stop}) of {self.num_frames} were asked for; "
                f"use 0 <= start <= stop <= {self.num_frames}"
            )
        if axes not in (CHANNEL_TIME, TIME_CHANNEL):
            raise SpatialfeatError(f"axes {axes!r}: must be one of {CHANNEL_TIME!r}, {TIME_CHANNEL!r}")
        stored_axes = AXES_OF_LAYOUT[self.provenance.layout]
        with self._opened() as file:
            values = file[name][:, start:stop] if stored_axes == CHANNEL_TIME else file[name][start:stop, :]
        return np.ascontiguousarray(values if axes == stored_axes else values.T, dtype=np.float32)

    def _opened(self) -> AbstractContextManager[h5py.File]:
        return _open_files().lend(self.path, self._stamp)


_Stamp = tuple[int, int, int]
"""Inode, size and time of change: they distinguish a file from a later one of the same name."""

_DAMAGE_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)
"""What h5py raises for a damaged file depends on where the damage is."""


class _OpenFiles:
    """The HDF5 files that one process has open, the least recently used first."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.files: OrderedDict[tuple[Path, _Stamp], h5py.File] = OrderedDict()

    @contextmanager
    def lend(self, path: Path, stamp: _Stamp) -> Iterator[h5py.File]:
        """Lend the open file; no other thread can close it meanwhile.

        Raises SpatialfeatError if it cannot be opened, is not the file of this stamp any more, or proves damaged.
        """
        with self.lock:
            try:
                if (path, stamp) not in self.files:
                    while len(self.files) >= MAX_OPEN_FILES:
                        self.files.popitem(last=False)[1].close()
                    self.files[path, stamp] = _open(path, stamp)
                self.files.move_to_end((path, stamp))
                yield self.files[path, stamp]
            except SpatialfeatError:
                self.close(path, stamp)
                raise
            except _DAMAGE_ERRORS as error:
                self.close(path, stamp)
                reason = _in_one_line(error)
                raise SpatialfeatError(f"{path}: is damaged ({reason}); extract the video again") from error

    def close(self, path: Path, stamp: _Stamp) -> None:
        with self.lock:
            file = self.files.pop((path, stamp), None)
            if file is not None:
                file.close()


_files_of_process = _OpenFiles()


def _open_files() -> _OpenFiles:
    """Those of this process: handles must not cross a fork, or parent and child share one file position and lock."""
    global _files_of_process
    if _files_of_process.pid != os.getpid():
        inherited, _files_of_process = _files_of_process, _OpenFiles()
        # HDF5 would hand out the parent's file again while its copy here is open. Its lock is not taken: a thread
        # that held it at the time of the fork does not exist here.
        for file in inherited.files.values():
            file.close()
    return _files_of_process


def _stamp_of(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{path}: no such feature file; make it with `spatialfeat extract`") from error
    except OSError as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error.strerror}); pass a readable feature file") from error
    if not S_ISREG(stat.st_mode):  # A pipe would be waited for without an end.
        raise SpatialfeatError(f"{path}: cannot be read (no plain file); pass a readable feature file")
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _open(path: Path, stamp: _Stamp) -> h5py.File:
    if _stamp_of(path) != stamp:
        raise SpatialfeatError(f"{path}: has changed since it was opened; open it again")
    try:
        try:
            # As anybody's h5py.File: one process cannot have a file open with HDF5's locks and without.
            return h5py.File(path, "r")
        except OSError:
            # Another program has it open for writing, the drive has no locks, or this process has it open without.
            return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno is not None:
            reason = os.strerror(error.errno).lower()
            raise SpatialfeatError(f"{path}: cannot be read ({reason}); pass a readable feature file") from error
        reason = _in_one_line(error)
        raise SpatialfeatError(
            f"{path}: is not a whole HDF5 file ({reason}); extract the video again, or move the file away"
        ) from error


def _in_one_line(error: BaseException) -> str:
    """h5py's reason without its preamble, e.g. `truncated file: eof = 13262, ...`."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    preamble, _, reason = text.partition(" (")
    return reason[:-1] if preamble.startswith(("Unable to", "Can't")) and reason.endswith(")") else text
