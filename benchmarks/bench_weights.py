"""Weights to measure with: random, but with activations as sane as a trained network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bench_frames import NUM_PHASES, draw_frame
from torch import nn
from torchvision.models import get_model

CALIBRATION_BATCHES = 2
CALIBRATION_BATCH_SIZE = 14
RESIDUAL_GAIN = 0.1
"""Scale of what each block adds to its input. Training makes it small; with the initial 1, a random network is chaotic:
a difference of one grey level in a thousandth of the pixels becomes 3 % of the features, and bf16's rounding 10 %."""


def make_weights(path: Path, *, seed: int = 0, image_size_px: int = 224, backbone: str = "resnet50") -> Path:
    """Write the state dict of a random network of torchvision with 7 classes, the same for the same seed.

    Its BatchNorm statistics are those of a few drawn frames: with the initial ones (mean 0, variance 1) activations
    would grow from block to block. Other networks have small residual branches to begin with.
    """
    torch.manual_seed(seed)
    model = get_model(backbone, num_classes=NUM_PHASES).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # A plain average over the batches below.
            if name.endswith("bn3"):
                nn.init.constant_(module.weight, RESIDUAL_GAIN)
    rng = np.random.default_rng(seed)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        for _ in range(CALIBRATION_BATCHES):
            phases = range(CALIBRATION_BATCH_SIZE)
            frames = [draw_frame(rng, phase % NUM_PHASES, image_size_px, image_size_px) for phase in phases]
            images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
            model((images - mean) / std)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return path
