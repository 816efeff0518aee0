"""Weights files: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet50_Weights, resnet18, resnet50

from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.finetune import FinetuneResult
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.network.weights import description_path, initial_model, load_checkpoint, save_weights, snapshot


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def state(plain_weights: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(plain_weights)
    return loaded


@pytest.mark.usefixtures("small_network")
def test_round_trip_keeps_weights_names_and_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PhaseResNet50(3)
    path = tmp_path / "w.pth"
    names = ("incision", "résection", "closure")
    save_weights(
        path, snapshot(model), phase_names=names, preprocessing=Preprocessing.for_image_size(112), training={"epoch": 4}
    )
    loaded = load_checkpoint(path)
    assert loaded.phase_names == names
    assert loaded.preprocessing == Preprocessing(resize_px=128, crop_px=112)
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert json.loads(description_path(path).read_text())["epoch"] == 4


@pytest.mark.usefixtures("small_network")
def test_equal_weights_give_equal_bytes_under_any_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PhaseResNet50(3)
    for name in ("a.pth", "b.pth"):
        save_weights(
            tmp_path / name, snapshot(model), phase_names=("x", "y", "z"), preprocessing=Preprocessing(), training={}
        )
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_weights_from_elsewhere_are_taken_with_the_specified_preprocessing(plain_weights: Path) -> None:
    loaded = load_checkpoint(plain_weights)
    assert loaded.num_classes == 7
    assert loaded.phase_names[:2] == ("phase_0", "phase_1")
    assert (loaded.preprocessing.resize_px, loaded.preprocessing.crop_px) == (256, 224)


@pytest.mark.usefixtures("small_network")
def test_a_description_of_other_weights_is_refused(
    small_plain_weights: Path, small_study: FinetuneResult, tmp_path: Path
) -> None:
    """The JSON of one file beside another would silently preprocess wrongly."""
    path = tmp_path / "w.pth"
    shutil.copy(small_plain_weights, path)
    shutil.copy(description_path(small_study.weights_path), description_path(path))
    with pytest.raises(SpatialfeatError, match=r"w\.json: describes other weights than .*w\.pth"):
        load_checkpoint(path)


@pytest.mark.usefixtures("small_network")
def test_a_description_of_another_backbone_is_refused(small_study: FinetuneResult, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    shutil.copy(small_study.weights_path, path)
    described = json.loads(description_path(small_study.weights_path).read_text())
    assert described["backbone"] == "resnet50"
    description_path(path).write_text(json.dumps(described | {"backbone": "convnext_tiny"}))
    with pytest.raises(SpatialfeatError, match=r"w\.pth: is not torchvision's convnext_tiny \(features.0.0.weight"):
        load_checkpoint(path)
    del described["backbone"]  # As before there was a choice.
    description_path(path).write_text(json.dumps(described))
    assert load_checkpoint(path).num_classes == 7


@pytest.mark.usefixtures("small_network")
def test_counters_that_old_files_lack_are_zero(small_plain_weights: Path, tmp_path: Path) -> None:
    """As a new network has them, and not what lay in the memory."""
    state = torch.load(small_plain_weights)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    loaded = load_checkpoint(save(tmp_path / "w.pth", old)).model.state_dict()
    assert list(loaded) == list(state)
    assert {int(loaded[name]) for name in state.keys() - old.keys()} == {0}


class Bomb:
    """Pickles to a call of os.mkdir: what a hostile weights file would do on loading."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path: Path) -> None:
    for name, writer in (("zip.pth", torch.save), ("bare.pth", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        writer({"fc.weight": Bomb(tmp_path / "gone-off")}, tmp_path / name)
        with pytest.raises(
            SpatialfeatError, match=rf"{name}: holds other things than tensors, 'fc.weight' \(posix.mkdir\)"
        ):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "gone-off").exists()


def test_other_content_is_refused_with_the_reason(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    cases: list[tuple[Any, str]] = [
        ({"epoch": 3, "state_dict": {"lr": 0.1}}, "is not a plain state dict, and holds none"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        (resnet18(num_classes=7).state_dict(), "not a torchvision ResNet-50"),
        (
            {name: tensor for name, tensor in state.items() if name != "layer4.2.conv3.weight"},
            "layer4.2.conv3.weight is missing",
        ),
        (state | {"layer3.6.conv1.weight": torch.zeros(1)}, "layer3.6.conv1.weight is surplus"),
        (state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1.weight is \(64, 1, 7, 7\), expected"),
        (state | {"fc.bias": torch.full((7,), torch.nan)}, "fc.bias holds NaN"),
    ]
    for number, (content, message) in enumerate(cases):
        with pytest.raises(SpatialfeatError, match=message):
            load_checkpoint(save(tmp_path / f"{number}.pth", content))


def test_unreadable_files_are_refused(tmp_path: Path, plain_weights: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"no such weights file; train with `spatialfeat finetune`"):
        load_checkpoint(tmp_path / "absent.pth")
    for name, content in (("empty.pth", b""), ("text.pth", b"hello"), ("cut.pth", plain_weights.read_bytes()[:1000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpatialfeatError, match=name):
            load_checkpoint(tmp_path / name)


def test_another_class_count_is_refused(plain_weights: Path) -> None:
    with pytest.raises(SpatialfeatError, match="has 7 classes, not 5; pass --num-classes 7"):
        load_checkpoint(plain_weights, num_classes=5)
    with pytest.raises(SpatialfeatError, match=r"has 7 classes, this study has 10; .*--reset-classifier"):
        initial_model(str(plain_weights), 10)


def test_reset_classifier_keeps_the_backbone(plain_weights: Path, state: dict[str, torch.Tensor]) -> None:
    model = initial_model(str(plain_weights), 10, reset_classifier=True)
    assert model.fc.out_features == 10
    assert torch.equal(model.state_dict()["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache folder, with a network that answers nothing."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def imagenet_file(torch_cache: Path) -> Path:
    return torch_cache / Path(ResNet50_Weights.IMAGENET1K_V1.url).name


def test_imagenet_weights_come_from_torchs_cache_with_a_new_classifier(torch_cache: Path) -> None:
    """A stand-in file of the right architecture lies where torchvision keeps the real one."""
    torch.manual_seed(3)
    stand_in = resnet50(num_classes=1000).state_dict()
    torch.save(stand_in, imagenet_file(torch_cache))
    model = initial_model("imagenet", 7)
    assert model.fc.out_features == 7
    for name, tensor in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, stand_in[name])
    # The same file named as a path is taken alike, as the message of a failed download advises.
    assert initial_model(str(imagenet_file(torch_cache)), 7).fc.out_features == 7


def test_a_failed_download_says_which_file_to_put_where(torch_cache: Path) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        initial_model("imagenet", 7)
    message = str(caught.value)
    assert ResNet50_Weights.IMAGENET1K_V1.url in message
    assert str(imagenet_file(torch_cache)) in message
    assert "--weights PATH" in message


def test_a_damaged_cache_file_is_named(torch_cache: Path) -> None:
    imagenet_file(torch_cache).write_bytes(b"half a download")
    with pytest.raises(SpatialfeatError, match=f"{imagenet_file(torch_cache).name}: the cached .* damaged"):
        initial_model("imagenet", 7)
