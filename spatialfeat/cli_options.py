"""What the commands of the command line share: option types, phase names, errors as messages."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialfeat.distributed import name_rank, own_rank, ranks_of_environment
from spatialfeat.errors import AlreadyToldError, Interrupted, SpatialfeatError, describe_os_error
from spatialfeat.names import for_terminal
from spatialfeat.signals import interruption_first, signals_as_exceptions

SIGNAL_EXIT_CODE = 128
"""A program that ended on signal n exits with this + n, by the shells' convention: 130 after Ctrl-C."""

ImgDir = Annotated[Path, typer.Option(help="Folder with the frames, {id}.png.")]
PhaseNames = Annotated[
    str | None, typer.Option(help="Phase names in label order: a text file, one per line, or NAME,NAME,...")
]
BatchSize = Annotated[int, typer.Option(help="Frames per batch.")]
Device = Annotated[str, typer.Option(help="auto (first usable CUDA device, else CPU), cpu, cuda or cuda:N.")]
Precision = Annotated[
    str, typer.Option(help="Arithmetic of the network: fp32, bf16, fp16, or auto (the fastest that the device has).")
]
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
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps decoded frames, for this run and later ones: each frame is decoded once. "
        "New, empty, or an earlier cache. [default: none]",
        show_default=False,
    ),
]
CacheLimit = Annotated[float, typer.Option(help="Most gigabytes that all of the --cache folder may take.")]
NumClassesOfWeights = Annotated[
    int | None, typer.Option(help="Expected number of phases. [default: as the weights have]", show_default=False)
]


def unless_given(help_text: str, default: object) -> Any:
    """An option whose value is None unless given; `default` tells what happens then."""
    return typer.Option(help=f"{help_text} [default: {default}]", show_default=False)


def run_command(command: Callable[[], None], *, after_interruption: str = "", shares_work: bool = False) -> None:
    """Run a command: its log goes to the terminal, what the user can mend becomes one message and exit code 2.

    Args:
        after_interruption: what to do next when a signal has stopped the command.
        shares_work: whether several processes under torchrun may run the command together.
    """
    from spatialfeat.console import lasting_streams, show_log_messages

    show_log_messages()
    message, exit_code = "", 0
    with signals_as_exceptions():
        try:
            if not shares_work and ranks_of_environment().size > 1:
                raise SpatialfeatError("torchrun shares out finetune and extract only; run this command without it")
            with lasting_streams(), interruption_first():
                command()
        except AlreadyToldError:
            exit_code = 2
        except SpatialfeatError as error:
            message, exit_code = f"error: {name_rank(own_rank())}{error}", 2
        except KeyboardInterrupt as error:
            number = error.signal_number if isinstance(error, Interrupted) else signal.SIGINT
            if own_rank() == 0:
                message = f"interrupted; every file that stands under its final name is whole{after_interruption}"
            exit_code = SIGNAL_EXIT_CODE + number
        except OSError as error:
            fault = describe_os_error(error)
            if fault is None:
                raise
            message, exit_code = f"error: {name_rank(own_rank())}{fault}", 2
    if exit_code:
        # Here and not above: an exception that is being handled keeps everything of the command alive, decoding
        # workers too, which could then not be told to end. Exceptions and their frames hold each other.
        gc.collect()
        if message:
            typer.echo(for_terminal(message), err=True)
        sys.exit(exit_code)


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
