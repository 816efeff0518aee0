"""Random networks that behave like trained ones, and a small one for tests that look at other things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.network import weights
from spatialfeat.network.resnet import PhaseResNet50

_usual_init = PhaseResNet50.__init__


def _small_init(self: PhaseResNet50, num_classes: int) -> None:
    ResNet.__init__(self, Bottleneck, [1, 1, 1, 1], num_classes=num_classes, width_per_group=4)
    self.to(memory_format=torch.channels_last)


def use_small_network() -> None:
    """From now on a PhaseResNet50 has the same ten children and 2048 features, but a tenth of the weights.

    A study then writes and reads 40 MB instead of 400, and every command starts a second earlier.
    """
    _use(_small_init)


def _use(initialize: object) -> None:
    PhaseResNet50.__init__ = initialize  # type: ignore[method-assign, assignment]
    for found in vars(weights).values():  # The names of the other network's tensors are kept there.
        if hasattr(found, "cache_clear"):
            found.cache_clear()


@contextmanager
def network(*, small: bool) -> Iterator[None]:
    """In this block a PhaseResNet50 is a small one, or a ResNet-50 as users have it."""
    before = PhaseResNet50.__init__
    _use(_small_init if small else _usual_init)
    try:
        yield
    finally:
        _use(before)


def smooth_images(count: int, side_px: int) -> torch.Tensor:
    """Smooth frames with a little noise: (count, 3, side_px, side_px) uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 200
    smooth = nn.functional.interpolate(coarse, side_px, mode="bilinear")
    return (smooth + 20 * torch.rand(count, 3, side_px, side_px, generator=generator)).to(torch.uint8)


def settled_network(num_classes: int, images: torch.Tensor, preprocessing: Preprocessing) -> PhaseResNet50:
    """Random weights; BatchNorm scales, shifts and statistics all differ from their initial 1 and 0.

    The residual branches end in small scales, as in trained networks: the signal then flows along the shortcuts, and
    rounding errors are not amplified from block to block.
    """
    torch.manual_seed(5)
    network = PhaseResNet50(num_classes)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            low, high = (0.1, 0.4) if name.endswith("bn3") else (0.5, 1.5)
            nn.init.uniform_(module.weight, low, high)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(normalize(images, preprocessing))
    return network.eval()
