"""Weights files of the encoders in the table: the names and shapes of the authors' code, with random numbers.

Written from descriptions of that code, so that they hold the table's namings against something else than itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

State = dict[str, torch.Tensor]
Shapes = Iterator[tuple[str, tuple[int, ...]]]

DEPTHS = (3, 3, 9, 3)
SIDES = {"s": 384, "b": 768, "l": 1024}


def affine(name: str, *shape: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def metaformer() -> Shapes:
    """CAFormer-S18: no bias in blocks, scales of the residual connections in the last two stages, ReLU."""
    dims = (64, 128, 320, 512)
    for i, d in enumerate(dims):
        before, side = (3, 7) if i == 0 else (dims[i - 1], 3)
        yield from affine(f"downsample_layers.{i}.conv", d, before, side, side)
        yield f"downsample_layers.{i}.{'post' if i == 0 else 'pre'}_norm.weight", (d if i == 0 else before,)
        for block in range(DEPTHS[i]):
            at = f"stages.{i}.{block}"
            yield from ((f"{at}.norm{n}.weight", (d,)) for n in (1, 2))
            if i < 2:
                yield f"{at}.token_mixer.pwconv1.weight", (2 * d, d)
                yield f"{at}.token_mixer.dwconv.weight", (2 * d, 1, 7, 7)
                yield f"{at}.token_mixer.pwconv2.weight", (d, 2 * d)
            else:
                yield f"{at}.token_mixer.qkv.weight", (3 * d, d)
                yield f"{at}.token_mixer.proj.weight", (d, d)
                yield from ((f"{at}.res_scale{n}.scale", (d,)) for n in (1, 2))
            yield f"{at}.mlp.fc1.weight", (4 * d, d)
            yield f"{at}.mlp.fc2.weight", (d, 4 * d)
    yield from affine("norm", dims[-1])


def convnextv2() -> Shapes:
    dims = (96, 192, 384, 768)
    for i, d in enumerate(dims):
        before, side = (3, 4) if i == 0 else (dims[i - 1], 2)
        yield from affine(f"downsample_layers.{i}.{0 if i == 0 else 1}", d, before, side, side)
        yield from affine(f"downsample_layers.{i}.{1 if i == 0 else 0}", d if i == 0 else before)
        for block in range(DEPTHS[i]):
            at = f"stages.{i}.{block}"
            yield from affine(f"{at}.dwconv", d, 1, 7, 7)
            yield from affine(f"{at}.norm", d)
            yield from affine(f"{at}.pwconv1", 4 * d, d)
            yield from ((f"{at}.grn.{name}", (1, 1, 1, 4 * d)) for name in ("gamma", "beta"))
            yield from affine(f"{at}.pwconv2", d, 4 * d)
    yield from affine("norm", dims[-1])


def pvtv2() -> Shapes:
    dims, depths, ratios, reductions = (64, 128, 320, 512), (3, 4, 6, 3), (8, 8, 4, 4), (8, 4, 2, 1)
    for i, d in enumerate(dims):
        before, side = (3, 7) if i == 0 else (dims[i - 1], 3)
        yield from affine(f"patch_embed{i + 1}.proj", d, before, side, side)
        yield from affine(f"patch_embed{i + 1}.norm", d)
        for block in range(depths[i]):
            at, wide = f"block{i + 1}.{block}", ratios[i] * d
            yield from affine(f"{at}.norm1", d)
            yield from affine(f"{at}.attn.q", d, d)
            yield from affine(f"{at}.attn.kv", 2 * d, d)
            yield from affine(f"{at}.attn.proj", d, d)
            if reductions[i] > 1:
                yield from affine(f"{at}.attn.sr", d, d, reductions[i], reductions[i])
                yield from affine(f"{at}.attn.norm", d)
            yield from affine(f"{at}.norm2", d)
            yield from affine(f"{at}.mlp.fc1", wide, d)
            yield from affine(f"{at}.mlp.dwconv.dwconv", wide, 1, 3, 3)
            yield from affine(f"{at}.mlp.fc2", d, wide)
        yield from affine(f"norm{i + 1}", d)


def transformer(d: int, depth: int, patch_px: int, side_px: int, *, version: str = "v1") -> Shapes:
    """A vision transformer with a class token, as DINO (v1 to v3) has it under timm's names."""
    yield "cls_token", (1, 1, d)
    if version == "v3":
        yield "reg_token", (1, 4, d)
    else:
        yield "pos_embed", (1, (side_px // patch_px) ** 2 + 1, d)
    yield from affine("patch_embed.proj", d, 3, patch_px, patch_px)
    for block in range(depth):
        at = f"blocks.{block}"
        yield from affine(f"{at}.norm1", d)
        yield from affine(f"{at}.attn.qkv", 3 * d, d, bias=version != "v3")
        yield from affine(f"{at}.attn.proj", d, d)
        yield from affine(f"{at}.norm2", d)
        yield from affine(f"{at}.mlp.fc1", 4 * d, d)
        yield from affine(f"{at}.mlp.fc2", d, 4 * d)
        if version != "v1":
            yield from ((f"{at}.ls{n}.gamma" if version == "v2" else f"{at}.gamma_{n}", (d,)) for n in (1, 2))
    yield from affine("norm", d)


POOL = 1_000_003
"""So many random numbers are drawn; the largest networks have 300 million weights, and use them over and over."""


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Half precision, which halves the files: no number is rounded on the way."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
    state, start = {}, 0
    for name, shape in shapes:
        is_matrix = len([side for side in shape if side > 1]) > 1
        fan_in = max(1, torch.Size(shape[1:]).numel())
        count = torch.Size(shape).numel()
        drawn = pool.repeat((start + count) // POOL + 1)[start : start + count].view(shape)
        start = (start + count) % POOL
        values = drawn * (fan_in**-0.5 if is_matrix else 0.1)
        if not is_matrix and name.endswith(("weight", "scale", "gamma", "gamma_1", "gamma_2")) and "grn" not in name:
            values += 1
        state[name] = values.half()
    return state


def of_network(network: nn.Module) -> Shapes:
    """Names and shapes of a plain network, counters of BatchNorm left out."""
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            yield name, tuple(tensor.shape)


def resnet50_trunk() -> State:
    with torch.device("meta"):
        network = models.resnet50()
    state = random_state(pair for pair in of_network(network) if not pair[0].startswith("fc."))
    return {name: values.abs() + 0.5 if name.endswith("var") else values for name, values in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def kind_of(name: str) -> str:
    """Rows of one kind differ only in what the table tells of them, and are read from one file here."""
    if name in ("surgvlp", "hecvl", "peskavlp"):
        return "peskavlp"
    if name.startswith("surgenet") and not name.startswith(("surgenetdino", "surgenet-convnextv2", "surgenet-pvtv2")):
        return "caformer"
    return name


def content_of(kind: str) -> Any:
    """What the weights file of a kind of rows holds, in the form in which its authors publish it."""
    heads = {"head.mlp.0.weight": torch.zeros(8, 4), "head.last_layer.weight": torch.zeros(9, 8)}
    if kind == "selfsupsurg":
        model = {
            "trunk": prefixed("_feature_blocks.", resnet50_trunk()),
            "heads": {"0.clf.0.weight": torch.zeros(3, 9)},
        }
        return {"classy_state_dict": {"train": {}, "base_model": {"model": model, "meta": {}}}, "iteration": 9}
    if kind == "peskavlp":
        embedder = {"weight": torch.zeros(768, 2048), "bias": torch.zeros(768)}
        text = {"backbone_text.model.embeddings.weight": torch.zeros(9, 8)}
        image = prefixed("backbone_img.model.", resnet50_trunk())
        return image | prefixed("backbone_img.global_embedder.", embedder) | text
    if kind == "caformer":
        student, teacher = (random_state(metaformer(), seed) for seed in (1, 0))
        return {
            "student": prefixed("module.backbone.", student) | heads,
            "teacher": prefixed("backbone.", teacher) | heads,
            "epoch": 50,
        }
    if kind == "surgenet-convnextv2":
        return {"model": random_state(convnextv2())}
    if kind == "surgenet-pvtv2":
        return random_state(pvtv2())
    if kind.startswith("surgenetdino-"):
        _, version, size = kind.split("-")
        patch_px, side_px = {"v1": (16, 224), "v2": (14, 336), "v3": (16, 336)}[version]
        depth = 24 if size == "l" else 12
        state = random_state(transformer(SIDES[size], depth, patch_px, side_px, version=version))
        return state | heads | ({"mask_token": torch.zeros(1, SIDES[size])} if version == "v2" else {})
    if kind == "lemonfm":
        with torch.device("meta"):
            network = models.convnext_large()
        trunk = random_state(pair for pair in of_network(network) if not pair[0].startswith("classifier.2."))
        return {"teacher": prefixed("backbone.", trunk) | heads, "epoch": 100}
    if kind == "pl-stitch":
        return {"model": prefixed("teacher.backbone.", random_state(transformer(768, 12, 16, 224))) | heads}
    if kind == "endovit":
        decoder = {"mask_token": torch.zeros(1, 1, 512), "decoder_blocks.0.norm1.weight": torch.zeros(512)}
        return {"model": random_state(transformer(768, 12, 16, 224)) | decoder}
    assert kind == "gsvit"
    return nn.Sequential(nn.Conv2d(3, 4, 3))  # A whole object, as GSViT.pkl is.


def write_weights(kind: str, path: Path) -> Path:
    torch.save(content_of(kind), path)
    return path
