"""One .npy file per frame, and the CSVs that list them: `exportformats.NPY` shows the tree.

OUT/
  features_{split}/{id}.npy    (2048,) float32, little-endian
  {split}_ResNet_DB.csv        id, label; -100 where unlabelled, no column `label` if no frame of the split has one

All videos in one HDF5 file, time first: `exportformats.HDF5` shows it.

OUT                    attributes: format, schema, and how the features were made (phase_names, fps, ...)
  {video}/             attributes: video_id, patient_id, split, source (names of its feature files)
    features           (T, 2048) float32
    logits             (T, C) float32
    labels             (T,) int64, -100 where unlabelled
    frame_ids          (T,) UTF-8
    segment, frame     (T,) int64

One CSV per video: `exportformats.CSV` shows the tree.

OUT/
  {video}.csv    T rows; columns id, label (-100 where unlabelled), f0 ... f2047
"""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from spatialfeat import __version__
from spatialfeat.config import ExportConfig
from spatialfeat.exports.source import (
    FLOAT32,
    Advance,
    ExportJob,
    ExportSource,
    ExportVideo,
    npy_header,
    require_file_names,
)
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.features.writer import GuardedFile
from spatialfeat.files import CsvTable, open_csv_text, write_frame


class NpyExport(ExportJob):
    """Every frame becomes a file named by its id, in the folder of its split."""

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        super().__init__(source, config)
        require_file_names(source)

    def write(self, target: Path, advance: Advance) -> None:
        for split, videos in self.per_split().items():
            folder = target / f"features_{split}"
            folder.mkdir()
            labelled = _any_label(videos)
            with open_csv_text(target / _csv_name(split)) as text:
                table = CsvTable(text, ("id", "label") if labelled else ("id",))
                for video in videos:
                    ids = video.frame_ids().tolist()
                    table.add(zip(ids, video.labels().tolist(), strict=True) if labelled else zip(ids))
                    header = npy_header((video.file.num_channels,))
                    for first, block in video.feature_blocks(TIME_CHANNEL):
                        for frame_id, row in zip(ids[first:], block.astype(FLOAT32, copy=False), strict=False):
                            (folder / f"{frame_id}.npy").write_bytes(header + row.tobytes())
                        advance(len(block))

    def verify(self, target: Path) -> list[str]:
        problems = []
        for split, videos in self.per_split().items():
            folder = target / f"features_{split}"
            with (target / _csv_name(split)).open(encoding="utf-8", newline="") as text:
                listed = [row[0] for row in csv.reader(text)][1:]
            num_files = sum(1 for _ in folder.iterdir())
            num_frames = sum(video.num_frames for video in videos)
            if not len(listed) == len(set(listed)) == num_files == num_frames:
                problems.append(f"{split}: {len(listed)} rows and {num_files} files for {num_frames} frames")
            shape = (videos[0].file.num_channels,)
            for frame_id in listed:
                row = np.load(folder / f"{frame_id}.npy", allow_pickle=False)
                if row.dtype != FLOAT32 or row.shape != shape or not np.isfinite(row).all():
                    problems.append(f"{folder.name}/{frame_id}.npy: is {row.dtype.str} {row.shape}, or not finite")
        return problems

    def tree(self) -> list[str]:
        lines = []
        for split, videos in self.per_split().items():
            num_frames = sum(video.num_frames for video in videos)
            lines.append(f"features_{split}/  {num_frames} files, (2048,) float32, of {len(videos)} videos")
            columns = "id,label" if _any_label(videos) else "id"
            lines.append(f"{_csv_name(split)}  {num_frames} rows, {columns}")
        return lines

    def next_step(self) -> str:
        split, videos = next(iter(self.per_split().items()))
        example = videos[0].frame_ids()[0]
        return (
            f"  np.load({str(self.config.out / f'features_{split}' / f'{example}.npy')!r})    (2048,) float32;\n"
            "  point the temporal study at this folder"
        )


def _csv_name(split: str) -> str:
    return f"{split}_ResNet_DB.csv"


def _any_label(videos: list[ExportVideo]) -> bool:
    return any(video.num_unlabelled < video.file.num_frames for video in videos)


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
            provenance = self.source.provenance
            for name in provenance.__dataclass_fields__:
                if name == "layout":  # Feature files of both layouts may stand side by side; here all is time first.
                    continue
                value = getattr(provenance, name)
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
        num_phases = len(self.source.provenance.phase_names)
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
    for name, values in (("labels", video.labels()), ("segment", video.segments()), ("frame", video.frame_numbers())):
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


class CsvExport(ExportJob):
    """Numbers are written with as many digits as give back the same float32."""

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        super().__init__(source, config)
        require_file_names(source)

    @property
    def bytes_per_frame(self) -> int:
        """A float32 is about 11 characters long."""
        return 11 * self.source.videos[0].file.num_channels

    def write(self, target: Path, advance: Advance) -> None:
        for video in self.videos:
            ids, labels = video.frame_ids(), video.labels()
            with open_csv_text(target / f"{video.video_id}.csv") as text:
                for first, block in video.feature_blocks(TIME_CHANNEL):
                    table = pd.DataFrame(block, columns=[f"f{channel}" for channel in range(block.shape[1])])
                    table.insert(0, "label", labels[first : first + len(block)])
                    table.insert(0, "id", ids[first : first + len(block)])
                    write_frame(table, text, header=first == 0)
                    advance(len(block))

    def verify(self, target: Path) -> list[str]:
        problems = []
        for video in self.videos:
            path = target / f"{video.video_id}.csv"
            num_rows = 0
            for table in pd.read_csv(path, dtype={"id": str}, chunksize=1024):
                num_rows += len(table)
                if not np.isfinite(table.drop(columns="id").to_numpy(dtype=np.float64)).all():
                    problems.append(f"{path.name}: holds a value that is not a finite number")
            if num_rows != video.num_frames:
                problems.append(f"{path.name}: {num_rows} rows for {video.num_frames} frames")
        return problems

    def tree(self) -> list[str]:
        return [f"{{video}}.csv  {len(self.videos)} files, {self.num_frames} rows: id, label, f0 ... f2047"]

    def next_step(self) -> str:
        path = self.config.out / f"{self.videos[0].video_id}.csv"
        return f"  pandas.read_csv({str(path)!r}, dtype={{'id': str}})"
