"""Recording on a GPU, with a stand-in for CUDA: which calls are recorded, which run as usual, and what a failure says.

What a recording computes is tested on a device, in test_gpu.py.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from networks import settled_network, smooth_images
from torch import nn

from spatialfeat.data.transforms import Preprocessing
from spatialfeat.device import records_graphs
from spatialfeat.network import graphs
from spatialfeat.network.graphs import Recorded, Tensors
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.training.trainer import TrainingStep

SMALL = Preprocessing.for_image_size(64)


class FakeGraph:
    """Runs the recorded function again on its inputs' places, and writes to its outputs' places."""

    function: Callable[[], Tensors]
    outputs: Tensors
    replays = 0

    def replay(self) -> None:
        self.replays += 1
        for kept, new in zip(self.outputs, self.function(), strict=True):
            kept.copy_(new)


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(graph: FakeGraph, _pool: object, function: Callable[[], Tensors]) -> Tensors:
        graph.function = function
        graph.outputs = function()
        return graph.outputs

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr(graphs, "_recording_stream", lambda _device: None)
    monkeypatch.setattr(graphs, "_memory_of_recordings", lambda _device: (None, None))
    monkeypatch.setattr(graphs, "_on_stream", lambda _stream, _current: nullcontext())
    monkeypatch.setattr(graphs, "_record", record)


def test_results_are_the_functions_and_stay_as_they_are() -> None:
    calls: list[int] = []

    def double(x: torch.Tensor) -> Tensors:
        calls.append(len(x))
        return (2 * x,)

    recorded = Recorded(double, "doubling")
    inputs = [torch.full((4,), float(value)) for value in range(6)]
    # The last batch of an epoch is smaller: it is computed as usual, also among others.
    inputs.insert(4, torch.ones(3))
    outputs = [recorded(given)[0] for given in inputs]
    for given, output in zip(inputs, outputs, strict=True):
        assert torch.equal(output, 2 * given)
    graph = recorded._graph
    assert isinstance(graph, FakeGraph)
    assert graph.replays == 4


def test_a_failure_is_told_once_and_everything_runs_as_usual(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> Tensors:
        raise RuntimeError("operation not permitted when stream is capturing\nmore for programmers")

    monkeypatch.setattr(graphs, "_record", fail)
    recorded = Recorded(lambda x: (2 * x,), "training step")
    for value in range(6):
        (output,) = recorded(torch.full((2,), float(value)))
        assert output.tolist() == [2 * value] * 2
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "training step: cannot be recorded as a CUDA graph (operation not permitted" in record.message
    assert "going on without" in record.message
    assert "SPATIALFEAT_CUDA_GRAPHS=0" in record.message
    assert "programmers" not in record.message


def test_a_lack_of_memory_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> Tensors:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "_record", fail)
    recorded = Recorded(lambda x: (2 * x,), "training step")
    recorded(torch.ones(1))
    recorded(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        recorded(torch.ones(1))


def losses_of(model: PhaseResNet50, sizes: list[int]) -> list[float]:
    """Of two epochs of training steps on batches of these sizes."""
    model.freeze(8)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    optimizer.param_groups[0]["capturable"] = True
    step = TrainingStep(model, optimizer, nn.CrossEntropyLoss(), preprocessing=SMALL, precision="fp32")
    images, labels = smooth_images(max(sizes), 64), torch.arange(max(sizes)) % 3
    scores = []
    for _ in range(2):
        step.start_epoch()
        scores += [step(images[:size].roll(number, 3), labels[:size]) for number, size in enumerate(sizes)]
        step.end_epoch()
    return [float(score.loss) for score in scores]


def test_a_study_of_recorded_steps_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in records as CUDA does: what is recorded has not been done yet."""
    initial = settled_network(3, smooth_images(4, 64), SMALL)
    model, sizes = copy.deepcopy(initial), [4, 4, 4, 4, 3, 4, 2]
    expected = losses_of(copy.deepcopy(initial), sizes)
    replayed: list[FakeGraph] = []

    def record(graph: FakeGraph, _pool: object, function: Callable[[], Tensors]) -> Tensors:
        before = copy.deepcopy(model.state_dict())
        graph.function, graph.outputs = function, function()
        model.load_state_dict(before)
        replayed.append(graph)
        return graph.outputs

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr("spatialfeat.training.trainer.records_graphs", lambda _device: True)
    assert losses_of(model, sizes) == expected
    assert [graph.replays for graph in replayed] == [3, 3]


def test_only_a_gpu_records_and_the_environment_can_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not records_graphs(torch.device("cpu"))
    assert records_graphs(torch.device("cuda"))
    monkeypatch.setenv("SPATIALFEAT_CUDA_GRAPHS", "0")
    assert not records_graphs(torch.device("cuda"))
