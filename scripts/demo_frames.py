"""Draw the pictures of the demo data: stylised endoscope views of tissue, instruments, blood and smoke.

Lengths are in units of the shorter side of the frame, colours are 8-bit RGB, angles are in radians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter

Array = npt.NDArray[np.float32]


class Look(NamedTuple):
    """How one phase looks; tissue is the dark, middle and light colour, the other numbers are 0 to 1."""

    name: str
    tissue: str
    texture: str
    vessels: float
    cavity: float
    tool: str
    tool_rate: float  # rough share of the frames in which the instrument is in view
    blood: float
    haze: float  # smoke or drilling dust


# Neighbouring phases share much of their colour on purpose: hue alone must not give the phase away.
LOOKS = (
    Look("preparation", "#703a34 #c88070 #eebaa8", "plain", 0.15, 0.9, "swab", 0.5, 0.0, 0.0),
    Look("access", "#682624 #be6256 #e89e8c", "folds", 0.3, 0.8, "elevator", 0.7, 0.25, 0.0),
    Look("exposure", "#764230 #c6926e #eecea4", "bone", 0.1, 0.3, "burr", 0.75, 0.25, 0.6),
    Look("dissection", "#64241e #bc624a #e8ac7e", "fibres", 0.4, 0.2, "hook", 0.75, 0.35, 0.75),
    Look("resection", "#5c161c #b04e46 #e2967a", "nodules", 0.5, 0.3, "grasper", 0.8, 0.8, 0.1),
    Look("inspection", "#582228 #b86460 #eab2a8", "plain", 1.0, 0.6, "suction", 0.4, 0.15, 0.0),
    Look("closure", "#703e3c #c48e82 #eed6ca", "weave", 0.3, 0.1, "applicator", 0.6, 0.2, 0.0),
)
NUM_PHASES = len(LOOKS)
# Each instrument lies along +x, tip near (1.5, 0), in units of the shorter side of the frame. One part is
# (shape, colour, x and y by turns): two corners of a rectangle or an ellipse, or all corners of a polygon.
STEEL = "#babec4"
JAW = (1.24, 0, 1.38, 0.10, 1.56, 0.08, 1.54, 0.045, 1.38, 0.05, 1.28, -0.02)
TOOLS: dict[str, tuple[tuple[str, str, tuple[float, ...]], ...]] = {
    "swab": (("box", STEEL, (0, -0.022, 1.4, 0.022)), ("oval", "#ece8e0", (1.29, -0.085, 1.55, 0.085))),
    "elevator": (
        ("box", STEEL, (0, -0.03, 1.3, 0.03)),
        ("shape", STEEL, (1.2, -0.03, 1.5, -0.08, 1.56, 0, 1.5, 0.08, 1.2, 0.03)),
    ),
    "burr": (
        ("box", "#969aa0", (0, -0.06, 1.25, 0.06)),
        ("box", STEEL, (1.2, -0.025, 1.42, 0.025)),
        ("oval", "#d6ba76", (1.39, -0.07, 1.53, 0.07)),
    ),
    "hook": (
        ("box", "#2c2c32", (0, -0.045, 1.35, 0.045)),
        ("box", STEEL, (1.3, -0.016, 1.5, 0.016)),
        ("box", STEEL, (1.47, 0, 1.5, 0.12)),
    ),
    "grasper": (
        ("box", "#787c82", (0, -0.045, 1.28, 0.045)),
        ("shape", STEEL, JAW),
        ("shape", STEEL, tuple(-v if k % 2 else v for k, v in enumerate(JAW))),
    ),
    "suction": (
        ("box", "#a8acb4", (0, -0.036, 1.5, 0.036)),
        ("oval", "#181618", (1.48, -0.036, 1.52, 0.036)),
    ),
    "applicator": (("box", STEEL, (0, -0.03, 1.3, 0.03)), ("box", "#466eb0", (1.25, -0.045, 1.52, 0.045))),
}


def _noise(rng: np.random.Generator, side: int, cells: int, octaves: int, stretch: int = 1) -> Array:
    """Return smooth noise, shape (side, side), mean 0, deviation 1, drawn out in x by `stretch`."""
    total = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        down = cells * 2**octave
        # Drawn on a coarse grid and scaled up by Pillow: far cheaper than noise at full size.
        grid = Image.fromarray(rng.standard_normal((down, max(2, down // stretch)), np.float32))
        total += np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), np.float32) * 0.55**octave
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _relief(rng: np.random.Generator, kind: str, side: int, x: Array, y: Array) -> Array:
    """Return the relief of one kind of tissue, shape (side, side), about -1 to 1. x, y: -1 to 1."""
    coarse = _noise(rng, side, 5, 4)
    if kind == "folds":
        relief = 0.75 * np.sin(26 * (np.hypot(x, y) + 0.05 * coarse)) + 0.2 * coarse
    elif kind == "bone":
        pits = _noise(rng, side, 50, 2)
        relief = 0.3 * coarse - 0.4 * np.clip(pits - 0.6, 0, 1) + 0.04 * pits
    elif kind == "fibres":
        relief = 0.6 * _noise(rng, side, 30, 2, stretch=9) + 0.2 * coarse
    elif kind == "nodules":  # The zero lines of |noise| become the creases between round lumps.
        relief = 0.75 * np.abs(_noise(rng, side, 10, 2)) - 0.6 + 0.15 * coarse
    elif kind == "weave":
        patch = np.clip(2.2 - 6 * (np.hypot(x, y) + 0.08 * coarse), 0, 1)
        threads = np.sin(100 * x + 2 * coarse) * np.sin(100 * y - 2 * coarse)
        relief = patch * (0.16 * threads + 0.55 + 0.15 * coarse) + (1 - patch) * 0.4 * coarse
    else:
        relief = 0.4 * coarse
    return np.asarray(relief, np.float32)


def _tissue(rng: np.random.Generator, look: Look, side: int) -> Image.Image:
    """Draw the tissue of one phase of one patient: RGB, (side, side) px, wider than the view moving on it."""
    x = np.linspace(-1, 1, side, dtype=np.float32)[None, :]
    y = x.T
    relief = _relief(rng, look.texture, side, x, y)
    vessels = np.clip(1 - np.abs(_noise(rng, side, 4, 3)) / 0.09, 0, 1) * look.vessels
    slope = np.diff(relief, axis=1, prepend=relief[:, :1]) + np.diff(relief, axis=0, prepend=relief[:1])
    slope *= side / 60
    # Every patient's tissue differs in colour, by about as much as neighbouring phases do.
    shift = rng.normal(0, 6, 3).astype(np.float32)
    dark, mid, light = (np.array(ImageColor.getrgb(c), np.float32) + shift for c in look.tissue.split())
    height = np.clip(relief, -1, 1)[..., None]
    colour = mid + np.where(height < 0, height * (mid - dark), height * (light - mid))
    colour += vessels[..., None] * np.array((-50, -62, -52), np.float32)
    colour *= (1 + np.clip(slope, -0.5, 0.5) * 0.45)[..., None]
    wet = np.clip(slope - 0.75, 0, 1) * np.clip(_noise(rng, side, 9, 2), 0, 1)
    colour += np.minimum(wet * 420, 150)[..., None]  # Highlights where wet tissue faces the lamp.
    colour *= (1 - 0.85 * look.cavity * np.exp(-(x**2 + y**2) / 0.035))[..., None]
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))


@lru_cache(maxsize=32)
def _tool(kind: str, unit: int) -> Image.Image:
    """Draw an instrument, RGBA, (1.8, 0.5) * unit px, its axis at half height and its tip near 1.5 * unit."""
    scale = 2 * unit  # Drawn at twice the size, then reduced, for smooth edges.
    picture = Image.new("RGBA", (round(1.8 * scale), round(0.5 * scale)))
    pen = ImageDraw.Draw(picture)
    draw = {"box": pen.rectangle, "oval": pen.ellipse, "shape": pen.polygon}
    for shape, colour, points in TOOLS[kind]:
        draw[shape]([(v + 0.25 * (k % 2)) * scale for k, v in enumerate(points)], fill=colour)
    pixels = np.asarray(picture.reduce(2)).astype(np.float32)
    down = (np.arange(pixels.shape[0], dtype=np.float32) / unit - 0.25)[:, None, None]
    # A bright line above the axis and a dark lower side make the flat shapes look round.
    pixels[..., :3] *= 0.45 + 0.75 * np.exp(-(((down + 0.012) / 0.03) ** 2)) - np.clip(down, 0, 0.1) * 2
    solid = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    shade = solid.getchannel("A").filter(ImageFilter.GaussianBlur(0.03 * unit))
    shadow = Image.new("RGBA", solid.size, (20, 6, 6, 0))
    shadow.paste((20, 6, 6, 128), (0, round(0.05 * unit)), shade)
    return Image.alpha_composite(shadow, solid)


def _view(picture: Image.Image, size_px: tuple[int, int], angle: float, zoom: float, *points: float) -> Image.Image:
    """Show a turned picture in a frame. points: x, y (px) in the frame, then the same point in `picture`."""
    c, s, (x, y, u, v) = math.cos(angle) * zoom, math.sin(angle) * zoom, points
    inverse = (c, s, u - c * x - s * y, -s, c, v + s * x - c * y)
    return picture.transform(size_px, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)


def _drift(rng: np.random.Generator, seconds: Array, period_s: float) -> Array:
    """Return a smooth walk about 0, within -1 to 1, shape (frames,)."""
    turns, (first, second) = 2 * np.pi * seconds / period_s, rng.uniform(0, 2 * np.pi, 2)
    return np.asarray(0.65 * np.sin(turns + first) + 0.35 * np.sin(2.7 * turns + second), np.float32)


def _light(rng: np.random.Generator, width: int, height: int) -> Array:
    """Return one patient's light: tint, fall-off and round soft-edged view, shape (height, width, 3)."""
    x = (np.arange(width) - width / 2)[None, :] / min(width, height) - rng.uniform(-0.05, 0.05)
    y = (np.arange(height) - height / 2)[:, None] / min(width, height) - rng.uniform(-0.03, 0.03)
    radius = rng.uniform(0.5, 0.64)
    lamp = np.hypot(x - rng.uniform(-0.12, 0.12), y - rng.uniform(-0.1, 0.1)) / radius
    light = np.clip((radius - np.hypot(x, y)) / 0.02, 0, 1) * (0.22 + np.exp(-1.3 * lamp**2))
    tint = rng.uniform(0.82, 1.12) * rng.uniform((0.95, 0.90, 0.86), (1.05, 1.08, 1.12))
    return np.asarray(light[..., None] * tint, np.float32)


