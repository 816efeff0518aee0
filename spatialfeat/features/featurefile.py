"""The HDF5 feature file, schema 1: one file per video. `featurewriter` writes it, this module checks and reads it.

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

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features import featurehandles
from spatialfeat.features.featurehandles import attributes_of, plain

FORMAT = "spatialfeat features"
SCHEMA = 1
SUFFIX = ".h5"
CHANNEL_FIRST, TIME_FIRST = "channel-first", "time-first"
CHANNEL_TIME, TIME_CHANNEL = "channel,time", "time,channel"
AXES_OF_LAYOUT = {CHANNEL_FIRST: CHANNEL_TIME, TIME_FIRST: TIME_CHANNEL}

_MATRICES, _VECTORS = ("features", "logits"), ("labels", "frame_ids", "segment", "frame")


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


@dataclass(frozen=True)
class FeatureFileInfo:
    """The small part of a feature file: everything but features and logits. Arrays have T entries, in time order."""

    path: Path
    recipe: Recipe
    header: VideoHeader
    attributes: dict[str, Any]


class FeatureFile:
    """One video's features, read as they are asked for.

    Only the attributes are kept in memory: every array is read from the file at each access. The file is opened when
    first read, in each process anew, so a FeatureFile may be pickled, sent to workers, or used after a fork.

    Attributes:
        video_id, patient_id, split: of the video. fps: frames per second of the frame numbers.
        phase_names: one per class, in label order. recipe: how the file was made.
        num_frames, num_phases, num_channels: T, C and 2048. attributes: all root attributes as Python values.

    Raises:
        SpatialfeatError: not an HDF5 file, truncated, not made by this program, or of another schema version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stamp = featurehandles.stamp_of(self.path)
        try:
            with featurehandles.opened(self.path, self._stamp) as file:
                _check_schema(self.path, file)
                self.attributes = attributes_of(file)
                self.num_channels, self.num_frames = _channels_and_frames(file["features"])
        finally:
            self.close()
        self.recipe = Recipe(**{name: self.attributes[name] for name in Recipe.__dataclass_fields__})
        self.video_id: str = self.attributes["video_id"]
        self.patient_id: str = self.attributes["patient_id"]
        self.split: str = self.attributes["split"]
        self.num_phases = len(self.recipe.phase_names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that the video is read from: this one."""
        return (self.path,)

    @property
    def fps(self) -> float:
        return self.recipe.fps

    @property
    def phase_names(self) -> tuple[str, ...]:
        return self.recipe.phase_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """(T,) int64: phase, -100 where unlabelled."""
        return self._vector("labels")

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
        with featurehandles.opened(self.path, self._stamp) as file:
            ids = file["frame_ids"].asstr()[()]
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
            frames=self.frames,
        )
        return FeatureFileInfo(self.path, self.recipe, header, self.attributes)

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
        with featurehandles.opened(self.path, self._stamp) as file:
            return [
                {
                    "name": name,
                    "shape": file[name].shape,
                    "dtype": "UTF-8" if name == "frame_ids" else str(file[name].dtype),
                    "axes": AXES_OF_LAYOUT[self.recipe.layout] if name in _MATRICES else "time",
                }
                for name in (*_MATRICES, *_VECTORS)
            ]

    def close(self) -> None:
        """Close the file in this process. Reading again opens it again."""
        featurehandles.close(self.path, self._stamp)

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
        with featurehandles.opened(self.path, self._stamp) as file:
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
        stored_axes = AXES_OF_LAYOUT[self.recipe.layout]
        with featurehandles.opened(self.path, self._stamp) as file:
            values = file[name][:, start:stop] if stored_axes == CHANNEL_TIME else file[name][start:stop, :]
        return np.ascontiguousarray(values if axes == stored_axes else values.T, dtype=np.float32)


def read_info(path: Path) -> FeatureFileInfo:
    """Read and check a file's description without loading its features.

    Raises:
        SpatialfeatError: see `FeatureFile`.
    """
    with FeatureFile(path) as file:
        return file.info


def _check_schema(path: Path, file: h5py.File) -> None:
    if plain(file.attrs.get("format")) != FORMAT:
        raise SpatialfeatError(f"{path}: is not a feature file of spatialfeat; keep other files elsewhere")
    schema = plain(file.attrs.get("schema"))
    if schema != SCHEMA:
        raise SpatialfeatError(
            f"{path}: has schema {schema}, this version reads schema {SCHEMA}; "
            "use the version of spatialfeat that made it, or extract again"
        )
    attributes = ("video_id", "patient_id", "split", *Recipe.__dataclass_fields__)
    missing = [name for name in (*_MATRICES, *_VECTORS) if file.get(name, getlink=True) is None]
    missing += [name for name in attributes if name not in file.attrs]
    if missing:
        raise SpatialfeatError(f"{path}: lacks {', '.join(missing)}; extract the video again")
    problem = _problem_of_attributes(attributes_of(file)) or _problem_of_datasets(file)
    if problem:
        raise SpatialfeatError(f"{path}: {problem}; extract the video again")


def _problem_of_attributes(attributes: dict[str, Any]) -> str | None:
    for name in ("video_id", "patient_id", "split", *Recipe.__dataclass_fields__):
        value = attributes[name]
        if name == "phase_names":
            right = isinstance(value, tuple) and all(isinstance(phase, str) for phase in value)
        elif name == "fps":
            right = isinstance(value, float | int) and 0 < value < float("inf")
        else:
            right = isinstance(value, str) and (name == "preprocessing" or _can_be_a_file_name(value))
        if not right:
            return f"attribute {name} is {value!r}, which spatialfeat never writes"
    layout, known = attributes["layout"], ", ".join(AXES_OF_LAYOUT)
    return None if layout in AXES_OF_LAYOUT else f"attribute layout is {layout!r}, not one of {known}"


def _can_be_a_file_name(text: str) -> bool:
    """Exports name files by ids and splits: these must not lead to another folder."""
    return text.strip(". ") != "" and not any(sign in "/\\\x7f" or sign < " " for sign in text)


def _problem_of_datasets(file: h5py.File) -> str | None:
    axes = AXES_OF_LAYOUT[file.attrs["layout"]]
    for name in (*_MATRICES, *_VECTORS):
        # A link, or storage elsewhere, would let a file from a stranger read other files of this machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            return f"{name} is not a dataset of this file"
        if file[name].is_virtual or file[name].external:
            return f"{name} keeps its data in other files"
        kinds, dimensions = ("f4", 2) if name in _MATRICES else ("O" if name == "frame_ids" else "i8", 1)
        if file[name].dtype.newbyteorder("=") != np.dtype(kinds) or file[name].ndim != dimensions:
            return f"{name} is {file[name].dtype} {file[name].shape}"
        if name in _MATRICES and plain(file[name].attrs.get("axes")) != axes:
            return f"{name} has axes {plain(file[name].attrs.get('axes'))!r}, not {axes!r}"
    if h5py.check_string_dtype(file["frame_ids"].dtype) is None:
        return "frame_ids is not text"
    lengths = {name: _channels_and_frames(file[name])[1] for name in _MATRICES}
    lengths |= {name: len(file[name]) for name in _VECTORS}
    if len(set(lengths.values())) != 1:
        return f"datasets differ in length {lengths}"
    scores, phases = _channels_and_frames(file["logits"])[0], len(file.attrs["phase_names"])
    return None if scores == phases else f"logits has {scores} classes for {phases} phase names"


def _channels_and_frames(matrix: h5py.Dataset) -> tuple[int, int]:
    channels, frames = matrix.shape if matrix.attrs["axes"] == CHANNEL_TIME else matrix.shape[::-1]
    return int(channels), int(frames)
