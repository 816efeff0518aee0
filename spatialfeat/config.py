"""Every option of every command with its default, written once. The command line reads its defaults from here.

Only the standard library is imported, so that `spatialfeat --help` stays fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spatialfeat.errors import SpatialfeatError
from spatialfeat.exportformats import FORMATS, LIMITED_OPTIONS
from spatialfeat.safetext import label_problem

TRAIN_CSV = Path("train_ResNet_DB.csv")
VAL_CSV = Path("val_ResNet_DB.csv")
TEST_CSV = Path("test_ResNet_DB.csv")
IMG_DIR = Path("images")
WEIGHTS_NAME = "best_spatial_study_weights.pth"
PREDICTIONS_NAME = "predictions_resnet.csv"

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LAYOUTS = ("channel-first", "time-first")
GROUPINGS = ("video", "patient")
CLASS_WEIGHTS = ("none", "balanced")
VAL_TARGETS = ("own", "train", "test", "drop")

CACHE_LIMIT_GB = 100.0
"""Room for the 214,000 training and 56,000 validation frames of 456x256 that the specification's study has."""

CACHE_SIZE_RATIO = 320 / 224
"""Shorter side of cached training frames, as a multiple of the network's input: see docs/architecture.md."""

NUM_CHILDREN = 10
"""Children of a torchvision ResNet: conv1, bn1, relu, maxpool, layer1..layer4, avgpool, fc."""


