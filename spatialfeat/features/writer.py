"""Writes feature files: the network's outputs, cut into one file per video. `schema` says what is in one."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import CPU_DECODER
from spatialfeat.console import count_text
from spatialfeat.data.dataset import describe_broken_image
from spatialfeat.data.frames import Video
from spatialfeat.errors import SpatialfeatError, describe_os_error, translate_os_errors
from spatialfeat.features.plan import feature_path, fingerprints_digest, video_header
from spatialfeat.features.schema import (
    CHANNEL_TIME,
    DATA_SET,
    FORMAT,
    IMAGES_CONTENT,
    IMAGES_STAT,
    LOGITS,
    PSEUDONYMIZED,
    SCHEMA,
    SUFFIX,
    TIME_CHANNEL,
    TIME_FIRST,
    WEIGHTS_ORIGIN,
    Provenance,
    VideoHeader,
)
from spatialfeat.files import commit, is_name_of
from spatialfeat.network.inference import NOT_FINITE, FrameOutputs
from spatialfeat.runrecord import library_versions

LOCK_ATTEMPTS = 4
SECONDS_BETWEEN_ATTEMPTS = 0.05

FRAMES_PER_CHUNK = 64
"""64 frames of 2048 float32 are half a megabyte: small enough for a window, large enough for a whole read."""

TEXT = h5py.string_dtype("utf-8")
PARTIAL_SUFFIX = ".partial"

logger = logging.getLogger(__name__)


def remove_partial_files(out_dir: Path) -> None:
    """Remove what killed extractions have left in a folder; a file that another process is writing stays."""
    for path in out_dir.glob(f".*{SUFFIX}{PARTIAL_SUFFIX}"):
        try:
            with GuardedFile(path, path):
                path.unlink(missing_ok=True)
        except SpatialfeatError as error:
            logger.info("%s", error)


class FeatureSink:
    """Takes the network's outputs in the order of the frames and cuts them into one file per video.

    written: ids of the videos that are finished. failed: {id: reason} of those that get no file.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        out_dir: Path,
        provenance: Provenance,
        *,
        pseudonymized: bool,
        weights_origin: str = "",
        data_set: str = "",
    ) -> None:
        self.videos = videos
        self.written: list[str] = []
        self.failed: dict[str, str] = {}
        self._attributes = {PSEUDONYMIZED: "yes"} if pseudonymized else {}
        self._attributes |= {
            name: text for name, text in ((WEIGHTS_ORIGIN, weights_origin), (DATA_SET, data_set)) if text
        }
        self._out_dir, self._provenance = out_dir, provenance
        self._ends = np.cumsum([len(video) for video in videos])
        self._versions = library_versions()
        self._writer: FeatureFileWriter | None = None
        self._images_digest = hashlib.sha256()

    def take(self, outputs: FrameOutputs) -> None:
        """Write the frames of one batch. A frame without features fails its video, never a single row."""
        for row, reason in outputs.failures:
            video, table_row = self._locate(row)
            self._fail(video, describe_broken_image(video.table, table_row, reason))
        for row in outputs.not_finite():
            video, table_row = self._locate(row)
            self._fail(video, f"{video.table.where(table_row)}: {NOT_FINITE}")
        video_of_row = np.searchsorted(self._ends, outputs.positions, side="right")
        for index in np.unique(video_of_row).tolist():
            mine = np.flatnonzero(video_of_row == index)
            video = self.videos[index]
            if video.video_id not in self.failed:
                self._append(video, outputs.features[mine], outputs.logits[mine], [outputs.digests[i] for i in mine])
            if outputs.positions[mine[-1]] == self._ends[index] - 1:
                self._finish(video)

    def progress(self) -> str:
        """`2 of 7 videos are finished and kept: 1050_1, 1050_2`."""
        names = f": {', '.join(self.written)}" if self.written else ""
        return f"{len(self.written)} of {count_text(len(self.videos), 'video')} are finished and kept{names}"

    def close(self) -> None:
        """Remove the file of the video that was not finished."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(
        self, video: Video, features: NDArray[np.float32], logits: NDArray[np.float32], digests: list[bytes]
    ) -> None:
        if self._writer is None:
            path = feature_path(self._out_dir, video)
            self._writer = FeatureFileWriter(path, video_header(video), self._provenance, self._versions)
            self._images_digest = hashlib.sha256()
        self._writer.append(features, logits)
        self._images_digest.update(b"".join(digests))

    def _finish(self, video: Video) -> None:
        if self._writer is None:
            return
        try:
            stat = fingerprints_digest(video)
        except FileNotFoundError as error:
            self._fail(video, f"{error.filename}: was removed while the video was extracted")
            return
        digests = {IMAGES_STAT: stat, IMAGES_CONTENT: self._images_digest.hexdigest()}
        self._writer.finish(**digests, **self._attributes)
        self._writer = None
        self.written.append(video.video_id)

    def _locate(self, row: int) -> tuple[Video, int]:
        """The video that a row of the dataset belongs to, and the row of the video's table."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        video = self.videos[index]
        return video, int(video.rows[row - (self._ends[index] - len(video))])

    def _fail(self, video: Video, reason: str) -> None:
        self.failed.setdefault(video.video_id, reason)
        if self._writer is not None and self._writer.video_id == video.video_id:
            self.close()


