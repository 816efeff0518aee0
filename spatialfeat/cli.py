"""The command line: parse, call one function, exit code. Options come from config.py; heavy imports wait."""

from __future__ import annotations

import inspect
import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from spatialfeat import __version__
from spatialfeat.config import (
    HEADINGS,
    BackbonesConfig,
    CheckConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    FinetuneConfig,
    InfoConfig,
    PredictConfig,
    PrepareConfig,
    SplitConfig,
)
from spatialfeat.console import lasting_streams, show_log_messages
from spatialfeat.distributed import name_rank, own_rank, ranks_of_environment
from spatialfeat.errors import AlreadyToldError, Interrupted, SpatialfeatError, describe_os_error
from spatialfeat.formats import export_help
from spatialfeat.names import for_terminal
from spatialfeat.options import Option, Options, flag_of, options_of
from spatialfeat.signals import interruption_first, signals_as_exceptions
from spatialfeat.sources.datasets import prepare_help

SIGNAL_EXIT_CODE = 128
"""A program that ended on signal n exits with this + n, by the shells' convention: 130 after Ctrl-C."""

METAVARS = {Path: "PATH", int: "N", float: "NUMBER", str: "TEXT"}
"""What the help shows for a value, by its type."""

app = typer.Typer(
    name="spatialfeat",
    help="The spatial stage of surgical phase recognition: fine-tune a ResNet-50 on video frames, evaluate it, and "
    "write per-frame features for temporal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"spatialfeat {__version__}")
        raise typer.Exit


# What a command does beside calling the function of its name in the module of its name.


def _check(config: CheckConfig) -> None:
    """Exit code 1 when the check finds an error."""
    from spatialfeat.check import check
    from spatialfeat.checks.report import render

    report = check(config)
    typer.echo(for_terminal(render(report)))
    picture = config.out_dir / "class_balance.png"
    also = f"; the phases: {picture}" if picture.exists() else ""
    typer.echo(f"\nAll of it: {config.out_dir / 'check.json'}{also}")
    if report.failed:
        raise typer.Exit(1)


def _extract(config: ExtractConfig) -> None:
    """Exit code 1 when a video failed. Of several processes only the main one reports it: torchrun passes it on."""
    from spatialfeat.extract import extract

    if extract(config).failed and own_rank() == 0:
        raise typer.Exit(1)


def _info(config: InfoConfig) -> None:
    """Exit code 1 when files cannot be used together."""
    from spatialfeat.info import FolderSummary, describe, render

    summary = describe(config.path, config.data_set)
    typer.echo(for_terminal(render(summary)))
    if isinstance(summary, FolderSummary) and summary.problems:
        raise typer.Exit(1)


def _backbones(config: BackbonesConfig) -> None:
    from spatialfeat.backbones import backbones

    typer.echo(for_terminal(backbones(config)))


def add_command(
    name: str,
    kind: type[Options],
    run: Callable[[Any], None] | None = None,
    *,
    help: str | None = None,
    shares_work: bool = False,
    after_interruption: str = "",
) -> None:
    """Give the command line a command with an option for every field of `kind`, whose docstring is its help.

    run: None is the function of this name in the module of this name, which is imported when it is called.
    """

    def command(**values: Any) -> None:
        def parse_and_run() -> None:
            config = kind(**{name: _parsed(values[name], option) for name, option in options_of(kind).items()})
            (run or pkgutil.resolve_name(f"spatialfeat.{name}:{name}"))(config)

        run_command(parse_and_run, shares_work=shares_work, after_interruption=after_interruption)

    hints = get_type_hints(kind)
    parameters = [_parameter(kind, name, hints[name], option) for name, option in options_of(kind).items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=help or inspect.getdoc(kind), cls=_GroupedHelp)(command)


def _parameter(kind: type[Options], name: str, hint: Any, option: Option) -> inspect.Parameter:
    """A field as Typer wants it: `name: Annotated[type, typer.Option(...)] = default`."""
    default = getattr(kind, name, inspect.Parameter.empty)
    types = get_args(hint) or (hint,)  # Of `int | None`: int and None.
    metavar = option.metavar or next((METAVARS[kind] for kind in types if kind in METAVARS), None)
    if option.parse is not None:
        hint = str | None
    elif any(get_origin(part) is tuple for part in (hint, *types)):
        hint, default = list[Path] if Path in types else list[str], []
    shown = f"{option.help} [default: {option.unset}]" if option.unset != "" else option.help
    more: dict[str, Any] = {"help": shown, "metavar": metavar, "rich_help_panel": option.heading}
    if option.is_argument:
        argument: Any = Annotated[hint, typer.Argument(**more)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=argument)
    flag = flag_of(kind, name)
    if hint is bool and default is True:
        flag = f" /{flag}" if flag.startswith("--no-") else f"{flag}/--no-{flag[2:]}"
    has_default = hint is not bool and default not in (None, [])
    annotation: Any = Annotated[hint, typer.Option(flag, show_default=has_default, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parsed(value: Any, option: Option) -> Any:
    if option.parse is not None and value is not None:
        return option.parse(value)
    return tuple(value) if isinstance(value, list) else value


class _GroupedHelp(TyperCommand):
    """Lists the options of a command under their headings, under each in the order of the fields."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "rich_help_panel", None) or "Help"
                if parameter.param_type_name == "argument":
                    heading = "Arguments"
                groups.setdefault(heading, []).append((record[0].removeprefix(" / "), record[1]))
        for heading in ("Arguments", *HEADINGS, "Help"):
            if heading in groups:
                with formatter.section(heading):
                    formatter.write_dl(groups[heading])


def run_command(command: Callable[[], None], *, after_interruption: str = "", shares_work: bool = False) -> None:
    """Run a command: its log goes to the terminal, what the user can fix becomes one message and exit code 2.

    Args:
        after_interruption: what to do next when a signal has stopped the command.
        shares_work: whether several processes under torchrun may run the command together.
    """
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
        if message:
            typer.echo(for_terminal(message), err=True)
        sys.exit(exit_code)


def main() -> None:
    """Entry point of the `spatialfeat` command."""
    # Threads that wait for each other by spinning stall when another process, such as a decoding worker, wants their
    # core: a training step on two busy cores took 7 times as long. OpenMP reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # HDF5 would load a library named by HDF5_PLUGIN_PATH for a file that asks for it; no file of ours does. HDF5 reads
    # this when it is first imported.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    app()


VIDEOS_ARE_KEPT = "; finished videos are kept, run the same command again for the others"

# The help of prepare says what is expected of every data set, that of export shows the tree of every format.
add_command("prepare", PrepareConfig, help=prepare_help(), after_interruption=VIDEOS_ARE_KEPT)
add_command("check", CheckConfig, _check)
add_command("split", SplitConfig)
add_command("finetune", FinetuneConfig, shares_work=True)
add_command("evaluate", EvaluateConfig)
add_command("extract", ExtractConfig, _extract, shares_work=True, after_interruption=VIDEOS_ARE_KEPT)
add_command("predict", PredictConfig)
add_command("info", InfoConfig, _info)
add_command("backbones", BackbonesConfig, _backbones)
add_command("export", ExportConfig, help=export_help())
