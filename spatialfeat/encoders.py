"""The table of named encoders: network, features, input, how a weights file is read, licence, what it has seen.

Data only, and nothing but the standard library, so that `spatialfeat backbones` and `info` answer at once.
`network.backbone` builds a network from an entry; docs/encoders.md shows the table and how to add to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESNET50_NAME = "resnet50"

NOT_FINE_TUNED = "not fine-tuned"
"""So ends what is said of weights that have seen no phase."""
TORCHVISION, TIMM = "torchvision:", "timm:"
POOLED, CLASS_TOKEN, TOKEN_MEAN = "pooled", "class token", "mean of tokens"

NON_COMMERCIAL = "CC BY-NC-SA 4.0 (not for commercial use)"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One encoder with weights of its own.

    network: `resnet50`, or `torchvision:NAME` or `timm:NAME`. options: what its builder is called with besides the
    number of classes. plain_relu: the weights were trained with ReLU where timm's network has StarReLU.
    layer: where the features are taken: after pooling, the class token, or the mean of the other tokens.
    preprocessing: fields of `Preprocessing`; what is left out is as the specification has it.
    naming: how names in the weights file become the network's, of `NAMINGS`; files with the network's own names are
        read too. preferred, unused, unused_zeros: as in `Backbone`.
    licence: of the weights. seen: data sets that the weights were trained on, by their names in `prepare` where they
    have one. source: the page that has the weights. files: their names there. note: what a user should know.
    refused: why the published weights cannot be read.
    """

    name: str
    network: str
    num_features: int
    layer: str = POOLED
    options: Mapping[str, Any] = field(default_factory=dict)
    plain_relu: bool = False
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    image_size_px: int = 224
    naming: str = ""
    preferred: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unused_zeros: tuple[str, ...] = ()
    licence: str = "not stated"
    seen: tuple[str, ...] = ()
    source: str = ""
    files: str = ""
    note: str = ""
    refused: str = ""


def _rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


