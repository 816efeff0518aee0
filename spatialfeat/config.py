"""Every option of every command, written once: type, default, help, bounds. The command line is generated from here.

A field of a command's dataclass is `name: type = option(default, help, heading, ...)`. Only the standard library is
imported, so that `spatialfeat --help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from spatialfeat.errors import SpatialfeatError
from spatialfeat.formats import FORMATS, LIMITED_OPTIONS
from spatialfeat.names import label_problem

TRAIN_CSV = Path("train_ResNet_DB.csv")
VAL_CSV = Path("val_ResNet_DB.csv")
TEST_CSV = Path("test_ResNet_DB.csv")
WEIGHTS_NAME = "best_spatial_study_weights.pth"
PREDICTIONS_NAME = "predictions_resnet.csv"

GROUPINGS = ("video", "patient")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
VAL_TARGETS = ("own", "train", "test", "drop")

CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
"""The children of a torchvision ResNet, which --freeze-until counts."""

CACHE_SIZE_RATIO = 320 / 224
"""Shorter side of cached training frames, as a multiple of the network's input: see docs/training.md."""

CHOLEC80_GRAPH = "cholec80"
"""The word that stands for the built-in transition graph in `--relaxed`."""

DEFAULT_NUM_PHASES = 7
"""The specification's number of phases, where neither weights, feature files nor options say it."""


@dataclass(frozen=True)
class Rule:
    """What a value must be: `must` completes "--lr 0: must ..."."""

    holds: Callable[[Any], bool]
    must: str


def at_least(minimum: int) -> Rule:
    """Whole numbers from `minimum` on."""
    return Rule(lambda value: bool(value >= minimum), f"be at least {minimum}")


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in choices, f"be one of {', '.join(choices)}")


def positive(what: str) -> Rule:
    """Numbers above 0. `what` completes "be a positive number", with an example."""
    return Rule(lambda value: bool(0 < value < float("inf")), f"be a positive number{what}")


@dataclass(frozen=True)
class Option:
    """What the command line says of a field, and which values it takes (None, where a field has it, always).

    heading: under which the help lists it. flag: the option without dashes, where it is not the field's name; of a
    switch that is on by default, "no-..." is the only one to type.
    unset: what happens where the value is None, shown as the default. metavar: what the help shows for the value; for
    a positional argument its name. parse: makes the value of the text that was typed.
    """

    help: str
    heading: str
    rule: Rule | None = None
    flag: str = ""
    unset: object = ""
    metavar: str = ""
    is_argument: bool = False
    parse: Callable[[str], Any] | None = None

    def field(self, default: Any = MISSING, **changes: Any) -> Any:
        """A dataclass field that carries this option, with some of its attributes changed."""
        return field(default=default, metadata={"option": replace(self, **changes)})


def option(default: Any, help: str, heading: str, rule: Rule | None = None, **more: Any) -> Any:
    """A dataclass field with an option of its own: see `Option`."""
    return Option(help, heading, rule, **more).field(default)


class Options:
    """Base of the dataclasses below: refuses values that break a field's rule, naming the option."""

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            if value is not None and option.rule is not None and not option.rule.holds(value):
                shown = f"{value:g}" if isinstance(value, float) else value
                raise SpatialfeatError(f"{flag_of(type(self), name)} {shown}: must {option.rule.must}")


def options_of(kind: type[Options]) -> dict[str, Option]:
    """{field: its option} of a command's dataclass, in its order."""
    return {field.name: field.metadata["option"] for field in fields(kind)}  # type: ignore[arg-type]


def flag_of(kind: type[Options], name: str) -> str:
    """`--image-size` for the field `image_size_px`, `FORMAT` for a positional argument: as messages name an option."""
    option = options_of(kind)[name]
    return option.metavar if option.is_argument else f"--{option.flag or name.replace('_', '-')}"


