"""`predict`: phases and confidences of frames without labels, from images and from feature files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import PHASES, make_video
from PIL import Image
from torchvision.transforms import v2
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import EvaluateConfig, ExtractConfig, PredictConfig
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import evaluate
from spatialfeat.extract import extract
from spatialfeat.network.weights import load_checkpoint, save_weights
from spatialfeat.predict import predict

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def frames(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's test frames alone, as a folder without any CSV; one number is written without zeros."""
    folder = tmp_path_factory.mktemp("operations") / "frames"
    folder.mkdir()
    for row in read(demo_dir / "test_ResNet_DB.csv"):
        shutil.copy(demo_dir / "images" / f"{row['id']}.png", folder)
    first = min(folder.iterdir())
    video, _, number = first.stem.rpartition("_")
    first.rename(folder / f"{video}_{int(number)}.png")
    return folder


def test_images_and_feature_files_say_the_same(frames: Path, small_plain_weights: Path, tmp_path: Path) -> None:
    computing = {"weights": small_plain_weights, "img_dir": frames, "workers": 0, "device": "cpu"}
    videos = predict(PredictConfig(out_dir=tmp_path / "images", **computing))
    extract(ExtractConfig(out_dir=tmp_path / "features", **computing))
    predict(PredictConfig(features=tmp_path / "features", out_dir=tmp_path / "files"))
    rows, from_files = read(tmp_path / "images/predictions.csv"), read(tmp_path / "files/predictions.csv")
    assert [list(row.values())[:3] for row in rows] == [list(row.values())[:3] for row in from_files]
    confidences = [[float(row["confidence"]) for row in found] for found in (rows, from_files)]
    np.testing.assert_allclose(*confidences, atol=2e-4)
    # Frame by frame: what torchvision alone makes of the picture of this id.
    checkpoint = load_checkpoint(small_plain_weights)
    transform = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = checkpoint.model.eval()
    for row in rows[::5]:
        with torch.inference_mode(), Image.open(frames / f"{row['img_id']}.png") as image:
            probabilities = model(transform(image.convert("RGB"))[None]).softmax(dim=1)[0]
        assert int(row["predicted_label"]) == int(probabilities.argmax())
        assert row["phase"] == checkpoint.phase_names[int(probabilities.argmax())]
        assert float(row["confidence"]) == pytest.approx(float(probabilities.max()), abs=1e-3)
    # In time order, whatever the order of the files' names.
    assert [row["img_id"] for row in rows] == [frame_id for video in videos for frame_id in video.frame_ids.tolist()]
    numbers = [int(row["img_id"].rpartition("_")[2]) for row in rows if row["img_id"].startswith(videos[0].video_id)]
    assert numbers == sorted(numbers)
    assert len(rows) == len(list(frames.iterdir()))
    for out in ("images", "files"):
        names = {str(path.relative_to(tmp_path / out)) for path in (tmp_path / out).rglob("*") if path.is_file()}
        ribbons = {f"ribbons/{video.video_id}.{kind}" for video in videos for kind in ("png", "svg")}
        assert names == {"predictions.csv", "run.json", "ribbons_overview.png", "ribbons_overview.svg"} | ribbons
    record = json.loads((tmp_path / "images/run.json").read_text())
    assert (record["command"], record["status"], record["num_frames"]) == ("predict", "complete", len(rows))


def test_the_csv_can_be_scored_later(tmp_path: Path) -> None:
    made = [make_video(tmp_path / "features", video, [0, 1, 2, -100]) for video in ("2_1", "10_1")]
    predict(PredictConfig(features=tmp_path / "features", out_dir=tmp_path / "out"))
    rows = read(tmp_path / "out/predictions.csv")
    assert [row["img_id"] for row in rows] == made[0].frame_ids + made[1].frame_ids
    logits = np.concatenate([video.logits for video in made])
    assert [int(row["predicted_label"]) for row in rows] == logits.argmax(axis=1).tolist()
    assert [row["phase"] for row in rows] == [PHASES[phase] for phase in logits.argmax(axis=1)]
    expected = np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected, atol=6e-5)
    truth = tmp_path / "truth.csv"
    truth.write_text("id,label\n" + "".join(f"{row['img_id']},{row['predicted_label']}\n" for row in rows))
    scored = evaluate(
        EvaluateConfig(
            predictions=(str(tmp_path / "out/predictions.csv"),), csv=truth, num_classes=3, out_dir=tmp_path / "scores"
        )
    )
    assert scored.metrics["pooled"]["accuracy"] == 1.0


@pytest.mark.usefixtures("drawing")
def test_labels_are_not_used_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_video(tmp_path / "features", "2_1", [0, 1, 2, -100])
    with caplog.at_level("INFO", logger="spatialfeat"):
        (video,) = predict(PredictConfig(features=tmp_path / "features", out_dir=tmp_path / "out"))
    assert "the labels of 3 frames are not used" in caplog.text
    assert video.labels.tolist() == [-100] * 4
    svg = (tmp_path / "out/ribbons/2_1.svg").read_text()
    assert "ground truth" not in svg
    assert "no label" not in svg
    assert "confidence" in svg
    assert "ground truth" not in (tmp_path / "out/ribbons_overview.svg").read_text()


