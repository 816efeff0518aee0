"""The schema of a feature file, and the checks of a file from a stranger before any of its data is read.

One HDF5 file per video, schema 2. `writer` writes it, `file` reads it, and schema 1: the same with D = 2048.

    features   (D, T) float32      what the encoder `backbone` has at `layer`: of resnet50, D = 2048 activations after
                                   global average pooling; (T, D) in the time-first layout
    logits     (C, T) float32      the classifier's raw scores; (T, C) in the time-first layout; not there where the
                                   weights had no classifier of phases
    labels     (T,) int64          phase, -100 where unlabelled
    frame_ids  (T,) UTF-8          the ids, in time order
    segment    (T,) int64          segment of the operation, as in the id; 0 where ids have none
    frame      (T,) int64          frame number, as in the id

Root attributes: `format`, `schema`, `video_id`, `patient_id`, `split`, the fields of `Provenance`, `versions` (JSON),
`images_stat` and `images_content` (digests of the image files), and where they apply `pseudonymized`, `weights_origin`
and `data_set`. Both axes of `features` and `logits` have names: the attribute `axes` ("channel,time" or "time,channel")
and HDF5 dimension labels.

A file of a few kilobytes can declare terabytes, name a decompressor that HDF5 would search among plug-ins and run, or
let a thousand texts share one long one. This program never writes such files, so `check_schema` refuses them.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import CPU_DECODER, JPEG_DECODERS
from spatialfeat.data.ids import AUTO, IdRule
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import id_problem, label_problem

FORMAT, SCHEMA = "spatialfeat features", 2
READ_SCHEMAS = (1, SCHEMA)
SUFFIX = ".h5"

LOGITS = "logits"
MATRICES = ("features", LOGITS)
TYPES = {"features": "f4", LOGITS: "f4", "labels": "i8", "frame_ids": "O", "segment": "i8", "frame": "i8"}
"""The NumPy type of each dataset, in any byte order. All but the matrices have one dimension."""

CHANNEL_FIRST, TIME_FIRST = "channel-first", "time-first"
CHANNEL_TIME, TIME_CHANNEL = "channel,time", "time,channel"
AXES_OF_LAYOUT = {CHANNEL_FIRST: CHANNEL_TIME, TIME_FIRST: TIME_CHANNEL}

IMAGES_STAT, IMAGES_CONTENT = "images_stat", "images_content"
"""Attributes: digests of the image files' sizes and times, and of their bytes."""
PSEUDONYMIZED = "pseudonymized"
"""An attribute, "yes", of files that `extract --pseudonymize` wrote; other files do not have it."""
WEIGHTS_ORIGIN = "weights_origin"
"""An attribute of files whose weights were not fine-tuned, as far as the program knows: what they are, in words."""
DATA_SET = "data_set"
"""An attribute of files whose user named the public data set that the frames are from."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How features were made: what must be equal for two feature files to be used together."""

    weights_sha256: str
    phase_names: tuple[str, ...]
    preprocessing: str
    precision: str
    backbone: str
    layer: str
    layout: str
    group_by: str
    fps: float
    id_rule: str = AUTO
    jpeg_decoder: str = CPU_DECODER

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


REQUIRED_ATTRIBUTES = (
    "video_id", "patient_id", "split", *(field.name for field in fields(Provenance) if field.default is MISSING),
)  # fmt: skip
"""`id_rule` is missing in files of earlier versions, `jpeg_decoder` where the processor decoded all frames."""

MAX_ATTRIBUTES = MAX_ATTRIBUTE_VALUES = 1000
MAX_TEXT_CHARACTERS = 100_000
MAX_CHUNK_BYTES = 1 << 28
MAX_DEFLATE_RATIO = 1032
"""No stream of gzip's method expands more."""

