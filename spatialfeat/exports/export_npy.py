"""One .npy file per frame, and the CSVs that list them: `exportformats.NPY` shows the tree.

OUT/
  features_{split}/{id}.npy    (2048,) float32, little-endian
  {split}_ResNet_DB.csv        id, label; -100 where unlabelled, no column `label` if no frame of the split has one
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from spatialfeat.config import ExportConfig
from spatialfeat.exports.exportjob import Advance, ExportJob
from spatialfeat.exports.exportsource import ExportSource, ExportVideo, require_file_names
from spatialfeat.exports.npyfile import FLOAT32, npy_header
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import CsvTable, open_csv_text


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