@dataclass(frozen=True)
class Shard:
    """The share `index` of `count` of an extraction, counted from 1 as job arrays are."""

    index: int = 1
    count: int = 1

    @property
    def run_record_name(self) -> str:
        """`run.json` of a whole extraction, `run-2of4.json` of a share, so that shares do not overwrite each other."""
        return "run.json" if self.count == 1 else f"run-{self.index}of{self.count}.json"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The specified study. `test_csv=None` means `test_ResNet_DB.csv` if it is there; `workers=None` is automatic.

    `cache_size_px=None` is CACHE_SIZE_RATIO of `image_size_px`.
    """

    train_csv: Path = TRAIN_CSV
    val_csv: Path = VAL_CSV
    test_csv: Path | None = None
    img_dir: Path = IMG_DIR
    out_dir: Path = Path()
    num_classes: int = 7
    phase_names: tuple[str, ...] | None = None
    batch_size: int = 32
    lr: float = 1e-4
    epochs: int = 50
    freeze_until: int = 6
    patience: int = 10
    lr_patience: int = 3
    lr_factor: float = 0.5
    weights: str = "imagenet"
    reset_classifier: bool = False
    class_weights: str = "none"
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    image_size_px: int = 224
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None
    cache_dir: Path | None = None
    cache_size_px: int | None = None
    cache_limit_gb: float = CACHE_LIMIT_GB
    seed: int = 0
    resume: bool = False
    keep_state: bool = False
    tensorboard: bool = True

    @property
    def training_frames_px(self) -> int | None:
        """The shorter side that larger training frames are shrunk to: only a cache does that."""
        if self.cache_dir is None:
            return None
        return self.cache_size_px or round(self.image_size_px * CACHE_SIZE_RATIO)

    def __post_init__(self) -> None:
        at_least("--num-classes", self.num_classes, 2)
        at_least("--epochs", self.epochs, 1)
        at_least("--patience", self.patience, 1)
        at_least("--lr-patience", self.lr_patience, 0)
        at_least("--seed", self.seed, 0)
        # At 64 px the last stage is still 2x2, so BatchNorm has several values even for a batch of one frame.
        at_least("--image-size", self.image_size_px, 64)
        if not 0 < self.lr < float("inf"):
            raise SpatialfeatError(f"--lr {self.lr}: must be a positive number, e.g. 1e-4")
        if not 0 < self.lr_factor < 1:
            raise SpatialfeatError(f"--lr-factor {self.lr_factor}: must lie between 0 and 1, e.g. 0.5")
        if not 0 <= self.freeze_until < NUM_CHILDREN:
            raise SpatialfeatError(
                f"--freeze-until {self.freeze_until}: must be 0 (train everything) to {NUM_CHILDREN - 1} "
                "(train the classifier only)"
            )
        one_of("--class-weights", self.class_weights, CLASS_WEIGHTS)
        if not 0 <= self.label_smoothing < 1:
            raise SpatialfeatError(
                f"--label-smoothing {self.label_smoothing}: must be at least 0 (off) and less than 1, e.g. 0.1"
            )
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < float("inf"):
            raise SpatialfeatError(f"--clip-grad-norm {self.clip_grad_norm}: must be a positive number, e.g. 1.0")
        check_loading(self.batch_size, self.workers, self.precision)
        check_cache(self.cache_limit_gb)
        if self.cache_size_px is not None:
            if self.cache_dir is None:
                raise SpatialfeatError("--cache-size: has no meaning without --cache")
            # Below the input's side, even a whole frame would be enlarged.
            at_least("--cache-size", self.cache_size_px, self.image_size_px)
        check_phase_names(self.phase_names, self.num_classes)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract. `csvs` holds `PATH` or `SPLIT=PATH`; empty means the specification's three files.

    `shard` is `I/N`: only the I-th of N shares of the videos.
    """

    csvs: tuple[str, ...] = ()
    img_dir: Path = IMG_DIR
    weights: Path = Path(WEIGHTS_NAME)
    out_dir: Path = Path("features")
    group_by: str = "video"
    layout: str = "channel-first"
    fps: float = 1.0
    overwrite: bool = False
    pseudonymize: Path | None = None
    shard: str | None = None
    num_classes: int | None = None
    phase_names: tuple[str, ...] | None = None
    batch_size: int = 32
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None
    cache_dir: Path | None = None
    cache_limit_gb: float = CACHE_LIMIT_GB

    def __post_init__(self) -> None:
        one_of("--group-by", self.group_by, GROUPINGS)
        one_of("--layout", self.layout, LAYOUTS)
        if not 0 < self.fps < float("inf"):
            raise SpatialfeatError(f"--fps {self.fps}: must be a positive number of frames per second, e.g. 1")
        check_loading(self.batch_size, self.workers, self.precision)
        check_cache(self.cache_limit_gb)
        parse_shard(self.shard)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export. `unlabelled=None` is the format's own default: see `exportformats`.

    `val_to`, for ms-tcn without folds: the videos of split val get a bundle of their own, which MS-TCN itself does not
    read, so that neither training nor test set changes behind the user's back.
    """

    format: str
    features_dir: Path
    out: Path
    group_by: str = "video"
    unlabelled: str | None = None
    background_name: str = "background"
    val_to: str = "own"
    folds: Path | None = None
    id_replacement: str | None = None
    name_replacement: str | None = None
    skip_short: bool = False
    allow_small_bundles: bool = False
    pseudonymize: Path | None = None

    def __post_init__(self) -> None:
        one_of("FORMAT", self.format, tuple(FORMATS))
        one_of("--group-by", self.group_by, GROUPINGS)
        one_of("--val-to", self.val_to, VAL_TARGETS)
        form = FORMATS[self.format]
        if self.unlabelled is not None and self.unlabelled not in form.unlabelled:
            raise SpatialfeatError(
                f"--unlabelled {self.unlabelled}: must be one of {', '.join(form.unlabelled)} for {self.format}"
            )
        for name in LIMITED_OPTIONS:
            if name not in form.options and getattr(self, name) != self.__dataclass_fields__[name].default:
                able = ", ".join(other.name for other in FORMATS.values() if name in other.options)
                raise SpatialfeatError(
                    f"--{name.replace('_', '-')}: has no meaning for {self.format}, only for {able}; leave it out"
                )
        if self.folds is not None and self.val_to != ExportConfig.val_to:
            raise SpatialfeatError("--val-to: has no meaning with --folds, which says where each video belongs")
        if self.background_name != ExportConfig.background_name and self.unlabelled != "background":
            raise SpatialfeatError("--background-name: has no meaning without --unlabelled background")


def default_phase_names(num_classes: int) -> tuple[str, ...]:
    """`phase_0`, `phase_1`, ...: used where nobody named the phases."""
    return tuple(f"phase_{index}" for index in range(num_classes))


def check_phase_names(phase_names: tuple[str, ...] | None, num_classes: int) -> None:
    """Refuse names that are too few, too many, empty or repeated."""
    if phase_names is None:
        return
    if len(phase_names) != num_classes:
        raise SpatialfeatError(
            f"--phase-names: {len(phase_names)} names for {num_classes} classes; "
            "give one name per class, in label order, or pass --num-classes"
        )
    for name in phase_names:
        problem = label_problem(name)
        if problem is not None:
            raise SpatialfeatError(f"--phase-names: {name[:80]!r} {problem}; every name must be present and unique")
    if len(set(phase_names)) != num_classes:
        raise SpatialfeatError(f"--phase-names: {', '.join(phase_names)}: every name must be present and unique")


def parse_shard(text: str | None) -> Shard:
    """`2/4` as the second of four, and a whole extraction as 1 of 1."""
    if text is None:
        return Shard()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or int(match[2]) == 0:
        raise SpatialfeatError(f"--shard {text}: must be I/N, the I-th of N shares, e.g. 1/4")
    shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.index <= shard.count:
        raise SpatialfeatError(
            f"--shard {text}: shares count from 1, so pass 1/{shard.count} to {shard.count}/{shard.count} "
            f"(Slurm: --array=1-{shard.count})"
        )
    return shard


def check_loading(batch_size: int, workers: int | None, precision: str) -> None:
    """Refuse impossible values of the options that all commands with a network share."""
    at_least("--batch-size", batch_size, 1)
    if workers is not None:
        at_least("--workers", workers, 0)
    one_of("--precision", precision, PRECISIONS)


def check_cache(limit_gb: float) -> None:
    """Refuse a --cache-limit that is no size."""
    if not 0 < limit_gb < float("inf"):
        raise SpatialfeatError(f"--cache-limit {limit_gb:g}: must be a positive number of gigabytes, e.g. 100")


def at_least(option: str, value: int, minimum: int) -> None:
    """Refuse a value below the minimum, naming the option."""
    if value < minimum:
        raise SpatialfeatError(f"{option} {value}: must be at least {minimum}")


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of these, naming the option."""
    if value not in allowed:
        raise SpatialfeatError(f"{option} {value}: must be one of {', '.join(allowed)}")
