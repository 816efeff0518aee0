"""The specified augmentation: drawn frame by frame, and done either frame by frame or for a batch on a device.

`Augmentation.draw` takes the numbers from torch's global RNG exactly as torchvision's classic pipeline does. The form
for batches computes what that for frames (torchvision, Pillow) does, step by step with its rounding:

- A crop resized to the network's input is two matrix products, along rows and then along columns, with triangle filters
  whose weights are the 16-bit integers that torch's resizing of uint8 uses. Sums of such products are whole numbers
  that float32 holds exactly (but for frames shrunk to a quarter and less), so the result is the same to the bit. Where
  torch resizes through floats (processors without AVX2), some values are a level apart.
- Pillow rotates in steps of 1/65536 pixel: the same integers say here which pixel goes where.
- Brightness, contrast and saturation are blends with black, the mean grey and the grey of each pixel, cut off to whole
  levels after each.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the frame's area that a crop covers, and its width over its height."""
DEGREES = (-10.0, 10.0)
JITTER = (0.8, 1.2)
"""Factors of brightness, contrast and saturation."""

MAX_CUT = 4
"""A box of more than so many times the network's input is resized where it is cut, and not in a batch with others: it
is part of a frame that takes long to decode anyway, and would fill the memory that frames are handed over in."""

BRIGHTNESS, CONTRAST, SATURATION = range(3)
_ADJUST = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)

FRAMES_AT_ONCE = 64
"""A batch is augmented in parts of so many frames, which bounds the memory."""
WEIGHT_BITS, MAX_PRECISION = 15, 22
"""torch's integer weights of a resizing have as many bits behind the point as keep the largest below 2 ** 15."""


Box: TypeAlias = tuple[int, int, int, int]
"""A part of a frame: top, left, height, width, in pixels."""


class Augmentation(NamedTuple):
    """What is done to a frame: cut out a box, resize it, perhaps flip it, rotate it, then change its colours.

    top, left, height, width: the box, in pixels. angle: degrees, anticlockwise. colours: (which, factor) of BRIGHTNESS,
    CONTRAST and SATURATION, in the order of doing.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool
    angle: float
    colours: tuple[tuple[int, float], ...]

    @classmethod
    def draw(cls, frame: torch.Tensor) -> Augmentation:
        """Draw from torch's global RNG for a frame (3, H, W), of which only the shape matters."""
        top, left, height, width = transforms.RandomResizedCrop.get_params(frame, list(SCALE), list(RATIO))
        flip = bool(torch.rand(1) < 0.5)
        angle = transforms.RandomRotation.get_params(list(DEGREES))
        jitter = list(JITTER)
        order, *factors, _ = transforms.ColorJitter.get_params(jitter, jitter, jitter, None)
        colours = tuple((which, float(factors[which])) for which in order.tolist() if which < len(_ADJUST))
        return cls(top, left, height, width, flip, angle, colours)

    @property
    def box(self) -> Box:
        return self.top, self.left, self.height, self.width

    def __call__(self, frame: torch.Tensor, size_px: int) -> torch.Tensor:
        """(3, H, W) uint8 -> (3, size_px, size_px) uint8, step by step with torchvision's functionals."""
        pixels = _resized_box(frame, self.box, size_px)
        if self.flip:
            pixels = functional.horizontal_flip(pixels)
        # The one step that Pillow does faster, by 1 ms a frame: tensors are rotated through a grid of coordinates.
        rotated = functional.rotate(functional.to_pil_image(pixels), self.angle, fill=[0.0])
        pixels = functional.pil_to_tensor(rotated)
        for which, factor in self.colours:
            pixels = _ADJUST[which](pixels, factor)
        assert isinstance(pixels, torch.Tensor)
        return pixels

    def row(self, size_px: int, cut_size: tuple[int, int]) -> list[float]:
        """What is left to do with the cut box, or with what it was resized to, of `cut_size` (height, width)."""
        which, factors = zip(*self.colours, strict=True)
        return [*cut_size, self.flip, *_rotation_steps(self.angle, size_px), *which, *factors]


def cut_size(box: Box, size_px: int) -> tuple[int, int]:
    """(height, width) of what `cut_box` gives: the box's, or if it is a large one, the network's input."""
    _, _, height, width = box
    return (size_px, size_px) if height * width > MAX_CUT * size_px**2 else (height, width)


