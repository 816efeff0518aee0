"""ResNet-50 with torchvision's parameter names, and its form that is fastest to evaluate.

In that form BatchNorm is folded into the convolutions and nothing is kept for gradients. Validation, evaluate and
extract run it whole; training runs its first stages, where they are frozen. Values equal the plain network's up to
rounding.

On a CPU, each convolution is one call of oneDNN that adds the bias, the skip connection and the ReLU while the result
is still in the cache, with weights packed beforehand: as fast as a compiled and frozen graph, without the half minute
that compiling costs (see `benchmarks/README.md`). These are the operators that PyTorch's own compiler emits; where
they are missing, or on a GPU, PyTorch's public operators compute the same.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import DTYPES
from spatialfeat.network.classifier import FRAMES_AT_ONCE, Compute, PhaseClassifier

NUM_FEATURES = 2048

FIRST_STAGE = 4
"""Index of layer1 among the children; the stem before it is conv1, bn1, relu, maxpool."""
AVGPOOL = 8
"""Index of the global average pooling, behind the last convolution."""


class PhaseResNet50(ResNet, PhaseClassifier):  # type: ignore[misc]  # torchvision ships no types
    """A torchvision ResNet-50 with `num_classes` outputs; its state dict loads into a plain torchvision ResNet-50.

    Its children are, in order, conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool and fc.
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    maxpool: nn.MaxPool2d
    fc: nn.Linear

    def __init__(self, num_classes: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)
        # Convolutions are fastest on channels-last weights and inputs; names, shapes and values stay the same.
        self.to(memory_format=torch.channels_last)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def logits_from(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Run the rest of the network on the activations that child `start` (at most avgpool) takes: (B, C)."""
        for child in list(self.children())[start : AVGPOOL + 1]:
            x = child(x)
        logits: torch.Tensor = self.fc(torch.flatten(x, 1))
        return logits

    def trained_with(self, num_frozen: int) -> list[nn.Parameter]:
        return [weight for child in list(self.children())[num_frozen:] for weight in child.parameters()]

    def train(self, mode: bool = True) -> PhaseResNet50:
        """Training mode, except for frozen children, whose BatchNorm would go on updating its running statistics."""
        super().train(mode)
        for child in list(self.children())[: self._num_frozen]:
            child.eval()
        return self

    @property
    def num_fixed(self) -> int:
        """How many children compute the same in every epoch: the frozen ones, up to the pooling, if the stem is."""
        return min(self._num_frozen, AVGPOOL) if self._num_frozen >= FIRST_STAGE else 0

    def fixed_stages(self, preprocessing: Preprocessing, precision: str) -> FoldedStages:
        return FoldedStages(self, self.num_fixed, preprocessing, precision)

    def evaluation(self, preprocessing: Preprocessing, precision: str) -> Compute:
        weight, bias = self.fc.weight.detach().clone(), self.fc.bias.detach().clone()
        return partial(_outputs, FoldedStages(self, AVGPOOL, preprocessing, precision), weight, bias)


FUSED_OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")


class FoldedConvolution(NamedTuple):
    """A convolution that includes its BatchNorm. weight: (out, in, k, k), bias: (out,), in one dtype."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def of(cls, convolution: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> FoldedConvolution:
        """Fold in float64, so that float32 results differ from the plain network's by rounding only."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)
        weight = convolution.weight.detach().double() * scale.view(-1, 1, 1, 1)
        bias = norm.bias.detach().double() - norm.running_mean.double() * scale
        assert isinstance(convolution.padding, tuple)
        return cls(
            weight.to(dtype).contiguous(memory_format=torch.channels_last),
            bias.to(dtype),
            (convolution.stride[0], convolution.stride[1]),
            (convolution.padding[0], convolution.padding[1]),
        )


class Convolution:
    """A folded convolution through PyTorch's public operators. x: (B, in, H, W) channels-last -> (B, out, H', W')."""

    def __init__(self, folded: FoldedConvolution) -> None:
        self._folded = folded

    def __call__(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        weight, bias, stride, padding = self._folded
        y = functional.conv2d(x, weight, bias, stride, padding)
        return y.relu_() if relu else y

    def add_relu(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """relu(convolution(x) + shortcut), written over `shortcut`."""
        return shortcut.add_(self(x)).relu_()


class OneDnnConvolution(Convolution):
    """A folded convolution through oneDNN's fused operators, its weights packed for a typical input."""

    def __init__(self, folded: FoldedConvolution, input_shape: tuple[int, ...]) -> None:
        weight, bias, stride, padding = folded
        geometry = (padding, stride, (1, 1), 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, input_shape)
        self._arguments = (packed, bias, *geometry)

    def __call__(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        kind = "relu" if relu else "none"
        y: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(x, *self._arguments, kind, [], "")
        return y

    def add_relu(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        add_into = torch.ops.mkldnn._convolution_pointwise_.binary
        y: torch.Tensor = add_into(shortcut, x, *self._arguments, "add", 1.0, "relu", [], "")
        return y


def has_onednn(device: torch.device) -> bool:
    """Whether oneDNN's fused operators can be used on `device`."""
    return (
        device.type == "cpu"
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in FUSED_OPERATORS)
    )


class _Packer:
    """Makes convolutions in the order of the network, following the shape of what reaches them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, image_size_px: int) -> None:
        self._dtype, self._fused = dtype, has_onednn(device)
        self.side_px = image_size_px

    def pack(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Convolution:
        """The folded convolution; afterwards `side_px` is that of its output."""
        folded = FoldedConvolution.of(convolution, norm, self._dtype)
        # Packed for this many frames; other batches give the same results, at most a little slower.
        shape = (FRAMES_AT_ONCE[self._dtype], convolution.in_channels, self.side_px, self.side_px)
        self.side_px = (self.side_px + 2 * folded.padding[0] - folded.weight.shape[2]) // folded.stride[0] + 1
        return OneDnnConvolution(folded, shape) if self._fused else Convolution(folded)


class _Bottleneck:
    """One residual block: three convolutions and perhaps one on the shortcut."""

    def __init__(self, block: Bottleneck, packer: _Packer) -> None:
        side_px = packer.side_px
        self._shortcut = None if block.downsample is None else packer.pack(block.downsample[0], block.downsample[1])
        packer.side_px = side_px
        self._reduce = packer.pack(block.conv1, block.bn1)
        self._spatial = packer.pack(block.conv2, block.bn2)
        self._expand = packer.pack(block.conv3, block.bn3)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._spatial(self._reduce(x, relu=True), relu=True)
        # Without a convolution on the shortcut, x itself is written over: it is not needed any more.
        return self._expand.add_relu(y, x if self._shortcut is None else self._shortcut(x))


class FoldedStages:
    """Normalization, the stem and the first stages of a network, in evaluation mode, as the weights are now.

    num_children: as `PhaseResNet50.freeze` counts; from 4 (the stem: conv1, bn1, relu, maxpool) to 8 (layer4).
    """

    def __init__(self, model: PhaseResNet50, num_children: int, preprocessing: Preprocessing, precision: str) -> None:
        assert FIRST_STAGE <= num_children <= AVGPOOL
        self._preprocessing, self._dtype = preprocessing, DTYPES[precision]
        packer = _Packer(model.conv1.weight.device, self._dtype, preprocessing.crop_px)
        self._stem = packer.pack(model.conv1, model.bn1)
        self._pool = model.maxpool
        packer.side_px = (packer.side_px + 1) // 2
        stages = list(model.children())[FIRST_STAGE:num_children]
        self._blocks = [_Bottleneck(block, packer) for stage in stages for block in stage.children()]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, S, S) uint8 on the network's device -> activations (B, C, H, W) in the precision."""
        x = normalize(images, self._preprocessing).to(self._dtype)
        x = self._pool(self._stem(x, relu=True))
        for block in self._blocks:
            x = block(x)
        return x


def _outputs(
    stages: FoldedStages, weight: torch.Tensor, bias: torch.Tensor, images: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Features and logits; weight and bias are the classifier's."""
    features = stages(images).float().mean(dim=(2, 3))
    return features, functional.linear(features, weight, bias)
