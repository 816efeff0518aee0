"""How fast are encoders, without any decoding: extraction and training steps, as spatialfeat runs them, and compiled.

`compiled` puts `torch.compile` around the same evaluation form, to see whether it would pay: the seconds until the
first batch is through are given beside the rate. Weights are random, batches lie in the device's memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from bench_frames import NUM_PHASES
from bench_setup import machine_facts, markdown_table, run_benchmark, say, write_results
from ceilings import batches_in_memory, rate_of, wait_for
from torch import nn

from spatialfeat.device import DTYPES, choose_precision, prepare_processor, select_device, use_true_float32
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.training.trainer import TrainingStep, make_optimizer

USUAL = ("resnet50", "convnext_tiny", "vit_b_16")
HEADER = ("backbone", "what", "batch", "frames/s", "first batch, s")


def rows_of(name: str, device: torch.device, precision: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per batch size: the evaluation form, the same compiled, and the training step."""
    backbone, rows = find_backbone(name), []
    torch.manual_seed(0)
    model = backbone.build(NUM_PHASES).to(device)
    preprocessing = backbone.usual_preprocessing

    def measure(what: str, batch_size: int, call: Any) -> None:
        batches = cycle(batches_in_memory(device, batch_size, preprocessing.crop_px))
        start = time.perf_counter()
        call(*next(batches))
        wait_for(device)
        first = time.perf_counter() - start
        rate = rate_of(lambda: call(*next(batches)), batch_size, device, options.seconds)
        say(f"   {name}, {what}, batch {batch_size}: {rate:.1f} frames/s, first batch {first:.1f} s")
        rows.append({"backbone": name, "what": f"{what} {precision}", "batch_size": batch_size,
                     "frames_per_second": rate, "first_batch_seconds": first})  # fmt: skip

    for batch_size in options.batch_sizes:
        network = InferenceNetwork(model, preprocessing, precision, batch_size)
        measure("extract", batch_size, lambda images, _, network=network: network(images))
        if options.compiled:
            # Recorded by the compiler's own means where that is a CUDA device.
            graphs: dict[str, Any] | None = {"triton.cudagraphs": True} if device.type == "cuda" else None
            evaluate = torch.compile(model.evaluation(preprocessing, precision), dynamic=False, options=graphs)
            with torch.inference_mode():
                measure("extract compiled", batch_size, lambda images, _, run=evaluate: run(images))
    if not options.no_training:
        model.freeze(backbone.usual_frozen)
        step = TrainingStep(
            model,
            make_optimizer(model, 1e-4),
            nn.CrossEntropyLoss(),
            preprocessing=preprocessing,
            precision=precision,
        )
        step.start_epoch()
        measure("training step", options.batch_sizes[0], step)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=USUAL, metavar="NAME", help=f"default: {' '.join(USUAL)}")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[32], help="default: 32; training takes the first"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measure each about so long (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--no-training", action="store_true", help="evaluation only")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    device = select_device(options.device)
    precision = choose_precision(options.precision, device)
    use_true_float32()
    prepare_processor()
    facts = machine_facts(options.device)
    rows = [row for name in options.backbones for row in rows_of(name, device, precision, options)]
    cells = [
        [row["backbone"], row["what"], str(row["batch_size"]), f"{row['frames_per_second']:,.1f}",
         f"{row['first_batch_seconds']:.1f}"]
        for row in rows
    ]  # fmt: skip
    write_results(options.out, "backbones", facts, [markdown_table(HEADER, cells)], {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
