"""The network's outputs, cut into one feature file per video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatialfeat.console import count_text
from spatialfeat.data.dataset import describe_broken_image
from spatialfeat.data.frames import Video
from spatialfeat.device import library_versions
from spatialfeat.features.extractplan import feature_path, image_paths, stat_digest, video_header
from spatialfeat.features.extractresult import ExtractResult
from spatialfeat.features.featureschema import PSEUDONYMIZED, Recipe
from spatialfeat.features.featurewriter import FeatureFileWriter
from spatialfeat.network.inference import NOT_FINITE, FrameOutputs


class FeatureSink:
    """Takes the network's outputs in the order of the frames and cuts them into one file per video."""

    def __init__(
        self, videos: Sequence[Video], out_dir: Path, recipe: Recipe, result: ExtractResult, *, private: bool
    ) -> None:
        self._attributes = {PSEUDONYMIZED: "yes"} if private else {}
        self._videos, self._out_dir, self._recipe, self._result = videos, out_dir, recipe, result
        self._ends = np.cumsum([len(video) for video in videos])
        self._versions = library_versions()
        self._writer: FeatureFileWriter | None = None
        self._images_digest = hashlib.sha256()

    def take(self, outputs: FrameOutputs) -> None:
        """Write the frames of one batch. A frame without features fails its video, never a single row."""
        for row, reason in outputs.failures:
            video, table_row = self._locate(row)
            self._fail(video, describe_broken_image(video.table, table_row, reason))
        for row in outputs.rows_not_finite():
            video, table_row = self._locate(row)
            self._fail(video, f"{video.table.where(table_row)}: {NOT_FINITE}")
        video_of_row = np.searchsorted(self._ends, outputs.rows, side="right")
        for index in np.unique(video_of_row).tolist():
            mine = np.flatnonzero(video_of_row == index)
            video = self._videos[index]
            if video.video_id not in self._result.failed:
                self._append(video, outputs.features[mine], outputs.logits[mine], [outputs.digests[i] for i in mine])
            if outputs.rows[mine[-1]] == self._ends[index] - 1:
                self._finish(video)

    def progress(self) -> str:
        """`2 of 7 videos are finished and kept: 1050_1, 1050_2`."""
        written = self._result.written
        names = f": {', '.join(written)}" if written else ""
        return f"{len(written)} of {count_text(len(self._videos), 'video')} are finished and kept{names}"

    def close(self) -> None:
        """Remove the file of the video that was not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _append(
        self, video: Video, features: NDArray[np.float32], logits: NDArray[np.float32], digests: list[bytes]
    ) -> None:
        if self._writer is None:
            path = feature_path(self._out_dir, video)
            self._writer = FeatureFileWriter(path, video_header(video), self._recipe, self._versions)
            self._images_digest = hashlib.sha256()
        self._writer.append(features, logits)
        self._images_digest.update(b"".join(digests))

    def _finish(self, video: Video) -> None:
        if self._writer is None:
            return
        try:
            images_stat = stat_digest(image_paths(video))
        except FileNotFoundError as error:
            self._fail(video, f"{error.filename}: was removed while the video was extracted")
            return
        content = self._images_digest.hexdigest()
        self._writer.finish(images_stat=images_stat, images_content=content, **self._attributes)
        self._writer = None
        self._result.written.append(video.video_id)

    def _locate(self, row: int) -> tuple[Video, int]:
        """The video that a row of the dataset belongs to, and the row of the video's table."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        video = self._videos[index]
        return video, int(video.rows[row - (self._ends[index] - len(video))])

    def _fail(self, video: Video, reason: str) -> None:
        self._result.failed.setdefault(video.video_id, reason)
        if self._writer is not None and self._writer.video_id == video.video_id:
            self.close()
