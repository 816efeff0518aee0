"""Signals that ask the program to end: Ctrl-C, a cluster or container that stops it, a terminal that is closed.

They become an exception, so that partial files are removed and the record is written. Only the standard library.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from spatialfeat.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_OF_ECHO = 1.0
"""Programs that pass a signal on to their children make two of one; within this time the second means nothing."""


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise Interrupted in the main thread at the first of SIGNALS; a second one ends the process at once.

    A signal that is ignored already, as nohup does with SIGHUP, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone set handlers.
        return
    main_process = os.getpid()
    first_at: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if os.getpid() != main_process:
            return  # A decoding worker that was forked a moment ago: the main process ends it.
        if first_at is None:
            first_at = time.monotonic()
            raise Interrupted(number)
        if time.monotonic() - first_at > SECONDS_OF_ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(main_process, number)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_main_process() -> None:
    """For decoding workers: a signal to all processes of a job must not end them while the main process needs them.

    The first SIGTERM is spared, a second one works: the main process uses it on a worker that does not end by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare_one)


def _spare_one(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
