"""Time `spatialfeat extract` against the plain way and against its ceilings, on the same frames in one run.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench_frames import FrameSet, link_frames
from bench_setup import CHOOSING_FRAMES, Setup, markdown_table, parsed_setup, run_benchmark, say
from bench_weights import make_weights
from comparing import ALLOWED_COSINE, ALLOWED_RELATIVE, FeatureDifference, compare_features
from measuring import MEGABYTE, UNTOLD, Measured, Rate, Spread, megabytes, paired_ratios, run_measured, together

TARGETS = {"cpu": {"fp32": 1.9, "bf16": 3.3}, "cuda": {"fp32": 10.0, "bf16": 10.0, "fp16": 10.0}}
"""How many times faster than the plain way: on a CPU (one of 2 cores with AVX-512-BF16) the whole command; on a GPU
the steady rate, since there start-up outweighs a benchmark's few frames."""
LONG_FACTOR = 10
QUICK_LONG_FACTOR = 2
LISTS: Any = partial(defaultdict, list)


@dataclass
class SizeResult:
    """Everything that was measured at one frame size; lists hold one value per repeat."""

    size: str
    frames: int
    few_frames: int
    mean_png_bytes: int
    plain_seconds_by_workers: dict[int, float] = field(default_factory=dict)
    plain_workers: int = 0
    plain: list[Measured] = field(default_factory=list)
    plain_few: list[Measured] = field(default_factory=list)
    spatialfeat: dict[str, list[Measured]] = field(default_factory=LISTS)
    spatialfeat_few: dict[str, list[Measured]] = field(default_factory=LISTS)
    network_frames_per_second: dict[str, list[float]] = field(default_factory=LISTS)
    decode_frames_per_second: list[float] = field(default_factory=list)
    difference: dict[str, FeatureDifference] = field(default_factory=dict)
    difference_to_reference: dict[str, FeatureDifference] = field(default_factory=dict)


class Extraction:
    """Runs both ways on one machine; outputs of the run before are removed, so every run starts from nothing."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._weights = make_weights(setup.work / "weights.pth", backbone=setup.backbone)
        self._backbone = ("--backbone", setup.backbone)
        self._plain_dir = setup.work / "plain_features"

    def plain(self, frames: FrameSet, workers: int, *options: str) -> Measured:
        shutil.rmtree(self._plain_dir, ignore_errors=True)
        csvs = [part for path in frames.csv_paths for part in ("--csv", path)]
        places = ("--img-dir", frames.img_dir, "--weights", self._weights, "--out", self._plain_dir)
        command = self._setup.plain("plain_extract.py", workers, *csvs, *places, *self._backbone, *options)
        return run_measured(command, cwd=self._setup.work)

    def fast(self, frames: FrameSet, precision: str) -> Measured:
        # Frames prepared in the plain way's proportions, whatever is usual for the network.
        options = (*self._backbone, "--preprocessing", "short-side", "--precision", precision)
        out = self._fast_dir(precision)
        return self._setup.extraction(frames.csv_paths, frames.img_dir, self._weights, *options, out=out)

    def differences(self) -> dict[str, FeatureDifference]:
        """Of the last features of every precision to the plain way's last ones."""
        return {name: compare_features(self._plain_dir, self._fast_dir(name)) for name in self._setup.precisions}

    def network(self, precision: str) -> float:
        return self._setup.ceiling("network", "--weights", self._weights, *self._backbone, "--precision", precision)

    def _fast_dir(self, precision: str) -> Path:
        return self._setup.work / "features" / precision