def test_a_second_prediction_leaves_no_ribbon_of_the_first(tmp_path: Path) -> None:
    for number in ("1", "2"):
        make_video(tmp_path / number, f"{number}_1", [0, 1])
        predict(PredictConfig(features=tmp_path / number, out_dir=tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out/ribbons").iterdir()} == {"2_1.png", "2_1.svg"}


def test_segments_of_a_patient_are_joined(tmp_path: Path) -> None:
    for video in ("7_10", "7_9"):
        make_video(tmp_path / "features", video, [0, 1])
    (patient,) = predict(PredictConfig(features=tmp_path / "features", out_dir=tmp_path / "out", group_by="patient"))
    assert patient.segments.tolist() == [9, 9, 10, 10]
    assert (tmp_path / "out/ribbons/7.png").is_file()


def test_one_unreadable_frame_ends_it_and_nothing_is_kept(
    frames: Path, small_plain_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(frames, tmp_path / "frames")
    broken = max((tmp_path / "frames").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    config = PredictConfig(
        weights=small_plain_weights, img_dir=tmp_path / "frames", workers=0, device="cpu", out_dir=tmp_path / "out"
    )
    with pytest.raises(SpatialfeatError, match=broken.name):
        predict(config)
    assert not (tmp_path / "out/predictions.csv").exists()


PATTERN = r"(?P<patient>[a-z]+)(?P<segment>\d)x(?P<frame>\d+)"


@pytest.fixture(scope="module")
def odd_frames(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of patient ab, two in each of two segments, whose ids only a pattern can read."""
    folder = tmp_path_factory.mktemp("odd") / "frames"
    folder.mkdir()
    for name, path in zip(("ab1x1", "ab1x2", "ab2x9", "ab2x10"), sorted(frames.iterdir())[3:], strict=False):
        shutil.copy(path, folder / f"{name}.png")
    return folder


def test_ids_preprocessing_and_cache_are_those_of_evaluate(
    odd_frames: Path, small_plain_weights: Path, tmp_path: Path
) -> None:
    common = ["predict", "--weights", str(small_plain_weights), "--img-dir", str(odd_frames), "--workers", "0",
              "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    run = CliRunner().invoke(app, common)
    assert run.exit_code == 2
    assert "ab1x1" in run.output
    assert "--id-pattern" in run.output
    asked = [*common, "--id-pattern", PATTERN, "--preprocessing", "squash", "--cache", str(tmp_path / "cache")]
    used = []
    for _ in range(2):
        run = CliRunner().invoke(app, asked)
        assert run.exit_code == 0, run.output
        facts = json.loads((tmp_path / "out/run.json").read_text())["cache"]
        used.append((facts["frames_decoded"], facts["frames_from_cache"]))
    assert used == [(4, 0), (0, 4)]
    rows = read(tmp_path / "out/predictions.csv")
    assert [row["img_id"] for row in rows] == ["ab1x1", "ab1x2", "ab2x9", "ab2x10"]
    assert {path.stem for path in (tmp_path / "out/ribbons").iterdir()} == {"ab_1", "ab_2"}
    transform = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = load_checkpoint(small_plain_weights).model.eval()
    for row in rows:
        with torch.inference_mode(), Image.open(odd_frames / f"{row['img_id']}.png") as image:
            probabilities = model(transform(image.convert("RGB"))[None]).softmax(dim=1)[0]
        assert float(row["confidence"]) == pytest.approx(float(probabilities.max()), abs=1e-3)
        assert int(row["predicted_label"]) == int(probabilities.argmax())


def test_ids_are_read_as_in_training(odd_frames: Path, small_plain_weights: Path, tmp_path: Path) -> None:
    weights = tmp_path / "own.pth"
    names = tuple("ABCDEFG")
    state = torch.load(small_plain_weights, weights_only=True)
    training = {"id_rule": f"pattern:{PATTERN}"}
    save_weights(weights, state, phase_names=names, preprocessing=Preprocessing(), training=training)
    (tmp_path / "frames.csv").write_text("id;label\nab2x9;C\nab1x2;\n")
    computing = {"weights": weights, "img_dir": odd_frames, "workers": 0, "device": "cpu"}
    videos = predict(PredictConfig(out_dir=tmp_path / "out", csv=tmp_path / "frames.csv", **computing))
    assert [(video.video_id, video.patient_id) for video in videos] == [("ab_1", "ab"), ("ab_2", "ab")]
    with pytest.raises(SpatialfeatError, match="leave out --preprocessing"):
        predict(PredictConfig(out_dir=tmp_path / "b", preprocessing="squash", **computing))


def test_weights_and_features_without_a_classifier_are_refused_with_the_reason(
    frames: Path, small_plain_weights: Path, tmp_path: Path
) -> None:
    state = torch.load(small_plain_weights, weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "trunk.pth")
    with pytest.raises(SpatialfeatError, match=r"trunk.pth: has no classifier .*so it predicts no phase; fine-tune it"):
        predict(PredictConfig(weights=tmp_path / "trunk.pth", img_dir=frames, out_dir=tmp_path / "out"))
    make_video(tmp_path / "features", "2_1", [0, 1], has_logits=False)
    with pytest.raises(SpatialfeatError, match=r"2_1.h5: has no logits"):
        predict(PredictConfig(features=tmp_path / "features", out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--features", "f", "--img-dir", "i", "--csv", "c"],
            "--csv, --img-dir do nothing here: with --features logits",
        ),
        (["--split", "test"], "--split does nothing here: it chooses among the feature files of --features"),
        (["--features", "f", "--cache", "c"], "--cache does nothing here: with --features logits"),
        (["--features", "f", "--id-form", "auto"], "--id-form does nothing here"),
        (["--id-form", "auto", "--id-pattern", r"(?P<video>.+)_(?P<frame>\d+)"], "say in one way how ids are read"),
        (["--features", "f"], "f: no such"),
        (["--img-dir", "none"], "none"),
        (["--group-by", "frame"], "--group-by frame: must be one of video, patient"),
        (["--fps", "0"], "--fps 0: must be a positive number"),
    ],
)
def test_mistakes_in_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["predict", *arguments])
    assert run.exit_code == 2
    assert message in run.output
    assert "Traceback" not in run.output
    assert list(tmp_path.iterdir()) == []
