"""The files that training leaves, epoch by epoch, and going on from them (`finetune --resume`).

`training_state.pt` holds all that training needs to go on after an interruption as if there had been none. It is
written after every epoch and before anything else of that epoch, so that it is the truth: whatever a kill leaves undone
or half done beside it (weights, history, curves) is made again from it. It holds tensors, numbers, texts, lists and
dicts, and is read with torch's restricted unpickler: loading it executes nothing.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spatialfeat.config import CPU_DECODER, WEIGHTS_NAME, FinetuneConfig
from spatialfeat.console import count_text
from spatialfeat.data.ids import IdRule
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import ASIDE_NAME, file_sha256, read_json_object, text_sha256s, write_atomically
from spatialfeat.names import natural_key
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import PhaseClassifier, num_bytes
from spatialfeat.network.tensorfiles import DAMAGED_FILE_ERRORS, StateDict, save_tensors
from spatialfeat.network.weights import description_path, save_weights
from spatialfeat.options import flag_of
from spatialfeat.phases import DEFAULT_NUM_PHASES, default_phase_names
from spatialfeat.runrecord import RECORD_NAME, recorded_options
from spatialfeat.signals import signals_held
from spatialfeat.training.data import StudyData
from spatialfeat.training.history import (
    TENSORBOARD_NAME,
    EpochRecord,
    TensorBoardLog,
    best_epoch,
    is_trained,
    stopped_early,
    write_history,
)

STATE_NAME = "training_state.pt"
STATE_SCHEMA = 1
STATE_PARTS = ("training", "best_weights", "identity", "environment")
"""Dicts of `TrainingState`."""
PLAIN_TYPES = (torch.Tensor, str, int, float, bool, type(None))
START_ANEW = "leave out --resume to start the study anew (what is there is moved aside)"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A study after its last whole epoch.

    history: one record per epoch so far; early stopping is worked out from it.
    training: `Trainer.state_dict()`: network, optimizer, schedule, random number generators.
    best_weights: the weights of the best epoch so far, float32 on the CPU.
    identity: the options and data hashes that decide the result (`study_identity`).
    environment: device and versions, which may change the last digits.
    """

    history: tuple[EpochRecord, ...]
    training: dict[str, Any]
    best_weights: StateDict
    identity: dict[str, Any]
    environment: dict[str, str]


def write_state(path: Path, state: TrainingState) -> None:
    """Replace the state of the epoch before, in one step."""
    history = [record._asdict() for record in state.history]
    content = {"schema": STATE_SCHEMA, "history": history, **{name: dict(getattr(state, name)) for name in STATE_PARTS}}
    _require_plain(content, "state")
    write_atomically(path, lambda temporary: save_tensors(content, temporary))


def read_state(path: Path) -> TrainingState:
    """Read a state onto the CPU.

    Raises:
        SpatialfeatError: damaged, foreign, or holding objects that would have to be executed.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error.strerror or error}); {START_ANEW}") from error
    except DAMAGED_FILE_ERRORS as error:
        raise SpatialfeatError(f"{path}: is damaged, or no training state; {START_ANEW}") from error
    if not isinstance(content, dict) or content.get("schema") != STATE_SCHEMA:
        raise SpatialfeatError(f"{path}: is no training state of this version of spatialfeat; {START_ANEW}")
    try:
        history = _records(content["history"])
        return TrainingState(history, **{name: dict(content[name]) for name in STATE_PARTS})
    except (KeyError, TypeError, ValueError) as error:
        raise SpatialfeatError(f"{path}: is an incomplete training state ({error!r}); {START_ANEW}") from error


def _require_plain(value: Any, place: str) -> None:
    """Refuse to write what `read_state` would refuse to read: an object of another type, also a subclass."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(item, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_plain(item, f"{place}[{index}]")
    else:
        assert type(value) in PLAIN_TYPES, f"{place} is a {type(value)}"


def _records(rows: Sequence[dict[str, Any]]) -> tuple[EpochRecord, ...]:
    records = tuple(EpochRecord(**row) for row in rows)
    if not records or [record.epoch for record in records] != list(range(1, len(records) + 1)):
        raise ValueError("its epochs are not 1, 2, 3, ...")
    return records


