"""Time `spatialfeat finetune` against the plain way and against its ceilings, on the same frames in one run.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_frames import FrameSet
from bench_setup import (
    Setup,
    machine_facts,
    machine_line,
    markdown_table,
    parsed_setup,
    run_benchmark,
    say,
    write_results,
)
from bench_weights import make_weights
from comparing import Epoch, compare_curves, read_history
from measuring import MEGABYTE, Measured, Spread, both_share_cores, megabytes, paired_ratios, run_measured

TARGETS = {"cpu": 2.5}
"""How many times faster an epoch is to be than the plain way's; on a CPU: one of 2 cores with AVX-512-BF16."""
CURVES = ("train_loss", "val_loss", "val_acc")


@dataclass
class Run:
    """One training: the whole command, and its epochs."""

    measured: Measured
    epochs: list[Epoch]

    @property
    def all_epochs_seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def later_epoch_seconds(self) -> float:
        """A typical epoch after the first, which fills caches and starts workers; of a single epoch, that one."""
        return statistics.median(epoch.seconds for epoch in self.epochs[1:] or self.epochs)


@dataclass
class SizeResult:
    """Everything that was measured at one frame size; lists hold one value per repeat, each with its own seed."""

    frames: FrameSet
    candidates: dict[int, float] = field(default_factory=dict)
    plain_workers: int = 0
    plain: list[Run] = field(default_factory=list)
    fast: dict[str, list[Run]] = field(default_factory=dict)
    training: dict[str, list[float]] = field(default_factory=dict)
    network: dict[str, list[float]] = field(default_factory=dict)
    decode_augmented: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


class Training:
    """Runs both ways from the same initial weights."""

    def __init__(self, setup: Setup, weights: Path, epochs: int) -> None:
        self._setup, self._weights, self._epochs = setup, weights, epochs
        self._empty = setup.work / "elsewhere"  # Without the test CSV that `finetune` would take by itself.
        self._empty.mkdir(exist_ok=True)

    def plain(self, frames: FrameSet, workers: int, seed: int, epochs: int | None = None) -> Run:
        out = self._setup.work / "plain_study"
        command = self._setup.plain("plain_finetune.py", workers, *self._arguments(frames, out, seed, epochs))
        return self._run(command, out)

    def fast(self, frames: FrameSet, precision: str, seed: int) -> Run:
        out = self._setup.work / "study"
        arguments = self._arguments(frames, out, seed, None)
        patience = ("--patience", str(self._epochs))
        return self._run(self._setup.spatialfeat("finetune", *arguments, *patience, "--precision", precision), out)

    def ceilings(self, frames: FrameSet, precisions: Sequence[str], result: SizeResult) -> None:
        """Measure all four ceilings once and append them to `result`."""
        for precision in precisions:
            options = ("--weights", self._weights, "--precision", precision)
            result.training.setdefault(precision, []).append(self._setup.ceiling("training", *options))
            result.network.setdefault(precision, []).append(self._setup.ceiling("network", *options))
        train = ("--csv", frames.train_csv, "--img-dir", frames.img_dir)
        val = ("--csv", frames.val_csv, "--img-dir", frames.img_dir)
        result.decode_augmented.append(self._setup.ceiling("decode-augmented", *train))
        result.decode.append(self._setup.ceiling("decode", *val))

    def _arguments(self, frames: FrameSet, out: Path, seed: int, epochs: int | None) -> list[str | Path]:
        data: list[str | Path] = ["--train-csv", frames.train_csv, "--val-csv", frames.val_csv]
        data += ["--img-dir", frames.img_dir, "--weights", self._weights, "--out", out]
        return [*data, "--epochs", str(epochs or self._epochs), "--seed", str(seed)]

    def _run(self, command: list[str], out: Path) -> Run:
        shutil.rmtree(out, ignore_errors=True)
        measured = run_measured(command, cwd=self._empty)
        return Run(measured, read_history(out / "history.csv"))


def measure_size(setup: Setup, training: Training, frames: FrameSet) -> SizeResult:
    """Measure everything at one frame size, the ways taking turns, so that a drifting machine slows all alike."""
    result = SizeResult(frames)
    say(f"{frames.size_text}: choosing the plain way's workers")
    for workers in setup.worker_choices:
        result.candidates[workers] = training.plain(frames, workers, seed=0, epochs=1).all_epochs_seconds
    result.plain_workers = min(result.candidates, key=lambda workers: result.candidates[workers])
    for repeat in range(setup.repeats):
        say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}")
        result.plain.append(training.plain(frames, result.plain_workers, seed=repeat))
        for precision in setup.precisions:
            result.fast.setdefault(precision, []).append(training.fast(frames, precision, seed=repeat))
        training.ceilings(frames, setup.precisions, result)
    return result


def epoch_ceiling_seconds(
    frames: FrameSet, *, training: float, network: float, decode_augmented: float, decode: float, device: str
) -> float:
    """The shortest epoch that the ceilings (frames/s) allow together, in which every frame is decoded anew.

    On a CPU network and decoding share the cores; on a GPU they run side by side and the slower one sets the pace.
    """
    num_val = frames.count - frames.num_train
    if device.startswith("cpu"):
        train_rate, val_rate = both_share_cores(training, decode_augmented), both_share_cores(network, decode)
    else:
        train_rate, val_rate = min(training, decode_augmented), min(network, decode)
    return frames.num_train / train_rate + num_val / val_rate