def measure_size(setup: Setup, extraction: Extraction, frames: FrameSet) -> SizeResult:
    """Measure everything at one frame size, the ways taking turns, so that a drifting machine slows all alike."""
    few = link_frames(frames, setup.work / f"few_{frames.size_text}", setup.batch_size)
    result = SizeResult(frames.size_text, frames.count, few.count, frames.mean_png_bytes)
    say(f"{frames.size_text}: choosing the plain way's workers")
    extraction.plain(few, 0)  # So that the first candidate is not the only one to read torch and frames from a disk.
    sample = link_frames(frames, setup.work / f"sample_{frames.size_text}", min(frames.count, CHOOSING_FRAMES))
    candidates = result.plain_seconds_by_workers
    for workers in setup.worker_choices:
        candidates[workers] = extraction.plain(sample, workers).seconds
    result.plain_workers = min(candidates, key=lambda workers: candidates[workers])
    for repeat in range(setup.repeats):
        say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}")
        result.plain_few.append(extraction.plain(few, result.plain_workers))
        result.plain.append(extraction.plain(frames, result.plain_workers))
        for precision in setup.precisions:
            result.spatialfeat_few[precision].append(extraction.fast(few, precision))
            result.spatialfeat[precision].append(extraction.fast(frames, precision))
        for precision in setup.precisions:
            result.network_frames_per_second[precision].append(extraction.network(precision))
        decode = setup.ceiling("decode", "--csv", frames.train_csv, "--img-dir", frames.img_dir)
        result.decode_frames_per_second.append(decode)
    result.difference = extraction.differences()
    extraction.plain(frames, result.plain_workers, "--reference")
    result.difference_to_reference = extraction.differences()
    return result


def measure_memory(setup: Setup, extraction: Extraction, frames: FrameSet) -> list[tuple[int, int | None]]:
    """(frames, peak bytes) of `extract` for a run and one of many times its length, in the last precision."""
    factor = QUICK_LONG_FACTOR if setup.quick else LONG_FACTOR
    peaks = []
    for count in (frames.count, factor * frames.count):
        say(f"{frames.size_text}: memory of {count} frames")
        long = link_frames(frames, setup.work / "long", count)
        peaks.append((count, extraction.fast(long, setup.precisions[-1]).peak_bytes))
        shutil.rmtree(long.folder)
    return peaks


def speed_table(result: SizeResult, device: str) -> str:
    """Both ways: whole command, steady rate, start-up, memory, and how many times faster than the plain way."""
    plain_seconds = [run.seconds for run in result.plain]
    plain_rate = _rate(result, result.plain, result.plain_few)
    rows = [[f"(a) plain, {result.plain_workers} workers", *_columns(result, result.plain, plain_rate), "1", "1", ""]]
    for precision, runs in result.spatialfeat.items():
        ratio = paired_ratios(plain_seconds, [run.seconds for run in runs])
        rate = _rate(result, runs, result.spatialfeat_few[precision])
        steady = rate.frames_per_second / plain_rate.frames_per_second if rate and plain_rate else None
        verdict = _verdict(precision, device, whole=ratio.median, steady=steady)
        ratios = ratio.text(), UNTOLD if steady is None else f"{steady:.2f}"
        rows.append([f"(b) spatialfeat {precision}", *_columns(result, runs, rate), *ratios, verdict])
    header = ["", "whole command, s", "frames/s", "steady frames/s", "start-up, s", "peak MB",
              "b/a, whole", "b/a, steady", "target of b/a"]  # fmt: skip
    return markdown_table(header, rows)


def ceiling_table(result: SizeResult, device: str) -> str:
    """The ceilings, what they allow together, and which part of it the command reaches."""
    rows = []
    decoding = result.decode_frames_per_second
    for precision, networks in result.network_frames_per_second.items():
        allowed = [together(*pair, device=device) for pair in zip(networks, decoding, strict=True)]
        runs = result.spatialfeat[precision]
        whole = paired_ratios([result.frames / run.seconds for run in runs], allowed)
        rate = _rate(result, runs, result.spatialfeat_few[precision])
        steady = f"{rate.frames_per_second / statistics.median(allowed):.2f}" if rate else UNTOLD
        medians = [f"{statistics.median(rates):.1f}" for rates in (networks, decoding, allowed)]
        rows.append([precision, *medians, whole.text(), steady])
    header = ["frames/s", "(c) network alone", "(c) decode alone", "both together", "b/c, whole", "b/c, steady"]
    return markdown_table(header, rows)


