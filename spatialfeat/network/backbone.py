"""Networks that encode frames, found by their names: what differs from one to another, and how each is built.

A name is `resnet50`, a row of the table (`spatialfeat.encoders`), a classification network of torchvision, or
`timm:NAME`. The features are the input of the network's last layer, which must be a linear one: the classifier.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import Encoder as TokenEncoder
from torchvision.models.vision_transformer import VisionTransformer

from spatialfeat.config import CHILDREN
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.encoders import (
    CLASS_TOKEN,
    ENCODERS,
    POOLED,
    RESNET50_NAME,
    TIMM,
    TOKEN_MEAN,
    TORCHVISION,
    Encoder,
    renamed,
)
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.classifier import AnyClassifier, PhaseClassifier
from spatialfeat.network.resnet import NUM_FEATURES, PhaseResNet50

COUNTERS = ("num_batches_tracked",)
"""Files of very old PyTorch versions lack BatchNorm's counters, which nothing reads in this recipe."""

PREFERRED = ("encoder_q", "base_encoder", "teacher", "base_model", "best_weights")
"""What each method itself goes on with: MoCo's queries (versions 1, 2 and 3), the teacher of self-distillation and of
mean teachers, VISSL's model beside that of its loss, the best epoch of our own training state."""

BUILDER_OPTIONS = {
    # With auxiliary classifiers they would have other outputs in training than in evaluation; their ImageNet weights
    # take images normalized in another way, which the networks see to themselves.
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
"""Arguments of torchvision's builders beside the number of classes."""

NEAREST = 5
"""A message about an unknown name suggests so many."""


class Hub(NamedTuple):
    """Where timm's weights of a network are: a repository of the Hugging Face hub, and the file in it."""

    repository: str
    file_name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """One architecture, as weights files and feature files name it.

    title: as messages call it: `a torchvision ResNet-50`.
    build: a network of so many classes, with fresh weights from torch's global random number generator.
    num_features, layer: D, and where in the network the features are taken.
    stages: what --freeze-until counts, in order. usual_frozen: how many are frozen by default.
    classifier: how the names of the classifier's parameters begin.
    usual_preprocessing: what is done to frames, unless a weights file says otherwise.
    pretrained: what --weights imagenet stands for: torchvision's enumeration member, timm's place on the hub, or None.
    encoder: the row of the table, if it is one.

    A weights file may keep the network under any keys and any common prefix of its names. So a file is read:

    namings: {description: name in a file -> the network's name, or "" if there is none}, beside the network's own.
    unused, unused_zeros: endings of names of its stages that are left out: always, and where they are all zero.
    preferred: keys and parts of prefixes that are taken where the file holds several such networks, best first.
    """

    name: str
    title: str
    build: Callable[[int], PhaseClassifier]
    num_features: int
    layer: str
    stages: tuple[str, ...]
    usual_frozen: int
    classifier: str
    usual_preprocessing: Preprocessing
    pretrained: Any = None
    encoder: Encoder | None = None
    namings: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unused_zeros: tuple[str, ...] = ()
    preferred: tuple[str, ...] = PREFERRED

    @property
    def kind(self) -> str:
        """As messages about one of several call it."""
        return "ResNet-50" if self.name == RESNET50_NAME else self.name

    @property
    def image_size_px(self) -> int:
        """The side of its usual input."""
        return self.usual_preprocessing.crop_px

    def preprocessing(self, image_size_px: int) -> Preprocessing:
        """What is done to frames for an input of this size, unless a weights file says otherwise."""
        return self.usual_preprocessing.at(image_size_px)

    def build_empty(self, num_classes: int) -> PhaseClassifier:
        """`build` without numbers, for its names and shapes: no random number is drawn."""
        return _without_numbers(partial(self.build, num_classes))

    def build_to_fill(self, num_classes: int) -> PhaseClassifier:
        """`build` for weights that follow. Those of a ResNet-50 are all in its file: to draw random ones first would
        take as long as to read these."""
        if self.build is not PhaseResNet50:
            return self.build(num_classes)
        return self.build_empty(num_classes).to_empty(device="cpu")

    def require_image_size(self, image_size_px: int) -> None:
        """Refuse an input that the network cannot take."""
        reason = "" if image_size_px == self.image_size_px else _why_not(self, image_size_px)
        if reason:
            raise SpatialfeatError(
                f"--image-size {image_size_px}: {self.name} takes no such input ({reason}); its usual one is "
                f"{self.image_size_px}"
            )


_SHAPE_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, NotImplementedError)
"""What networks raise for an input that they cannot take."""


@cache
def _why_not(backbone: Backbone, image_size_px: int) -> str:
    """Why a network cannot take such an input, or "": one black frame is tried, with weights of 0.

    To follow shapes alone would take PyTorch seconds longer, for what it imports first.
    """
    if backbone.name == RESNET50_NAME:
        return ""
    model = backbone.build_empty(2).to_empty(device="cpu").eval()
    try:
        with torch.inference_mode():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.zero_()
            model.logits_from(torch.zeros(1, 3, image_size_px, image_size_px), 0)
    except _SHAPE_ERRORS as error:
        return str(error).strip().split("\n")[0][:200]
    return ""


