"""Every option of every command, written once: type, default, help, bounds. The command line is generated from here.

A field of a command's dataclass is `name: type = option(default, help, heading, ...)`: see `options.py`.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from spatialfeat.encoders import RESNET50_NAME
from spatialfeat.errors import SpatialfeatError
from spatialfeat.formats import FORMATS, LIMITED_OPTIONS
from spatialfeat.names import label_problem
from spatialfeat.options import Option, Options, Rule, at_least, flag_of, one_of, option, positive
from spatialfeat.phases import DEFAULT_NUM_PHASES, NAMES_FILE, check_phase_names, names_beside, read_phase_names

TRAIN_CSV = Path("train_ResNet_DB.csv")
VAL_CSV = Path("val_ResNet_DB.csv")
TEST_CSV = Path("test_ResNet_DB.csv")
WEIGHTS_NAME = "best_spatial_study_weights.pth"
PREDICTIONS_NAME = "predictions_resnet.csv"

GROUPINGS = ("video", "patient")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RESIZINGS = ("short-side", "squash")
JPEG_DECODERS = CPU_DECODER, GPU_DECODER = ("cpu", "gpu")
IMAGENET = "imagenet"
"""The word that stands for torchvision's ImageNet weights in `--weights`."""
ID_FORMS = ("auto", "patient-segment-frame", "video-frame")
VAL_TARGETS = ("own", "train", "test", "drop")

CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
"""The children of a torchvision ResNet, which --freeze-until counts."""

CACHE_SIZE_RATIO = 320 / 224
"""Shorter side of cached training frames, as a multiple of the network's input: see docs/training.md."""

CHOLEC80_GRAPH = "cholec80"
"""The word that stands for the built-in transition graph in `--relaxed`."""

DEFAULT_TEST_SHARE = 0.2
"""What `split` gives to the test set."""


