"""Several videos of one patient read as one, segment after segment, without extracting them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.featurefile import FeatureFile
from spatialfeat.features.featureschema import CHANNEL_TIME, Recipe
from spatialfeat.names import natural_key, same_name_key


class FeatureReader(Protocol):
    """What FeatureFile and JoinedVideos have in common; see FeatureFile for shapes and errors."""

    @property
    def path(self) -> Path: ...
    @property
    def paths(self) -> tuple[Path, ...]: ...
    @property
    def video_id(self) -> str: ...
    @property
    def patient_id(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def is_pseudonymized(self) -> bool: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def num_phases(self) -> int: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def frame_ids(self) -> NDArray[np.str_]: ...
    @property
    def segments(self) -> NDArray[np.int64]: ...
    @property
    def frames(self) -> NDArray[np.int64]: ...
    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]: ...
    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


class JoinedVideos:
    """The videos of one patient as one video with the patient's id, in the order of their segments.

    Raises:
        SpatialfeatError: the videos are in different splits.
    """

    def __init__(self, files: Sequence[FeatureFile]) -> None:
        self._files = sorted(files, key=lambda file: (int(file.segments[0]), natural_key(file.video_id)))
        first = self._files[0]
        for file in self._files:
            if file.split != first.split:
                raise SpatialfeatError(
                    f"{file.path}: is in split {file.split}, but {first.path.name} of the same patient is in "
                    f"{first.split}; a patient can only be joined within one split"
                )
        self.paths = tuple(file.path for file in self._files)
        self._ends = np.cumsum([file.num_frames for file in self._files])
        self.path, self.split, self.recipe = first.path, first.split, first.recipe
        self.video_id = self.patient_id = first.patient_id
        self.is_pseudonymized = first.is_pseudonymized
        self.num_frames, self.num_phases, self.num_channels = int(self._ends[-1]), first.num_phases, first.num_channels

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate([file.labels for file in self._files])

    @property
    def frame_ids(self) -> NDArray[np.str_]:
        return np.concatenate([file.frame_ids for file in self._files])

    @property
    def segments(self) -> NDArray[np.int64]:
        return np.concatenate([file.segments for file in self._files])

    @property
    def frames(self) -> NDArray[np.int64]:
        return np.concatenate([file.frames for file in self._files])

    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Features of the frames [start, stop) of the joined video."""
        return self._matrix(FeatureFile.features, start, stop, axes)

    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Logits of the frames [start, stop) of the joined video."""
        return self._matrix(FeatureFile.logits, start, stop, axes)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _matrix(
        self, read: Callable[..., NDArray[np.float32]], start: int, stop: int | None, axes: str
    ) -> NDArray[np.float32]:
        stop = self.num_frames if stop is None else stop
        assert 0 <= start <= stop <= self.num_frames
        parts = []
        for file, end in zip(self._files, self._ends.tolist(), strict=True):
            offset = end - file.num_frames
            first, last = max(start - offset, 0), min(stop - offset, file.num_frames)
            if first < last:
                parts.append(read(file, first, last, axes=axes))
        return np.concatenate(parts, axis=1 if axes == CHANNEL_TIME else 0)


def join_patients(files: Sequence[FeatureFile]) -> list[FeatureReader]:
    """One reader per patient, in numeric order of the patients. `files` must belong together (`open_feature_dir`).

    Raises:
        SpatialfeatError: a patient in two splits, or written in two ways.
    """
    patients: dict[tuple[object, ...], list[FeatureFile]] = {}
    for file in files:
        known = patients.setdefault(same_name_key(file.patient_id), [])
        if known and known[0].patient_id != file.patient_id:
            raise SpatialfeatError(
                f"{file.path}: patient {file.patient_id} is the same as {known[0].patient_id} in "
                f"{known[0].path.name}, written differently; use one spelling and extract again"
            )
        known.append(file)
    return [
        JoinedVideos(videos)
        for videos in sorted(patients.values(), key=lambda videos: natural_key(videos[0].patient_id))
    ]