TRAINING_NAMES = (
    STATE_NAME,
    WEIGHTS_NAME,
    str(description_path(Path(WEIGHTS_NAME))),
    "history.csv",
    "loss_curves.png",
    "loss_curves.svg",
    "accuracy_curves.png",
    "accuracy_curves.svg",
    TENSORBOARD_NAME,
)
"""What `StudyFiles` writes. The state comes first: moved aside, it takes with it the claim that a study is here."""


class StudyFiles:
    """Writes the files of a study, epoch by epoch. To be closed, for TensorBoard's sake."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config = config
        self.weights_path = config.out_dir / WEIGHTS_NAME
        self.epochs_saved = 0
        self._tensorboard = TensorBoardLog(config.out_dir) if config.tensorboard else None

    def save_epoch(self, state: TrainingState) -> None:
        """Write all files of the last epoch of `state`.

        The state goes first. A process that is killed anywhere in here has either not ended this epoch, or can make
        all that is missing from the state. A signal waits until all are written.
        """
        with signals_held():
            write_state(self._config.out_dir / STATE_NAME, state)
            self.epochs_saved = len(state.history)
            if best_epoch(state.history) == len(state.history):
                self._write_weights(state)
            write_history(self._config.out_dir, state.history)
            if self._tensorboard is not None:
                self._tensorboard.add(state.history[-1])

    def restore(self, state: TrainingState) -> None:
        """Make every file fit `state` again, whatever an interrupted run has left of them."""
        self.epochs_saved = len(state.history)
        with signals_held():
            self._write_weights(state)
            write_history(self._config.out_dir, state.history)
            if self._tensorboard is not None:
                self._tensorboard.restart(state.history)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write_weights(self, state: TrainingState) -> None:
        config, best = self._config, state.history[best_epoch(state.history) - 1]
        training: dict[str, Any] = {
            "id_rule": str(IdRule.given(config.id_form, config.id_pattern)),
            "epoch": best.epoch,
            "val_accuracy": best.val_acc,
            "initial_weights": config.weights,
            "freeze_until": config.freeze_until,
            "class_weights": config.class_weights,
            "label_smoothing": config.label_smoothing,
            "clip_grad_norm": config.clip_grad_norm,
            "precision": config.precision,
            "seed": config.seed,
        }
        if config.jpeg_decoder != CPU_DECODER:
            training["jpeg_decoder"] = config.jpeg_decoder
        save_weights(
            self.weights_path,
            state.best_weights,
            phase_names=config.phase_names or default_phase_names(config.num_classes),
            preprocessing=find_backbone(config.backbone).preprocessing(config.image_size_px),
            training=training,
            backbone=config.backbone,
        )


def study_bytes(model: PhaseClassifier, freeze_until: int) -> int:
    """What a study has on disk while it saves an epoch: the old and the new weights, the old and the new state.

    A state holds the network, its best weights, and Adam's two numbers per parameter that is trained.
    """
    trained = sum(weight.numel() * weight.element_size() for weight in model.trained_with(freeze_until))
    return 2 * num_bytes(model) + 2 * (2 * num_bytes(model) + 2 * trained)


MAY_DIFFER = frozenset(
    {
        # Names and places: of the CSVs the content counts.
        "train_csv", "val_csv", "test_csv", "img_dir", "out_dir",
        # When training ends; `_refuse_earlier_end` looks at these.
        "epochs", "patience",
        # How it is computed and reported.
        "device", "workers", "cache_dir", "cache_limit_gb", "resume", "keep_state", "tensorboard",
    }
)  # fmt: skip
"""Options that a resumed study may give anew. All others decide the result, and must be those of the first start."""

logger = logging.getLogger(__name__)


def study_identity(config: FinetuneConfig, data: StudyData) -> dict[str, Any]:
    """Everything that decides what training gives: options, and the hashes of the training and validation CSV."""
    options = {name: value for name, value in recorded_options(config).items() if name not in MAY_DIFFER}
    return options | {
        "train_csv_sha256": file_sha256(data.train.source),
        "val_csv_sha256": file_sha256(data.val.source),
    }


def find_study(
    config: FinetuneConfig, data: StudyData, identity: dict[str, Any], environment: dict[str, str]
) -> tuple[TrainingState | None, bool]:
    """What `config.out_dir` holds to go on with: (the state, or None if there is none; whether the study is finished).

    Raises:
        SpatialfeatError: the study there is another one, naming what differs; or it cannot be continued.
    """
    _tell_of_studies_aside(config.out_dir)
    path = config.out_dir / STATE_NAME
    record = read_json_object(config.out_dir / RECORD_NAME)
    was_completed = record.get("command") == "finetune" and record.get("status") == "complete"
    if path.exists():
        state = read_state(path)
        _refuse_differences(path, state.identity, identity, data)
        _refuse_earlier_end(path, state.history, config)
        if was_completed and is_trained(state.history, config) and _has_same_data(record, data):
            return None, True
        _warn_of_environment(state.environment, environment)
        return state, False
    if was_completed and (config.out_dir / WEIGHTS_NAME).exists():
        _require_same_finished_study(config, data, identity, record)
        return None, True
    _tell_of_studies_beside(config.out_dir, data, identity)
    logger.info("nothing to resume in %s: starting from the beginning", config.out_dir)
    return None, False


def holds_unfinished_study(folder: Path) -> bool:
    """Whether `--resume --out FOLDER` would train on."""
    return (folder / STATE_NAME).exists() and read_json_object(folder / RECORD_NAME).get("status") != "complete"


def phases_as_begun(folder: Path) -> tuple[int, tuple[str, ...] | None] | None:
    """(number, names) of the phases of the study that `--resume --out FOLDER` would go on with, None if there is none.

    A study of a version that did not read phase_names.txt may have numbers only.
    """
    record = read_json_object(folder / RECORD_NAME)
    options = record.get("options")
    is_there = (folder / STATE_NAME).exists() or record.get("status") == "complete"
    if record.get("command") != "finetune" or not is_there or not isinstance(options, dict):
        return None
    number, names = options.get("num_classes"), options.get("phase_names")
    if not isinstance(number, int) or not (names is None or isinstance(names, list)):
        return None
    what = f"the {number} names" if names else f"{number} without names"
    logger.info("phases: %s with which the study in %s began", what, folder)
    return number, None if names is None else tuple(map(str, names))


def resume_options(folder: Path) -> str:
    """The options that go on with the study in `folder`, as they are typed."""
    return f"--resume --out {shlex.quote(str(folder))}"


def _tell_of_studies_aside(out_dir: Path) -> None:
    """Name the unfinished studies that starts without --resume have moved aside: perhaps one of them is meant."""
    for folder in sorted(out_dir.glob(f"{ASIDE_NAME}*"), key=lambda folder: natural_key(folder.name)):
        if not holds_unfinished_study(folder):
            continue
        history = folder / "history.csv"  # Not there yet, if the study was killed just then.
        count = history.read_bytes().count(b"\n") - 1 if history.is_file() else 0
        epochs = f" of {count_text(count, 'epoch')}" if count > 0 else ""
        logger.warning(
            "%s holds an unfinished study%s, which was moved aside; to go on with it, pass %s",
            folder,
            epochs,
            resume_options(folder),
        )


def _tell_of_studies_beside(out_dir: Path, data: StudyData, identity: dict[str, Any]) -> None:
    """Name the same study where it is in another folder here: perhaps --out is not the one that was meant.

    Other folds and other seeds, which a script may start with --resume one after the other, are not this study.
    """
    above = out_dir.parent if out_dir.name not in ("", "..") else out_dir.resolve().parent
    places = [*above.glob(f"*/{STATE_NAME}"), *out_dir.glob(f"*/{STATE_NAME}")]
    for folder in sorted({path.parent for path in places}, key=lambda folder: natural_key(str(folder))):
        is_known = folder.name.startswith(ASIDE_NAME) or folder.resolve() == out_dir.resolve()
        record = read_json_object(folder / RECORD_NAME)
        if not is_known and _has_same_data(record, data) and _recorded_identity(record) == identity:
            logger.warning(
                "nothing to resume in %s, but %s holds this study; to go on with it, pass %s",
                out_dir,
                folder,
                resume_options(folder),
            )


def _recorded_identity(record: dict[str, Any]) -> dict[str, Any] | None:
    """What `study_identity` gave when finetune wrote `record`; None of other records."""
    options, hashes = record.get("options"), record.get("data_sha256")
    if record.get("command") != "finetune" or not isinstance(options, dict) or not isinstance(hashes, dict):
        return None
    return {name: value for name, value in options.items() if name not in MAY_DIFFER} | {
        f"{split}_csv_sha256": hashes.get(options.get(f"{split}_csv")) for split in ("train", "val")
    }


def _refuse_differences(path: Path, before: dict[str, Any], now: dict[str, Any], data: StudyData) -> None:
    now = now | {
        name: before[name]
        for name, table in (("train_csv_sha256", data.train), ("val_csv_sha256", data.val))
        if before.get(name) in text_sha256s(table.source)
    }
    # An option that the earlier version did not have yet did what is its default now.
    defaults = recorded_options(FinetuneConfig(num_classes=DEFAULT_NUM_PHASES))  # Names in a file here aside.
    before = {name: value for name, value in defaults.items() if name in now} | before
    differing = [_difference(name, before.get(name), now.get(name)) for name in _changed(before, now)]
    if differing:
        raise SpatialfeatError(
            f"{path}: belongs to a study with other options: {', '.join(differing)}; give the same again, choose "
            f"another --out, or {START_ANEW}"
        )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def _difference(name: str, before: Any, now: Any) -> str:
    if name.endswith("_csv_sha256"):
        return f"--{name.removesuffix('_csv_sha256')}-csv has other content"
    newer = f"--{name.replace('_', '-')}"  # An option of a later version.
    option = flag_of(FinetuneConfig, name) if hasattr(FinetuneConfig, name) else newer
    return f"{option} {_shown(now)} (it was {_shown(before)})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse_earlier_end(path: Path, history: tuple[EpochRecord, ...], config: FinetuneConfig) -> None:
    """Refuse --epochs and --patience with which training would have ended before the epochs that are there."""
    done = len(history)
    if config.epochs < done:
        raise SpatialfeatError(
            f"--epochs {config.epochs}: {path} has trained {done} epochs already; pass at least {done}, or {START_ANEW}"
        )
    if stopped_early(history[:-1], config.patience):
        raise SpatialfeatError(
            f"--patience {config.patience}: with it, {path} would have stopped before epoch {done}, which is trained "
            f"already; pass the value of the first start, or {START_ANEW}"
        )


def _has_same_data(record: dict[str, Any], data: StudyData) -> bool:
    """Whether run.json names the same CSV contents, the test frames' included."""
    hashes = record.get("data_sha256")
    if not isinstance(hashes, dict):
        return False
    now = [text_sha256s(table.source).intersection(hashes.values()) for table in data.tables]
    return sorted(hashes.values()) == sorted(sha256 for found in now for sha256 in found)


