"""Signals that ask the program to end: Ctrl-C, a cluster or container that stops it, a terminal that is closed.

They become an exception, so that partial files are removed and the record is written. An exception that is raised
wherever the program happens to be can be swallowed or replaced by a library's own, so the signal is also remembered.
Only the standard library.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from spatialfeat.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_TO_LIVE = 10
"""A decoding worker ends so long after its first SIGTERM: by then the main process needs no more frames."""

SECONDS_OF_ECHO = 1.0
"""Programs that pass a signal on to their children make two of one; within this time the second means nothing."""


@dataclass
class _Signals:
    """received: the first signal, arrived at received_at (monotonic seconds). num_holds: who does not want it now."""

    received: int | None = None
    received_at: float = 0.0
    num_holds: int = 0


_signals = _Signals()


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise Interrupted in the main thread at the first of SIGNALS; a second one ends the process at once.

    A signal that is ignored already, as nohup does with SIGHUP, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers.
        return
    main_process = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != main_process:
            return  # A decoding worker that was forked a moment ago: the main process ends it.
        if _signals.received is None:
            _signals.received, _signals.received_at = number, time.monotonic()
            raise_if_interrupted()
        elif time.monotonic() - _signals.received_at > SECONDS_OF_ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(main_process, number)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.received = None


@contextmanager
def interruption_first() -> Iterator[None]:
    """Any exception that leaves this after a signal leaves as Interrupted, whatever a library has made of it."""
    try:
        yield
    except BaseException as error:
        if _signals.received is not None and not isinstance(error, Interrupted):
            raise Interrupted(_signals.received) from error
        raise


def raise_if_interrupted() -> None:
    """Raise Interrupted if a signal has come, unless somebody holds it. Called once per batch."""
    if _signals.received is not None and not _signals.num_holds:
        raise Interrupted(_signals.received)


def is_interruption(error: BaseException) -> bool:
    """Whether this exception came of a signal: also one that a library has raised when it was interrupted."""
    return isinstance(error, KeyboardInterrupt) or _signals.received is not None


@contextmanager
def signals_held() -> Iterator[None]:
    """Let what is inside come to its end first: files of some seconds that belong together."""
    _signals.num_holds += 1
    try:
        yield
    finally:
        _signals.num_holds -= 1
    raise_if_interrupted()


def leave_signals_to_main_process() -> None:
    """For decoding workers: a signal to all processes of a job must not end them while the main process needs them.

    The first SIGTERM is spared, a second one works: the main process uses it on a worker that does not end by itself.
    At its exit Python sends one only, and waits for the worker: so it is obeyed a little later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare_one)


def _spare_one(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.alarm(SECONDS_TO_LIVE)
