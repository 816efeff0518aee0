"""Time `spatialfeat extract` against the plain way and against its ceilings, on the same frames in one run.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_frames import FrameSet, link_frames
from bench_setup import (
    CHOOSING_FRAMES,
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
from comparing import ALLOWED_COSINE, ALLOWED_RELATIVE, FeatureDifference, compare_features
from measuring import MEGABYTE, UNTOLD, Measured, Rate, Spread, megabytes, paired_ratios, run_measured, together

TARGETS = {"cpu": {"fp32": 1.9, "bf16": 3.3}, "cuda": {"fp32": 10.0, "bf16": 10.0, "fp16": 10.0}}
"""How many times faster than the plain way: on a CPU (one of 2 cores with AVX-512-BF16) the whole command; on a GPU
the steady rate, since there start-up outweighs a benchmark's few frames."""
LONG_FACTOR = 10
QUICK_LONG_FACTOR = 2


@dataclass
class SizeResult:
    """Everything that was measured at one frame size; lists hold one value per repeat."""

    frames: FrameSet
    num_few: int
    candidates: dict[int, float] = field(default_factory=dict)
    plain_workers: int = 0
    plain: list[Measured] = field(default_factory=list)
    plain_few: list[Measured] = field(default_factory=list)
    fast: dict[str, list[Measured]] = field(default_factory=dict)
    fast_few: dict[str, list[Measured]] = field(default_factory=dict)
    network: dict[str, list[float]] = field(default_factory=dict)
    decode: list[float] = field(default_factory=list)
    difference: dict[str, FeatureDifference] = field(default_factory=dict)
    difference_to_reference: dict[str, FeatureDifference] = field(default_factory=dict)


class Extraction:
    """Runs both ways on one machine; outputs of the run before are removed, so every run starts from nothing."""

    def __init__(self, setup: Setup, weights: Path) -> None:
        self._setup, self._weights = setup, weights
        self.plain_dir, self._fast_dir = setup.work / "plain_features", setup.work / "features"

    def plain(self, frames: FrameSet, workers: int, *options: str) -> Measured:
        shutil.rmtree(self.plain_dir, ignore_errors=True)
        csvs = [part for path in frames.csv_paths for part in ("--csv", path)]
        places = ("--img-dir", frames.img_dir, "--weights", self._weights, "--out", self.plain_dir)
        backbone = ("--backbone", self._setup.backbone)
        command = self._setup.plain("plain_extract.py", workers, *csvs, *places, *backbone, *options)
        return run_measured(command, cwd=self._setup.work)

    def fast(self, frames: FrameSet, precision: str) -> Measured:
        shutil.rmtree(self.fast_dir(precision), ignore_errors=True)
        csvs = [part for path in frames.csv_paths for part in ("--csv", path)]
        places = ("--img-dir", frames.img_dir, "--weights", self._weights, "--out", self.fast_dir(precision))
        # Frames prepared in the plain way's proportions, whatever is usual for the network.
        network = ("--backbone", self._setup.backbone, "--preprocessing", "short-side")
        command = self._setup.spatialfeat("extract", *csvs, *places, *network, "--precision", precision)
        return run_measured(command, cwd=self._setup.work)

    def fast_dir(self, precision: str) -> Path:
        return self._fast_dir / precision

    def network(self, precision: str) -> float:
        backbone = ("--backbone", self._setup.backbone)
        return self._setup.ceiling("network", "--weights", self._weights, *backbone, "--precision", precision)

    def decode(self, frames: FrameSet) -> float:
        return self._setup.ceiling("decode", "--csv", frames.train_csv, "--img-dir", frames.img_dir)


def measure_size(setup: Setup, extraction: Extraction, frames: FrameSet) -> SizeResult:
    """Measure everything at one frame size, the ways taking turns, so that a drifting machine slows all alike."""
    few = link_frames(frames, setup.work / f"few_{frames.size_text}", setup.batch_size)
    result = SizeResult(frames, few.count)
    say(f"{frames.size_text}: choosing the plain way's workers")
    extraction.plain(few, 0)  # So that the first candidate is not the only one to read torch and frames from a disk.
    sample = link_frames(frames, setup.work / f"sample_{frames.size_text}", min(frames.count, CHOOSING_FRAMES))
    for workers in setup.worker_choices:
        result.candidates[workers] = extraction.plain(sample, workers).seconds
    result.plain_workers = min(result.candidates, key=lambda workers: result.candidates[workers])
    for repeat in range(setup.repeats):
        say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}")
        result.plain_few.append(extraction.plain(few, result.plain_workers))
        result.plain.append(extraction.plain(frames, result.plain_workers))
        for precision in setup.precisions:
            result.fast_few.setdefault(precision, []).append(extraction.fast(few, precision))
            result.fast.setdefault(precision, []).append(extraction.fast(frames, precision))
        for precision in setup.precisions:
            result.network.setdefault(precision, []).append(extraction.network(precision))
        result.decode.append(extraction.decode(frames))
    for precision in setup.precisions:
        result.difference[precision] = compare_features(extraction.plain_dir, extraction.fast_dir(precision))
    extraction.plain(frames, result.plain_workers, "--reference")
    for precision in setup.precisions:
        result.difference_to_reference[precision] = compare_features(
            extraction.plain_dir, extraction.fast_dir(precision)
        )
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
    for precision, runs in result.fast.items():
        ratio = paired_ratios(plain_seconds, [run.seconds for run in runs])
        rate = _rate(result, runs, result.fast_few[precision])
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
    decode = statistics.median(result.decode)
    for precision, networks in result.network.items():
        allowed = [
            together(net, dec, device=device.partition(":")[0])
            for net, dec in zip(networks, result.decode, strict=True)
        ]
        whole = paired_ratios([result.frames.count / run.seconds for run in result.fast[precision]], allowed)
        rate = _rate(result, result.fast[precision], result.fast_few[precision])
        steady = f"{rate.frames_per_second / statistics.median(allowed):.2f}" if rate else UNTOLD
        network = f"{statistics.median(networks):.1f}"
        rows.append([precision, network, f"{decode:.1f}", f"{statistics.median(allowed):.1f}", whole.text(), steady])
    header = ["frames/s", "(c) network alone", "(c) decode alone", "both together", "b/c, whole", "b/c, steady"]
    return markdown_table(header, rows)


