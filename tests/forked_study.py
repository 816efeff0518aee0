"""Commands in processes that can be killed: a program that has imported everything and forks one child per command.

It reads one task per line from standard input, and answers with one line: the child's exit code (-9 when killed), its
seconds, and whether it has left processes behind. A task is a JSON object:

    arguments   of the command line, such as ["finetune", "--resume"]
    log         the file that the child's output goes to
    send        signal number, and optionally one of
    after_s     when to send it, in seconds from the start; to the child alone
    at_commit   [n, "before" | "after"]: when a file gets its final name for the n-th time; to the child alone
    after_epoch n: a moment after the state of epoch n was written (0: the first record), as a rule in the middle of
                epoch n + 1; to the child and its decoding workers, as terminals and clusters do

The network keeps its shape but is a hundredth of the size, and curves are not drawn, so that an epoch takes a moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.models.resnet import Bottleneck, ResNet

import spatialfeat.evaluate
import spatialfeat.extract
import spatialfeat.files as files
import spatialfeat.finetune  # noqa: F401  # what the children need is imported once, here
from spatialfeat.cli import app
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.reports import plots
from spatialfeat.training import history
from spatialfeat.training.files import STATE_NAME

MIDDLE_OF_EPOCH_S = 0.03


def small_network(self: Any, num_classes: int) -> None:
    ResNet.__init__(self, Bottleneck, [1, 1, 1, 1], num_classes=num_classes, width_per_group=4)
    self.to(memory_format=torch.channels_last)


def no_curves(path: Path, **quantities: Any) -> None:
    files.write_atomically(path, lambda temporary: temporary.write_text(repr(quantities)))


def watch_commits(before: Callable[[int, Path], None], after: Callable[[int, Path], None]) -> None:
    """Call these with the number and the final path around each rename of a whole file to its final name."""
    real, seen = files.commit, 0

    def commit(temporary_path: Path, final_path: Path) -> None:
        nonlocal seen
        seen += 1
        before(seen, final_path)
        real(temporary_path, final_path)
        after(seen, final_path)

    files.commit = commit


def arm(task: dict[str, Any]) -> None:
    """Let the child signal itself at the moment that the task names."""

    def nothing(seen: int, path: Path) -> None:
        pass

    if "at_commit" in task:
        number, moment = task["at_commit"]

        def strike(seen: int, path: Path) -> None:
            if seen == number:
                os.kill(os.getpid(), task["send"])

        watch_commits(*((strike, nothing) if moment == "before" else (nothing, strike)))
    if "after_epoch" in task:
        states = 0

        def count(seen: int, path: Path) -> None:
            nonlocal states
            states += path.name == STATE_NAME
            if states == task["after_epoch"]:
                states += 1  # Once only.
                threading.Timer(MIDDLE_OF_EPOCH_S, lambda: os.killpg(os.getpgrp(), task["send"])).start()

        watch_commits(nothing, count)


def run_child(task: dict[str, Any]) -> None:
    """Never returns."""
    code: Any = 1
    try:
        os.setpgid(0, 0)
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        arm(task)
        app(task["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001  # the parent learns of it from the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Fork the child and wait for its end."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        run_child(task)
    timer = None
    if "after_s" in task:
        timer = threading.Timer(task["after_s"], lambda: os.kill(child, task["send"]))
        timer.start()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # Until it is reaped, its number is nobody else's.
    if timer is not None:
        timer.cancel()
        timer.join()
    _, status = os.waitpid(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "workers_left": has_processes(child),
    }


def has_processes(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    torch.set_num_threads(1)
    plots.DPI = 20
    history.save_curves = no_curves  # type: ignore[assignment]
    PhaseResNet50.__init__ = small_network  # type: ignore[method-assign]
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
