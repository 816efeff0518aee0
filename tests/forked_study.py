"""Studies in processes that can be killed: a program that has imported everything and forks one child per study.

It reads one JSON object per line from standard input: `config`, the fields of FinetuneConfig as text and numbers, and
optionally `kill_after_s`, or `kill_at`: [n, "before" or "after"], the n-th time a file gets its final name. It answers
each with one line: the exit code, -9 for a killed child.

The network keeps its shape but is a hundredth of the size, so that a study of three epochs takes a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torchvision.models.resnet import Bottleneck, ResNet

import spatialfeat.files as files
from spatialfeat.config import FinetuneConfig
from spatialfeat.finetune import finetune
from spatialfeat.network.model import PhaseResNet50
from spatialfeat.reporting import plots


def small_network(self: Any, num_classes: int) -> None:
    ResNet.__init__(self, Bottleneck, [1, 1, 1, 1], num_classes=num_classes, width_per_group=4)
    self.to(memory_format=torch.channels_last)


def kill_at_commit(number: int, moment: str) -> None:
    """Die by SIGKILL at the `number`-th rename of a whole file to its final name, just before or just after it."""
    real, seen = files.commit, 0

    def commit(temporary_path: Path, final_path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(temporary_path, final_path)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    files.commit = commit


def study_of(task: dict[str, Any]) -> None:
    config = {name: Path(value) if name.endswith(("_csv", "_dir")) else value for name, value in task["config"].items()}
    if "kill_at" in task:
        kill_at_commit(*task["kill_at"])
    finetune(FinetuneConfig(**config))


def run(task: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            study_of(task)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    if "kill_after_s" in task:
        threading.Timer(task["kill_after_s"], lambda: os.kill(child, signal.SIGKILL)).start()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    torch.set_num_threads(1)
    plots.DPI = 20
    PhaseResNet50.__init__ = small_network  # type: ignore[method-assign]
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.monotonic()
        code = run(json.loads(line))
        print(json.dumps({"code": code, "seconds": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    main()
