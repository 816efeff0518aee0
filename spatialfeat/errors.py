"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class SpatialfeatError(ValueError):
    """A mistake in data, options or files, told with its place, the value found and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """
