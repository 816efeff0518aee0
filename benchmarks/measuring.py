"""Run a command and measure it: wall time, peak memory of its whole process tree; then medians and paired ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SAMPLING_SECONDS = 1.0
"""Not oftener: the kernel holds up a process while it adds up its pages."""
MESSAGE_LINES = 12
MEGABYTE = 1e6
UNTOLD = "not known"


class BenchmarkError(Exception):
    """A command that was to be measured failed, or cannot be measured; the message says which and why."""


class Measured(NamedTuple):
    """One run: wall seconds of the whole command, and the peak over time of the summed PSS of its processes.

    PSS counts a page shared by n processes as 1/n in each, so workers that share memory are not counted twice. It is
    None where the kernel does not tell it.
    """

    seconds: float
    peak_bytes: int | None
    output: str


class Spread(NamedTuple):
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """`2.10 (2.05 to 2.31)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def megabytes(peaks: Sequence[int | None]) -> str:
    """The largest of the peaks that are known, `1203`, for people."""
    known = [peak for peak in peaks if peak is not None]
    return f"{max(known) / MEGABYTE:.0f}" if known else UNTOLD


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratio of each repeat to its neighbour in time, then the median: a machine that drifts slows both alike."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


@dataclass(frozen=True)
class Rate:
    """A command split into start-up and steady running, from one run over many frames and one over few."""

    frames_per_second: float
    startup_seconds: float

    @classmethod
    def of(cls, many: float, num_many: int, few: float, num_few: int) -> Rate | None:
        """`many` and `few` are the seconds of runs over so many frames. None when the longer run took no longer."""
        if many <= few:
            return None
        rate = (num_many - num_few) / (many - few)
        return cls(rate, few - num_few / rate)


def together(network: float, decode: float, *, device: str) -> float:
    """What the two ceilings allow together, in frames/s.

    On a CPU network and decoding share the cores; on a GPU they run side by side and the slower one sets the pace.
    """
    return 1 / (1 / network + 1 / decode) if device == "cpu" else min(network, decode)


def run_measured(command: Sequence[str], *, cwd: Path) -> Measured:
    """Run `command` to its end and measure it.

    Raises:
        BenchmarkError: the command failed; the message holds the end of what it printed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT)
        sampler = _PeakSampler(process.pid)
        sampler.start()
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - start
            if process.poll() is None:
                process.terminate()
                process.wait()
            sampler.stop()
        output.seek(0)
        text = output.read()
    if code:
        tail = "\n".join(text.splitlines()[-MESSAGE_LINES:])
        raise BenchmarkError(f"exit code {code} of: {' '.join(command)}\n{tail}")
    return Measured(seconds, sampler.peak_bytes, text)


class _PeakSampler(threading.Thread):
    """Adds up the PSS of a process and all its descendants, once a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak_bytes: int | None = None

    def run(self) -> None:
        while not self._done.wait(SAMPLING_SECONDS):
            sizes = [size for pid in _process_tree(self._pid) if (size := _pss_bytes(pid)) is not None]
            if sizes:
                self.peak_bytes = max(self.peak_bytes or 0, sum(sizes))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _process_tree(pid: int) -> list[int]:
    """The process and its descendants, as far as they still live."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in brackets and may hold anything; behind it come the state and the parent.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # It ended meanwhile.
            continue
        children[parent].append(int(path.parent.name))
    tree = [pid]
    for parent in tree:
        tree += children[parent]
    return tree


def _pss_bytes(pid: int) -> int | None:
    """The process's share of memory, or None when it has ended or the kernel does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def load_average() -> float:
    """Processes that wanted a core during the last minute; more than a little means that timings are disturbed."""
    return os.getloadavg()[0]
