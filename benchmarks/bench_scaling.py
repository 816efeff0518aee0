"""Time `spatialfeat extract` and `finetune` by one process and by several, on one core and on all.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from bench_frames import FrameSet, link_frames
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
from comparing import read_history
from measuring import BenchmarkError, Measured, Rate, Spread, megabytes, paired_ratios, run_measured

from spatialfeat.device import usable_cores

EPOCHS = 2


@dataclass(frozen=True)
class Arrangement:
    """How a command is started: by so many processes, on so many cores (None: all), or as so many jobs, each alone."""

    name: str
    cores: int | None = None
    processes: int = 1
    shards: int = 1

    def started(self, line: list[str]) -> list[str]:
        """The command line `python -m spatialfeat ...`, started in this way."""
        if self.processes > 1:
            python, *module = line
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
            line = [python, *launcher, *module]
        return line if self.cores is None else ["taskset", "--cpu-list", f"0-{self.cores - 1}", *line]


@dataclass
class Result:
    """Seconds in one arrangement, one value per repeat; shards have `extract` alone."""

    extract: list[float] = field(default_factory=list)
    extract_few: list[float] = field(default_factory=list)
    later_epoch: list[float] = field(default_factory=list)
    extract_peak_bytes: list[int | None] = field(default_factory=list)


def arrangements(device: str, several: list[int]) -> Iterator[Arrangement]:
    """What is measured; the others are compared with the first."""
    cores = usable_cores()
    yield Arrangement(f"1 process, {cores} cores" if device == "cpu" else "1 process")
    if device == "cpu" and cores > 1:
        yield Arrangement("1 process, 1 core", cores=1)
    for count in several:
        yield Arrangement(f"{count} processes", processes=count)
        yield Arrangement(f"{count} jobs, a shard each: the slowest", shards=count)


class Scaling:
    """Runs both commands on one set of frames; every run starts from nothing."""

    def __init__(self, setup: Setup, frames: FrameSet) -> None:
        self._setup, self._frames = setup, frames
        self._few = link_frames(frames, setup.work / f"few_{frames.size_text}", setup.batch_size)
        self._weights = make_weights(setup.work / "weights.pth")

    def measure(self, arrangement: Arrangement, result: Result) -> None:
        """One repeat."""
        extractions = self._extract(arrangement, self._frames)
        result.extract.append(max(run.seconds for run in extractions))
        result.extract_peak_bytes += [run.peak_bytes for run in extractions]
        if arrangement.shards == 1:
            result.extract_few.append(self._extract(arrangement, self._few)[0].seconds)
            result.later_epoch.append(self._later_epoch(arrangement))

    def _extract(self, arrangement: Arrangement, frames: FrameSet) -> list[Measured]:
        """The training videos, which can be shared out evenly. Shards run one after the other, each alone."""
        out = self._setup.work / "features"
        shutil.rmtree(out, ignore_errors=True)
        places = ("--csv", frames.train_csv, "--img-dir", frames.img_dir, "--weights", self._weights, "--out", out)
        count = arrangement.shards
        shards = [("--shard", f"{index}/{count}") for index in range(1, count + 1)] if count > 1 else [()]
        return [self._run(arrangement, "extract", *places, *shard) for shard in shards]

    def _later_epoch(self, arrangement: Arrangement) -> float:
        """Seconds of the last epoch: training and validation."""
        frames, out = self._frames, self._setup.work / "study"
        shutil.rmtree(out, ignore_errors=True)
        data = ("--train-csv", frames.train_csv, "--val-csv", frames.val_csv, "--img-dir", frames.img_dir)
        self._run(arrangement, "finetune", *data, "--weights", self._weights, "--epochs", str(EPOCHS), "--out", out)
        return read_history(out / "history.csv")[-1].seconds

    def _run(self, arrangement: Arrangement, *arguments: str | Path) -> Measured:
        line = self._setup.spatialfeat(*arguments, "--precision", self._setup.precisions[0])
        return run_measured(arrangement.started(line), cwd=self._setup.work)


def measure_size(setup: Setup, frames: FrameSet, chosen: list[Arrangement]) -> dict[Arrangement, Result]:
    """Measure every arrangement, in turn."""
    scaling = Scaling(setup, frames)
    results = {arrangement: Result() for arrangement in chosen}
    for repeat in range(setup.repeats):
        for arrangement, result in results.items():
            say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}: {arrangement.name}")
            scaling.measure(arrangement, result)
    return results


def scaling_table(results: dict[Arrangement, Result], num_frames: int, num_few: int) -> str:
    """A line per arrangement. Ratios are to the first one, repeat by repeat."""
    base = next(iter(results.values()))
    rows = []
    for arrangement, result in results.items():
        steady, epoch = ("", ""), ("", "")
        if arrangement.shards == 1:
            rate, of_base = (_steady(one, num_frames, num_few) for one in (result, base))
            steady = (f"{rate:.1f}", f"{rate / of_base:.2f}")
            epoch = (Spread.of(result.later_epoch).text(1), paired_ratios(base.later_epoch, result.later_epoch).text())
        whole = (Spread.of(result.extract).text(1), paired_ratios(base.extract, result.extract).text())
        rows.append([arrangement.name, *whole, *steady, megabytes(result.extract_peak_bytes), *epoch])
    header = ["", "extract, s", "times as fast", "steady frames/s", "times as fast", "peak MB",
              "finetune, s an epoch", "times as fast"]  # fmt: skip
    return markdown_table(header, rows)


def _steady(result: Result, num_frames: int, num_few: int) -> float:
    long, short = statistics.median(result.extract), statistics.median(result.extract_few)
    rate = Rate.of(long, num_frames, short, num_few)
    if rate is None:
        raise BenchmarkError("extracting all frames took no longer than a few; pass more --frames")
    return rate.frames_per_second


def _several(device: str) -> list[int]:
    """2, 4, 8, ... as many as there are GPUs; on a CPU, two."""
    most = 2 if device == "cpu" else torch.cuda.device_count()
    return [2**power for power in range(1, most.bit_length())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, help="how many (default: 2 on a CPU, else 2, 4, ... GPUs)")
    with parsed_setup(parser, default_frames=500) as (setup, options):
        facts = machine_facts(setup.device)
        chosen = list(arrangements(setup.device, options.processes or _several(setup.device)))
        how = f"Medians of {setup.repeats} repeats in turn (smallest to largest); {setup.precisions[0]}."
        parts, runs = [f"## bench_scaling\n\n{machine_line(facts)}", how], []
        for frames in setup.frame_sets():
            results = measure_size(setup, frames, chosen)
            trained = frames.num_train
            used = f"{trained} frames extracted; {trained} to train on and {frames.count - trained} to validate"
            table = scaling_table(results, trained, setup.batch_size)
            parts += [f"### {frames.size_text}: {used}", table]
            runs += [{"size": frames.size_text, **asdict(key), **asdict(value)} for key, value in results.items()]
        write_results(options.out, "\n\n".join(parts), {"benchmark": "scaling", "machine": facts, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
