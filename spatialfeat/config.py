"""Every option of every command, written once: type, default, help, bounds. The command line is generated from here.

A field of a command's dataclass is `name: type = HEADING.option(default, help, ...)`: see `options.py`.
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
from spatialfeat.options import Heading, Options, Rule, at_least, flag_of, one_of, positive, read_colours
from spatialfeat.phases import DEFAULT_NUM_PHASES, NAMES_FILE, check_phase_names, names_beside, read_phase_names


def csv_name(split: str) -> str:
    """What the specification calls the CSV of a split."""
    return f"{split}_ResNet_DB.csv"


TRAIN_CSV, VAL_CSV, TEST_CSV = (Path(csv_name(split)) for split in ("train", "val", "test"))
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

DEFAULT_TEST_SHARE = 0.2
"""What `split` gives to the test set."""


_TITLES = ("Annotations", "Data", "Splits", "Videos", "Network", "Training", "Planned training, for the estimate",
           "Scores", "Device", "Format ms-tcn", "Format tecno", "Output")  # fmt: skip
HEADINGS = tuple(map(Heading, _TITLES))
"""In the order of the help."""
ANNOTATIONS, DATA, SPLITS, VIDEOS, NETWORK, TRAINING, PLANNED, SCORES, DEVICE, MS_TCN, TECNO, OUTPUT = HEADINGS

# Options of several commands. One that has no default of its own somewhere is None there, with `unset`.
_CSV = DATA.shared("Frames and true phases, columns id,label. With --predictions: the ground truth.")
_IMG_DIR = DATA.shared("Folder with the frames, {id}.png or {id}.jpg.")
_ID_FORM = DATA.shared(
    "How ids are read: patient-segment-frame, video-frame, or auto, where a last-but-one number is a segment if the "
    "patient before it holds a digit.",
    one_of(*ID_FORMS),
    unset="auto",
)
_ID_PATTERN = DATA.shared(
    "Read ids by a regular expression that matches them as a whole, with the named groups patient, segment, frame; or "
    r"video, frame: '(?P<video>.+)_(?P<frame>\d+)'.",
    metavar="REGEX",
)
_AS_TRAINED = "as the weights were trained, else auto"
_NUM_CLASSES = DATA.shared("Number of phases; labels are 0..N-1.", at_least(2))
_NAMED_BESIDE = f"without --num-classes, {NAMES_FILE} beside the CSV if it is there"
_PHASE_NAMES = DATA.shared(
    "Phase names in label order: NAME,NAME,...; a text file, one per line or `number name` as in mapping.txt; the JSON "
    "beside weights; or feature files. Labels in CSVs may then be names.",
    metavar="NAMES",
    parse=read_phase_names,
)
_FPS = DATA.shared("Frames per second of the frame numbers.", positive(" of frames per second, e.g. 1"))
_BACKBONE = NETWORK.shared(
    "Encoder: resnet50, a name that `spatialfeat backbones` lists, a classification network of torchvision "
    "(convnext_tiny), or timm:NAME.",
    metavar="NAME",
)
_AS_DESCRIBED = f"as the JSON beside the weights says, else {RESNET50_NAME}"
_PREPROCESSING = NETWORK.shared(
    "For weights from elsewhere: short-side (resize to 256, crop 224), squash (both sides to 224), or a JSON file with "
    "all of it, such as the one beside the weights of another study.",
    metavar="HOW",
    unset="as the JSON beside the weights says, else the encoder's usual one: short-side for resnet50",
)
_MEAN = NETWORK.shared(
    "Mean of red, green and blue, 0 to 1, for weights from elsewhere.",
    metavar="R,G,B",
    parse=partial(read_colours, "--mean"),
    unset="the same, else the encoder's usual one: ImageNet's for resnet50",
)
_STD = replace(
    _MEAN,
    help="Standard deviation of red, green and blue, 0 to 1, for weights from elsewhere.",
    parse=partial(read_colours, "--std"),
)
_BATCH_SIZE = DEVICE.shared("Frames per batch.", at_least(1))
_EPOCHS = TRAINING.shared("Most epochs to train.", at_least(1))
_PATIENCE = TRAINING.shared("Stop after so many epochs without a better validation accuracy.", at_least(1))
_FREEZE_UNTIL = TRAINING.shared(
    f"Freeze the first N of the ten children {', '.join(CHILDREN)}; of another encoder, of the stages that "
    "`spatialfeat backbones NAME` shows.",
    unset="6 of resnet50, half of another encoder's stages",
)
# At 64 px the last stage is still 2x2, so BatchNorm has several values even for a batch of one frame.
_IMAGE_SIZE = NETWORK.shared(
    "Side of the network's input in pixels.",
    at_least(64),
    flag="image-size",
    unset="the encoder's usual one: 224 for resnet50",
)
_DEVICE = DEVICE.shared("auto (first usable CUDA device, else CPU), cpu, cuda or cuda:N.")
_PRECISION = DEVICE.shared(
    "Arithmetic of the network: fp32, bf16, fp16, or auto (the fastest that the device has).", one_of(*PRECISIONS)
)
_WORKERS = DEVICE.shared(
    "Decoding processes; 0 decodes in the main process.", at_least(0), unset="by the cores there are"
)
_CACHE = DEVICE.shared(
    "Folder that keeps decoded frames, for this run and later ones: each frame is decoded once. New, empty, or an "
    "earlier cache.",
    flag="cache",
    unset="none",
)
_CACHE_LIMIT = DEVICE.shared(
    "Most gigabytes that all of the --cache folder may take.", positive(" of gigabytes, e.g. 100"), flag="cache-limit"
)
_JPEG_DECODER = DEVICE.shared(
    "cpu, or gpu: JPEG frames are decoded on the CUDA device, which is several times as fast; pixels then differ by "
    "some levels. PNG frames are decoded by the processor in any case.",
    one_of(*JPEG_DECODERS),
)
_PSEUDONYMIZE = OUTPUT.shared(
    "Write pseudonyms in place of patient ids. This CSV, columns patient_id,pseudonym, is read and gets the patients "
    "that it lacks; it is made if it is not there. Keep it apart from the output.",
    metavar="MAP.csv",
)

_DATA_SET = DATA.shared(
    "Name of the public data set that the frames are from, such as cholec80: `info` then warns where the encoder was "
    "trained on it.",
    metavar="NAME",
    unset="not said",
)

CACHE_LIMIT_GB = 100.0
"""Room for the 214,000 training and 56,000 validation frames of 456x256 that the specification's study has."""