def _numbered(name: str) -> str:
    """`layer1.0.conv1.weight` for `4.0.conv1.weight`: of a child's number its name, "" if there is no such child."""
    number, _, rest = name.partition(".")
    return f"{CHILDREN[int(number)]}.{rest}" if number in map(str, range(len(CHILDREN))) else ""


RESNET50 = Backbone(
    name=RESNET50_NAME,
    title="a torchvision ResNet-50",
    build=PhaseResNet50,
    num_features=NUM_FEATURES,
    layer="avgpool",
    stages=CHILDREN,
    usual_frozen=6,
    classifier="fc.",
    usual_preprocessing=Preprocessing(),
    namings={"names for the numbers of its children": _numbered},
    pretrained=torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
)


@cache
def find_backbone(name: str) -> Backbone:
    """The backbone of this name.

    Raises:
        SpatialfeatError: no such name, with the nearest ones; timm is not installed; published weights that cannot be
            read; a network whose last layer is not linear.
    """
    if name in (RESNET50_NAME, TORCHVISION + RESNET50_NAME):
        return RESNET50
    if name in ENCODERS:
        return _of_table(ENCODERS[name])
    if name.startswith(TIMM):
        return _of_timm(name)
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    if name.removeprefix(TORCHVISION) in of_torchvision:
        return _of_torchvision(name.removeprefix(TORCHVISION))
    known = dict.fromkeys([RESNET50_NAME, *ENCODERS, *of_torchvision])
    near = [TIMM + name] if _timm_has(name) else difflib.get_close_matches(name, known, NEAREST, 0.5)
    nearest = f"; the nearest: {', '.join(near)}" if near else ""
    raise SpatialfeatError(
        f"--backbone {name[:80]}: no such encoder{nearest}; `spatialfeat backbones` lists them, networks of timm are "
        "timm:NAME"
    )


def _of_table(row: Encoder) -> Backbone:
    if row.refused:
        raise SpatialfeatError(
            f"--backbone {row.name}: {row.refused}; whoever trusts that file can save its network's state dict and "
            "pass it with the --backbone of that network, if torchvision or timm has it"
        )
    usual = replace(Preprocessing().at(row.image_size_px), **row.preprocessing)
    if row.network.startswith(TIMM):
        base = _of_timm(row.network, tuple(row.options.items()), plain_relu=row.plain_relu)
    else:
        base = find_backbone(row.network)
    assert base.num_features == row.num_features, f"{row.name} has {base.num_features} features"
    namings: dict[str, Callable[[str], str]] = dict(base.namings)
    if row.naming:
        namings[f"timm's names for those of {row.naming}'s authors"] = partial(renamed, row.naming)
    return replace(
        base,
        name=row.name,
        title=f"{row.name} ({base.title})",
        layer=base.layer if base is RESNET50 else row.layer,
        usual_preprocessing=usual,
        pretrained=None,
        encoder=row,
        namings=namings,
        unused=row.unused,
        unused_zeros=row.unused_zeros,
        preferred=(*row.preferred, *base.preferred),
    )


def _of_torchvision(name: str) -> Backbone:
    # The weights of ImageNet's 1000 classes that the network is usually compared by.
    pretrained = {member.name: member for member in torchvision.models.get_model_weights(name)}.get("IMAGENET1K_V1")
    if pretrained is None:
        usual = Preprocessing()
    else:
        steps = pretrained.transforms()
        usual = Preprocessing(
            resize_px=steps.resize_size[0],
            crop_px=steps.crop_size[0],
            interpolation=steps.interpolation.value,
            mean=tuple(steps.mean),
            std=tuple(steps.std),
        )
    create = partial(torchvision.models.get_model, name, weights=None, **BUILDER_OPTIONS.get(name, {}))
    network = _without_numbers(partial(create, num_classes=2)).eval()
    is_transformer = isinstance(network, VisionTransformer)
    return _described(
        name, f"torchvision's {name}", create, network, usual, CLASS_TOKEN if is_transformer else "", pretrained
    )


def _timm_has(name: str) -> bool:
    try:
        return name in import_module("timm").list_models()
    except ImportError:
        return False


