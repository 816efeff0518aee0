"""The command line: parse, call one function, exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from spatialfeat import __version__, cli_check, cli_evaluate, cli_study, cli_temporal
from spatialfeat.formats import export_help
from spatialfeat.startup import end_process

app = typer.Typer(
    name="spatialfeat",
    help="The spatial stage of surgical phase recognition: fine-tune a ResNet-50 on video frames, evaluate it, and "
    "write per-frame features for temporal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (cli_check.check, cli_study.finetune, cli_evaluate.evaluate, cli_study.extract, cli_temporal.info):
    app.command()(command)
# Its help shows the tree of every format, which a docstring would have to repeat.
app.command(help=export_help())(cli_temporal.export)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"spatialfeat {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `spatialfeat` command."""
    # Threads that wait for each other by spinning stall when another process, such as a decoding worker, wants their
    # core: a training step on two busy cores took 7 times as long. OpenMP reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # HDF5 would load a library named by HDF5_PLUGIN_PATH for a file that asks for it; no file of ours does. HDF5 reads
    # this when it is first imported.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    try:
        app()
    except SystemExit as ending:
        end_process(ending)
        raise
