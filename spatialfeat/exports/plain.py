"""Formats for code of one's own: a .npy file per frame, one HDF5 file, or CSVs; `formats` shows the trees."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from spatialfeat import __version__
from spatialfeat.config import WEIGHTS_NAME, csv_name
from spatialfeat.console import count_text, name_some
from spatialfeat.exports.source import (
    FLOAT32,
    FRAMES_PER_BLOCK,
    Advance,
    ExportJob,
    ExportVideo,
    npy_header,
)
from spatialfeat.features.schema import TIME_CHANNEL, WEIGHTS_ORIGIN
from spatialfeat.features.writer import GuardedFile
from spatialfeat.files import CsvTable, open_csv_text, write_frame
from spatialfeat.names import file_name

STUDY_WINDOW = 300
"""Frames of a window of the pituitary temporal study."""


class NpyExport(ExportJob):
    """Every frame becomes a file named by its id, in the folder of its split."""

    def write(self, target: Path, advance: Advance) -> None:
        header = npy_header((self.num_channels,))
        for split, videos in self.per_split().items():
            folder = target / f"features_{split}"
            folder.mkdir()
            labelled = _any_label(videos)
            with open_csv_text(target / csv_name(split)) as text:
                table = CsvTable(text, ("id", "label") if labelled else ("id",))
                for video in videos:
                    ids = video.ids()
                    table.add(zip(ids, video.labels().tolist(), strict=True) if labelled else zip(ids))
                    for first, block in video.feature_blocks(TIME_CHANNEL):
                        for frame_id, row in zip(ids[first:], block.astype(FLOAT32, copy=False), strict=False):
                            path = folder / f"{frame_id}.npy"
                            if "/" in frame_id:
                                path.parent.mkdir(parents=True, exist_ok=True)
                            path.write_bytes(header + row.tobytes())
                        advance(len(block))

    def verify(self, target: Path) -> list[str]:
        problems = []
        for split, videos in self.per_split().items():
            folder = target / f"features_{split}"
            with (target / csv_name(split)).open(encoding="utf-8", newline="") as text:
                listed = [row[0] for row in csv.reader(text)][1:]
            num_files = sum(1 for _ in folder.rglob("*.npy"))
            num_frames = sum(video.num_frames for video in videos)
            if not len(listed) == len(set(listed)) == num_files == num_frames:
                problems.append(f"{split}: {len(listed)} rows and {num_files} files for {num_frames} frames")
            for frame_id in listed:
                row = np.load(folder / f"{frame_id}.npy", allow_pickle=False)
                if row.dtype != FLOAT32 or row.shape != (self.num_channels,) or not np.isfinite(row).all():
                    problems.append(f"{folder.name}/{frame_id}.npy: is {row.dtype.str} {row.shape}, or not finite")
        return problems

    def tree(self) -> list[str]:
        lines = []
        for split, videos in self.per_split().items():
            num_frames = sum(video.num_frames for video in videos)
            lines += [
                f"features_{split}/  {count_text(num_frames, 'file')}, ({self.num_channels},) float32, "
                f"of {count_text(len(videos), 'video')}",
                f"{csv_name(split)}  {count_text(num_frames, 'row')}, {'id,label' if _any_label(videos) else 'id'}",
            ]
        return lines

    def next_step(self) -> str:
        split, videos = next(iter(self.per_split().items()))
        example = self.config.out / f"features_{split}" / f"{videos[0].ids()[0]}.npy"
        lines = [
            f"np.load({str(example)!r})    ({self.num_channels},) float32",
            "The temporal study of the pituitary data: copy its temporal_study.py and your",
            f"{WEIGHTS_NAME} into this folder, and run it here; it finds the features and",
            "extracts none. Its windows take 300 frames of a patient; its second GPU (cuda:1) may have to be cuda:0.",
        ]
        frames: Counter[str] = Counter()
        for video in self.videos:
            frames[video.patient_id] += video.num_frames
        short = [f"{patient} ({count})" for patient, count in frames.items() if count < STUDY_WINDOW]
        if short:
            lines.append(f"It leaves out, without a word, patients with fewer frames: {name_some(short)}.")
        lines.append(
            "Its .view(B_ * T_, C_) mixes phases and time; what to write there, and its other programs, are in"
        )
        lines.append("docs/temporal.md, with combined_ResNet_DB.csv for its ribbons and how to score its results.")
        return "\n".join(f"  {line}" for line in lines)


def _any_label(videos: list[ExportVideo]) -> bool:
    return any(video.num_labelled for video in videos)


class Hdf5Export(ExportJob):
    """One group per video, in numeric order of the ids."""

    FRAMES_PER_CHUNK = 64

    def write(self, target: Path, advance: Advance) -> None:
        attributes = {"format": "spatialfeat aggregate", "schema": 1, "spatialfeat": __version__}
        attributes |= asdict(self.provenance)
        if self.weights_origin:
            attributes[WEIGHTS_ORIGIN] = self.weights_origin
        del attributes["layout"]  # Feature files of both layouts may stand side by side; here all is time first.
        with GuardedFile(target, self.config.out) as guard:
            with h5py.File(guard, "w", track_order=True) as file:
                file.attrs.update(attributes)
                for video in self.videos:
                    self._write_video(file.create_group(file_name(video.video_id)), video, advance)
                    guard.check()
            guard.check()

    def _write_video(self, group: h5py.Group, video: ExportVideo, advance: Advance) -> None:
        group.attrs.update({"video_id": video.video_id, "patient_id": video.patient_id, "split": video.split})
        if video.pseudonyms is None:  # The names of the files would give the patient away.
            group.attrs["source"] = ", ".join(file.path.name for file in video.files)
        group.create_dataset("frame_ids", data=video.ids(), dtype=h5py.string_dtype("utf-8"))
        group.create_dataset("labels", data=video.labels().astype("<i8"))
        group.create_dataset("segment", data=video.segments().astype("<i8"))
        group.create_dataset("frame", data=video.frame_numbers().astype("<i8"))
        logits = [("logits", video.logit_blocks)] if self.has_logits else []
        for name, read in (*logits, ("features", video.feature_blocks)):
            shape = self._shapes(video)[name]
            chunks = (min(self.FRAMES_PER_CHUNK, video.num_frames), shape[1])
            dataset = group.create_dataset(name, shape, dtype=FLOAT32, chunks=chunks)
            dataset.attrs["axes"] = TIME_CHANNEL
            dataset.dims[1].label = "channel"
            for first, block in read(TIME_CHANNEL):
                dataset[first : first + len(block)] = block
                if name == "features":
                    advance(len(block))
        for name in group:
            group[name].dims[0].label = "time"

    def verify(self, target: Path) -> list[str]:
        with h5py.File(target, "r", locking=False) as file:
            if set(file) != {file_name(video.video_id) for video in self.videos}:
                return [f"{target.name}: holds {len(file)} groups for {len(self.videos)} videos"]
            return [
                problem for video in self.videos for problem in self._problems(file[file_name(video.video_id)], video)
            ]

    def _problems(self, group: h5py.Group, video: ExportVideo) -> list[str]:
        expected, found = self._shapes(video), {name: dataset.shape for name, dataset in group.items()}
        if found != expected:
            return [f"{group.name}: holds {found}, not {expected}"]
        for name in ("features", "logits") if self.has_logits else ("features",):
            for start in range(0, video.num_frames, FRAMES_PER_BLOCK):
                if not np.isfinite(group[name][start : start + FRAMES_PER_BLOCK]).all():
                    return [f"{group.name}/{name}: holds a value that is not finite"]
        return []

    def _shapes(self, video: ExportVideo) -> dict[str, tuple[int, ...]]:
        return {
            "features": (video.num_frames, self.num_channels),
            **({"logits": (video.num_frames, self.num_phases)} if self.has_logits else {}),
            **dict.fromkeys(("labels", "frame_ids", "segment", "frame"), (video.num_frames,)),
        }

    def tree(self) -> list[str]:
        return [
            f"{count_text(len(self.videos), 'group')}, one per video: features (T, {self.num_channels}), "
            f"{f'logits (T, {self.num_phases}), ' if self.has_logits else ''}labels (T,), ..."
        ]

    def next_step(self) -> str:
        video = self.videos[0]
        return (
            f"  with h5py.File({str(self.config.out)!r}) as file:\n"
            f"      features = file[{file_name(video.video_id)!r}]['features'][:]    "
            f"# ({video.num_frames}, {self.num_channels}) float32"
        )


class CsvExport(ExportJob):
    """One table per video. Numbers are written with as many digits as give back the same float32."""

    @property
    def bytes_per_frame(self) -> int:
        """A float32 is about 11 characters long."""
        return 11 * self.num_channels

    def write(self, target: Path, advance: Advance) -> None:
        columns = [f"f{channel}" for channel in range(self.num_channels)]
        for video in self.videos:
            ids, labels = video.ids(), video.labels()
            with open_csv_text(target / f"{file_name(video.video_id)}.csv") as text:
                for first, block in video.feature_blocks(TIME_CHANNEL):
                    table = pd.DataFrame(block, columns=columns)
                    table.insert(0, "label", labels[first : first + len(block)])
                    table.insert(0, "id", ids[first : first + len(block)])
                    write_frame(table, text, header=first == 0)
                    advance(len(block))

    def verify(self, target: Path) -> list[str]:
        problems = []
        for video in self.videos:
            path = target / f"{file_name(video.video_id)}.csv"
            num_rows = 0
            for table in pd.read_csv(path, dtype={"id": str}, chunksize=1024):
                num_rows += len(table)
                if not np.isfinite(table.drop(columns="id").to_numpy(dtype=np.float64)).all():
                    problems.append(f"{path.name}: holds a value that is not a finite number")
            if num_rows != video.num_frames:
                problems.append(f"{path.name}: {num_rows} rows for {video.num_frames} frames")
        return problems

    def tree(self) -> list[str]:
        files, rows = count_text(len(self.videos), "file"), count_text(self.num_frames, "row")
        return [f"{{video}}.csv  {files}, {rows}: id, label, f0 ... f{self.num_channels - 1}"]

    def next_step(self) -> str:
        path = self.config.out / f"{file_name(self.videos[0].video_id)}.csv"
        return f"  pandas.read_csv({str(path)!r}, dtype={{'id': str}})"
