"""What the benchmarks share: options, the folder they work in, the machine's line, tables and result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_frames import FrameSet, make_frames
from comparing import Epoch, read_history
from measuring import BenchmarkError, Measured, load_average, run_measured

from spatialfeat.device import DTYPES, choose_precision, describe_device, select_device, usable_cores
from spatialfeat.errors import SpatialfeatError
from spatialfeat.runrecord import library_versions

BENCHMARKS_DIR = Path(__file__).resolve().parent
MIN_FRAMES = 200
CHOOSING_FRAMES = 200
"""On so many frames the plain way's number of workers is chosen."""
QUICK_FRAMES = 35
TELLING_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BUSY = 0.5
"""A load average above this at the start means that others use the machine."""


class Study(NamedTuple):
    """One training: the whole command, and its epochs."""

    seconds: float
    peak_bytes: int | None
    epochs: list[Epoch]

    @property
    def all_epochs_seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def later_epoch_seconds(self) -> float:
        """A typical epoch after the first, which fills caches and starts workers; of a single epoch, that one."""
        return statistics.median(epoch.seconds for epoch in self.epochs[1:] or self.epochs)


@dataclass(frozen=True)
class Setup:
    """What a benchmark was asked for: its options, and the machine's facts from before it began."""

    work: Path
    device: str
    sizes: list[tuple[int, int]]
    frames: int
    max_drawn: int | None
    precisions: list[str]
    repeats: int
    batch_size: int
    worker_choices: list[int]
    ceiling_seconds: float
    extra_options: list[str]
    quick: bool
    backbone: str
    out: Path | None
    facts: dict[str, Any]

    def spatialfeat(self, *arguments: str | Path) -> list[str]:
        """The command line of spatialfeat as a user types it, in this interpreter."""
        shared = ("--batch-size", str(self.batch_size), "--device", self.device, *self.extra_options)
        return [sys.executable, "-m", "spatialfeat", *map(str, arguments), *shared]

    def plain(self, script: str, workers: int, *arguments: str | Path) -> list[str]:
        """The command line of a plain script."""
        shared = ("--batch-size", str(self.batch_size), "--device", self.device, "--workers", str(workers))
        return [sys.executable, str(BENCHMARKS_DIR / script), *map(str, arguments), *shared]

    def study(
        self,
        frames: FrameSet,
        weights: Path,
        *options: str | Path,
        started: Callable[[list[str]], list[str]] = list,
        script: list[str] | None = None,
    ) -> Study:
        """Train from nothing: with spatialfeat, or with a script, whose command line (of `plain`) is given.

        started: makes of the command line the one that is run.
        """
        out = self.work / "study"
        shutil.rmtree(out, ignore_errors=True)
        arguments = [*frames.study_options, "--weights", weights, "--out", out, *options]
        line = [*script, *map(str, arguments)] if script else self.spatialfeat("finetune", *arguments)
        measured = run_measured(started(line), cwd=self.work)
        return Study(measured.seconds, measured.peak_bytes, read_history(out / "history.csv"))

    def extraction(
        self,
        csvs: Sequence[Path],
        img_dir: Path,
        weights: Path,
        *options: str,
        started: Callable[[list[str]], list[str]] = list,
        out: Path | None = None,
    ) -> Measured:
        """Extract from nothing with spatialfeat. started: as of `study`. out: the features' folder, if it matters."""
        out = out or self.work / "features"
        shutil.rmtree(out, ignore_errors=True)
        places = [part for csv in csvs for part in ("--csv", csv)] + ["--img-dir", img_dir, "--weights", weights]
        return run_measured(started(self.spatialfeat("extract", *places, "--out", out, *options)), cwd=self.work)

    def report(self, name: str, parts: Sequence[str], data: dict[str, Any]) -> None:
        """Print the parts of a result, and write them and the numbers where the user wants them."""
        write_results(self.out, name, self.facts, parts, data)

    @property
    def recorded(self) -> dict[str, Any]:
        """The options that a result's numbers are kept with."""
        names = ("backbone", "device", "repeats", "batch_size", "extra_options")
        return {name: getattr(self, name) for name in names}

    def how(self, details: str) -> str:
        """The sentence about repeats, batches and options that stands above the tables."""
        extra = f" spatialfeat with {' '.join(self.extra_options)}." if self.extra_options else ""
        return (
            f"Medians of {self.repeats} repeats in turn (smallest to largest){details}; batches of {self.batch_size}; "
            f"files in the page cache; peak memory is PSS summed over all processes, the largest of the repeats.{extra}"
        )

    def frame_sets(self) -> Iterator[FrameSet]:
        """The frames of every size that was asked for, drawn unless they are in the folder already."""
        for width, height in self.sizes:
            say(f"{width}x{height}: drawing frames")
            folder = self.work / f"frames_{width}x{height}_{self.frames}"
            yield make_frames(folder, width=width, height=height, count=self.frames, seed=0, max_drawn=self.max_drawn)

    def ceiling(self, name: str, *arguments: str | Path) -> float:
        """Frames/s of one of the ceilings."""
        shared = ("--batch-size", str(self.batch_size), "--device", self.device)
        limit = ("--seconds", str(self.ceiling_seconds))
        command = [sys.executable, str(BENCHMARKS_DIR / "ceilings.py"), name, *map(str, arguments), *shared, *limit]
        lines = run_measured(command, cwd=self.work).output.splitlines()
        # Warnings of libraries may stand before or behind it.
        result = next(line for line in reversed(lines) if line.startswith("{"))
        return float(json.loads(result)["frames_per_second"])


