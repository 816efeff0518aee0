"""Feature files as training data for temporal models: fixed windows, or whole videos padded to the longest.

    windows = FeatureWindows("features", size_frames=256, step_frames=128, split="train")
    loader = DataLoader(windows, batch_size=8, shuffle=True, num_workers=2)     # fork or spawn
    for features, labels, mask in loader: ...                                   # (8, 2048, 256), (8, 256), (8, 256)

    videos = FeatureWindows.whole_videos("features", split="test")
    loader = DataLoader(videos, batch_size=4, collate_fn=collate_videos)        # (4, 2048, T of the longest), ...

A window covers W consecutive rows of the feature file. Frame numbers may have gaps there: see `FeatureFile.frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad
from torch.utils.data import Dataset

from spatialfeat.data.frames import UNLABELLED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import of_split, read_features

LAST_WINDOW = ("pad", "drop", "shift")


class Window(NamedTuple):
    """W frames of one video; in a batch each tensor has a leading dimension B.

    features: (D, W) float32, 0 beyond the video's end.
    labels: (W,) int64, -100 for unlabelled frames and beyond the end.
    mask: (W,) bool, True where the video has a frame, labelled or not.
    """

    features: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


class WindowPlace(NamedTuple):
    """Where a window lies: the frames [start, stop) of `file`. Beyond the end of the video there is padding only."""

    file: FeatureFile
    start: int
    stop: int


class FeatureWindows(Dataset[Window]):
    """Windows of `size_frames` frames, one every `step_frames`, over videos in the given order.

    A video of T frames has windows at 0, step, 2 step, ... as long as they end within T. If frames behind the last of
    them are left over (and the next start lies within the video), `last` says what becomes of them:

    * "pad": one more window at the next start, filled up behind frame T: features 0, labels -100, mask False.
    * "drop": nothing. A video shorter than a window has none.
    * "shift": one more window [T - size, T), which overlaps the one before. A video shorter than a window is padded.

    With a step larger than the size the frames between two windows are left out, by intention.

    Indexing gives a `Window`; the default collation of a DataLoader makes batches of it. Files are opened in each
    worker when it first reads from them, so every start method of workers is safe.

    Args:
        features: a folder of feature files, one file, or files that are open already.
        size_frames: W. step_frames: distance of window starts; None means size_frames.
        last: "pad", "drop" or "shift".
        split: keep only the videos of this split.

    Raises:
        SpatialfeatError: as `read_features`; sizes below 1; an unknown `last`; no window at all.
    """

    def __init__(
        self,
        features: Path | str | Sequence[FeatureFile],
        *,
        size_frames: int,
        step_frames: int | None = None,
        last: str = "pad",
        split: str | None = None,
    ) -> None:
        step_frames = size_frames if step_frames is None else step_frames
        for name, value in (("size_frames", size_frames), ("step_frames", step_frames)):
            if value < 1:
                raise SpatialfeatError(f"{name} {value}: must be at least 1")
        if last not in LAST_WINDOW:
            raise SpatialfeatError(f"last {last!r}: must be one of {', '.join(LAST_WINDOW)}")
        self._files = _files(features, split)
        starts = [window_starts(len(file), size_frames, step_frames, last) for file in self._files]
        self._set_windows(starts, [np.full(len(mine), size_frames) for mine in starts])
        if not len(self):
            longest = max(map(len, self._files))
            raise SpatialfeatError(
                f"size_frames {size_frames}: no video is that long (the longest has {longest} frames); "
                "take smaller windows, or last='pad'"
            )

    @classmethod
    def whole_videos(cls, features: Path | str | Sequence[FeatureFile], *, split: str | None = None) -> FeatureWindows:
        """One window per video, of its own length T. Batches of several need `collate_fn=collate_videos`.

        Raises:
            SpatialfeatError: as `read_features`.
        """
        videos = cls.__new__(cls)
        videos._files = _files(features, split)
        videos._set_windows([np.zeros(1, np.int64) for _ in videos._files],
                            [np.array([len(file)]) for file in videos._files])  # fmt: skip
        return videos

    def place(self, index: int) -> WindowPlace:
        """Which frames window `index` covers."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        file, start = self._files[self._file_indices[index]], int(self._starts[index])
        return WindowPlace(file, start, min(start + int(self._sizes[index]), len(file)))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Window:
        file, start, stop = self.place(index)
        features, labels = torch.from_numpy(file.features(start, stop)), torch.from_numpy(file.labels_of(start, stop))
        return _padded(Window(features, labels, torch.ones(stop - start, dtype=torch.bool)), int(self._sizes[index]))

    def _set_windows(self, starts: Sequence[NDArray[np.int64]], sizes: Sequence[NDArray[np.int64]]) -> None:
        # Arrays, not lists of int: workers would copy every int object they touch.
        self._starts, self._sizes = np.concatenate(starts), np.concatenate(sizes)
        self._file_indices = np.repeat(np.arange(len(starts)), [len(mine) for mine in starts])


def window_starts(num_frames: int, size_frames: int, step_frames: int, last: str) -> NDArray[np.int64]:
    """Starts of the windows over a video, (N,) int64; see `FeatureWindows`."""
    starts = np.arange(0, num_frames - size_frames + 1, step_frames, dtype=np.int64)
    covered = int(starts[-1]) + size_frames if len(starts) else 0
    next_start = len(starts) * step_frames
    if last == "drop" or covered >= num_frames or next_start >= num_frames:
        return starts
    return np.append(starts, next_start if last == "pad" else max(0, num_frames - size_frames))


def collate_videos(videos: Sequence[Window]) -> Window:
    """Stack B videos of different lengths, padded to the longest, T frames.

    Returns features (B, D, T) float32, 0 in the padding; labels (B, T) int64, -100 there; mask (B, T) bool, True
    where a video has a frame.
    """
    longest = max(len(video.labels) for video in videos)
    padded = [_padded(video, longest) for video in videos]
    return Window(*(torch.stack(tensors) for tensors in zip(*padded, strict=True)))


def _padded(window: Window, num_frames: int) -> Window:
    beyond = (0, num_frames - len(window.labels))
    if beyond[1] == 0:
        return window
    return Window(
        pad(window.features, beyond),
        pad(window.labels, beyond, value=UNLABELLED),
        pad(window.mask, beyond, value=False),
    )


def _files(features: Path | str | Sequence[FeatureFile], split: str | None) -> list[FeatureFile]:
    if isinstance(features, Path | str):
        return read_features(features, split=split)
    if not features:
        raise SpatialfeatError("no feature files were given; pass at least one")
    return list(features) if split is None else of_split(features, split, "the given files")