def read_colours(flag: str, text: str) -> tuple[float, float, float]:
    """`0.485,0.456,0.406`: three numbers on the scale 0 to 1, for red, green and blue."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError as error:
        raise SpatialfeatError(f"{flag} {text}: must be three numbers R,G,B, e.g. 0.485,0.456,0.406") from error
    lowest = 1e-6 if flag == "--std" else 0  # What is divided by must not be 0.
    if not all(lowest <= value <= 1 for value in (red, green, blue)):
        raise SpatialfeatError(
            f"{flag} {text}: must lie between {lowest:g} and 1, where 1 is the brightest value; divide numbers on the "
            "scale 0 to 255 by 255"
        )
    return red, green, blue


ID_GROUPS = ({"patient", "segment", "frame"}, {"video", "frame"}, {"patient", "video", "frame"})
"""The named groups that a pattern of ids may have."""

MAX_PATTERN_CHARACTERS = 1000


def check_id_pattern(pattern: str) -> None:
    """Refuse what is no regular expression with the groups of an id."""
    try:
        groups = set(re.compile(pattern).groupindex) if len(pattern) <= MAX_PATTERN_CHARACTERS else set()
    except (re.error, RecursionError, OverflowError) as error:
        raise SpatialfeatError(f"--id-pattern {pattern[:80]}: is no regular expression ({error})") from error
    if groups not in ID_GROUPS:
        raise SpatialfeatError(
            f"--id-pattern {pattern[:80]}: must name the groups patient, segment and frame, or video and frame, e.g. "
            r"'(?P<video>.+)_(?P<frame>\d+)'"
        )


def _check_id_options(form: str | None, pattern: str | None) -> None:
    if pattern is not None:
        check_id_pattern(pattern)
    if form is not None and pattern is not None:
        raise SpatialfeatError("--id-form and --id-pattern: say in one way how ids are read; leave one of the two out")


def _check_jpeg_decoder(decoder: str | None, cache_dir: Path | None) -> None:
    if decoder == GPU_DECODER and cache_dir is not None:
        raise SpatialfeatError(
            f"--jpeg-decoder {decoder} and --cache: a cache keeps what the processor decoded; leave one of the two out"
        )


DATA, NETWORK, TRAINING, SCORES, DEVICE, OUTPUT = "Data", "Network", "Training", "Scores", "Device", "Output"
PLANNED, MS_TCN, TECNO = "Planned training, for the estimate", "Format ms-tcn", "Format tecno"
SPLITS = "Splits"

# Options of several commands. One that has no default of its own somewhere is None there, with `unset`.
_TRAIN_CSV = Option("Training frames: CSV with columns id,label.", DATA)
_VAL_CSV = Option("Validation frames.", DATA)
_TEST_CSV = Option("Test frames.", DATA, unset=f"{TEST_CSV} if it is there")
_IMG_DIR = Option("Folder with the frames, {id}.png or {id}.jpg.", DATA)
_ID_FORM = Option(
    "How ids are read: patient-segment-frame, video-frame, or auto, where a last-but-one number is a segment if the "
    "patient before it holds a digit.",
    DATA,
    one_of(*ID_FORMS),
    unset="auto",
)
_ID_PATTERN = Option(
    "Read ids by a regular expression that matches them as a whole, with the named groups patient, segment, frame; or "
    r"video, frame: '(?P<video>.+)_(?P<frame>\d+)'.",
    DATA,
    metavar="REGEX",
)
_AS_TRAINED = "as the weights were trained, else auto"
_NUM_CLASSES = Option("Number of phases; labels are 0..N-1.", DATA, at_least(2))
_AS_NAMED = f"as many as phases have names, else {DEFAULT_NUM_PHASES}"
_NAMED_BESIDE = f"without --num-classes, {NAMES_FILE} beside the CSV if it is there"
_PHASE_NAMES = Option(
    "Phase names in label order: NAME,NAME,...; a text file, one per line or `number name` as in mapping.txt; the JSON "
    "beside weights; or feature files. Labels in CSVs may then be names.",
    DATA,
    metavar="NAMES",
    parse=read_phase_names,
)
_FPS = Option("Frames per second of the frame numbers.", DATA, positive(" of frames per second, e.g. 1"))
_WEIGHTS = Option("Fine-tuned weights (a plain state dict).", NETWORK)
_BACKBONE = Option(
    "Encoder: resnet50, a name that `spatialfeat backbones` lists, a classification network of torchvision "
    "(convnext_tiny), or timm:NAME.",
    NETWORK,
    metavar="NAME",
)
_AS_DESCRIBED = f"as the JSON beside the weights says, else {RESNET50_NAME}"
_PREPROCESSING = Option(
    "For weights from elsewhere: short-side (resize to 256, crop 224), squash (both sides to 224), or a JSON file with "
    "all of it, such as the one beside the weights of another study.",
    NETWORK,
    metavar="HOW",
    unset="as the JSON beside the weights says, else the encoder's usual one: short-side for resnet50",
)
_MEAN = Option(
    "Mean of red, green and blue, 0 to 1, for weights from elsewhere.",
    NETWORK,
    metavar="R,G,B",
    parse=partial(read_colours, "--mean"),
    unset="the same, else the encoder's usual one: ImageNet's for resnet50",
)
_STD = replace(
    _MEAN,
    help="Standard deviation of red, green and blue, 0 to 1, for weights from elsewhere.",
    parse=partial(read_colours, "--std"),
)
_BATCH_SIZE = Option("Frames per batch.", DEVICE, at_least(1))
_EPOCHS = Option("Most epochs to train.", TRAINING, at_least(1))
_PATIENCE = Option("Stop after so many epochs without a better validation accuracy.", TRAINING, at_least(1))
_FREEZE_UNTIL = Option(
    f"Freeze the first N of the ten children {', '.join(CHILDREN)}; of another encoder, of the stages that "
    "`spatialfeat backbones NAME` shows.",
    TRAINING,
    unset="6 of resnet50, half of another encoder's stages",
)
# At 64 px the last stage is still 2x2, so BatchNorm has several values even for a batch of one frame.
_IMAGE_SIZE = Option(
    "Side of the network's input in pixels.",
    NETWORK,
    at_least(64),
    flag="image-size",
    unset="the encoder's usual one: 224 for resnet50",
)
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
_JPEG_DECODER = Option(
    "cpu, or gpu: JPEG frames are decoded on the CUDA device, which is several times as fast; pixels then differ by "
    "some levels. PNG frames are decoded by the processor in any case.",
    DEVICE,
    one_of(*JPEG_DECODERS),
)
_PSEUDONYMIZE = Option(
    "Write pseudonyms in place of patient ids. This CSV, columns patient_id,pseudonym, is read and gets the patients "
    "that it lacks; it is made if it is not there. Keep it apart from the output.",
    OUTPUT,
    metavar="MAP.csv",
)

_DATA_SET = Option(
    "Name of the public data set that the frames are from, such as cholec80: `info` then warns where the encoder was "
    "trained on it.",
    DATA,
    metavar="NAME",
    unset="not said",
)

CACHE_LIMIT_GB = 100.0
"""Room for the 214,000 training and 56,000 validation frames of 456x256 that the specification's study has."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Fine-tune a ResNet-50, or another encoder, on labelled frames.

    With no option, this is exactly the specified spatial study. Interrupted, it goes on with --resume.
    """

    train_csv: Path = _TRAIN_CSV.field(TRAIN_CSV)
    val_csv: Path = _VAL_CSV.field(VAL_CSV)
    test_csv: Path | None = _TEST_CSV.field(None)
    img_dir: Path = _IMG_DIR.field(Path("images"))
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)
    num_classes: int = _NUM_CLASSES.field(None, unset=_AS_NAMED)  # An int once the object is made.
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None, unset=f"{_NAMED_BESIDE}; with --resume, as the study began"
    )
    backbone: str = _BACKBONE.field(RESNET50_NAME)
    weights: str = option(
        "imagenet", "Start from: imagenet, random, or the path of a state dict of the encoder.", NETWORK
    )
    reset_classifier: bool = option(
        False, "Start a new classifier when the weights have another number of phases.", NETWORK
    )
    image_size_px: int = _IMAGE_SIZE.field(None)  # These two are ints once the object is made.
    freeze_until: int = _FREEZE_UNTIL.field(None)
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
    jpeg_decoder: str = _JPEG_DECODER.field(CPU_DECODER)
    out_dir: Path = option(Path(), "Folder for weights, history, curves and test results.", OUTPUT, flag="out")
    resume: bool = option(False, "Go on with the study in --out after its last whole epoch, if there is one.", OUTPUT)
    keep_state: bool = option(False, "Keep training_state.pt after the end, to resume with more --epochs.", OUTPUT)
    tensorboard: bool = option(True, "Log to tensorboard/ in --out, where TensorBoard is installed.", OUTPUT)

    def __post_init__(self) -> None:
        if self.num_classes is None and self.phase_names is None and not (self.resume and self._take_phases_as_begun()):
            object.__setattr__(self, "phase_names", names_beside(self.train_csv))
        _count_phases(self)
        super().__post_init__()
        _fill_in_backbone(self)
        _check_id_options(self.id_form, self.id_pattern)
        _check_jpeg_decoder(self.jpeg_decoder, self.cache_dir)
        if self.cache_size_px is not None and self.cache_dir is None:
            raise SpatialfeatError("--cache-size: has no meaning without --cache")
        if self.cache_size_px is not None and self.cache_size_px < self.image_size_px:
            raise SpatialfeatError(
                f"--cache-size {self.cache_size_px}: must be at least {self.image_size_px}, the side of the network's "
                "input: even whole frames would be enlarged"
            )
        check_phase_names(self.phase_names, self.num_classes)

    def _take_phases_as_begun(self) -> bool:
        """Whether there is a study to resume, whose phases these then are, whatever phase_names.txt says by now."""
        begun = pkgutil.resolve_name("spatialfeat.training.files:phases_as_begun")(self.out_dir)
        if begun is None:
            return False
        number, names = begun
        object.__setattr__(self, "num_classes", number)
        object.__setattr__(self, "phase_names", names)
        return True

    @property
    def training_frames_px(self) -> int | None:
        """The shorter side that larger training frames are shrunk to: only a cache does that."""
        if self.cache_dir is None:
            return None
        return self.cache_size_px or round(self.image_size_px * CACHE_SIZE_RATIO)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Options):
    """Write features of every frame.

    2048 per frame, or as many as the encoder has; one HDF5 file per video. Videos that are done already are skipped.
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
    read_csvs: bool = option(
        True,
        "Leave the specification's CSVs aside, also where they lie here: all images of --img-dir, unlabelled.",
        DATA,
        flag="no-csv",
    )
    img_dir: Path = _IMG_DIR.field(
        FinetuneConfig.img_dir,
        help="Folder with the frames, {id}.png or {id}.jpg. Without a CSV: all frames in it, or in one folder per "
        "video in it; of bare frame numbers the folder's name is the video.",
    )
    id_form: str | None = _ID_FORM.field(None, unset=_AS_TRAINED)
    id_pattern: str | None = _ID_PATTERN.field(None)
    group_by: str = option(
        "video", "One file per: video, or patient (all segments in order).", DATA, one_of(*GROUPINGS)
    )
    fps: float = _FPS.field(1.0, help="Frames per second of the frame numbers, stored for readers.")
    data_set: str | None = _DATA_SET.field(None)
    shard: str | None = option(
        None,
        "Only the I-th of N shares of the videos, for job arrays: 1/4 to 4/4 write what one run without it writes.",
        DATA,
        metavar="I/N",
        unset="all videos",
    )
    weights: Path = _WEIGHTS.field(
        Path(WEIGHTS_NAME),
        help="Weights, fine-tuned or from elsewhere, or imagenet; without a classifier of phases, the files have no "
        "logits.",
    )
    backbone: str | None = _BACKBONE.field(None, unset=_AS_DESCRIBED)
    num_classes: int | None = option(
        None,
        "Expected number of phases.",
        NETWORK,
        unset=f"as the weights have, else as there are names, else {DEFAULT_NUM_PHASES}",
    )
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None, heading=NETWORK)
    preprocessing: str | None = _PREPROCESSING.field(None)
    mean: tuple[float, float, float] | None = _MEAN.field(None)
    std: tuple[float, float, float] | None = _STD.field(None)
    batch_size: int = _BATCH_SIZE.field(32)
    device: str = _DEVICE.field("auto")
    precision: str = _PRECISION.field("fp32")
    workers: int | None = _WORKERS.field(None)
    cache_dir: Path | None = _CACHE.field(None)
    cache_limit_gb: float = _CACHE_LIMIT.field(CACHE_LIMIT_GB)
    jpeg_decoder: str = _JPEG_DECODER.field(CPU_DECODER)
    out_dir: Path = option(
        Path("features"), "Folder for the feature files, one HDF5 file per video.", OUTPUT, flag="out"
    )
    layout: str = option(
        "channel-first",
        "channel-first stores (D, T), time-first (T, D); D is 2048 for resnet50.",
        OUTPUT,
        one_of("channel-first", "time-first"),
    )
    overwrite: bool = option(False, "Replace files made by other weights, options or frames.", OUTPUT)
    pseudonymize: Path | None = _PSEUDONYMIZE.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data_set(self.data_set)
        _check_id_options(self.id_form, self.id_pattern)
        _check_jpeg_decoder(self.jpeg_decoder, self.cache_dir)
        if self.csvs and not self.read_csvs:
            raise SpatialfeatError("--csv and --no-csv: leave one of the two out")
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
    backbone: str | None = None
    csv: Path | None = TEST_CSV
    img_dir: Path = ExtractConfig.img_dir
    preprocessing: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    id_form: str | None = None
    id_pattern: str | None = None
    batch_size: int = ExtractConfig.batch_size
    device: str = ExtractConfig.device
    precision: str = ExtractConfig.precision
    workers: int | None = None
    cache_dir: Path | None = None
    cache_limit_gb: float = CACHE_LIMIT_GB
    jpeg_decoder: str = CPU_DECODER


