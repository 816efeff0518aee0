"""What a person sees while the program works: progress bars, and log lines that do not tear them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from spatialfeat.safetext import for_terminal

SECONDS_BETWEEN_LOG_FILE_UPDATES = 30


class FrameBar:
    """A progress bar that counts frames; its rate is frames per second."""

    def __init__(self, bar: tqdm[Any]):
        self._bar = bar

    def advance(self, num_frames: int, **facts: str) -> None:
        """Count `num_frames` more and show `facts` behind the bar."""
        if facts:
            self._bar.set_postfix(facts, refresh=False)
        self._bar.update(num_frames)


@contextmanager
def frame_bar(total: int, title: str) -> Iterator[FrameBar]:
    """A bar over `total` frames on standard error; in a log file it speaks only every half minute."""
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_FILE_UPDATES
    bar: tqdm[Any] = tqdm(
        total=total, desc=title, unit=" frames", leave=False, mininterval=interval, dynamic_ncols=True
    )
    with bar:
        yield FrameBar(bar)


class BarSafeHandler(logging.Handler):
    """Prints log records above a running progress bar; warnings and errors go to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
        tqdm.write(prefix + for_terminal(self.format(record)), file=stream)
        stream.flush()


def show_log_messages() -> None:
    """Print this package's log messages for a person at a terminal."""
    package_logger = logging.getLogger("spatialfeat")
    package_logger.setLevel(logging.INFO)
    package_logger.handlers = [BarSafeHandler()]
    package_logger.propagate = False
