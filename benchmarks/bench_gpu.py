"""Measure on a GPU, within minutes, how fast frames get through: finetune and extract, with and without a cache.

The table of both ways: an epoch and an extraction, at two frame sizes, beside the plain scripts with their best number
of workers and the network alone. spatialfeat's parts run in this process, so that start-up is paid once; the plain
scripts are commands, and tell the seconds of their epochs themselves. What matters most comes first; what the time does
not suffice for is listed as not measured. Results are written after every part.

See README.md beside this file for what is compared. `--device cpu --quick` rehearses all of it on a few small frames.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ceilings
import torch
from bench_frames import NUM_PHASES, FrameSet, as_jpeg, make_frames
from bench_setup import BENCHMARKS_DIR, machine_facts, markdown_table, run_benchmark, say, write_results
from bench_weights import make_weights
from comparing import read_history
from measuring import UNTOLD, Rate, run_measured
from tqdm import tqdm

from spatialfeat import console
from spatialfeat.config import CPU_DECODER, JPEG_DECODERS, WEIGHTS_NAME, ExtractConfig, FinetuneConfig
from spatialfeat.data import images
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.extract import extract
from spatialfeat.finetune import finetune
from spatialfeat.network.inference import FrameOutputs
from spatialfeat.network.weights import save_weights
from spatialfeat.training import trainer

LIMIT_GB = 40.0
FEW_FRAMES = 64
"""An extraction of so few is start-up: what it takes less than a long one is the rate between the two."""
STEADY_FROM = 3
"""The first third of the batches does not count as steady: workers have loaded some of them during the start."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: frames of the two sizes (per spatialfeat run, per plain run), and how."""

    device: str
    sizes: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    plain_frames: tuple[int, ...]
    max_drawn: int
    image_size_px: int
    batch_size: int
    precision: str
    workers: int | None
    plain_workers: tuple[int, ...]
    ceiling_seconds: float


FULL = Plan(
    device="cuda",
    sizes=((456, 256), (1280, 720)),
    frames=(12_000, 5_000),
    plain_frames=(4_000, 1_250),
    max_drawn=300,
    image_size_px=224,
    batch_size=32,
    precision="bf16",
    workers=None,
    plain_workers=(16, 8),
    ceiling_seconds=2.0,
)
REHEARSAL = Plan(
    device="cpu",
    sizes=((96, 64), (160, 90)),
    frames=(35, 35),
    plain_frames=(35, 35),
    max_drawn=35,
    image_size_px=64,
    batch_size=8,
    precision="fp32",
    workers=1,
    plain_workers=(0,),
    ceiling_seconds=0.1,
)


@dataclass
class Results:
    """What has been measured: rows of (what, size, frames/s, remark); written anew after every part."""

    out: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, what: str, size: str, frames_per_second: float | None, **more: Any) -> None:
        rate = None if frames_per_second is None else round(frames_per_second, 1)
        self.rows.append({"what": what, "size": size, "frames_per_second": rate, **more})
        say(f"   {what}, {size}: {UNTOLD if rate is None else f'{rate:.0f} frames/s'} {more or ''}")

    def write(self) -> str:
        """Write what there is; returned as Markdown."""
        known = ("what", "size", "frames_per_second")
        rows = [
            [
                str(row["what"]),
                str(row["size"]),
                UNTOLD if row["frames_per_second"] is None else f"{row['frames_per_second']:,.0f}",
                ", ".join(f"{name} {value}" for name, value in row.items() if name not in known),
            ]
            for row in self.rows
        ]
        parts = [
            "One run of each, files in the page cache, most frames hard links to a few hundred drawn ones. An epoch is "
            "training and validation; `later` epochs come after the first, which starts workers and fills the cache. "
            "A steady rate is that of the last two thirds of the batches, until the last has come back from the "
            "network. In seconds: the whole call; of it the look at the files, and what came after the last batch; the "
            "first batch, from the start of the call. between_runs: frames/s by which a run over all takes longer than "
            "one over few, with the look at the files, the graph's recording and the writing.",
            markdown_table(["", "frames", "frames/s", "more"], rows or [["nothing", "", "", ""]]),
        ]
        if self.failed:
            parts.append(f"**FAILED**: {'; '.join(self.failed)}.")
        if self.missing:
            parts.append(f"Not measured: {'; '.join(self.missing)}.")
        data = {"rows": self.rows, "not_measured": self.missing, "failed": self.failed}
        return write_results(self.out, "gpu", self.facts, parts, data, shown=False)