class FeatureFileWriter:
    """Writes one video's file block by block, so memory does not grow with the video.

    The file has a temporary name until `finish`; `close` without it removes the file.
    Raises SpatialfeatError if another process is writing the same video, or the disk is full.
    """

    def __init__(self, path: Path, header: VideoHeader, provenance: Provenance, versions: dict[str, str]) -> None:
        self.video_id = header.video_id
        self._final_path = path
        self._temporary_path = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        self._num_frames = len(header.labels)
        self._written = 0
        self._finished = False
        self._time_first = provenance.layout == TIME_FIRST
        self._pending: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._guard = GuardedFile(self._temporary_path, path)
        self._file = h5py.File(self._guard, "w")
        try:
            self._write_header(header, provenance, versions)
        except BaseException:
            self.close()
            raise

    def append(self, features: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Add the next frames: features (B, D) float32, logits (B, C) float32, in time order; C may be 0."""
        assert features.dtype == logits.dtype == np.float32
        assert len(features) == len(logits)
        self._pending.append((features, logits))
        pending = sum(len(block) for block, _ in self._pending)
        # Whole chunks only: a chunk that is written in two parts is read back in between.
        if pending >= FRAMES_PER_CHUNK:
            self._flush(pending - pending % FRAMES_PER_CHUNK)

    def finish(self, **attributes: str) -> None:
        """Write what is left and `attributes`, then give the file its final name."""
        self._flush(sum(len(block) for block, _ in self._pending))
        assert self._written == self._num_frames, f"{self._written} of {self._num_frames} frames were written"
        self._file.attrs.update(attributes)
        self._file.close()
        self._guard.check()
        # The file stays locked until it has its name: another process would empty it in between.
        with translate_os_errors(self._final_path):
            commit(self._temporary_path, self._final_path)
        self._guard.close()
        self._finished = True

    def close(self) -> None:
        """Remove the file, unless it is finished."""
        if self._finished:
            return
        self._file.close()
        self._guard.close()
        self._temporary_path.unlink(missing_ok=True)

    def _write_header(self, header: VideoHeader, provenance: Provenance, versions: dict[str, str]) -> None:
        self._file.attrs.update({"format": FORMAT, "schema": SCHEMA})
        self._file.attrs.update({"video_id": header.video_id, "patient_id": header.patient_id, "split": header.split})
        for name in provenance.__dataclass_fields__:
            value = getattr(provenance, name)
            if name == "jpeg_decoder" and value == CPU_DECODER:
                continue  # As in the files of versions that knew nothing else.
            if isinstance(value, tuple):
                self._file.attrs.create(name, list(value), dtype=TEXT)
            else:
                self._file.attrs[name] = value
        self._file.attrs["versions"] = json.dumps(versions, sort_keys=True)
        self._file.create_dataset("frame_ids", data=header.frame_ids.astype(object), dtype=TEXT)
        for name, values in (("labels", header.labels), ("segment", header.segments), ("frame", header.frame_numbers)):
            self._file.create_dataset(name, data=values.astype("<i8"))
            self._file[name].dims[0].label = "time"
        self._file["frame_ids"].dims[0].label = "time"

    def _flush(self, num_frames: int) -> None:
        if num_frames == 0:
            return
        features = np.concatenate([block for block, _ in self._pending])
        logits = np.concatenate([block for _, block in self._pending])
        for name, values in (("features", features), (LOGITS, logits)):
            if values.shape[1] == 0:
                continue
            if name not in self._file:
                self._create_matrix(name, values.shape[1])
            block, where = values[:num_frames], slice(self._written, self._written + num_frames)
            if self._time_first:
                self._file[name][where, :] = block
            else:
                self._file[name][:, where] = block.T
        self._guard.check()
        self._written += num_frames
        self._pending = [(features[num_frames:], logits[num_frames:])]

    def _create_matrix(self, name: str, channels: int) -> None:
        frames_per_chunk = min(FRAMES_PER_CHUNK, self._num_frames)
        shape, chunks = (channels, self._num_frames), (channels, frames_per_chunk)
        if self._time_first:
            shape, chunks = shape[::-1], chunks[::-1]
        dataset = self._file.create_dataset(name, shape, dtype="<f4", chunks=chunks)
        axes = TIME_CHANNEL if self._time_first else CHANNEL_TIME
        dataset.attrs["axes"] = axes
        for index, axis in enumerate(axes.split(",")):
            dataset.dims[index].label = axis


class GuardedFile(io.FileIO):
    """A new file for h5py to write, open in this process alone. `final_path` is what messages name.

    A failed write, on a full disk for example, is kept from HDF5 and raised by `check`. HDF5 itself would try again
    at close and at exit, print a traceback per object, and crash the process. It also reads back what it has written,
    and crashes on anything else: what could not be written is remembered, until `check` ends the file.

    Raises:
        SpatialfeatError: another process is writing the file.
    """

    def __init__(self, path: Path, final_path: Path) -> None:
        with translate_os_errors(final_path):
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
