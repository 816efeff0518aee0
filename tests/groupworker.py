"""What two processes of a group tell each other, for test_processgroup.py: started by torchrun, writes rank{N}.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spatialfeat.errors import AlreadyToldError, SpatialfeatError
from spatialfeat.network.replicas import GlobalBatchNorm2d
from spatialfeat.processgroup import ProcessGroup, process_group
from spatialfeat.progress import show_log_messages

SHARES = (slice(0, 3), slice(3, 4)), (slice(0, 1), slice(1, 1))
"""Rows of a batch for each rank: uneven ones, and of a batch with a single frame."""


def images() -> torch.Tensor:
    """(4, 3, 2, 2) float32, far from zero, where squares lose digits."""
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(5)) + 30


def small_network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Flatten(), nn.Linear(12, 2))


def messages(group: ProcessGroup) -> dict[str, Any]:
    return {
        "gather": group.gather({"rank": group.rank, "text": "ä" * (1 + 5 * group.rank)}),
        "broadcast": group.broadcast(["main"] if group.is_main else ["other"]),
        "counts": group.sum(np.array([1, 2**53 + group.rank])).tolist(),
        "floats": [x.hex() for x in group.sum(np.array([0.1, 0.2]) * (group.rank + 1)).tolist()],
        "count": max(group.gather(group.count(5 + group.rank))),
        "device": str(group.device),
        "threads": torch.get_num_threads(),
    }


def errors_told_together(group: ProcessGroup) -> list[str]:
    """The messages of errors of all processes, and of one."""
    found = []
    for fails in (lambda rank: True, lambda rank: rank == 1):
        try:
            with group.together():
                if fails(group.rank):
                    raise SpatialfeatError("train.csv: no such file")
        except AlreadyToldError as error:
            found.append(str(error))
    return found


def first_come(group: ProcessGroup, folder: Path) -> bool:
    """Does the main process find what the other was to do after it?"""
    with group.main_first():
        found = (folder / "second").exists()
        if not group.is_main:
            (folder / "second").touch()
    return found


def step_on_shares(group: ProcessGroup) -> list[dict[str, Any]]:
    """Two training steps on shares of batches: the gradients and running statistics that they leave."""
    norm = GlobalBatchNorm2d(3, eps=1e-5, momentum=0.1, group=group)
    network = small_network(norm)
    replicas = DistributedDataParallel(network, process_group=group.gradients)
    found = []
    for shares in SHARES:
        network.zero_grad()
        batch = images()[: shares[1].stop][shares[group.rank]].requires_grad_()
        loss = replicas(batch).square().sum()
        (loss * group.size).backward()
        assert batch.grad is not None
        found.append(
            {
                "loss": loss.item(),
                "input": batch.grad.tolist(),
                "gradients": [
                    parameter.grad.tolist() for parameter in network.parameters() if parameter.grad is not None
                ],
                "running": [buffer.tolist() for buffer in norm.buffers()],
            }
        )
    norm.eval()
    found.append({"evaluated": norm(images()).tolist()})
    return found


def main(folder: Path) -> None:
    show_log_messages()
    with process_group("cpu") as group:
        found = {
            "messages": messages(group),
            "errors": errors_told_together(group),
            "first": first_come(group, folder),
            "steps": step_on_shares(group),
        }
    (folder / f"rank{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