def difference_table(result: SizeResult) -> str:
    """How far the features are from the plain way's: as it was timed, and from the same pixels in true float32."""
    rows = []
    for precision, as_timed in result.difference.items():
        reference = result.difference_to_reference[precision]
        allowed = f"{ALLOWED_RELATIVE[precision]:.0e}, {ALLOWED_COSINE}"
        rows.append([f"{precision} against (a)", *_difference_columns(as_timed), "", ""])
        verdict = "yes" if reference.allowed(precision) else "NO"
        rows.append([f"{precision} against (a), same pixels", *_difference_columns(reference), allowed, verdict])
    header = ["features", "largest relative norm", "mean", "smallest cosine", "allowed", "within"]
    return markdown_table(header, rows)


def memory_text(peaks: list[tuple[int, int | None]], size_text: str, precision: str) -> str:
    """One line: is the memory flat in the number of frames?"""
    parts = [f"{count} frames {megabytes([peak])} MB" for count, peak in peaks]
    return (
        f"Peak memory of extract, {precision}, {size_text}: {', '.join(parts)} (target: flat, under 1500 MB on a CPU)."
    )


def sections(result: SizeResult, device: str) -> list[str]:
    """The result of one frame size as Markdown."""
    chosen = ", ".join(f"{workers}: {seconds:.1f} s" for workers, seconds in result.plain_seconds_by_workers.items())
    return [
        f"### {result.size}, {result.frames} frames of {result.mean_png_bytes / MEGABYTE:.2f} MB",
        f"Plain way by workers, {min(result.frames, CHOOSING_FRAMES)} frames, one run each: {chosen}.",
        speed_table(result, device),
        ceiling_table(result, device),
        difference_table(result),
    ]


def _verdict(precision: str, device: str, *, whole: float, steady: float | None) -> str:
    """`1.9: met`, `10.0 steady: MISSED`, or nothing where there is no target."""
    target = TARGETS[device.partition(":")[0]].get(precision)
    if target is None:
        return ""
    reached, which = (whole, "") if device == "cpu" else (steady, " steady")
    return f"{target}{which}: {UNTOLD if reached is None else 'met' if reached >= target else 'MISSED'}"


def _difference_columns(value: FeatureDifference) -> tuple[str, str, str]:
    return f"{value.max_relative:.2e}", f"{value.mean_relative:.2e}", f"{value.min_cosine:.7f}"


def _columns(result: SizeResult, runs: list[Measured], rate: Rate | None) -> list[str]:
    seconds = Spread.of([run.seconds for run in runs])
    steady = (f"{rate.frames_per_second:.1f}", f"{rate.startup_seconds:.1f}") if rate else (UNTOLD, UNTOLD)
    peak = megabytes([run.peak_bytes for run in runs])
    return [seconds.text(1), f"{result.frames / seconds.median:.1f}", *steady, peak]


def _rate(result: SizeResult, many: list[Measured], few: list[Measured]) -> Rate | None:
    medians = [statistics.median(run.seconds for run in runs) for runs in (many, few)]
    return Rate.of(medians[0], result.frames, medians[1], result.few_frames)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with parsed_setup(parser, default_frames=400) as (setup, _):
        extraction = Extraction(setup)
        sets = list(setup.frame_sets())
        results = [measure_size(setup, extraction, frames) for frames in sets]
        smallest = min(sets, key=lambda frames: frames.width * frames.height)
        peaks = measure_memory(setup, extraction, smallest)
        parts = [part for result in results for part in sections(result, setup.device)]
        parts = [f"{setup.backbone}. {setup.how('')}", *parts]
        parts.append(memory_text(peaks, smallest.size_text, setup.precisions[-1]))
        setup.report("extract", parts, {"options": setup.recorded, "sizes": results, "memory": peaks})
    wrong = [
        f"{result.size} {precision}"
        for result in results
        for precision, difference in result.difference_to_reference.items()
        if not difference.allowed(precision)
    ]
    if wrong:
        say(f"error: features differ from the plain way's by more than allowed: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
