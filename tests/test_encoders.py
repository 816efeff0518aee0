"""Every encoder of the table, torchvision's networks and timm's: from weights to HDF5 to a temporal model's tree."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from encoder_files import (
    convnextv2,
    kind_of,
    metaformer,
    prefixed,
    random_state,
    transformer,
    write_weights,
)
from tinydata import write_two_videos
from torch import nn
from torch.nn import functional
from torchvision import models
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import ExportConfig
from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.encoders import ENCODERS
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.info import describe, render
from spatialfeat.network import backbone as backbone_module
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork, fold_batch_norm
from spatialfeat.network.weights import initial_model, load_checkpoint

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def csvs(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two videos of two frames, one to train and one to test on."""
    return write_two_videos(demo_dir / "test_ResNet_DB.csv", tmp_path_factory.mktemp("csv"), num_frames=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the weights file of the kind of rows that is tested."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture
def without_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing 300 million numbers takes longer than all else, and those of the file replace them."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(f"torch.nn.init.{name}", lambda tensor, *_, **__: tensor)
    for name in ("vision_transformer", "eva", "metaformer", "convnext", "pvt_v2"):
        if hasattr(module := import_module(f"timm.models.{name}"), "trunc_normal_"):
            monkeypatch.setattr(module, "trunc_normal_", lambda tensor, *_, **__: tensor)


def weights_of(files: Path, name: str) -> Path:
    kind = kind_of(name)
    path = files / f"{kind}.pth"
    if not path.exists():
        for other in files.iterdir():
            other.unlink()  # Only the last one stays: they take hundreds of megabytes.
        write_weights(kind, path)
    return path


def small_preprocessing(name: str, folder: Path) -> str:
    """A JSON file with the encoder's preprocessing at the smallest input of 64 pixels or more."""
    size_px = 70 if "patch14" in ENCODERS[name].network else 64
    path = folder / "preprocessing.json"
    path.write_text(json.dumps(find_backbone(name).preprocessing(size_px).as_dict()))
    return str(path)


READABLE = [name for name, row in ENCODERS.items() if not row.refused]
FIRST = {kind_of(name): name for name in reversed(READABLE)}
LARGE = {"surgenetdino-v2-l": (14, "v2"), "surgenetdino-v3-l": (16, "v3")}
"""Of 300 million weights: what they compute is as in the smaller ones."""
USUAL = set(FIRST.values()) - set(LARGE)


@pytest.mark.usefixtures("without_initial_weights")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.every_encoder) for name in READABLE]
)
def test_from_weights_to_hdf5_to_ms_tcn(
    name: str, files: Path, demo_dir: Path, csvs: tuple[str, ...], tmp_path: Path
) -> None:
    row, weights = ENCODERS[name], weights_of(files, name)
    features, tree = tmp_path / "features", tmp_path / "study"
    arguments = ["extract", "--backbone", name, "--weights", str(weights), "--csv", csvs[0], "--csv", csvs[1],
                 "--img-dir", str(demo_dir / "images"), "--preprocessing", small_preprocessing(name, tmp_path),
                 "--batch-size", "2", "--out", str(features), "--workers", "0", "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for path in features.glob("*.h5"):
        with h5py.File(path) as file:
            assert file.attrs["schema"] == 2
            assert file["features"].shape == (row.num_features, 2)
            assert "logits" not in file
            values = file["features"][()]
            assert np.isfinite(values).all()
            assert not np.array_equal(values[:, 0], values[:, 1])
            assert file.attrs["backbone"] == name
            assert file.attrs["layer"] == ("avgpool" if row.network == "resnet50" else row.layer)
            assert row.source in file.attrs["weights_origin"]
            assert weights.name in file.attrs["weights_origin"]
            preprocessing = json.loads(file.attrs["preprocessing"])
            assert preprocessing["mean"] == list(row.preprocessing.get("mean", (0.485, 0.456, 0.406)))
            assert preprocessing.get("resize", "short-side") == row.preprocessing.get("resize", "short-side")
    export(ExportConfig(format="ms-tcn", features_dir=features, out=tree, allow_small_bundles=True))
    exported = sorted((tree / "features").glob("*.npy"))
    assert [np.load(path).shape for path in exported] == [(row.num_features, 2)] * 2
    assert f"features per frame: {row.num_features}" in render(describe(features))


@pytest.mark.parametrize("name", sorted(set(READABLE) - set(FIRST.values())))
def test_rows_of_one_kind_differ_in_what_is_told_alone(name: str) -> None:
    row, extracted = ENCODERS[name], ENCODERS[FIRST[kind_of(name)]]
    told = {"name", "files", "source", "licence", "seen", "note"}
    assert {field.name for field in fields(row) if getattr(row, field.name) != getattr(extracted, field.name)} <= told
    one, other = find_backbone(name), find_backbone(extracted.name)
    assert one.usual_preprocessing == other.usual_preprocessing
    assert (one.num_features, one.stages) == (other.num_features, other.stages)


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_networks_have_the_names_and_shapes_of_their_files(name: str) -> None:
    row, (patch_px, version) = ENCODERS[name], LARGE[name]
    smaller = ENCODERS[name.replace("-l", "-b")]
    same = ("layer", "options", "preprocessing", "image_size_px", "naming", "preferred", "unused", "unused_zeros")
    assert all(getattr(row, of) == getattr(smaller, of) for of in same)
    with torch.device("meta"):
        network = find_backbone(name).build(0).network
    expected = dict(transformer(1024, 24, patch_px, row.image_size_px, version=version))
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == expected
    assert row.num_features == find_backbone(name).num_features == 1024


# --- what is computed ------------------------------------------------------------------------------------------------


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def images_of(size_px: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    return functional.interpolate(coarse, size_px, mode="bilinear").to(torch.uint8)


def plain_caformer(s: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """SurgeNet's network as its authors describe it: CAFormer-S18 with ReLU in place of StarReLU. (B, 512)."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s.get(f"{name}.bias"), 1e-6)

    def convolved(x: torch.Tensor, name: str, **how: int) -> torch.Tensor:
        y = functional.conv2d(x.permute(0, 3, 1, 2), s[f"{name}.weight"], s.get(f"{name}.bias"), **how)
        return y.permute(0, 2, 3, 1)

    def mixed(x: torch.Tensor, at: str, stage: int) -> torch.Tensor:
        d = x.shape[-1]
        if stage < 2:
            y = torch.relu(x @ s[f"{at}.pwconv1.weight"].T)
            return convolved(y, f"{at}.dwconv", padding=3, groups=2 * d) @ s[f"{at}.pwconv2.weight"].T
        batch, height, width, _ = x.shape
        q, k, v = (x.flatten(1, 2) @ s[f"{at}.qkv.weight"].T).unflatten(2, (3, d // 32, 32)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / 32**0.5).softmax(dim=3)
        return ((weights @ v).transpose(1, 2).flatten(2) @ s[f"{at}.proj.weight"].T).view(batch, height, width, d)

    x = x.permute(0, 2, 3, 1)
    for stage, depth in enumerate((3, 3, 9, 3)):
        at = f"downsample_layers.{stage}"
        if stage == 0:
            x = norm(convolved(x, f"{at}.conv", stride=4, padding=2), f"{at}.post_norm")
        else:
            x = convolved(norm(x, f"{at}.pre_norm"), f"{at}.conv", stride=2, padding=1)
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            scales = [s.get(f"{at}.res_scale{n}.scale", torch.ones(())) for n in (1, 2)]
            x = x * scales[0] + mixed(norm(x, f"{at}.norm1"), f"{at}.token_mixer", stage)
            hidden = torch.relu(norm(x, f"{at}.norm2") @ s[f"{at}.mlp.fc1.weight"].T)
            x = x * scales[1] + hidden @ s[f"{at}.mlp.fc2.weight"].T
    return norm(x.mean(dim=(1, 2)), "norm")


def features_of(name: str, weights: Path, images: torch.Tensor) -> torch.Tensor:
    checkpoint = load_checkpoint(
        weights,
        backbone=find_backbone(name),
        preprocessing=Preprocessing.for_image_size(images.shape[-1]),
        needs_classifier=False,
    )
    return InferenceNetwork(checkpoint.model, checkpoint.preprocessing, "fp32", 2)(images)[0]


def test_surgenets_network_is_the_one_of_its_authors(tmp_path: Path) -> None:
    """timm's caformer_s18 has another activation: with it the same weights would give other features."""
    state, images = random_state(metaformer()), images_of(96)
    torch.save(state, tmp_path / "w.pth")
    expected = plain_caformer(
        {name: tensor.float() for name, tensor in state.items()}, normalize(images, Preprocessing())
    )
    assert relative(features_of("surgenetxl", tmp_path / "w.pth", images), expected) < 1e-4


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32", "resnet18", "efficientnet_b0", "densenet121"])
def test_features_of_torchvisions_networks_are_the_input_of_their_last_layer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = models.get_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight)  # A transformer's is 0 to begin with.
    network.eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = find_backbone(name)
    images = images_of(224 if name == "vit_b_32" else 64)
    tapped: list[torch.Tensor] = []
    preprocessing = backbone.preprocessing(images.shape[-1])
    with torch.no_grad(), last.register_forward_pre_hook(lambda module, inputs: tapped.append(inputs[0])):
        logits = network(normalize(images, preprocessing))
    checkpoint = load_checkpoint(tmp_path / "w.pth", backbone=backbone, preprocessing=preprocessing)
    found = InferenceNetwork(checkpoint.model, preprocessing, "fp32", 2)
    features, scores = found(images)
    assert features.shape == (2, backbone.num_features) == tapped[0].shape
    assert relative(features, tapped[0]) < 1e-4
    assert relative(scores, logits) < 1e-4
    # A frame's bits do not depend on the frames beside it.
    assert torch.equal(torch.cat([found(images[:1])[0], found(images[1:])[0]]), features)
    network.load_state_dict(checkpoint.model.state_dict())  # The plain network's own names.


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"])
def test_a_frames_bits_do_not_depend_on_its_place_in_the_batch(name: str) -> None:
    """These differed, for batches of an odd size: squeezed activations, and layers with one row per frame."""
    torch.manual_seed(2)
    backbone = find_backbone(name)
    model, preprocessing = backbone.build(3).eval(), backbone.preprocessing(64)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    network = InferenceNetwork(model, preprocessing, "fp32", 5)
    expected = network(images)
    for places in range(1, 5):
        for found, usual in zip(network(images.roll(places, 0)), expected, strict=True):
            assert torch.equal(found.roll(-places, 0), usual)


def test_the_classifier_of_imagenet_is_not_scored_as_phases(tmp_path: Path) -> None:
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "w.pth")
    with pytest.raises(SpatialfeatError, match=r"w\.pth: its classifier has 1000 classes, as ImageNet's.*fine-tune it"):
        load_checkpoint(tmp_path / "w.pth", backbone=find_backbone("resnet18"))
    assert load_checkpoint(tmp_path / "w.pth", backbone=find_backbone("resnet18"), num_classes=1000).num_logits == 1000


def test_phases_of_extracted_features_have_the_names_beside_the_csv(
    demo_dir: Path, csvs: tuple[str, ...], tmp_path: Path
) -> None:
    """As finetune and check take them, unless the weights know better."""
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "w.pth")
    names = [f"step {number}" for number in range(8)]
    train = tmp_path / "train.csv"
    train.write_text(Path(csvs[0].rpartition("=")[2]).read_text())
    (tmp_path / "phase_names.txt").write_text("\n".join(names))
    arguments = ["extract", "--backbone", "resnet18", "--weights", str(tmp_path / "w.pth"), "--csv", str(train),
                 "--img-dir", str(demo_dir / "images"), "--workers", "0", "--device", "cpu", "--preprocessing",
                 small_preprocessing("surgvlp", tmp_path), "--batch-size", "2"]  # fmt: skip
    for more, expected in (((), names), (("--num-classes", "9"), [f"phase_{number}" for number in range(9)])):
        out = tmp_path / f"features{len(more)}"
        result = CliRunner().invoke(app, [*arguments, *more, "--out", str(out)])
        assert result.exit_code == 0, result.output
        (path,) = out.glob("*.h5")
        with h5py.File(path) as file:
            assert list(file.attrs["phase_names"]) == expected