class DecodingOptions(Options):
    """Of commands that decode frames."""

    jpeg_decoder: str | None
    cache_dir: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jpeg_on_device and self.cache_dir is not None:
            raise SpatialfeatError(
                f"--jpeg-decoder {GPU_DECODER} and --cache: a cache keeps what the processor decoded; leave one of "
                "them out"
            )
        img_dir, out_dir = (getattr(self, name, None) for name in ("img_dir", "out_dir"))
        if img_dir is not None and out_dir is not None and img_dir.resolve() == out_dir.resolve():
            raise SpatialfeatError(f"--out {out_dir}: is the folder of the frames (--img-dir); choose another one")

    @property
    def jpeg_on_device(self) -> bool:
        """JPEG frames are left to the CUDA device."""
        return self.jpeg_decoder == GPU_DECODER


def _check_id_options(config: Any) -> None:
    if config.id_pattern is not None:
        pkgutil.resolve_name("spatialfeat.data.ids:check_id_pattern")(config.id_pattern)
    if config.id_form is not None and config.id_pattern is not None:
        raise SpatialfeatError("--id-form and --id-pattern: say in one way how ids are read; leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """The options of a study, which `finetune` trains and `check` examines."""

    train_csv: Path = DATA.option(TRAIN_CSV, "Training frames: CSV with columns id,label.")
    val_csv: Path = DATA.option(VAL_CSV, "Validation frames.")
    test_csv: Path | None = DATA.option(None, "Test frames.", unset=f"{TEST_CSV} if it is there")
    img_dir: Path = _IMG_DIR.field(Path("images"))
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)
    # This and the next two numbers are ints once the object is made.
    num_classes: int = _NUM_CLASSES.field(None, unset=f"as many as phases have names, else {DEFAULT_NUM_PHASES}")
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None, unset=_NAMED_BESIDE)
    backbone: str = _BACKBONE.field(RESNET50_NAME)
    image_size_px: int = _IMAGE_SIZE.field(None)
    freeze_until: int = _FREEZE_UNTIL.field(None)
    epochs: int = _EPOCHS.field(50)
    batch_size: int = _BATCH_SIZE.field(32, heading=TRAINING)
    patience: int = _PATIENCE.field(10)
    device: str = _DEVICE.field("auto")
    precision: str = _PRECISION.field("fp32")
    workers: int | None = _WORKERS.field(None)

    def __post_init__(self) -> None:
        if self.num_classes is None and self.phase_names is None:
            object.__setattr__(self, "phase_names", names_beside(self._first_csv()))
        if self.num_classes is None:
            num_names = len(self.phase_names or ())
            # One name is too few: the message about names says so.
            object.__setattr__(self, "num_classes", num_names if num_names > 1 else DEFAULT_NUM_PHASES)
        super().__post_init__()
        self._fill_in_backbone()
        _check_id_options(self)
        check_phase_names(self.phase_names, self.num_classes)

    def _first_csv(self) -> Path:
        """Beside which phase_names.txt may lie."""
        return self.train_csv

    def _fill_in_backbone(self) -> None:
        """Where image size and frozen stages are not given, they are the encoder's; refuses what it cannot do."""
        side_px, num_frozen, num_stages = 224, 6, len(CHILDREN)
        if self.backbone != RESNET50_NAME:
            backbone = pkgutil.resolve_name("spatialfeat.network.backbone:find_backbone")(self.backbone)
            side_px, num_frozen, num_stages = backbone.image_size_px, backbone.usual_frozen, len(backbone.stages)
            if self.image_size_px is not None:
                backbone.require_image_size(self.image_size_px)
        for name, usual in (("image_size_px", side_px), ("freeze_until", num_frozen)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        if not 0 <= self.freeze_until < num_stages:
            raise SpatialfeatError(
                f"--freeze-until {self.freeze_until}: must be 0 (train everything) to {num_stages - 1} (train the "
                "classifier only)"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StudyOptions, DecodingOptions):
    """Fine-tune a ResNet-50, or another encoder, on labelled frames.

    With no option, this is exactly the specified spatial study. Interrupted, it goes on with --resume.
    """

    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None, unset=f"{_NAMED_BESIDE}; with --resume, as the study began"
    )
    weights: str = NETWORK.option(
        "imagenet", "Start from: imagenet, random, or the path of a state dict of the encoder."
    )
    reset_classifier: bool = NETWORK.option(
        False, "Start a new classifier when the weights have another number of phases."
    )
    lr: float = TRAINING.option(1e-4, "Adam's learning rate.", positive(", e.g. 1e-4"))
    lr_patience: int = TRAINING.option(3, "Lower the learning rate after more than so many such epochs.", at_least(0))
    lr_factor: float = TRAINING.option(
        0.5, "Factor by which it is lowered.", Rule(lambda value: 0 < value < 1, "lie between 0 and 1, e.g. 0.5")
    )
    class_weights: str = TRAINING.option(
        "none",
        "none, or balanced: every phase counts alike in training, however many frames it has.",
        one_of("none", "balanced"),
    )
    label_smoothing: float = TRAINING.option(
        0.0,
        "Share of each label that is spread evenly over all phases; 0 is off.",
        Rule(lambda value: 0 <= value < 1, "be at least 0 (off) and less than 1, e.g. 0.1"),
    )
    clip_grad_norm: float | None = TRAINING.option(
        None, "Scale longer gradients down to this norm.", positive(", e.g. 1.0"), unset="never"
    )
    seed: int = TRAINING.option(0, "Same seed, same machine: same history.", at_least(0))
    cache_dir: Path | None = _CACHE.field(None)
    cache_size_px: int | None = DEVICE.option(
        None,
        "With --cache: keep training frames shrunk to so many pixels on the shorter side, never enlarged. Frames "
        "that are no larger are trained on exactly as without a cache; small random crops of others lose detail.",
        flag="cache-size",
        unset=f"{round(224 * CACHE_SIZE_RATIO)}, or as much larger as --image-size",
    )
    cache_limit_gb: float = _CACHE_LIMIT.field(CACHE_LIMIT_GB)
    jpeg_decoder: str = _JPEG_DECODER.field(CPU_DECODER)
    out_dir: Path = OUTPUT.option(Path(), "Folder for weights, history, curves and test results.", flag="out")
    resume: bool = OUTPUT.option(False, "Go on with the study in --out after its last whole epoch, if there is one.")
    keep_state: bool = OUTPUT.option(False, "Keep training_state.pt after the end, to resume with more --epochs.")
    tensorboard: bool = OUTPUT.option(True, "Log to tensorboard/ in --out, where TensorBoard is installed.")

    def __post_init__(self) -> None:
        if self.resume and self.num_classes is None and self.phase_names is None:
            self._take_phases_as_begun()
        super().__post_init__()
        if self.cache_dir is None:
            self.refuse(("cache_size_px",), "without --cache")
        if self.cache_size_px is not None and self.cache_size_px < self.image_size_px:
            raise SpatialfeatError(
                f"--cache-size {self.cache_size_px}: must be at least {self.image_size_px}, the side of the network's "
                "input: even whole frames would be enlarged"
            )

    def _take_phases_as_begun(self) -> None:
        """If there is a study to resume, its phases count, whatever phase_names.txt says by now."""
        begun = pkgutil.resolve_name("spatialfeat.training.files:phases_as_begun")(self.out_dir)
        if begun is not None:
            for name, value in zip(("num_classes", "phase_names"), begun, strict=True):
                object.__setattr__(self, name, value)

    @property
    def training_frames_px(self) -> int | None:
        """The shorter side that larger training frames are shrunk to: only a cache does that."""
        if self.cache_dir is None:
            return None
        return self.cache_size_px or round(self.image_size_px * CACHE_SIZE_RATIO)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(DecodingOptions):
    """The options of what a network of a weights file computes."""

    weights: Path = NETWORK.option(
        Path(WEIGHTS_NAME),
        "Weights, fine-tuned or from elsewhere, or imagenet; without a classifier of phases, the files have no logits.",
    )
    backbone: str | None = _BACKBONE.field(None, unset=_AS_DESCRIBED)
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


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkOptions):
    """Write features of every frame.

    2048 per frame, or as many as the encoder has; one HDF5 file per video. Videos that are done already are skipped.
    """

    csvs: tuple[str, ...] = DATA.option(
        (),
        "Frames to extract; repeat it for several files. Without SPLIT= the word train, val or test in the file's "
        "name says the split, as in my_train.csv.",
        flag="csv",
        metavar="[SPLIT=]PATH",
        unset="the specification's three files",
    )
    read_csvs: bool = DATA.option(
        True,
        "Leave the specification's CSVs aside, also where they lie here: all images of --img-dir, unlabelled.",
        flag="no-csv",
    )
    img_dir: Path = _IMG_DIR.field(
        FinetuneConfig.img_dir,
        help="Folder with the frames, {id}.png or {id}.jpg. Without a CSV: all frames in it, or in one folder per "
        "video in it; of bare frame numbers the folder's name is the video.",
    )
    id_form: str | None = _ID_FORM.field(None, unset=_AS_TRAINED)
    id_pattern: str | None = _ID_PATTERN.field(None)
    group_by: str = DATA.option("video", "One file per: video, or patient (all segments in order).", one_of(*GROUPINGS))
    fps: float = _FPS.field(1.0, help="Frames per second of the frame numbers, stored for readers.")
    data_set: str | None = _DATA_SET.field(None)
    shard: str | None = DATA.option(
        None,
        "Only the I-th of N shares of the videos, for job arrays: 1/4 to 4/4 write what one run without it writes.",
        metavar="I/N",
        unset="all videos",
    )
    num_classes: int | None = NETWORK.option(
        None,
        "Expected number of phases.",
        unset=f"as the weights have, else as there are names, else {DEFAULT_NUM_PHASES}",
    )
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None, heading=NETWORK)
    out_dir: Path = OUTPUT.option(
        Path("features"), "Folder for the feature files, one HDF5 file per video.", flag="out"
    )
    layout: str = OUTPUT.option(
        "channel-first",
        "channel-first stores (D, T), time-first (T, D); D is 2048 for resnet50.",
        one_of("channel-first", "time-first"),
    )
    overwrite: bool = OUTPUT.option(False, "Replace files made by other weights, options or frames.")
    pseudonymize: Path | None = _PSEUDONYMIZE.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data_set(self.data_set)
        _check_id_options(self)
        if self.csvs and not self.read_csvs:
            raise SpatialfeatError("--csv and --no-csv: leave one of the two out")
        if self.shard is not None:
            pkgutil.resolve_name("spatialfeat.features.plan:parse_shard")(self.shard)


