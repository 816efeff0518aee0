"""Time `spatialfeat finetune` against the plain way and against its ceilings, on the same frames in one run.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench_frames import FrameSet
from bench_setup import Setup, Study, markdown_table, parsed_setup, run_benchmark, say
from bench_weights import make_weights
from comparing import compare_curves
from measuring import MEGABYTE, Spread, megabytes, paired_ratios, together

TARGETS = {"cpu": 2.5}
"""How many times faster an epoch is to be than the plain way's; on a CPU: one of 2 cores with AVX-512-BF16."""
CURVES = ("train_loss", "val_loss", "val_acc")
LISTS: Any = partial(defaultdict, list)


@dataclass
class SizeResult:
    """Everything that was measured at one frame size; lists hold one value per repeat, each with its own seed."""

    size: str
    train_frames: int
    frames: int
    mean_png_bytes: int
    plain_epoch_seconds_by_workers: dict[int, float] = field(default_factory=dict)
    plain_workers: int = 0
    plain: list[Study] = field(default_factory=list)
    spatialfeat: dict[str, list[Study]] = field(default_factory=LISTS)
    training_frames_per_second: dict[str, list[float]] = field(default_factory=LISTS)
    network_frames_per_second: dict[str, list[float]] = field(default_factory=LISTS)
    decode_augmented_frames_per_second: list[float] = field(default_factory=list)
    decode_frames_per_second: list[float] = field(default_factory=list)


def measure_size(setup: Setup, weights: Path, frames: FrameSet, epochs: int) -> SizeResult:
    """Measure everything at one frame size, the ways taking turns, so that a drifting machine slows all alike."""
    result = SizeResult(frames.size_text, frames.num_train, frames.count, frames.mean_png_bytes)

    def plain(workers: int, *options: str) -> Study:
        return setup.study(frames, weights, *options, script=setup.plain("plain_finetune.py", workers))

    say(f"{frames.size_text}: choosing the plain way's workers")
    candidates = result.plain_epoch_seconds_by_workers
    for workers in setup.worker_choices:
        candidates[workers] = plain(workers, "--epochs", "1", "--seed", "0").all_epochs_seconds
    result.plain_workers = min(candidates, key=lambda workers: candidates[workers])
    of_all = ("--epochs", str(epochs))
    for repeat in range(setup.repeats):
        say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}")
        options = (*of_all, "--seed", str(repeat))
        result.plain.append(plain(result.plain_workers, *options))
        for precision in setup.precisions:
            more = ("--patience", str(epochs), "--precision", precision)
            result.spatialfeat[precision].append(setup.study(frames, weights, *options, *more))
        for precision in setup.precisions:
            network = ("--weights", weights, "--precision", precision)
            result.training_frames_per_second[precision].append(setup.ceiling("training", *network))
            result.network_frames_per_second[precision].append(setup.ceiling("network", *network))
        images = ("--img-dir", frames.img_dir)
        augmented = setup.ceiling("decode-augmented", "--csv", frames.train_csv, *images)
        result.decode_augmented_frames_per_second.append(augmented)
        result.decode_frames_per_second.append(setup.ceiling("decode", "--csv", frames.val_csv, *images))
    return result


def epoch_ceiling_seconds(
    num_train: int,
    num_val: int,
    device: str,
    *,
    training: float,
    network: float,
    decode_augmented: float,
    decode: float,
) -> float:
    """The shortest epoch that the ceilings (frames/s) allow together, in which every frame is decoded anew."""
    train_rate = together(training, decode_augmented, device=device)
    return num_train / train_rate + num_val / together(network, decode, device=device)


def speed_table(result: SizeResult, device: str) -> str:
    """Both ways: seconds per epoch and how many times faster than the plain way."""
    rows = [[f"(a) plain, {result.plain_workers} workers", *_columns(result.plain), "1", "1", ""]]
    for precision, runs in result.spatialfeat.items():
        mean, later = (
            paired_ratios([getattr(run, name) for run in result.plain], [getattr(run, name) for run in runs])
            for name in ("all_epochs_seconds", "later_epoch_seconds")
        )
        target = TARGETS.get(device)
        aim = f"{target}: {'met' if mean.median >= target else 'MISSED'}" if target else ""
        rows.append([f"(b) spatialfeat {precision}", *_columns(runs), mean.text(), later.text(), aim])
    header = ["", "mean epoch, s", "first epoch, s", "later epochs, s", "whole command, s", "peak MB",
              "b/a, mean epoch", "b/a, later epochs", "target of b/a"]  # fmt: skip
    return markdown_table(header, rows)


