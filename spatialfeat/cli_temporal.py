"""info and export on the command line: the hand-off to temporal models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spatialfeat.cli_options import Pseudonymize, run_command
from spatialfeat.config import VAL_TARGETS, ExportConfig
from spatialfeat.formats import FORMATS
from spatialfeat.names import for_terminal
from spatialfeat.startup import quick_imports

_UNLABELLED_HELP = "Frames without a label. " + "; ".join(
    f"{form.name}: {', '.join(form.unlabelled)}" for form in FORMATS.values()
)


def export(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help=f"{', '.join(FORMATS)}.", show_default=False)],
    features_dir: Annotated[
        Path, typer.Argument(metavar="FEATURES_DIR", help="Folder of feature files, from `spatialfeat extract`.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Must not exist, or be an empty folder; hdf5: a new file.")
    ],
    group_by: Annotated[
        str, typer.Option(help="video: as the files are; patient: a patient's videos joined, in order of segments.")
    ] = ExportConfig.group_by,
    unlabelled: Annotated[
        str | None,
        typer.Option(help=f"{_UNLABELLED_HELP}. [default: the first of these]", show_default=False),
    ] = ExportConfig.unlabelled,
    background_name: Annotated[
        str, typer.Option(help="ms-tcn: the phase of frames without a label, with --unlabelled background.")
    ] = ExportConfig.background_name,
    val_to: Annotated[
        str,
        typer.Option(
            help=f"ms-tcn: where the videos of split val go: {', '.join(VAL_TARGETS)}. own is a bundle of its own, "
            "which MS-TCN itself does not read."
        ),
    ] = ExportConfig.val_to,
    folds: Annotated[
        Path | None,
        typer.Option(
            help="ms-tcn: CSV with columns video,fold or patient,fold, instead of the splits in the feature files. "
            "Split k tests on fold k and trains on the others."
        ),
    ] = ExportConfig.folds,
    id_replacement: Annotated[
        str | None, typer.Option(help="ms-tcn: put this for a dot, slash or space in a video's id.")
    ] = ExportConfig.id_replacement,
    name_replacement: Annotated[
        str | None, typer.Option(help="ms-tcn: put this for a space or # in a phase's name.")
    ] = ExportConfig.name_replacement,
    skip_short: Annotated[
        bool, typer.Option("--skip-short", help="ms-tcn: leave out videos of fewer than two frames.")
    ] = ExportConfig.skip_short,
    allow_small_bundles: Annotated[
        bool, typer.Option("--allow-small-bundles", help="ms-tcn: write bundles of one video, too.")
    ] = ExportConfig.allow_small_bundles,
    pseudonymize: Pseudonymize = ExportConfig.pseudonymize,
) -> None:
    """Write feature files in the layout of FORMAT. The help text with every tree is `exportformats.export_help`."""

    def run() -> None:
        options = ExportConfig(
            format=format,
            features_dir=features_dir,
            out=out,
            group_by=group_by,
            unlabelled=unlabelled,
            background_name=background_name,
            val_to=val_to,
            folds=folds,
            id_replacement=id_replacement,
            name_replacement=name_replacement,
            skip_short=skip_short,
            allow_small_bundles=allow_small_bundles,
            pseudonymize=pseudonymize,
        )
        with quick_imports():
            from spatialfeat.export import export as run_export

        run_export(options)

    run_command(run)


def info(
    path: Annotated[Path, typer.Argument(help="A folder of feature files, or one file.", show_default=False)],
) -> None:
    """Show what feature files hold, and flag those that cannot be read or used together (exit code 1).

    A gap is a place where consecutive frame numbers of a segment differ by more than their usual, most common step.
    The duration runs from the first to the last frame of each segment, gaps included.
    """

    def run() -> None:
        with quick_imports():
            from spatialfeat.info import FolderSummary, describe, render

        summary = describe(path)
        typer.echo(for_terminal(render(summary)))
        if isinstance(summary, FolderSummary) and summary.problems:
            raise typer.Exit(1)

    run_command(run)
