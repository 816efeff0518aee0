"""How fast do PNG decoders decode the frames of these benchmarks, in one thread, and do they give Pillow's pixels?

Those that are installed are compared: Pillow (what spatialfeat uses), torchvision.io, kornia-rs, pyspng, imagecodecs. A
decoder is worth a second code path, for plain 8-bit RGB, only if the whole command gains a fifth. Processor time, since
it is what sixteen workers on sixteen cores share; the ways take turns.
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
from bench_frames import make_frames
from bench_setup import machine_facts, machine_line, markdown_table, run_benchmark
from PIL import Image

from spatialfeat.data.images import PNG_HEADER, decode_rgb

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=35, help="of each size (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="write OUT.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    facts = machine_facts("cpu")
    with tempfile.TemporaryDirectory(prefix="spatialfeat-bench-") as folder:
        for width, height in SIZES:
            size = f"{width}x{height}"
            frames = make_frames(Path(folder) / size, width=width, height=height, count=options.frames, seed=0)
            contents = [path.read_bytes() for path in sorted(frames.img_dir.glob("*.png"))]
            rows += rows_of_size(contents, size, options.repeats)
    header = ["frames", "decoder", "ms per frame", "Pillow / it", "pixels"]
    text = f"## bench_decoders\n\n{machine_line(facts)}\n\n{markdown_table(header, rows)}"
    if options.out:
        Path(f"{options.out}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
