"""What a person sees in the terminal: progress bars, log lines that do not tear them, counts, durations, tables."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from spatialfeat.distributed import name_rank, own_rank
from spatialfeat.names import for_terminal
from spatialfeat.signals import raise_if_interrupted, signals_held

SECONDS_BETWEEN_LOG_FILE_UPDATES = 30

WIDTH = 100
"""Columns of wrapped text."""

MOST_PHASES = 60
"""Tables and pictures show so many phases: there are as many different looks, and a picture still fits a page."""

LONGEST_NAME = 40
"""Columns that a phase's name takes in a table, at most."""

NO_BREAK = "\xa0"
"""A blank at which `wrap` does not end a line."""


logger = logging.getLogger(__name__)


class LastingStream:
    """Standard output or error that falls silent, instead of failing, when its reader has gone (`... | head`).

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


def new_bar(**options: Any) -> tqdm[Any]:
    """tqdm's bar, that goes when it is done; in a log, lines. tqdm shows it before it has all that closing it needs."""
    form: dict[str, Any] = {} if sys.stderr.isatty() else {"bar_format": "{l_bar}{bar}{r_bar}\n"}
    with signals_held():
        return tqdm(leave=False, **form, **options)


@contextmanager
def frame_bar(total: int, title: str, unit: str = " frames") -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, also of several processes; in a log every half minute. unit: what it counts.

    Yields `advance(num_frames, **facts)`: count so many more, show the facts behind the bar, and raise Interrupted if a
    signal has come.
    """
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_FILE_UPDATES
    bar = new_bar(total=total, desc=title, unit=unit, mininterval=interval, dynamic_ncols=True, disable=own_rank() > 0)

    def advance(num_frames: int, **facts: str) -> None:
        raise_if_interrupted()
        if facts:
            bar.set_postfix(facts, refresh=False)
        bar.update(num_frames)

    with bar:
        yield advance


class BarSafeHandler(logging.Handler):
    """Prints log records above a running progress bar; warnings and errors go to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {name_rank(own_rank())}"
        stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
        tqdm.write(prefix + for_terminal(self.format(record)), file=stream)
        stream.flush()


def show_log_messages() -> None:
    """Print this package's log messages for a person at a terminal.

    Of several processes under torchrun the main one reports how the work goes; the others report only their own faults.
    """
    package_logger = logging.getLogger("spatialfeat")
    package_logger.setLevel(logging.WARNING if own_rank() else logging.INFO)
    package_logger.handlers = [BarSafeHandler()]
    package_logger.propagate = False


def show_results(place: Path, tree: Iterable[str], next_steps: Iterable[str]) -> None:
    """What lies where, at the end of a command, and what to do with it. tree: a line per file or group of files."""
    logger.info("%s", "\n  ".join([str(place), *tree]))
    logger.info("%s", "\n".join(["Next:", *next_steps]))


def count_text(count: int, noun: str, plural: str = "") -> str:
    """`1 frame`, `2 frames`; `plural` where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def name_some(names: Iterable[str], most: int = 5) -> str:
    """`a, b, c, d, e and 7 more`; all of them would bury the first."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def clock_text(seconds: float) -> str:
    """`1:02:03`; hours are always shown."""
    total = round(seconds)
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}"


def duration_text(seconds: float) -> str:
    """`0.04 s`, `42 s`, `3 min 05 s` or `1 h 02 min`, rounded."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size_text(num_bytes: int) -> str:
    """`12.3 MB`, in powers of 1000."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size, units = num_bytes / 1000, ["kB", "MB", "GB", "TB"]
    while round(size, 1) >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.1f} {units[0]}"


def align(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Rows of cells as lines with aligned columns: those whose index is in `left` to the left, the others to the right.

    A row may end early; blanks at the end of a line are cut.
    """
    num_columns = max(map(len, rows))
    padded = [[*row, *[""] * (num_columns - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in padded
    ]


def wrap(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most WIDTH characters that begin with `first`, and then `rest` (default: as many blanks).

    A word is never cut, so that paths can be copied; a line does not end at a NO_BREAK.
    """
    lines = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines] or [first.rstrip()]


def shown_phases(*frames: Sequence[int]) -> list[int]:
    """The phases that tables and pictures show, in order: all, or of more than 60 the most frequent that occur.

    A picture of the 1,000 classes of foreign weights would take gigabytes, and nobody could read it.

    Args:
        frames: how often each phase occurs; where the first ones are equal, the next ones decide.
    """
    phases = range(len(frames[0]))
    if len(phases) <= MOST_PHASES:
        return list(phases)
    counts = {phase: tuple(counted[phase] for counted in frames) for phase in phases}
    most = sorted((phase for phase in phases if any(counts[phase])), key=lambda phase: counts[phase], reverse=True)
    return sorted(most[:MOST_PHASES])


def omission(num_shown: int, num_phases: int) -> str:
    """`12 of 1000 phases are shown, those that occur most`; "" if all are."""
    return "" if num_shown == num_phases else f"{num_shown} of {num_phases} phases are shown, those that occur most"


def phase_lines(phase_names: Sequence[str], columns: Mapping[str, Sequence[str]], frames: Sequence[int]) -> list[str]:
    """A table of phases: the label, the name, and a cell of every column. frames: of each phase, for `shown_phases`."""
    shown = shown_phases(frames)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..." for name in phase_names]
    rows = [[str(phase), names[phase], *(cells[phase] for cells in columns.values())] for phase in shown]
    more = omission(len(shown), len(names))
    return [*align([["label", "phase", *columns], *rows], left=(1,)), *([more] if more else [])]


def share_cells(counts: Sequence[int]) -> list[str]:
    """`12 (3.4%)`, each count with its share of all, or `0`."""
    total = sum(counts)
    return [f"{count} ({count / total:.1%})" if count else "0" for count in counts]
