"""The HDF5 feature file, schema 1: one file per video. The only module that imports h5py.

    features   (2048, T) float32   activations after global average pooling; (T, 2048) in the time-first layout
    logits     (C, T) float32      the classifier's raw scores; (T, C) in the time-first layout
    labels     (T,) int64          phase, -100 where unlabelled
    frame_ids  (T,) UTF-8          the ids, in time order
    segment    (T,) int64          the parsed fields of the ids
    frame      (T,) int64

The root attributes tell how the file came to be: see `Recipe` and `VideoHeader`. Both axes of `features` and `logits`
are named: attribute `axes` ("channel,time" or "time,channel") and HDF5 dimension labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import commit

FORMAT = "spatialfeat features"
SCHEMA = 1
SUFFIX = ".h5"
FRAMES_PER_CHUNK = 64
"""64 frames of 2048 float32 are half a megabyte: small enough for a window, large enough for a whole read."""

TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What must be equal for two feature files to be used together."""

    weights_sha256: str
    phase_names: tuple[str, ...]
    preprocessing: str
    precision: str
    backbone: str
    layer: str
    layout: str
    group_by: str
    fps: float

    def differences(self, other: Recipe) -> list[str]:
        """Names of the fields that differ."""
        return [name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a file says of its video before the first feature is written. All arrays have T entries, in time order."""

    video_id: str
    patient_id: str
    split: str
    frame_ids: NDArray[Any]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    frames: NDArray[np.int64]


class FeatureFileWriter:
    """Writes one video's file block by block, so memory does not grow with the video.

    The file has a temporary name until `finish`; leaving the `with` block without it removes the file.
    Raises SpatialfeatError if another process is writing the same video.
    """

    def __init__(self, path: Path, header: VideoHeader, recipe: Recipe, versions: dict[str, str]) -> None:
        self.video_id = header.video_id
        self._final_path = path
        self._temporary_path = path.with_name(f".{path.name}.partial")
        self._num_frames = len(header.labels)
        self._written = 0
        self._finished = False
        self._time_first = recipe.layout == "time-first"
        self._pending: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        try:
            self._file = h5py.File(self._temporary_path, "w")
        except BlockingIOError as error:
            raise SpatialfeatError(f"{path}: another process is writing this file; wait for it to end") from error
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
        commit(self._temporary_path, self._final_path)
        self._finished = True

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
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
        self._written += num_frames
        self._pending = [(features[num_frames:], logits[num_frames:])]

    def _create_matrix(self, name: str, channels: int) -> None:
        frames_per_chunk = min(FRAMES_PER_CHUNK, self._num_frames)
        shape, chunks = (channels, self._num_frames), (channels, frames_per_chunk)
        axes = ("channel", "time")
        if self._time_first:
            shape, chunks, axes = shape[::-1], chunks[::-1], axes[::-1]
        dataset = self._file.create_dataset(name, shape, dtype="<f4", chunks=chunks)
        dataset.attrs["axes"] = ",".join(axes)
        for index, axis in enumerate(axes):
            dataset.dims[index].label = axis


@dataclass(frozen=True)
class FeatureFileInfo:
    """The small part of a feature file: everything but features and logits. Arrays have T entries, in time order."""

    path: Path
    recipe: Recipe
    header: VideoHeader
    attributes: dict[str, Any]


def read_info(path: Path) -> FeatureFileInfo:
    """Read and check a file's description without loading its features.

    Raises:
        SpatialfeatError: not an HDF5 file, truncated, not made by this program, or of another schema version.
    """
    with open_feature_file(path) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        recipe = Recipe(**{name: attributes[name] for name in Recipe.__dataclass_fields__})
        header = VideoHeader(
            video_id=attributes["video_id"],
            patient_id=attributes["patient_id"],
            split=attributes["split"],
            frame_ids=file["frame_ids"].asstr()[()],
            labels=file["labels"][()],
            segments=file["segment"][()],
            frames=file["frame"][()],
        )
    return FeatureFileInfo(path, recipe, header, attributes)


def open_feature_file(path: Path) -> h5py.File:
    """Open a feature file for reading and check that it is whole and of this schema.

    Raises:
        SpatialfeatError: see `read_info`.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{path}: no such feature file; make it with `spatialfeat extract`") from error
    except OSError as error:
        raise SpatialfeatError(f"{path}: is not a whole HDF5 file ({error}); extract the video again") from error
    try:
        _check_schema(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_schema(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise SpatialfeatError(f"{path}: is not a feature file of spatialfeat; keep other files elsewhere")
    if file.attrs.get("schema") != SCHEMA:
        raise SpatialfeatError(
            f"{path}: has schema {file.attrs.get('schema')}, this version reads schema {SCHEMA}; "
            "use the version of spatialfeat that made it, or extract again"
        )
    datasets = ("features", "logits", "labels", "frame_ids", "segment", "frame")
    attributes = ("video_id", "patient_id", "split", *Recipe.__dataclass_fields__)
    missing = [name for name in datasets if name not in file] + [name for name in attributes if name not in file.attrs]
    if missing:
        raise SpatialfeatError(f"{path}: lacks {', '.join(missing)}; extract the video again")
    time_axis = 0 if file.attrs["layout"] == "time-first" else 1
    lengths = {name: file[name].shape[time_axis if name in ("features", "logits") else 0] for name in datasets}
    if len(set(lengths.values())) != 1:
        raise SpatialfeatError(f"{path}: datasets differ in length {lengths}; extract the video again")


def _plain(value: Any) -> Any:
    """HDF5 attribute values as Python values."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
