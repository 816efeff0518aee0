"""The commands around temporal models on the command line: what feature files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spatialfeat.cli_options import run_command


def info(
    path: Annotated[Path, typer.Argument(help="A folder of feature files, or one file.", show_default=False)],
) -> None:
    """Show what feature files hold, and flag those that cannot be read or used together (exit code 1).

    A gap is a place where consecutive frame numbers of a segment differ by more than their usual, most common step.
    The duration runs from the first to the last frame of each segment, gaps included.
    """

    def run() -> None:
        from spatialfeat.featuresummary import FolderSummary
        from spatialfeat.info import describe
        from spatialfeat.infotext import render

        summary = describe(path)
        typer.echo(render(summary))
        if isinstance(summary, FolderSummary) and summary.problems:
            raise typer.Exit(1)

    run_command(run)
