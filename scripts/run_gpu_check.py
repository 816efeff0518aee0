"""Check spatialfeat on a CUDA device: the tests marked `gpu`, then `bench_gpu`. Started by scripts/gpu_check.

Nothing is skipped in silence: without a working device, without pytest, or with a skipped test it fails. The newest
results go, dated, to benchmarks/results/; a second run on the same day adds to the file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("tests", "gpu", "extract", "finetune", "cache")
USUAL_STEPS = STEPS[:2]
"""These two take about 8 minutes on a data-centre GPU with 16 cores; the others, with repeats, 25 more."""
NEEDED = ("torch", "torchvision", "numpy", "pandas", "PIL", "h5py", "matplotlib", "tqdm", "typer", "sklearn", "pytest",
          "pytest_timeout", "hypothesis")  # fmt: skip
# Many frames, since a GPU takes seconds for what takes a CPU minutes; most are links, since drawing takes longest.
BENCHMARK_OPTIONS = {
    "gpu": (),
    "extract": ("--frames", "3000", "--max-drawn", "200", "--repeats", "3"),
    "finetune": ("--frames", "1000", "--max-drawn", "300", "--repeats", "3"),
    # Where the network is fast, the decoding that the cache spares shows.
    "cache": ("--frames", "1000", "--max-drawn", "300", "--repeats", "2", "--precisions", "bf16"),
}
CANNOT_CHECK = 2


class CannotCheckError(Exception):
    """This machine cannot run the check; the message says what is missing."""


def require_packages() -> None:
    """Raises CannotCheckError with a remedy that works without a network."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CannotCheckError(
            f"{sys.executable} has no {', '.join(missing)}. Install them; without a network, run `pip download "
            "--only-binary=:all: --dest wheels NAMES` elsewhere (same Python version and system), carry the folder "
            "here, run `pip install --no-index --no-deps --target site wheels/*.whl`, and set PYTHONPATH to site"
        )


def require_device() -> str:
    """The name of the CUDA device, after one small computation on it. Raises CannotCheckError if there is none."""
    from spatialfeat.device import describe_device, select_device
    from spatialfeat.errors import SpatialfeatError

    try:
        return describe_device(select_device("cuda"))
    except SpatialfeatError as error:
        raise CannotCheckError(
            f"no CUDA device to check ({error}); this script is for machines that have one"
        ) from error


def run_tests(work: Path) -> tuple[str, bool]:
    """Run the GPU tests. Returns a line for the result file, and whether all ran and passed."""
    report = work / "tests.xml"
    # Only the files with such tests: others need what this machine may lack.
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"SPATIALFEAT_REQUIRE_GPU": "1"}
    code = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environment, check=False).returncode
    if not report.is_file():
        return f"pytest ended with exit code {code} before it ran a test", False
    line, good = judge_tests(report.read_text(encoding="utf-8"))
    return line, good and code == 0


def judge_tests(junit_xml: str) -> tuple[str, bool]:
    """What a JUnit report says, and whether tests ran, all passed and none was skipped."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.fromstring(junit_xml).iter("testsuite"):  # noqa: S314  # pytest has just written it.
        for name in counts:
            counts[name] += int(suite.get(name, "0"))
    wrong = counts["failures"] + counts["errors"]
    passed = counts["tests"] - wrong - counts["skipped"]
    line = f"{passed} of {counts['tests']} GPU tests passed, {wrong} failed, {counts['skipped']} skipped"
    return line, passed > 0 and passed == counts["tests"]


def run_benchmark(name: str, out: Path, more: Sequence[str], quick: bool) -> tuple[str, bool]:
    """Run one benchmark, which writes `out`.md and `out`.json. Returns its Markdown, and whether it succeeded."""
    options = ("--quick",) if quick else BENCHMARK_OPTIONS[name]
    command = [sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), "--device", "cuda", *options, *more]
    code = subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=False).returncode
    result = Path(f"{out}.md")
    text = result.read_text(encoding="utf-8") if result.is_file() else f"## bench_{name}\n\nno result"
    return text + (f"\n\n**Ended with exit code {code}.**" if code else ""), code == 0


def result_path(out_dir: Path, device: str, day: date) -> Path:
    """`2026-01-31-nvidia-h100-80gb-hbm3.md` for the device `cuda (NVIDIA H100 80GB HBM3)`."""
    model = device.partition("(")[2].rstrip(")") or device
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return out_dir / f"{day.isoformat()}-{slug}.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that were asked for; 0 when all is well, 1 when something failed, 2 when it cannot be checked."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check",
        allow_abbrev=False,
        description="Run the GPU tests and the benchmarks on a machine with a CUDA device.",
        epilog="Other options go to the benchmarks: --minutes 4, or for the longer ones --sizes 1280x720 ... The usual "
        "steps take about 8 minutes on a data-centre GPU, all of them half an hour.",
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=USUAL_STEPS, help="default: tests gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the dated result")
    parser.add_argument("--quick", action="store_true", help="benchmarks on a few frames: does it all run?")
    options, more = parser.parse_known_args(arguments)
    try:
        require_packages()
        device = require_device()
    except CannotCheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT_CHECK
    today = datetime.now().astimezone().date()
    path = result_path(options.out, device, today)
    path.parent.mkdir(parents=True, exist_ok=True)
    all_good = True
    with tempfile.TemporaryDirectory(prefix="spatialfeat-gpu-") as folder:
        for step in options.steps:
            print(f"== {step} on {device}", file=sys.stderr, flush=True)
            if step == "tests":
                line, good = run_tests(Path(folder))
                text = f"## GPU tests\n\n{line}."
                print(line)
            else:
                # The figures of bench_gpu are kept one by one, and while it runs: it may be cut off.
                out = path.with_name(f"{path.stem}-gpu") if step == "gpu" else Path(folder) / step
                text, good = run_benchmark(step, out, more, options.quick)
            all_good &= good
            # After each step: what has been measured is kept when a later step is cut off.
            is_new = not path.is_file()
            with path.open("a", encoding="utf-8") as file:
                file.write((f"# {device}, {today.isoformat()}\n" if is_new else "") + f"\n{text}\n")
    print(f"{'all well' if all_good else 'FAILED'}: {path}")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
