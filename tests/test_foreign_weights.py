"""Weights of others: state dicts of the real names, made at random, in every wrapping that people bring.

They are those of a small network, except where a file is told from a ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from networks import network
from safetensors.torch import save_file
from tinydata import write_two_videos
from torch import nn
from torchvision.models import resnet50, resnet101
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import ExportConfig, ExtractConfig, FinetuneConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.extract import extract
from spatialfeat.features.file import FeatureFile
from spatialfeat.finetune import FinetuneResult
from spatialfeat.info import describe, render
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.network.weights import initial_model, load_checkpoint, snapshot

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """A network of 7 phases in half precision; no number is rounded on the way."""
    torch.manual_seed(11)
    with network(small=True):
        found: State = snapshot(PhaseResNet50(7).half())
    return found


@pytest.fixture(scope="module")
def trunk(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """The same names with other numbers."""
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def assert_holds(model: nn.Module, state: State) -> None:
    loaded = model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), name


# --- wrappings -----------------------------------------------------------------------------------------------------

WRAPPINGS: dict[str, tuple[Callable[[State], Any], str]] = {
    "model_state_dict": (
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        "taken from 'model_state_dict'",
    ),
    "Lightning": (
        lambda s: {
            "pytorch-lightning_version": "2.4.0",
            "state_dict": prefixed("model.", s) | {"criterion.weight": torch.ones(7)},
            "hyper_parameters": {"lr": 1e-4},
        },
        "taken from 'state_dict', without the prefix 'model.'; left out: 1 other tensor ('criterion.weight')",
    ),
    "DataParallel": (lambda s: prefixed("module.", s), "taken without the prefix 'module.'"),
    "compiled": (lambda s: prefixed("_orig_mod.", s), "taken without the prefix '_orig_mod.'"),
    "both": (lambda s: prefixed("module._orig_mod.", s), "taken without the prefix 'module._orig_mod.'"),
    "teacher and student": (
        lambda s: {"student": prefixed("backbone.", other(s)), "teacher": prefixed("backbone.", s)},
        "taken from 'teacher', without the prefix 'backbone.'; not from 'student', without the prefix 'backbone.'",
    ),
    "the same twice": (lambda s: {"model": s, "state_dict": dict(s)}, "taken from 'model'"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_whole_network_is_found_and_one_line_says_where(
    wrapping: str, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrap, line = WRAPPINGS[wrapping]
    torch.save(wrap(state), tmp_path / "w.ckpt")
    with caplog.at_level(logging.INFO, "spatialfeat"):
        loaded = load_checkpoint(tmp_path / "w.ckpt")
    assert loaded.num_classes == loaded.num_logits == 7
    assert_holds(loaded.model, state)
    (told,) = [message for message in caplog.messages if "is taken" in message]
    assert line in told
    assert told.startswith(str(tmp_path / "w.ckpt"))


def test_what_lies_open_is_taken_without_a_word(small_plain_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "spatialfeat"):
        load_checkpoint(small_plain_weights)
    assert not any("is taken" in message for message in caplog.messages)


def vissl(trunk: State) -> dict[str, Any]:
    model = {"trunk": prefixed("_feature_blocks.", trunk), "heads": {"0.clf.0.weight": torch.zeros(3, 2048)}}
    loss = prefixed("momentum_encoder.trunk._feature_blocks.", other(trunk))
    return {
        "classy_state_dict": {"train": {}, "base_model": {"model": model, "meta": {}}, "loss": loss},
        "iteration": 9,
    }


def moco(state: State) -> dict[str, Any]:
    """Version 1: its projection is called as a classifier is."""
    projection = {"fc.weight": torch.zeros(128, 2048), "fc.bias": torch.zeros(128)}
    key, query = prefixed("module.encoder_k.", other(state)), prefixed("module.encoder_q.", state | projection)
    return {"epoch": 200, "arch": "resnet50", "state_dict": query | key | {"module.queue": torch.zeros(128, 9)}}


def dropout_head(trunk: State) -> State:
    return trunk | {"fc.1.weight": torch.zeros(7, 2048), "fc.1.bias": torch.zeros(7)}


def numbered(trunk: State) -> State:
    """nn.Sequential(*list(resnet50().children())[:-1])."""
    children = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return {
        f"features.{children.index(name.partition('.')[0])}.{name.partition('.')[2]}": tensor
        for name, tensor in trunk.items()
    }


HEADLESS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "VISSL": (vissl, "from 'classy_state_dict.base_model.model.trunk', without the prefix '_feature_blocks.'", ""),
    "MoCo": (moco, "from 'state_dict', without the prefix 'module.encoder_q.'", "module.encoder_k."),
    "dropout head": (dropout_head, "taken as it is; left out: 2 other tensors ('fc.1.weight', ...)", "fc.1.weight"),
    "another head": (
        lambda t: {"model": prefixed("encoder.", t) | {"head.fc.weight": torch.zeros(7, 2048)}},
        "from 'model', without the prefix 'encoder.'",
        "head.fc.weight",
    ),
    "numbered": (numbered, "without the prefix 'features.'; with names for the numbers of its children", ""),
}


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_network_without_a_classifier_of_phases(
    kind: str, trunk: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fine for extract. evaluate says what is missing; finetune starts a new classifier if asked to lose a head."""
    wrap, line, head = HEADLESS[kind]
    path = tmp_path / "w.pth"
    torch.save(wrap(trunk), path)
    with caplog.at_level(logging.INFO, "spatialfeat"):
        loaded = load_checkpoint(path, needs_classifier=False)
    assert (loaded.num_logits, loaded.num_classes) == (0, 7)
    assert_holds(loaded.model, trunk)
    assert any(line in message for message in caplog.messages)
    assert any("no classifier" in message and head in message for message in caplog.messages)
    if kind == "dropout head":
        with pytest.raises(
            SpatialfeatError, match=r"w\.pth: has no classifier `fc.weight`, but 'fc.1.weight'.*finetune"
        ):
            load_checkpoint(path)
        with pytest.raises(SpatialfeatError, match=r"no classifier .*'fc.1.weight', 'fc.1.bias'; pass --reset-class"):
            initial_model(str(path), 5)
        model = initial_model(str(path), 5, reset_classifier=True)
        assert model.fc.out_features == 5
        assert_holds(model, trunk)


