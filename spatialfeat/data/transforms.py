"""From an RGB image to the network's input: the training augmentation and the one evaluation preprocessing.

Resizing runs on uint8 tensors with antialiasing, which equals Pillow's result almost to the bit and is several times
faster. Frames stay uint8 until they are on the device, where `normalize` turns them into float32: a quarter of the
bytes to move between processes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from spatialfeat.config import RESIZINGS
from spatialfeat.data.augmentation import Augmentation, Box, cut_box, cut_size
from spatialfeat.errors import SpatialfeatError

MAX_SIZE_PX = 10_000

SHORT_SIDE, SQUASH = RESIZINGS
CHANNEL_ORDERS = RGB, BGR = ("rgb", "bgr")
Colours: TypeAlias = tuple[float, float, float]
"""One number for red, green and blue each."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a frame before the network sees it; stored with the weights and in every feature file.

    The shorter side is resized to `resize_px`, or with resize "squash" both sides are, or the height to `resize_px` and
    the width to `width_px`; the central `crop_px` x `crop_px` pixels are kept, values are scaled to 0..1 and normalized
    per channel. mean and std are in the order of red, green and blue; channels is the order that the network gets.
    """

    resize: str = SHORT_SIDE
    resize_px: int = 256
    crop_px: int = 224
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: Colours = IMAGENET_MEAN
    std: Colours = IMAGENET_STD
    width_px: int | None = None
    channels: str = RGB

    def __post_init__(self) -> None:
        """Raises ValueError for values that no network takes; a description may come from anywhere."""
        sizes: tuple[object, ...] = (self.resize_px, self.crop_px)
        sizes += () if self.width_px is None else (self.width_px,)
        if not all(type(size) is int and 0 < size <= MAX_SIZE_PX for size in sizes):
            raise ValueError(f"sizes {str(sizes)[:80]} are not 1 to {MAX_SIZE_PX} pixels")
        if self.resize not in RESIZINGS:
            raise ValueError(f"resize {str(self.resize)[:80]!r} is not one of {', '.join(RESIZINGS)}")
        if self.width_px is not None and self.resize != SQUASH:
            raise ValueError(f"width_px {self.width_px} has a meaning with resize {SQUASH} only")
        if self.channels not in CHANNEL_ORDERS:
            raise ValueError(f"channels {str(self.channels)[:80]!r} is not one of {', '.join(CHANNEL_ORDERS)}")
        known = [mode.value for mode in InterpolationMode]
        if self.interpolation not in known or type(self.antialias) is not bool:
            raise ValueError(f"interpolation {str(self.interpolation)[:80]!r} or antialias is unknown")
        if not _are_colours(self.mean) or not _are_colours(self.std) or min(self.std) <= 0:
            raise ValueError("mean or std is not three finite numbers, std above 0")

    @classmethod
    def for_image_size(cls, image_size_px: int) -> Preprocessing:
        """The specification's proportions (256 : 224) at another input size."""
        return cls(resize_px=round(image_size_px * 256 / 224), crop_px=image_size_px)

    def at(self, image_size_px: int) -> Preprocessing:
        """The same for a network's input of another size: every size in proportion."""
        ratio = image_size_px / self.crop_px
        width_px = None if self.width_px is None else round(self.width_px * ratio)
        return replace(self, resize_px=round(self.resize_px * ratio), crop_px=image_size_px, width_px=width_px)

    @classmethod
    def of_options(
        cls, how: str | None, mean: Colours | None, std: Colours | None, usual: Preprocessing | None = None
    ) -> Preprocessing | None:
        """What --preprocessing, --mean and --std say together; None where none of them is given.

        how: "squash" (both sides to the network's input), "short-side" (in the specification's proportions), or the
        path of a JSON file: of `as_dict`, or of the description of weights that holds it.
        usual: the encoder's own, which holds where the options say nothing else; None is the specification's.
        """
        if how is None and mean is None and std is None:
            return None
        base = usual or cls()
        if how == SQUASH:
            base = replace(base, resize=SQUASH, resize_px=base.crop_px, width_px=None)
        elif how == SHORT_SIDE:
            short_px = cls.for_image_size(base.crop_px).resize_px
            base = replace(base, resize=SHORT_SIDE, resize_px=short_px, width_px=None)
        elif how is not None:
            base = cls._read(Path(how))
        return replace(base, mean=mean or base.mean, std=std or base.std)

    @classmethod
    def _read(cls, path: Path) -> Preprocessing:
        place = f"--preprocessing {path}"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found = cls.from_dict(stored.get("preprocessing", stored))
        except OSError as error:
            raise SpatialfeatError(
                f"{place}: cannot be read ({error.strerror}); pass {' or '.join(RESIZINGS)}, or a JSON file"
            ) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            names = ", ".join(cls.__dataclass_fields__)
            raise SpatialfeatError(f"{place}: is no preprocessing ({error}); it is JSON with {names}") from error
        return found

    def describe(self) -> str:
        """In words: `shorter side to 256 px, central 224 px, mean 0.485 0.456 0.406, std 0.229 0.224 0.225`."""
        resized = f"{'both sides' if self.resize == SQUASH else 'shorter side'} to {self.resize_px} px"
        if self.width_px is not None:
            resized = f"height to {self.resize_px} px and width to {self.width_px} px"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        order = "" if self.channels == RGB else f", channels in the order {self.channels.upper()}"
        return f"{resized}, central {self.crop_px} px, mean {mean}, std {std}{order}"

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Preprocessing:
        """The inverse of `as_dict`. Raises TypeError for unknown or missing fields."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**fields)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: tuples become lists. What can differ since schema 2 stands there only where it does."""
        stored = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        # Texts of files that were made before there was a choice stay equal.
        for key, usual in (("resize", SHORT_SIDE), ("width_px", None), ("channels", RGB)):
            if stored[key] == usual:
                del stored[key]
        return stored


