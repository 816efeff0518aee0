"""A network that classifies frames by phase: its face, any network behind it, and its form for evaluation.

ResNet-50 has a form of its own that is faster (`network.resnet`). Of other networks, convolutions and the BatchNorm
layers that follow them are folded where the network can be traced; everything else runs as it is, channels-last, under
autocast in the chosen precision. Values equal the plain network's up to rounding.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import DTYPES, records_graphs
from spatialfeat.network.graphs import Recorded

FRAMES_AT_ONCE = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 32}
"""Frames that a CPU computes at once. More are no faster, and memory would grow with the batch."""

Outputs = tuple[torch.Tensor, ...]
Compute = Callable[[torch.Tensor], Outputs]
"""images (B, 3, S, S) uint8 on the network's device -> features (B, D) and logits (B, num_classes), float32."""


class PhaseClassifier(nn.Module):
    """What training, evaluation and weights files know of a network. Its last layer is a linear one, `classifier`.

    The state dict is that of the plain network, which loads into anybody's.
    """

    _num_frozen = 0

    @property
    def classifier(self) -> nn.Linear:
        raise NotImplementedError

    @property
    def stages(self) -> list[nn.Module]:
        """What --freeze-until counts. Parameters that are in none of them, such as a class token, are of the first."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Rows of the classifier; 0 without one."""
        return int(self.classifier.out_features)

    @property
    def device(self) -> torch.device:
        return self.classifier.weight.device

    def remove_classifier(self) -> None:
        """Leave a classifier without rows: the network then has features, and logits of shape (B, 0)."""
        layer = self.classifier
        layer.weight = nn.Parameter(layer.weight[:0])
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias[:0])
        layer.out_features = 0

    def trained_with(self, num_frozen: int) -> list[nn.Parameter]:
        """The parameters that are trained while the first `num_frozen` stages are frozen."""
        if num_frozen == 0:
            return list(self.parameters())
        trained = {id(parameter) for stage in self.stages[num_frozen:] for parameter in stage.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) in trained]

    def train(self, mode: bool = True) -> PhaseClassifier:
        """Training mode, except for frozen stages: no dropout, and BatchNorm keeps its running statistics."""
        super().train(mode)
        for stage in self.stages[: self._num_frozen]:
            stage.eval()
        return self

    def freeze(self, num_stages: int) -> None:
        """Take the first `num_stages` stages out of training, for good: no gradient reaches their parameters."""
        self._num_frozen = num_stages
        trained = set(map(id, self.trained_with(num_stages)))
        for parameter in self.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)

    @property
    def num_fixed(self) -> int:
        """How many stages `fixed_stages` computes; 0 where there is no such form."""
        return 0

    def fixed_stages(self, preprocessing: Preprocessing, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The first `num_fixed` stages as they are now: images (B, 3, S, S) uint8 -> what `logits_from` takes."""
        raise NotImplementedError

    def logits_from(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Run the rest of the network on what stage `start` takes, of those that can be fixed: (B, num_classes).

        0: x are normalized images, (B, 3, S, S).
        """
        raise NotImplementedError

    def encoder(self, preprocessing: Preprocessing, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """All but the classifier, as `evaluation`: images (B, 3, S, S) uint8 -> features (B, D) float32."""
        raise NotImplementedError

    def evaluation(self, preprocessing: Preprocessing, precision: str) -> Compute:
        """The whole network for evaluation, as the weights are now; later changes do not reach it."""
        layer = self.classifier
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return partial(_outputs, self.encoder(preprocessing, precision), layer.weight.detach().clone(), bias)


def _outputs(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    images: torch.Tensor,
) -> Outputs:
    features = encoder(images)
    return features, functional.linear(features, weight, bias)


class AnyClassifier(PhaseClassifier):
    """A network of torchvision or timm behind the face of `PhaseClassifier`.

    Args:
        network: maps images to the outputs of its last layer. classifier: the name of that layer, an nn.Linear.
        stages: the names of its stages.
    """

    def __init__(self, network: nn.Module, *, classifier: str, stages: Sequence[str]) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self._classifier, self._stages = classifier, stages

    @property
    def classifier(self) -> nn.Linear:
        layer = self.network.get_submodule(self._classifier)
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def stages(self) -> list[nn.Module]:
        return [self.network.get_submodule(name) for name in self._stages]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The plain network's, without a prefix."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """The inverse of `state_dict`."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def logits_from(self, x: torch.Tensor, start: int) -> torch.Tensor:
        assert start == 0
        logits: torch.Tensor = self.network(x)
        return logits

    def encoder(self, preprocessing: Preprocessing, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
        dtype, encoder = DTYPES[precision], copy.deepcopy(self.network).eval().requires_grad_(False)
        parent, _, name = self._classifier.rpartition(".")
        setattr(encoder.get_submodule(parent), name, nn.Identity())
        encoder = fold_batch_norm(encoder)
        if dtype != torch.float32:
            for module in encoder.modules():
                # What autocast would do anew for every batch.
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(dtype)
        return partial(_encode, encoder, preprocessing, dtype)


CURVES = frozenset({
    functional.elu, functional.gelu, functional.hardsigmoid, functional.hardswish, functional.mish, functional.selu,
    functional.sigmoid, functional.silu, functional.softplus, functional.tanh, torch.sigmoid, torch.tanh,
    torch.Tensor.sigmoid, torch.Tensor.sigmoid_, torch.Tensor.tanh, torch.Tensor.tanh_,
})  # fmt: skip
"""Activations of which PyTorch computes most values by vector instructions on a CPU, and the last few of each thread's
part one by one, which may round otherwise."""


class _FrameByFrame(TorchFunctionMode):
    """Computes of each frame by itself what would else depend on where the frame stands in its batch, on a CPU.

    That is CURVES, and linear layers that have one row per frame: a product of matrices treats its last rows otherwise.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        num_dims = args[0].ndim if args and isinstance(args[0], torch.Tensor) else 0
        if not ((num_dims == 2 and function is functional.linear) or (num_dims >= 2 and function in CURVES)):
            return function(*args, **kwargs)
        frames: torch.Tensor = args[0]
        results = [function(frame, *args[1:], **kwargs) for frame in frames]
        if results[0].data_ptr() == frames.data_ptr():
            return frames  # Computed in place.
        if function is functional.linear:
            return torch.stack(results)
        together = torch.empty_like(frames)  # In the order in memory of `frames`.
        for place, result in zip(together, results, strict=True):
            place.copy_(result)
        return together


def _encode(encoder: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype, images: torch.Tensor) -> torch.Tensor:
    x = normalize(images, preprocessing)
    alone = _FrameByFrame() if x.device.type == "cpu" else nullcontext()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False), alone:
        features: torch.Tensor = encoder(x)
    return features.float()


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """`network`, in evaluation mode, with every plain BatchNorm that follows a convolution alone folded into it.

    Folded in float64, so that float32 results differ by rounding only. A network that has no such pair, or whose
    forward pass branches in a way that cannot be traced, is returned as it is.
    """
    if not any(type(module) is nn.BatchNorm2d for module in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except (fx.proxy.TraceError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError):
        return network
    modules = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    for node in calls:
        before: Any = node.args[0] if node.args else None
        if before not in calls or len(before.users) > 1 or uses[node.target] > 1 or uses[before.target] > 1:
            continue
        convolution, norm = modules[before.target], modules[node.target]
        if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        dtype = convolution.weight.dtype
        folded = fuse_conv_bn_eval(convolution.double(), norm.double()).to(dtype)
        parent, _, name = before.target.rpartition(".")
        setattr(traced.get_submodule(parent), name, folded)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class InferenceNetwork:
    """A whole network for evaluation, as the weights are now; later changes of `model` do not reach it.

    It always computes the same number of frames at once, filling up what is missing with black ones: libraries choose
    their kernels by the size of a batch, and a frame's last bits would depend on how many frames came with it.

    Args:
        model: on the device to compute on. precision: "fp32", "bf16" or "fp16", of everything up to the features; the
            classifier is float32. batch_size: the most frames of a call.
    """

    def __init__(self, model: PhaseClassifier, preprocessing: Preprocessing, precision: str, batch_size: int) -> None:
        self.preprocessing, self.precision, self.batch_size = preprocessing, precision, batch_size
        self.device: torch.device = model.device
        self.num_classes = model.num_classes
        on_cpu = self.device.type == "cpu"
        self._frames_at_once = min(batch_size, FRAMES_AT_ONCE[DTYPES[precision]]) if on_cpu else batch_size
        # No method of this object: it could not be freed before a search for garbage, and with it a GPU's memory.
        compute = model.evaluation(preprocessing, precision)
        self._compute = Recorded(compute, "evaluation") if records_graphs(self.device) else compute

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, S, S) uint8 -> features (B, D) and logits (B, num_classes), both float32."""
        missing = -len(images) % self._frames_at_once
        filled = functional.pad(images, (0, 0) * 3 + (0, missing)) if missing else images
        features, logits = zip(
            *(self._compute(part) for part in torch.split(filled, self._frames_at_once)), strict=True
        )
        return torch.cat(features)[: len(images)], torch.cat(logits)[: len(images)]


def num_bytes(model: nn.Module) -> int:
    """What the model's weights take in memory, and nearly in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
