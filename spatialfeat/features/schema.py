"""What is looked at in an HDF5 file from a stranger before any of its data is read.

A few kilobytes can declare terabytes, name a decompressor that HDF5 would look for among plug-ins and run, or let a
thousand texts share one long one. None of it occurs in files of this program.

The HDF5 feature file, schema 1: one file per video. `featurewriter` writes it, `featurefile` reads it.

    features   (2048, T) float32   activations after global average pooling; (T, 2048) in the time-first layout
    logits     (C, T) float32      the classifier's raw scores; (T, C) in the time-first layout
    labels     (T,) int64          phase, -100 where unlabelled
    frame_ids  (T,) UTF-8          the ids, in time order
    segment    (T,) int64          the parsed fields of the ids
    frame      (T,) int64

The root attributes say how the file was made: see `Provenance` and `VideoHeader`. Both axes of `features` and `logits`
are named: attribute `axes` ("channel,time" or "time,channel") and HDF5 dimension labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import label_problem, name_problem

MAX_ATTRIBUTES = 1000
MAX_ATTRIBUTE_VALUES = 1000
MAX_TEXT_CHARACTERS = 100_000
MAX_CHUNK_BYTES = 1 << 28
MAX_DEFLATE_RATIO = 1032
"""No stream of gzip's method expands more."""

BUILT_IN_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Filters that are part of every h5py, so that nothing is loaded for them."""

_ATTRIBUTE_CLASSES = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
_TEXTS_PER_READ = 64


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes as Python values, arrays as tuples.

    Raises:
        SpatialfeatError: too many of them, or one that is no number, no text and no short list of these.
    """
    if len(file.attrs) > MAX_ATTRIBUTES:
        raise SpatialfeatError(f"has {len(file.attrs)} attributes; a feature file has about twenty")
    return {name: read_attribute(file, name) for name in file.attrs}


def read_attribute(item: h5py.File | h5py.Dataset, name: str) -> Any:
    """One attribute as a Python value, None if it is not there. Raises SpatialfeatError as `read_attributes`."""
    if name not in item.attrs:
        return None
    attribute = h5py.h5a.open(item.id, name.encode("utf-8", "surrogateescape"))
    kind, shape = attribute.get_type(), attribute.shape
    if kind.get_class() not in _ATTRIBUTE_CLASSES or shape is None:
        raise SpatialfeatError(f"attribute {name!r} is neither number nor text")
    too_large = SpatialfeatError(f"attribute {name!r} is too large")
    if len(shape) > 1 or math.prod(shape) > MAX_ATTRIBUTE_VALUES or kind.get_size() > MAX_TEXT_CHARACTERS:
        raise too_large
    value = plain(item.attrs[name])
    if any(len(text) > MAX_TEXT_CHARACTERS for text in np.ravel(value).tolist() if isinstance(text, str)):
        raise too_large
    return value