def test_batchnorm_is_folded_where_a_convolution_is_before_it() -> None:
    torch.manual_seed(1)
    network = models.resnet18(num_classes=2).eval()
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.device("meta"):
        transformer = models.vit_b_16(num_classes=2).eval()
    assert fold_batch_norm(transformer) is transformer


# --- reading weights files --------------------------------------------------------------------------------------------


def test_timms_own_names_and_dinov3s_are_read_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The authors of DINOv3 call scales and registers otherwise, and keep biases that are zero."""
    state = random_state(transformer(384, 12, 16, 336, version="v3"))
    torch.save(state, tmp_path / "timm.pth")
    theirs = {
        name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens"): t
        for name, t in state.items()
    }
    for block in range(12):
        theirs[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * 384)
        theirs[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * 384)
    torch.save(theirs, tmp_path / "theirs.pth")
    images, name = images_of(64), "surgenetdino-v3-s"
    with caplog.at_level(logging.INFO, "spatialfeat"):
        features = features_of(name, tmp_path / "theirs.pth", images)
    assert any("timm's names for those of DINOv3's authors" in message for message in caplog.messages)
    assert torch.equal(features, features_of(name, tmp_path / "timm.pth", images))
    # The class token of the plain network.
    plain = timm.create_model("vit_small_patch16_dinov3", num_classes=0, global_pool="token", img_size=336).eval()
    plain.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    with torch.no_grad():
        assert relative(features, plain(normalize(images, Preprocessing()))) < 1e-4
    theirs["blocks.3.attn.qkv.bias"][5] = 1.0
    torch.save(theirs, tmp_path / "theirs.pth")
    with pytest.raises(
        SpatialfeatError, match=r"theirs\.pth: is not surgenetdino-v3-s .*blocks\.3\.attn\.qkv\.bias is surplus"
    ):
        features_of(name, tmp_path / "theirs.pth", images)


def test_position_embeddings_serve_inputs_of_other_sizes(tmp_path: Path) -> None:
    """The weights keep their shapes; a size that is no multiple of the patches is refused with the usual one."""
    torch.save(random_state(transformer(384, 12, 14, 336, version="v2")), tmp_path / "w.pth")
    name = "surgenetdino-v2-s"
    assert features_of(name, tmp_path / "w.pth", images_of(70)).shape == (2, 384)
    with pytest.raises(SpatialfeatError, match=r"--image-size 64: surgenetdino-v2-s takes no such input .* is 336"):
        features_of(name, tmp_path / "w.pth", images_of(64))


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"

    def refused(name: str, state: dict[str, torch.Tensor]) -> str:
        torch.save(state, path)
        with pytest.raises(SpatialfeatError) as caught:
            load_checkpoint(path, backbone=find_backbone(name), needs_classifier=False)
        return str(caught.value)

    small = random_state(transformer(384, 12, 16, 224))
    # Another network, another size of it, a deeper one, and only a part.
    text = refused("convnext_tiny", small)
    assert text.startswith(f"{path}: is not torchvision's convnext_tiny (features.0.0.weight is missing, ")
    text = refused("endovit", small)
    assert "is not endovit (timm's vit_base_patch16_224) (cls_token is (1, 1, 384), expected (1, 1, 768))" in text
    deeper = dict(prefixed("blocks.12.", {"norm1.weight": torch.ones(384)}))
    assert "blocks.12.norm1.weight is surplus, 1 surplus in all" in refused("surgenetdino-v1-s", small | deeper)
    part = {name: tensor for name, tensor in small.items() if not name.startswith("blocks.11.")}
    assert "blocks.11.norm1.weight is missing, 12 missing in all" in refused("surgenetdino-v1-s", part)
    # SurgeNet's file has no scales of StarReLU, which timm's own caformer_s18 has.
    assert "is missing" in refused("timm:caformer_s18", random_state(metaformer()))
    assert "is missing" in refused("surgenetxl", random_state(convnextv2()))
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(SpatialfeatError, match=r"holds other things than tensors: it is a whole object"):
        load_checkpoint(path, backbone=find_backbone("lemonfm"), needs_classifier=False)


def test_gsvit_is_in_the_table_to_be_refused(demo_dir: Path, tmp_path: Path) -> None:
    path = write_weights("gsvit", tmp_path / "GSViT.pkl")
    images = str(demo_dir / "images")
    arguments = ["extract", "--no-csv", "--img-dir", images, "--backbone", "gsvit", "--weights", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--backbone gsvit: its weights are published only as a pickle of Python objects" in result.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tny", r"--backbone convnext_tny: no such encoder; the nearest: convnext_tiny"),
        ("lemonfn", r"nearest: lemonfm"),
        ("timm:vit_base_patch16_223", r"timm [\d.]+ has no such network; the nearest: .*timm:vit_base_patch16_224"),
        ("squeezenet1_0", r"its last layer is no linear one \(AdaptiveAvgPool2d\)"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(SpatialfeatError, match=message):
        find_backbone(name)


def test_without_timm_its_names_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_backbone.cache_clear()
    backbone_module._of_timm.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        SpatialfeatError, match=r"--backbone timm:resnet18: needs timm, .* pip install 'spatialfeat\[timm\]'"
    ):
        find_backbone("timm:resnet18")
    with pytest.raises(SpatialfeatError, match="needs timm"):
        find_backbone("endovit")
    find_backbone.cache_clear()


def test_a_missing_download_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from urllib.error import URLError

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(SpatialfeatError, match=r"put the file https://\S+resnet18\S+ at .*checkpoints"):
        initial_model("imagenet", 3, backbone=find_backbone("resnet18"))
    with pytest.raises(
        SpatialfeatError, match=r"no weights of ImageNet.*fetch model_final_checkpoint\S+ from https://\S+, and pass"
    ):
        initial_model("imagenet", 3, backbone=find_backbone("selfsupsurg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SpatialfeatError, match=r"fetch the file model.safetensors of https://huggingface.co/timm/\S+ and"
    ):
        initial_model("imagenet", 3, backbone=find_backbone("timm:vit_tiny_patch16_224"))
