"""evaluate on the command line: scores of weights, feature files or predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spatialfeat.cli_options import PhaseNames, read_phase_names, run_command, unless_given
from spatialfeat.config import DEFAULT_NUM_PHASES, EvaluateConfig, FeaturesSource, WeightsSource
from spatialfeat.startup import quick_imports


def evaluate(
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            help="CSV of predicted phases, PATH or NAME=PATH; repeat it to compare. Columns: img_id, frame_id or id; "
            "predicted_label, prediction or predicted; true_label or label (or pass --csv).",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder of feature files: their logits and labels are scored, no image is decoded.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        unless_given("Which feature files: train, val, test, or all.", FeaturesSource.split),
    ] = None,
    weights: Annotated[
        Path | None,
        unless_given("Fine-tuned ResNet-50 weights (a plain state dict).", str(WeightsSource.weights)),
    ] = None,
    csv: Annotated[
        Path | None,
        unless_given(
            "Frames and true phases, columns id,label. With --predictions: the ground truth.", str(WeightsSource.csv)
        ),
    ] = None,
    img_dir: Annotated[
        Path | None,
        unless_given("Folder with the frames, {id}.png.", str(WeightsSource.img_dir)),
    ] = None,
    batch_size: Annotated[
        int | None,
        unless_given("Frames per batch.", str(WeightsSource.batch_size)),
    ] = None,
    device: Annotated[
        str | None,
        unless_given("auto (first usable CUDA device, else CPU), cpu, cuda or cuda:N.", WeightsSource.device),
    ] = None,
    precision: Annotated[
        str | None,
        unless_given(
            "Arithmetic of the network: fp32, bf16, fp16, or auto (the fastest that the device has).",
            WeightsSource.precision,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        unless_given("Decoding processes; 0 decodes in the main process.", "by the cores there are"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for scores, pictures and report.html.")] = EvaluateConfig.out_dir,
    num_classes: Annotated[
        int | None,
        unless_given(
            "Number of phases; labels are 0..N-1.",
            f"as weights or feature files have, else as there are names, else {DEFAULT_NUM_PHASES}",
        ),
    ] = None,
    phase_names: PhaseNames = None,
    group_by: Annotated[
        str,
        typer.Option(help="What counts as one video: video, or patient (all segments in order)."),
    ] = EvaluateConfig.group_by,
    relaxed: Annotated[
        str | None,
        typer.Option(
            help="Add relaxed-boundary scores: cholec80, or a CSV with columns from,to of allowed transitions.",
            show_default=False,
        ),
    ] = None,
    relaxed_window: Annotated[
        float | None,
        unless_given("Seconds at both ends of a phase in which --relaxed forgives.", "10"),
    ] = None,
    fps: Annotated[
        float | None,
        unless_given(
            "Scored frames per second: needed by --relaxed, and for the time axis of pictures.",
            "as feature files say; else, for pictures only, 1",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(help="Bootstrap samples of patients for the intervals.")
    ] = EvaluateConfig.bootstrap,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = EvaluateConfig.seed,
) -> None:
    """Score predictions: every protocol side by side, with 95 % intervals over patients, tables and pictures.

    With no option: the fine-tuned weights on test_ResNet_DB.csv. Meaning of every number: docs/evaluation.md.
    """

    def run() -> None:
        options = EvaluateConfig(
            predictions=tuple(predictions or ()),
            features=features,
            split=split,
            weights=weights,
            csv=csv,
            img_dir=img_dir,
            batch_size=batch_size,
            device=device,
            precision=precision,
            workers=workers,
            out_dir=out,
            num_classes=num_classes,
            phase_names=read_phase_names(phase_names),
            group_by=group_by,
            relaxed=relaxed,
            relaxed_window=relaxed_window,
            fps=fps,
            bootstrap=bootstrap,
            seed=seed,
        )
        with quick_imports():
            from spatialfeat.evaluate import evaluate as run_evaluate

        run_evaluate(options)

    run_command(run)