BUILT_IN_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Filters that are part of every h5py, so that nothing is loaded for them."""

_ATTRIBUTE_CLASSES = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
_TEXTS_PER_READ = 64
_SHOWN = 200
"""A message shows so many characters of a value."""


def check_schema(path: Path, file: h5py.File) -> dict[str, Any]:
    """The root attributes as Python values, arrays as tuples, of a whole feature file of this schema.

    Raises SpatialfeatError if it is none, or holds what this program never writes.
    """
    try:
        form, schema = _attribute(file, "format"), _attribute(file, "schema")
    except SpatialfeatError:
        form, schema = None, None
    if form != FORMAT:
        raise SpatialfeatError(f"{path}: is not a feature file of spatialfeat; keep other files elsewhere")
    if schema not in READ_SCHEMAS:
        read = " and ".join(map(str, READ_SCHEMAS))
        raise SpatialfeatError(
            f"{path}: has schema {str(schema)[:_SHOWN]}, this version reads schema {read}; use the version "
            "of spatialfeat that made it, or extract again"
        )
    missing = [name for name in TYPES if file.get(name, getlink=True) is None and name != LOGITS]
    missing += [name for name in REQUIRED_ATTRIBUTES if name not in file.attrs]
    try:
        if missing:
            raise SpatialfeatError(f"lacks {', '.join(missing)}")
        if len(file.attrs) > MAX_ATTRIBUTES:
            raise SpatialfeatError(f"has {len(file.attrs)} attributes; a feature file has about twenty")
        attributes = {name: _attribute(file, name) for name in file.attrs}
        _check_attributes(attributes)
        _check_datasets(file, attributes)
    except SpatialfeatError as error:
        raise SpatialfeatError(f"{path}: {error}; extract the video again") from error
    return attributes


def _attribute(item: h5py.File | h5py.Dataset, name: str) -> Any:
    """One attribute as a Python value, None if it is not there: a number, a text, or a short tuple of these."""
    if name not in item.attrs:
        return None
    attribute = h5py.h5a.open(item.id, name.encode("utf-8", "surrogateescape"))
    kind, shape = attribute.get_type(), attribute.shape
    if kind.get_class() not in _ATTRIBUTE_CLASSES or shape is None:
        raise SpatialfeatError(f"attribute {name!r} is neither number nor text")
    too_large = SpatialfeatError(f"attribute {name!r} is too large")
    if len(shape) > 1 or math.prod(shape) > MAX_ATTRIBUTE_VALUES or kind.get_size() > MAX_TEXT_CHARACTERS:
        raise too_large
    value = item.attrs[name]
    if isinstance(value, np.ndarray):
        value = tuple(value.tolist())
    elif isinstance(value, np.generic):
        value = value.item()
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(text, str) and len(text) > MAX_TEXT_CHARACTERS for text in texts):
        raise too_large
    return value


def _check_attributes(attributes: dict[str, Any]) -> None:
    for name in REQUIRED_ATTRIBUTES:
        value = attributes[name]
        if name == "phase_names":
            right = isinstance(value, tuple) and all(isinstance(phase, str) for phase in value)
            right = right and not any(map(label_problem, value))
        elif name == "fps":
            right = isinstance(value, float | int) and 0 < value < math.inf
        else:
            # Exports name files by ids and splits: these must not lead to another folder.
            right = isinstance(value, str) and (name == "preprocessing" or id_problem(value) is None)
        if not right:
            raise SpatialfeatError(f"attribute {name} is {repr(value)[:_SHOWN]}, which spatialfeat never writes")
    IdRule.parse(attributes.get("id_rule", AUTO))
    if (decoder := attributes.get("jpeg_decoder", CPU_DECODER)) not in JPEG_DECODERS:
        raise SpatialfeatError(f"attribute jpeg_decoder is {str(decoder)[:_SHOWN]!r}, not one of {JPEG_DECODERS}")
    layout = attributes["layout"]
    if layout not in AXES_OF_LAYOUT:
        raise SpatialfeatError(f"attribute layout is {layout[:_SHOWN]!r}, not one of {', '.join(AXES_OF_LAYOUT)}")


def _check_datasets(file: h5py.File, attributes: dict[str, Any]) -> None:
    axes = AXES_OF_LAYOUT[attributes["layout"]]
    lengths = {}
    has_logits = file.get(LOGITS, getlink=True) is not None
    for name, kind in TYPES.items():
        if name == LOGITS and not has_logits:
            continue
        # A link would let a file from a stranger read other files of this machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise SpatialfeatError(f"{name} is not a dataset of this file")
        dataset, is_matrix = file[name], name in MATRICES
        _check_storage(name, dataset)
        if dataset.dtype.newbyteorder("=") != np.dtype(kind) or dataset.ndim != 1 + is_matrix:
            raise SpatialfeatError(f"{name} is {dataset.dtype} {dataset.shape}")
        if is_matrix and (stored_axes := _attribute(dataset, "axes")) != axes:
            raise SpatialfeatError(f"{name} has axes {repr(stored_axes)[:_SHOWN]}, not {axes!r}")
        lengths[name] = dataset.shape[1 if is_matrix and axes == CHANNEL_TIME else 0]
    if h5py.check_string_dtype(file["frame_ids"].dtype) is None:
        raise SpatialfeatError("frame_ids is not text")
    if len(set(lengths.values())) != 1:
        raise SpatialfeatError(f"datasets differ in length {lengths}")
    if lengths["labels"] == 0:
        raise SpatialfeatError("holds no frame")
    if has_logits:
        scores, phases = file[LOGITS].shape[0 if axes == CHANNEL_TIME else 1], len(attributes["phase_names"])
        if scores != phases:
            raise SpatialfeatError(f"logits has {scores} channels for {phases} phase names")


def _check_storage(name: str, dataset: h5py.Dataset) -> None:
    """Refuse data that must not be read, without reading any of it."""
    # Storage elsewhere would let the file read other files of this machine.
    if dataset.is_virtual or dataset.external:
        raise SpatialfeatError(f"{name} keeps its data in other files")
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    foreign = [number for number in filters if number not in BUILT_IN_FILTERS]
    if foreign:
        raise SpatialfeatError(
            f"{name} is packed with HDF5 filter {foreign[0]}, for which a plug-in would be loaded "
            f"(allowed: {', '.join(BUILT_IN_FILTERS.values())})"
        )
    item_bytes = dataset.id.get_type().get_size()
    declared_bytes = math.prod(dataset.shape or (0,)) * item_bytes
    most_bytes = dataset.file.id.get_filesize() * (MAX_DEFLATE_RATIO if filters else 1)
    if dataset.chunks is None:
        whole = dataset.id.get_storage_size() >= declared_bytes
    else:
        if math.prod(dataset.chunks) * item_bytes > MAX_CHUNK_BYTES:
            raise SpatialfeatError(f"{name} has chunks of {dataset.chunks}, too large to be read piece by piece")
        num_chunks = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
        whole = dataset.id.get_num_chunks() == num_chunks
    if not whole or declared_bytes > most_bytes:
        raise SpatialfeatError(f"{name} is declared as {dataset.shape}, but the file does not hold so much")


def read_frame_ids(path: Path, dataset: h5py.Dataset) -> NDArray[np.str_]:
    """(T,) str. Raises SpatialfeatError for an id that cannot be part of a file name: exports name files by them."""
    ids: list[str] = []
    # A few at a time: all of them could be one long text.
    for start in range(0, len(dataset), _TEXTS_PER_READ):
        ids += dataset.asstr()[start : start + _TEXTS_PER_READ].tolist()
        for frame_id in ids[start:]:
            problem = id_problem(frame_id)
            if problem is not None:
                raise SpatialfeatError(f"{path}: frame id {frame_id[:80]!r} {problem}; extract the video again")
    return np.asarray(ids, dtype=np.str_)
