"""The pickles that TeCNO's second stage reads: `exportformats.TECNO` shows them.

    OUT/
      {fps:.1f}fps/video_{nn:02d}_{fps:.1f}fps.pkl
          a list of three arrays: stem (T, 2048) float32, logits (T, C) float32, labels (T,) int64
      videos.csv    nn, video, split, frames

TeCNO knows its videos by number, and its splits are ranges of numbers; so videos are numbered train first, then val,
then test, then any other split, in numeric order of their ids within each.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import ExportConfig
from spatialfeat.exports.source import Advance, ExportJob, ExportSource, ExportVideo
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import CsvTable, open_csv_text

PROTOCOL = 4
"""Readable since Python 3.4."""

PORTABLE_NAMES = {("numpy", "ndarray"), ("numpy", "dtype")}
"""All that a pickle of ours refers to. NumPy 1 and 2 both have these; `numpy._core` and `numpy.core` only one each."""

FULL_RATE_FPS = 25
"""TeCNO keeps every int(25 / features_subsampling)-th frame of a pickle, so 25 keeps all of them."""


class TecnoExport(ExportJob):
    """Numbers the videos. One video at a time is held in memory, because a pickle is written at once."""

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        super().__init__(source, config)
        self.rate = f"{source.provenance.fps:.1f}fps"
        if float(f"{source.provenance.fps:.1f}") != source.provenance.fps:
            self.notices.append(f"names say {self.rate} for features at {source.provenance.fps:g} fps, as TeCNO's do")
        self.numbered = dict(enumerate((video for part in self.per_split().values() for video in part), start=1))
        self.notices.append(f"videos are numbered {self._ranges()}; videos.csv tells which is which")

    def write(self, target: Path, advance: Advance) -> None:
        (target / self.rate).mkdir()
        for number, video in self.numbered.items():
            with self._path(target, number).open("wb") as file:
                content = [
                    _whole(video, video.file.num_channels, video.feature_blocks(TIME_CHANNEL)),
                    _whole(video, video.file.num_phases, video.logit_blocks(TIME_CHANNEL)),
                    video.labels().astype("<i8"),
                ]
                PortablePickler(file, protocol=PROTOCOL).dump(content)
            advance(video.num_frames)
        with open_csv_text(target / "videos.csv") as text:
            table = CsvTable(text, ("nn", "video", "split", "frames"))
            table.add(
                (f"{nn:02d}", video.video_id, video.split, video.num_frames) for nn, video in self.numbered.items()
            )

    def verify(self, target: Path) -> list[str]:
        problems = []
        for number, video in self.numbered.items():
            path = self._path(target, number)
            with path.open("rb") as file:
                try:
                    arrays = PortableUnpickler(file).load()
                except (pickle.UnpicklingError, EOFError) as error:
                    problems.append(f"{path.name}: cannot be read ({error})")
                    continue
            num_frames, num_phases = video.num_frames, video.file.num_phases
            expected = [("<f4", (num_frames, video.file.num_channels)), ("<f4", (num_frames, num_phases)),
                        ("<i8", (num_frames,))]  # fmt: skip
            found = [(array.dtype.str, array.shape) for array in arrays]
            if found != expected:
                problems.append(f"{path.name}: holds {found}, not {expected}")
            elif not all(np.isfinite(array).all() for array in arrays):
                problems.append(f"{path.name}: holds a value that is not finite")
        return problems

    def tree(self) -> list[str]:
        return [
            f"{self.rate}/  {len(self.numbered)} pickles: stem (T, 2048), logits (T, {self._num_phases}), labels (T,)",
            f"videos.csv  numbers {self._ranges()}",
        ]

    def next_step(self) -> str:
        return (
            "  in TeCNO's modules/mstcn/config/config_tcn.yml set\n"
            f"  data_root: {self.config.out.absolute()}\n"
            f"  features_per_seconds: {self.source.provenance.fps}\n"
            f"  features_subsampling: {FULL_RATE_FPS}    (its step is int({FULL_RATE_FPS} / this): keep every frame)\n"
            f"  out_features: {self._num_phases}\n"
            "  and in datasets/cholec80.py, where splits, class names and class weights stand in the code, set\n"
            f"  {self._python_ranges()}\n"
            "  then run python train.py -c modules/mstcn/config/config_tcn.yml"
        )

    @property
    def _num_phases(self) -> int:
        return len(self.source.provenance.phase_names)

    def _path(self, target: Path, number: int) -> Path:
        return target / self.rate / f"video_{number:02d}_{self.rate}.pkl"

    def _spans(self) -> Iterator[tuple[str, int, int]]:
        """(split, its first number, its last number)."""
        first = 1
        for split, videos in self.per_split().items():
            yield split, first, first + len(videos) - 1
            first += len(videos)

    def _ranges(self) -> str:
        return ", ".join(f"{split} {first} to {last}" for split, first, last in self._spans())

    def _python_ranges(self) -> str:
        return ", ".join(f"{split}: range({first}, {last + 1})" for split, first, last in self._spans())


class PortablePickler(pickle.Pickler):
    """Pickles plain arrays by NumPy's public names only, so that NumPy 1 and NumPy 2 both read them."""

    def reducer_override(self, value: Any) -> Any:
        """An array as an empty `numpy.ndarray` that is then given its shape, type and bytes."""
        if type(value) is not np.ndarray:
            return NotImplemented
        state = value.__reduce__()[2]
        return np.ndarray, ((0,), "b"), state


class PortableUnpickler(pickle.Unpickler):
    """Loads plain arrays, and refuses every name that not all versions of NumPy have."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PORTABLE_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not portable")
        return super().find_class(module, name)


def _whole(video: ExportVideo, width: int, blocks: Iterator[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """(T, width) float32, little-endian, from (first frame, (n, width)) blocks."""
    values = np.empty((video.num_frames, width), dtype="<f4")
    for first, block in blocks:
        values[first : first + len(block)] = block
    return values
