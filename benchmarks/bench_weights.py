"""Weights to measure with: random, but with activations as sane as a trained network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bench_frames import NUM_PHASES, draw_frame
from torch import nn
from torchvision.models import resnet50

CALIBRATION_BATCHES = 2
CALIBRATION_BATCH_SIZE = 14


def make_weights(path: Path, *, seed: int = 0, image_size_px: int = 224) -> Path:
    """Write the state dict of a random ResNet-50 with 7 classes, the same for the same seed.

    Its BatchNorm statistics are those of a few drawn frames. With the initial ones (mean 0, variance 1) activations
    would grow from block to block, and errors of low precision would look other than in a trained network.
    """
    torch.manual_seed(seed)
    model = resnet50(num_classes=NUM_PHASES).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # A plain average over the batches below.
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
