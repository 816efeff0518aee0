"""methods.md: the study in words, by the options, data and versions that were used; the README's paragraph alike."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torchvision

from spatialfeat import __version__
from spatialfeat.config import FinetuneConfig
from spatialfeat.finetune import FinetuneResult
from spatialfeat.training.files import MAY_DIFFER
from spatialfeat.training.history import EpochRecord, explosion
from spatialfeat.training.methods import recipe

ROOT = Path(__file__).parent.parent


def counted(csv: Path | None) -> str:
    """`28 frames of 3 videos (2 patients)` by a plain look at the ids, all of which are labelled."""
    assert csv is not None
    ids = [line.partition(",")[0].split("_") for line in csv.read_text().splitlines()[1:]]
    numbers = {"frame": len(ids), "video": len({tuple(p[:2]) for p in ids}), "patient": len({p[0] for p in ids})}
    frames, videos, patients = (f"{number} {noun}{'s' * (number > 1)}" for noun, number in numbers.items())
    return f"{frames} of {videos} ({patients})"


def test_a_study_says_what_it_did(small_study: FinetuneResult, quick_config: FinetuneConfig) -> None:
    text = (small_study.weights_path.parent / "methods.md").read_text(encoding="utf-8")
    assert text.startswith("# Methods\n\n")
    for words in (
        "with random initial weights",
        "one of 7 phases",
        "The first 6 of its 10 children (conv1 to layer2) were frozen, at their random weights",
        "resized to 64 x 64 pixels",
        "to 73 pixels on the shorter side and cropped to the central 64 x 64",
        "initial learning rate 0.0001",
        "in batches of 10 for at most 2 epochs",
        f"{counted(quick_config.train_csv)} for training, {counted(quick_config.val_csv)} for validation and "
        f"{counted(quick_config.test_csv)} for test",
        "No choice was made by the test frames",
        f"those of epoch {small_study.best_epoch}, with a validation accuracy of "
        f"{small_study.history[small_study.best_epoch - 1].val_acc:.4f}",
        f"spatialfeat {__version__} with PyTorch {torch.__version__} and torchvision {torchvision.__version__}",
        "in fp32 arithmetic, with seed 0",
    ):
        assert words in text, words


def test_the_readmes_paragraph_is_that_of_the_defaults() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace("\n> ", " ").split())
    assert recipe(FinetuneConfig()) in readme


def test_only_weights_that_are_of_imagenet_are_said_to_be() -> None:
    pytest.importorskip("timm")
    text = recipe(FinetuneConfig(backbone="timm:vit_small_patch14_dinov2"))
    assert "pretrained (timm/vit_small_patch14_dinov2.lvd142m), to assign" in text
    assert "pretrained on ImageNet" not in text
    assert "pretrained on ImageNet (torchvision's weights IMAGENET1K_V1)" in recipe(FinetuneConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "some/where/endo.pth"}, "initialized with the weights endo.pth, to assign"),
        ({"freeze_until": 0}, "All layers were trained"),
        ({"freeze_until": 1}, "The first 1 of its 10 children (conv1) were frozen"),
        ({"class_weights": "balanced"}, "cross-entropy, weighted inversely to the number of training frames"),
        ({"label_smoothing": 0.1}, "with label smoothing of 0.1"),
        ({"clip_grad_norm": 2.0}, "gradients were clipped to a norm of 2"),
        ({"cache_dir": Path("c"), "image_size_px": 224}, "shrunk to at most 320 pixels on the shorter side"),
        ({"lr_factor": 0.1, "lr_patience": 1}, "multiplied by 0.1 after more than 1 epoch without"),
    ],
)
def test_what_an_option_changes_is_said(changes: dict[str, object], words: str) -> None:
    config = FinetuneConfig()
    assert words not in recipe(config)
    assert words in recipe(replace(config, **changes))  # type: ignore[arg-type]


CHANGES = {
    "num_classes": 8, "backbone": "resnet18", "image_size_px": 96, "freeze_until": 3, "epochs": 7, "batch_size": 5,
    "patience": 4, "weights": "random", "reset_classifier": True, "lr": 0.5, "lr_patience": 9, "lr_factor": 0.3,
    "class_weights": "balanced", "label_smoothing": 0.3, "clip_grad_norm": 3.0, "cache_dir": Path("cache"),
    "cache_size_px": 300,
}  # fmt: skip
SAID_OF_THE_RUN = {"precision", "seed", "jpeg_decoder"}
"""In the last paragraph, with device and versions."""
ONLY_READ = {"id_form", "id_pattern", "phase_names"}
"""How the CSVs are read: the frames and phases that come out are counted."""


def test_no_option_is_forgotten() -> None:
    """An option is in the text, or a resumed study may change it, or it is in one of the lists above."""
    options = {field.name for field in fields(FinetuneConfig)}
    assert options == set(CHANGES) | SAID_OF_THE_RUN | ONLY_READ | MAY_DIFFER
    base = FinetuneConfig(weights="a.pth", cache_dir=Path("other"))
    for name, value in CHANGES.items():
        before = FinetuneConfig(weights="a.pth") if name == "cache_dir" else base
        assert recipe(replace(before, **{name: value})) != recipe(before), name


def test_a_classifier_that_was_kept_is_not_said_to_be_new() -> None:
    new = "replaced by a linear classifier with 7 outputs"
    assert new not in recipe(FinetuneConfig(weights="a.pth"))
    assert new in recipe(FinetuneConfig(weights="a.pth", reset_classifier=True))


def record(epoch: int, val_loss: float) -> EpochRecord:
    return EpochRecord(epoch, 1.0, 0.5, val_loss, 0.5, 1e-4, 1.0)


def test_a_loss_that_explodes_is_said() -> None:
    # Chance among 7 phases has the loss log 7 = 1.95; a hundred times that is 194.6.
    assert explosion([record(1, 2.0), record(2, 194.0)], 7) is None
    said = explosion([record(1, 195.0), record(2, 12345.0), record(3, 1.0)], 7)
    assert said is not None
    for words in (
        "1.234e+04",
        "epoch 2 (in 2 epochs of 3 above 100 times 1.95",
        "exploded",
        "--lr",
        "--clip-grad-norm 1",
    ):
        assert words in said, words
