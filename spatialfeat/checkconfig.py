"""Options of `spatialfeat check`: those of finetune that concern data and speed, and a few of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from spatialfeat.config import FinetuneConfig
from spatialfeat.errors import SpatialfeatError


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to check, and the study it is checked for.

    csvs: `PATH` or `SPLIT=PATH`, as extract takes them; empty means the three of finetune. decode=False looks only at
    the ends of the files. estimate=False leaves the network out.
    """

    train_csv: Path = FinetuneConfig.train_csv
    val_csv: Path = FinetuneConfig.val_csv
    test_csv: Path | None = None
    csvs: tuple[str, ...] = ()
    img_dir: Path = FinetuneConfig.img_dir
    out_dir: Path = Path("check")
    num_classes: int = FinetuneConfig.num_classes
    phase_names: tuple[str, ...] | None = None
    fps: float = 1.0
    batch_size: int = FinetuneConfig.batch_size
    epochs: int = FinetuneConfig.epochs
    patience: int = FinetuneConfig.patience
    freeze_until: int = FinetuneConfig.freeze_until
    image_size_px: int = FinetuneConfig.image_size_px
    device: str = FinetuneConfig.device
    precision: str = FinetuneConfig.precision
    workers: int | None = None
    decode: bool = True
    estimate: bool = True

    def __post_init__(self) -> None:
        self.study()
        if not 0 < self.fps < float("inf"):
            raise SpatialfeatError(f"--fps {self.fps}: must be a positive number of frames per second, e.g. 1")
        named = [name for name in ("train_csv", "val_csv", "test_csv") if getattr(self, name) != getattr(DEFAULT, name)]
        if self.csvs and named:
            option = f"--{named[0].replace('_', '-')}"
            raise SpatialfeatError(f"--csv and {option}: name the CSVs in one way; leave one of the two out")

    def study(self) -> FinetuneConfig:
        """The fine-tuning that these options stand for. Raises SpatialfeatError where finetune would refuse them."""
        shared = {field.name for field in fields(FinetuneConfig)} & {field.name for field in fields(self)}
        return FinetuneConfig(**{name: getattr(self, name) for name in shared - {"out_dir"}})


DEFAULT = FinetuneConfig()
