"""Which of several processes is this one? Read from what `torchrun` puts into the environment; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from spatialfeat.errors import SpatialfeatError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes."""


class Ranks(NamedTuple):
    """`rank` of `size` processes, and `local_rank` of the `local_size` among them that run on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that speaks and writes for all."""
        return self.rank == 0


def ranks_of_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process among those that torchrun has started; one of one without torchrun.

    Raises:
        SpatialfeatError: variables that contradict each other, as half-written job scripts make them.
    """
    if "WORLD_SIZE" not in environment:
        return Ranks()
    try:
        ranks = Ranks(*(int(environment[name]) for name in NAMES[:4]))
    except (KeyError, ValueError) as error:
        raise _contradiction(environment) from error
    if not (0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.local_size <= ranks.size):
        raise _contradiction(environment)
    if ranks.size > 1 and not all(environment.get(name) for name in NAMES):
        raise _contradiction(environment)
    return ranks


def own_rank() -> int:
    """The rank of this process, 0 without torchrun; never an error, for those who only want to know who speaks."""
    text = os.environ.get("RANK", "0")
    return int(text) if "WORLD_SIZE" in os.environ and text.isdecimal() else 0


def name_rank(rank: int) -> str:
    """`rank 1: ` before messages that only that process has; the main process needs no introduction."""
    return f"rank {rank}: " if rank else ""


def _contradiction(environment: Mapping[str, str]) -> SpatialfeatError:
    found = ", ".join(f"{name}={environment.get(name, '(unset)')}" for name in NAMES)
    return SpatialfeatError(
        f"the environment speaks of several processes, but not as torchrun does ({found}); "
        "start them with torchrun, or unset WORLD_SIZE for a single process"
    )
