"""What a person sees while the program works: progress bars, and log lines that do not tear them.

Small words for messages, tables and reports.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from spatialfeat.distributed import name_rank, own_rank
from spatialfeat.names import for_terminal
from spatialfeat.signals import raise_if_interrupted

SECONDS_BETWEEN_LOG_FILE_UPDATES = 30


class LastingStream:
    """Standard output or error that falls silent, instead of failing, when nobody reads it any more (`... | head`).

    The command goes on: its results are files.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._fall_silent()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        # What the stream still holds back goes there too, or Python would complain at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a command outlive the reader of its output."""
    before = sys.stdout, sys.stderr
    lasting: Any = [LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = before


class FrameBar:
    """A progress bar that counts frames; its rate is frames per second."""

    def __init__(self, bar: tqdm[Any]):
        self._bar = bar

    def advance(self, num_frames: int, **facts: str) -> None:
        """Count `num_frames` more and show `facts` behind the bar. Raises Interrupted if a signal has come."""
        raise_if_interrupted()
        if facts:
            self._bar.set_postfix(facts, refresh=False)
        self._bar.update(num_frames)


@contextmanager
def frame_bar(total: int, title: str) -> Iterator[FrameBar]:
    """A bar over `total` frames on standard error; in a log file it speaks only every half minute.

    Of several processes under torchrun only the main one shows it.
    """
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_FILE_UPDATES
    bar: tqdm[Any] = tqdm(
        total=total,
        desc=title,
        unit=" frames",
        leave=False,
        mininterval=interval,
        dynamic_ncols=True,
        disable=own_rank() > 0,
    )
    with bar:
        yield FrameBar(bar)


class BarSafeHandler(logging.Handler):
    """Prints log records above a running progress bar; warnings and errors go to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {name_rank(own_rank())}"
        stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
        tqdm.write(prefix + for_terminal(self.format(record)), file=stream)
        stream.flush()


def show_log_messages() -> None:
    """Print this package's log messages for a person at a terminal.

    Of several processes under torchrun the main one tells how the work goes; the others only what is wrong with them.
    """
    package_logger = logging.getLogger("spatialfeat")
    package_logger.setLevel(logging.WARNING if own_rank() else logging.INFO)
    package_logger.handlers = [BarSafeHandler()]
    package_logger.propagate = False


def count_text(count: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
