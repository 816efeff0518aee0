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

import copy
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck, ResNet

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import DTYPES
from spatialfeat.network.classifier import FRAMES_AT_ONCE, PhaseClassifier

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

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.children())

    def logits_from(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Run the rest of the network on the activations that child `start` (at most avgpool) takes: (B, C)."""
        for child in self.stages[start : AVGPOOL + 1]:
            x = child(x)
        logits: torch.Tensor = self.fc(torch.flatten(x, 1))
        return logits

    @property
    def num_fixed(self) -> int:
        """How many children compute the same in every epoch: the frozen ones, up to the pooling, if the stem is."""
        return min(self._num_frozen, AVGPOOL) if self._num_frozen >= FIRST_STAGE else 0

    def fixed_stages(self, preprocessing: Preprocessing, precision: str) -> FoldedStages:
        return FoldedStages(self, self.num_fixed, preprocessing, precision)

    def encoder(self, preprocessing: Preprocessing, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(_pooled, FoldedStages(self, AVGPOOL, preprocessing, precision))


def _pooled(stages: FoldedStages, images: torch.Tensor) -> torch.Tensor:
    return stages(images).float().mean(dim=(2, 3))


FUSED_OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")


class Convolution:
    """A convolution that includes its BatchNorm, through PyTorch's public operators.

    x: (B, in, H, W) channels-last -> (B, out, H', W'), both of `dtype`.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
        # Folded in float64, so that float32 results differ from the plain network's by rounding only.
        folded: Any = fuse_conv_bn_eval(copy.deepcopy(convolution).eval().double(), copy.deepcopy(norm).eval().double())
        self.weight: torch.Tensor = folded.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias: torch.Tensor = folded.bias.detach().to(dtype)
        self.stride: tuple[int, int] = folded.stride
        self.padding: tuple[int, int] = folded.padding

    def __call__(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if relu else y

    def add_relu(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """relu(convolution(x) + shortcut), written over `shortcut`."""
        return shortcut.add_(self(x)).relu_()


class OneDnnConvolution(Convolution):
    """The same through oneDNN's fused operators, with weights packed for inputs of `side_px` pixels."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, side_px: int) -> None:
        super().__init__(convolution, norm, dtype)
        # Packed for this many frames; other batches give the same results, at most a little slower.
        shape = (FRAMES_AT_ONCE[dtype], convolution.in_channels, side_px, side_px)
        geometry = (self.padding, self.stride, (1, 1), 1)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, shape)
        self._arguments = (self.weight, self.bias, *geometry)

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
        if self._fused:
            packed: Convolution = OneDnnConvolution(convolution, norm, self._dtype, self.side_px)
        else:
            packed = Convolution(convolution, norm, self._dtype)
        self.side_px = (self.side_px + 2 * packed.padding[0] - convolution.kernel_size[0]) // packed.stride[0] + 1
        return packed


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
