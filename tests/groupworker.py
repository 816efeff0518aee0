"""What two processes of a group tell each other, for test_processgroup.py: each of them writes rank{N}.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import network, settled_network, smooth_images
from torch import nn

from spatialfeat.console import show_log_messages
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.distributed import ProcessGroup, process_group
from spatialfeat.errors import AlreadyToldError, SpatialfeatError
from spatialfeat.training.trainer import TrainingStep, frame_weights


def messages(group: ProcessGroup) -> dict[str, Any]:
    return {
        "gather": group.gather({"rank": group.rank, "text": "ä" * (1 + 5 * group.rank)}),
        "broadcast": group.broadcast(["main"] if group.is_main else ["other"]),
        "counts": group.sum(np.array([1, 2**53 + group.rank])).tolist(),
        "floats": [x.hex() for x in group.sum(np.array([0.1, 0.2]) * (group.rank + 1)).tolist()],
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


STEP_SHARES = (slice(0, 4), slice(4, 6)), (slice(0, 1), slice(1, 1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def trained(group: ProcessGroup | None, freeze_until: int) -> tuple[torch.Tensor, list[float]]:
    """A network after a step on six frames and one on a single frame, which one process has not: how far each number
    of its state dict has moved, and the (shares of the) losses."""
    preprocessing = Preprocessing.for_image_size(64)
    frames = smooth_images(6, 64)
    with network(small=True):
        model = settled_network(3, frames, preprocessing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.freeze(freeze_until)
    criterion = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0]), label_smoothing=0.1)
    step = TrainingStep(
        model,
        torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.001),
        criterion,
        preprocessing=preprocessing,
        precision="fp32",
        clip_grad_norm=0.1,
        group=group,
    )
    step.start_epoch()
    weights = frame_weights(criterion, LABELS.numpy())
    losses = []
    for shares in STEP_SHARES:
        whole = slice(0, shares[1].stop)
        mine = whole if group is None else shares[group.rank]
        weight = float(weights[mine].sum() / weights[whole].sum())
        losses.append(step(frames[mine], LABELS[mine], weight).loss.item())
    step.end_epoch()
    after = model.state_dict()
    assert list(after) == list(before)
    return torch.cat([(after[name].double() - value.double()).flatten() for name, value in before.items()]), losses


def main(folder_name: str) -> None:
    folder = Path(folder_name)
    show_log_messages()
    with process_group("cpu") as group:
        found: dict[str, Any] = {
            "messages": messages(group),
            "errors": errors_told_together(group),
            "first": first_come(group, folder),
        }
        for freeze_until in (6, 8):
            moved, found[f"losses {freeze_until}"] = trained(group, freeze_until)
            torch.save(moved, folder / f"moved{group.rank} {freeze_until}.pt")
    (folder / f"rank{group.rank}.json").write_text(json.dumps(found))
