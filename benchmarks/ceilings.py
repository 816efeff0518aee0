"""The ceilings: what the network alone and decoding alone reach. Each is a command of its own that prints JSON.

The network runs on tensors that are in the device's memory already, in the fastest form that spatialfeat has; decoding
runs spatialfeat's dataset and loader on all cores and throws the frames away. No program that does both can be faster
than what the two allow together.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

# As spatialfeat's command line does, before torch is imported: the ceilings are its own arithmetic, not another's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from bench_frames import COLOURS, draw_frame
from torch import nn

from spatialfeat.data.dataset import EpochBatches, FrameDataset, make_loader
from spatialfeat.data.frames import FrameTable, read_frames
from spatialfeat.data.transforms import Preprocessing, evaluation_transform, training_transform
from spatialfeat.device import DTYPES, prepare_processor, usable_cores, use_true_float32
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.network.weights import load_checkpoint
from spatialfeat.training.trainer import TrainingStep, make_optimizer

PREPROCESSING = Preprocessing()
NUM_BATCHES_IN_MEMORY = 4
WARM_UP_CALLS = 4
MIN_CALLS = 3


def network_rate(
    weights: Path, precision: str, device: torch.device, batch_size: int, seconds: float, backbone: str = "resnet50"
) -> float:
    """Frames/s of the network in evaluation mode, without any decoding."""
    use_true_float32()
    prepare_processor()
    checkpoint = load_checkpoint(weights, backbone=find_backbone(backbone))
    network = InferenceNetwork(checkpoint.model.to(device), PREPROCESSING, precision, batch_size)
    batches = cycle(batches_in_memory(device, batch_size))
    return rate_of(lambda: network(next(batches)[0]), batch_size, device, seconds)


def training_rate(
    weights: Path, precision: str, device: torch.device, batch_size: int, freeze_until: int, seconds: float
) -> float:
    """Frames/s of training steps, without any decoding or augmentation."""
    use_true_float32()
    prepare_processor()
    model = load_checkpoint(weights).model.to(device)
    model.freeze(freeze_until)
    step = TrainingStep(
        model,
        make_optimizer(model, 1e-4),
        nn.CrossEntropyLoss(),
        preprocessing=PREPROCESSING,
        precision=precision,
    )
    step.start_epoch()
    batches = cycle(batches_in_memory(device, batch_size))
    return rate_of(lambda: step(*next(batches)), batch_size, device, seconds)


def decoding_rate(
    csv_path: Path, img_dir: Path, device: torch.device, batch_size: int, *, training: bool, seconds: float
) -> float:
    """Frames/s of reading, decoding and transforming frames on all cores, with the augmentation when `training`."""
    table = read_frames(csv_path, img_dir, split="train")
    once = _decode(table, device, batch_size, training=training, passes=1)
    # A pass starts the worker processes anew: one long pass makes that small.
    return _decode(table, device, batch_size, training=training, passes=max(1, round(once * seconds / len(table))))


def _decode(table: FrameTable, device: torch.device, batch_size: int, *, training: bool, passes: int) -> float:
    transform = training_transform(PREPROCESSING) if training else evaluation_transform(PREPROCESSING)
    dataset = FrameDataset([(table, np.tile(np.arange(len(table)), passes))], transform)
    loader = make_loader(
        dataset,
        batch_size=batch_size,
        workers=usable_cores(),
        device=device,
        batches=EpochBatches(len(dataset), batch_size, seed=0) if training else None,
    )
    start = time.perf_counter()
    frames = sum(len(batch.labels) for batch in loader)
    return frames / (time.perf_counter() - start)


def rate_of(call: Callable[[], object], batch_size: int, device: torch.device, seconds: float) -> float:
    """Frames/s of a call that computes a batch on the device, measured over about so many seconds."""
    for _ in range(WARM_UP_CALLS):
        call()
    wait_for(device)
    start, calls = time.perf_counter(), 0
    while calls < MIN_CALLS or time.perf_counter() - start < seconds:
        call()
        calls += 1
        if device.type == "cuda" and calls % 50 == 0:
            wait_for(device)  # Else the loop only counts how fast kernels are queued.
    wait_for(device)
    return calls * batch_size / (time.perf_counter() - start)


def batches_in_memory(
    device: torch.device, batch_size: int, size: int = PREPROCESSING.crop_px
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A few batches of drawn frames (B, 3, S, S) uint8, S the `size`, and labels (B,) int64, on the device."""
    batches = []
    for index in range(NUM_BATCHES_IN_MEMORY):
        rng = np.random.default_rng(index)
        labels = rng.integers(len(COLOURS), size=batch_size)
        pixels = np.stack([draw_frame(rng, int(label), size, size) for label in labels])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        batches.append((images, torch.from_numpy(labels).to(device)))
    return batches


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ceiling", choices=("network", "training", "decode", "decode-augmented"))
    parser.add_argument("--weights", type=Path, help="for network and training")
    parser.add_argument("--backbone", default="resnet50", help="for network")
    parser.add_argument("--csv", type=Path, help="for decoding")
    parser.add_argument("--img-dir", type=Path, help="for decoding")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--freeze-until", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0, help="measure about so long")
    options = parser.parse_args()
    device, seconds = torch.device(options.device), options.seconds
    if options.ceiling == "network":
        rate = network_rate(options.weights, options.precision, device, options.batch_size, seconds, options.backbone)
    elif options.ceiling == "training":
        rate = training_rate(
            options.weights, options.precision, device, options.batch_size, options.freeze_until, seconds
        )
    else:
        augmented = options.ceiling == "decode-augmented"
        rate = decoding_rate(
            options.csv, options.img_dir, device, options.batch_size, training=augmented, seconds=seconds
        )
    print(json.dumps({"frames_per_second": rate}))


if __name__ == "__main__":
    main()