def speed_table(result: SizeResult, device: str) -> str:
    """Both ways: seconds per epoch and how many times faster than the plain way."""
    rows = [[f"(a) plain, {result.plain_workers} workers", *_columns(result.plain), "1", "1", ""]]
    for precision, runs in result.fast.items():
        mean = paired_ratios([run.all_epochs_seconds for run in result.plain], [run.all_epochs_seconds for run in runs])
        later = paired_ratios(
            [run.later_epoch_seconds for run in result.plain], [run.later_epoch_seconds for run in runs]
        )
        target = TARGETS.get(device.partition(":")[0])
        aim = f"{target}: {'met' if mean.median >= target else 'MISSED'}" if target else ""
        rows.append([f"(b) spatialfeat {precision}", *_columns(runs), mean.text(), later.text(), aim])
    header = ["", "mean epoch, s", "first epoch, s", "later epochs, s", "whole command, s", "peak MB",
              "b/a, mean epoch", "b/a, later epochs", "target of b/a"]  # fmt: skip
    return markdown_table(header, rows)


def ceiling_table(result: SizeResult, device: str) -> str:
    """The ceilings in frames/s, the epoch that they allow together, and which part of its pace is reached."""
    rows = []
    for precision, runs in result.fast.items():
        rates = {
            "training": result.training[precision],
            "network": result.network[precision],
            "decode_augmented": result.decode_augmented,
            "decode": result.decode,
        }
        allowed = [
            epoch_ceiling_seconds(result.frames, **dict(zip(rates, values, strict=True)), device=device)
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
    for precision, runs in result.fast.items():
        for name in CURVES:
            for epoch, gap in enumerate(compare_curves(plain, [run.epochs for run in runs], name), start=1):
                verdict = "one seed only" if len(runs) == 1 else "yes" if gap.within_noise else "no"
                values = f"{gap.plain:.4f}", f"{gap.fast:.4f}", f"{gap.plain_range:.4f}"
                rows.append([f"{name} {precision}", str(epoch), *values, verdict])
    header = ["learning curve", "epoch", "(a)", "(b)", "range of (a) over seeds", "apart by less than that"]
    return markdown_table(header, rows)


def report(setup: Setup, facts: dict[str, Any], results: list[SizeResult], epochs: int) -> str:
    """The whole result as Markdown."""
    extra = f" spatialfeat with {' '.join(setup.extra_options)}." if setup.extra_options else ""
    how = (
        f"Medians of {setup.repeats} repeats in turn (smallest to largest), repeat r with seed r, {epochs} epochs; "
        f"batches of {setup.batch_size}; files in the page cache; an epoch is training and validation; peak memory is "
        f"PSS summed over all processes, the largest of the repeats.{extra}"
    )
    parts = [f"## bench_finetune\n\n{machine_line(facts)}", how]
    for result in results:
        frames = result.frames
        chosen = ", ".join(f"{workers}: {seconds:.1f} s" for workers, seconds in result.candidates.items())
        counts = f"{frames.num_train} training and {frames.count - frames.num_train} validation frames"
        parts += [
            f"### {frames.size_text}, {counts} of {frames.mean_png_bytes / MEGABYTE:.2f} MB",
            f"Plain way by workers, one epoch each: {chosen}.",
            speed_table(result, setup.device),
            ceiling_table(result, setup.device),
            curve_table(result),
        ]
    return "\n\n".join(parts)


def as_data(setup: Setup, facts: dict[str, Any], results: list[SizeResult]) -> dict[str, Any]:
    """Every single measurement, for later questions."""
    sizes = [
        {
            "size": result.frames.size_text,
            "train_frames": result.frames.num_train,
            "frames": result.frames.count,
            "mean_png_bytes": result.frames.mean_png_bytes,
            "plain_workers": result.plain_workers,
            "plain_epoch_seconds_by_workers": result.candidates,
            "plain": _numbers(result.plain),
            "spatialfeat": {precision: _numbers(runs) for precision, runs in result.fast.items()},
            "training_frames_per_second": result.training,
            "network_frames_per_second": result.network,
            "decode_augmented_frames_per_second": result.decode_augmented,
            "decode_frames_per_second": result.decode,
        }
        for result in results
    ]
    options = {"device": setup.device, "repeats": setup.repeats, "batch_size": setup.batch_size,
               "extra_options": setup.extra_options}  # fmt: skip
    return {"benchmark": "finetune", "machine": facts, "options": options, "sizes": sizes}


def _columns(runs: list[Run]) -> list[str]:
    mean = Spread.of([run.all_epochs_seconds / len(run.epochs) for run in runs])
    first = Spread.of([run.epochs[0].seconds for run in runs])
    later = Spread.of([run.later_epoch_seconds for run in runs])
    whole = Spread.of([run.measured.seconds for run in runs])
    peak = megabytes([run.measured.peak_bytes for run in runs])
    return [*(spread.text(1) for spread in (mean, first, later, whole)), peak]


def _numbers(runs: list[Run]) -> list[dict[str, Any]]:
    return [
        {
            "seconds": run.measured.seconds,
            "peak_bytes": run.measured.peak_bytes,
            "epochs": [epoch._asdict() for epoch in run.epochs],
        }
        for run in runs
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="epochs per training (default: %(default)s)")
    with parsed_setup(parser, default_frames=250) as (setup, options):
        epochs = 1 if setup.quick else options.epochs
        facts = machine_facts(setup.device)
        training = Training(setup, make_weights(setup.work / "weights.pth"), epochs)
        results = [measure_size(setup, training, frames) for frames in setup.frame_sets()]
        text = report(setup, facts, results, epochs)
        write_results(options.out, text, as_data(setup, facts, results))
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
