"""Other encoders in every command: finetune to predict, their list, the files of both schemas, the page about them."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from feature_folders import make_video
from tinydata import make_table
from torchvision import models
from typer.testing import CliRunner

from spatialfeat.backbones import COLUMNS, table_row
from spatialfeat.checks.estimate import Machine, Speeds, estimate_runs
from spatialfeat.cli import app
from spatialfeat.config import CheckConfig, ExportConfig, FeaturesSource, FinetuneConfig
from spatialfeat.data.transforms import Preprocessing, evaluation_transform, normalize
from spatialfeat.encoders import ENCODERS, RESNET50_ROW
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import read_features
from spatialfeat.features.windows import FeatureWindows, collate_videos
from spatialfeat.finetune import finetune
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.weights import load_checkpoint
from spatialfeat.scores.predictions import network_name, read_feature_predictions

pytestmark = pytest.mark.usefixtures("no_drawing")

PAGE = Path(__file__).parent.parent / "docs" / "encoders.md"


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.output


# --- training and what comes after ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(quick_config: FinetuneConfig, demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """The quick study on a few frames of every video."""
    folder = tmp_path_factory.mktemp("tiny")
    for split in ("train", "val", "test"):
        write_few_frames(demo_dir / f"{split}_ResNet_DB.csv", folder / f"{split}.csv")
    csvs = {f"{split}_csv": folder / f"{split}.csv" for split in ("train", "val", "test")}
    return replace(quick_config, **csvs, batch_size=4)


def write_few_frames(source: Path, target: Path) -> None:
    """Two frames of every video."""
    header, *lines = source.read_text().splitlines(keepends=True)
    videos: dict[str, list[str]] = {}
    for line in lines:
        videos.setdefault(line.rsplit("_", 1)[0], []).append(line)
    target.write_text("".join([header, *(line for rows in videos.values() for line in rows[:2])]))


def test_a_study_of_another_encoder(tiny: FinetuneConfig, tmp_path: Path) -> None:
    """Trained, scored, predicted, extracted: every command takes the encoder from the JSON beside the weights."""
    name = "mobilenet_v3_small"
    config = replace(tiny, backbone=name, freeze_until=None, epochs=1, out_dir=tmp_path / "study")
    assert abs(config.freeze_until - len(find_backbone(name).stages) // 2) <= 1
    finetune(config)
    weights = tmp_path / "study" / "best_spatial_study_weights.pth"
    description = json.loads(weights.with_suffix(".json").read_text())
    assert description["backbone"] == name
    assert description["preprocessing"]["crop_px"] == 64
    plain = find_backbone(name).build(7)
    plain.network.load_state_dict(torch.load(weights, weights_only=True))  # The plain network's own names, no prefix.
    assert "the encoder torchvision's mobilenet_v3_small" in (tmp_path / "study" / "methods.md").read_text()

    scores = json.loads((tmp_path / "study" / "metrics.json").read_text())["pooled"]
    shared = ("--csv", config.test_csv, "--img-dir", config.img_dir, "--workers", "0", "--device", "cpu",
              "--batch-size", "4")  # fmt: skip
    run("evaluate", "--weights", weights, "--out", tmp_path / "e", "--bootstrap", "0", *shared)
    again = json.loads((tmp_path / "e" / "metrics.json").read_text())["pooled"]
    assert again["accuracy"] == scores["accuracy"]
    run("predict", "--weights", weights, "--out", tmp_path / "p", *shared)
    assert (tmp_path / "p" / "predictions.csv").is_file()
    run("extract", "--weights", weights, "--out", tmp_path / "f", *shared)
    files = read_features(tmp_path / "f")
    assert {file.provenance.backbone for file in files} == {name}
    assert {file.num_channels for file in files} == {find_backbone(name).num_features}
    assert files[0].has_logits
    assert "weights_origin" not in files[0].attributes
    source = FeaturesSource(features=tmp_path / "f", split="all")
    assert list(read_feature_predictions(source, None, None).predict()) == [name]
    text = refused("extract", "--weights", weights, "--backbone", "resnet50", *shared)
    assert f"--backbone resnet50: {weights.with_suffix('.json')} says that these are weights of {name!r}" in text


def test_a_resumed_study_of_another_encoder_is_the_uninterrupted_one(tiny: FinetuneConfig, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    config = replace(tiny, backbone="timm:vit_tiny_patch16_224", freeze_until=None, test_csv=None)
    finetune(replace(config, out_dir=tmp_path / "whole"))
    finetune(replace(config, out_dir=tmp_path / "study", epochs=1, keep_state=True))
    with pytest.raises(SpatialfeatError, match=r"--backbone resnet50 \(it was timm:vit_tiny_patch16_224\)"):
        finetune(replace(config, out_dir=tmp_path / "study", backbone="resnet50", freeze_until=6, resume=True))
    finetune(replace(config, out_dir=tmp_path / "study", resume=True))
    weights = [tmp_path / name / "best_spatial_study_weights.pth" for name in ("study", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    loaded = load_checkpoint(weights[0])
    assert (loaded.backbone.name, loaded.num_logits, loaded.preprocessing.crop_px) == (config.backbone, 7, 64)
    assert loaded.preprocessing.interpolation == "bicubic"  # As timm says.
    assert network_name(config.backbone) == "timm-vit_tiny_patch16_224"


def test_frozen_stages_stay_as_they_are() -> None:
    """Also the class token and position embeddings, which belong to no stage; and no dropout in what is frozen."""
    torch.manual_seed(0)
    model = find_backbone("vit_b_16").build(3)
    assert find_backbone("vit_b_16").stages[:2] == ("conv_proj", "encoder.layers.encoder_layer_0")
    model.freeze(3)
    model.train()
    frozen = {name for name, weight in model.network.named_parameters() if not weight.requires_grad}
    assert {"class_token", "encoder.pos_embedding", "conv_proj.weight"} <= frozen
    assert any(name.startswith("encoder.layers.encoder_layer_1.") for name in frozen)
    assert not any(name.startswith(("encoder.layers.encoder_layer_2.", "encoder.ln", "heads")) for name in frozen)
    layers = model.network.encoder.layers
    assert not layers.encoder_layer_1.training
    assert layers.encoder_layer_2.training
    untouched = find_backbone("convnext_tiny").build(3)
    untouched.freeze(0)
    assert all(weight.requires_grad for weight in untouched.parameters())


def test_options_of_an_encoder_are_its_own() -> None:
    config = FinetuneConfig(backbone="convnext_tiny")
    assert (config.image_size_px, config.freeze_until) == (224, 4)
    assert (FinetuneConfig().image_size_px, FinetuneConfig().freeze_until) == (224, 6)
    assert CheckConfig(backbone="resnet101").study().freeze_until == 6
    with pytest.raises(SpatialfeatError, match=r"--freeze-until 9: must be 0 \(train everything\) to 8 \(train the"):
        FinetuneConfig(backbone="convnext_tiny", freeze_until=9)
    with pytest.raises(
        SpatialfeatError, match=r"--image-size 96: vit_b_16 takes no such input .* its usual one is 224"
    ):
        FinetuneConfig(backbone="vit_b_16", image_size_px=96)
    with pytest.raises(SpatialfeatError, match="no such encoder"):
        CheckConfig(backbone="resnet5")


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_what_encoders_need_of_preprocessing() -> None:
    usual = Preprocessing()
    assert set(usual.as_dict()) == {"resize_px", "crop_px", "interpolation", "antialias", "mean", "std"}
    fixed = replace(usual, resize="squash", resize_px=360, width_px=640, channels="bgr")
    assert Preprocessing.from_dict(fixed.as_dict()) == fixed
    assert "height to 360 px and width to 640 px" in fixed.describe()
    assert "BGR" in fixed.describe()
    # A column of white at 55 to 57 % of the width lands where a resize to 640 x 360 and the central 224 put it.
    frame = np.zeros((90, 200, 3), np.uint8)
    frame[:, 110:114, 0] = 255
    pixels = evaluation_transform(fixed)(frame)
    assert pixels.shape == (3, 224, 224)
    bright = np.flatnonzero(pixels[0, 112].numpy() > 200)
    expected = np.arange(110 * 3.2, 114 * 3.2) - 208
    assert abs(bright.mean() - expected.mean()) < 1
    # Red comes last.
    batch = normalize(pixels[None], fixed)
    plain = normalize(pixels[None], replace(fixed, channels="rgb"))
    assert torch.equal(batch, plain[:, [2, 1, 0]])
    assert fixed.at(112) == replace(fixed, resize_px=180, width_px=320, crop_px=112)
    for wrong in ({"width_px": 640}, {"channels": "gbr"}, {"resize": "squash", "width_px": 0}):
        with pytest.raises(ValueError, match=r"width_px|channels|pixels"):
            Preprocessing.from_dict(wrong)


def test_options_start_from_the_encoders_own() -> None:
    usual = find_backbone("peskavlp").usual_preprocessing
    assert (usual.resize_px, usual.width_px, usual.crop_px) == (360, 640, 224)
    squashed = Preprocessing.of_options("squash", None, None, usual)
    assert squashed == Preprocessing(resize="squash", resize_px=224)
    other = Preprocessing.of_options(None, (0.5, 0.5, 0.5), None, usual)
    assert other == replace(usual, mean=(0.5, 0.5, 0.5))
    assert Preprocessing.of_options(None, None, None, usual) is None


# --- feature files ----------------------------------------------------------------------------------------------------


def test_files_of_schema_1_are_read_everywhere(tmp_path: Path) -> None:
    """They are those of today but for the number: whoever has such a folder goes on with it."""
    folder = tmp_path / "features"
    for video, split in (("1_1", "train"), ("2_1", "train"), ("3_1", "test"), ("4_1", "test")):
        made = make_video(folder, video, [0, 1, 2, 1], split=split)
        with h5py.File(made.path, "r+") as file:
            assert file.attrs["schema"] == 2
            if video != "4_1":  # Files of both schemas may lie in one folder.
                file.attrs["schema"] = 1
    assert FeatureFile(folder / "1_1.h5").features().shape == (2048, 4)
    assert collate_videos(list(FeatureWindows.whole_videos(folder))).features.shape == (4, 2048, 4)
    export(ExportConfig(format="ms-tcn", features_dir=folder, out=tmp_path / "study"))
    assert "All files can be used together." in run("info", folder)
    run("evaluate", "--features", folder, "--out", tmp_path / "e", "--bootstrap", "0")


@pytest.mark.parametrize("form", ["npy", "hdf5", "csv", "tecno", "ms-tcn"])
def test_every_export_takes_d_from_the_files(form: str, tmp_path: Path) -> None:
    for video, split in (("1_1", "train"), ("2_1", "train"), ("3_1", "test"), ("4_1", "test")):
        make_video(tmp_path / "features", video, [0, 1, 2], split=split, num_channels=12)
    target = tmp_path / ("all.h5" if form == "hdf5" else "out")
    export(ExportConfig(format=form, features_dir=tmp_path / "features", out=target))
    if form == "ms-tcn":
        assert np.load(target / "features" / "1_1.npy").shape == (12, 3)
    if form == "hdf5":
        with h5py.File(target) as file:
            assert file["1_1/features"].shape == (3, 12)


def test_another_d_in_the_same_folder_is_refused_with_both(tmp_path: Path) -> None:
    for video, channels in (("1_1", 768), ("2_1", 768), ("3_1", 512)):
        make_video(tmp_path, video, [0, 1], num_channels=channels)
    with pytest.raises(SpatialfeatError, match=r"3_1\.h5 .*number of channels \(512 against 768\)"):
        read_features(tmp_path)


def test_info_warns_of_an_encoder_that_has_seen_the_data_set(tmp_path: Path) -> None:
    made = make_video(tmp_path, "1_1", [0, 1], num_channels=768, has_logits=False)
    with h5py.File(made.path, "r+") as file:
        file.attrs["backbone"] = "endovit"
    warning = "note: endovit was trained on videos of CholecT50"
    assert "trained on" not in run("info", tmp_path)
    assert warning in run("info", tmp_path, "--data-set", "CholecT50")
    assert "trained on" not in run("info", tmp_path, "--data-set", "autolaparo")
    with h5py.File(made.path, "r+") as file:
        file.attrs["data_set"] = "CholecT50"
    assert warning in run("info", tmp_path)
    assert warning in run("info", made.path)
    # Another spelling, and other annotations of the same videos.
    for name in ("cholec80", "Cholec-80", "CholecSeg8k"):
        assert "note: endovit was trained on videos of" in run("info", tmp_path, "--data-set", name)
    assert "--data-set" in refused("info", tmp_path, "--data-set", " ")


def test_info_asks_about_a_misspelt_data_set(tmp_path: Path) -> None:
    """It would pass for one that no encoder has seen."""
    made = make_video(tmp_path, "1_1", [0, 1])
    for wrong in ("colec80", "Cholec-8"):
        note = run("info", tmp_path, "--data-set", wrong)
        assert re.search(rf"note: --data-set {wrong}: .*is\s+cholec80 meant\?", note)
    for right in ("cholec80", "Cholec-80", "CholecT50", "autolaparo", "our own videos"):
        assert "meant?" not in run("info", tmp_path, "--data-set", right)
    with h5py.File(made.path, "r+") as file:
        file.attrs["data_set"] = "colec80"
    assert "meant?" in run("info", tmp_path)


# --- the list and the page --------------------------------------------------------------------------------------------


def test_the_list_shows_every_encoder() -> None:
    lines = run("backbones").splitlines()
    shown = {line.split()[0]: line for line in lines[2 : len(ENCODERS) + 3]}
    assert list(shown) == ["resnet50", *ENCODERS]
    assert re.search(
        r"lemonfm +torchvision:convnext_large +1536 +224 px +pooled +not stated +https://", shown["lemonfm"]
    )
    assert shown["gsvit"].endswith("cannot be read")
    one = run("backbones", "peskavlp")
    for part in ("2048, layer avgpool", "height to 360 px and width to 640 px", "CC BY-NC-SA",
                 "fetch PeskaVLP.pth from", "5 layer1, 6 layer2", "--freeze-until 6 by default"):  # fmt: skip
        assert part in " ".join(one.split())
    assert "no such encoder; the nearest: peskavlp" in refused("backbones", "peskavpl")
    assert "pickle" in run("backbones", "gsvit")


def test_the_pages_table_is_the_codes() -> None:
    lines = PAGE.read_text(encoding="utf-8").partition("## The table\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert rows == [page_row(row) for row in (RESNET50_ROW, *ENCODERS.values())]


def page_row(row: object) -> list[str]:
    cells = dict(zip(COLUMNS, table_row(row), strict=True))  # type: ignore[arg-type]
    seen = ", ".join(row.seen) or ("ImageNet" if row is RESNET50_ROW else "")  # type: ignore[attr-defined]
    return [f"`{cells['name']}`", f"`{cells['network']}`", cells["features"], cells["input"],
            "refused" if row.refused else cells["layer"], cells["licence"], seen]  # type: ignore[attr-defined]  # fmt: skip


def blocks(language: str, heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_adding_an_encoder_works_as_the_page_says(
    demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spatialfeat.encoders.ENCODERS", ENCODERS)
    (code,) = blocks("python", "How to add one")
    try:
        exec(compile(code, str(PAGE), "exec"), {})
        torch.manual_seed(0)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
        torch.save({"state_dict": network.state_dict()}, "our_vit.pth")
        lines = (demo_dir / "test_ResNet_DB.csv").read_text().splitlines(keepends=True)
        Path("test.csv").write_text("".join(lines[:4]))
        run("extract", "--backbone", "our-vit", "--weights", "our_vit.pth", "--csv", "test.csv",
            "--img-dir", demo_dir / "images", "--workers", "0", "--device", "cpu",
            "--data-set", "AutoLaparo")  # fmt: skip
        (file,) = read_features("features")
        assert (file.num_channels, file.provenance.layer) == (192, "class token")
        assert json.loads(file.provenance.preprocessing)["resize"] == "squash"
        assert "our-vit was trained on videos of AutoLaparo" in run("info", "features")
        assert "our-vit" in run("backbones")
    finally:
        ENCODERS.pop("our-vit", None)
        find_backbone.cache_clear()


def test_comparing_two_encoders_works_as_the_page_says(
    demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(demo_dir / "images")
    for split in ("train", "val", "test"):
        write_few_frames(demo_dir / f"{split}_ResNet_DB.csv", Path(f"{split}_ResNet_DB.csv"))
    for name in ("resnet18", "convnext_tiny"):
        torch.manual_seed(0)
        state = models.get_model(name, num_classes=1000).state_dict()
        torch.save({key: t for key, t in state.items() if not key.startswith(("fc.", "classifier.2."))}, f"{name}.pth")
    commands = [line for block in blocks("bash", "Comparing two encoders") for line in block.splitlines()]
    for line in commands:
        assert line.startswith("spatialfeat ")
        if line.startswith("spatialfeat evaluate"):
            for tree, results in (("surgery_a", "results_a"), ("surgery_b", "results_b")):
                Path(results).mkdir()
                for path in Path(tree, "groundTruth").glob("*.txt"):
                    shutil.copy(path, results)
        extra = ["--allow-small-bundles"] if " export " in line else []
        extra += ["--batch-size", "4", "--workers", "0"] if " extract " in line else []
        run(*shlex.split(line)[1:], *extra)
    comparison = json.loads(Path("evaluation/comparison.json").read_text())["comparisons"]
    assert [(found["first"], found["second"]) for found in comparison] == [("a", "b")]


def test_a_classifier_of_imagenet_is_no_classifier_of_phases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "w.pth")
    backbone = find_backbone("resnet18")
    caplog.set_level(logging.INFO, "spatialfeat")
    loaded = load_checkpoint(tmp_path / "w.pth", backbone=backbone, phase_names=("a", "b"), needs_classifier=False)
    assert (loaded.num_logits, loaded.phase_names) == (0, ("a", "b"))
    assert any(
        "no classifier of phases ('fc.weight', 'fc.bias' are left out)" in message for message in caplog.messages
    )
    assert load_checkpoint(tmp_path / "w.pth", backbone=backbone, num_classes=1000).num_logits == 1000


def test_a_weights_file_that_is_not_there_says_where_to_fetch_it(tmp_path: Path) -> None:
    text = rf"{tmp_path}/w\.pth: there is no such file; fetch PeskaVLP\.pth from https://\S+, and pass its path"
    with pytest.raises(SpatialfeatError, match=text):
        load_checkpoint(tmp_path / "w.pth", backbone=find_backbone("peskavlp"))


def test_the_estimate_is_that_of_the_encoder(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    machine = Machine(device="cpu", gpu_bytes=None, cores=2, workers=0, free_memory_bytes=None, free_disk_bytes=10**12)
    speeds = Speeds(train_s=1, inference_s=1, load_train_s=1, load_eval_s=1, train_bytes=1, inference_bytes=1,
                    probe_batch=8)  # fmt: skip
    sizes = [
        estimate_runs(FinetuneConfig(backbone=name), [table] * 1000, 0, speeds, machine).extract_disk_bytes
        for name in ("resnet18", "resnet50")
    ]
    assert sizes[1] - sizes[0] == 2000 * (2048 - 512) * 4


def test_check_and_predict_take_the_option(
    tiny: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For weights of another program, which nothing else describes."""
    monkeypatch.setattr("spatialfeat.checks.estimate.SECONDS", 0.0)
    output = CliRunner().invoke(app, ["check", "--backbone", "resnet18", "--image-size", "64", "--device", "cpu",
                                      "--workers", "0", "--out", str(tmp_path / "check"), "--batch-size", "4",
                                      *(f"--{name.replace('_', '-')}={getattr(tiny, name)}" for name in
                                        ("train_csv", "val_csv", "test_csv", "img_dir"))]).output  # fmt: skip
    assert "epoch" in output
    recorded = json.loads((tmp_path / "check" / "run.json").read_text())["options"]
    assert (recorded["backbone"], recorded["freeze_until"]) == ("resnet18", 6)
    torch.save({"state_dict": models.resnet18(num_classes=7).state_dict()}, tmp_path / "w.ckpt")
    run("predict", "--weights", tmp_path / "w.ckpt", "--backbone", "resnet18", "--csv", tiny.test_csv, "--img-dir",
        tiny.img_dir, "--out", tmp_path / "p", "--workers", "0", "--device", "cpu", "--batch-size", "4")  # fmt: skip
    assert len((tmp_path / "p" / "predictions.csv").read_text().splitlines()) > 1
    assert "nothing here" in refused("predict", "--features", tmp_path, "--backbone", "resnet18")


def test_a_described_backbone_that_is_unknown_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(models.resnet50(num_classes=3).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"weights_sha256": "a" * 64, "backbone": "resnet5000"}))
    with pytest.raises(SpatialfeatError, match=r"w\.json: .*no such encoder; the nearest: resnet50"):
        load_checkpoint(path)
