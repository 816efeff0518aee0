"""The exceptions that mean "the user can mend this", and the one that means "the user, or the machine, says stop"."""

from __future__ import annotations


class SpatialfeatError(ValueError):
    """A mistake in data, options or files, told with its place, the value found and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class AlreadyToldError(SpatialfeatError):
    """A mistake whose message another process, or this one, has shown: it only ends the run."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end: Ctrl-C, a cluster that needs the machine, a terminal that was closed."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number