def test_the_number_of_phases_of_weights_without_a_classifier(trunk: State, tmp_path: Path) -> None:
    torch.save(trunk, tmp_path / "w.pth")
    named = load_checkpoint(tmp_path / "w.pth", phase_names=("a", "b", "c"), needs_classifier=False)
    assert (named.num_classes, named.phase_names) == (3, ("a", "b", "c"))
    assert load_checkpoint(tmp_path / "w.pth", num_classes=5, needs_classifier=False).phase_names[-1] == "phase_4"
    assert initial_model(str(tmp_path / "w.pth"), 4).fc.out_features == 4  # Nothing is lost, so nothing is asked.


def test_safetensors(state: State, tmp_path: Path) -> None:
    """timm's names of a ResNet-50 are torchvision's; the content tells, not the file's name."""
    save_file(state, tmp_path / "model.safetensors", metadata={"architecture": "resnet50"})
    assert_holds(load_checkpoint(tmp_path / "model.safetensors").model, state)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(SpatialfeatError, match=r"cut\.bin: is a damaged safetensors file"):
        load_checkpoint(tmp_path / "cut.bin")


def test_more_classes_than_a_feature_file_takes(trunk: State, tmp_path: Path) -> None:
    """As weights of all 21,841 classes of ImageNet have; a start for finetune they are."""
    torch.save(trunk | {"fc.weight": torch.zeros(1001, 2048), "fc.bias": torch.zeros(1001)}, tmp_path / "w.pth")
    with pytest.raises(SpatialfeatError, match=r"w\.pth: has 1001 classes, more than the 1000 .*--reset-classifier"):
        load_checkpoint(tmp_path / "w.pth", needs_classifier=False)
    assert initial_model(str(tmp_path / "w.pth"), 7, reset_classifier=True).fc.out_features == 7