def plain(value: Any) -> Any:
    """An HDF5 attribute's value as a Python value; arrays become tuples."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


def storage_problem(dataset: h5py.Dataset) -> str | None:
    """Why the data of `dataset` must not be read, or None. Nothing of it is read for that."""
    # Storage elsewhere would let the file read other files of this machine.
    if dataset.is_virtual or dataset.external:
        return "keeps its data in other files"
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    foreign = [number for number in filters if number not in BUILT_IN_FILTERS]
    if foreign:
        known = ", ".join(BUILT_IN_FILTERS.values())
        return f"is packed with HDF5 filter {foreign[0]}, for which a plug-in would be loaded (allowed: {known})"
    item_bytes = dataset.id.get_type().get_size()
    declared_bytes = math.prod(dataset.shape or (0,)) * item_bytes
    most_bytes = dataset.file.id.get_filesize() * (MAX_DEFLATE_RATIO if filters else 1)
    if dataset.chunks is None:
        whole = dataset.id.get_storage_size() >= declared_bytes
    else:
        if math.prod(dataset.chunks) * item_bytes > MAX_CHUNK_BYTES:
            return f"has chunks of {dataset.chunks}, too large to be read piece by piece"
        num_chunks = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
        whole = dataset.id.get_num_chunks() == num_chunks
    if not whole or declared_bytes > most_bytes:
        return f"is declared as {dataset.shape}, but the file does not hold so much"
    return None


def read_names(dataset: h5py.Dataset) -> list[str]:
    """All texts of a (T,) dataset of ids, which exports make file names of.

    Raises:
        SpatialfeatError: one that cannot be part of a file name.
    """
    names: list[str] = []
    # A few at a time: all of them could be one long text.
    for start in range(0, len(dataset), _TEXTS_PER_READ):
        block = dataset.asstr()[start : start + _TEXTS_PER_READ].tolist()
        for name in block:
            problem = name_problem(name)
            if problem is not None:
                raise SpatialfeatError(f"frame id {name[:80]!r} {problem}")
        names += block
    return names


FORMAT = "spatialfeat features"
SCHEMA = 1
SUFFIX = ".h5"
CHANNEL_FIRST, TIME_FIRST = "channel-first", "time-first"
CHANNEL_TIME, TIME_CHANNEL = "channel,time", "time,channel"
AXES_OF_LAYOUT = {CHANNEL_FIRST: CHANNEL_TIME, TIME_FIRST: TIME_CHANNEL}

PSEUDONYMIZED = "pseudonymized"
"""An attribute, "yes", of files that `extract --pseudonymize` wrote; other files do not have it."""

_SHOWN = 200
"""A message shows so many characters of a value."""

MATRICES, VECTORS = ("features", "logits"), ("labels", "frame_ids", "segment", "frame")


@dataclass(frozen=True, kw_only=True)
class Provenance:
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

    def differences(self, other: Provenance) -> list[str]:
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
    frame_numbers: NDArray[np.int64]


@dataclass(frozen=True)
class FeatureFileInfo:
    """The small part of a feature file: everything but features and logits. Arrays have T entries, in time order."""

    path: Path
    provenance: Provenance
    header: VideoHeader
    attributes: dict[str, Any]


def check_schema(path: Path, file: h5py.File) -> dict[str, Any]:
    """The root attributes as Python values, once it is sure that the file is a whole feature file of this schema.

    Raises:
        SpatialfeatError: it is not, or holds what this program never writes.
    """
    try:
        form, schema = read_attribute(file, "format"), read_attribute(file, "schema")
    except SpatialfeatError:
        form, schema = None, None
    if form != FORMAT:
        raise SpatialfeatError(f"{path}: is not a feature file of spatialfeat; keep other files elsewhere")
    if schema != SCHEMA:
        raise SpatialfeatError(
            f"{path}: has schema {str(schema)[:_SHOWN]}, this version reads schema {SCHEMA}; "
            "use the version of spatialfeat that made it, or extract again"
        )
    required = ("video_id", "patient_id", "split", *Provenance.__dataclass_fields__)
    missing = [name for name in (*MATRICES, *VECTORS) if file.get(name, getlink=True) is None]
    missing += [name for name in required if name not in file.attrs]
    if missing:
        raise SpatialfeatError(f"{path}: lacks {', '.join(missing)}; extract the video again")
    try:
        attributes = read_attributes(file)
    except SpatialfeatError as error:
        raise SpatialfeatError(f"{path}: {error}; extract the video again") from error
    problem = _problem_of_attributes(attributes) or _problem_of_datasets(file, attributes)
    if problem:
        raise SpatialfeatError(f"{path}: {problem}; extract the video again")
    return attributes


def _problem_of_attributes(attributes: dict[str, Any]) -> str | None:
    for name in ("video_id", "patient_id", "split", *Provenance.__dataclass_fields__):
        value = attributes[name]
        if name == "phase_names":
            right = isinstance(value, tuple) and all(isinstance(phase, str) for phase in value)
            right = right and not any(map(label_problem, value))
        elif name == "fps":
            right = isinstance(value, float | int) and 0 < value < float("inf")
        else:
            # Exports name files by ids and splits: these must not lead to another folder.
            right = isinstance(value, str) and (name == "preprocessing" or name_problem(value) is None)
        if not right:
            return f"attribute {name} is {repr(value)[:_SHOWN]}, which spatialfeat never writes"
    layout, known = attributes["layout"], ", ".join(AXES_OF_LAYOUT)
    return None if layout in AXES_OF_LAYOUT else f"attribute layout is {layout[:_SHOWN]!r}, not one of {known}"


def _problem_of_datasets(file: h5py.File, attributes: dict[str, Any]) -> str | None:
    axes = AXES_OF_LAYOUT[attributes["layout"]]
    for name in (*MATRICES, *VECTORS):
        # A link would let a file from a stranger read other files of this machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            return f"{name} is not a dataset of this file"
        problem = storage_problem(file[name])
        if problem:
            return f"{name} {problem}"
        kinds, dimensions = ("f4", 2) if name in MATRICES else ("O" if name == "frame_ids" else "i8", 1)
        if file[name].dtype.newbyteorder("=") != np.dtype(kinds) or file[name].ndim != dimensions:
            return f"{name} is {file[name].dtype} {file[name].shape}"
        stored_axes = read_attribute(file[name], "axes") if name in MATRICES else axes
        if stored_axes != axes:
            return f"{name} has axes {repr(stored_axes)[:_SHOWN]}, not {axes!r}"
    if h5py.check_string_dtype(file["frame_ids"].dtype) is None:
        return "frame_ids is not text"
    lengths = {name: channels_and_frames(file[name])[1] for name in MATRICES}
    lengths |= {name: len(file[name]) for name in VECTORS}
    if len(set(lengths.values())) != 1:
        return f"datasets differ in length {lengths}"
    if lengths["labels"] == 0:
        return "holds no frame"
    scores, phases = channels_and_frames(file["logits"])[0], len(attributes["phase_names"])
    return None if scores == phases else f"logits has {scores} classes for {phases} phase names"


def channels_and_frames(matrix: h5py.Dataset) -> tuple[int, int]:
    """(number of channels, T) of `features` or `logits`, whatever its layout."""
    channels, frames = matrix.shape if matrix.attrs["axes"] == CHANNEL_TIME else matrix.shape[::-1]
    return int(channels), int(frames)