def difference_table(result: SizeResult) -> str:
    """How far the features are from the plain way's: as it was timed, and from the same pixels in true float32."""
    rows = []
    for precision in result.difference:
        as_timed, reference = result.difference[precision], result.difference_to_reference[precision]
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


def report(setup: Setup, facts: dict[str, Any], results: list[SizeResult], memory: str) -> str:
    """The whole result as Markdown."""
    parts = [f"## bench_extract\n\n{machine_line(facts)}", _how_text(setup)]
    for result in results:
        frames = result.frames
        chosen = ", ".join(f"{workers}: {seconds:.1f} s" for workers, seconds in result.candidates.items())
        parts += [
            f"### {frames.size_text}, {frames.count} frames of {frames.mean_png_bytes / MEGABYTE:.2f} MB",
            f"Plain way by workers, {min(frames.count, CHOOSING_FRAMES)} frames, one run each: {chosen}.",
            speed_table(result, setup.device),
            ceiling_table(result, setup.device),
            difference_table(result),
        ]
    return "\n\n".join([*parts, memory])


def as_data(setup: Setup, facts: dict[str, Any], results: list[SizeResult], peaks: Any) -> dict[str, Any]:
    """Every single measurement, for later questions."""
    sizes = [
        {
            "size": result.frames.size_text,
            "frames": result.frames.count,
            "few_frames": result.num_few,
            "mean_png_bytes": result.frames.mean_png_bytes,
            "plain_workers": result.plain_workers,
            "plain_seconds_by_workers": result.candidates,
            "plain": _numbers(result.plain),
            "plain_few": _numbers(result.plain_few),
            "spatialfeat": {precision: _numbers(runs) for precision, runs in result.fast.items()},
            "spatialfeat_few": {precision: _numbers(runs) for precision, runs in result.fast_few.items()},
            "network_frames_per_second": result.network,
            "decode_frames_per_second": result.decode,
            "difference": {precision: value._asdict() for precision, value in result.difference.items()},
            "difference_to_reference": {
                precision: value._asdict() for precision, value in result.difference_to_reference.items()
            },
        }
        for result in results
    ]
    options = {"backbone": setup.backbone, "device": setup.device, "repeats": setup.repeats,
               "batch_size": setup.batch_size, "extra_options": setup.extra_options}  # fmt: skip
    return {"benchmark": "extract", "machine": facts, "options": options, "sizes": sizes, "memory": peaks}


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
    return [seconds.text(1), f"{result.frames.count / seconds.median:.1f}", *steady, peak]


def _rate(result: SizeResult, many: list[Measured], few: list[Measured]) -> Rate | None:
    medians = [statistics.median(run.seconds for run in runs) for runs in (many, few)]
    return Rate.of(medians[0], result.frames.count, medians[1], result.num_few)


def _numbers(runs: list[Measured]) -> list[dict[str, Any]]:
    return [{"seconds": run.seconds, "peak_bytes": run.peak_bytes} for run in runs]


def _how_text(setup: Setup) -> str:
    extra = f" spatialfeat with {' '.join(setup.extra_options)}." if setup.extra_options else ""
    return (
        f"{setup.backbone}. Medians of {setup.repeats} repeats in turn (smallest to largest); batches of "
        f"{setup.batch_size}; files in the page cache; peak memory is PSS summed over all processes, the largest of "
        f"the repeats.{extra}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with parsed_setup(parser, default_frames=400) as (setup, options):
        facts = machine_facts(setup.device)
        extraction = Extraction(setup, make_weights(setup.work / "weights.pth", backbone=setup.backbone))
        results = [measure_size(setup, extraction, frames) for frames in setup.frame_sets()]
        smallest = min((result.frames for result in results), key=lambda frames: frames.width * frames.height)
        peaks = measure_memory(setup, extraction, smallest)
        memory = memory_text(peaks, smallest.size_text, setup.precisions[-1])
        text = report(setup, facts, results, memory)
        write_results(options.out, text, as_data(setup, facts, results, peaks))
    wrong = [
        f"{result.frames.size_text} {precision}"
        for result in results
        for precision, difference in result.difference_to_reference.items()
        if not difference.allowed(precision)
    ]
    if wrong:
        say(f"error: features differ from the plain way's by more than allowed: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
