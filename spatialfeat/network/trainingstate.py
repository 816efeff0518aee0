"""`training_state.pt`: all that training needs to go on after an interruption as if there had been none.

Written after every epoch and before anything else of that epoch, so that it is the truth: whatever a kill leaves undone
or half done beside it (weights, history, curves) is made again from it. It holds tensors, numbers, texts, lists and
dicts, and is read with torch's restricted unpickler: loading it executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import write_atomically
from spatialfeat.network.checkpoint import DAMAGED_FILE_ERRORS, StateDict, save_tensors
from spatialfeat.network.history import EpochRecord

STATE_NAME = "training_state.pt"
STATE_SCHEMA = 1
PLAIN_TYPES = (torch.Tensor, str, int, float, bool, type(None))
START_ANEW = "leave out --resume to start the study anew (what is there is moved aside)"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """A study after its last whole epoch.

    history: one record per epoch so far; early stopping is worked out from it.
    training: `Trainer.state_dict()`: network, optimizer, schedule, random number generators.
    best_weights: the weights of the best epoch so far, float32 on the CPU.
    identity: the options and data hashes that decide the result (`resuming.study_identity`).
    environment: device and versions, which may change the last digits.
    """

    history: tuple[EpochRecord, ...]
    training: dict[str, Any]
    best_weights: StateDict
    identity: dict[str, Any]
    environment: dict[str, str]


def write_state(path: Path, state: TrainingState) -> None:
    """Replace the state of the epoch before, in one step."""
    content = {
        "schema": STATE_SCHEMA,
        "history": [record._asdict() for record in state.history],
        "training": state.training,
        "best_weights": dict(state.best_weights),
        "identity": state.identity,
        "environment": state.environment,
    }
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
        return TrainingState(
            history=_records(content["history"]),
            training=dict(content["training"]),
            best_weights=dict(content["best_weights"]),
            identity=dict(content["identity"]),
            environment=dict(content["environment"]),
        )
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
