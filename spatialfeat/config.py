"""Every option of every command with its default, written once. The command line reads its defaults from here.

Only the standard library is imported, so that `spatialfeat --help` stays fast.

Options of `spatialfeat check`: those of finetune that concern data and speed, and a few of its own.

Options of `spatialfeat evaluate`: which predictions are scored, and how.

Like `config`, this module imports the standard library only, so that `spatialfeat --help` stays fast.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from spatialfeat.errors import SpatialfeatError
from spatialfeat.formats import FORMATS, LIMITED_OPTIONS
from spatialfeat.names import label_problem

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

CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
"""The children of a torchvision ResNet, which --freeze-until counts."""


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
        if not 0 <= self.freeze_until < len(CHILDREN):
            raise SpatialfeatError(
                f"--freeze-until {self.freeze_until}: must be 0 (train everything) to {len(CHILDREN) - 1} "
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


CHOLEC80_GRAPH = "cholec80"
"""The word that stands for the built-in transition graph in `--relaxed`."""

DEFAULT_NUM_PHASES = 7
"""The specification's number of phases, where neither weights, feature files nor options tell it."""


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Frames that are predicted with a weights file, and the defaults of the options that only this source has."""

    weights: Path = Path(WEIGHTS_NAME)
    csv: Path = TEST_CSV
    img_dir: Path = IMG_DIR
    batch_size: int = 32
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_loading(self.batch_size, self.workers, self.precision)


@dataclass(frozen=True, kw_only=True)
class FeaturesSource:
    """Feature files, whose logits are the predictions. split "all": every file of the folder."""

    features: Path
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class PredictionsSource:
    """Predictions files, each `PATH` or `NAME=PATH`; csv holds the ground truth if the files do not."""

    predictions: tuple[str, ...]
    csv: Path | None = None


Source = WeightsSource | FeaturesSource | PredictionsSource


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and how.

    One source: `predictions`, or `features`, or weights (the default). An option that only some sources have is None
    unless given, so that one that would do nothing is refused; `source` fills in the defaults.

    num_classes, phase_names: None takes them from weights or feature files; predictions files have none, see
    `DEFAULT_NUM_PHASES`. relaxed: "cholec80" or the path of a transition graph. fps: scored frames per second.
    """

    predictions: tuple[str, ...] = ()
    features: Path | None = None
    split: str | None = None
    csv: Path | None = None
    img_dir: Path | None = None
    weights: Path | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    workers: int | None = None
    out_dir: Path = Path("evaluation")
    num_classes: int | None = None
    phase_names: tuple[str, ...] | None = None
    group_by: str = "video"
    relaxed: str | None = None
    relaxed_window: float | None = None
    fps: float | None = None
    bootstrap: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        self._refuse_options_without_effect()
        _ = self.source  # Built once here, so that its values are checked at once.
        if self.num_classes is not None:
            at_least("--num-classes", self.num_classes, 2)
        at_least("--bootstrap", self.bootstrap, 0)
        at_least("--seed", self.seed, 0)
        one_of("--group-by", self.group_by, GROUPINGS)
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise SpatialfeatError(f"--fps {self.fps}: must be a positive number of scored frames per second, e.g. 1")
        if self.relaxed_window is not None and not 0 <= self.relaxed_window < float("inf"):
            raise SpatialfeatError(f"--relaxed-window {self.relaxed_window}: must be a number of seconds, 0 or more")
        if self.relaxed_window is not None and self.relaxed is None:
            raise SpatialfeatError(
                "--relaxed-window does nothing without --relaxed; pass --relaxed cholec80 or --relaxed GRAPH.csv"
            )
        if self.relaxed is not None and self.fps is None and self.features is None:
            raise SpatialfeatError(
                f"--relaxed {self.relaxed}: the window is given in seconds; pass --fps, the number of scored "
                "frames per second (only feature files know it themselves)"
            )

    @property
    def source(self) -> Source:
        """Where the predictions come from, with the defaults of its options."""
        if self.predictions:
            return PredictionsSource(predictions=self.predictions, csv=self.csv)
        kind: type[Any] = WeightsSource if self.features is None else FeaturesSource
        given = {name: getattr(self, name) for name in _option_names(kind)}
        found: Source = kind(**{name: value for name, value in given.items() if value is not None})
        return found

    def resolved(self) -> EvaluateConfig:
        """The same options with the source's defaults filled in, as `run.json` records them."""
        return replace(self, **asdict(self.source))

    def _refuse_options_without_effect(self) -> None:
        if self.predictions and self.features is not None:
            raise SpatialfeatError("--predictions and --features are two sources; score one of them at a time")
        if self.predictions:
            kind: type[Any] = PredictionsSource
            reason = "with --predictions nothing is computed from images or features"
        elif self.features is not None:
            kind, reason = FeaturesSource, "with --features labels and logits come from the feature files"
        else:
            kind, reason = WeightsSource, "it chooses among the feature files of --features"
        own = _option_names(kind)
        others = set().union(*map(_option_names, (WeightsSource, FeaturesSource, PredictionsSource))) - own
        surplus = [name for name in sorted(others) if getattr(self, name) not in (None, ())]
        if surplus:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in surplus)
            does, it = ("does", "it") if len(surplus) == 1 else ("do", "them")
            raise SpatialfeatError(f"{options} {does} nothing here: {reason}; leave {it} out")


def _option_names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}
