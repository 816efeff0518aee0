"""Time `spatialfeat extract` and `finetune` by one process and by several, on one core and on all.

See README.md beside this file for what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from bench_frames import FrameSet, link_frames
from bench_setup import Setup, markdown_table, parsed_setup, run_benchmark, say
from bench_weights import make_weights
from measuring import BenchmarkError, Measured, Rate, Spread, megabytes, paired_ratios

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


def measure_size(setup: Setup, frames: FrameSet, chosen: list[Arrangement]) -> dict[Arrangement, Result]:
    """Measure every arrangement, in turn."""
    few = link_frames(frames, setup.work / f"few_{frames.size_text}", setup.batch_size)
    weights = make_weights(setup.work / "weights.pth")
    precision = ("--precision", setup.precisions[0])
    results = {arrangement: Result() for arrangement in chosen}

    def extract(arrangement: Arrangement, some: FrameSet, *shard: str) -> Measured:
        """The training videos, which can be shared out evenly."""
        options, started = (*precision, *shard), arrangement.started
        return setup.extraction([some.train_csv], some.img_dir, weights, *options, started=started)

    for repeat in range(setup.repeats):
        for arrangement, result in results.items():
            say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}: {arrangement.name}")
            if (count := arrangement.shards) > 1:  # One after the other, each alone.
                runs = [extract(arrangement, frames, "--shard", f"{index}/{count}") for index in range(1, count + 1)]
            else:
                runs = [extract(arrangement, frames)]
                result.extract_few.append(extract(arrangement, few).seconds)
                options = ("--epochs", str(EPOCHS), *precision)
                study = setup.study(frames, weights, *options, started=arrangement.started)
                result.later_epoch.append(study.epochs[-1].seconds)
            result.extract.append(max(run.seconds for run in runs))
            result.extract_peak_bytes += [run.peak_bytes for run in runs]
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
        chosen = list(arrangements(setup.device, options.processes or _several(setup.device)))
        how = f"Medians of {setup.repeats} repeats in turn (smallest to largest); {setup.precisions[0]}."
        parts, runs = [how], []
        for frames in setup.frame_sets():
            results = measure_size(setup, frames, chosen)
            trained = frames.num_train
            used = f"{trained} frames extracted; {trained} to train on and {frames.num_val} to validate"
            table = scaling_table(results, trained, setup.batch_size)
            parts += [f"### {frames.size_text}: {used}", table]
            runs += [{"size": frames.size_text, **asdict(key), **asdict(value)} for key, value in results.items()]
        setup.report("scaling", parts, {"runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
