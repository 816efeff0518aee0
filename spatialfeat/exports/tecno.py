"""The pickles that TeCNO's second stage reads; formats.py shows the tree.

TeCNO knows its videos by number, and its splits are ranges of numbers; so videos are numbered train first, then val,
then test, then any other split, in numeric order of their ids within each.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import ExportConfig
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.exports.source import FLOAT32, Advance, ExportJob, ExportVideo
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import CsvTable, open_csv_text

PROTOCOL = 4
"""Readable since Python 3.4."""

PORTABLE_NAMES = {("numpy", "ndarray"), ("numpy", "dtype")}
"""All that a pickle of ours refers to. NumPy 1 and 2 both have these; `numpy._core` and `numpy.core` only one each."""

KNOWN_PHASES = 7
"""So many phases, those of Cholec80, TeCNO's metrics know."""

FULL_RATE_FPS = 25
"""TeCNO keeps every int(25 / features_subsampling)-th frame of a pickle, so 25 keeps all of them."""


class TecnoExport(ExportJob):
    """Numbers the videos. One video at a time is held in memory, because a pickle is written at once."""

    def __init__(self, config: ExportConfig, videos: Sequence[ExportVideo], notices: Sequence[str]) -> None:
        super().__init__(config, videos, notices)
        for video in self.videos:
            video.files[0].require_logits("TeCNO's pickles hold them: format tecno cannot be written")
        fps = self.provenance.fps
        self.rate = f"{fps:.1f}fps"
        if float(f"{fps:.1f}") != fps:
            self.notices.append(f"names say {self.rate} for features at {fps:g} fps, as TeCNO's do")
        self.numbered = dict(enumerate((video for part in self.per_split().values() for video in part), start=1))
        self.numbers: dict[str, list[int]] = {}
        """{split: numbers of its videos}."""
        for number, video in self.numbered.items():
            self.numbers.setdefault(video.split, []).append(number)
        self.ranges = ", ".join(f"{split} {numbers[0]} to {numbers[-1]}" for split, numbers in self.numbers.items())
        self.notices.append(f"videos are numbered {self.ranges}; videos.csv lists them")

    def write(self, target: Path, advance: Advance) -> None:
        (target / self.rate).mkdir()
        for number, video in self.numbered.items():
            content = [
                _whole(video.num_frames, self.num_channels, video.feature_blocks(TIME_CHANNEL)),
                _whole(video.num_frames, self.num_phases, video.logit_blocks(TIME_CHANNEL)),
                video.labels().astype("<i8"),
            ]
            with self._path(target, number).open("wb") as file:
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
            matrices = [("<f4", (video.num_frames, width)) for width in (self.num_channels, self.num_phases)]
            expected = [*matrices, ("<i8", (video.num_frames,))]
            found = [(array.dtype.str, array.shape) for array in arrays]
            if found != expected:
                problems.append(f"{path.name}: holds {found}, not {expected}")
            elif not all(np.isfinite(array).all() for array in arrays):
                problems.append(f"{path.name}: holds a value that is not finite")
        return problems

    def tree(self) -> list[str]:
        return [
            f"{self.rate}/  {count_text(len(self.videos), 'pickle')}: "
            f"stem (T, {self.num_channels}), logits (T, {self.num_phases}), labels (T,)",
            f"videos.csv  numbers {self.ranges}",
        ]

    def next_step(self) -> str:
        """Every line of TeCNO's code that must say something else for these videos than for Cholec80's."""
        lines = [
            "in a checkout of TeCNO, in modules/mstcn/config/config_tcn.yml, set",
            f"  data_root: {self.config.out.absolute()}",
            f"  features_per_seconds: {self.provenance.fps}",
            f"  features_subsampling: {FULL_RATE_FPS}    (its step is int({FULL_RATE_FPS} / this): keep every frame)",
            f"  out_features: {self.num_phases}",
            f"  mstcn_f_dim: {self.num_channels}",
            "  gpus: ['0']    (the first GPU; ['1'], which stands there, is the second)",
            "in datasets/cholec80.py, set the numbers of the videos and what is known of the phases:",
            *(f'  self.data_p["{split}"]: {numbers}' for split, numbers in self._ranges().items()),
            f"  self.class_labels = {list(self.provenance.phase_names)}",
            f'  self.weights["train"] = {self._class_weights()}',
            "    (from the frames of split train; the line that stands there weighs phases as Cholec80 needs it)",
        ]
        if self.num_phases > KNOWN_PHASES:
            lines += [
                "in modules/mstcn/tecno.py, in PrecisionOverClasses(...) and RecallOverClasse(...), set",
                f"  num_classes={self.num_phases}",
            ]
        lines += [
            "then run (tried with Python 3.8, torch 1.7.1 and pytorch-lightning 1.1.8)",
            "  WANDB_MODE=offline python train.py -c modules/mstcn/config/config_tcn.yml",
            "TeCNO writes no predictions; docs/temporal.md has the lines that make it, and how to score them.",
        ]
        return "\n".join(f"  {line}" for line in lines)

    def _ranges(self) -> dict[str, str]:
        """{split: what to write for i in range(41, 49) and the like}, also of splits without any video."""
        ranges = {split: f"range({numbers[0]}, {numbers[-1] + 1})" for split, numbers in self.numbers.items()}
        train = self.numbers.get("train", [])
        if not train:
            ranges["train"] = "no video has this split, and TeCNO cannot train without"
        if "val" not in self.numbers:
            last = len(train)
            instead = f"train {range(1, last)} and val {range(last, last + 1)}" if last > 1 else "it"
            ranges["val"] = (
                "no video has this split, but TeCNO chooses its epoch there, and 41 to 48 would stay in force; take "
                f"some from train, for example {instead}"
            )
        if "test" not in self.numbers:
            ranges["test"] = (
                "no video has this split, but TeCNO tests in the end, and 49 to 80 would stay in force; give it the "
                "numbers of val, and do not report that score"
            )
        return {split: ranges[split] for split in ("train", "val", "test")}

    def _class_weights(self) -> list[float]:
        """Median of the phases' frames in split train / frames of the phase, as TeCNO weighs Cholec80's; 1 if none."""
        counts = np.zeros(self.num_phases, dtype=np.int64)
        for number in self.numbers.get("train", ()):
            labels = self.numbered[number].labels()
            counts += np.bincount(labels[labels != UNLABELLED], minlength=self.num_phases)
        median = float(np.median(counts[counts > 0])) if counts.any() else 1.0
        return [round(median / count, 4) if count else 1.0 for count in counts.tolist()]

    def _path(self, target: Path, number: int) -> Path:
        return target / self.rate / f"video_{number:02d}_{self.rate}.pkl"


class PortablePickler(pickle.Pickler):
    """Pickles plain arrays by NumPy's public names only, so that NumPy 1 and NumPy 2 both read them."""

    def reducer_override(self, value: Any) -> Any:
        """An array as an empty `numpy.ndarray` that is then given its shape, type and bytes."""
        if type(value) is not np.ndarray:
            return NotImplemented
        return np.ndarray, ((0,), "b"), value.__reduce__()[2]


class PortableUnpickler(pickle.Unpickler):
    """Loads plain arrays, and refuses every name that not all versions of NumPy have."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PORTABLE_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not portable")
        return super().find_class(module, name)


def _whole(num_frames: int, width: int, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """(T, width) float32, little-endian, from (first frame, (n, width)) blocks."""
    values = np.empty((num_frames, width), dtype=FLOAT32)
    for first, block in blocks:
        values[first : first + len(block)] = block
    return values