def ceiling_table(result: SizeResult, device: str) -> str:
    """The ceilings in frames/s, the epoch that they allow together, and which part of its pace is reached."""
    rows = []
    counts = (result.train_frames, result.frames - result.train_frames)
    for precision, runs in result.spatialfeat.items():
        rates = {
            "training": result.training_frames_per_second[precision],
            "network": result.network_frames_per_second[precision],
            "decode_augmented": result.decode_augmented_frames_per_second,
            "decode": result.decode_frames_per_second,
        }
        allowed = [
            epoch_ceiling_seconds(*counts, device, **dict(zip(rates, values, strict=True)))
            for values in zip(*rates.values(), strict=True)
        ]
        mean = paired_ratios(allowed, [run.all_epochs_seconds / len(run.epochs) for run in runs])
        later = paired_ratios(allowed, [run.later_epoch_seconds for run in runs])
        medians = [f"{statistics.median(values):.1f}" for values in rates.values()]
        rows.append([precision, *medians, f"{statistics.median(allowed):.1f}", mean.text(), later.text()])
    header = ["frames/s", "(c) training step", "(c) network, val", "(c) decode, augmented", "(c) decode, val",
              "epoch allowed, s", "b/c, mean epoch", "b/c, later epochs"]  # fmt: skip
    return markdown_table(header, rows)


def curve_table(result: SizeResult) -> str:
    """Learning curves side by side, epoch by epoch: means over the seeds, and the plain way's range over them."""
    rows = []
    plain = [run.epochs for run in result.plain]
    for precision, runs in result.spatialfeat.items():
        for name in CURVES:
            for epoch, gap in enumerate(compare_curves(plain, [run.epochs for run in runs], name), start=1):
                verdict = "one seed only" if len(runs) == 1 else "yes" if gap.within_noise else "no"
                values = f"{gap.plain:.4f}", f"{gap.fast:.4f}", f"{gap.plain_range:.4f}"
                rows.append([f"{name} {precision}", str(epoch), *values, verdict])
    header = ["learning curve", "epoch", "(a)", "(b)", "range of (a) over seeds", "apart by less than that"]
    return markdown_table(header, rows)


def sections(result: SizeResult, device: str) -> list[str]:
    """The result of one frame size as Markdown."""
    chosen = ", ".join(f"{workers}: {s:.1f} s" for workers, s in result.plain_epoch_seconds_by_workers.items())
    counts = f"{result.train_frames} training and {result.frames - result.train_frames} validation frames"
    return [
        f"### {result.size}, {counts} of {result.mean_png_bytes / MEGABYTE:.2f} MB",
        f"Plain way by workers, one epoch each: {chosen}.",
        speed_table(result, device),
        ceiling_table(result, device),
        curve_table(result),
    ]


def _columns(runs: Sequence[Study]) -> list[str]:
    mean = [run.all_epochs_seconds / len(run.epochs) for run in runs]
    first, later = [run.epochs[0].seconds for run in runs], [run.later_epoch_seconds for run in runs]
    whole = [run.seconds for run in runs]
    peak = megabytes([run.peak_bytes for run in runs])
    return [*(Spread.of(values).text(1) for values in (mean, first, later, whole)), peak]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="epochs per training (default: %(default)s)")
    with parsed_setup(parser, default_frames=250) as (setup, options):
        epochs = 1 if setup.quick else options.epochs
        weights = make_weights(setup.work / "weights.pth")
        results = [measure_size(setup, weights, frames, epochs) for frames in setup.frame_sets()]
        how = setup.how(f", repeat r with seed r, {epochs} epochs, of training and validation")
        parts = [part for result in results for part in sections(result, setup.device)]
        setup.report("finetune", [how, *parts], {"options": setup.recorded, "sizes": results})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
