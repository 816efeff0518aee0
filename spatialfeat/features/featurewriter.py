"""Writes feature files: see `featurefile` for the schema."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError, os_errors_named
from spatialfeat.features.featureschema import (
    CHANNEL_TIME,
    FORMAT,
    SCHEMA,
    SUFFIX,
    TIME_CHANNEL,
    TIME_FIRST,
    Recipe,
    VideoHeader,
)
from spatialfeat.features.guardedfile import GuardedFile
from spatialfeat.files import commit

FRAMES_PER_CHUNK = 64
"""64 frames of 2048 float32 are half a megabyte: small enough for a window, large enough for a whole read."""

logger = logging.getLogger(__name__)

TEXT = h5py.string_dtype("utf-8")


PARTIAL_SUFFIX = ".partial"


def remove_partial_files(out_dir: Path) -> None:
    """Remove what killed extractions have left in a folder; a file that another process is writing stays."""
    for path in out_dir.glob(f".*{SUFFIX}{PARTIAL_SUFFIX}"):
        try:
            with GuardedFile(path, path):
                path.unlink(missing_ok=True)
        except SpatialfeatError as error:
            logger.info("%s", error)


class FeatureFileWriter:
    """Writes one video's file block by block, so memory does not grow with the video.

    The file has a temporary name until `finish`; leaving the `with` block without it removes the file.
    Raises SpatialfeatError if another process is writing the same video, or the disk is full.
    """

    def __init__(self, path: Path, header: VideoHeader, recipe: Recipe, versions: dict[str, str]) -> None:
        self.video_id = header.video_id
        self._final_path = path
        self._temporary_path = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        self._num_frames = len(header.labels)
        self._written = 0
        self._finished = False
        self._time_first = recipe.layout == TIME_FIRST
        self._pending: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._guard = GuardedFile(self._temporary_path, path)
        self._file = h5py.File(self._guard, "w")
        try:
            self._write_header(header, recipe, versions)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> FeatureFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            self.discard()

    def append(self, features: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Add the next frames: features (B, 2048) float32, logits (B, C) float32, in time order."""
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
        with os_errors_named(self._final_path):
            commit(self._temporary_path, self._final_path)
        self._guard.close()
        self._finished = True

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        self._guard.close()
        self._temporary_path.unlink(missing_ok=True)

    def _write_header(self, header: VideoHeader, recipe: Recipe, versions: dict[str, str]) -> None:
        self._file.attrs.update({"format": FORMAT, "schema": SCHEMA})
        self._file.attrs.update({"video_id": header.video_id, "patient_id": header.patient_id, "split": header.split})
        for name in recipe.__dataclass_fields__:
            value = getattr(recipe, name)
            if isinstance(value, tuple):
                self._file.attrs.create(name, list(value), dtype=TEXT)
            else:
                self._file.attrs[name] = value
        self._file.attrs["versions"] = json.dumps(versions, sort_keys=True)
        self._file.create_dataset("frame_ids", data=header.frame_ids.astype(object), dtype=TEXT)
        for name, values in (("labels", header.labels), ("segment", header.segments), ("frame", header.frames)):
            self._file.create_dataset(name, data=values.astype("<i8"))
            self._file[name].dims[0].label = "time"
        self._file["frame_ids"].dims[0].label = "time"

    def _flush(self, num_frames: int) -> None:
        if num_frames == 0:
            return
        features = np.concatenate([block for block, _ in self._pending])
        logits = np.concatenate([block for _, block in self._pending])
        for name, values in (("features", features), ("logits", logits)):
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
