"""Is this version as fast as an earlier one? Both commands by both checkouts in turn, on the same frames.

    git worktree add /tmp/before COMMIT
    python benchmarks/bench_versions.py --before /tmp/before --precisions bf16 --repeats 3

Ratios are the earlier version's seconds over this one's, of neighbours in time: above 1 this one is faster.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from bench_frames import FrameSet
from bench_setup import (
    BENCHMARKS_DIR,
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
from measuring import Spread, paired_ratios, run_measured

EPOCHS = 2


class Versions:
    """Runs both commands by a checkout: {what: seconds}."""

    def __init__(self, setup: Setup, frames: FrameSet, precision: str) -> None:
        self._setup, self._frames, self._precision = setup, frames, precision
        self._weights = make_weights(setup.work / "weights.pth")

    def seconds(self, checkout: Path) -> dict[str, float]:
        frames, out = self._frames, self._setup.work / "out"
        network = ("--weights", self._weights, "--precision", self._precision, "--out", out)
        data = ("--train-csv", frames.train_csv, "--val-csv", frames.val_csv, "--img-dir", frames.img_dir)
        self._run(checkout, out, "finetune", *data, *network, "--epochs", str(EPOCHS))
        first, later = (epoch.seconds for epoch in read_history(out / "history.csv"))
        extracting = self._run(
            checkout, out, "extract", "--csv", frames.train_csv, "--img-dir", frames.img_dir, *network
        )
        return {"finetune, first epoch": first, "finetune, later epoch": later, "extract, whole command": extracting}

    def _run(self, checkout: Path, out: Path, *arguments: str | Path) -> float:
        shutil.rmtree(out, ignore_errors=True)
        command = ["env", f"PYTHONPATH={checkout}", *self._setup.spatialfeat(*arguments)]
        return run_measured(command, cwd=self._setup.work).seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier version")
    with parsed_setup(parser, default_frames=300) as (setup, options):
        checkouts = {"before": options.before.resolve(), "now": BENCHMARKS_DIR.parent}
        facts, rows = machine_facts(setup.device), []
        measured: dict[str, dict[str, list[float]]] = {}
        for frames in setup.frame_sets():
            for precision in setup.precisions:
                versions = Versions(setup, frames, precision)
                for repeat in range(setup.repeats):
                    say(f"{frames.size_text} {precision}: repeat {repeat + 1} of {setup.repeats}")
                    for name, checkout in checkouts.items():
                        for what, seconds in versions.seconds(checkout).items():
                            key = f"{what}, {frames.size_text}, {precision}"
                            measured.setdefault(key, {name: [] for name in checkouts})[name].append(seconds)
        for what, seconds_of in measured.items():
            spreads = [Spread.of(seconds_of[name]).text() for name in checkouts]
            rows.append([what, *spreads, paired_ratios(seconds_of["before"], seconds_of["now"]).text(3)])
        table = markdown_table(["seconds", *checkouts, "before / now"], rows)
        write_results(options.out, f"## bench_versions\n\n{machine_line(facts)}\n\n{table}", {"seconds": measured})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