@cache
def _of_timm(name: str, options: tuple[tuple[str, Any], ...] = (), *, plain_relu: bool = False) -> Backbone:
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise SpatialfeatError(
            f"--backbone {name[:80]}: needs timm, which is not installed: pip install 'spatialfeat[timm]'"
        ) from error
    timm_name = name.removeprefix(TIMM)
    known = [*timm.list_models(), *timm.list_pretrained()]
    if timm_name not in known:
        near = difflib.get_close_matches(timm_name, known, NEAREST, 0.5)
        nearest = f"; the nearest: {', '.join(TIMM + other for other in near)}" if near else ""
        raise SpatialfeatError(f"--backbone {name[:80]}: timm {timm.__version__} has no such network{nearest}")

    def create(**more: Any) -> nn.Module:
        network: nn.Module = timm.create_model(timm_name, pretrained=False, **dict(options), **more)
        return _with_plain_relu(network) if plain_relu else network

    network = _without_numbers(partial(create, num_classes=2)).eval()
    if "dynamic_img_size" in inspect.signature(type(network)).parameters:
        # Other sizes of the input then change no weight: position embeddings are resampled as they are used.
        create = partial(create, dynamic_img_size=True)
    facts = timm.data.resolve_data_config({}, model=network)
    side_px = int(facts["input_size"][1])
    usual = Preprocessing(
        resize="squash" if facts.get("crop_mode") == "squash" else "short-side",
        resize_px=math.floor(side_px / facts["crop_pct"]),
        crop_px=int(dict(options).get("img_size", side_px)),
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
    )
    tokens = {"token": CLASS_TOKEN, "avg": TOKEN_MEAN if getattr(network, "cls_token", None) is not None else POOLED}
    layer = tokens.get(getattr(network, "global_pool", "avg"), POOLED)
    cfg: Any = network.pretrained_cfg
    hub = Hub(cfg["hf_hub_id"], cfg.get("hf_hub_filename") or "model.safetensors") if cfg.get("hf_hub_id") else None
    return _described(name, f"timm's {timm_name}", create, network, usual, layer, hub)


def _with_plain_relu(network: nn.Module) -> nn.Module:
    """`network` with ReLU in place of every StarReLU (s * relu(x)^2 + b)."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "StarReLU":
                setattr(module, name, nn.ReLU())
    return network


_AnyModule = TypeVar("_AnyModule", bound=nn.Module)


def _without_numbers(create: Callable[[], _AnyModule]) -> _AnyModule:
    """What `create` makes, on the meta device; the random number generator is left as it is."""
    try:
        with torch.device("meta"):
            return create()
    except (NotImplementedError, RuntimeError):
        # Some networks, such as RegNet, work out their widths with tensors: they are built as usual.
        with torch.random.fork_rng(devices=[]):
            return create().to("meta")


def _described(
    name: str,
    title: str,
    create: Callable[..., nn.Module],
    network: nn.Module,
    usual: Preprocessing,
    layer: str,
    pretrained: Any,
) -> Backbone:
    """A backbone from its network without numbers. layer: "" is the input of the classifier, by its name."""
    classifier = _last_linear(name, network, usual.crop_px)
    num_features = int(network.get_submodule(classifier).in_features)  # type: ignore[arg-type]
    if num_features != getattr(network, "num_features", num_features):
        layer = ""  # The classifier is more than one layer: its hidden numbers are what the last one takes.
    stages = _stages(network)
    return Backbone(
        name=name,
        title=title,
        build=lambda num_classes: AnyClassifier(create(num_classes=num_classes), classifier=classifier, stages=stages),
        num_features=num_features,
        layer=layer or f"input of {classifier}",
        stages=stages,
        usual_frozen=RESNET50.usual_frozen if stages == CHILDREN else (len(stages) - 1) // 2,
        classifier=f"{classifier}.",
        usual_preprocessing=usual,
        pretrained=pretrained,
        namings=RESNET50.namings if stages == CHILDREN else {},
    )


def _last_linear(name: str, network: nn.Module, image_size_px: int) -> str:
    """The name of the linear layer whose output is the network's. Raises SpatialfeatError if there is none."""
    layers = {child: module_name for module_name, child in network.named_modules() if not list(child.children())}
    ran: list[tuple[nn.Module, Any]] = []
    hooks = [layer.register_forward_hook(lambda module, _, output: ran.append((module, output))) for layer in layers]
    try:
        logits = network(torch.zeros(2, 3, image_size_px, image_size_px, device="meta"))
    except _SHAPE_ERRORS as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise SpatialfeatError(
            f"--backbone {name}: does not take images of {image_size_px} x {image_size_px} pixels ({reason})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(ran):
        if output is logits and isinstance(module, nn.Linear):
            return str(layers[module])
    last = type(ran[-1][0]).__name__ if ran else type(network).__name__
    raise SpatialfeatError(
        f"--backbone {name}: its last layer is no linear one ({last}), so it has no features before a classifier of "
        "phases; choose a network that ends in a linear layer"
    )


def _stages(network: nn.Module) -> tuple[str, ...]:
    """Names of the parts that --freeze-until counts: children with weights, of containers and transformers theirs."""
    children = dict(network.named_children())
    if tuple(children) == CHILDREN:
        return CHILDREN
    last = [child for child in children.values() if list(child.parameters())][-1]  # What the classifier is in.
    stages = []
    for name, child in children.items():
        parts = [f"{name}.{part}" for part, _ in child.named_children()]
        if isinstance(child, TokenEncoder):
            parts = [f"{name}.layers.{part}" for part, _ in child.layers.named_children()] + [f"{name}.ln"]
        is_opened = isinstance(child, nn.Sequential | nn.ModuleList | TokenEncoder) and child is not last
        stages += parts if is_opened else [name]
    return tuple(name for name in stages if list(network.get_submodule(name).parameters()))