def read_phase_names(text: str) -> tuple[str, ...]:
    """Names from a text file, one per line, or from a list with commas."""
    if "," in text and not Path(text).is_file():
        return tuple(name.strip() for name in text.split(","))
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpatialfeatError(
            f"--phase-names {text}: cannot be read ({reason}); pass a text file, one name per line, or NAME,NAME,..."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


DATA, NETWORK, TRAINING, SCORES, DEVICE, OUTPUT = "Data", "Network", "Training", "Scores", "Device", "Output"
PLANNED, MS_TCN, TECNO = "Planned training, for the estimate", "Format ms-tcn", "Format tecno"

# Options of several commands. One that has no default of its own somewhere is None there, with `unset`.
_TRAIN_CSV = Option("Training frames: CSV with columns id,label.", DATA)
_VAL_CSV = Option("Validation frames.", DATA)
_TEST_CSV = Option("Test frames.", DATA, unset=f"{TEST_CSV} if it is there")
_IMG_DIR = Option("Folder with the frames, {id}.png.", DATA)
_NUM_CLASSES = Option("Number of phases; labels are 0..N-1.", DATA, at_least(2))
_PHASE_NAMES = Option(
    "Phase names in label order: a text file, one per line, or NAME,NAME,...",
    DATA,
    metavar="NAMES",
    parse=read_phase_names,
)
_FPS = Option("Frames per second of the frame numbers.", DATA, positive(" of frames per second, e.g. 1"))
_WEIGHTS = Option("Fine-tuned ResNet-50 weights (a plain state dict).", NETWORK)
_BATCH_SIZE = Option("Frames per batch.", DEVICE, at_least(1))
_EPOCHS = Option("Most epochs to train.", TRAINING, at_least(1))
_PATIENCE = Option("Stop after so many epochs without a better validation accuracy.", TRAINING, at_least(1))
_FREEZE_UNTIL = Option(
    f"Freeze the first N of the ten children {', '.join(CHILDREN)}.",
    TRAINING,
    Rule(
        lambda value: 0 <= value < len(CHILDREN),
        f"be 0 (train everything) to {len(CHILDREN) - 1} (train the classifier only)",
    ),
)
# At 64 px the last stage is still 2x2, so BatchNorm has several values even for a batch of one frame.
_IMAGE_SIZE = Option("Side of the network's input in pixels.", NETWORK, at_least(64), flag="image-size")
_SEED = Option("Same seed, same machine: same history.", TRAINING, at_least(0))
_DEVICE = Option("auto (first usable CUDA device, else CPU), cpu, cuda or cuda:N.", DEVICE)
_PRECISION = Option(
    "Arithmetic of the network: fp32, bf16, fp16, or auto (the fastest that the device has).",
    DEVICE,
    one_of(*PRECISIONS),
)
_WORKERS = Option(
    "Decoding processes; 0 decodes in the main process.", DEVICE, at_least(0), unset="by the cores there are"
)
_CACHE = Option(
    "Folder that keeps decoded frames, for this run and later ones: each frame is decoded once. New, empty, or an "
    "earlier cache.",
    DEVICE,
    flag="cache",
    unset="none",
)
_CACHE_LIMIT = Option(
    "Most gigabytes that all of the --cache folder may take.",
    DEVICE,
    positive(" of gigabytes, e.g. 100"),
    flag="cache-limit",
)
_PSEUDONYMIZE = Option(
    "Write pseudonyms in place of patient ids. This CSV, columns patient_id,pseudonym, is read and gets the patients "
    "that it lacks; it is made if it is not there. Keep it apart from the output.",
    OUTPUT,
    metavar="MAP.csv",
)

CACHE_LIMIT_GB = 100.0
"""Room for the 214,000 training and 56,000 validation frames of 456x256 that the specification's study has."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Fine-tune a ResNet-50 on labelled frames.

    With no option, this is exactly the specified spatial study. Interrupted, it goes on with --resume.
    """

    train_csv: Path = _TRAIN_CSV.field(TRAIN_CSV)
    val_csv: Path = _VAL_CSV.field(VAL_CSV)
    test_csv: Path | None = _TEST_CSV.field(None)
    img_dir: Path = _IMG_DIR.field(Path("images"))
    num_classes: int = _NUM_CLASSES.field(DEFAULT_NUM_PHASES)
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None)
    weights: str = option("imagenet", "Start from: imagenet, random, or the path of a ResNet-50 state dict.", NETWORK)
    reset_classifier: bool = option(
        False, "Start a new classifier when the weights have another number of phases.", NETWORK
    )
    image_size_px: int = _IMAGE_SIZE.field(224)
    freeze_until: int = _FREEZE_UNTIL.field(6)
    epochs: int = _EPOCHS.field(50)
    batch_size: int = _BATCH_SIZE.field(32, heading=TRAINING)
    lr: float = option(1e-4, "Adam's learning rate.", TRAINING, positive(", e.g. 1e-4"))
    patience: int = _PATIENCE.field(10)
    lr_patience: int = option(3, "Lower the learning rate after more than so many such epochs.", TRAINING, at_least(0))
    lr_factor: float = option(
        0.5,
        "Factor by which it is lowered.",
        TRAINING,
        Rule(lambda value: 0 < value < 1, "lie between 0 and 1, e.g. 0.5"),
    )
    class_weights: str = option(
        "none",
        "none, or balanced: every phase counts alike in training, however many frames it has.",
        TRAINING,
        one_of("none", "balanced"),
    )
    label_smoothing: float = option(
        0.0,
        "Share of each label that is spread evenly over all phases; 0 is off.",
        TRAINING,
        Rule(lambda value: 0 <= value < 1, "be at least 0 (off) and less than 1, e.g. 0.1"),
    )
    clip_grad_norm: float | None = option(
        None, "Scale longer gradients down to this norm.", TRAINING, positive(", e.g. 1.0"), unset="never"
    )
    seed: int = _SEED.field(0)
    device: str = _DEVICE.field("auto")
    precision: str = _PRECISION.field("fp32")
    workers: int | None = _WORKERS.field(None)
    cache_dir: Path | None = _CACHE.field(None)
    cache_size_px: int | None = option(
        None,
        "With --cache: keep training frames shrunk to so many pixels on the shorter side, never enlarged. Frames "
        "that are no larger are trained on exactly as without a cache; small random crops of others lose detail.",
        DEVICE,
        flag="cache-size",
        unset=f"{round(224 * CACHE_SIZE_RATIO)}, or as much larger as --image-size",
    )
    cache_limit_gb: float = _CACHE_LIMIT.field(CACHE_LIMIT_GB)
    out_dir: Path = option(Path(), "Folder for weights, history, curves and test results.", OUTPUT, flag="out")
    resume: bool = option(False, "Go on with the study in --out after its last whole epoch, if there is one.", OUTPUT)
    keep_state: bool = option(False, "Keep training_state.pt after the end, to resume with more --epochs.", OUTPUT)
    tensorboard: bool = option(True, "Log to tensorboard/ in --out, where TensorBoard is installed.", OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_size_px is not None and self.cache_dir is None:
            raise SpatialfeatError("--cache-size: has no meaning without --cache")
        if self.cache_size_px is not None and self.cache_size_px < self.image_size_px:
            raise SpatialfeatError(
                f"--cache-size {self.cache_size_px}: must be at least {self.image_size_px}, the side of the network's "
                "input: even whole frames would be enlarged"
            )
        check_phase_names(self.phase_names, self.num_classes)

    @property
    def training_frames_px(self) -> int | None:
        """The shorter side that larger training frames are shrunk to: only a cache does that."""
        if self.cache_dir is None:
            return None
        return self.cache_size_px or round(self.image_size_px * CACHE_SIZE_RATIO)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Options):
    """Write features of every frame.

    2048 per frame, one HDF5 file per video. Videos that are done already are skipped.
    """

    csvs: tuple[str, ...] = option(
        (),
        "Frames to extract; repeat it for several files. Without SPLIT= the word train, val or test in the file's "
        "name says the split, as in my_train.csv.",
        DATA,
        flag="csv",
        metavar="[SPLIT=]PATH",
        unset="the specification's three files",
    )
    img_dir: Path = _IMG_DIR.field(FinetuneConfig.img_dir)
    group_by: str = option(
        "video", "One file per: video, or patient (all segments in order).", DATA, one_of(*GROUPINGS)
    )
    fps: float = _FPS.field(1.0, help="Frames per second of the frame numbers, stored for readers.")
    shard: str | None = option(
        None,
        "Only the I-th of N shares of the videos, for job arrays: 1/4 to 4/4 write what one run without it writes.",
        DATA,
        metavar="I/N",
        unset="all videos",
    )
    weights: Path = _WEIGHTS.field(Path(WEIGHTS_NAME))
    num_classes: int | None = option(None, "Expected number of phases.", NETWORK, unset="as the weights have")
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None, heading=NETWORK)
    batch_size: int = _BATCH_SIZE.field(32)
    device: str = _DEVICE.field("auto")
    precision: str = _PRECISION.field("fp32")
    workers: int | None = _WORKERS.field(None)
    cache_dir: Path | None = _CACHE.field(None)
    cache_limit_gb: float = _CACHE_LIMIT.field(CACHE_LIMIT_GB)
    out_dir: Path = option(
        Path("features"), "Folder for the feature files, one HDF5 file per video.", OUTPUT, flag="out"
    )
    layout: str = option(
        "channel-first",
        "channel-first stores (2048, T), time-first (T, 2048).",
        OUTPUT,
        one_of("channel-first", "time-first"),
    )
    overwrite: bool = option(False, "Replace files made by other weights, options or frames.", OUTPUT)
    pseudonymize: Path | None = _PSEUDONYMIZE.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_shard(self.shard)


