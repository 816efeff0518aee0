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
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_frames import as_jpeg, make_frames
from bench_setup import machine_facts, machine_line, markdown_table, run_benchmark
from PIL import Image

from spatialfeat.data.images import PNG_HEADER, decode_rgb
from spatialfeat.device import select_device

Decoder = Callable[[bytes], Any]
SIZES = ((456, 256), (1280, 720))


def decoders() -> dict[str, Decoder]:
    """By name, those whose libraries are here; each maps a file's bytes to what it calls an RGB image."""
    from torchvision.io import ImageReadMode, decode_png

    def by_torchvision(content: bytes) -> Any:
        tensor = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        return tensor.permute(1, 2, 0).numpy()

    def by_kornia(module: Any) -> Decoder:
        def decode(content: bytes) -> Any:
            _, _, width, height, _, _ = PNG_HEADER.unpack_from(content)  # It must be told the shape.
            return module.decode_image_png_u8(content, (height, width), "rgb")

        return decode

    found: dict[str, Decoder] = {
        "Pillow": lambda content: np.asarray(Image.open(BytesIO(content)).convert("RGB")),
        "spatialfeat (Pillow)": lambda content: np.asarray(decode_rgb(content)),
        "torchvision.io": by_torchvision,
    }
    makers: dict[str, tuple[str, Callable[[Any], Decoder]]] = {
        "kornia-rs": ("kornia_rs.io", by_kornia),
        "pyspng": ("pyspng", lambda module: module.load),
        "imagecodecs, libpng": ("imagecodecs", lambda module: module.png_decode),
        "imagecodecs, spng": ("imagecodecs", lambda module: module.spng_decode),
    }
    for name, (module_name, make) in makers.items():
        try:
            found[name] = make(import_module(module_name))
        except ImportError:
            print(f"{name} is not installed", file=sys.stderr)
    return found


def rows_of_size(contents: list[bytes], size: str, repeats: int) -> list[list[str]]:
    """A row per decoder: milliseconds of processor time for a frame, and how its pixels differ from Pillow's."""
    ways = decoders()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, decode in ways.items():
            start = time.process_time()
            for content in contents:
                decode(content)
            seconds[name].append((time.process_time() - start) / len(contents))
    base = statistics.median(seconds["Pillow"])
    rows = []
    for name, decode in ways.items():
        apart = [
            int(np.abs(np.asarray(decode(content)).astype(int) - np.asarray(ways["Pillow"](content))).max())
            for content in contents[:4]
        ]
        median = statistics.median(seconds[name])
        same = "the same" if max(apart) == 0 else f"up to {max(apart)} levels apart"
        rows.append([size, name, f"{median * 1e3:.2f}", f"{base / median:.2f}", same])
    return rows


def jpeg_rows(contents: list[bytes], size: str, repeats: int, device: torch.device) -> list[list[str]]:
    """A row per decoder of JPEG files: milliseconds of a frame, and how pixels differ from Pillow's."""
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    on_gpu = device.type == "cuda"

    def by_pillow(first: int, last: int) -> list[torch.Tensor]:
        images = [Image.open(BytesIO(content)).convert("RGB") for content in contents[first:last]]
        return [torch.from_numpy(np.array(image)) for image in images]

    def by_torchvision(first: int, last: int) -> list[torch.Tensor]:
        images = decode_jpeg(tensors[first:last], ImageReadMode.RGB, device=device)
        if on_gpu:
            torch.cuda.synchronize(device)
        return [image.permute(1, 2, 0) for image in images]

    ways = {"Pillow": (by_pillow, 1)}
    if on_gpu:
        ways |= {f"torchvision on {device}, batches of {batch}": (by_torchvision, batch) for batch in (32, 128)}
    else:
        ways["torchvision.io"] = (by_torchvision, 1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (decode, batch) in ways.items():
            clock = time.process_time if batch == 1 else time.perf_counter
            decode(0, batch)
            start = clock()
            for first in range(0, len(contents), batch):
                decode(first, first + batch)
            seconds[name].append((clock() - start) / len(contents))
    base = statistics.median(seconds["Pillow"])
    rows = []
    for name, (decode, _) in ways.items():
        pairs = zip(decode(0, 4), by_pillow(0, 4), strict=True)
        apart = torch.stack([(one.cpu().int() - other.int()).abs() for one, other in pairs])
        median = statistics.median(seconds[name])
        differing = f"up to {int(apart.max())} levels apart, {float((apart > 0).float().mean()):.1%} of the values"
        pixels = "the same" if apart.max() == 0 else differing
        rows.append([size, f"JPEG: {name}", f"{median * 1e3:.3f}", f"{base / median:.2f}", pixels])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=35, help="of each size (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cuda: JPEG there too")
    parser.add_argument("--out", type=Path, help="write OUT.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    device = select_device(options.device)
    facts = machine_facts(options.device)
    with tempfile.TemporaryDirectory(prefix="spatialfeat-bench-") as folder:
        for width, height in SIZES:
            size = f"{width}x{height}"
            frames = make_frames(Path(folder) / size, width=width, height=height, count=options.frames, seed=0)
            contents = [path.read_bytes() for path in sorted(frames.img_dir.glob("*.png"))]
            rows += rows_of_size(contents, size, options.repeats)
            jpegs = as_jpeg(frames, Path(folder) / f"{size}_jpeg").img_dir
            contents = [path.read_bytes() for path in sorted(jpegs.iterdir())]
            rows += jpeg_rows(contents, size, options.repeats, device)
    header = ["frames", "decoder", "ms per frame", "Pillow / it", "pixels against Pillow's"]
    text = f"## bench_decoders\n\n{machine_line(facts)}\n\n{markdown_table(header, rows)}"
    if options.out:
        Path(f"{options.out}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
