"""What is looked at in an HDF5 file from a stranger before any of its data is read.

A few kilobytes can declare terabytes, name a decompressor that HDF5 would look for among plug-ins and run, or let a
thousand texts share one long one. None of it occurs in files of this program.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.featurehandles import plain
from spatialfeat.names import name_problem

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