RgbImage: TypeAlias = Image.Image | NDArray[np.uint8]


class Cut(NamedTuple):
    """What a worker hands over of a frame: pixels (3, h, w) uint8, and the row that says what is left to do with them.

    An empty row: nothing, they are the network's input.
    """

    pixels: torch.Tensor
    left_to_do: list[float]


@dataclass(frozen=True)
class FrameTransform:
    """The way of a frame to the network: fixed steps, whose result can be kept, then perhaps random ones.

    fixed: an RGB image, of Pillow, (H, W, 3) uint8, or a tensor (..., 3, H, W) uint8 -> a tensor (..., 3, H, W) uint8.
    random: (3, H, W) uint8 -> Cut, drawing from torch's global RNG; None if `fixed` ends there. fixed_steps: describes
    them; equal texts mean equal pixels. ahead: for a frame that the device decodes too, of a size (height, width): what
    to cut out of it, and the row of a Cut; None where the device makes `fixed` of it.
    """

    fixed: Callable[[RgbImage | torch.Tensor], torch.Tensor]
    random: Callable[[torch.Tensor], Cut] | None
    fixed_steps: str
    ahead: Callable[[tuple[int, int]], tuple[Box, list[float]]] | None = None

    def finish(self, pixels: torch.Tensor) -> Cut:
        """The result of the fixed steps with what follows them here."""
        return Cut(pixels, []) if self.random is None else self.random(pixels)

    def __call__(self, image: RgbImage | torch.Tensor) -> torch.Tensor:
        """The network's input, of a transform that leaves nothing to the device."""
        pixels, left_to_do = self.finish(self.fixed(image))
        assert not left_to_do
        return pixels


def _are_colours(values: object) -> bool:
    """Whether these are three finite numbers, for red, green and blue."""
    numbers = values if isinstance(values, tuple) else ()
    return len(numbers) == 3 and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)