def test_two_networks_of_equal_standing_are_refused_by_name(trunk: State, tmp_path: Path) -> None:
    """The lines of Python in the message give a file that is read."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": other(trunk), "state_dict_ema": prefixed("module.", trunk)}, path)
    with pytest.raises(
        SpatialfeatError, match=r"w\.pth: holds 2 different .*'state_dict' and from 'state_dict_ema'"
    ) as e:
        load_checkpoint(path, needs_classifier=False)
    exec("\n".join(line.strip() for line in str(e.value).splitlines()[1:]), {})
    assert_holds(load_checkpoint(tmp_path / "w-chosen.pth", needs_classifier=False).model, trunk)


@network(small=False)
def test_other_networks_are_told_apart(tmp_path: Path) -> None:
    """A ResNet-101 has every name of a ResNet-50."""
    whole = resnet50(num_classes=7).half().state_dict()
    trunk = {name: tensor for name, tensor in whole.items() if not name.startswith("fc.")}
    with torch.device("meta"):
        names = resnet101(num_classes=7).state_dict()
    more = {name: torch.zeros(1) for name in names if name not in trunk and not name.startswith("fc.")}
    torch.save({"state_dict": prefixed("model.", trunk | more)}, tmp_path / "w.pth")
    with pytest.raises(SpatialfeatError, match=r"is not a torchvision ResNet-50 \(layer3.6.* is surplus, 306 surplus"):
        load_checkpoint(tmp_path / "w.pth")
    part = {name: tensor for name, tensor in trunk.items() if not name.startswith("layer4.")}
    torch.save({"model": prefixed("net.", part)}, tmp_path / "part.pth")
    with pytest.raises(
        SpatialfeatError, match=r"layer4.0.conv1.weight is missing, 50 missing in all, taken from 'model'"
    ):
        load_checkpoint(tmp_path / "part.pth")


# --- what is not weights, or more than weights -----------------------------------------------------------------------


class Marker:
    """An object of a user's own class."""


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_tensors_are_named_and_the_remedy_works(tmp_path: Path, zipped: bool) -> None:
    """Nothing is unpickled to find out; the two lines of Python in the message take the objects out."""
    small = {"conv1.weight": torch.ones(2)}
    content = {
        "state_dict": small,
        "best_acc": np.float64(0.5),
        "args": argparse.Namespace(lr=1e-4, marker=Marker()),
        "callbacks": {"early": {"best": np.float32(1)}, "wait": 3},
        "epoch": 4,
    }
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SpatialfeatError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: holds other things than tensors")
    assert re.search(r"'best_acc' \(numpy\.(_core|core)\.multiarray\.scalar\)", message)
    assert "'callbacks.early.best'" in message
    assert "'state_dict" not in message
    # An old file's other objects show when the first ones are out.
    assert ("'args' (argparse.Namespace)" in message) == zipped
    if zipped:
        exec("\n".join(line.strip() for line in message.splitlines()[1:]), {})
        saved = torch.load(tmp_path / "w-tensors.pth", weights_only=True)
        assert torch.equal(saved.pop("state_dict")["conv1.weight"], small["conv1.weight"])
        assert saved == {"callbacks": {"early": {}, "wait": 3}, "epoch": 4}


def test_a_pickled_model_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(SpatialfeatError, match=r"it is a whole object, torch\.nn\.modules\.linear\.Linear,") as caught:
        load_checkpoint(tmp_path / "w.pth")
    exec("\n".join(line.strip() for line in str(caught.value).splitlines()[1:]), {})
    assert set(torch.load(tmp_path / "w-tensors.pth", weights_only=True)) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html>\n<html><title>Quota exceeded</title></html>", r"is a web page \(HTML\), not weights"),
        (b"<html><body>Sign in</body></html>", "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 102530333\n",
            r"is a Git LFS pointer, which stands for a file of 102\.5 MB, .*git lfs pull",
        ),
        (b"id,label\n1_1_1,0\n", r"is a text file, which begins with 'id,label', not weights; .*\.safetensors"),
        (b'{"phase_names": ["a"]}', r"is a text file, which begins with '\{.*, not weights; the JSON file only"),
        (("\ufeff" + "\u00e9" * 700).encode(), "is a text file"),  # A letter is cut where the first bytes end.
    ],
)
def test_files_that_are_no_weights_are_called_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(SpatialfeatError, match=rf"w\.pth: {message}"):
        load_checkpoint(tmp_path / "w.pth")


