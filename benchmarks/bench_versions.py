"""Is this version as fast as an earlier one? Both commands by both checkouts in turn, on the same frames.

    git worktree add /tmp/before COMMIT
    python benchmarks/bench_versions.py --before /tmp/before --precisions bf16 --repeats 3

Ratios are the earlier version's seconds over this one's, of neighbours in time: above 1 this one is faster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench_frames import FrameSet
from bench_setup import BENCHMARKS_DIR, Setup, markdown_table, parsed_setup, run_benchmark, say
from bench_weights import make_weights
from measuring import Spread, paired_ratios


def seconds_of(setup: Setup, frames: FrameSet, weights: Path, precision: str, checkout: Path) -> dict[str, float]:
    """Both commands by a checkout: {what: seconds}."""

    def started(line: list[str]) -> list[str]:
        return ["env", f"PYTHONPATH={checkout}", *line, "--precision", precision]

    first, later = setup.study(frames, weights, "--epochs", "2", started=started).epochs
    extraction = setup.extraction([frames.train_csv], frames.img_dir, weights, started=started)
    return {
        "finetune, first epoch": first.seconds,
        "finetune, later epoch": later.seconds,
        "extract, whole command": extraction.seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier version")
    with parsed_setup(parser, default_frames=300) as (setup, options):
        checkouts = {"before": options.before.resolve(), "now": BENCHMARKS_DIR.parent}
        weights = make_weights(setup.work / "weights.pth")
        measured: dict[str, dict[str, list[float]]] = {}
        for frames in setup.frame_sets():
            for precision in setup.precisions:
                for repeat in range(setup.repeats):
                    say(f"{frames.size_text} {precision}: repeat {repeat + 1} of {setup.repeats}")
                    for name, checkout in checkouts.items():
                        for what, seconds in seconds_of(setup, frames, weights, precision, checkout).items():
                            key = f"{what}, {frames.size_text}, {precision}"
                            measured.setdefault(key, {name: [] for name in checkouts})[name].append(seconds)
        rows = [
            [what, *(Spread.of(values).text() for values in ways.values()), paired_ratios(*ways.values()).text(3)]
            for what, ways in measured.items()
        ]
        setup.report("versions", [markdown_table(["seconds", *checkouts, "before / now"], rows)], {"seconds": measured})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
