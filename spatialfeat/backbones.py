"""`spatialfeat backbones`: the encoders there are, and all that is known of one."""

from __future__ import annotations

from spatialfeat.config import BackbonesConfig
from spatialfeat.console import NO_BREAK, align, wrap
from spatialfeat.encoders import ENCODERS, RESNET50_ROW, TIMM, Encoder

COLUMNS = ("name", "network", "features", "input", "layer", "licence", "weights")


def backbones(config: BackbonesConfig) -> str:
    """The table of encoders as text, or all about `config.name`.

    Raises:
        SpatialfeatError: no such encoder, with the nearest ones.
    """
    return "\n".join(_table() if config.name is None else _about(config.name))


def table_row(row: Encoder) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    weights = "cannot be read" if row.refused else row.source
    layer = "refused" if row.refused else row.layer
    return (row.name, row.network, str(row.num_features), f"{row.image_size_px} px", layer, row.licence, weights)


def _table() -> list[str]:
    rows = [RESNET50_ROW, *ENCODERS.values()]
    lines = align([COLUMNS, *map(table_row, rows)], left=(0, 1, 4, 5, 6))
    lines = [lines[0], "-" * len(lines[0]), *lines[1:], ""]
    lines += wrap(
        "Weights of resnet50 are downloaded when they are first needed (--weights imagenet). Those of the others have "
        "to be fetched from the page that is named, and passed with --weights PATH; `spatialfeat backbones NAME` says "
        "which file.",
    )
    lines += wrap(
        "Also: every classification network of torchvision that ends in a linear layer, by its name (convnext_tiny, "
        f"vit_b_16), and with pip install 'spatialfeat[timm]' those of timm as {TIMM}NAME."
    )
    for row in rows:
        if row.refused:
            lines += wrap(row.refused, f"{row.name}: ")
    return lines


def _about(name: str) -> list[str]:
    row = ENCODERS.get(name)
    if row is not None and row.refused:
        return _facts([("name", row.name), ("network", row.network), ("source", row.source), ("refused", row.refused)])
    from spatialfeat.network.backbone import find_backbone  # With PyTorch, which the table does not need.

    backbone = find_backbone(name)
    facts = [
        ("name", backbone.name),
        ("network", backbone.title),
        ("features", f"{backbone.num_features}, layer {backbone.layer}"),
        ("input", f"{backbone.image_size_px} x {backbone.image_size_px} px"),
        ("preprocessing", backbone.usual_preprocessing.describe()),
    ]
    if row is not None:
        seen = ", ".join(row.seen) or "no public data set that the table knows"
        facts += [("licence", row.licence), ("trained on", seen)]
        facts += [("weights", f"fetch {row.files} from {row.source}, and pass --weights PATH")]
        facts += [("note", row.note)] if row.note else []
    elif backbone.pretrained is not None:
        if name == RESNET50_ROW.name:
            facts += [("licence", RESNET50_ROW.licence), ("trained on", "ImageNet")]
        facts += [("weights", "--weights imagenet downloads them when they are first needed; or --weights PATH")]
    else:
        facts += [("weights", "--weights PATH")]
    stages = ", ".join(f"{number}{NO_BREAK}{stage}" for number, stage in enumerate(backbone.stages, start=1))
    facts += [("stages", f"{stages}; --freeze-until {backbone.usual_frozen} by default")]
    return _facts(facts)


def _facts(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [line for name, text in facts for line in wrap(text, f"{name:<{width}}  ")]
