"""Writing .npy files piece by piece."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLOAT32 = np.dtype("<f4")


def write_channel_first_npy(
    path: Path, shape: tuple[int, int], blocks: Iterable[tuple[int, NDArray[np.float32]]]
) -> None:
    """Write a (channels, T) little-endian float32 array in C order from blocks of frames.

    Args:
        blocks: (first frame, (channels, n) float32), together all T frames.
    """
    channels, num_frames = shape
    written = 0
    # Seeking instead of a memory map: on a full disk, writing to a map kills the process without an error.
    with path.open("wb") as file:
        file.write(npy_header(shape))
        data_start = file.tell()
        for first, block in blocks:
            rows = np.ascontiguousarray(block, dtype=FLOAT32)
            for channel in range(channels):
                file.seek(data_start + (channel * num_frames + first) * FLOAT32.itemsize)
                file.write(rows[channel].data)
            written += rows.shape[1]
    assert written == num_frames, f"{written} of {num_frames} frames were written"


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a little-endian float32 .npy file in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": FLOAT32.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
