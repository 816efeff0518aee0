"""Several processes at work on one job, one per device, as `torchrun` starts them.

A single process runs the same code as a group of one, which never touches torch.distributed. What the processes send
each other (sums, names of videos) goes over gloo between CPUs; only gradients and batch statistics go over NCCL where
the devices are GPUs. torch is imported on first use, because the command line asks for ranks and must answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from spatialfeat.errors import AlreadyToldError, SpatialfeatError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from numpy.typing import NDArray

Value = TypeVar("Value")

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of its processes."""

WAIT_TO_START = timedelta(minutes=15)
"""How long the processes wait for each other at the beginning."""
WAIT_FOR_WORK = timedelta(days=7)
"""How long a process waits for the others to finish their share: extraction shares out whole videos."""
WAIT_FOR_GRADIENTS = timedelta(minutes=30)
"""How long one training step may take anywhere before the others give up: a device or a network drive hangs."""

logger = logging.getLogger(__name__)


class Ranks(NamedTuple):
    """`rank` of `size` processes, and `local_rank` of the `local_size` among them that run on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def ranks_of_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process among those that torchrun has started; one of one without torchrun.

    Raises:
        SpatialfeatError: variables that contradict each other, as half-written job scripts make them.
    """
    if "WORLD_SIZE" not in environment:
        return Ranks()
    try:
        ranks = Ranks(*(int(environment[name]) for name in NAMES[:4]))
    except (KeyError, ValueError):
        ranks = Ranks(-1)
    possible = 0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.local_size <= ranks.size
    if not possible or (ranks.size > 1 and not all(environment.get(name) for name in NAMES)):
        found = ", ".join(f"{name}={environment.get(name, '(unset)')}" for name in NAMES)
        raise SpatialfeatError(
            f"the environment names several processes, but not as torchrun does ({found}); "
            "start them with torchrun, or unset WORLD_SIZE for a single process"
        )
    return ranks


def own_rank() -> int:
    """The rank of this process, 0 without torchrun; never an error, for code that only decides who prints."""
    text = os.environ.get("RANK", "0")
    return int(text) if "WORLD_SIZE" in os.environ and text.isdecimal() else 0


def name_rank(rank: int) -> str:
    """`rank 1: ` before messages that only that process has; nothing for the main process."""
    return f"rank {rank}: " if rank else ""


class ProcessGroup:
    """The processes of one job. All of them must call every method, and in the same order."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.rank, self.size, _, self.local_size = ranks
        self.device = device
        self._gradient_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints for all."""
        return self.rank == 0

    @property
    def processes_text(self) -> str:
        """`, 4 processes`, and nothing for one alone."""
        return f", {self.size} processes" if self.size > 1 else ""

    @property
    def own_share_text(self) -> str:
        """` (rank 0 of 4)` behind what this process does of a job, and nothing where it does all."""
        return f" (rank {self.rank} of {self.size})" if self.size > 1 else ""

    def share(self, batch_size: int) -> int:
        """The batch of one process, where it does not matter which frames are in one batch."""
        return max(1, batch_size // self.size)

    @property
    def gradients(self) -> dist.ProcessGroup | None:
        """The group for gradients and batch statistics: NCCL between GPUs, gloo between CPUs; None if alone."""
        if self._gradient_group is None and self.size > 1:
            import torch.distributed as dist

            backend = "nccl" if self.device.type == "cuda" else "gloo"
            created = dist.new_group(backend=backend, timeout=WAIT_FOR_GRADIENTS)
            assert isinstance(created, dist.ProcessGroup)
            self._gradient_group = created
        return self._gradient_group

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Value | None) -> Value:
        """The main process's value, in every process."""
        found = self.gather(value if self.is_main else None)[0]
        assert found is not None
        return found

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all processes of arrays of one shape.

        Added in the order of the ranks, so that every process gets the same bits, also of floats.
        """
        total, *others = self.gather(values)
        for other in others:
            total = total + other
        return total

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

        An error of any process becomes one of all, and is shown once. Otherwise each would repeat it, or those
        without it would wait for those that have ended.
        """
        if self.size == 1:
            yield
            return
        found: SpatialfeatError | None = None
        package_logger = logging.getLogger("spatialfeat")
        level = package_logger.level
        if not self.is_main:
            package_logger.setLevel(logging.ERROR)
        try:
            yield
        except SpatialfeatError as error:
            found = error
        finally:
            package_logger.setLevel(level)
        texts = self.gather(None if found is None else str(found))
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


@contextmanager
def process_group(requested_device: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started, each on its own device; leave them at the end, come what may.

    Args:
        requested_device: the option `--device`. GPUs are dealt out by local rank, so none may be named.

    Raises:
        SpatialfeatError: devices that do not suffice or differ; in the block also when another process has ended.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from spatialfeat.device import select_device

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
        with translate_lost_contact():
            yield _group_on_devices(ranks, requested_device)
        failed = False
    finally:
        # NCCL would wait for work that the failed process never gave to it; the end of the process frees all.
        if not (failed and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            dist.destroy_process_group()


def _group_on_devices(ranks: Ranks, requested_device: str) -> ProcessGroup:
    import torch

    from spatialfeat.device import usable_cores

    group = ProcessGroup(ranks, torch.device("cpu"))
    with group.together():
        group.device = _device_of_rank(ranks, requested_device)
    group.require_same("--device", group.device.type, "pass cpu or cuda")
    if group.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        # torchrun gives each process one thread unless the user asks for more. The cores are shared out instead.
        torch.set_num_threads(max(1, usable_cores() // ranks.local_size))
    return group


def _device_of_rank(ranks: Ranks, requested: str) -> torch.device:
    import torch

    from spatialfeat.device import select_device

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
def translate_lost_contact() -> Iterator[None]:
    """Raise SpatialfeatError when another process of the group has ended: also in the code that records the failure."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which name its source files.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise SpatialfeatError("lost contact with another process; see its own message for the reason") from error