class Bench:
    """The parts, on frames of both sizes."""

    def __init__(self, plan: Plan, work: Path, results: Results) -> None:
        self.plan, self.work, self.results = plan, work, results
        self.weights = make_weights(work / "weights.pth", image_size_px=plan.image_size_px)
        save_weights(  # Again, with their description: what reads them would warn each time that there is none.
            self.weights,
            torch.load(self.weights, weights_only=True),
            phase_names=tuple(f"phase_{phase}" for phase in range(NUM_PHASES)),
            preprocessing=Preprocessing.for_image_size(plan.image_size_px),
            training={},
        )
        self.sets = [
            make_frames(work / f"{width}x{height}", width=width, height=height, count=count, seed=0,
                        max_drawn=plan.max_drawn)
            for (width, height), count in zip(plan.sizes, plan.frames, strict=True)
        ]  # fmt: skip

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Names and calls, the most important first."""
        small, large = self.sets
        yield "finetune, small frames, cache", lambda: self.finetune(small, cache=True, epochs=3)
        yield "extract, small frames, cache", lambda: self.extract(small, cache=True)
        yield "extract, small frames", lambda: self.extract(small)
        yield "finetune, large frames, cache", lambda: self.finetune(large, cache=True, epochs=3)
        yield "extract, large frames, cache", lambda: self.extract(large, cache=True)
        yield "finetune, small frames", lambda: self.finetune(small)
        yield "finetune without CUDA graphs", lambda: self.finetune(small, cache=True, SPATIALFEAT_CUDA_GRAPHS="0")
        yield "extract, large frames", lambda: self.extract(large, most=2_500)
        yield "finetune, large frames", lambda: self.finetune(large, epochs=1)
        for decoder in self.jpeg_decoders:
            yield f"extract, large JPEG frames, by {decoder}", partial(self.extract, large, jpeg=decoder)
            yield f"finetune, large JPEG frames, by {decoder}", partial(self.finetune, large, jpeg=decoder)
            yield f"extract, small JPEG frames, by {decoder}", partial(self.extract, small, jpeg=decoder)
            yield f"finetune, small JPEG frames, by {decoder}", partial(self.finetune, small, jpeg=decoder)
        for frames, count in zip(self.sets, self.plan.plain_frames, strict=True):
            yield f"plain extract, {frames.size_text}", partial(self.plain_extract, frames, count)
        for frames, count in zip(self.sets, self.plan.plain_frames, strict=True):
            yield f"plain finetune, {frames.size_text}", partial(self.plain, frames, count)
        yield "network alone", self.network
        yield "finetune, augmented by workers", lambda: self.finetune(small, cache=True, SPATIALFEAT_AUGMENT="workers")
        yield "finetune fp32", lambda: self.finetune(small, cache=True, precision="fp32")
        if images.decoder_name() != "Pillow":
            yield "finetune by Pillow", lambda: self._by_pillow(self.finetune, small)
            yield "extract by Pillow", lambda: self._by_pillow(self.extract, small)
        yield "start-up", self.start_up

    @property
    def jpeg_decoders(self) -> tuple[str, ...]:
        return JPEG_DECODERS[::-1] if self.plan.device.startswith("cuda") else (CPU_DECODER,)

    def finetune(
        self,
        frames: FrameSet,
        *,
        cache: bool = False,
        epochs: int = 2,
        precision: str | None = None,
        jpeg: str | None = None,
        **switches: str,
    ) -> None:
        """Train, and tell the rates of the last epoch: all of it, and its two parts. jpeg: what decodes JPEG frames."""
        plan, out = self.plan, self.work / "study"
        shutil.rmtree(out, ignore_errors=True)
        config = FinetuneConfig(
            train_csv=frames.train_csv,
            val_csv=frames.val_csv,
            test_csv=None,
            img_dir=frames.img_dir if jpeg is None else self._jpeg(frames).img_dir,
            jpeg_decoder=jpeg or CPU_DECODER,
            weights=str(self.weights),
            image_size_px=plan.image_size_px,
            batch_size=plan.batch_size,
            epochs=epochs,
            workers=plan.workers,
            device=plan.device,
            precision=precision or plan.precision,
            cache_dir=self._cache_dir(frames) if cache else None,
            cache_limit_gb=LIMIT_GB,
            tensorboard=False,
            out_dir=out,
        )
        on_gpu = plan.device.startswith("cuda")
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with mock.patch.dict(os.environ, switches), _parts_timed() as seconds:
            history = finetune(config).history
        count = frames.count
        rates: dict[str, Any] = {
            "decoder": images.decoder_name(),
            "first_epoch": round(count / history[0].seconds),
            "training": round(frames.num_train / seconds["train_one_epoch"][-1]),
            "validation": round(frames.num_val / seconds["validate"][-1]),
            "train_loss": round(history[-1].train_loss, 4),
        }
        if on_gpu:
            rates["gpu_GB"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
        options = [*(["--cache"] if cache else []), *([f"JPEG by {jpeg}"] if jpeg else [])]
        name = " ".join(["finetune", config.precision, *options, *switches])
        later = "later epoch" if epochs > 1 else "epoch"
        self.results.add(f"{name}: {later}", frames.size_text, count / history[-1].seconds, **rates)

    def extract(
        self, frames: FrameSet, *, cache: bool = False, most: int | None = None, jpeg: str | None = None
    ) -> None:
        """Extract few frames and many: the steady rate, the whole call, and the rate between the two."""
        most = min(most or frames.num_train, frames.num_train)
        seconds, counts = [], (min(FEW_FRAMES, most // 4), most)
        for count in counts:
            out = self.work / "features"
            shutil.rmtree(out, ignore_errors=True)
            config = ExtractConfig(
                csvs=(str(self._first_rows(frames.train_csv, count)),),
                img_dir=frames.img_dir if jpeg is None else self._jpeg(frames).img_dir,
                jpeg_decoder=jpeg or CPU_DECODER,
                weights=self.work / "study" / WEIGHTS_NAME,
                batch_size=self.plan.batch_size,
                workers=self.plan.workers,
                device=self.plan.device,
                precision=self.plan.precision,
                cache_dir=self._cache_dir(frames) if cache else None,
                cache_limit_gb=LIMIT_GB,
                out_dir=out,
            )
            with _extraction_timed() as timeline:
                start = time.perf_counter()
                extract(config)
                seconds.append(time.perf_counter() - start)
        few, many = counts
        more: dict[str, Any] = {
            "decoder": images.decoder_name(),
            "whole_call_s": round(seconds[1], 2),
            "few_frames_s": round(seconds[0], 2),
            "look_s": round(timeline.look_seconds, 2),
            "first_batch_s": round(timeline.batches[0][0] - start, 2),
            "after_last_s": round(start + seconds[1] - timeline.batches[-1][0], 2),
            "frames": many,
        }
        if cache:
            more["decoded"] = json.loads((out / "run.json").read_text())["cache"]["frames_decoded"]
        if between := Rate.of(seconds[1], many, seconds[0], few):
            more["between_runs"] = round(between.frames_per_second)
        how = f"{' --cache' if cache else ''}{f' JPEG by {jpeg}' if jpeg else ''}"
        name = f"extract {self.plan.precision}{how}: steady"
        self.results.add(name, frames.size_text, timeline.steady_rate(), **more)

    def network(self) -> None:
        """The network alone, on frames in memory."""
        plan, device = self.plan, torch.device(self.plan.device)
        batches = (plan.batch_size, 8 * plan.batch_size)
        for precision in dict.fromkeys((plan.precision, "fp32")):
            for batch in batches:
                rate = ceilings.network_rate(self.weights, precision, device, batch, plan.ceiling_seconds)
                self.results.add(f"network alone, inference {precision}", f"batch {batch}", rate)
            for switch in ("1", "0"):
                with mock.patch.dict(os.environ, SPATIALFEAT_CUDA_GRAPHS=switch):
                    rate = ceilings.training_rate(
                        self.weights, precision, device, plan.batch_size, 6, plan.ceiling_seconds
                    )
                name = f"network alone, training step {precision}{'' if switch == '1' else ', no graph'}"
                self.results.add(name, f"batch {plan.batch_size}", rate)

    def plain(self, frames: FrameSet, count: int) -> None:
        """The plain training, an epoch after its first, by each number of workers."""
        num_train = count * 4 // 5
        csvs = [self._first_rows(frames.train_csv, num_train), self._first_rows(frames.val_csv, count - num_train)]
        for workers in self.plan.plain_workers:
            out = self.work / "plain_study"
            arguments: list[str | Path] = ["--train-csv", csvs[0], "--val-csv", csvs[1], "--epochs", "2"]
            self._plain("plain_finetune.py", workers, frames, out, *arguments)
            seconds = read_history(out / "history.csv")[-1].seconds
            self.results.add("plain finetune: later epoch", frames.size_text, count / seconds, workers=workers)

    def plain_extract(self, frames: FrameSet, count: int) -> None:
        """The plain extraction by the larger number of workers, start-up included."""
        workers, csv = self.plan.plain_workers[0], self._first_rows(frames.train_csv, count)
        seconds = self._plain("plain_extract.py", workers, frames, self.work / "plain_features", "--csv", csv)
        self.results.add("plain extract: whole command", frames.size_text, count / seconds, workers=workers)

    def start_up(self) -> None:
        """Where the seconds before the first frame go."""
        frames, device = self.sets[0], self.plan.device
        kernel = f"import torch, torchvision; torch.ones(1, device={device!r}).add_(1).item()"
        extraction: list[str | Path] = ["-m", "spatialfeat", "extract", "--out", self.work / "few_features"]
        extraction += ["--csv", self._first_rows(frames.train_csv, self.plan.batch_size), "--img-dir", frames.img_dir]
        extraction += ["--weights", self.work / "study" / WEIGHTS_NAME]
        programs: dict[str, list[str | Path]] = {
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "import, first kernel": ["-c", kernel],
            "spatialfeat extract, one batch": [*extraction, "--device", device, "--precision", self.plan.precision],
        }
        for name, arguments in programs.items():
            seconds = run_measured([sys.executable, *map(str, arguments)], cwd=self.work).seconds
            self.results.add(f"start-up: {name}", "", None, seconds=round(seconds, 2))

    def _by_pillow(self, part: Callable[[FrameSet], None], frames: FrameSet) -> None:
        """Run a part without the faster decoder; workers are forked, so they do without it too."""
        with mock.patch.object(images, "_fast_decoder", return_value=None):
            part(frames)

    def _plain(self, script: str, workers: int, frames: FrameSet, out: Path, *arguments: str | Path) -> float:
        shutil.rmtree(out, ignore_errors=True)
        shared = ["--img-dir", frames.img_dir, "--weights", self.weights, "--out", out, "--workers", str(workers),
                  "--batch-size", str(self.plan.batch_size), "--device", self.plan.device]  # fmt: skip
        command = [sys.executable, str(BENCHMARKS_DIR / script), *map(str, [*arguments, *shared])]
        return run_measured(command, cwd=self.work).seconds

    def _jpeg(self, frames: FrameSet) -> FrameSet:
        folder = frames.folder.with_name(f"{frames.size_text}_jpeg")
        return replace(frames, folder=folder) if folder.exists() else as_jpeg(frames, folder)

    def _cache_dir(self, frames: FrameSet) -> Path:
        return self.work / f"cache_{frames.size_text}"

    def _first_rows(self, csv: Path, count: int) -> Path:
        lines = csv.read_text(encoding="utf-8").splitlines()[: count + 1]
        path = self.work / f"train_{csv.parent.name}_{csv.stem}_{count}.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


@contextmanager
def _parts_timed() -> Iterator[dict[str, list[float]]]:
    """Seconds of training and of validation, per epoch: the trainer itself keeps their sum only."""
    seconds: dict[str, list[float]] = {"train_one_epoch": [], "validate": []}

    def timed(name: str) -> Callable[..., Any]:
        usual = getattr(trainer, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = usual(*arguments, **options)
            seconds[name].append(time.perf_counter() - start)
            return result

        return call

    instead: dict[str, Any] = {name: timed(name) for name in seconds}
    with mock.patch.multiple(trainer, **instead):
        yield seconds


@dataclass
class Timeline:
    """Of one extraction. look_seconds: of the look at the files. batches: (time when it was computed, frames)."""

    look_seconds: float = 0.0
    batches: list[tuple[float, int]] = field(default_factory=list)

    def steady_rate(self) -> float | None:
        """Frames/s from the end of the first third of the batches to the last one."""
        counted = self.batches[len(self.batches) // STEADY_FROM :]
        seconds = counted[-1][0] - counted[0][0]
        return sum(frames for _, frames in counted[1:]) / seconds if seconds > 0 else None


@contextmanager
def _extraction_timed() -> Iterator[Timeline]:
    module: Any = importlib.import_module("spatialfeat.extract")  # Whose name in the package is the function's.
    usual_run, usual_look, timeline = module.run_inference, module.check_image_files, Timeline()

    def run_inference(*arguments: Any) -> Iterable[FrameOutputs]:
        for outputs in usual_run(*arguments):
            timeline.batches.append((time.perf_counter(), len(outputs.positions)))
            yield outputs

    def check_image_files(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        found = usual_look(*arguments, **options)
        timeline.look_seconds = time.perf_counter() - start
        return found

    with mock.patch.multiple(module, run_inference=run_inference, check_image_files=check_image_files):
        yield timeline


class _NoBar(tqdm):  # type: ignore[type-arg]
    """Progress bars would fill a log with empty lines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})


