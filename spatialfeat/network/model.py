"""ResNet-50 with torchvision's parameter names: logits, the 2048-d feature tap, freezing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

FEATURE_LAYER = "avgpool"
BACKBONE = "resnet50"
NUM_FEATURES = 2048

FIRST_STAGE = 4
"""Index of layer1 among the children; the stem before it is conv1, bn1, relu, maxpool."""
AVGPOOL = 8
"""Index of the global average pooling, behind the last convolution."""


class PhaseResNet50(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """A torchvision ResNet-50 with `num_classes` outputs; its state dict loads into a plain torchvision ResNet-50."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)
        # Convolutions are fastest on channels-last weights and inputs; names, shapes and values stay the same.
        self.to(memory_format=torch.channels_last)

    def features_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network once and tap it before the classifier.

        Args:
            images: (B, 3, H, W) float32, normalized.

        Returns:
            features (B, 2048), the activations after global average pooling, and logits (B, num_classes), float32.
        """
        features = torch.flatten(self.run_children(images, 0, AVGPOOL + 1), 1)
        return features, self.fc(features)

    def run_children(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Run the children from index `start` to before `stop` (at most avgpool) one after the other."""
        assert stop <= AVGPOOL + 1
        for child in list(self.children())[start:stop]:
            x = child(x)
        return x

    def logits_from(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Run the rest of the network on the activations that child `start` (at most avgpool) takes: (B, C)."""
        logits: torch.Tensor = self.fc(torch.flatten(self.run_children(x, start, AVGPOOL + 1), 1))
        return logits


def num_bytes(model: nn.Module) -> int:
    """What the model's weights take in memory, and nearly in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def frozen_children(model: nn.Module, freeze_until: int) -> Iterator[nn.Module]:
    """The first `freeze_until` children: conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool, fc."""
    yield from list(model.children())[:freeze_until]


def freeze(model: nn.Module, freeze_until: int) -> None:
    """Take the first `freeze_until` children out of training: no gradient reaches their parameters."""
    for child in frozen_children(model, freeze_until):
        child.requires_grad_(False)


def set_training_mode(model: nn.Module, freeze_until: int) -> None:
    """Training mode, except for the frozen children.

    Without the exception BatchNorm would go on updating the running statistics of frozen blocks.
    """
    model.train()
    for child in frozen_children(model, freeze_until):
        child.eval()