@dataclass(frozen=True)
class Shard:
    """The share `index` of `count` of an extraction, counted from 1 as job arrays are."""

    index: int = 1
    count: int = 1

    @property
    def run_record_name(self) -> str:
        """`run.json` of a whole extraction, `run-2of4.json` of a share, so that shares do not overwrite each other."""
        return "run.json" if self.count == 1 else f"run-{self.index}of{self.count}.json"


def parse_shard(text: str | None) -> Shard:
    """`2/4` as the second of four, and None, a whole extraction, as 1 of 1."""
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


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Frames that are predicted with a weights file, and the defaults of the options that only this source has."""

    weights: Path = ExtractConfig.weights
    csv: Path = TEST_CSV
    img_dir: Path = ExtractConfig.img_dir
    batch_size: int = ExtractConfig.batch_size
    device: str = ExtractConfig.device
    precision: str = ExtractConfig.precision
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class FeaturesSource:
    """Feature files, whose logits are the predictions. split "all": every file of the folder."""

    features: Path
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class PredictionsSource:
    """CSVs of predictions, each `PATH` or `NAME=PATH`; csv holds the ground truth if the files do not."""

    predictions: tuple[str, ...]
    csv: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ResultsSource(FeaturesSource):
    """Result files of temporal models, a folder each, or CSVs as above; the feature files hold the ground truth."""

    predictions: tuple[str, ...]


Source = WeightsSource | FeaturesSource | PredictionsSource | ResultsSource


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Score predictions of phases.

    Every protocol side by side, with 95 % intervals over patients, tables and pictures. With no option: the fine-tuned
    weights on test_ResNet_DB.csv. Meaning of every number: docs/evaluation.md.
    """

    # One source of predictions. An option that only some sources have is None unless given, so that one that would do
    # nothing is refused; `source` fills in the defaults.
    weights: Path | None = _WEIGHTS.field(None, heading=DATA, unset=WeightsSource.weights)
    csv: Path | None = option(
        None,
        "Frames and true phases, columns id,label. With --predictions: the ground truth.",
        DATA,
        unset=WeightsSource.csv,
    )
    img_dir: Path | None = _IMG_DIR.field(None, unset=WeightsSource.img_dir)
    features: Path | None = option(
        None,
        "Folder of feature files: their logits are scored against their labels, and with --predictions what temporal "
        "models made of them.",
        DATA,
    )
    split: str | None = option(None, "Which feature files: train, val, test, or all.", DATA, unset=FeaturesSource.split)
    predictions: tuple[str, ...] = option(
        (),
        "CSV of predicted phases, PATH or NAME=PATH; repeat it to compare. Columns: img_id, frame_id or id; "
        "predicted_label, prediction or predicted; true_label or label (or pass --csv). With --features also a folder "
        "of result files, one per video, as MS-TCN and its relatives write them.",
        DATA,
        metavar="[NAME=]PATH",
    )
    num_classes: int | None = _NUM_CLASSES.field(
        None, unset=f"as weights or feature files have, else as there are names, else {DEFAULT_NUM_PHASES}"
    )
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None)
    group_by: str = option(
        "video", "What counts as one video: video, or patient (all segments in order).", SCORES, one_of(*GROUPINGS)
    )
    relaxed: str | None = option(
        None, "Add relaxed-boundary scores: cholec80, or a CSV with columns from,to of allowed transitions.", SCORES
    )
    relaxed_window: float | None = option(
        None,
        "Seconds at both ends of a phase in which --relaxed forgives.",
        SCORES,
        Rule(lambda value: 0 <= value < float("inf"), "be a number of seconds, 0 or more"),
        unset="10",
    )
    fps: float | None = option(
        None,
        "Scored frames per second: needed by --relaxed, and for the time axis of pictures.",
        SCORES,
        positive(" of scored frames per second, e.g. 1"),
        unset="as feature files say; else, for pictures only, 1",
    )
    bootstrap: int = option(2000, "Bootstrap samples of patients for the intervals.", SCORES, at_least(0))
    seed: int = option(0, "Seed of the bootstrap.", SCORES, at_least(0))
    batch_size: int | None = _BATCH_SIZE.field(None, unset=WeightsSource.batch_size)
    device: str | None = _DEVICE.field(None, unset=WeightsSource.device)
    precision: str | None = _PRECISION.field(None, unset=WeightsSource.precision)
    workers: int | None = _WORKERS.field(None)
    out_dir: Path = option(Path("evaluation"), "Folder for scores, pictures and report.html.", OUTPUT, flag="out")

    def __post_init__(self) -> None:
        self._refuse_options_without_effect()
        super().__post_init__()
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
        kind = self._kind_of_source()
        given = {field.name: getattr(self, field.name) for field in fields(kind)}
        found: Source = kind(**{name: value for name, value in given.items() if value is not None})
        return found

    def resolved(self) -> EvaluateConfig:
        """The same options with the source's defaults filled in, as `run.json` records them."""
        return replace(self, **asdict(self.source))

    def _kind_of_source(self) -> type[Any]:
        if self.predictions:
            return PredictionsSource if self.features is None else ResultsSource
        return WeightsSource if self.features is None else FeaturesSource

    def _refuse_options_without_effect(self) -> None:
        kind = self._kind_of_source()
        reason = {
            PredictionsSource: "with --predictions nothing is computed from images or features",
            FeaturesSource: "with --features labels and logits come from the feature files",
            ResultsSource: "with --features frames and true phases come from the feature files",
            WeightsSource: "it chooses among the feature files of --features",
        }[kind]
        sources = (WeightsSource, FeaturesSource, PredictionsSource)
        others = {field.name for source in sources for field in fields(source)} - {field.name for field in fields(kind)}
        _refuse_surplus(self, others, reason)


