"""One CSV per video: `exportformats.CSV` shows the tree.

OUT/
  {video}.csv    T rows; columns id, label (-100 where unlabelled), f0 ... f2047
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from spatialfeat.config import ExportConfig
from spatialfeat.exports.exportjob import Advance, ExportJob
from spatialfeat.exports.exportsource import ExportSource, require_file_names
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import open_csv_text, write_frame


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
