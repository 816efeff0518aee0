"""Commands in processes that can be killed: a program that has imported everything and forks one child per command.

Importing takes far longer than most commands. `Forks` starts the program and gives it tasks: it reads one per line from
standard input, and answers with one line. A task is a JSON object:

    arguments   of the command line, such as ["finetune", "--resume"]
    log         the file that the child's output goes to
    processes   how many do it together, as torchrun would start them; 1 if not given
    call        instead of arguments: [a module of tests, a function in it, its arguments ...]
    to_the_end  true: it ends as a program does, with all that waits for the end of one; else at once, with its code
    send        signal number, and optionally one of
    after_s     when to send it, in seconds from the start; to the child alone
    at_commit   [n, "before" | "after"]: when a file gets its final name for the n-th time; to the child alone
    after_epoch n: a moment after the state of epoch n was written (0: the first record), as a rule in the middle of
                epoch n + 1; to the child and its decoding workers, as terminals and clusters do

The network is a small one, and no picture is drawn, so that an epoch takes a moment.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from drawing import draw_nothing
from networks import use_small_network

import spatialfeat.evaluate
import spatialfeat.export
import spatialfeat.extract
import spatialfeat.files as files
import spatialfeat.finetune  # noqa: F401  # what the children need is imported once, here
from spatialfeat.cli import app
from spatialfeat.data.images import decoder_name
from spatialfeat.training import history
from spatialfeat.training.files import STATE_NAME

MIDDLE_OF_EPOCH_S = 0.03

Answer = dict[str, Any]
"""code: the child's exit code, -9 when killed. seconds. workers_left: whether it has left processes. log: its text."""


class Forks:
    """The program, as tests see it. To be closed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, log: Path, *arguments: object, **task: Any) -> Answer:
        """Run a command, as the task says, and wait for its end."""
        task = {"arguments": [str(argument) for argument in arguments], "log": str(log), **task}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer: Answer = json.loads(self._process.stdout.readline())
        return answer | {"log": log.read_text()}

    def close(self) -> None:
        with self._process:
            self._process.kill()  # It has nothing to finish, and ends by itself in seconds only.


def no_curves(path: Path, **quantities: Any) -> None:
    files.write_atomically(path, lambda temporary: temporary.write_text(repr(quantities)))
    path.with_suffix(".svg").write_text(repr(quantities))


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


def do(task: dict[str, Any], ranks: dict[str, str]) -> None:
    os.setpgid(0, 0)
    os.environ.update(ranks)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    arm(task)
    if "call" in task:
        module, function, *arguments = task["call"]
        getattr(import_module(module), function)(*arguments)
    else:
        app(task["arguments"])


def run_child(task: dict[str, Any], ranks: dict[str, str]) -> None:
    """Never returns."""
    if task.get("to_the_end"):
        do(task, ranks)
        sys.exit()  # This, like whatever `do` raises, nobody catches.
    code: Any = 1
    try:
        do(task, ranks)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001  # the parent learns of it from the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def ranks_of(processes: int) -> list[dict[str, str]]:
    """What torchrun would add to the environment of each process; nothing for one alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **size, **place} for rank in range(processes)]


def run(task: dict[str, Any]) -> Answer:
    """Fork the children and wait for their end. Of several, the code is that of the first that failed."""
    start = time.monotonic()
    Path(task["log"]).write_bytes(b"")
    children = []
    for ranks in ranks_of(task.get("processes", 1)):
        child = os.fork()
        if child == 0:
            run_child(task, ranks)
        children.append(child)
    timer = None
    if "after_s" in task:
        timer = threading.Timer(task["after_s"], lambda: os.kill(children[0], task["send"]))
        timer.start()
    os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)  # Until it is reaped, its number is nobody else's.
    if timer is not None:
        timer.cancel()
        timer.join()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {
        "code": next((code for code in codes if code), 0),
        "seconds": time.monotonic() - start,
        "workers_left": any(map(has_processes, children)),
    }


def has_processes(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def import_the_rest() -> None:
    """What commands import only when they need it: here once, instead of in each child."""
    with redirect_stdout(StringIO()), suppress(SystemExit):
        app(["finetune", "--help"])
    decoder_name()


def main() -> None:
    torch.set_num_threads(1)
    use_small_network()
    draw_nothing()
    history.save_curves = no_curves  # type: ignore[assignment]
    import_the_rest()
    gc.collect()
    gc.freeze()  # A child whose collector of garbage looked at all objects would copy their pages.
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
