"""Open HDF5 files of this process: opened when first read, a bounded number at a time, never carried to another one.

HDF5 handles must not cross a fork: parent and child would share one file position and one lock. And a folder of a
thousand videos, read in random order, would pass the usual limit of 1024 open files.

Read feature files: see `featureschema` for what is in one.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.schema import (
    AXES_OF_LAYOUT,
    CHANNEL_TIME,
    MATRICES,
    PSEUDONYMIZED,
    TIME_CHANNEL,
    VECTORS,
    FeatureFileInfo,
    Provenance,
    VideoHeader,
    channels_and_frames,
    check_schema,
    read_names,
)

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


class FeatureFile:
    """One video's features, read as they are asked for.

    Only the attributes are kept in memory: every array is read from the file at each access. The file is opened when
    first read, in each process anew, so a FeatureFile may be pickled, sent to workers, or used after a fork.

    Attributes:
        video_id, patient_id, split: of the video. fps: frames per second of the frame numbers.
        phase_names: one per class, in label order. provenance: how the file was made.
        num_frames, num_phases, num_channels: T, C and 2048. attributes: all root attributes as Python values.

    Raises:
        SpatialfeatError: not an HDF5 file, truncated, not made by this program, or of another schema version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stamp = stamp_of(self.path)
        try:
            with opened(self.path, self._stamp) as file:
                self.attributes = check_schema(self.path, file)
                self.num_channels, self.num_frames = channels_and_frames(file["features"])
        finally:
            self.close()
        self.provenance = Provenance(**{name: self.attributes[name] for name in Provenance.__dataclass_fields__})
        self.video_id: str = self.attributes["video_id"]
        self.patient_id: str = self.attributes["patient_id"]
        self.split: str = self.attributes["split"]
        self.num_phases = len(self.provenance.phase_names)

    @property
    def is_pseudonymized(self) -> bool:
        """Whether `extract --pseudonymize` wrote the file."""
        return PSEUDONYMIZED in self.attributes

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that the video is read from: this one."""
        return (self.path,)

    @property
    def fps(self) -> float:
        return self.provenance.fps

    @property
    def phase_names(self) -> tuple[str, ...]:
        return self.provenance.phase_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """(T,) int64: phase, -100 where unlabelled."""
        return self._vector("labels")

    def labels_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Labels of the frames [start, stop), (n,) int64; nothing else is read."""
        with opened(self.path, self._stamp) as file:
            return np.asarray(file["labels"][start:stop], dtype=np.int64)

    @property
    def segments(self) -> NDArray[np.int64]:
        """(T,) int64: the video segment of each frame, 0 where ids have none."""
        return self._vector("segment")

    @property
    def frames(self) -> NDArray[np.int64]:
        """(T,) int64: frame numbers, which increase within a segment and may have gaps."""
        return self._vector("frame")

    @property
    def frame_ids(self) -> NDArray[np.str_]:
        """(T,) str: the frames' ids in time order."""
        with opened(self.path, self._stamp) as file:
            try:
                ids = read_names(file["frame_ids"])
            except SpatialfeatError as error:
                raise SpatialfeatError(f"{self.path}: {error}; extract the video again") from error
        return np.asarray(ids, dtype=np.str_)

    @property
    def info(self) -> FeatureFileInfo:
        """Everything but features and logits."""
        header = VideoHeader(
            video_id=self.video_id,
            patient_id=self.patient_id,
            split=self.split,
            frame_ids=self.frame_ids,
            labels=self.labels,
            segments=self.segments,
            frame_numbers=self.frames,
        )
        return FeatureFileInfo(self.path, self.provenance, header, self.attributes)

    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Features of the frames [start, stop), or to the end.

        Returns (2048, n) float32 for axes="channel,time", (n, 2048) for "time,channel", whatever the file's layout;
        C-contiguous, in the machine's byte order.

        Raises:
            SpatialfeatError: frames that the video does not have, unknown axes, or a file that cannot be read.
        """
        return self._matrix("features", start, stop, axes)

    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """The classifier's raw scores of the frames [start, stop): (C, n) or (n, C) float32, as `features`."""
        return self._matrix("logits", start, stop, axes)

    def describe_datasets(self) -> list[dict[str, Any]]:
        """Name, shape, dtype (as text) and axes (comma-separated) of each dataset, in the schema's order."""
        with opened(self.path, self._stamp) as file:
            return [
                {
                    "name": name,
                    "shape": file[name].shape,
                    "dtype": "UTF-8" if name == "frame_ids" else str(file[name].dtype),
                    "axes": AXES_OF_LAYOUT[self.provenance.layout] if name in MATRICES else "time",
                }
                for name in (*MATRICES, *VECTORS)
            ]

    def close(self) -> None:
        """Close the file in this process. Reading again opens it again."""
        close(self.path, self._stamp)

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def __repr__(self) -> str:
        return (
            f"FeatureFile({self.path.name!r}, video {self.video_id}, split {self.split}, "
            f"features ({self.num_channels}, {self.num_frames}), {self.num_phases} phases)"
        )

    def _vector(self, name: str) -> NDArray[np.int64]:
        with opened(self.path, self._stamp) as file:
            return np.asarray(file[name][()], dtype=np.int64)

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
        with opened(self.path, self._stamp) as file:
            values = file[name][:, start:stop] if stored_axes == CHANNEL_TIME else file[name][start:stop, :]
        return np.ascontiguousarray(values if axes == stored_axes else values.T, dtype=np.float32)


def read_info(path: Path) -> FeatureFileInfo:
    """Read and check a file's description without loading its features.

    Raises:
        SpatialfeatError: see `FeatureFile`.
    """
    with FeatureFile(path) as file:
        return file.info
