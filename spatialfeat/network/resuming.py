"""What `finetune --resume` finds in an output folder: nothing, a study to go on with, or one that is finished."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialfeat.config import WEIGHTS_NAME, FinetuneConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import file_sha256, read_json_object
from spatialfeat.network.history import EpochRecord
from spatialfeat.network.training import EarlyStopping
from spatialfeat.network.trainingstate import START_ANEW, STATE_NAME, TrainingState, read_state
from spatialfeat.runrecord import RECORD_NAME, recorded_options
from spatialfeat.training.data import StudyData

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


@dataclass(frozen=True)
class Resumption:
    """`state` is None where there is nothing to go on with: a folder without a study, or with a finished one."""

    state: TrainingState | None = None
    is_finished: bool = False


def study_identity(config: FinetuneConfig, data: StudyData) -> dict[str, Any]:
    """Everything that decides what training gives: options, and the hashes of the training and validation CSV."""
    options = {name: value for name, value in recorded_options(config).items() if name not in MAY_DIFFER}
    return options | {
        "train_csv_sha256": file_sha256(data.train.source),
        "val_csv_sha256": file_sha256(data.val.source),
    }


def look_for_study(
    config: FinetuneConfig, data: StudyData, identity: dict[str, Any], environment: dict[str, str]
) -> Resumption:
    """Find out where to go on in `config.out_dir`.

    Raises:
        SpatialfeatError: the study there is another one, naming what differs; or it cannot be continued.
    """
    path = config.out_dir / STATE_NAME
    record = read_json_object(config.out_dir / RECORD_NAME)
    was_completed = record.get("command") == "finetune" and record.get("status") == "complete"
    if path.exists():
        state = read_state(path)
        _refuse_differences(path, state.identity, identity)
        _refuse_earlier_end(path, state.history, config)
        is_finished = was_completed and is_trained(state.history, config) and _has_same_data(record, data)
        if is_finished:
            return Resumption(is_finished=True)
        _warn_of_environment(state.environment, environment)
        return Resumption(state)
    if was_completed and (config.out_dir / WEIGHTS_NAME).exists():
        _require_same_finished_study(config, data, identity, record)
        return Resumption(is_finished=True)
    logger.info("nothing to resume in %s: starting from the beginning", config.out_dir)
    return Resumption()


def is_trained(history: tuple[EpochRecord, ...], config: FinetuneConfig) -> bool:
    """Whether training has come to its end: the last epoch, or early stopping."""
    return len(history) >= config.epochs or EarlyStopping.after(history, config.patience).should_stop


def _refuse_differences(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    # An option that the earlier version did not have yet did what is its default now.
    defaults = recorded_options(FinetuneConfig())
    differing = [
        _difference(name, before.get(name, defaults.get(name)), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name, defaults.get(name)) != now.get(name)
    ]
    if differing:
        raise SpatialfeatError(
            f"{path}: belongs to a study with other options: {', '.join(differing)}; give the same again, choose "
            f"another --out, or {START_ANEW}"
        )


def _difference(name: str, before: Any, now: Any) -> str:
    if name.endswith("_csv_sha256"):
        return f"--{name.removesuffix('_csv_sha256')}-csv has other content"
    option = name.removesuffix("_px").replace("_", "-")
    return f"--{option} {_shown(now)} (it was {_shown(before)})"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse_earlier_end(path: Path, history: tuple[EpochRecord, ...], config: FinetuneConfig) -> None:
    """Refuse --epochs and --patience with which training would have ended before the epochs that are there."""
    done = len(history)
    if config.epochs < done:
        raise SpatialfeatError(
            f"--epochs {config.epochs}: {path} has trained {done} epochs already; pass at least {done}, or {START_ANEW}"
        )
    if EarlyStopping.after(history[:-1], config.patience).should_stop:
        raise SpatialfeatError(
            f"--patience {config.patience}: with it, {path} would have stopped before epoch {done}, which is trained "
            f"already; pass the value of the first start, or {START_ANEW}"
        )


def _has_same_data(record: dict[str, Any], data: StudyData) -> bool:
    """Whether run.json names the same CSV contents, the test frames' included."""
    hashes = record.get("data_sha256")
    now = sorted(file_sha256(table.source) for table in data.tables)
    return isinstance(hashes, dict) and sorted(hashes.values()) == now


def _require_same_finished_study(
    config: FinetuneConfig, data: StudyData, identity: dict[str, Any], record: dict[str, Any]
) -> None:
    """The training state is gone, as it should be after the end: run.json says what was done."""
    path = config.out_dir / RECORD_NAME
    options, hashes = record.get("options"), record.get("data_sha256")
    if not isinstance(options, dict) or not isinstance(hashes, dict):
        raise SpatialfeatError(f"{path}: is not a record of this version of spatialfeat; {START_ANEW}")
    before = {name: value for name, value in options.items() if name not in MAY_DIFFER} | {
        f"{split}_csv_sha256": hashes.get(options.get(f"{split}_csv")) for split in ("train", "val")
    }
    _refuse_differences(path, before, identity)
    for name in ("epochs", "patience"):
        if options.get(name) != getattr(config, name):
            raise SpatialfeatError(
                f"--{name} {getattr(config, name)}: the study in {config.out_dir} ended with --{name} "
                f"{options.get(name)} and without --keep-state, so it cannot be trained further; {START_ANEW}"
            )
    if not _has_same_data(record, data):
        raise SpatialfeatError(
            f"{path}: the study is finished, with other test frames; score these with "
            f"`spatialfeat evaluate --weights {config.out_dir / WEIGHTS_NAME}`"
        )


def _warn_of_environment(before: dict[str, str], now: dict[str, str]) -> None:
    changed = [
        f"{name} {now.get(name)} (it was {before.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        logger.warning("resuming with %s: results may differ in their last digits", ", ".join(changed))