def measure(plan: Plan, work: Path, out: Path, minutes: float, only: Sequence[str] = ()) -> Results:
    """Run the parts until the time is over; the one that is running then is finished.

    only: words of which a part's name must have one; finetune's first is needed by those that extract.
    """
    start = time.monotonic()
    results = Results(out, machine_facts(plan.device))
    say("drawing frames")
    bench = Bench(plan, work, results)
    for name, part in bench.parts():
        if only and not any(word in name for word in only):
            continue
        if time.monotonic() - start > minutes * 60:
            results.missing.append(name)
            continue
        say(f"{time.monotonic() - start:4.0f} s: {name}")
        try:
            with mock.patch.object(console, "tqdm", _NoBar):
                part()
        except Exception as error:  # noqa: BLE001  # The time of the other parts is worth more.
            traceback.print_exc()
            results.failed.append(f"{name} ({type(error).__name__}: {str(error).strip().splitlines()[:1]})")
        results.write()
    results.write()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=6.0, help="start no part after so long (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=(), help="only the parts whose names have one of these words")
    parser.add_argument("--work", type=Path, help="keep frames and caches here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="a few small frames, in float32: does it all run?")
    options = parser.parse_args(arguments)
    plan = REHEARSAL if options.quick else FULL
    plan = replace(plan, device=options.device)
    with tempfile.TemporaryDirectory(prefix="spatialfeat-gpu-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results = measure(plan, work, options.out, options.minutes, options.only)
    print(results.write())
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
