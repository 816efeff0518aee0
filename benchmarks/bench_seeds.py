"""Do spatialfeat's studies learn as the plain script's do? Many seeds, small frames, three ways, the same start.

The ways: the plain script, spatialfeat with frames augmented one by one in the decoding processes (as on a CPU), and in
batches on the device (as on a GPU), which must run on the CPU for this. For each epoch the table has the difference of
the means over the seeds from the plain script's, with its standard error: beyond two of them, hardly chance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import plain_finetune
from bench_frames import FrameSet, make_frames
from bench_setup import machine_facts, markdown_table, run_benchmark, say, write_results
from bench_weights import make_weights
from comparing import Epoch, read_history

from spatialfeat.config import FinetuneConfig
from spatialfeat.finetune import finetune

PLAIN, WORKERS, DEVICE = "plain script", "spatialfeat, frame by frame", "spatialfeat, in batches"
SWITCHES = {WORKERS: "workers", DEVICE: "device"}
CURVES = ("train_loss", "val_loss", "val_acc")
IMAGE_SIZE_PX = 64


class Difference(NamedTuple):
    """Of the means of two samples, with its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float], reference: Sequence[float]) -> Difference:
        """values - reference, independent samples of at least two each."""
        spread = (statistics.variance(values) / len(values), statistics.variance(reference) / len(reference))
        return cls(statistics.mean(values) - statistics.mean(reference), math.sqrt(sum(spread)))

    def text(self) -> str:
        """`-0.004 +- 0.011`."""
        return f"{self.mean:+.3f} +- {self.error:.3f}"


class Study(NamedTuple):
    """What all three ways train on, and how long."""

    frames: FrameSet
    weights: Path
    epochs: int
    batch_size: int
    device: str

    def run(self, way: str, seed: int, out: Path) -> list[Epoch]:
        """The history of one study."""
        shutil.rmtree(out, ignore_errors=True)
        if way == PLAIN:
            options = {"--train-csv": self.frames.train_csv, "--val-csv": self.frames.val_csv, "--out": out,
                       "--img-dir": self.frames.img_dir, "--weights": self.weights, "--epochs": self.epochs,
                       "--seed": seed, "--workers": 0, "--image-size": IMAGE_SIZE_PX, "--batch-size": self.batch_size,
                       "--device": self.device}  # fmt: skip
            plain_finetune.main([str(part) for pair in options.items() for part in pair])
        else:
            config = FinetuneConfig(
                train_csv=self.frames.train_csv,
                val_csv=self.frames.val_csv,
                test_csv=None,
                img_dir=self.frames.img_dir,
                weights=str(self.weights),
                image_size_px=IMAGE_SIZE_PX,
                batch_size=self.batch_size,
                epochs=self.epochs,
                patience=self.epochs,
                seed=seed,
                workers=0,
                device=self.device,
                precision="fp32",
                tensorboard=False,
                out_dir=out,
            )
            with mock.patch.dict(os.environ, SPATIALFEAT_AUGMENT=SWITCHES[way]):
                finetune(config)
        return read_history(out / "history.csv")


def parts(curves: dict[str, list[list[Epoch]]], frames: FrameSet) -> list[str]:
    """What was done, and the table. curves: for each way the histories of all seeds."""
    rows = []
    for name in CURVES:
        for epoch in range(len(curves[PLAIN][0])):
            values = {way: [float(getattr(run[epoch], name)) for run in runs] for way, runs in curves.items()}
            differences = [Difference.of(values[way], values[PLAIN]).text() for way in (WORKERS, DEVICE)]
            rows.append([name, str(epoch + 1), f"{statistics.mean(values[PLAIN]):.3f}", *differences])
    header = ["", "epoch", PLAIN, f"{WORKERS}: difference", f"{DEVICE}: difference"]
    how = (
        f"{len(curves[PLAIN])} seeds; {frames.num_train} training and {frames.num_val} validation "
        f"frames of {frames.size_text}, {IMAGE_SIZE_PX} px into the network, fp32; means over the seeds, and "
        "differences from the plain script with their standard errors."
    )
    return [how, markdown_table(header, rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=600, help="four fifths to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.md and OUT.json, anew after every seed")
    parser.add_argument("--go-on", action="store_true", help="keep the seeds that OUT.json has, of the same options")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds: at least 2, for a standard error")
    facts, text = machine_facts(options.device), ""
    curves: dict[str, list[list[Epoch]]] = {PLAIN: [], WORKERS: [], DEVICE: []}
    if options.go_on:
        stored = json.loads(Path(f"{options.out}.json").read_text(encoding="utf-8"))["histories"]
        curves = {way: [[Epoch(**epoch) for epoch in run] for run in stored[way]] for way in curves}
    with tempfile.TemporaryDirectory(prefix="spatialfeat-seeds-") as folder:
        work = Path(folder)
        weights = make_weights(work / "weights.pth", image_size_px=IMAGE_SIZE_PX)
        frames = make_frames(work / "frames", width=114, height=80, count=options.frames, seed=0)
        study = Study(frames, weights, options.epochs, options.batch_size, options.device)
        for seed in range(len(curves[PLAIN]), options.seeds):
            for way, runs in curves.items():
                say(f"seed {seed}: {way}")
                runs.append(study.run(way, seed, work / "study"))
            if seed:
                # After every seed: what has been measured is kept when the rest is cut off.
                shown, data = parts(curves, frames), {"histories": curves}
                text = write_results(options.out, "seeds", facts, shown, data, shown=False)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