@dataclass(frozen=True, kw_only=True)
class FeaturesSource:
    """Feature files, whose logits are the predictions. split "all": every file of the folder.

    features: a folder, or of a cross-validation one per fold.
    """

    features: Path | tuple[Path, ...]
    split: str = "test"

    @property
    def folders(self) -> tuple[Path, ...]:
        return self.features if isinstance(self.features, tuple) else (self.features,)

    @property
    def place(self) -> Path:
        """What messages call the folders."""
        first, *others = self.folders
        return first if not others else Path(f"{first} and {len(others)} more")


@dataclass(frozen=True, kw_only=True)
class PredictionsSource:
    """CSVs of predictions, each `PATH` or `NAME=PATH`; csv holds the ground truth if the files do not."""

    predictions: tuple[str, ...]
    csv: Path | None = None
    id_form: str | None = None
    id_pattern: str | None = None


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
    backbone: str | None = _BACKBONE.field(None, unset=_AS_DESCRIBED)
    csv: Path | None = option(
        None,
        "Frames and true phases, columns id,label. With --predictions: the ground truth.",
        DATA,
        unset=WeightsSource.csv,
    )
    img_dir: Path | None = _IMG_DIR.field(None, unset=WeightsSource.img_dir)
    id_form: str | None = _ID_FORM.field(None, unset=_AS_TRAINED)
    id_pattern: str | None = _ID_PATTERN.field(None)
    features: Path | tuple[Path, ...] | None = option(
        None,
        "Folder of feature files: their logits are scored against their labels, and with --predictions what temporal "
        "models made of them. After a cross-validation with a network per fold repeat it, one folder per fold: the "
        "test videos of all are scored together.",
        DATA,
        metavar="PATH",
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
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None, unset=f"as weights or feature files say; with --predictions, {NAMES_FILE} beside --csv if it is there"
    )
    group_by: str = option(
        "video", "What counts as one video: video, or patient (all segments in order).", SCORES, one_of(*GROUPINGS)
    )
    preprocessing: str | None = _PREPROCESSING.field(None)
    mean: tuple[float, float, float] | None = _MEAN.field(None)
    std: tuple[float, float, float] | None = _STD.field(None)
    relaxed: str | None = option(
        None, "Add relaxed-boundary scores: cholec80, or a CSV with columns from,to of allowed transitions.", SCORES
    )
    relaxed_window: float | None = option(
        None,
        "Seconds at both ends of a phase in which --relaxed forgives.",
        SCORES,
        positive(" of seconds, e.g. 10"),
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
    cache_dir: Path | None = _CACHE.field(None)
    cache_limit_gb: float | None = _CACHE_LIMIT.field(None, unset=WeightsSource.cache_limit_gb)
    jpeg_decoder: str | None = _JPEG_DECODER.field(None, unset=WeightsSource.jpeg_decoder)
    frames: bool = option(
        True,
        "Leave the frames of the most confident mistakes out of report.html, which shows them where the images are at "
        "hand (--weights): they are pictures of patients.",
        OUTPUT,
        flag="no-frames",
    )
    out_dir: Path = option(Path("evaluation"), "Folder for scores, pictures and report.html.", OUTPUT, flag="out")

    def __post_init__(self) -> None:
        if isinstance(self.features, tuple) and len(self.features) < 2:
            object.__setattr__(self, "features", self.features[0] if self.features else None)
        self._refuse_options_without_effect()
        is_of_csvs = self._kind_of_source() is PredictionsSource
        if is_of_csvs and self.csv is not None and self.num_classes is None and self.phase_names is None:
            object.__setattr__(self, "phase_names", names_beside(self.csv))
        if isinstance(self.features, tuple) and self.split == "all":
            raise SpatialfeatError(
                "--split all: with several --features only videos of one split are scored, by default test, since each "
                "network was trained on the others; leave it out"
            )
        super().__post_init__()
        _check_id_options(self.id_form, self.id_pattern)
        _check_jpeg_decoder(self.jpeg_decoder, self.cache_dir)
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
        found: Source = _with_defaults(self._kind_of_source(), self)
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


def _with_defaults(kind: type[Any], config: Options) -> Any:
    """The source of this kind, of the options that were given and its own defaults."""
    given = {field.name: getattr(config, field.name) for field in fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


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
    backbone: str | None = _BACKBONE.field(None, unset=_AS_DESCRIBED)
    img_dir: Path | None = _IMG_DIR.field(None, unset=WeightsSource.img_dir)
    csv: Path | None = option(None, "Frames to predict, column id.", DATA, unset="all frames of the folder")
    id_form: str | None = _ID_FORM.field(None, unset=_AS_TRAINED)
    id_pattern: str | None = _ID_PATTERN.field(None)
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
    preprocessing: str | None = _PREPROCESSING.field(None)
    mean: tuple[float, float, float] | None = _MEAN.field(None)
    std: tuple[float, float, float] | None = _STD.field(None)
    batch_size: int | None = _BATCH_SIZE.field(None, unset=WeightsSource.batch_size)
    device: str | None = _DEVICE.field(None, unset=WeightsSource.device)
    precision: str | None = _PRECISION.field(None, unset=WeightsSource.precision)
    workers: int | None = _WORKERS.field(None)
    cache_dir: Path | None = _CACHE.field(None)
    cache_limit_gb: float | None = _CACHE_LIMIT.field(None, unset=WeightsSource.cache_limit_gb)
    jpeg_decoder: str | None = _JPEG_DECODER.field(None, unset=WeightsSource.jpeg_decoder)
    out_dir: Path = option(Path("predictions"), "Folder for predictions.csv and ribbons.", OUTPUT, flag="out")

    def __post_init__(self) -> None:
        if self.features is not None:
            others = {field.name for field in fields(WeightsSource)}
            _refuse_surplus(self, others, "with --features logits come from the feature files")
        else:
            _refuse_surplus(self, {"split"}, "it chooses among the feature files of --features")
        super().__post_init__()
        _check_id_options(self.id_form, self.id_pattern)
        _check_jpeg_decoder(self.jpeg_decoder, self.cache_dir)

    @property
    def source(self) -> WeightsSource | FeaturesSource:
        """Where the predictions come from, with the defaults of its options; `csv` None is all frames of the folder."""
        if self.features is not None:
            return FeaturesSource(features=self.features, split=self.split or "all")
        found: WeightsSource = _with_defaults(WeightsSource, self)
        return replace(found, csv=self.csv)


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
        "fold k and trains on the others. Honest only if the network that made the features was trained on none of "
        "these videos; else extract once per fold: docs/training.md.",
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
    data_set: str | None = _DATA_SET.field(None, unset="as the files say")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data_set(self.data_set)


@dataclass(frozen=True, kw_only=True)
class BackbonesConfig(Options):
    """List the encoders.

    Number of features, input, where the features are taken, licence, and where the weights are. With NAME: all that is
    known of one, and the stages that --freeze-until counts. Beside these there are torchvision's classification
    networks by their names, and timm's as timm:NAME (pip install 'spatialfeat[timm]').
    """

    name: str | None = option(None, "One encoder.", NETWORK, metavar="NAME", is_argument=True)


OWN_SOURCES = ("videos", "frames")
"""SOURCE of `prepare` where it is not the name of a data set."""

ANNOTATIONS, VIDEOS = "Annotations", "Videos"


_SHARE = Rule(lambda value: 0 < value < 1, "lie between 0 and 1, e.g. 0.2")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Options):
    """From videos or frames, and their annotations, to a folder for all other commands.

    Its help on the command line is made from the table of data sets: see `sources.datasets`.
    """

    source: str = option(MISSING, "Name of a data set, videos, or frames.", DATA, metavar="SOURCE", is_argument=True)
    data_dir: Path = option(MISSING, "Folder of the videos or frames.", DATA, metavar="DIR", is_argument=True)
    out: Path = option(
        MISSING, "New or empty folder, or one that an earlier run began.", OUTPUT, metavar="OUT", is_argument=True
    )
    annotations: str | None = option(
        None,
        "For videos and frames: a table `video,start,end,phase`; or a table `frame,phase` or `second,phase` per "
        "video, as a folder or a pattern, e.g. 'labels/{video}.csv'. Names or numbers, any separator, with a header or "
        "without.",
        ANNOTATIONS,
        unset="none: frames without labels, for extract",
        metavar="FILE_OR_PATTERN",
    )
    unit: str | None = option(
        None,
        "What positions in annotations are: frame, second or ms.",
        ANNOTATIONS,
        one_of("frame", "second", "ms"),
        unset="as the header or the form h:m:s says",
    )
    first_frame: int | None = option(
        None,
        "The number of a video's first frame, or second, in annotations; for frames, in the names of their files.",
        ANNOTATIONS,
        at_least(0),
        unset="0 where that number occurs",
    )
    first_row: int | None = option(
        None,
        "For frames: that number in annotations, where it is another one than in the names of the files.",
        ANNOTATIONS,
        at_least(0),
        unset="as --first-frame, where rows count the files",
    )
    interval_end: str | None = option(
        None,
        "Whether the end of an interval belongs to it: inclusive or exclusive.",
        ANNOTATIONS,
        one_of("inclusive", "exclusive"),
        unset="as touching intervals show",
    )
    overlap: str | None = option(
        None,
        "Which of two intervals counts where they overlap: the one that starts earlier or later.",
        ANNOTATIONS,
        one_of("earlier", "later"),
        unset="refused",
    )
    first_phase: int | None = option(
        None,
        "The number of the first phase, where phases are numbers.",
        ANNOTATIONS,
        at_least(0),
        unset="0 where that number occurs",
    )
    phase_names: tuple[str, ...] | None = option(
        None,
        "Names of all phases, in label order: a text file with one per line, or NAME,NAME,...",
        ANNOTATIONS,
        metavar="NAMES",
        parse=read_phase_names,
        unset="as the annotations have them, in order of appearance",
    )
    phase_map: Path | None = option(
        None, "Table FROM,TO: other names for phases, several to one, or none (TO empty).", ANNOTATIONS
    )
    unlabelled: str = option(
        "drop", "Frames without a phase: drop, or keep with the label -100.", ANNOTATIONS, one_of("drop", "keep")
    )
    allow_length_difference: bool = option(
        False, "Take a video that is longer or shorter than its annotation by more than a sample.", ANNOTATIONS
    )
    split: str | None = option(None, "Which of a data set's published splits.", DATA, unset="the first one it has")
    val: float | None = option(
        None,
        "Share of the labelled frames for validation, where no videos were published for it; patients stay whole.",
        DATA,
        _SHARE,
        unset="none",
    )
    test: float | None = option(
        None,
        "The same for the test.",
        DATA,
        _SHARE,
        unset="none",
    )
    seed: int = option(0, "Seed of --val and --test.", DATA, at_least(0))
    leave_out: tuple[str, ...] = option((), "A video to leave out; repeat it for several.", DATA, metavar="VIDEO")
    fps: float = option(1.0, "Samples per second of video.", VIDEOS, positive(" of samples per second, e.g. 1"))
    short_side: str = option(
        "256",
        "Shrink frames to so many pixels on the shorter side, never enlarged; original keeps them.",
        VIDEOS,
        Rule(lambda value: value == "original" or (value.isdigit() and int(value) >= 16), "be original, or 16 or more"),
    )
    image_format: str = option(
        "png", "png, or jpeg (quality 95): smaller, but not exact.", VIDEOS, one_of("png", "jpeg"), flag="format"
    )
    crop_border: bool = option(
        False, "Cut off the black border of endoscopes: one box per video, shown in prepare/crop_boxes.png.", VIDEOS
    )
    allow_cut: bool = option(False, "Take a video that ends before its header says, as far as it goes.", VIDEOS)
    source_fps: float | None = option(
        None,
        "For frames: how many of the existing frames make a second.",
        VIDEOS,
        positive(" of frames per second, e.g. 1"),
        unset="as --fps, without annotations",
    )
    taken_at: str = option(
        "start",
        "For frames: where in its part of a second each was taken: start (every n-th frame), or middle (ffmpeg's "
        "filter fps).",
        VIDEOS,
        one_of("start", "middle"),
    )
    annotation_fps: float | None = option(
        None,
        "For frames: frames per second of the video that the annotation counts.",
        VIDEOS,
        positive(" of frames per second, e.g. 25"),
        unset="it counts the existing frames",
    )
    workers: int | None = option(
        None, "Videos that are decoded at the same time.", DEVICE, at_least(1), unset="by the cores there are"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_own, is_frames = self.source in OWN_SOURCES, self.source == "frames"
        only_annotated = (
            *("unit", "first_row", "interval_end", "overlap", "first_phase", "phase_names", "phase_map"),
            *("val", "test"),
        )
        only_frames = ("source_fps", "taken_at", "annotation_fps", "first_row")
        without_effect = {
            f"for {self.source}, whose annotations are known": ()
            if is_own
            else ("annotations", "unit", "first_frame", "interval_end", "overlap", "phase_names"),
            "without --annotations": only_annotated if is_own and self.annotations is None else (),
            f"for {self.source}, only for frames": () if is_frames else only_frames,
            "for frames, which are linked as they are": ("short_side", "image_format", "crop_border", "allow_cut")
            if is_frames
            else (),
            f"for {self.source}, only for a data set": ("split",) if is_own else (),
        }
        for reason, names in without_effect.items():
            for name in names:
                if getattr(self, name) != getattr(PrepareConfig, name):
                    raise SpatialfeatError(f"{flag_of(PrepareConfig, name)}: has no meaning {reason}; leave it out")
        if self.shares and self.shares["train"] <= 1e-9:
            raise SpatialfeatError(
                f"--val {self.val:g} and --test {self.test:g}: leave nothing to train on; lower them"
            )

    @property
    def shares(self) -> dict[str, float]:
        """{split: its share of the labelled frames that are shared out}; nothing where none is asked for."""
        asked = {split: share for split, share in (("val", self.val), ("test", self.test)) if share is not None}
        return {"train": 1 - (self.val or 0) - (self.test or 0)} | asked if asked else {}

    @property
    def short_side_px(self) -> int | None:
        """None keeps the size."""
        return None if self.short_side == "original" else int(self.short_side)


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
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)
    num_classes: int = _NUM_CLASSES.field(None, unset=_AS_NAMED)
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None, unset=_NAMED_BESIDE)
    fps: float = _FPS.field(ExtractConfig.fps)
    decode: bool = option(
        True,
        "Look only at the ends of the image files: seconds instead of minutes, but damage in the middle and equal "
        "pictures are not found.",
        DATA,
        flag="no-decode",
    )
    backbone: str = _BACKBONE.field(FinetuneConfig.backbone, heading=PLANNED)
    image_size_px: int = _IMAGE_SIZE.field(None, heading=PLANNED)
    batch_size: int = _BATCH_SIZE.field(FinetuneConfig.batch_size, heading=PLANNED)
    epochs: int = _EPOCHS.field(FinetuneConfig.epochs, heading=PLANNED)
    patience: int = _PATIENCE.field(FinetuneConfig.patience, heading=PLANNED)
    freeze_until: int = _FREEZE_UNTIL.field(None, heading=PLANNED)
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
        if self.num_classes is None and self.phase_names is None:
            first = re.sub(r"^[A-Za-z0-9_-]+=", "", self.csvs[0]) if self.csvs else ""
            csv = Path(first).expanduser() if first else self.train_csv
            object.__setattr__(self, "phase_names", names_beside(csv))
        _count_phases(self)
        super().__post_init__()
        _fill_in_backbone(self)
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


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Options):
    """Divide one CSV by patient, for training, validation and test.

    Patients stay whole, phases are balanced. Writes train_ResNet_DB.csv, val_ResNet_DB.csv and test_ResNet_DB.csv to
    OUT; with --folds to OUT/fold1, OUT/fold2, ..., where each patient is tested in one fold. finetune and extract run
    in these folders. Shows what came out as a table and a picture.
    """

    csv: Path = option(MISSING, "Frames of all patients, columns id,label.", DATA, metavar="CSV", is_argument=True)
    out: Path = option(MISSING, "Must not exist, or be an empty folder.", OUTPUT, metavar="OUT", is_argument=True)
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None,
        help=f"Phase names in label order: a text file, one per line, or NAME,NAME,... Also written to {NAMES_FILE}.",
        unset=f"{NAMES_FILE} beside CSV, if it is there",
    )
    img_dir: Path | None = option(
        None,
        "Folder with the frames. A relative link to it, images, comes to lie beside the CSVs.",
        DATA,
        unset="images beside CSV, if it is there",
    )
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)
    val: float = option(
        0.2,
        "Share of the labelled frames for validation.",
        SPLITS,
        _SHARE,
    )
    test: float | None = option(
        None,
        "Share for the test; 0: no test set.",
        SPLITS,
        Rule(lambda value: 0 <= value < 1, "be at least 0 (no test set) and less than 1, e.g. 0.2"),
        unset=f"{DEFAULT_TEST_SHARE}; with --folds, one fold",
    )
    folds: int | None = option(
        None, "Cross-validation with so many folds instead of one division.", SPLITS, at_least(2), unset="none"
    )
    seed: int = option(0, "Another seed gives another division, if there is one that is as good.", SPLITS, at_least(0))

    def __post_init__(self) -> None:
        if self.phase_names is None:
            object.__setattr__(self, "phase_names", names_beside(self.csv))
        super().__post_init__()
        _check_id_options(self.id_form, self.id_pattern)
        if self.folds is not None and self.test is not None:
            raise SpatialfeatError(f"--test: has no meaning with --folds {self.folds}, each of which is tested on once")
        shares = self.shares
        if shares["train"] <= 1e-9:
            named = f"--folds {self.folds}" if self.folds else f"--test {shares['test']:g}"
            raise SpatialfeatError(f"--val {self.val:g} and {named}: leave nothing to train on; lower them")

    @property
    def shares(self) -> dict[str, float]:
        """{split: its share of the labelled frames}, of one fold where there are several; no test if there is none."""
        test = 1 / self.folds if self.folds else DEFAULT_TEST_SHARE if self.test is None else self.test
        shares = {"train": 1 - self.val - test, "val": self.val, "test": test}
        return {split: share for split, share in shares.items() if split != "test" or share}