@contextmanager
def parsed_setup(parser: argparse.ArgumentParser, *, default_frames: int) -> Iterator[tuple[Setup, argparse.Namespace]]:
    """Parse the command line; the folder to work in is removed at the end unless the user named it."""
    parser.add_argument("--frames", type=int, default=default_frames, help="frames per size (default: %(default)s)")
    parser.add_argument("--max-drawn", type=int, help="draw at most about so many; the others are hard links to them")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(456, 256), (1280, 720)], metavar="WxH")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], help="default: fp32 bf16")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--batch-size", type=int, default=32, help="of both ways (default: %(default)s)")
    parser.add_argument(
        "--plain-workers", dest="worker_choices", metavar="N", nargs="+", type=int, default=[0, 1, 2],
        help="the plain way gets the best (default: 0 1 2)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default="resnet50", help="a network of torchvision, for bench_extract (default: %(default)s)"
    )
    parser.add_argument(
        "--options",
        dest="extra_options",
        type=shlex.split,
        default=[],
        help="more options for spatialfeat, as one text",
    )
    parser.add_argument("--work", type=Path, help="keep frames and outputs here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="one repeat of few small frames: does it all run?")
    options = parser.parse_args()
    if options.quick:
        options.frames, options.repeats, options.sizes = QUICK_FRAMES, 1, options.sizes[:1]
    _check(parser, options)
    with _work_folder(options.work) as work:
        ceiling_seconds = 1.0 if options.quick else 8.0 if options.device == "cpu" else 4.0
        of_options = {name: value for name, value in vars(options).items() if name in Setup.__dataclass_fields__}
        of_options |= {"work": work, "ceiling_seconds": ceiling_seconds, "facts": machine_facts(options.device)}
        yield Setup(**of_options), options


def run_benchmark(main: Callable[[], int]) -> int:
    """Call `main`; what cannot be measured becomes one message and exit code 2."""
    try:
        return main()
    except (BenchmarkError, SpatialfeatError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def say(text: str) -> None:
    """Tell on standard error what is being measured; the results go to standard output."""
    print(text, file=sys.stderr, flush=True)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as text too: columns padded, the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (text.ljust if i == 0 else text.rjust for i, text in enumerate(row))
        return f"| {' | '.join(pad(width) for pad, width in zip((first, *others), widths, strict=True))} |"

    rule = "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def machine_facts(device: str) -> dict[str, Any]:
    """Hardware and versions, and how busy the machine was before the benchmark began."""
    chosen = select_device(device)
    facts: dict[str, Any] = {
        "device": describe_device(chosen),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "cuda": torch.version.cuda if chosen.type == "cuda" else None,
        "commit": _commit(),
        "load_average": round(load_average(), 2),
        "versions": library_versions(),
    }
    return facts


def machine_line(facts: dict[str, Any]) -> str:
    """The line that names hardware and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    cuda = f", CUDA {facts['cuda']}" if facts["cuda"] else ""
    busy = " (BUSY: these figures are disturbed)" if facts["load_average"] > BUSY else ""
    return (
        f"{facts['device']}; {facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB; "
        f"{facts['system']}{cuda}; {versions}; commit {facts['commit']}; "
        f"load average before the start {facts['load_average']}{busy}"
    )


def write_results(
    out: Path | None,
    name: str,
    facts: dict[str, Any],
    parts: Sequence[str],
    data: dict[str, Any],
    *,
    shown: bool = True,
) -> str:
    """Put the parts of a result together as Markdown, print it, and write it to OUT.md and the numbers to OUT.json."""
    text = "\n\n".join([f"## bench_{name}", machine_line(facts), *parts])
    if shown:
        print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(as_json({"benchmark": name, "machine": facts, **data}), indent=1)
        Path(f"{out}.md").write_text(text + "\n", encoding="utf-8")
        Path(f"{out}.json").write_text(content + "\n", encoding="utf-8")
    return text


def as_json(value: Any) -> Any:
    """A result as JSON holds it: of dataclasses and named tuples the fields by name, but not what a command printed."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    names = getattr(value, "_fields", getattr(value, "__dataclass_fields__", None))
    if names is not None:
        return {name: as_json(getattr(value, name)) for name in names if name != "output"}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.frames < MIN_FRAMES and not options.quick:
        parser.error(f"--frames {options.frames}: at least {MIN_FRAMES}, or --quick")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1")
    unknown = [precision for precision in options.precisions if precision not in DTYPES]
    if unknown:
        parser.error(f"--precisions {unknown[0]}: must be of {', '.join(DTYPES)}")
    try:
        device = select_device(options.device)
        for precision in options.precisions:
            choose_precision(precision, device)
    except SpatialfeatError as error:
        parser.error(str(error))


@contextmanager
def _work_folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="spatialfeat-bench-") as folder:
        yield Path(folder)


def _processor() -> str:
    """`AMD EPYC (avx2, avx512f, avx512_bf16)`: the model, and what decides how fast it multiplies."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    first_core = info.read_text().split("\n\n")[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first_core)}
    flags = set(fields.get("flags", "").split())
    telling = ", ".join(flag for flag in TELLING_CPU_FLAGS if flag in flags)
    return f"{fields.get('model name', platform.machine())} ({telling or 'no AVX2'})"


def _commit() -> str:
    """The commit of this checkout, with `+` behind it when files differ from it; `unknown` outside a checkout."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=BENCHMARKS_DIR, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
