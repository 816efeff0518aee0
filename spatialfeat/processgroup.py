"""Several processes at work on one job, one per device, as `torchrun` starts them.

A single process runs the same code as a group of one, which never touches torch.distributed. What the processes tell
each other (counts, sums, names of videos) goes over gloo between CPUs; only gradients and batch statistics go over
NCCL where the devices are GPUs. Messages are JSON and numbers: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.rendezvous import rendezvous

from spatialfeat.errors import AlreadyToldError, SpatialfeatError
from spatialfeat.ranks import Ranks, name_rank, ranks_of_environment
from spatialfeat.runtime import describe_device, select_device, usable_cores

Number = TypeVar("Number", bound=np.generic)

WAIT_TO_START = timedelta(minutes=15)
"""How long the processes wait for each other at the beginning."""
WAIT_FOR_WORK = timedelta(days=7)
"""How long a process waits for the others to finish their share: extraction shares out whole videos."""
WAIT_FOR_GRADIENTS = timedelta(minutes=30)
"""How long one training step may take anywhere before the others give up: a device or a network drive hangs."""

logger = logging.getLogger(__name__)


class _Counter(Protocol):
    """What is used of torch's key-value store, which torchrun keeps for its processes."""

    def add(self, key: str, amount: int, /) -> int: ...