@dataclass(frozen=True, kw_only=True)
class WeightsSource(NetworkOptions):
    """Frames that are predicted with a weights file, and the defaults of the options that only this source has."""

    csv: Path | None = _CSV.field(TEST_CSV)
    img_dir: Path = _IMG_DIR.field(Path("images"))
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)


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
class PredictionOptions(DecodingOptions):
    """The options of `evaluate` and `predict` for frames that a weights file predicts.

    None unless given, so that one that would do nothing for another source is refused; `source` fills in the defaults.
    """

    weights: Path | None = DATA.option(None, "Fine-tuned weights (a plain state dict).", unset=WeightsSource.weights)
    backbone: str | None = _BACKBONE.field(None, unset=_AS_DESCRIBED)
    csv: Path | None = _CSV.field(None, unset=WeightsSource.csv)
    img_dir: Path | None = _IMG_DIR.field(None, unset=WeightsSource.img_dir)
    id_form: str | None = _ID_FORM.field(None, unset=_AS_TRAINED)
    id_pattern: str | None = _ID_PATTERN.field(None)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_id_options(self)

    def _with_defaults(self, kind: type[Any]) -> Any:
        """The source of this kind, of the options that were given and its own defaults."""
        given = {field.name: getattr(self, field.name) for field in fields(kind)}
        return kind(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(PredictionOptions):
    """Score predictions of phases.

    Every protocol side by side, with 95 % intervals over patients, tables and pictures. With no option: the fine-tuned
    weights on test_ResNet_DB.csv. Meaning of every number: docs/evaluation.md.
    """

    features: Path | tuple[Path, ...] | None = DATA.option(
        None,
        "Folder of feature files: their logits are scored against their labels, and with --predictions what temporal "
        "models made of them. After a cross-validation with a network per fold repeat it, one folder per fold: the "
        "test videos of all are scored together.",
        metavar="PATH",
    )
    split: str | None = DATA.option(None, "Which feature files: train, val, test, or all.", unset=FeaturesSource.split)
    predictions: tuple[str, ...] = DATA.option(
        (),
        "CSV of predicted phases, PATH or NAME=PATH; repeat it to compare. Columns: img_id, frame_id or id; "
        "predicted_label, prediction or predicted; true_label or label (or pass --csv). With --features also a folder "
        "of result files, one per video, as MS-TCN and its relatives write them.",
        metavar="[NAME=]PATH",
    )
    num_classes: int | None = _NUM_CLASSES.field(
        None, unset=f"as weights or feature files have, else as there are names, else {DEFAULT_NUM_PHASES}"
    )
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None, unset=f"as weights or feature files say; with --predictions, {NAMES_FILE} beside --csv if it is there"
    )
    group_by: str = SCORES.option(
        "video", "What counts as one video: video, or patient (all segments in order).", one_of(*GROUPINGS)
    )
    relaxed: str | None = SCORES.option(
        None, "Add relaxed-boundary scores: cholec80, or a CSV with columns from,to of allowed transitions."
    )
    relaxed_window: float | None = SCORES.option(
        None,
        "Seconds at both ends of a phase in which --relaxed forgives.",
        positive(" of seconds, e.g. 10"),
        unset="10",
    )
    fps: float | None = SCORES.option(
        None,
        "Scored frames per second: needed by --relaxed, and for the time axis of pictures.",
        positive(" of scored frames per second, e.g. 1"),
        unset="as feature files say; else, for pictures only, 1",
    )
    bootstrap: int = SCORES.option(2000, "Bootstrap samples of patients for the intervals.", at_least(0))
    seed: int = SCORES.option(0, "Seed of the bootstrap.", at_least(0))
    frames: bool = OUTPUT.option(
        True,
        "Leave the frames of the most confident mistakes out of report.html, which shows them where the images are at "
        "hand (--weights): they are pictures of patients.",
        flag="no-frames",
    )
    out_dir: Path = OUTPUT.option(Path("evaluation"), "Folder for scores, pictures and report.html.", flag="out")

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
        found: Source = self._with_defaults(self._kind_of_source())
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
        self.refuse(sorted(others), f"here: {reason}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(PredictionOptions):
    """Predict phases of videos without labels.

    Writes predictions.csv, with a phase and the network's confidence in it for every frame, and ribbons of the phases
    along time. From images, or from feature files, whose logits say the same. Labels, where there are any, are not
    used: `spatialfeat evaluate` scores predictions.
    """

    csv: Path | None = _CSV.field(None, help="Frames to predict, column id.", unset="all frames of the folder")
    features: Path | None = DATA.option(
        None, "Folder of feature files, or one of them: their logits are used, no image is decoded."
    )
    split: str | None = DATA.option(None, "Which feature files: train, val, test, or all.", unset="all")
    num_classes: int | None = DATA.option(None, "Expected number of phases.", unset="as weights or feature files have")
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(None)
    group_by: str = DATA.option(
        "video", "What gets a ribbon: video, or patient (all segments in order).", one_of(*GROUPINGS)
    )
    fps: float | None = _FPS.field(
        None, help="Frames per second of the frame numbers, for the time axis.", unset="as feature files say, else 1"
    )
    out_dir: Path = OUTPUT.option(Path("predictions"), "Folder for predictions.csv and ribbons.", flag="out")

    def __post_init__(self) -> None:
        if self.features is not None:
            others = sorted(field.name for field in fields(WeightsSource))
            self.refuse(others, "here: with --features logits come from the feature files")
        else:
            self.refuse(("split",), "here: it chooses among the feature files of --features")
        super().__post_init__()

    @property
    def source(self) -> WeightsSource | FeaturesSource:
        """Where the predictions come from, with the defaults of its options; `csv` None is all frames of the folder."""
        if self.features is not None:
            return FeaturesSource(features=self.features, split=self.split or "all")
        found: WeightsSource = self._with_defaults(WeightsSource)
        return replace(found, csv=self.csv)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """What to export; its help on the command line is made from the table of formats: see `formats`."""

    format: str = DATA.option(MISSING, f"{', '.join(FORMATS)}.", one_of(*FORMATS), metavar="FORMAT", is_argument=True)
    features_dir: Path = DATA.option(
        MISSING, "Folder of feature files, from `spatialfeat extract`.", metavar="FEATURES_DIR", is_argument=True
    )
    out: Path = OUTPUT.option(
        MISSING, "Must not exist, or be an empty folder; hdf5: a new file.", metavar="OUT", is_argument=True
    )
    group_by: str = DATA.option(
        "video",
        "video: as the files are; patient: a patient's videos joined, in order of segments.",
        one_of(*GROUPINGS),
    )
    unlabelled: str | None = DATA.option(
        None,
        "Frames without a label. "
        + "; ".join(f"{form.name}: {', '.join(form.unlabelled)}" for form in FORMATS.values())
        + ".",
        unset="the first of these",
    )
    val_to: str = MS_TCN.option(
        "own",
        f"Where the videos of split val go: {', '.join(VAL_TARGETS)}. own is a bundle of its own, which MS-TCN "
        "itself does not read.",
        one_of(*VAL_TARGETS),
    )
    folds: Path | None = MS_TCN.option(
        None,
        "CSV with columns video,fold or patient,fold, instead of the splits in the feature files. Split k tests on "
        "fold k and trains on the others. Honest only if the network that made the features was trained on none of "
        "these videos; else extract once per fold: docs/training.md.",
    )
    background_name: str = MS_TCN.option(
        "background", "The phase of frames without a label, with --unlabelled background."
    )
    id_replacement: str | None = MS_TCN.option(None, "Put this for a dot, slash or space in a video's id.")
    name_replacement: str | None = MS_TCN.option(None, "Put this for a space or # in a phase's name.")
    skip_short: bool = MS_TCN.option(False, "Leave out videos of fewer than two frames.")
    allow_small_bundles: bool = MS_TCN.option(False, "Write train and test bundles of one video, too.")
    keep_anyway: bool = TECNO.option(
        False,
        "Let --unlabelled keep write frames without a label, at which TeCNO itself stops: for readers of your own.",
    )
    pseudonymize: Path | None = _PSEUDONYMIZE.field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        form = FORMATS[self.format]
        if self.unlabelled is not None and self.unlabelled not in form.unlabelled:
            raise SpatialfeatError(
                f"--unlabelled {self.unlabelled}: must be one of {', '.join(form.unlabelled)} for {self.format}"
            )
        for name in (name for name in LIMITED_OPTIONS if name not in form.options):
            able = ", ".join(other.name for other in FORMATS.values() if name in other.options)
            self.refuse((name,), f"for {self.format}, only for {able}")
        if self.format == "tecno" and self.unlabelled == "keep" and not self.keep_anyway:
            raise SpatialfeatError(
                "--unlabelled keep: TeCNO's metrics stop at the label -100; pass --unlabelled drop, or --keep-anyway "
                "too if these pickles are for a reader of your own"
            )
        if self.folds is not None:
            self.refuse(("val_to",), "with --folds, which says where each video belongs")
        if self.unlabelled != "background":
            self.refuse(("background_name",), "without --unlabelled background")


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Options):
    """Show what feature files hold.

    Exit code 1 where files cannot be read, or cannot be used together.

    A gap is a place where consecutive frame numbers of a segment differ by more than their usual, most common step.
    The duration runs from the first to the last frame of each segment, gaps included.
    """

    path: Path = DATA.option(MISSING, "A folder of feature files, or one file.", metavar="PATH", is_argument=True)
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

    name: str | None = NETWORK.option(None, "One encoder.", metavar="NAME", is_argument=True)


