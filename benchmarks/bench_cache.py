"""Time `spatialfeat finetune --cache`: epoch 1, which fills the cache, and epoch 2, which reads it; and loading alone.

Frames are drawn (`bench_frames`). Loading alone is the training frames' way to the network without the network: decode
or read, augment, collate, on all cores. The crop differences say what shrinking costs: the same place of a frame, cut
from the frame itself and from what the cache keeps of it, in levels of 0 to 255.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_frames import FrameSet
from bench_setup import Setup, markdown_table, parsed_setup, run_benchmark, say
from bench_weights import make_weights
from measuring import Spread, paired_ratios
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from spatialfeat.data.cache import FrameCache
from spatialfeat.data.dataset import EpochBatches, FrameDataset, make_loader
from spatialfeat.data.frames import read_frames
from spatialfeat.data.images import decode_rgb
from spatialfeat.data.transforms import Preprocessing, training_transform
from spatialfeat.device import usable_cores

SHRINK_SIZES = (256, 320, 384, 512)
CROP_PX = 224
CROPS_PER_FRAME = 25
MAX_CROP_FRAMES = 8
LIMIT_GB = 100.0


@dataclass(frozen=True)
class SizeResult:
    """Seconds, one value per repeat. `cached` and `plain` are epochs 1 and 2 of studies with and without --cache."""

    size: str
    frames: int
    cached: list[tuple[float, float]]
    plain: list[tuple[float, float]]
    loading: dict[str, list[float]]
    crop_difference: dict[int, tuple[float, float]]


def measure(setup: Setup, frames: FrameSet) -> SizeResult:
    """All figures of one frame size."""
    weights = make_weights(setup.work / "weights.pth")
    cached, plain = [], []
    loading: dict[str, list[float]] = {"decode": [], "fill": [], "read": []}
    for repeat in range(setup.repeats):
        say(f"{frames.size_text}: repeat {repeat + 1} of {setup.repeats}")
        for name, seconds in loading_seconds(setup, frames).items():
            loading[name].append(seconds)
        cached.append(two_epochs(setup, frames, weights, "--cache", setup.work / "cache"))
        plain.append(two_epochs(setup, frames, weights))
    differences = {size: crop_difference(frames, size) for size in SHRINK_SIZES if size < frames.height}
    return SizeResult(frames.size_text, frames.count, cached, plain, loading, differences)


def two_epochs(setup: Setup, frames: FrameSet, weights: Path, *options: str | Path) -> tuple[float, float]:
    """Seconds of the first and the second epoch of a study, from its history.csv; a cache starts empty."""
    shutil.rmtree(setup.work / "cache", ignore_errors=True)
    options = ("--epochs", "2", "--precision", setup.precisions[0], *options)
    first, second = setup.study(frames, weights, *options).epochs
    return first.seconds, second.seconds


def loading_seconds(setup: Setup, frames: FrameSet) -> dict[str, float]:
    """Seconds of one pass over the training frames: decoding them, filling a cache, reading it."""
    folder = setup.work / "loading-cache"
    shutil.rmtree(folder, ignore_errors=True)
    seconds = {"decode": _pass_seconds(setup, frames, None)}
    for name in ("fill", "read"):
        cache = FrameCache(folder, LIMIT_GB)
        seconds[name] = _pass_seconds(setup, frames, cache)
        cache.close()
    return seconds


def _pass_seconds(setup: Setup, frames: FrameSet, cache: FrameCache | None) -> float:
    table = read_frames(frames.train_csv, frames.img_dir, split="train")
    transform = training_transform(Preprocessing(), None if cache is None else 320)
    loader = make_loader(
        FrameDataset(table, transform, cache=cache),
        batch_size=setup.batch_size,
        workers=usable_cores(),
        device=torch.device("cpu"),
        batches=EpochBatches(len(table), setup.batch_size, seed=0),
    )
    start = time.perf_counter()
    loaded = sum(len(batch.labels) for batch in loader)
    assert loaded == len(table)
    return time.perf_counter() - start


def crop_difference(frames: FrameSet, size_px: int) -> tuple[float, float]:
    """Mean absolute difference of random crops, and that of the crops of less than a fifth of the frame."""
    torch.manual_seed(0)
    every, small = [], []
    shrink = training_transform(Preprocessing(), size_px)
    whole = training_transform(Preprocessing())
    for path in sorted(frames.img_dir.glob("*.png"))[:MAX_CROP_FRAMES]:
        image = decode_rgb(path.read_bytes())
        original, kept = whole.fixed(image), shrink.fixed(image)
        (height, width), (kept_height, kept_width) = original.shape[1:], kept.shape[1:]
        scales = (kept_height / height, kept_width / width) * 2
        for _ in range(CROPS_PER_FRAME):
            box = RandomResizedCrop.get_params(original, (0.08, 1.0), (3 / 4, 4 / 3))
            kept_box = [round(value * scale) for value, scale in zip(box, scales, strict=True)]
            crops = [
                functional.resized_crop(pixels, *where, size=[CROP_PX, CROP_PX], antialias=True).int()
                for pixels, where in ((original, box), (kept, kept_box))
            ]
            every.append(float((crops[0] - crops[1]).abs().float().mean()))
            if box[2] * box[3] < height * width / 5:
                small.append(every[-1])
    return sum(every) / len(every), sum(small) / max(1, len(small))


def tables(results: list[SizeResult]) -> list[str]:
    """Epochs, loading alone, and what shrinking changes."""
    epochs, loading, crops = [], [], []
    for result in results:
        for name, pairs in (("without", result.plain), ("--cache", result.cached)):
            first, second = zip(*pairs, strict=True)
            ratio = paired_ratios(first, second).text()
            epochs.append([result.size, name, Spread.of(first).text(), Spread.of(second).text(), ratio])
        ratio = paired_ratios(result.loading["decode"], result.loading["read"]).text()
        loading.append([result.size, *(Spread.of(values).text() for values in result.loading.values()), ratio])
        crops += [
            [result.size, str(size), f"{mean:.2f}", f"{small:.2f}"]
            for size, (mean, small) in result.crop_difference.items()
        ]
    header = ["frames", "--cache-size", "difference of crops, levels", "of crops < 20 %"]
    return [
        markdown_table(["frames", "finetune", "epoch 1", "epoch 2", "epoch 1 / epoch 2"], epochs),
        markdown_table(["frames", "decode all", "fill the cache", "read it", "decode / read"], loading),
        *([markdown_table(header, crops)] if crops else []),  # Small frames are not shrunk.
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    with parsed_setup(parser, default_frames=400) as (setup, _):
        results = [measure(setup, frames) for frames in setup.frame_sets()]
        how = (
            f"{setup.frames} frames of each size; seconds, medians of {setup.repeats} repeats (smallest to largest); "
            f"{setup.precisions[0]}."
        )
        setup.report("cache", [how, *tables(results)], {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
