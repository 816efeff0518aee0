"""How fast do decoders decode the frames of these benchmarks, in one thread, and do they give Pillow's pixels?

PNG by those that are installed: Pillow (what spatialfeat uses), torchvision.io, kornia-rs, pyspng, imagecodecs. JPEG by
Pillow and torchvision.io, and with `--device cuda` by the GPU, in batches. A decoder is worth a second code path only
if the whole command gains a fifth. Of one thread it is processor time, since that is what sixteen workers on sixteen
cores share; of the GPU it is time, with the bytes in the main memory and the frames in the GPU's. The ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_frames import as_jpeg, make_frames
from bench_setup import machine_facts, markdown_table, run_benchmark, write_results
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from spatialfeat.data.images import PNG_HEADER, decode_rgb
from spatialfeat.device import select_device

Decoder = Callable[[Sequence[bytes]], list[Any]]
"""From the bytes of some files to their RGB images, arrays or tensors (H, W, 3) uint8."""
SIZES = ((456, 256), (1280, 720))


class Way(NamedTuple):
    """A decoder, and of how many files it is given the bytes at once."""

    decode: Decoder
    batch: int = 1


def one_by_one(decode: Callable[[bytes], Any]) -> Way:
    """Of a decoder of a single file."""
    return Way(lambda contents: [np.asarray(decode(content)) for content in contents])


PILLOW = one_by_one(lambda content: Image.open(BytesIO(content)).convert("RGB"))


def png_ways() -> dict[str, Way]:
    """By name, those whose libraries are here."""

    def kornia(module: Any) -> Callable[[bytes], Any]:
        def decode(content: bytes) -> Any:
            _, _, width, height, _, _ = PNG_HEADER.unpack_from(content)  # It must be told the shape.
            return module.decode_image_png_u8(content, (height, width), "rgb")

        return decode

    found = {
        "Pillow": PILLOW,
        "spatialfeat (Pillow)": one_by_one(decode_rgb),
        "torchvision.io": Way(partial(by_torchvision, decode_png)),
    }
    makers: dict[str, tuple[str, Callable[[Any], Callable[[bytes], Any]]]] = {
        "kornia-rs": ("kornia_rs.io", kornia),
        "pyspng": ("pyspng", lambda module: module.load),
        "imagecodecs, libpng": ("imagecodecs", lambda module: module.png_decode),
        "imagecodecs, spng": ("imagecodecs", lambda module: module.spng_decode),
    }
    for name, (module_name, make) in makers.items():
        try:
            found[name] = one_by_one(make(import_module(module_name)))
        except ImportError:
            print(f"{name} is not installed", file=sys.stderr)
    return found


def jpeg_ways(device: torch.device) -> dict[str, Way]:
    """By name."""
    if device.type != "cuda":
        return {"JPEG: Pillow": PILLOW, "JPEG: torchvision.io": Way(partial(by_torchvision, decode_jpeg))}

    def on_device(contents: Sequence[bytes]) -> list[torch.Tensor]:
        images = decode_jpeg([_bytes(content) for content in contents], ImageReadMode.RGB, device=device)
        torch.cuda.synchronize(device)
        return [image.permute(1, 2, 0) for image in images]

    batches = {f"JPEG: torchvision on {device}, batches of {batch}": Way(on_device, batch) for batch in (32, 128)}
    return {"JPEG: Pillow": PILLOW, **batches}


def by_torchvision(function: Callable[..., torch.Tensor], contents: Sequence[bytes]) -> list[torch.Tensor]:
    """By one of torchvision.io's decoders, file by file."""
    return [function(_bytes(content), ImageReadMode.RGB).permute(1, 2, 0) for content in contents]


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def rows_of_size(ways: dict[str, Way], contents: list[bytes], size: str, repeats: int) -> list[list[str]]:
    """A row per decoder: milliseconds for a frame, and how its pixels differ from Pillow's, the first way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (decode, batch) in ways.items():
            clock = time.process_time if batch == 1 else time.perf_counter
            decode(contents[:batch])
            start = clock()
            for first in range(0, len(contents), batch):
                decode(contents[first : first + batch])
            seconds[name].append((clock() - start) / len(contents))
    base = statistics.median(next(iter(seconds.values())))
    rows = []
    for name, (decode, _) in ways.items():
        found, expected = decode(contents[:4]), np.stack(PILLOW.decode(contents[:4])).astype(int)
        images = [image.cpu() if isinstance(image, torch.Tensor) else image for image in found]
        apart = np.abs(np.stack([np.asarray(image) for image in images]) - expected)
        median = statistics.median(seconds[name])
        differing = f"up to {apart.max()} levels apart, {(apart > 0).mean():.1%} of the values"
        pixels = "the same" if apart.max() == 0 else differing
        rows.append([size, name, f"{median * 1e3:.3f}", f"{base / median:.2f}", pixels])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=35, help="of each size (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cuda: JPEG there too")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    device, facts = select_device(options.device), machine_facts(options.device)
    pngs, jpegs = png_ways(), jpeg_ways(device)
    with tempfile.TemporaryDirectory(prefix="spatialfeat-bench-") as folder:
        for width, height in SIZES:
            size = f"{width}x{height}"
            frames = make_frames(Path(folder) / size, width=width, height=height, count=options.frames, seed=0)
            for ways, some in ((pngs, frames), (jpegs, as_jpeg(frames, Path(folder) / f"{size}_jpeg"))):
                contents = [path.read_bytes() for path in sorted(some.img_dir.iterdir())]
                rows += rows_of_size(ways, contents, size, options.repeats)
    header = ["frames", "decoder", "ms per frame", "Pillow / it", "pixels against Pillow's"]
    write_results(options.out, "decoders", facts, [markdown_table(header, rows)], {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