def _veil(look: Look, blood: Array, haze: Array, bleeding: float, smoking: float) -> Image.Image:
    """Draw blood under smoke or dust: RGBA, the size of the two noise fields; the levels are 0 to 1."""
    red = min(1.0, 1.4 * look.blood) * np.clip(0.5 + 2.5 * (blood - 1.3 + 1.1 * look.blood * bleeding), 0, 0.9)
    grey = look.haze * np.clip(0.5 + 0.6 * haze, 0, 1) * smoking
    alpha = 1 - (1 - red) * (1 - grey)
    share = (grey / np.maximum(alpha, 1e-3))[..., None]
    dust = 0.5 * np.array(ImageColor.getrgb(look.tissue.split()[2])) + 100
    pixels = np.concatenate([share * dust + (1 - share) * (124, 14, 18), 255 * alpha[..., None]], axis=2)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_frames(
    labels: list[int], seconds: list[int], size_px: tuple[int, int], rng: np.random.Generator
) -> Iterator[Image.Image]:
    """Yield the frames of one operation, RGB, size_px = (width, height); seconds: when each was taken."""
    (width, height), unit, num_frames = size_px, min(size_px), len(labels)
    light = _light(rng, width, height)
    lit = light.max(axis=2, keepdims=True) > 0
    grain = rng.normal(0, 0.7, (2 * height, 2 * width, 1)).astype(np.float32)
    tissues = [_tissue(rng, look, 2 * unit) for look in LOOKS]
    side = max(size_px) // 2
    blood, haze = (_noise(rng, side, cells, 3) for cells in (8, 6))
    entry = rng.uniform(0, 2 * np.pi, NUM_PHASES)
    turn = rng.normal(0, 0.4)
    # Each walk has a period of its own, in seconds, so that no two movements repeat together.
    periods = (37, 47, 61, 41, 53, 29, 19, 23, 17, 31, 43, 21)
    walks = np.stack([_drift(rng, np.array(seconds, np.float32), period) for period in periods], axis=1)
    # Smoothed over five frames: the tissue of neighbouring phases mixes around each change of phase.
    one_hot = np.pad(np.eye(NUM_PHASES)[labels], ((2, 2), (0, 0)), mode="edge")
    weights = np.array((0.1, 0.2, 0.4, 0.2, 0.1))
    mix = sum((one_hot[k : k + num_frames] * weights[k] for k in range(5)), np.zeros((num_frames, NUM_PHASES)))
    for row, walk in enumerate(walks.tolist()):
        swap, roll, zoom, pan_x, pan_y, exposure, swing, tip_x, tip_y, reach, bleeding, smoking = walk
        second, first = np.argsort(mix[row], kind="stable")[-2:]
        tissue = Image.blend(tissues[first], tissues[second], float(mix[row, second]))
        centre = (width / 2, height / 2, unit + 0.22 * unit * pan_x, unit + 0.22 * unit * pan_y)
        frame = _view(tissue, size_px, turn + 0.2 * roll, 1 + 0.12 * zoom, *centre)
        # The instrument changes up to two frames before or after the label does.
        phase = labels[min(max(row + round(1.6 * swap), 0), num_frames - 1)]
        look = LOOKS[phase]
        if look.blood or look.haze:
            down, across = (int(side / 4 * (1 + 0.6 * value)) for value in (tip_x, tip_y))
            window = np.s_[down : down + height // 4, across : across + width // 4]
            veil = _veil(look, blood[window], haze[window], 0.5 + 0.5 * bleeding, 0.5 + 0.5 * smoking)
            veil = veil.resize(size_px, Image.Resampling.BILINEAR)
            frame.paste(veil, (0, 0), veil)
        # How far it is drawn back, 1 being out of view; the walk is spread about evenly over -1 to 1.
        out = max(0.0, 1 + 4 * (reach - 0.9 * (2 * look.tool_rate - 1)))
        if out < 1:
            angle = entry[phase] + 0.25 * swing
            x = width / 2 + unit * (0.14 * tip_x - 0.6 * out * math.cos(angle))
            y = height / 2 + unit * (0.14 * tip_y - 0.6 * out * math.sin(angle))
            tool = _view(_tool(look.tool, unit), size_px, angle, 0.9, x, y, 1.45 * unit, 0.25 * unit)
            frame.paste(tool, (0, 0), tool)
        pixels = np.asarray(frame, np.float32) * (light * np.float32(1 + 0.1 * exposure))
        top, left = rng.integers(0, (height, width))
        pixels += grain[top : top + height, left : left + width] * lit
        yield Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