def cut_box(frame: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    """The box of a frame (3, H, W) uint8, as a view of it, or resized: (3, *cut_size(box, size_px))."""
    return _cut(frame, box) if cut_size(box, size_px) == box[2:] else _resized_box(frame, box, size_px)


def _cut(frame: torch.Tensor, box: Box) -> torch.Tensor:
    top, left, height, width = box
    return frame[:, top : top + height, left : left + width]


def _resized_box(frame: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    pixels: torch.Tensor = functional.resize(_cut(frame, box), [size_px, size_px], antialias=True)
    return pixels


def _rotation_steps(angle: float, size_px: int) -> list[int]:
    """Six whole numbers, of 1/65536 pixel: output pixel (x, y) shows input pixel (a x + b y + c, d x + e y + f)."""
    radians, centre = -math.radians(angle % 360.0), size_px / 2
    a, b = round(math.cos(radians), 15), round(math.sin(radians), 15)
    d, e = round(-math.sin(radians), 15), round(math.cos(radians), 15)
    # From and to the middle of pixels, as Pillow does.
    c, f = a * -centre + b * -centre + centre, d * -centre + e * -centre + centre
    steps = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(step * 65536.0 + 0.5) for step in steps]


def augment_batch(cuts: torch.Tensor, rows: torch.Tensor, size_px: int) -> torch.Tensor:
    """Do to a batch of cut boxes what is left of their augmentation.

    Args:
        cuts: (B, H, W, 3) uint8, from `cut_box`, each in its upper left corner; what lies around it does not matter.
        rows: (B, 15) float64 on the same device, from `Augmentation.row`.

    Returns:
        (B, 3, size_px, size_px) uint8.
    """
    parts = zip(torch.split(cuts, FRAMES_AT_ONCE), torch.split(rows, FRAMES_AT_ONCE), strict=True)
    done = [_augmented(some_cuts, some_rows, size_px) for some_cuts, some_rows in parts]
    return torch.cat(done) if len(done) != 1 else done[0]


def _augmented(cuts: torch.Tensor, rows: torch.Tensor, size_px: int) -> torch.Tensor:
    heights, widths, flips = rows[:, 0], rows[:, 1], rows[:, 2] > 0
    pixels = _resized(cuts, heights, widths, flips, size_px)
    pixels = _rotated(pixels, rows[:, 3:9].long())
    for which, factor in zip(rows[:, 9:12].unbind(1), rows[:, 12:15].unbind(1), strict=True):
        pixels = _recoloured(pixels, which, factor)
    return pixels.to(torch.uint8)


def _resized(
    cuts: torch.Tensor, heights: torch.Tensor, widths: torch.Tensor, flips: torch.Tensor, size_px: int
) -> torch.Tensor:
    """Resize and flip. Returns (B, 3, size_px, size_px) float32, whole levels."""
    batch, height, width, _ = cuts.shape
    pixels = cuts.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    across, unit = _triangle_filters(widths, width, size_px)
    across = torch.where(flips[:, None, None], across.flip(1), across)
    pixels = _rounded(pixels.view(batch, 3 * height, width) @ across.transpose(1, 2), unit)
    down, unit = _triangle_filters(heights, height, size_px)
    return _rounded(down.unsqueeze(1) @ pixels.view(batch, 3, height, size_px), unit.unsqueeze(1))


def _triangle_filters(lengths: torch.Tensor, longest: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How to resize the first `lengths` (B,) of `longest` pixels to `size_px`, antialiased.

    Returns weights (B, size_px, longest) float32, whole numbers, and what counts as 1 among them, (B, 1, 1) float32.
    """
    scale = (lengths / size_px)[:, None, None]
    centre = scale * (torch.arange(size_px, dtype=torch.float64, device=lengths.device)[:, None] + 0.5)
    place = torch.arange(longest, dtype=torch.float64, device=lengths.device)
    weights = (1 - ((place + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp(min=0)
    weights = weights * (place < lengths[:, None, None])
    weights = weights / weights.sum(dim=2, keepdim=True)
    largest = weights.amax(dim=(1, 2), keepdim=True)
    powers = 2.0 ** torch.arange(1, MAX_PRECISION + 1, dtype=torch.float64, device=lengths.device)
    precision = (torch.floor(0.5 + largest * powers) < 2**WEIGHT_BITS).sum(dim=2, keepdim=True)
    unit = torch.exp2(precision.double())
    return torch.floor(weights * unit + 0.5).float(), unit.float()


def _rounded(sums: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Weighted sums of levels as levels: whole numbers, a half rounded up."""
    return sums.add_(unit / 2).div_(unit).floor_().clamp_(0, 255)


def _rotated(pixels: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The nearest pixel for each, black where there is none. pixels: (B, 3, S, S). steps: (B, 6) int64."""
    size_px = pixels.shape[-1]
    places = torch.arange(size_px, device=pixels.device)
    a, b, c, d, e, f = (step[:, None, None] for step in steps.unbind(1))
    x = (a * places + b * places[:, None] + c) >> 16
    y = (d * places + e * places[:, None] + f) >> 16
    inside = (x >= 0) & (x < size_px) & (y >= 0) & (y < size_px)
    source = torch.where(inside, y * size_px + x, 0).flatten(1)[:, None].expand(-1, 3, -1)
    return pixels.flatten(2).gather(2, source).view_as(pixels).mul_(inside.unsqueeze(1))


def _recoloured(pixels: torch.Tensor, which: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend each frame with what `which` (B,) says by its `factor` (B,). pixels: (B, 3, S, S) float32, whole levels."""
    red, green, blue = pixels.unbind(1)
    grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)
    which, factor = which[:, None, None, None], factor[:, None, None, None]
    other = torch.where(which == CONTRAST, grey.mean(dim=(2, 3), keepdim=True), grey) * (which != BRIGHTNESS)
    blended = pixels * factor.float() + other * (1 - factor).float()
    return blended.clamp_(0, 255).floor_()
