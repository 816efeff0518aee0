"""The state file: what is written can be read, and nothing in it is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatialfeat.errors import SpatialfeatError
from spatialfeat.training.files import TrainingState, read_state, write_state
from spatialfeat.training.history import EpochRecord


def make_state(**changes: Any) -> TrainingState:
    content: dict[str, Any] = {
        "history": (EpochRecord(1, 0.1 + 0.2, 0.5, 1 / 3, 0.25, 1e-4, 2.5), EpochRecord(2, 1, 0.5, 1, 0.5, 5e-5, 2.0)),
        "training": {
            "model": {"fc.weight": torch.randn(3, 4)},
            "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}},
        },
        "best_weights": {"fc.weight": torch.randn(3, 4)},
        "identity": {"lr": 1e-4, "phase_names": ["a", "b"], "clip_grad_norm": None},
        "environment": {"device": "cpu"},
    }
    return TrainingState(**content | changes)


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    state = make_state()
    write_state(tmp_path / "state.pt", state)
    again = read_state(tmp_path / "state.pt")
    assert again.history == state.history
    assert (again.identity, again.environment) == (state.identity, state.environment)
    assert torch.equal(again.best_weights["fc.weight"], state.best_weights["fc.weight"])
    assert torch.equal(again.training["model"]["fc.weight"], state.training["model"]["fc.weight"])
    assert again.training["optimizer"]["state"][0]["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_weights_that_are_also_the_best_are_stored_once(tmp_path: Path) -> None:
    weights = {"fc.weight": torch.randn(1000, 1000)}
    write_state(tmp_path / "state.pt", make_state(training={"model": weights}, best_weights=weights))
    assert (tmp_path / "state.pt").stat().st_size < 1.1 * 4_000_000


@pytest.mark.parametrize("value", [np.float64(1.0), Path("x"), torch.nn.Parameter(torch.zeros(1))])
def test_what_could_not_be_read_again_is_not_written(value: object, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"state\['training'\]\['lr'\]\[1\] is a "):
        write_state(tmp_path / "state.pt", make_state(training={"lr": [1.0, value]}))
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "history": Bomb()}, "state.pt")
    with pytest.raises(SpatialfeatError, match=r"state\.pt: is damaged, or no training state; leave out --resume"):
        read_state(Path("state.pt"))
    Path("plain.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SpatialfeatError, match=r"plain\.pt: is damaged, or no training state"):
        read_state(Path("plain.pt"))
    assert not Path("executed").exists()


def test_a_cut_off_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, make_state())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpatialfeatError, match=r"is damaged"):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(SpatialfeatError, match=r"is damaged"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is no training state of this version"),
        ({"fc.weight": torch.zeros(1)}, "is no training state of this version"),
        ({"schema": 2}, "is no training state of this version"),
        ({"schema": 1}, "is an incomplete training state"),
        ({"schema": 1, "history": [{"epoch": 1}]}, "is an incomplete training state"),
        ({"schema": 1, "history": []}, "its epochs are not 1, 2, 3"),
    ],
)
def test_foreign_content_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(SpatialfeatError, match=message):
        read_state(tmp_path / "state.pt")
