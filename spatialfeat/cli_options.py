"""What the commands of the command line share: option types, phase names, errors as messages."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialfeat import config
from spatialfeat.errors import SpatialfeatError
from spatialfeat.safetext import for_terminal

# A full disk, a lost network drive, missing rights: nothing that a traceback would help with.
FAULTS_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
INTERRUPTED = 128 + 2
"""The exit code of a program that ended on Ctrl-C, by the shells' convention."""

ImgDir = Annotated[Path, typer.Option(help="Folder with the frames, {id}.png.")]
PhaseNames = Annotated[
    str | None, typer.Option(help="Phase names in label order: a text file, one per line, or NAME,NAME,...")
]
BatchSize = Annotated[int, typer.Option(help="Frames per batch.")]
Device = Annotated[str, typer.Option(help="auto (first usable CUDA device, else CPU), cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help=f"Arithmetic of the network: {', '.join(config.PRECISIONS)}.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Decoding processes; 0 decodes in the main process. [default: by the cores there are]", show_default=False
    ),
]
Pseudonymize = Annotated[
    Path | None,
    typer.Option(
        help="Write pseudonyms in place of patient ids. This CSV, columns patient_id,pseudonym, is read and gets the "
        "patients it lacks; it is made if it is not there. Keep it apart from the output.",
        metavar="MAP.csv",
        show_default=False,
    ),
]
Weights = Annotated[Path, typer.Option(help="Fine-tuned ResNet-50 weights (a plain state dict).")]
NumClassesOfWeights = Annotated[
    int | None, typer.Option(help="Expected number of phases. [default: as the weights have]", show_default=False)
]


def unless_given(help_text: str, default: object) -> Any:
    """An option whose value is None unless given; `default` tells what happens then."""
    return typer.Option(help=f"{help_text} [default: {default}]", show_default=False)


def run_command(command: Callable[[], None]) -> None:
    """Run a command: its log goes to the terminal, what the user can mend becomes one message and exit code 2."""
    from spatialfeat.progress import show_log_messages

    show_log_messages()
    try:
        command()
    except SpatialfeatError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo("interrupted; every file that stands under its final name is whole", err=True)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in FAULTS_OF_THE_MACHINE:
            raise
        _fail(f"{error.filename or 'writing or reading a file'}: {os.strerror(error.errno)}")


def _fail(message: str) -> None:
    typer.echo(f"error: {for_terminal(message)}", err=True)
    sys.exit(2)


def read_phase_names(text: str | None) -> tuple[str, ...] | None:
    """Names from a text file, one per line, or from a list with commas."""
    if text is None:
        return None
    if "," in text and not Path(text).is_file():
        return tuple(name.strip() for name in text.split(","))
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpatialfeatError(
            f"--phase-names {text}: cannot be read ({reason}); pass a text file, one name per line, or NAME,NAME,..."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())
