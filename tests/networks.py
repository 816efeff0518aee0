"""Random networks that behave like trained ones."""

import torch
from torch import nn

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.network.resnet import PhaseResNet50


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
