"""finetune and extract on the command line: from frames to weights, from weights to features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spatialfeat import config
from spatialfeat.cli_options import (
    BatchSize,
    Cache,
    CacheLimit,
    Device,
    ImgDir,
    NumClassesOfWeights,
    PhaseNames,
    Precision,
    Pseudonymize,
    Weights,
    Workers,
    read_phase_names,
    run_command,
)
from spatialfeat.config import ExtractConfig, FinetuneConfig
from spatialfeat.distributed import own_rank
from spatialfeat.startup import quick_imports


def finetune(
    train_csv: Annotated[Path, typer.Option(help="Training frames: CSV with columns id,label.")] = config.TRAIN_CSV,
    val_csv: Annotated[Path, typer.Option(help="Validation frames.")] = config.VAL_CSV,
    test_csv: Annotated[
        Path | None,
        typer.Option(help=f"Test frames. [default: {config.TEST_CSV} if it is there]", show_default=False),
    ] = None,
    img_dir: ImgDir = FinetuneConfig.img_dir,
    out: Annotated[Path, typer.Option(help="Folder for weights, history, curves and test results.")] = (
        FinetuneConfig.out_dir
    ),
    num_classes: Annotated[int, typer.Option(help="Number of phases; labels are 0..N-1.")] = FinetuneConfig.num_classes,
    phase_names: PhaseNames = None,
    batch_size: BatchSize = FinetuneConfig.batch_size,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = FinetuneConfig.lr,
    epochs: Annotated[int, typer.Option(help="Most epochs to train.")] = FinetuneConfig.epochs,
    freeze_until: Annotated[
        int,
        typer.Option(help="Freeze the first N of the ten children conv1, bn1, relu, maxpool, layer1..4, avgpool, fc."),
    ] = FinetuneConfig.freeze_until,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better validation accuracy.")
    ] = FinetuneConfig.patience,
    lr_patience: Annotated[
        int, typer.Option(help="Lower the learning rate after more than so many such epochs.")
    ] = FinetuneConfig.lr_patience,
    lr_factor: Annotated[float, typer.Option(help="Factor by which it is lowered.")] = FinetuneConfig.lr_factor,
    weights: Annotated[
        str, typer.Option(help="Start from: imagenet, random, or the path of a ResNet-50 state dict.")
    ] = FinetuneConfig.weights,
    reset_classifier: Annotated[
        bool, typer.Option("--reset-classifier", help="Start a new classifier when the weights have other classes.")
    ] = FinetuneConfig.reset_classifier,
    class_weights: Annotated[
        str, typer.Option(help="none, or balanced: every phase counts alike in training, however many frames it has.")
    ] = FinetuneConfig.class_weights,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of each label that is spread evenly over all phases; 0 is off.")
    ] = FinetuneConfig.label_smoothing,
    clip_grad_norm: Annotated[
        float | None,
        typer.Option(help="Scale longer gradients down to this norm. [default: never]", show_default=False),
    ] = FinetuneConfig.clip_grad_norm,
    image_size: Annotated[
        int, typer.Option(help="Side of the network's input in pixels.")
    ] = FinetuneConfig.image_size_px,
    device: Device = FinetuneConfig.device,
    precision: Precision = FinetuneConfig.precision,
    workers: Workers = FinetuneConfig.workers,
    cache: Cache = FinetuneConfig.cache_dir,
    cache_size: Annotated[
        int | None,
        typer.Option(
            help="With --cache: keep training frames shrunk to so many pixels on the shorter side, never enlarged. "
            "Frames that are no larger are trained on exactly as without a cache; small random crops of others lose "
            f"detail. [default: {round(FinetuneConfig.image_size_px * config.CACHE_SIZE_RATIO)}, or as much larger as "
            "--image-size]",
            show_default=False,
        ),
    ] = None,
    cache_limit: CacheLimit = FinetuneConfig.cache_limit_gb,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same history.")] = FinetuneConfig.seed,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the study in --out after its last whole epoch, if there is one."),
    ] = FinetuneConfig.resume,
    keep_state: Annotated[
        bool,
        typer.Option("--keep-state", help="Keep training_state.pt after the end, to resume with more --epochs."),
    ] = FinetuneConfig.keep_state,
    tensorboard: Annotated[
        bool, typer.Option(help="Log to tensorboard/ in --out, where TensorBoard is installed.")
    ] = FinetuneConfig.tensorboard,
) -> None:
    """Fine-tune a ResNet-50 on labelled frames.

    With no option, this is exactly the specified spatial study. Interrupted, it goes on with --resume.
    """

    def run() -> None:
        study = FinetuneConfig(
            train_csv=train_csv,
            val_csv=val_csv,
            test_csv=test_csv,
            img_dir=img_dir,
            out_dir=out,
            num_classes=num_classes,
            phase_names=read_phase_names(phase_names),
            batch_size=batch_size,
            lr=lr,
            epochs=epochs,
            freeze_until=freeze_until,
            patience=patience,
            lr_patience=lr_patience,
            lr_factor=lr_factor,
            weights=weights,
            reset_classifier=reset_classifier,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            clip_grad_norm=clip_grad_norm,
            image_size_px=image_size,
            device=device,
            precision=precision,
            workers=workers,
            cache_dir=cache,
            cache_size_px=cache_size,
            cache_limit_gb=cache_limit,
            seed=seed,
            resume=resume,
            keep_state=keep_state,
            tensorboard=tensorboard,
        )
        with quick_imports():
            from spatialfeat.finetune import finetune as run_finetune

        run_finetune(study)

    run_command(run, shares_work=True)


def extract(
    csv: Annotated[
        list[str] | None,
        typer.Option(
            help="Frames to extract; repeat it for several files. Without SPLIT= the split is told by the word train, "
            "val or test in the file's name, as in my_train.csv. [default: the specification's three files]",
            metavar="[SPLIT=]PATH",
            show_default=False,
        ),
    ] = None,
    img_dir: ImgDir = ExtractConfig.img_dir,
    weights: Weights = ExtractConfig.weights,
    out: Annotated[Path, typer.Option(help="Folder for the feature files, one HDF5 file per video.")] = (
        ExtractConfig.out_dir
    ),
    group_by: Annotated[
        str, typer.Option(help="One file per: video, or patient (all segments in order).")
    ] = ExtractConfig.group_by,
    layout: Annotated[
        str, typer.Option(help="channel-first stores (2048, T), time-first (T, 2048).")
    ] = ExtractConfig.layout,
    fps: Annotated[
        float, typer.Option(help="Frames per second of the frame numbers, stored for readers.")
    ] = ExtractConfig.fps,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files made by other weights, options or frames.")
    ] = ExtractConfig.overwrite,
    pseudonymize: Pseudonymize = ExtractConfig.pseudonymize,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Only the I-th of N shares of the videos, for job arrays: 1/4 to 4/4 write what one run without it "
            "writes. [default: all videos]",
            metavar="I/N",
            show_default=False,
        ),
    ] = ExtractConfig.shard,
    num_classes: NumClassesOfWeights = None,
    phase_names: PhaseNames = None,
    batch_size: BatchSize = ExtractConfig.batch_size,
    device: Device = ExtractConfig.device,
    precision: Precision = ExtractConfig.precision,
    workers: Workers = ExtractConfig.workers,
    cache: Cache = ExtractConfig.cache_dir,
    cache_limit: CacheLimit = ExtractConfig.cache_limit_gb,
) -> None:
    """Write features of every frame.

    2048 per frame, one HDF5 file per video. Videos that are done already are skipped.
    """

    def run() -> None:
        options = ExtractConfig(
            csvs=tuple(csv or ()),
            img_dir=img_dir,
            weights=weights,
            out_dir=out,
            group_by=group_by,
            layout=layout,
            fps=fps,
            overwrite=overwrite,
            pseudonymize=pseudonymize,
            shard=shard,
            num_classes=num_classes,
            phase_names=read_phase_names(phase_names),
            batch_size=batch_size,
            device=device,
            precision=precision,
            workers=workers,
            cache_dir=cache,
            cache_limit_gb=cache_limit,
        )
        with quick_imports():
            from spatialfeat.extract import extract as run_extract

        # Of several processes only the main one reports, and so fails: torchrun passes its failure on.
        if run_extract(options).failed and own_rank() == 0:
            raise typer.Exit(1)

    run_command(
        run,
        after_interruption="; finished videos are kept, run the same command again for the others",
        shares_work=True,
    )