class ProcessGroup:
    """The processes of one job. All of them must call every method but `count`, and in the same order."""

    def __init__(self, ranks: Ranks, device: torch.device, store: _Counter | None = None) -> None:
        self.rank, self.size, _, self.local_size = ranks
        self.device = device
        self._store = store
        self._counted = 0
        self._gradient_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and speaks for all."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """`cpu (8 cores)`, `cuda:0 (NVIDIA H100 80GB HBM3), 4 processes`, for people and for run.json."""
        return describe_device(self.device) + self.processes_text

    @property
    def processes_text(self) -> str:
        """`, 4 processes`, and nothing for one alone."""
        return f", {self.size} processes" if self.size > 1 else ""

    def share(self, batch_size: int) -> int:
        """The batch of one process, where it does not matter which frames are in one batch."""
        return max(1, batch_size // self.size)

    @property
    def gradients(self) -> dist.ProcessGroup | None:
        """The group for gradients and batch statistics: NCCL between GPUs, gloo between CPUs; None if alone."""
        if self._gradient_group is None and self.size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            created = dist.new_group(backend=backend, timeout=WAIT_FOR_GRADIENTS)
            assert isinstance(created, dist.ProcessGroup)
            self._gradient_group = created
        return self._gradient_group

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The JSON-ready values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = [int(length[0]) for length in self._gather(np.array([len(content)]))]
        padded = np.zeros(max(lengths), np.uint8)
        padded[: len(content)] = content
        texts = zip(self._gather(padded), lengths, strict=True)
        return [json.loads(text[:length].tobytes()) for text, length in texts]

    def broadcast(self, value: Any) -> Any:
        """The main process's JSON-ready value, in every process."""
        return self.gather(value if self.is_main else None)[0]

    def sum(self, values: NDArray[Number]) -> NDArray[Number]:
        """The sum over all processes of arrays of one shape.

        Added in the order of the ranks, so that every process gets the same bits, also of floats.
        """
        if self.size == 1:
            return values
        total: NDArray[Number] = np.sum(np.stack(self._gather(values)), axis=0, dtype=values.dtype)
        return total

    def count(self, amount: int) -> int:
        """Add to a number that all processes share, and return it; nobody waits for anybody."""
        if self._store is None:
            self._counted += amount
            return self._counted
        return int(self._store.add("spatialfeat/count", amount))

    def require_same(self, option: str, value: str, remedy: str) -> None:
        """Raise SpatialfeatError if `value`, what `option` came to, is not the same in all processes."""
        found = self.gather(value)
        with self.together():
            if len(set(found)) > 1:
                values = ", ".join(f"rank {rank} {value}" for rank, value in enumerate(found))
                raise SpatialfeatError(f"{option}: differs among the processes ({values}); {remedy}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that does the same in all processes, such as reading CSVs: its messages are shown once.

        An error of any process becomes one of all, and is told once. Otherwise each would repeat it, or those
        without it would wait for those that have ended.
        """
        if self.size == 1:
            yield
            return
        found: SpatialfeatError | None = None
        with _silence(not self.is_main):
            try:
                yield
            except SpatialfeatError as error:
                found = error
        texts: list[str | None] = self.gather(None if found is None else str(found))
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if not failed:
            return
        first = failed[0]
        if self.rank == first:
            logger.error("%s", found)
        self.wait()  # The first process to end makes torchrun end the others: the message must be out by then.
        raise AlreadyToldError(f"{name_rank(first)}{texts[first]}") from found

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do, such as a download that they then find done."""
        if not self.is_main:
            self.wait()
        try:
            yield
        finally:
            if self.is_main:
                self.wait()

    def _gather(self, values: NDArray[Number]) -> list[NDArray[Number]]:
        mine = torch.from_numpy(np.array(values))
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [tensor.numpy() for tensor in found]


@contextmanager
def process_group(requested_device: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started, each on its own device; leave them at the end, come what may.

    Args:
        requested_device: the option `--device`. GPUs are dealt out by local rank, so none may be named.

    Raises:
        SpatialfeatError: devices that do not suffice or differ; in the block also when another process has ended.
    """
    ranks = ranks_of_environment()
    if ranks.size == 1:
        yield ProcessGroup(ranks, select_device(requested_device))
        return
    if ranks.local_size == ranks.size and sys.platform == "linux":
        # All on this machine: needs no network, and no host name that resolves.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=WAIT_TO_START))
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.size, timeout=WAIT_FOR_WORK)
    failed = True
    try:
        with lost_contact_told():
            yield _group_on_devices(ranks, requested_device, store)
        failed = False
    finally:
        # NCCL would wait for work that the failed process never gave to it; the end of the process frees all.
        if not (failed and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            dist.destroy_process_group()


def _group_on_devices(ranks: Ranks, requested_device: str, store: _Counter) -> ProcessGroup:
    group = ProcessGroup(ranks, torch.device("cpu"), store)
    with group.together():
        group.device = _device_of_rank(ranks, requested_device)
    group.require_same("--device", group.device.type, "pass cpu or cuda")
    if group.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        # torchrun gives each process one thread where nobody has asked for more. The cores are shared out instead.
        torch.set_num_threads(share_of_cores(ranks.local_size))
    return group


def share_of_cores(local_size: int) -> int:
    """Processor cores for each of `local_size` processes on this machine."""
    return max(1, usable_cores() // local_size)


def _device_of_rank(ranks: Ranks, requested: str) -> torch.device:
    if requested.startswith("cuda:"):
        raise SpatialfeatError(
            f"--device {requested}: torchrun gives each process its own device; pass --device cuda, "
            "and choose the devices by CUDA_VISIBLE_DEVICES"
        )
    num_devices = 0 if requested == "cpu" else torch.cuda.device_count()
    if 0 < num_devices < ranks.local_size:
        raise SpatialfeatError(
            f"--device {requested}: torchrun started {ranks.local_size} processes here for "
            f"{num_devices} visible CUDA device(s); start one per device, or pass --device cpu"
        )
    if num_devices:
        # Before anything is computed: each process would otherwise take memory of the first GPU, too.
        torch.cuda.set_device(ranks.local_rank)
    device = select_device(requested)
    return torch.device("cuda", ranks.local_rank) if device.type == "cuda" else device


@contextmanager
def lost_contact_told() -> Iterator[None]:
    """Raise SpatialfeatError when another process of the group has ended: also inside whatever records the failure."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise SpatialfeatError("lost contact with another process, whose own message tells why") from error


def _is_lost_contact(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, which name its source files."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def _silence(active: bool) -> Iterator[None]:
    """No messages of this package but errors, while `active`."""
    package_logger = logging.getLogger("spatialfeat")
    level = package_logger.level
    if active:
        package_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package_logger.setLevel(level)