NAMINGS = {
    "MetaFormer": _rules(
        (r"^downsample_layers\.0\.conv\.", "stem.conv."),
        (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
        (r"^downsample_layers\.(\d)\.conv\.", r"stages.\1.downsample.conv."),
        (r"^downsample_layers\.(\d)\.pre_norm\.", r"stages.\1.downsample.norm."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^norm\.", "head.norm."),
        (r"^head\.", "head.fc."),
    ),
    "ConvNeXt": _rules(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"^norm\.", "head.norm."),
        (r"^head\.", "head.fc."),
    ),
    "PVT": _rules(
        (r"^patch_embed1\.", "patch_embed."),
        *((rf"^patch_embed{n + 1}\.", f"stages.{n}.downsample.") for n in (1, 2, 3)),
        *((rf"^block{n + 1}\.(\d+)\.", rf"stages.{n}.blocks.\1.") for n in range(4)),
        *((rf"^norm{n + 1}\.", f"stages.{n}.norm.") for n in range(4)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
    ),
    "DINOv3": _rules(
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"^storage_tokens$", "reg_token"),
    ),
}
"""Names in the files of the authors' own code -> timm's, by rules that are followed in order, the first that fits at
each place."""


def renamed(naming: str, name: str) -> str:
    """timm's name for the name of a tensor in a file of `naming`. Names that no rule changes are returned as they are.

    A rule for the beginning of a name is followed once: what it has made is no beginning of a file's name any more.
    """
    is_begun = False
    for pattern, replacement in NAMINGS[naming]:
        if pattern.pattern.startswith("^"):
            if is_begun:
                continue
            name, count = pattern.subn(replacement, name)
            is_begun = bool(count)
        else:
            name = pattern.sub(replacement, name)
    return name


_SURGENET_PUBLIC = (
    "cholec80", "heichole", "hsdb-instrument", "esad", "psi-ava", "dsad", "glenda", "lapgyn4", "multibypass140",
    "surgtoolloc2022",
)  # fmt: skip
_CAFORMER: dict[str, Any] = {
    "network": "timm:caformer_s18",
    "options": {"use_mlp_head": False},
    "plain_relu": True,
    "num_features": 512,
    "naming": "MetaFormer",
}


def _surgenet(name: str, title: str, seen: tuple[str, ...] = _SURGENET_PUBLIC, **network: Any) -> Encoder:
    """One of SurgeNet's encoders. title: how the name of its file begins. network: the fields that describe it."""
    used = "76 of Cholec80's 80 videos were used; " if "cholec80" in seen else ""
    return Encoder(
        name=name,
        licence="MIT (of the repository)",
        seen=seen,
        source="https://github.com/TimJaspers0801/SurgeNet",
        files=f"{title}_checkpoint_epoch0050_teacher.pth",
        note=f"{used}preprocessing is not stated beyond 224 px",
        **network,
    )


_DINO_NETWORKS = {
    "v1": ("vit_{}_patch16_224", 16, 224, "sb"),
    "v2": ("vit_{}_patch14_dinov2", 14, 336, "sbl"),
    "v3": ("vit_{}_patch16_dinov3", 16, 336, "sbl"),
}
_VIT_SIZES = {"s": ("small", 384), "b": ("base", 768), "l": ("large", 1024)}
_SURGVLP_INPUT = {"resize": "squash", "resize_px": 360, "width_px": 640}

RESNET50_ROW = Encoder(
    name=RESNET50_NAME,
    network="torchvision:resnet50",
    num_features=2048,
    licence="BSD 3-Clause",
    source="torchvision (IMAGENET1K_V1)",
)
"""The default, which is not an entry of the table: `network.backbone` describes it."""

ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        Encoder(
            name="selfsupsurg",
            network=RESNET50_NAME,
            num_features=2048,
            licence=NON_COMMERCIAL,
            seen=("cholec80",),
            source="https://github.com/CAMMA-public/SelfSupSurg",
            files="model_final_checkpoint_{moco_v2,simclr,swav,dino}_surg.torch",
            note="trained on the training videos of Cholec80; preprocessing is not stated",
        ),
        *(
            Encoder(
                name=name,
                network=RESNET50_NAME,
                num_features=2048,
                preprocessing=_SURGVLP_INPUT,
                licence=NON_COMMERCIAL,
                source=f"https://github.com/CAMMA-public/{repository}",
                files=f"{title}.pth",
                note="the features before its embedder of 768 numbers",
            )
            for name, title, repository in (
                ("surgvlp", "SurgVLP", "SurgVLP"),
                ("hecvl", "HecVL", "SurgVLP"),
                ("peskavlp", "PeskaVLP", "PeskaVLP"),
            )
        ),
        _surgenet("surgenetxl", "SurgeNetXL", **_CAFORMER),
        _surgenet("surgenet", "SurgeNet", **_CAFORMER),
        _surgenet("surgenet-small", "SurgeNetSmall", **_CAFORMER),
        _surgenet("surgenet-public", "Public", **_CAFORMER),
        _surgenet("surgenet-cholec", "CHOLEC", ("cholec80", "heichole", "hsdb-instrument"), **_CAFORMER),
        _surgenet("surgenet-ramie", "RAMIE", (), **_CAFORMER),
        _surgenet("surgenet-rarp", "RARP", ("esad", "psi-ava"), **_CAFORMER),
        _surgenet(
            "surgenet-convnextv2",
            "SurgeNet_ConvNextv2",
            network="timm:convnextv2_tiny",
            num_features=768,
            naming="ConvNeXt",
        ),
        _surgenet("surgenet-pvtv2", "SurgeNet_PVTv2", network="timm:pvt_v2_b2", num_features=512, naming="PVT"),
        *(
            Encoder(
                name=f"surgenetdino-{version}-{size}",
                network="timm:" + network.format(_VIT_SIZES[size][0]),
                options={"img_size": side_px, "global_pool": "token"},
                num_features=_VIT_SIZES[size][1],
                layer=CLASS_TOKEN,
                image_size_px=side_px,
                naming="DINOv3" if version == "v3" else "",
                # DINOv3's own code keeps a bias that stays 0, with a mask, which timm's network does without.
                unused=(".bias_mask", ".periods") if version == "v3" else (),
                unused_zeros=(".qkv.bias",) if version == "v3" else (),
                seen=_SURGENET_PUBLIC,
                source="https://github.com/rlpddejong/SurgeNetDINO",
                files=f"DINO{version}_ViT{size}{patch_px}_size{side_px}_SurgeNetXL.pth",
                note=f"preprocessing is not stated beyond {side_px} px",
            )
            for version, (network, patch_px, side_px, sizes) in _DINO_NETWORKS.items()
            for size in sizes
        ),
        Encoder(
            name="lemonfm",
            network="torchvision:convnext_large",
            num_features=1536,
            preprocessing={"resize": "squash", "resize_px": 224},
            seen=("lemon",),
            source="https://huggingface.co/visurg/LemonFM",
            files="LemonFM.pth",
            note="trained on videos of a public platform, which may be in other collections from there",
        ),
        Encoder(
            name="pl-stitch",
            network="timm:vit_base_patch16_224",
            num_features=768,
            layer=CLASS_TOKEN,
            preprocessing={"resize": "squash", "resize_px": 224},
            seen=("lemon",),
            source="https://huggingface.co/visurg/PL-Stitch",
            files="pl_lemon.pth",
            note="trained on videos of a public platform, which may be in other collections from there",
        ),
        Encoder(
            name="endovit",
            network="timm:vit_base_patch16_224",
            num_features=768,
            layer=CLASS_TOKEN,
            preprocessing={
                "resize": "squash",
                "resize_px": 224,
                "mean": (0.3464, 0.2280, 0.2228),
                "std": (0.2520, 0.2128, 0.2093),
            },
            seen=("cholec80", "heico", "psi-ava", "esad", "lapgyn4", "hsdb-instrument", "dsad", "glenda"),
            source="https://github.com/DominikBatic/EndoViT",
            files="pytorch_model.bin, or endovit_{seg,ATD,SPR}.pth",
            note="the three special versions leave out the test videos of Cholec80 of one task each",
        ),
        Encoder(
            name="gsvit",
            network="EfficientViT-M5",
            num_features=384,
            preprocessing={"channels": "bgr"},
            source="https://github.com/SamuelSchmidgall/GSViT",
            files="GSViT.pkl",
            refused="its weights are published only as a pickle of Python objects, whose loading runs code of whoever "
            "made the file",
        ),
    )
}
"""{name: encoder}, beside `resnet50`, torchvision's networks by name, and `timm:NAME`."""