def _require_same_finished_study(
    config: FinetuneConfig, data: StudyData, identity: dict[str, Any], record: dict[str, Any]
) -> None:
    """The training state is gone, as it should be after the end: run.json says what was done."""
    path = config.out_dir / RECORD_NAME
    before = _recorded_identity(record)
    if before is None:
        raise SpatialfeatError(f"{path}: is not a record of this version of spatialfeat; {START_ANEW}")
    _refuse_differences(path, before, identity, data)
    for name in ("epochs", "patience"):
        value, earlier = getattr(config, name), record["options"].get(name)
        if value != earlier:
            raise SpatialfeatError(
                f"--{name} {value}: the study in {config.out_dir} ended with --{name} {earlier} and "
                f"without --keep-state, so it cannot be trained further; {START_ANEW}"
            )
    if not _has_same_data(record, data):
        raise SpatialfeatError(
            f"{path}: the study is finished, with other test frames; score these with "
            f"`spatialfeat evaluate --weights {config.out_dir / WEIGHTS_NAME}`"
        )


def _warn_of_environment(before: dict[str, str], now: dict[str, str]) -> None:
    changed = [f"{name} {now.get(name)} (it was {before.get(name)})" for name in _changed(before, now)]
    if changed:
        logger.warning("resuming with %s: results may differ in their last digits", ", ".join(changed))
