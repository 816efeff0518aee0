"""Read feature files: see `featureschema` for what is in one."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features import featurehandles
from spatialfeat.features.featureguard import read_names
from spatialfeat.features.featureschema import (
    AXES_OF_LAYOUT,
    CHANNEL_TIME,
    MATRICES,
    PSEUDONYMIZED,
    TIME_CHANNEL,
    VECTORS,
    FeatureFileInfo,
    Recipe,
    VideoHeader,
    channels_and_frames,
    check_schema,
)


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
                self.attributes = check_schema(self.path, file)
                self.num_channels, self.num_frames = channels_and_frames(file["features"])
        finally:
            self.close()
        self.recipe = Recipe(**{name: self.attributes[name] for name in Recipe.__dataclass_fields__})
        self.video_id: str = self.attributes["video_id"]
        self.patient_id: str = self.attributes["patient_id"]
        self.split: str = self.attributes["split"]
        self.num_phases = len(self.recipe.phase_names)

    @property
    def is_pseudonymized(self) -> bool:
        """Whether `extract --pseudonymize` wrote the file."""
        return PSEUDONYMIZED in self.attributes

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

    def labels_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Labels of the frames [start, stop), (n,) int64; nothing else is read."""
        with featurehandles.opened(self.path, self._stamp) as file:
            return np.asarray(file["labels"][start:stop], dtype=np.int64)

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
            try:
                ids = read_names(file["frame_ids"])
            except SpatialfeatError as error:
                raise SpatialfeatError(f"{self.path}: {error}; extract the video again") from error
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
                    "axes": AXES_OF_LAYOUT[self.recipe.layout] if name in MATRICES else "time",
                }
                for name in (*MATRICES, *VECTORS)
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