def test_a_torchscript_program_is_called_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:  # As torch.jit.save writes.
        for name in ("w/data.pkl", "w/code/__torch__.py", "w/constants.pkl"):
            archive.writestr(name, b"")
    with pytest.raises(SpatialfeatError, match=r"w\.pt: is a TorchScript program"):
        load_checkpoint(tmp_path / "w.pt")


# --- what is assumed -------------------------------------------------------------------------------------------------


def test_weights_without_json_warn_of_what_is_assumed(
    small_plain_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "spatialfeat"):
        load_checkpoint(small_plain_weights)
    (warning,) = caplog.messages
    for part in ("elsewhere.pth", "shorter side to 256 px, central 224 px", "mean 0.485 0.456 0.406",
                 "std 0.229 0.224 0.225", "phase_0 to phase_6", "--preprocessing",
                 "--mean", "--phase-names"):  # fmt: skip
        assert part in warning


def test_a_foreign_json_is_ignored_with_a_line(
    small_plain_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    path.symlink_to(small_plain_weights)
    for content in ({"lr": 1e-4, "schema": 7}, ["a", "list"]):
        (tmp_path / "w.json").write_text(json.dumps(content))
        caplog.clear()
        with caplog.at_level(logging.INFO, "spatialfeat"):
            assert load_checkpoint(path).phase_names[0] == "phase_0"
        assert f"{tmp_path / 'w.json'}: was not written by spatialfeat and is ignored" in caplog.messages


# --- extraction ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headless_weights(trunk: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("headless") / "w.ckpt"
    torch.save({"state_dict": prefixed("backbone.", dropout_head(trunk))}, path)
    return path


@pytest.fixture(scope="module")
def csvs(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two videos of three frames, one to train and one to test on."""
    return write_two_videos(demo_dir / "test_ResNet_DB.csv", tmp_path_factory.mktemp("csv"), num_frames=3)


@pytest.fixture(scope="module")
def headless_features(
    demo_dir: Path, headless_weights: Path, csvs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("out") / "features"
    arguments = ["extract", "--weights", str(headless_weights), "--csv", csvs[0], "--csv", csvs[1],
                 "--img-dir", str(demo_dir / "images"),
                 "--preprocessing", "squash", "--mean", "0.3464,0.228,0.2228", "--std", "0.252,0.2128,0.2093",
                 "--phase-names", "A,B,C,D,E,F,G", "--out", str(out), "--workers", "0", "--device", "cpu"]  # fmt: skip
    with network(small=True):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out


def test_features_without_logits_squashed_and_normalized_as_asked(
    headless_features: Path, demo_dir: Path, trunk: State
) -> None:
    """Against a plain computation: both sides to 224, then mean and std of the options."""
    from PIL import Image
    from torchvision import transforms

    plain = PhaseResNet50(7)
    plain.load_state_dict({name: tensor.float() for name, tensor in trunk.items()}, strict=False)
    plain.fc = nn.Identity()
    plain.eval()
    steps = transforms.Compose([
        transforms.Resize((224, 224)), transforms.ToTensor(),
        transforms.Normalize([0.3464, 0.228, 0.2228], [0.252, 0.2128, 0.2093]),
    ])  # fmt: skip
    paths = sorted(headless_features.glob("*.h5"))
    assert len(paths) == 2
    for path in paths:
        with h5py.File(path) as file:
            assert set(file) == {"features", "labels", "frame_ids", "segment", "frame"}
            assert json.loads(file.attrs["preprocessing"]) == {
                "resize": "squash", "resize_px": 224, "crop_px": 224, "interpolation": "bilinear", "antialias": True,
                "mean": [0.3464, 0.228, 0.2228], "std": [0.252, 0.2128, 0.2093],
            }  # fmt: skip
            assert file.attrs["phase_names"].tolist() == list("ABCDEFG")
            assert "weights_origin" not in file.attrs
            frame_id = file["frame_ids"].asstr()[0]
            image = steps(Image.open(demo_dir / "images" / f"{frame_id}.png").convert("RGB"))
            with torch.no_grad():
                expected = plain(image[None])[0].numpy()
            found = file["features"][:, 0]
            assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_other_preprocessing_does_not_go_into_the_same_folder(
    headless_features: Path, headless_weights: Path, demo_dir: Path, csvs: tuple[str, ...]
) -> None:
    config = ExtractConfig(
        csvs=csvs, img_dir=demo_dir / "images", weights=headless_weights, out_dir=headless_features, workers=0,
        device="cpu", preprocessing="squash", mean=(0.3464, 0.228, 0.2228), std=(0.252, 0.2128, 0.2093),
        phase_names=tuple("ABCDEFG"),
    )  # fmt: skip
    assert extract(config).written == []  # The same again: nothing to do.
    for change in ({"preprocessing": "short-side"}, {"mean": (0.5, 0.5, 0.5)}, {"std": None}):
        with pytest.raises(SpatialfeatError, match=r"made with other preprocessing \(.* there, .* now\); pass --overw"):
            extract(replace(config, **change))


def test_what_needs_logits_says_so_and_the_rest_works(headless_features: Path, tmp_path: Path) -> None:
    first = min(headless_features.glob("*.h5"))
    with FeatureFile(first) as file:
        assert not file.has_logits
        assert file.num_phases == 7
        assert [part["name"] for part in file.describe_datasets()] == [
            "features",
            "labels",
            "frame_ids",
            "segment",
            "frame",
        ]
        with pytest.raises(SpatialfeatError, match=rf"{first.name}: has no logits, .*extract with fine-tuned weights"):
            file.logits()
    export(
        ExportConfig(format="ms-tcn", features_dir=headless_features, out=tmp_path / "study", allow_small_bundles=True)
    )
    assert (tmp_path / "study" / "mapping.txt").read_text().split() == [
        t for i, p in enumerate("ABCDEFG") for t in (str(i), p)
    ]
    export(ExportConfig(format="hdf5", features_dir=headless_features, out=tmp_path / "all.h5"))
    with h5py.File(tmp_path / "all.h5") as file:
        assert set(file[first.stem]) == {"features", "labels", "frame_ids", "segment", "frame"}
    with pytest.raises(SpatialfeatError, match=r"\.h5: has no logits, .*TeCNO"):
        export(ExportConfig(format="tecno", features_dir=headless_features, out=tmp_path / "tecno"))
    assert not (tmp_path / "tecno").exists()
    result = CliRunner().invoke(app, ["evaluate", "--features", str(headless_features), "--out", str(tmp_path / "e")])
    assert result.exit_code == 2
    assert "has no logits" in result.output
    assert "layer avgpool; without logits" in render(describe(headless_features))


def test_files_with_and_without_logits_are_not_mixed(headless_features: Path, tmp_path: Path) -> None:
    shutil.copytree(headless_features, tmp_path / "mixed")
    paths = sorted((tmp_path / "mixed").glob("*.h5"))
    with h5py.File(paths[1], "r+") as file:
        logits = file.create_dataset("logits", data=np.zeros((7, 3), np.float32), chunks=(7, 3))
        logits.attrs["axes"] = "channel,time"
    with pytest.raises(SpatialfeatError, match=r"with other classifier \((there against none|none against there)\)"):
        export(ExportConfig(format="ms-tcn", features_dir=tmp_path / "mixed", out=tmp_path / "study"))


def test_weights_with_json_keep_their_own_preprocessing(small_study: FinetuneResult) -> None:
    from spatialfeat.data.transforms import Preprocessing

    with pytest.raises(SpatialfeatError, match=r"weights\.json: says how .*central 64 px.*leave out --preprocessing"):
        load_checkpoint(small_study.weights_path, preprocessing=Preprocessing.of_options("squash", None, None))


def test_preprocessing_from_a_file_and_bad_ones(tmp_path: Path, small_study: FinetuneResult) -> None:
    from spatialfeat.data.transforms import Preprocessing

    beside = small_study.weights_path.with_suffix(".json")
    assert Preprocessing.of_options(str(beside), None, None) == Preprocessing.for_image_size(64)
    path = tmp_path / "p.json"
    path.write_text('{"resize": "squash", "resize_px": 250, "crop_px": 224}')
    found = Preprocessing.of_options(str(path), (0.5, 0.5, 0.5), None)
    assert found == Preprocessing(resize="squash", resize_px=250, crop_px=224, mean=(0.5, 0.5, 0.5))
    assert Preprocessing.from_dict(found.as_dict()) == found
    for text in ('{"resize": "bent"}', '{"size": 3}', "[1]", "no json", '{"resize_px": 0}'):
        path.write_text(text)
        with pytest.raises(SpatialfeatError, match=r"--preprocessing .*p\.json: is no preprocessing .*resize_px"):
            Preprocessing.of_options(str(path), None, None)
    with pytest.raises(SpatialfeatError, match=r"--preprocessing squish: cannot be read .* pass short-side or squash"):
        Preprocessing.of_options("squish", None, None)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--mean", "0.5", "--mean 0.5: must be three numbers R,G,B"),
        ("--mean", "123.7,116.3,103.5", "between 0 and 1.*divide numbers on the scale 0 to 255 by 255"),
        ("--std", "0,1,1", "--std 0,1,1: must lie between 1e-06 and 1"),
        ("--std", "a,b,c", "--std a,b,c: must be three numbers"),
        ("--mean", "nan,0,0", "must lie between"),
    ],
)
def test_bad_colours_are_refused(option: str, value: str, message: str) -> None:
    for command in ("extract", "evaluate"):
        result = CliRunner().invoke(app, [command, option, value])
        assert result.exit_code == 2
        assert re.search(message, result.output)


# --- ImageNet --------------------------------------------------------------------------------------------------------


def test_imagenet_features_say_that_they_are_not_fine_tuned(
    state: State,
    demo_dir: Path,
    csvs: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stand-in lies where torch.hub keeps the real file: the same names, 1000 classes."""
    from torchvision.models import ResNet50_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir(parents=True)
    stand_in = state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(stand_in, cached)
    config = ExtractConfig(
        csvs=csvs, img_dir=demo_dir / "images", weights=Path("imagenet"), out_dir=tmp_path / "features", workers=0,
        device="cpu",
    )  # fmt: skip
    caplog.set_level(logging.INFO, "spatialfeat")
    extract(config)
    assert any("--weights imagenet: these features are not fine-tuned" in message for message in caplog.messages)
    path = min(config.out_dir.glob("*.h5"))
    with h5py.File(path) as file:
        assert "logits" not in file
        assert file.attrs["weights_origin"] == "torchvision's IMAGENET1K_V1, not fine-tuned"
        assert json.loads(file.attrs["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert "avgpool; torchvision's IMAGENET1K_V1, not fine-tuned; without logits" in render(describe(config.out_dir))
    export(ExportConfig(format="hdf5", features_dir=config.out_dir, out=tmp_path / "all.h5"))
    assert "note: the weights are torchvision's IMAGENET1K_V1, not fine-tuned" in caplog.messages
    with h5py.File(tmp_path / "all.h5") as file:
        assert file.attrs["weights_origin"] == "torchvision's IMAGENET1K_V1, not fine-tuned"
    with pytest.raises(SpatialfeatError, match=r"has no classifier .*fine-tune it first"):
        load_checkpoint(Path("imagenet"))
    # The same file by its path: its 1000 classes are far more than the labels.
    caplog.clear()
    extract(replace(config, weights=cached, out_dir=tmp_path / "by_path"))
    assert any(f"{cached}: has 1000 classes, but no label is above" in message for message in caplog.messages)
    assert any("weights of another task, ImageNet" in message for message in caplog.messages)


def test_finetune_starts_from_a_lightning_checkpoint(
    headless_weights: Path, quick_config: FinetuneConfig, tmp_path: Path
) -> None:
    arguments = ["finetune", "--weights", str(headless_weights), "--out", str(tmp_path), "--epochs", "1",
                 "--image-size", "64", "--batch-size", "10", "--workers", "0", "--freeze-until", "9", "--device", "cpu",
                 "--no-tensorboard",
                 *(f"--{name.replace('_', '-')}={getattr(quick_config, name)}" for name in
                   ("train_csv", "val_csv", "test_csv", "img_dir"))]  # fmt: skip
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "pass --reset-classifier" in refused.output
    result = CliRunner().invoke(app, [*arguments, "--reset-classifier"])
    assert result.exit_code == 0, result.output
    assert "taken from 'state_dict', without the prefix 'backbone.'" in result.output
    assert load_checkpoint(tmp_path / "best_spatial_study_weights.pth").num_classes == 7