@lru_cache(maxsize=16)
def evaluation_transform(preprocessing: Preprocessing) -> FrameTransform:
    """Resize, centre crop, nothing random. Maps an RGB image to (3, crop_px, crop_px) uint8."""
    of_device = ("mean", "std", "channels")
    sizes = {name: value for name, value in preprocessing.as_dict().items() if name not in of_device}
    side = preprocessing.resize_px
    steps = v2.Compose(
        [
            _to_tensor,
            v2.Resize(
                [side, preprocessing.width_px or side] if preprocessing.resize == SQUASH else side,
                interpolation=InterpolationMode(preprocessing.interpolation),
                antialias=preprocessing.antialias,
            ),
            v2.CenterCrop(preprocessing.crop_px),
        ]
    )
    return FrameTransform(steps, None, _describe("evaluation", **sizes))


def training_transform(
    preprocessing: Preprocessing, shrink_to_px: int | None = None, *, on_device: bool = False
) -> FrameTransform:
    """The specified augmentation. Maps an RGB image to (3, crop_px, crop_px) uint8; draws from torch's global RNG.

    With `shrink_to_px`, frames are first shrunk until their shorter side has so many pixels, never enlarged: what a
    cache has to keep of a large frame. A random crop that is smaller than the network's input is then less sharp.

    With `on_device`, the frame is only cut here, into a `Cut` that `augment_batch` makes the rest of.
    """
    size_px = preprocessing.crop_px
    return FrameTransform(
        partial(_decoded, shrink_to_px=shrink_to_px),
        partial(_cut if on_device else _augmented, size_px=size_px),
        _describe("training", shrink_to_px=shrink_to_px),
        partial(_drawn, size_px=size_px) if on_device else None,
    )


def _augmented(frame: torch.Tensor, size_px: int) -> Cut:
    return Cut(Augmentation.draw(frame)(frame, size_px), [])


def _cut(frame: torch.Tensor, size_px: int) -> Cut:
    augmentation = Augmentation.draw(frame)
    return Cut(cut_box(frame, augmentation.box, size_px), _row(augmentation, size_px))


def _drawn(size: tuple[int, int], size_px: int) -> tuple[Box, list[float]]:
    augmentation = Augmentation.draw(torch.empty(3, *size, device="meta"))
    return augmentation.box, _row(augmentation, size_px)


def _row(augmentation: Augmentation, size_px: int) -> list[float]:
    return augmentation.row(size_px, cut_size(augmentation.box, size_px))


def _to_tensor(image: RgbImage | torch.Tensor) -> torch.Tensor:
    """(3, H, W) uint8, in Pillow's order in memory. Tensors stay what they are, in a batch and on a device too."""
    if isinstance(image, torch.Tensor):
        return image
    pixels = np.array(image) if isinstance(image, Image.Image) else image
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decoded(image: RgbImage | torch.Tensor, shrink_to_px: int | None) -> torch.Tensor:
    pixels = _to_tensor(image)
    if shrink_to_px is not None and min(pixels.shape[1:]) > shrink_to_px:
        pixels = functional.resize(pixels, [shrink_to_px], antialias=True)
        # In Pillow's order in memory, as it comes back from a cache: sums over pixels must not depend on that.
        pixels = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return pixels


def _describe(kind: str, **options: object) -> str:
    # Another version may round another pixel. What follows the + of a version names the device, not the arithmetic.
    versions = [version.partition("+")[0] for version in (torch.__version__, torchvision.__version__, PIL.__version__)]
    return json.dumps({"for": kind, **options, "versions": versions}, sort_keys=True)


def normalize(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Scale to 0..1 and normalize per channel. (B, 3, H, W) uint8 -> (B, 3, H, W) float32 on the same device.

    The result is channels-last in memory, the order in which convolutions are fastest.
    """
    mean, factor = _mean_and_factor(preprocessing, images.device)
    # (image / 255 - mean) / std in two passes over the pixels instead of three.
    normalized = images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).mul_(factor)
    return normalized if preprocessing.channels == RGB else normalized.flip(1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _mean_and_factor(preprocessing: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on the device: copying them there makes a GPU wait, and cannot be recorded in a CUDA graph."""
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
    return mean, 1 / (torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1) * 255)
