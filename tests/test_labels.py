"""One CSV serves every command: names and decimal numbers as labels, and unlabelled frames, which are counted aloud."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import EvaluateConfig, ExtractConfig, FinetuneConfig
from spatialfeat.evaluate import evaluate
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult, finetune

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")

NAMES = tuple("ABCDEFG")
WITHOUT = ("-1", "", "-100")
SPLITS = ("train", "val", "test")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture(scope="module")
def folder(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's CSVs, with semicolons; three frames of each split are unlabelled, one label is 3.0, others names."""
    path = tmp_path_factory.mktemp("labels")
    for split in SPLITS:
        rows = rows_of(demo_dir / f"{split}_ResNet_DB.csv")
        texts = [*WITHOUT, f"{rows[3][1]}.0", *(NAMES[int(label)] for _, label in rows[4:])]
        lines = ["id;label", *(f"{frame_id};{text}" for (frame_id, _), text in zip(rows, texts, strict=True))]
        (path / f"{split}_ResNet_DB.csv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def labelled(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same CSVs as numbers, without their unlabelled rows."""
    path = tmp_path_factory.mktemp("labelled")
    for split in SPLITS:
        lines = (demo_dir / f"{split}_ResNet_DB.csv").read_text().splitlines()
        (path / f"{split}_ResNet_DB.csv").write_text("\n".join([lines[0], *lines[4:]]) + "\n")
    return path


def test_finetune_trains_on_the_labelled_frames_and_counts_the_others(
    quick_config: FinetuneConfig,
    folder: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = {}
    for source in (folder, labelled):
        monkeypatch.chdir(source)  # The test CSV is found there.
        files = {f"{split}_csv": Path(f"{split}_ResNet_DB.csv") for split in SPLITS[:2]} | {"test_csv": None}
        out_dir = tmp_path / source.name
        with caplog.at_level(logging.INFO, logger="spatialfeat"):
            result = finetune(
                replace(quick_config, epochs=1, freeze_until=9, phase_names=NAMES, out_dir=out_dir, **files)
            )
        weights[source] = result.weights_path.read_bytes()
        record = json.loads((out_dir / "run.json").read_text())
        assert record["options"]["test_csv"] == "test_ResNet_DB.csv"
        assert set(record["data_sha256"]) == {f"{split}_ResNet_DB.csv" for split in SPLITS}
        assert result.test_metrics is not None
        assert result.test_metrics["num_frames"] == 11
    assert weights[folder] == weights[labelled]
    assert "frames are decoded by this process (plain PNG with " in caplog.text
    assert "3 of 28 train frames in train_ResNet_DB.csv without a label: left out" in caplog.text
    assert "3 of 14 val frames in val_ResNet_DB.csv without a label: left out" in caplog.text
    assert (
        "3 of 14 test frames in test_ResNet_DB.csv without a label: predicted, but counted in no score" in caplog.text
    )
    predictions = rows_of(tmp_path / folder.name / "predictions_resnet.csv")
    assert [row[1] for row in predictions[:3]] == ["-100"] * 3
    assert predictions[3:] == rows_of(tmp_path / labelled.name / "predictions_resnet.csv")


def test_check_counts_unlabelled_frames_and_finds_nothing_else(folder: Path, demo_dir: Path, tmp_path: Path) -> None:
    options = [text for split in SPLITS for text in (f"--{split}-csv", str(folder / f"{split}_ResNet_DB.csv"))]
    names = tmp_path / "mapping.txt"
    names.write_text("".join(f"{number} {name}\n" for number, name in enumerate(NAMES)))
    arguments = ["check", *options, "--img-dir", str(demo_dir / "images"), "--phase-names", str(names), "--no-decode",
                 "--no-estimate", "--device", "cpu", "--workers", "0", "--image-size", "64",
                 "--out", str(tmp_path / "check")]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "check" / "check.json").read_text())
    assert [finding["count"] for finding in content["findings"] if finding["code"] == "unlabelled"] == [3, 3, 3]
    assert {split: sum(phases.values()) for split, phases in content["phases"].items()} == {
        "train": 25, "val": 11, "test": 11,
    }  # fmt: skip
    assert list(content["phases"]["test"]) == list(NAMES)


def test_extract_keeps_what_evaluate_leaves_out(
    folder: Path,
    demo_dir: Path,
    small_study: FinetuneResult,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The weights of `small_study` have the names A to G in their JSON."""
    test_csv, features = folder / "test_ResNet_DB.csv", tmp_path / "features"
    common = {"img_dir": demo_dir / "images", "weights": small_study.weights_path, "workers": 0, "device": "cpu"}
    with caplog.at_level(logging.INFO, logger="spatialfeat"):
        extract(ExtractConfig(csvs=(str(test_csv),), out_dir=features, **common))  # type: ignore[arg-type]
    assert f"3 of 14 test frames in {test_csv} without a label: kept, with label -100" in caplog.text
    assert "advance by" not in caplog.text
    stored = {}
    for path in features.glob("*.h5"):
        with h5py.File(path) as file:
            stored |= dict(zip(file["frame_ids"].asstr()[()].tolist(), file["labels"][()].tolist(), strict=True))
    expected = {frame_id: int(label) for frame_id, label in rows_of(demo_dir / "test_ResNet_DB.csv")}
    assert stored == expected | dict.fromkeys(list(expected)[:3], -100)

    out = tmp_path / "export"
    exported = CliRunner().invoke(app, ["export", "csv", str(features), str(out)])
    assert exported.exit_code == 0, exported.output
    assert "3 frames without a label" in exported.output

    scores = []
    for name, source in (("f", {"features": features}), ("w", {"csv": test_csv, **common})):
        result = evaluate(EvaluateConfig(out_dir=tmp_path / name, bootstrap=10, **source))  # type: ignore[arg-type]
        scores.append(result.metrics["pooled"])
        assert result.metrics["num_frames"] == 11
        assert result.metrics["phase_names"] == list(NAMES)
    assert scores[0] == scores[1]


def test_extract_warns_of_frame_numbers_that_advance_faster_than_fps_says(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (demo_dir / "test_ResNet_DB.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *lines[1:7:2]]) + "\n")
    config = ExtractConfig(
        csvs=(str(tmp_path / "test.csv"),), img_dir=demo_dir / "images", weights=small_study.weights_path,
        out_dir=tmp_path / "features", workers=0, device="cpu",
    )  # fmt: skip
    extract(config)
    assert (
        "frame numbers advance by 2, so at --fps 1 frames are 2 s apart; if that is one frame a second, pass --fps 2"
    ) in caplog.text
    caplog.clear()
    extract(replace(config, fps=2.0, overwrite=True))
    assert "advance by" not in caplog.text


def test_a_split_without_any_label_is_refused_before_training(
    quick_config: FinetuneConfig, demo_dir: Path, tmp_path: Path
) -> None:
    rows = rows_of(demo_dir / "val_ResNet_DB.csv")
    (tmp_path / "val.csv").write_text("id,label\n" + "".join(f"{frame_id},-1\n" for frame_id, _ in rows))
    run = CliRunner().invoke(
        app, ["finetune", "--train-csv", str(quick_config.train_csv), "--val-csv", str(tmp_path / "val.csv"),
              "--img-dir", str(demo_dir / "images"), "--weights", "random", "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert run.exit_code == 2
    assert f"error: {tmp_path}/val.csv: has no labelled frame; training and scores need the true phases" in run.stderr
    assert not (tmp_path / "out").exists()