OWN_SOURCES = ("videos", "frames")
"""SOURCE of `prepare` where it is not the name of a data set."""

_SHARE = Rule(lambda value: 0 < value < 1, "lie between 0 and 1, e.g. 0.2")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Options):
    """What to prepare; its help on the command line is made from the table of data sets: see `sources.datasets`."""

    source: str = DATA.option(MISSING, "Name of a data set, videos, or frames.", metavar="SOURCE", is_argument=True)
    data_dir: Path = DATA.option(MISSING, "Folder of the videos or frames.", metavar="DIR", is_argument=True)
    out: Path = OUTPUT.option(
        MISSING, "New or empty folder, or one that an earlier run began.", metavar="OUT", is_argument=True
    )
    annotations: str | None = ANNOTATIONS.option(
        None,
        "For videos and frames: a table `video,start,end,phase`; or a table `frame,phase` or `second,phase` per "
        "video, as a folder or a pattern, e.g. 'labels/{video}.csv'. Names or numbers, any separator, with a header or "
        "without.",
        unset="none: frames without labels, for extract",
        metavar="FILE_OR_PATTERN",
    )
    unit: str | None = ANNOTATIONS.option(
        None,
        "What positions in annotations are: frame, second or ms.",
        one_of("frame", "second", "ms"),
        unset="as the header or the form h:m:s says",
    )
    first_frame: int | None = ANNOTATIONS.option(
        None,
        "The number of a video's first frame, or second, in annotations; for frames, in the names of their files.",
        at_least(0),
        unset="0 where that number occurs",
    )
    first_row: int | None = ANNOTATIONS.option(
        None,
        "For frames: that number in annotations, where it is another one than in the names of the files.",
        at_least(0),
        unset="as --first-frame, where rows count the files",
    )
    interval_end: str | None = ANNOTATIONS.option(
        None,
        "Whether the end of an interval belongs to it: inclusive or exclusive.",
        one_of("inclusive", "exclusive"),
        unset="as touching intervals show",
    )
    overlap: str | None = ANNOTATIONS.option(
        None,
        "Which of two intervals counts where they overlap: the one that starts earlier or later.",
        one_of("earlier", "later"),
        unset="refused",
    )
    first_phase: int | None = ANNOTATIONS.option(
        None,
        "The number of the first phase, where phases are numbers.",
        at_least(0),
        unset="0 where that number occurs",
    )
    phase_names: tuple[str, ...] | None = ANNOTATIONS.option(
        None,
        "Names of all phases, in label order: a text file with one per line, or NAME,NAME,...",
        metavar="NAMES",
        parse=read_phase_names,
        unset="as the annotations have them, in order of appearance",
    )
    phase_map: Path | None = ANNOTATIONS.option(
        None, "Table FROM,TO: other names for phases, several to one, or none (TO empty)."
    )
    unlabelled: str = ANNOTATIONS.option(
        "drop", "Frames without a phase: drop, or keep with the label -100.", one_of("drop", "keep")
    )
    allow_length_difference: bool = ANNOTATIONS.option(
        False, "Take a video that is longer or shorter than its annotation by more than a sample."
    )
    split: str | None = DATA.option(None, "Which of a data set's published splits.", unset="the first one it has")
    val: float | None = DATA.option(
        None,
        "Share of the labelled frames for validation, where no videos were published for it; patients stay whole.",
        _SHARE,
        unset="none",
    )
    test: float | None = DATA.option(None, "The same for the test.", _SHARE, unset="none")
    seed: int = DATA.option(0, "Seed of --val and --test.", at_least(0))
    leave_out: tuple[str, ...] = DATA.option((), "A video to leave out; repeat it for several.", metavar="VIDEO")
    fps: float = VIDEOS.option(1.0, "Samples per second of video.", positive(" of samples per second, e.g. 1"))
    short_side: str = VIDEOS.option(
        "256",
        "Shrink frames to so many pixels on the shorter side, never enlarged; original keeps them.",
        Rule(lambda value: value == "original" or (value.isdigit() and int(value) >= 16), "be original, or 16 or more"),
    )
    image_format: str = VIDEOS.option(
        "png", "png, or jpeg (quality 95): smaller, but not exact.", one_of("png", "jpeg"), flag="format"
    )
    crop_border: bool = VIDEOS.option(
        False, "Cut off the black border of endoscopes: one box per video, shown in prepare/crop_boxes.png."
    )
    allow_cut: bool = VIDEOS.option(False, "Take a video that ends before its header says, as far as it goes.")
    source_fps: float | None = VIDEOS.option(
        None,
        "For frames: how many of the existing frames make a second.",
        positive(" of frames per second, e.g. 1"),
        unset="as --fps, without annotations",
    )
    taken_at: str = VIDEOS.option(
        "start",
        "For frames: where in its part of a second each was taken: start (every n-th frame), or middle (ffmpeg's "
        "filter fps).",
        one_of("start", "middle"),
    )
    annotation_fps: float | None = VIDEOS.option(
        None,
        "For frames: frames per second of the video that the annotation counts.",
        positive(" of frames per second, e.g. 25"),
        unset="it counts the existing frames",
    )
    workers: int | None = DEVICE.option(
        None, "Videos that are decoded at the same time.", at_least(1), unset="by the cores there are"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in OWN_SOURCES:
            known = ("annotations", "unit", "first_frame", "interval_end", "overlap", "phase_names")
            self.refuse(known, f"for {self.source}, whose annotations are known")
        elif self.annotations is None:
            needing = ("unit", "first_row", "interval_end", "overlap", "first_phase", "phase_names", "phase_map")
            self.refuse((*needing, "val", "test"), "without --annotations")
        if self.source == "frames":
            changed = ("short_side", "image_format", "crop_border", "allow_cut")
            self.refuse(changed, "for frames, which are linked as they are")
        else:
            counting = ("source_fps", "taken_at", "annotation_fps", "first_row")
            self.refuse(counting, f"for {self.source}, only for frames")
        if self.source in OWN_SOURCES:
            self.refuse(("split",), f"for {self.source}, only for a data set")
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
class CheckConfig(StudyOptions):
    """Check a data set before a night of training.

    Rows against files, labels against phases, patients in several splits, equal pictures, gaps, image sizes, ids that
    may contain a name, and what finetune and extract will take here. Exit code 1 when something would break a run or
    make its numbers worthless.
    """

    csvs: tuple[str, ...] = DATA.option(
        (),
        "Instead of --train-csv, --val-csv and --test-csv, the CSVs that extract will be given; repeat it for several.",
        flag="csv",
        metavar="[SPLIT=]PATH",
    )
    fps: float = _FPS.field(ExtractConfig.fps)
    decode: bool = DATA.option(
        True,
        "Look only at the ends of the image files: seconds instead of minutes, but damage in the middle and equal "
        "pictures are not found.",
        flag="no-decode",
    )
    backbone: str = _BACKBONE.field(FinetuneConfig.backbone, heading=PLANNED)
    image_size_px: int = _IMAGE_SIZE.field(None, heading=PLANNED)
    batch_size: int = _BATCH_SIZE.field(FinetuneConfig.batch_size, heading=PLANNED)
    epochs: int = _EPOCHS.field(FinetuneConfig.epochs, heading=PLANNED)
    patience: int = _PATIENCE.field(FinetuneConfig.patience, heading=PLANNED)
    freeze_until: int = _FREEZE_UNTIL.field(None, heading=PLANNED)
    estimate: bool = PLANNED.option(True, "Do not measure how long finetune and extract will take.", flag="no-estimate")
    workers: int | None = _WORKERS.field(
        None, help="Decoding processes, here and in the estimate; 0 decodes in the main process."
    )
    out_dir: Path = OUTPUT.option(Path("check"), "Folder for check.json, check.txt and class_balance.png.", flag="out")

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [
            name for name in ("train_csv", "val_csv", "test_csv") if getattr(self, name) != getattr(CheckConfig, name)
        ]
        if self.csvs and named:
            raise SpatialfeatError(
                f"--csv and {flag_of(CheckConfig, named[0])}: name the CSVs in one way; leave one of the two out"
            )

    def _first_csv(self) -> Path:
        first = re.sub(r"^[A-Za-z0-9_-]+=", "", self.csvs[0]) if self.csvs else ""
        return Path(first).expanduser() if first else self.train_csv

    def study(self) -> FinetuneConfig:
        """The fine-tuning that these options stand for."""
        return FinetuneConfig(**{field.name: getattr(self, field.name) for field in fields(StudyOptions)})


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Options):
    """Divide one CSV by patient, for training, validation and test.

    Patients stay whole, phases are balanced. Writes train_ResNet_DB.csv, val_ResNet_DB.csv and test_ResNet_DB.csv to
    OUT; with --folds to OUT/fold1, OUT/fold2, ..., where each patient is tested in one fold. finetune and extract run
    in these folders. Shows what came out as a table and a picture.
    """

    csv: Path = DATA.option(MISSING, "Frames of all patients, columns id,label.", metavar="CSV", is_argument=True)
    out: Path = OUTPUT.option(MISSING, "Must not exist, or be an empty folder.", metavar="OUT", is_argument=True)
    phase_names: tuple[str, ...] | None = _PHASE_NAMES.field(
        None,
        help=f"Phase names in label order: a text file, one per line, or NAME,NAME,... Also written to {NAMES_FILE}.",
        unset=f"{NAMES_FILE} beside CSV, if it is there",
    )
    img_dir: Path | None = DATA.option(
        None,
        "Folder with the frames. A relative link to it, images, comes to lie beside the CSVs.",
        unset="images beside CSV, if it is there",
    )
    id_form: str | None = _ID_FORM.field(None)
    id_pattern: str | None = _ID_PATTERN.field(None)
    val: float = SPLITS.option(0.2, "Share of the labelled frames for validation.", _SHARE)
    test: float | None = SPLITS.option(
        None,
        "Share for the test; 0: no test set.",
        Rule(lambda value: 0 <= value < 1, "be at least 0 (no test set) and less than 1, e.g. 0.2"),
        unset=f"{DEFAULT_TEST_SHARE}; with --folds, one fold",
    )
    folds: int | None = SPLITS.option(
        None, "Cross-validation with so many folds instead of one division.", at_least(2), unset="none"
    )
    seed: int = SPLITS.option(0, "Another seed gives another division, if there is one that is as good.", at_least(0))

    def __post_init__(self) -> None:
        if self.phase_names is None:
            object.__setattr__(self, "phase_names", names_beside(self.csv))
        super().__post_init__()
        _check_id_options(self)
        if self.folds is not None:
            self.refuse(("test",), f"with --folds {self.folds}, each of which is tested on once")
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


def _check_data_set(name: str | None) -> None:
    problem = None if name is None else label_problem(name)
    if problem is not None:
        raise SpatialfeatError(f"--data-set {name}: {problem}; pass the name of a public data set, such as cholec80")
