"""From an RGB Pillow image to the network's input: the training augmentation and the one evaluation preprocessing.

Resizing runs on uint8 tensors with antialiasing, which equals Pillow's result almost to the bit and is several times
faster. Frames stay uint8 until they are on the device, where `normalize` turns them into float32: a quarter of the
bytes to move between processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

FrameTransform = Callable[[Image.Image], torch.Tensor]

MAX_SIZE_PX = 10_000

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a frame before the network sees it; stored with the weights and in every feature file.

    The shorter side is resized to `resize_px`, the central `crop_px` x `crop_px` pixels are kept, values are scaled
    to 0..1 and normalized per channel.
    """

    resize_px: int = 256
    crop_px: int = 224
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raises ValueError for values that no network takes; a description may come from anywhere."""
        sizes: tuple[object, ...] = (self.resize_px, self.crop_px)
        if not all(type(size) is int and 0 < size <= MAX_SIZE_PX for size in sizes):
            raise ValueError(f"sizes {str(sizes)[:80]} are not 1 to {MAX_SIZE_PX} pixels")
        known = [mode.value for mode in InterpolationMode]
        if self.interpolation not in known or type(self.antialias) is not bool:
            raise ValueError(f"interpolation {str(self.interpolation)[:80]!r} or antialias is unknown")
        if not _are_colours(self.mean) or not _are_colours(self.std) or min(self.std) <= 0:
            raise ValueError("mean or std is not three finite numbers, std above 0")

    @classmethod
    def for_image_size(cls, image_size_px: int) -> Preprocessing:
        """The specification's proportions (256 : 224) at another input size."""
        return cls(resize_px=round(image_size_px * 256 / 224), crop_px=image_size_px)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Preprocessing:
        """The inverse of `as_dict`. Raises TypeError for unknown or missing fields."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**fields)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: tuples become lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _are_colours(values: object) -> bool:
    """Whether these are three finite numbers, for red, green and blue."""
    numbers = values if isinstance(values, tuple) else ()
    return len(numbers) == 3 and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)


def evaluation_transform(preprocessing: Preprocessing) -> FrameTransform:
    """Resize, centre crop. Maps an RGB image to (3, crop_px, crop_px) uint8."""
    transform: FrameTransform = v2.Compose(
        [
            functional.pil_to_tensor,
            v2.Resize(
                preprocessing.resize_px,
                interpolation=InterpolationMode(preprocessing.interpolation),
                antialias=preprocessing.antialias,
            ),
            v2.CenterCrop(preprocessing.crop_px),
        ]
    )
    return transform


def training_transform(preprocessing: Preprocessing) -> FrameTransform:
    """The specified augmentation. Maps an RGB image to (3, crop_px, crop_px) uint8; draws from torch's global RNG."""
    transform: FrameTransform = v2.Compose(
        [
            functional.pil_to_tensor,
            v2.RandomResizedCrop(preprocessing.crop_px, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(10),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    return transform


def normalize(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Scale to 0..1 and normalize per channel. (B, 3, H, W) uint8 -> (B, 3, H, W) float32 on the same device.

    The result is channels-last in memory, the order in which convolutions are fastest.
    """
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    scaled = images.to(torch.float32, memory_format=torch.channels_last)
    return scaled.div_(255).sub_(mean).div_(std)
