"""CUDA graphs: the commands that a GPU gets for every batch are recorded once, and then started by a single call.

A training step of 32 frames is hundreds of small kernels, which a processor takes longer to start than a fast GPU to
run. A recording computes exactly what was recorded, with the same kernels on the same places in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]

WARM_UP_CALLS = 2
"""Calls that run as usual before one is recorded: they load kernels, and make an optimizer's state."""

logger = logging.getLogger(__name__)


class Recorded:
    """A function of tensors on a CUDA device that is recorded at its third call, and replayed from then on.

    The function must do the same for all inputs of one shape, without asking the device for a number. Inputs of another
    shape than those that were recorded run as usual, and so does everything when recording fails, with a warning.

    Args:
        function: takes and returns tensors. name: what it is, for the message about a failure.
    """

    def __init__(self, function: Callable[..., Tensors], name: str) -> None:
        self._function, self._name = function, name
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """The function's results; they are the caller's, no later call writes over them."""
        if self._inputs and [given.shape for given in inputs] != [kept.shape for kept in self._inputs]:
            return self._function(*inputs)
        if self._calls < WARM_UP_CALLS:
            self._inputs = self._inputs or tuple(given.clone() for given in inputs)
            self._calls += 1
            return self._warm_up(inputs)
        if self._calls == WARM_UP_CALLS:
            self._calls += 1
            self._record()
        if self._graph is None:
            return self._function(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def _warm_up(self, inputs: Tensors) -> Tensors:
        """A usual call on the stream of recordings, so that what it leaves behind belongs to that stream."""
        device = inputs[0].device
        current, stream = torch.cuda.current_stream(device), _recording_stream(device)
        with _on_stream(stream, current):
            outputs = self._function(*inputs)
        for given in inputs:
            given.record_stream(stream)
        for output in outputs:
            output.record_stream(current)
        return outputs

    def _record(self) -> None:
        device, graph = self._inputs[0].device, torch.cuda.CUDAGraph()
        try:
            pool, _ = _memory_of_recordings(device)
            with _on_stream(_recording_stream(device), torch.cuda.current_stream(device)):
                self._outputs = _record(graph, pool, lambda: self._function(*self._inputs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning(
                "%s: cannot be recorded as a CUDA graph (%s); going on without, which is slower and gives the same "
                "numbers. SPATIALFEAT_CUDA_GRAPHS=0 turns recording off",
                self._name,
                str(error).strip().split("\n")[0],
            )
            return
        self._graph = graph


def _record(graph: torch.cuda.CUDAGraph, pool: Any, function: Callable[[], Tensors]) -> Tensors:
    # "thread_local": other threads, which pin memory for batches, may go on calling CUDA meanwhile.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        outputs = function()
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()
        raise
    graph.capture_end()
    return outputs


@contextmanager
def _on_stream(stream: torch.cuda.Stream, current: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def _memory_of_recordings(device: torch.device) -> tuple[Any, torch.cuda.CUDAGraph]:
    """One pool of memory for all recordings, of which never two run at once; and what keeps it from being given up.

    Training and validation of every epoch record anew. With a pool for each, memory would grow from epoch to epoch.
    """
    pool, keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    stream = _recording_stream(device)
    with _on_stream(stream, torch.cuda.current_stream(device)):
        _record(keeper, pool, lambda: (torch.ones(1, device=device),))
    return pool, keeper
