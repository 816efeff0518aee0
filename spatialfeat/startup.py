"""Start and end of the process, without what costs seconds there and gives nothing. Only the standard library."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large packages without looking for garbage among what they make, which is there to stay: 0.6 of 3.3 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end_process(ending: SystemExit) -> None:
    """End the process with this exit code, after everything that was registered to happen at its end.

    Python would then take torch's modules apart, object by object, for more than a second. What is written to files
    must be closed by now. Returns if the code is none (a message, say) or the output takes no more text: Python's own
    way of ending, raising `ending`, deals with that.
    """
    code = 0 if ending.code is None else ending.code
    if not isinstance(code, int):
        return
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # Closed by whoever started us.
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(code & 0xFF)
