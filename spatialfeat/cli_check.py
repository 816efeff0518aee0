"""check on the command line: the look at a data set before a night of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spatialfeat.cli_options import (
    BatchSize,
    Device,
    ImgDir,
    PhaseNames,
    Precision,
    read_phase_names,
    run_command,
    unless_given,
)
from spatialfeat.config import TEST_CSV, CheckConfig
from spatialfeat.names import for_terminal
from spatialfeat.startup import quick_imports


def check(
    train_csv: Annotated[Path, typer.Option(help="Training frames: CSV with columns id,label.")] = (
        CheckConfig.train_csv
    ),
    val_csv: Annotated[Path, typer.Option(help="Validation frames.")] = CheckConfig.val_csv,
    test_csv: Annotated[Path | None, unless_given("Test frames.", f"{TEST_CSV} if it is there")] = None,
    csv: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of these three, the CSVs that extract will be given; repeat it for several.",
            metavar="[SPLIT=]PATH",
            show_default=False,
        ),
    ] = None,
    img_dir: ImgDir = CheckConfig.img_dir,
    out: Annotated[Path, typer.Option(help="Folder for check.json, check.txt and class_balance.png.")] = (
        CheckConfig.out_dir
    ),
    num_classes: Annotated[int, typer.Option(help="Number of phases; labels are 0..N-1.")] = CheckConfig.num_classes,
    phase_names: PhaseNames = None,
    fps: Annotated[float, typer.Option(help="Frames per second of the frame numbers.")] = CheckConfig.fps,
    image_size: Annotated[int, typer.Option(help="Side of the network's input in pixels.")] = CheckConfig.image_size_px,
    batch_size: BatchSize = CheckConfig.batch_size,
    epochs: Annotated[int, typer.Option(help="Most epochs to train, for the estimate.")] = CheckConfig.epochs,
    patience: Annotated[int, typer.Option(help="Early stopping's patience, for the estimate.")] = CheckConfig.patience,
    freeze_until: Annotated[int, typer.Option(help="Frozen children, for the estimate.")] = CheckConfig.freeze_until,
    device: Device = CheckConfig.device,
    precision: Precision = CheckConfig.precision,
    workers: Annotated[
        int | None,
        unless_given("Decoding processes, here and in the estimate; 0 decodes in the main process.", "by the cores"),
    ] = None,
    no_decode: Annotated[
        bool,
        typer.Option(
            "--no-decode",
            help="Look only at the ends of the image files: seconds instead of minutes, but damage in the middle and "
            "equal pictures are not found.",
        ),
    ] = False,
    no_estimate: Annotated[
        bool, typer.Option("--no-estimate", help="Do not measure how long finetune and extract will take.")
    ] = False,
) -> None:
    """Check a data set before a night of training.

    Rows against files, labels against phases, patients in several splits, equal pictures, gaps, image sizes, ids that
    may tell a name, and what finetune and extract will take here. Exit code 1 when something would break a run or make
    its numbers worthless.
    """

    def run() -> None:
        options = CheckConfig(
            train_csv=train_csv,
            val_csv=val_csv,
            test_csv=test_csv,
            csvs=tuple(csv or ()),
            img_dir=img_dir,
            out_dir=out,
            num_classes=num_classes,
            phase_names=read_phase_names(phase_names),
            fps=fps,
            batch_size=batch_size,
            epochs=epochs,
            patience=patience,
            freeze_until=freeze_until,
            image_size_px=image_size,
            device=device,
            precision=precision,
            workers=workers,
            decode=not no_decode,
            estimate=not no_estimate,
        )
        with quick_imports():
            from spatialfeat.check import check as run_check
            from spatialfeat.checks.report import render

        report = run_check(options)
        typer.echo(for_terminal(render(report)))
        picture = out / "class_balance.png"
        typer.echo(f"\nAll of it: {out / 'check.json'}" + (f"; the classes: {picture}" if picture.exists() else ""))
        if report.failed:
            raise typer.Exit(1)

    run_command(run)
