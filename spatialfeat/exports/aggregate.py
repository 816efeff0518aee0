"""All videos in one HDF5 file, time first: `exportformats.HDF5` shows it.

OUT                    attributes: format, schema, and how the features were made (phase_names, fps, ...)
  {video}/             attributes: video_id, patient_id, split, source (names of its feature files)
    features           (T, 2048) float32
    logits             (T, C) float32
    labels             (T,) int64, -100 where unlabelled
    frame_ids          (T,) UTF-8
    segment, frame     (T,) int64
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from spatialfeat import __version__
from spatialfeat.config import ExportConfig
from spatialfeat.exports.exportjob import Advance, ExportJob
from spatialfeat.exports.exportsource import ExportSource, ExportVideo, require_file_names
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.features.writer import GuardedFile

FORMAT = "spatialfeat aggregate"
SCHEMA = 1
FRAMES_PER_CHUNK = 64
FRAMES_PER_READ = 4096

TEXT = h5py.string_dtype("utf-8")


class Hdf5Export(ExportJob):
    """One group per video, in numeric order of the ids."""

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        super().__init__(source, config)
        require_file_names(source)

    def write(self, target: Path, advance: Advance) -> None:
        with GuardedFile(target, self.config.out) as guard:
            self._write(guard, advance)
            guard.check()

    def _write(self, guard: GuardedFile, advance: Advance) -> None:
        with h5py.File(guard, "w", track_order=True) as file:
            file.attrs.update({"format": FORMAT, "schema": SCHEMA, "spatialfeat": __version__})
            recipe = self.source.recipe
            for name in recipe.__dataclass_fields__:
                if name == "layout":  # Feature files of both layouts may stand side by side; here all is time first.
                    continue
                value = getattr(recipe, name)
                if isinstance(value, tuple):
                    file.attrs.create(name, list(value), dtype=TEXT)
                else:
                    file.attrs[name] = value
            for video in self.videos:
                _write_video(file.create_group(video.video_id), video, advance)
                guard.check()

    def verify(self, target: Path) -> list[str]:
        with h5py.File(target, "r") as file:
            if set(file) != {video.video_id for video in self.videos}:
                return [f"{target.name}: holds {len(file)} groups for {len(self.videos)} videos"]
            return [problem for video in self.videos for problem in _problems(file[video.video_id], video)]

    def tree(self) -> list[str]:
        num_phases = len(self.source.recipe.phase_names)
        return [
            f"{len(self.videos)} groups, one per video: features (T, 2048), logits (T, {num_phases}), labels (T,), ..."
        ]

    def next_step(self) -> str:
        video = self.videos[0]
        return (
            f"  with h5py.File({str(self.config.out)!r}) as file:\n"
            f"      features = file[{video.video_id!r}]['features'][:]    # ({video.num_frames}, 2048) float32"
        )


def _write_video(group: h5py.Group, video: ExportVideo, advance: Advance) -> None:
    group.attrs.update({"video_id": video.video_id, "patient_id": video.patient_id, "split": video.split})
    if video.source_names():
        group.attrs["source"] = ", ".join(video.source_names())
    group.create_dataset("frame_ids", data=video.frame_ids().astype(object), dtype=TEXT)
    for name, values in (("labels", video.labels()), ("segment", video.segments()), ("frame", video.frames())):
        group.create_dataset(name, data=values.astype("<i8"))
    matrices = (
        ("logits", video.file.num_phases, video.logit_blocks(TIME_CHANNEL)),
        ("features", video.file.num_channels, video.feature_blocks(TIME_CHANNEL)),
    )
    for name, width, blocks in matrices:
        chunks = (min(FRAMES_PER_CHUNK, video.num_frames), width)
        dataset = group.create_dataset(name, (video.num_frames, width), dtype="<f4", chunks=chunks)
        dataset.attrs["axes"] = TIME_CHANNEL
        dataset.dims[1].label = "channel"
        for first, block in blocks:
            dataset[first : first + len(block)] = block
            if name == "features":
                advance(len(block))
    for name in group:
        group[name].dims[0].label = "time"


def _problems(group: h5py.Group, video: ExportVideo) -> list[str]:
    num_frames = video.num_frames
    expected = {
        "features": (num_frames, video.file.num_channels),
        "logits": (num_frames, video.file.num_phases),
        **dict.fromkeys(("labels", "frame_ids", "segment", "frame"), (num_frames,)),
    }
    found = {name: dataset.shape for name, dataset in group.items()}
    if found != expected:
        return [f"{group.name}: holds {found}, not {expected}"]
    for name in ("features", "logits"):
        for start in range(0, num_frames, FRAMES_PER_READ):
            if not np.isfinite(group[name][start : start + FRAMES_PER_READ]).all():
                return [f"{group.name}/{name}: holds a value that is not finite"]
    return []
