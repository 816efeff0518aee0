"""Errors that the user can fix, with place, value and remedy; and the end that a signal asks for.

What a machine does to a run is among them: a full disk, memory that runs out, a worker that is killed. Everything else
that goes wrong is a fault of this program and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SpatialfeatError(ValueError):
    """A mistake in data, options or files: its place, the value found and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class AlreadyToldError(SpatialfeatError):
    """A mistake whose message another process, or this one, has shown: it only ends the run."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end: Ctrl-C, a cluster that needs the machine, a terminal that was closed."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


NO_ROOM = "make room there, or choose another place, and run again"
NO_RIGHTS = "check the rights there, or choose another place"
BAD_DRIVE = "check the disk or network drive, and run again"
NO_LOCKS = "the file system there cannot lock files; choose a place on another one"
REMEDIES = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EROFS: NO_RIGHTS,
    errno.EACCES: NO_RIGHTS,
    errno.EPERM: NO_RIGHTS,
    errno.EIO: BAD_DRIVE,
    errno.ESTALE: BAD_DRIVE,
    errno.ENOTCONN: BAD_DRIVE,
    errno.ETIMEDOUT: BAD_DRIVE,
    errno.ENOLCK: NO_LOCKS,
    errno.ENOSYS: NO_LOCKS,
    errno.EOPNOTSUPP: NO_LOCKS,
    errno.ENOMEM: "the machine's memory ran out: lower --workers or --batch-size",
    errno.EAGAIN: "the machine allows no more processes: lower --workers",
    errno.EMFILE: "raise the limit, e.g. ulimit -n 4096, or lower --workers",
    errno.ENFILE: "end other programs, or lower --workers",
}
"""Errors of the operating system that no traceback would help with, and what to do about each."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # Only its size is asked.


def describe_os_error(error: OSError, place: Path | str | None = None) -> str | None:
    """`out/history.csv: No space left on device; make room there, ...`, or None if the machine is not to blame.

    Args:
        place: what was read or written, if it is not the file that the error names.
    """
    if error.errno not in REMEDIES:
        return None
    where = place or error.filename or "reading or writing a file"
    return f"{where}: {os.strerror(error.errno)}; {REMEDIES[error.errno]}"


@contextmanager
def translate_os_errors(place: Path | str) -> Iterator[None]:
    """Raise SpatialfeatError naming `place` for the errors in REMEDIES: a failed write does not know its file."""
    try:
        yield
    except OSError as error:
        message = describe_os_error(error, place)
        if message is None:
            raise
        raise SpatialfeatError(message) from error


@contextmanager
def translate_computing_faults(*, batch_size: int, workers: int, image_size_px: int | None = None) -> Iterator[None]:
    """Around everything that runs the network: raise SpatialfeatError when memory runs out or a worker is killed.

    Not only around the loader: torch raises for a killed worker wherever the main process is at that moment.

    Args:
        batch_size, workers, image_size_px: as in use; the message says which to lower. None: not an option here.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, EOFError) as error:
        if workers:
            _let_workers_end_quietly()
        # torch's error from a worker and its frames hold each other. The garbage collector would end the loader's
        # queues before the loader: the workers would not be asked to end, and each of them would be waited for.
        traceback.clear_frames(error.__traceback__)
        smaller = f"--batch-size (now {batch_size})"
        if image_size_px is not None:
            smaller += f" or --image-size (now {image_size_px})"
        message = _describe(error, smaller, workers)
        if message is None:
            raise
        raise SpatialfeatError(message) from error


def _describe(error: Exception, smaller: str, workers: int) -> str | None:
    # What a worker raises arrives as text whose last line is the error. By what it was killed may stand in the cause.
    text = f"{error.__cause__ or ''}\n{error}".strip()
    if _is_gpu_memory(error, text):
        return f"the GPU's memory ran out{_gpu_facts(text)}; lower {smaller}, or end other programs on the GPU"
    fewer = f"--workers (now {workers})"
    if _is_shared_memory(text):
        return (
            f"the decoding processes ran out of shared memory{_shared_memory_size()}; pass --workers 0, lower {fewer}, "
            "or give the container more, e.g. docker run --shm-size=8g"
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"the machine's memory ran out; lower {smaller}" + (f", or {fewer}" if workers else "")
    if workers and _is_lost_worker(error, text):
        return (
            f"a decoding process was killed{_killer(text)}, most likely because the machine's memory ran out; "
            f"lower {fewer} or {smaller}; --workers 0 decodes without such processes"
        )
    if isinstance(error, OSError) and error.errno is None and (match := re.search(r"\[Errno (\d+)\].*$", text)):
        return describe_os_error(OSError(int(match[1]), ""), "a decoding process")
    return None


def _is_lost_worker(error: Exception, text: str) -> bool:
    if re.search(r"^DataLoader worker .*(killed by signal|exited unexpectedly)", text, re.MULTILINE):
        return True
    # The main process may be reading from the worker when it dies; no file is at the other end.
    return isinstance(error, (EOFError, ConnectionError, FileNotFoundError)) and (
        getattr(error, "filename", None) is None and "Caught" not in text
    )


def _killer(text: str) -> str:
    match = re.search(r"killed by signal: ([\w ]+)", text) or re.search(
        r"exited unexpectedly with (exit code \d+)", text
    )
    return f" ({match[1].strip()})" if match else ""


def _is_gpu_memory(error: Exception, text: str) -> bool:
    # By name, so that torch need not be imported to look for a full disk.
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    # Libraries of CUDA and errors between kernels come as plain RuntimeErrors.
    return named or any(sign in text for sign in ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED"))


def _gpu_facts(text: str) -> str:
    """` (2.00 GiB more were asked for; 1.06 GiB of 14.75 GiB are free)`, as far as torch's message says."""
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    room = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text)
    facts = [f"{asked[1]} more were asked for"] if asked else []
    facts += [f"{room[2]} of {room[1]} are free"] if room else []
    return f" ({'; '.join(facts)})" if facts else ""


def _is_shared_memory(text: str) -> bool:
    of_worker = "DataLoader worker" in text and ("Bus error" in text or "shared memory" in text)
    return of_worker or any(sign in text for sign in ("shared memory(shm)", "unable to write to file </torch_"))


def _shared_memory_size() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY} has {usage.total / 1e6:.0f} MB)"


def _let_workers_end_quietly() -> None:
    """torch's handler raises for every further worker that ends badly, wherever the program is by then.

    Where that is a destructor, Python prints a traceback. Later loaders still notice dead workers, within seconds.
    """
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