def _count_phases(config: FinetuneConfig | CheckConfig) -> None:
    """Where --num-classes is not given, there are as many phases as names."""
    if config.num_classes is None:
        num_names = len(config.phase_names or ())
        # One name is too few: the message about names says so.
        object.__setattr__(config, "num_classes", num_names if num_names > 1 else DEFAULT_NUM_PHASES)


def _fill_in_backbone(config: FinetuneConfig | CheckConfig) -> None:
    """Where image size and frozen stages are not given, they are the encoder's; refuses what it cannot do."""
    side_px, num_frozen, num_stages = 224, 6, len(CHILDREN)
    if config.backbone != RESNET50_NAME:
        backbone = pkgutil.resolve_name("spatialfeat.network.backbone:find_backbone")(config.backbone)
        side_px, num_frozen, num_stages = backbone.image_size_px, backbone.usual_frozen, len(backbone.stages)
        if config.image_size_px is not None:
            backbone.require_image_size(config.image_size_px)
    for name, usual in (("image_size_px", side_px), ("freeze_until", num_frozen)):
        if getattr(config, name) is None:
            object.__setattr__(config, name, usual)
    if not 0 <= config.freeze_until < num_stages:
        raise SpatialfeatError(
            f"--freeze-until {config.freeze_until}: must be 0 (train everything) to {num_stages - 1} (train the "
            "classifier only)"
        )


def _check_data_set(name: str | None) -> None:
    problem = None if name is None else label_problem(name)
    if problem is not None:
        raise SpatialfeatError(f"--data-set {name}: {problem}; pass the name of a public data set, such as cholec80")