SAME_VIDEOS = {"cholect45": "cholec80", "cholect50": "cholec80", "cholecseg8k": "cholec80"}
"""Data sets that are other annotations of the videos of one in the table."""


def data_set_key(name: str) -> str:
    """Equal for spellings of one data set (`Cholec-80`, `cholec80`), and for annotations of the same videos."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    return re.sub(r"[\W_]+", "", SAME_VIDEOS.get(plain, plain))


def data_set_warning(backbone: str, data_set: str) -> str | None:
    """What is doubtful about features of this encoder of frames of the data set, as far as the table knows.

    The encoder was trained on videos of it; or the name is nearly that of a data set of the table, and is none itself.
    """
    seen_by_key = {data_set_key(seen): seen for row in ENCODERS.values() for seen in row.seen}
    key = data_set_key(data_set)
    if key not in seen_by_key:
        near = difflib.get_close_matches(key, seen_by_key, 1, 0.75)
        meant = f"no encoder of the table knows this data set; is {seen_by_key[near[0]]} meant?" if near else None
        return meant and f"--data-set {data_set}: {meant}"
    if backbone not in ENCODERS or key not in map(data_set_key, ENCODERS[backbone].seen):
        return None
    return (
        f"{backbone} was trained on videos of {data_set}: its features of them are not independent of the test videos, "
        "and scores on these can be too good"
    )
