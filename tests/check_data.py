"""A small clean data set to plant faults in, and the check of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tinydata import png_bytes, write_csv

from spatialfeat.check import examine
from spatialfeat.checks.estimate import Machine, Speeds
from spatialfeat.checks.findings import Finding
from spatialfeat.checks.report import CheckReport
from spatialfeat.checks.rows import read_tables
from spatialfeat.config import CheckConfig

SIZE_PX = (90, 80)
"""Above the 73 px that frames are resized to for an input of 64 px."""
PATIENTS = {"train": ("11", "12"), "val": ("21", "22"), "test": ("31", "32")}
NUM_FRAMES = 9

CPU = Machine(
    device="cpu", gpu_bytes=None, cores=4, workers=2, free_memory_bytes=None, free_disk_bytes=1_000_000_000_000
)
SPEEDS = Speeds(
    train_s=0.1,
    inference_s=0.05,
    load_train_s=0.04,
    load_eval_s=0.02,
    train_bytes=2_000_000_000,
    inference_bytes=1_000_000_000,
    probe_batch=8,
)


@dataclass
class DataSet:
    """rows: {split: [id, label]}; edit them, then `report`. Every image is other noise."""

    folder: Path
    rows: dict[str, list[list[str]]]
    patients: dict[str, list[str]] = field(default_factory=dict)
    """{split: the column patient}, of those that have one."""

    @property
    def img_dir(self) -> Path:
        return self.folder / "images"

    def csv(self, split: str) -> Path:
        return self.folder / f"{split}.csv"

    def image(self, split: str, row: int) -> Path:
        return self.img_dir / f"{self.rows[split][row][0]}.png"

    def write_csvs(self) -> None:
        for split, rows in self.rows.items():
            write_csv(self.csv(split), [(row[0], row[1]) for row in rows])
            if split in self.patients:
                lines = zip(self.csv(split).read_text().splitlines(), ["patient", *self.patients[split]], strict=True)
                self.csv(split).write_text("".join(f"{line},{patient}\n" for line, patient in lines))

    def add_video(self, split: str, video: str, *, frames: range = range(1, NUM_FRAMES + 1), seed: int = 900) -> None:
        """More frames with their images, labelled 0, 0, ..., 1, ..., 2."""
        for place, frame in enumerate(frames):
            frame_id = f"{video}_{frame:04d}"
            self.rows[split].append([frame_id, str(3 * place // len(frames))])
            (self.img_dir / f"{frame_id}.png").write_bytes(png_bytes(seed + place, SIZE_PX))

    def config(self, **options: Any) -> CheckConfig:
        defaults: dict[str, Any] = {
            "train_csv": self.csv("train"),
            "val_csv": self.csv("val"),
            "test_csv": self.csv("test"),
            "img_dir": self.img_dir,
            "out_dir": self.folder / "check",
            "num_classes": 3,
            "image_size_px": 64,
            "device": "cpu",
            "workers": 0,
            "estimate": False,
        }
        return CheckConfig(**{**defaults, **options})

    def report(self, **options: Any) -> CheckReport:
        """What is found, without writing it."""
        self.write_csvs()
        config = self.config(**options)
        return examine(config, *read_tables(config), torch.device("cpu"))


def make_clean(folder: Path) -> DataSet:
    """Two patients per split with one video each."""
    data = DataSet(folder, {split: [] for split in PATIENTS})
    data.img_dir.mkdir(parents=True)
    for split, patients in PATIENTS.items():
        for patient in patients:
            data.add_video(split, f"{patient}_1", seed=int(patient) * 100)
    data.write_csvs()
    return data


def found(report: CheckReport, code: str) -> Finding:
    """The one finding with this code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding


def codes(report: CheckReport) -> set[str]:
    return {finding.code for finding in report.findings}