def _refuse_surplus(config: Options, names: set[str], reason: str) -> None:
    """Refuse the options of these fields where they are given: they would do nothing."""
    surplus = [flag_of(type(config), name) for name in sorted(names) if getattr(config, name) not in (None, ())]
    if surplus:
        does, it = ("does", "it") if len(surplus) == 1 else ("do", "them")
        raise SpatialfeatError(f"{', '.join(surplus)} {does} nothing here: {reason}; leave {it} out")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Options):
    """Predict phases of videos without labels.

    Writes predictions.csv, with a phase and the network's confidence in it for every frame, and ribbons of the phases
    along time. From images, or from feature files, whose logits say the same. Labels, where there are any, are not
    used: `spatialfeat evaluate` scores predictions.
    """

    # As in EvaluateConfig, an option that only images or only feature files have is None unless given.
    weights: Path | None = _WEIGHTS.field(None, heading=DATA, unset=WeightsSource.weights)
    img_dir: Path | None = _IMG_DIR.field(None, unset=WeightsSource.img_dir)
    csv: Path | None = option(None, "Frames to predict, column id.", DATA, unset="all frames of the folder")
    features: Path | None = option(
        None, "Folder of feature files, or one of them: their logits are used, no image is decoded.", DATA
    )
    split: str | None = option(None, "Which feature files: train, val, test, or all.", DATA, unset="all")
    num_classes: int | None = option(None, "Expected number of phases.", DATA, unset="as weights or feature files have")
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None)
    group_by: str = option(
        "video", "What gets a ribbon: video, or patient (all segments in order).", DATA, one_of(*GROUPINGS)
    )
    fps: float | None = _FPS.field(
        None, help="Frames per second of the frame numbers, for the time axis.", unset="as feature files say, else 1"
    )
    batch_size: int | None = _BATCH_SIZE.field(None, unset=WeightsSource.batch_size)
    device: str | None = _DEVICE.field(None, unset=WeightsSource.device)
    precision: str | None = _PRECISION.field(None, unset=WeightsSource.precision)
    workers: int | None = _WORKERS.field(None)
    out_dir: Path = option(Path("predictions"), "Folder for predictions.csv and ribbons.", OUTPUT, flag="out")

    def __post_init__(self) -> None:
        if self.features is not None:
            others = {field.name for field in fields(WeightsSource)}
            _refuse_surplus(self, others, "with --features logits come from the feature files")
        else:
            _refuse_surplus(self, {"split"}, "it chooses among the feature files of --features")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """What to export. `unlabelled=None` is the format's own default: see `formats`.

    `val_to`, for ms-tcn without folds: the videos of split val get a bundle of their own, which MS-TCN itself does not
    read, so that neither training nor test set changes unseen.
    """

    format: str = option(MISSING, f"{', '.join(FORMATS)}.", DATA, one_of(*FORMATS), metavar="FORMAT", is_argument=True)
    features_dir: Path = option(
        MISSING, "Folder of feature files, from `spatialfeat extract`.", DATA, metavar="FEATURES_DIR", is_argument=True
    )
    out: Path = option(
        MISSING, "Must not exist, or be an empty folder; hdf5: a new file.", OUTPUT, metavar="OUT", is_argument=True
    )
    group_by: str = option(
        "video",
        "video: as the files are; patient: a patient's videos joined, in order of segments.",
        DATA,
        one_of(*GROUPINGS),
    )
    unlabelled: str | None = option(
        None,
        "Frames without a label. "
        + "; ".join(f"{form.name}: {', '.join(form.unlabelled)}" for form in FORMATS.values())
        + ".",
        DATA,
        unset="the first of these",
    )
    val_to: str = option(
        "own",
        f"Where the videos of split val go: {', '.join(VAL_TARGETS)}. own is a bundle of its own, which MS-TCN "
        "itself does not read.",
        MS_TCN,
        one_of(*VAL_TARGETS),
    )
    folds: Path | None = option(
        None,
        "CSV with columns video,fold or patient,fold, instead of the splits in the feature files. Split k tests on "
        "fold k and trains on the others.",
        MS_TCN,
    )
    background_name: str = option(
        "background", "The phase of frames without a label, with --unlabelled background.", MS_TCN
    )
    id_replacement: str | None = option(None, "Put this for a dot, slash or space in a video's id.", MS_TCN)
    name_replacement: str | None = option(None, "Put this for a space or # in a phase's name.", MS_TCN)
    skip_short: bool = option(False, "Leave out videos of fewer than two frames.", MS_TCN)
    allow_small_bundles: bool = option(False, "Write train and test bundles of one video, too.", MS_TCN)
    keep_anyway: bool = option(
        False,
        "Let --unlabelled keep write frames without a label, at which TeCNO itself stops: for readers of your own.",
        TECNO,
    )
    pseudonymize: Path | None = _PSEUDONYMIZE.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        form = FORMATS[self.format]
        if self.unlabelled is not None and self.unlabelled not in form.unlabelled:
            raise SpatialfeatError(
                f"--unlabelled {self.unlabelled}: must be one of {', '.join(form.unlabelled)} for {self.format}"
            )
        for name in LIMITED_OPTIONS:
            if name not in form.options and getattr(self, name) != getattr(ExportConfig, name):
                able = ", ".join(other.name for other in FORMATS.values() if name in other.options)
                raise SpatialfeatError(
                    f"{flag_of(ExportConfig, name)}: has no meaning for {self.format}, only for {able}; leave it out"
                )
        if self.format == "tecno" and self.unlabelled == "keep" and not self.keep_anyway:
            raise SpatialfeatError(
                "--unlabelled keep: TeCNO's metrics stop at the label -100; pass --unlabelled drop, or --keep-anyway "
                "too if these pickles are for a reader of your own"
            )
        if self.folds is not None and self.val_to != ExportConfig.val_to:
            raise SpatialfeatError("--val-to: has no meaning with --folds, which says where each video belongs")
        if self.background_name != ExportConfig.background_name and self.unlabelled != "background":
            raise SpatialfeatError("--background-name: has no meaning without --unlabelled background")


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Options):
    """Show what feature files hold.

    Exit code 1 where files cannot be read, or cannot be used together.

    A gap is a place where consecutive frame numbers of a segment differ by more than their usual, most common step.
    The duration runs from the first to the last frame of each segment, gaps included.
    """

    path: Path = option(MISSING, "A folder of feature files, or one file.", DATA, metavar="PATH", is_argument=True)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Options):
    """Check a data set before a night of training.

    Rows against files, labels against phases, patients in several splits, equal pictures, gaps, image sizes, ids that
    may contain a name, and what finetune and extract will take here. Exit code 1 when something would break a run or
    make its numbers worthless.
    """

    train_csv: Path = _TRAIN_CSV.field(FinetuneConfig.train_csv)
    val_csv: Path = _VAL_CSV.field(FinetuneConfig.val_csv)
    test_csv: Path | None = _TEST_CSV.field(None)
    csvs: tuple[str, ...] = option(
        (),
        "Instead of these three, the CSVs that extract will be given; repeat it for several.",
        DATA,
        flag="csv",
        metavar="[SPLIT=]PATH",
    )
    img_dir: Path = _IMG_DIR.field(FinetuneConfig.img_dir)
    num_classes: int = _NUM_CLASSES.field(FinetuneConfig.num_classes)
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None)
    fps: float = _FPS.field(ExtractConfig.fps)
    decode: bool = option(
        True,
        "Look only at the ends of the image files: seconds instead of minutes, but damage in the middle and equal "
        "pictures are not found.",
        DATA,
        flag="no-decode",
    )
    image_size_px: int = _IMAGE_SIZE.field(FinetuneConfig.image_size_px, heading=PLANNED)
    batch_size: int = _BATCH_SIZE.field(FinetuneConfig.batch_size, heading=PLANNED)
    epochs: int = _EPOCHS.field(FinetuneConfig.epochs, heading=PLANNED)
    patience: int = _PATIENCE.field(FinetuneConfig.patience, heading=PLANNED)
    freeze_until: int = _FREEZE_UNTIL.field(FinetuneConfig.freeze_until, heading=PLANNED)
    estimate: bool = option(
        True, "Do not measure how long finetune and extract will take.", PLANNED, flag="no-estimate"
    )
    device: str = _DEVICE.field(FinetuneConfig.device)
    precision: str = _PRECISION.field(FinetuneConfig.precision)
    workers: int | None = _WORKERS.field(
        None, help="Decoding processes, here and in the estimate; 0 decodes in the main process."
    )
    out_dir: Path = option(Path("check"), "Folder for check.json, check.txt and class_balance.png.", OUTPUT, flag="out")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.study()
        named = [
            name for name in ("train_csv", "val_csv", "test_csv") if getattr(self, name) != getattr(CheckConfig, name)
        ]
        if self.csvs and named:
            raise SpatialfeatError(
                f"--csv and {flag_of(CheckConfig, named[0])}: name the CSVs in one way; leave one of the two out"
            )

    def study(self) -> FinetuneConfig:
        """The fine-tuning that these options stand for. Raises SpatialfeatError where finetune would refuse them."""
        shared = {field.name for field in fields(FinetuneConfig)} & {field.name for field in fields(self)}
        return FinetuneConfig(**{name: getattr(self, name) for name in shared - {"out_dir"}})


def default_phase_names(num_phases: int) -> tuple[str, ...]:
    """`phase_0`, `phase_1`, ...: used where the phases have no names."""
    return tuple(f"phase_{phase}" for phase in range(num_phases))


def check_phase_names(phase_names: tuple[str, ...] | None, num_phases: int) -> None:
    """Refuse names that are too few, too many, empty or repeated."""
    if phase_names is None:
        return
    if len(phase_names) != num_phases:
        raise SpatialfeatError(
            f"--phase-names: {len(phase_names)} names for {num_phases} phases; "
            "give one name per phase, in label order, or pass --num-classes"
        )
    for name in phase_names:
        problem = label_problem(name)
        if problem is not None:
            raise SpatialfeatError(f"--phase-names: {name[:80]!r} {problem}; every name must be present and unique")
    if len(set(phase_names)) != num_phases:
        raise SpatialfeatError(f"--phase-names: {', '.join(phase_names)}: every name must be present and unique")
