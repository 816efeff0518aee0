"""Signals become one exception, wherever they arrive."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spatialfeat.cli import run_command
from spatialfeat.config import EvaluateConfig
from spatialfeat.console import frame_bar
from spatialfeat.errors import Interrupted, SpatialfeatError
from spatialfeat.runrecord import RunRecord
from spatialfeat.signals import signals_as_exceptions, signals_held


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_every_command_ends_with_a_message_and_the_shells_exit_code(
    number: int, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: send(number), after_interruption="; run it again")
    assert caught.value.code == exit_code
    expected = "interrupted; every file that stands under its final name is whole; run it again\n"
    assert capsys.readouterr().err == expected
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 3410368 vs 3410264"), SpatialfeatError("is damaged")])
def test_a_library_that_makes_another_error_of_it_does_not_hide_it(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def save() -> None:
        with RunRecord(tmp_path, "evaluate", EvaluateConfig(), []):
            try:
                send(signal.SIGTERM)
            except KeyboardInterrupt as interrupted:
                raise error from interrupted

    with pytest.raises(SystemExit) as caught:
        run_command(save)
    assert caught.value.code == 128 + signal.SIGTERM
    assert "interrupted" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


def test_a_library_that_swallows_it_gets_as_far_as_the_next_batch() -> None:
    batches: list[int] = []

    def train() -> None:
        with frame_bar(10, "train") as advance:
            for batch in range(10):
                if batch == 3:
                    with contextlib.suppress(KeyboardInterrupt):
                        send(signal.SIGINT)
                batches.append(batch)
                advance(1)

    with pytest.raises(Interrupted), signals_as_exceptions():
        train()
    assert batches == [0, 1, 2, 3]


def test_what_holds_signals_comes_to_its_end_first() -> None:
    done = []

    def save() -> None:
        with signals_held():
            send(signal.SIGTERM)
            done.append("the weights")
            with signals_held():
                done.append("their description")
            done.append("the history")
        done.append("the next epoch")

    with pytest.raises(Interrupted), signals_as_exceptions():
        save()
    assert done == ["the weights", "their description", "the history"]


def test_a_signal_does_not_reach_the_next_command() -> None:
    with pytest.raises(Interrupted), signals_as_exceptions():
        send(signal.SIGTERM)
    with signals_as_exceptions(), frame_bar(1, "train") as advance:
        advance(1)


def run_program(code: str) -> int:
    imports = (
        "import os, signal, time\nfrom spatialfeat import signals\ndef send(number): os.kill(os.getpid(), number)\n"
    )
    return subprocess.run([sys.executable, "-c", imports + code], capture_output=True, timeout=60).returncode


HANGING_CLEAN_UP = """
signals.SECONDS_OF_ECHO = {seconds}
with signals.signals_as_exceptions():
    try:
        send(signal.SIGINT)
    except KeyboardInterrupt:
        send(signal.SIGINT)
        os._exit(7)
"""


def test_a_second_signal_ends_the_process_at_once_unless_it_is_the_echo_of_the_first() -> None:
    assert run_program(HANGING_CLEAN_UP.format(seconds=-1)) == -signal.SIGINT
    assert run_program(HANGING_CLEAN_UP.format(seconds=60)) == 7


def test_nohup_is_respected() -> None:
    code = "with signals.signals_as_exceptions(): send(signal.SIGHUP)"
    assert run_program(f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}") == 0
    assert run_program(code) != 0


def test_a_decoding_worker_survives_the_jobs_signals_and_not_the_main_processs_second() -> None:
    code = "signals.leave_signals_to_main_process()\n"
    assert run_program(code + "send(signal.SIGINT); send(signal.SIGHUP); send(signal.SIGTERM)") == 0
    assert run_program(code + "send(signal.SIGTERM); send(signal.SIGTERM); time.sleep(60)") == -signal.SIGTERM


def test_a_signal_at_the_first_sight_of_a_progress_bar_leaves_no_broken_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm writes the bar while it is still being made; closing a half-made one fails."""

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                send(signal.SIGINT)
            return len(text)

    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with signals_as_exceptions(), pytest.raises(Interrupted), frame_bar(10, "frames"):
        pytest.fail("the bar was shown, and the signal lost")
    gc.collect()
    assert not unraisable
