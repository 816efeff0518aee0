"""Processes of one job: what they tell each other, and that two of them learn what one would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Forks
from groupworker import trained

from spatialfeat import device, distributed
from spatialfeat.distributed import ProcessGroup, Ranks, name_rank, own_rank, process_group, ranks_of_environment
from spatialfeat.errors import SpatialfeatError

ENVIRONMENT = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("group")


@pytest.fixture(scope="module")
def told(folder: Path, forks: Forks) -> tuple[list[dict[str, Any]], str]:
    """What each of two processes found, and what they printed."""
    run = forks.run(folder / "log", call=["groupworker", "main", str(folder)], processes=2)
    assert run["code"] == 0, run["log"]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], run["log"]


def test_messages_reach_all_processes_in_the_order_of_ranks(told: tuple[list[dict[str, Any]], str]) -> None:
    first, second = (found["messages"] for found in told[0])
    assert first == second
    assert first["gather"] == [{"rank": 0, "text": "ä"}, {"rank": 1, "text": "ääääää"}]
    assert first["broadcast"] == ["main"]
    # float64 could not hold the second: counts are summed as integers.
    assert first["counts"] == [2, 2**54 + 1]
    assert first["floats"] == [(0.1 + 0.1 * 2).hex(), (0.2 + 0.2 * 2).hex()]
    assert first["device"] == "cpu"
    assert first["threads"] == max(1, device.usable_cores() // 2)  # torchrun would give each process one.


def test_an_error_is_everybodys_and_told_once(told: tuple[list[dict[str, Any]], str]) -> None:
    found, printed = told
    expected = ["train.csv: no such file", "rank 1: train.csv: no such file"]
    assert [rank["errors"] for rank in found] == [expected, expected]
    assert printed.count("error: train.csv: no such file") == 1
    assert printed.count("error: rank 1: train.csv: no such file") == 1


def test_the_main_process_goes_first(told: tuple[list[dict[str, Any]], str]) -> None:
    assert [rank["first"] for rank in told[0]] == [False, False]


def test_two_processes_train_as_one_does(told: tuple[list[dict[str, Any]], str], folder: Path) -> None:
    """With class weights, smoothed labels and clipping, on uneven shares and a batch of which one process has nothing.

    No BatchNorm layer is trained: on CPUs each process would normalize with the statistics of its own share.
    """
    moved, losses = trained(None, 8)
    found = torch.load(folder / "moved0 8.pt", weights_only=True)
    assert [sum(shares) for shares in zip(*(rank["losses 8"] for rank in told[0]), strict=True)] == pytest.approx(
        losses, rel=1e-4
    )
    assert float((found - moved).norm() / moved.norm()) < 1e-3


@pytest.mark.parametrize("freeze_until", [6, 8])
def test_two_processes_have_one_network_at_the_end_of_an_epoch(
    told: tuple[list[dict[str, Any]], str], folder: Path, freeze_until: int
) -> None:
    """Also the running statistics, where BatchNorm layers are trained."""
    assert len(told[0]) == 2
    first, second = (torch.load(folder / f"moved{rank} {freeze_until}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert float(first.norm()) > 0
    assert torch.isfinite(first).all()


def test_a_single_process_is_a_group_of_one() -> None:
    with process_group("cpu") as group:
        assert not torch.distributed.is_initialized()
        assert group.is_main
        assert group.gradients is None
        assert group.gather({"a": 1}) == [{"a": 1}]
        assert group.broadcast("text") == "text"
        assert group.sum(np.array([1.5])).tolist() == [1.5]
        group.wait()
        with pytest.raises(SpatialfeatError, match=r"^mine$"), group.together(), group.main_first():
            raise SpatialfeatError("mine")


def test_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_of_environment({}) == Ranks() == (0, 1, 0, 1)
    # Job schedulers set a RANK of their own; torchrun always sets both.
    assert ranks_of_environment({"RANK": "2"}) == Ranks()
    assert ranks_of_environment(ENVIRONMENT) == (3, 4, 1, 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "2")
    assert own_rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert own_rank() == 2
    assert [name_rank(0), name_rank(2)] == ["", "rank 2: "]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", None),
        ("RANK", "4"),
        ("WORLD_SIZE", "zero"),
        ("LOCAL_RANK", "2"),
        ("LOCAL_WORLD_SIZE", "5"),
        ("MASTER_ADDR", None),
        ("MASTER_PORT", ""),
    ],
)
def test_a_half_made_environment_is_refused(name: str, value: str | None) -> None:
    environment = {key: text for key, text in (ENVIRONMENT | {name: value}).items() if text is not None}
    with pytest.raises(
        SpatialfeatError, match=rf"{name}={value or ('' if value == '' else '.unset.')}.*start them with"
    ):
        ranks_of_environment(environment)


def _pretend_cuda(monkeypatch: pytest.MonkeyPatch, devices: int) -> list[object]:
    """Let torch see that many CUDA devices. Returns what is done with them, in order."""
    done: list[object] = []

    def select(name: str) -> torch.device:
        done.append(name)
        return torch.device("cuda" if name == "auto" else name)

    monkeypatch.setattr(device, "select_device", select)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    return done


@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_gpus_are_dealt_out_by_local_rank(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    done = _pretend_cuda(monkeypatch, devices=2)
    ranks = ranks_of_environment(ENVIRONMENT)
    assert distributed._device_of_rank(ranks, requested) == torch.device("cuda:1")
    # It is the current device before the first kernel, which would else open a context on the first GPU.
    assert done == [1, requested]
    assert distributed._device_of_rank(ranks, "cpu") == torch.device("cpu")
    assert done == [1, requested, "cpu"]


def test_devices_that_torchrun_cannot_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = ranks_of_environment(ENVIRONMENT)
    with pytest.raises(
        SpatialfeatError, match=r"--device cuda:1: torchrun gives each process its own.*VISIBLE_DEVICES"
    ):
        distributed._device_of_rank(ranks, "cuda:1")
    _pretend_cuda(monkeypatch, devices=1)
    with pytest.raises(SpatialfeatError, match=r"--device cuda: torchrun started 2 processes here for 1 visible CUDA"):
        distributed._device_of_rank(ranks, "cuda")


def test_batches_of_evaluation_are_shared_out() -> None:
    group = ProcessGroup(Ranks(0, 8, 0, 8), torch.device("cpu"))
    assert [group.share(size) for size in (32, 20, 4)] == [4, 2, 1]


def test_only_gloos_and_nccls_own_errors_mean_lost_contact() -> None:
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
    for error in (lost, torch.distributed.DistBackendError("NCCL communicator was aborted")):
        with (
            pytest.raises(SpatialfeatError, match="lost contact with another process"),
            distributed.translate_lost_contact(),
        ):
            raise error
    with pytest.raises(RuntimeError, match="out of memory"), distributed.translate_lost_contact():
        raise RuntimeError("CUDA out of memory")
