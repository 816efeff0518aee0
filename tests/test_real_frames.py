"""Frames and ids as people have them go through every command: JPEGs in folders per video, and patients in a column."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from networks import network
from PIL import Image

from spatialfeat.check import check
from spatialfeat.config import (
    PREDICTIONS_NAME,
    CheckConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    FinetuneConfig,
)
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import evaluate, open_source
from spatialfeat.export import export
from spatialfeat.extract import extract
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import read_features
from spatialfeat.finetune import finetune
from spatialfeat.info import describe, render
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.network.weights import save_weights, snapshot
from spatialfeat.scores.predictions import evaluated_videos
from spatialfeat.training.files import WEIGHTS_NAME

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for frames of 64 px, trained with ids of the form video-frame, as their JSON says."""
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    size = Preprocessing.for_image_size(64)
    facts = {"id_rule": "video-frame"}
    with network(small=True):
        save_weights(path, snapshot(PhaseResNet50(2)), phase_names=("a", "b"), preprocessing=size, training=facts)
    return path


def write_frames(folder: Path, names: list[str], form: str = "JPEG", first: int = 0) -> None:
    """A picture of its own noise for each name with its suffix."""
    for number, name in enumerate(names, start=first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, form)


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(tmp_path: Path, weights: Path, **options: object) -> ExtractConfig:
    plain = ExtractConfig(
        weights=weights, img_dir=tmp_path / "frames", out_dir=tmp_path / "features", workers=0, device="cpu"
    )
    return replace(plain, **options)  # type: ignore[arg-type]


def evaluated(config: EvaluateConfig) -> dict[str, list[str]]:
    """{video: its ids} as evaluate scores them, without its pictures."""
    (parts,) = open_source(config).predict().values()
    return {video.video_id: video.frame_ids.tolist() for video in evaluated_videos(parts, config.group_by)}


def test_from_jpegs_in_folders_per_video_to_scores_and_exports(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    suffixes = {"video_01": ".jpg", "video_02": ".JPG", "video_03": ".jpeg", "video_04": ".png"}
    patients = {"video_01": "A", "video_02": "A", "video_03": "B", "video_04": "C"}
    csvs = {"train": ("video_01", "video_02"), "val": ("video_03",), "test": ("video_04",)}
    for place, (video, suffix) in enumerate(suffixes.items()):
        frames = [f"{video}/{frame:06d}{suffix}" for frame in range(1, NUM_FRAMES + 1)]
        write_frames(tmp_path / "frames", frames, first=10 * place)  # All JPEG data, also those named .png.
    for split, videos in csvs.items():
        rows = [f"{v}/{f:06d},{f % 2},{patients[v]}" for v in videos for f in range(1, NUM_FRAMES + 1)]
        write_lines(tmp_path / f"{split}.csv", "id,label,patient", *rows)
    data = {f"{split}_csv": tmp_path / f"{split}.csv" for split in csvs} | {"img_dir": tmp_path / "frames"}
    report = check(
        CheckConfig(**data, num_classes=2, image_size_px=64, out_dir=tmp_path / "check", workers=0, device="cpu",
                    estimate=False)
    )  # fmt: skip
    assert not report.failed
    assert "video_02/000001: patient A, video video_02, frame 1" in (tmp_path / "check" / "check.txt").read_text()
    assert json.loads((tmp_path / "check" / "check.json").read_text())["ids"] == report.ids
    assert [split["num_patients"] for split in report.splits] == [1, 1, 1]

    finetune(
        FinetuneConfig(**data, num_classes=2, weights="random", image_size_px=64, batch_size=4, epochs=1, workers=0,
                       device="cpu", tensorboard=False, out_dir=tmp_path / "study", id_form="video-frame")
    )  # fmt: skip
    assert "id video_01/000001: patient A, video video_01, frame 1" in caplog.messages
    predictions = tmp_path / "study" / PREDICTIONS_NAME
    assert predictions.read_text().splitlines()[0] == "img_id,true_label,predicted_label,patient"
    assert list(evaluated(EvaluateConfig(predictions=(str(predictions),), group_by="patient"))) == ["C"]
    assert json.loads((tmp_path / "study" / WEIGHTS_NAME).with_suffix(".json").read_text())["id_rule"] == "video-frame"

    caplog.clear()
    config = config_of(
        tmp_path, tmp_path / "study" / WEIGHTS_NAME, csvs=tuple(str(tmp_path / f"{s}.csv") for s in csvs)
    )
    assert extract(config).written == list(suffixes)
    assert "id video_01/000001: patient A, video video_01, frame 1" in caplog.messages
    for video in read_features(config.out_dir):
        assert video.provenance.id_rule == "video-frame"
        assert video.patient_id == patients[video.video_id]
        assert video.frame_ids.tolist() == [f"{video.video_id}/{frame:06d}" for frame in range(1, NUM_FRAMES + 1)]
        assert video.labels.tolist() == [1, 0, 1, 0]
    joined = replace(config, group_by="patient", out_dir=tmp_path / "patients")
    assert extract(joined).written == ["A", "B", "C"]
    file = FeatureFile(joined.out_dir / "A.h5")
    assert file.segments.tolist() == [1] * NUM_FRAMES + [2] * NUM_FRAMES
    single = [FeatureFile(config.out_dir / f"video_0{number}.h5").features() for number in (1, 2)]
    np.testing.assert_allclose(file.features(), np.concatenate(single, axis=1), rtol=1e-4, atol=1e-5)

    for folder in (config.out_dir, joined.out_dir):
        found = evaluated(EvaluateConfig(features=folder, split="all", group_by="patient"))
        ids = [f"{video}/{frame:06d}" for video in ("video_01", "video_02") for frame in range(1, NUM_FRAMES + 1)]
        assert list(found) == ["A", "B", "C"]
        assert found["A"] == ids

    export(ExportConfig(format="hdf5", features_dir=config.out_dir, out=tmp_path / "all.h5", group_by="patient"))
    with h5py.File(tmp_path / "all.h5") as aggregate:
        assert aggregate["A/segment"][()].tolist() == file.segments.tolist()
    hidden = tmp_path / "hidden" / "tree"
    map_path = tmp_path / "map.csv"
    export(ExportConfig(format="csv", features_dir=config.out_dir, out=hidden, pseudonymize=map_path))
    assert len(list(hidden.iterdir())) == len(suffixes)
    for path in hidden.iterdir():
        assert "video_0" not in path.name
        assert "video_0" not in path.read_text()


def test_the_rule_of_training_is_that_of_extraction_unless_another_is_given(tmp_path: Path, weights: Path) -> None:
    write_frames(tmp_path / "frames", ["1050_1_1.png", "1050_1_2.png"], "PNG")
    config = config_of(tmp_path, weights, read_csvs=False)
    extract(config)
    file = FeatureFile(config.out_dir / "1050_1.h5")
    assert (file.provenance.id_rule, file.patient_id, file.segments.tolist()) == ("video-frame", "1050_1", [0, 0])
    with pytest.raises(SpatialfeatError, match=r"was made with other id rule \(video-frame there, auto now\)"):
        extract(replace(config, id_form="auto"))
    extract(replace(config, id_form="auto", out_dir=tmp_path / "again"))
    again = FeatureFile(tmp_path / "again" / "1050_1.h5")
    assert (again.provenance.id_rule, again.patient_id, again.segments.tolist()) == ("auto", "1050", [1, 1])
    # Files of two rules are no set.
    (config.out_dir / "other.h5").write_bytes((tmp_path / "again" / "1050_1.h5").read_bytes())
    with h5py.File(config.out_dir / "other.h5", "r+") as other:
        other.attrs["video_id"] = "1051_1"
    with pytest.raises(SpatialfeatError, match=r"with other id rule \((auto|video-frame) against (auto|video-frame)\)"):
        read_features(config.out_dir)
    assert any("id rule" in problem for problem in describe(config.out_dir).problems)  # type: ignore[union-attr]
    (config.out_dir / "other.h5").unlink()
    assert "ids are read by: video-frame" in render(describe(config.out_dir))


def test_a_feature_file_without_a_rule_is_of_the_usual_one(tmp_path: Path, weights: Path) -> None:
    write_frames(tmp_path / "frames", ["1050_1_1.png"], "PNG")
    config = config_of(tmp_path, weights, read_csvs=False, id_form="auto")
    extract(config)
    path = config.out_dir / "1050_1.h5"
    with h5py.File(path, "r+") as file:
        del file.attrs["id_rule"]
    assert FeatureFile(path).provenance.id_rule == "auto"
    assert extract(config).skipped == ["1050_1"]
    with h5py.File(path, "r+") as file:
        file.attrs["id_rule"] = "guess"
    with pytest.raises(SpatialfeatError, match="'guess' is no rule for ids"):
        FeatureFile(path)


def test_another_patient_column_is_another_file(tmp_path: Path, weights: Path) -> None:
    write_frames(tmp_path / "frames", ["v1/1.jpg", "v1/2.jpg"])
    csv = write_lines(tmp_path / "test.csv", "id,patient", "v1/1,A", "v1/2,A")
    config = config_of(tmp_path, weights, csvs=(str(csv),))
    extract(config)
    write_lines(csv, "id,patient", "v1/1,B", "v1/2,B")
    with pytest.raises(SpatialfeatError, match=r"v1\.h5: was made for patient A, now B; pass --overwrite"):
        extract(config)


def test_frames_of_one_folder_and_of_all_folders(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the folder of a study: its CSVs have nothing to do with these frames."""
    write_frames(tmp_path / "frames", [f"video_0{video}/{frame}.jpg" for video in (1, 2) for frame in (1, 2, 10)])
    write_lines(tmp_path / "test_ResNet_DB.csv", "id,label", "1_1_1,0")
    monkeypatch.chdir(tmp_path)
    one = config_of(tmp_path, weights, img_dir=Path("frames/video_02"), read_csvs=False)
    assert extract(one).written == ["video_02"]
    assert FeatureFile(one.out_dir / "video_02.h5").frames.tolist() == [1, 2, 10]
    every = replace(one, img_dir=Path("frames"))
    result = extract(every)
    assert (result.written, result.skipped) == (["video_01"], ["video_02"])  # The same ids, the same file.
    with pytest.raises(SpatialfeatError, match=r"1_1_1\.\w+: the file does not exist; no video is left to extract"):
        extract(replace(one, read_csvs=True))
    with pytest.raises(SpatialfeatError, match="--csv and --no-csv: leave one of the two out"):
        replace(one, csvs=("test_ResNet_DB.csv",))


def test_videos_in_folders_of_folders_have_files_of_their_own(tmp_path: Path, weights: Path) -> None:
    names = ["c1/v1/1.jpg", "c2/v1/1.jpg", "c1/v1/2.jpg", "c2/v1/2.jpg"]
    write_frames(tmp_path / "frames", names)
    rows = [f"{name.removesuffix('.jpg')},{number % 2}" for number, name in enumerate(names)]
    csv = write_lines(tmp_path / "train.csv", "id,label", *rows, "c1+v1_1,0", "c1+v1_2,1")
    write_frames(tmp_path / "frames", ["c1+v1_1.png", "c1+v1_2.png"], "PNG", first=20)
    config = config_of(tmp_path, weights, csvs=(str(csv),))
    assert sorted(extract(config).written) == ["c1+v1", "c1/v1", "c2/v1"]
    assert sorted(path.name for path in config.out_dir.glob("*.h5")) == ["c1++v1.h5", "c1+v1.h5", "c2+v1.h5"]
    assert FeatureFile(config.out_dir / "c1+v1.h5").video_id == "c1/v1"
    assert sorted(extract(config).skipped) == ["c1+v1", "c1/v1", "c2/v1"]

    plain = ExportConfig(format="csv", features_dir=config.out_dir, out=tmp_path / "csv")
    export(plain)
    assert sorted(path.name for path in plain.out.iterdir()) == ["c1++v1.csv", "c1+v1.csv", "c2+v1.csv"]
    export(replace(plain, format="npy", out=tmp_path / "npy"))
    assert (tmp_path / "npy/features_train/c1/v1/2.npy").exists()
    export(replace(plain, format="hdf5", out=tmp_path / "all.h5"))
    with h5py.File(tmp_path / "all.h5") as aggregate:
        assert sorted(aggregate) == ["c1++v1", "c1+v1", "c2+v1"]
        assert aggregate["c2+v1"].attrs["video_id"] == "c2/v1"
    folds = write_lines(tmp_path / "folds.csv", "video,fold", "c1/v1,1", "c2/v1,1", "c1+v1,2")
    export(replace(plain, format="ms-tcn", out=tmp_path / "surgery", folds=folds, allow_small_bundles=True))
    assert sorted(path.stem for path in (tmp_path / "surgery/features").iterdir()) == ["c1++v1", "c1+v1", "c2+v1"]

    scores = EvaluateConfig(features=config.out_dir, split="train", bootstrap=0, out_dir=tmp_path / "eval")
    assert [video.video_id for video in evaluate(scores).evaluations[0].videos] == ["c1+v1", "c1/v1", "c2/v1"]
    assert (tmp_path / "eval/ribbons/c2+v1.png").exists()


def test_evaluate_reads_ids_as_weights_or_options_say(tmp_path: Path, weights: Path) -> None:
    write_frames(tmp_path / "frames", ["op7_1_1.jpg", "op7_1_2.jpg", "op7_2_1.jpg"])
    csv = write_lines(tmp_path / "test.csv", "id,label", "op7_1_1,0", "op7_1_2,1", "op7_2_1,0")
    config = EvaluateConfig(
        weights=weights, csv=csv, img_dir=tmp_path / "frames", workers=0, device="cpu", group_by="patient"
    )  # fmt: skip
    assert list(evaluated(config)) == ["op7_1", "op7_2"]
    assert list(evaluated(replace(config, id_form="auto"))) == ["op7"]
    predictions = write_lines(tmp_path / "p.csv", "id,predicted,label", "op7_1_1,0,0", "op7_1_2,1,1", "op7_2_1,0,0")
    others = EvaluateConfig(predictions=(str(predictions),), group_by="patient")
    assert list(evaluated(others)) == ["op7"]
    assert list(evaluated(replace(others, id_pattern=r"(?P<video>op.+)_(?P<frame>\d+)"))) == ["op7_1", "op7_2"]
    with pytest.raises(SpatialfeatError, match="--id-form does nothing here"):
        EvaluateConfig(features=tmp_path, id_form="auto")


def test_a_run_without_a_usable_image_counts_all_and_says_what_is_known(tmp_path: Path, weights: Path) -> None:
    write_frames(tmp_path / "frames", ["v1/1.jpg", "v1/2.jpg", "v2/1.jpg"])
    csv = write_lines(tmp_path / "test.csv", "id", "v1_1", "v1_2", "v2_1")
    with pytest.raises(SpatialfeatError) as caught:
        extract(config_of(tmp_path, weights, csvs=(str(csv),)))
    assert str(caught.value) == (
        f"{csv} row 2: cannot read {tmp_path}/frames/v1_1.jpg: the file does not exist (3 of 3 images are missing); no "
        f"video is left to extract: write the folder in the ids, v1/1 for v1_1: this one is {tmp_path}/frames/v1/1.jpg"
    )


def test_what_is_known_of_missing_images_is_said_where_other_videos_go_on(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_frames(tmp_path / "frames", ["v1/1.jpg", "v1/2.jpg"])
    write_frames(tmp_path / "frames", ["v2/1.tif", "v2/2.tif"], "TIFF")
    (tmp_path / "frames/v1/1.png").write_bytes((tmp_path / "frames/v1/1.jpg").read_bytes())
    write_frames(tmp_path / "frames", ["v3/1.png"], "TIFF")
    write_frames(tmp_path / "frames", ["v4/1.png"], "PNG")
    csv = write_lines(tmp_path / "test.csv", "id", "v1/1", "v1/2", "v2/1", "v2/2", "v3/1", "v4/1")
    result = extract(config_of(tmp_path, weights, csvs=(str(csv),)))
    assert result.written == ["v4"]
    assert "there are 1.jpg and 1.png: keep the one that is the frame" in result.failed["v1"]
    assert result.failed["v2"].endswith("v2/1.png: the file does not exist (2 such images)")
    assert result.failed["v3"].endswith("v3/1.png: it is a TIFF image, whatever its name says, not a PNG or JPEG image")
    where = f"of the missing images: convert to PNG or JPEG the 2 files such as {tmp_path}/frames/v2/1.tif"
    assert where in caplog.messages


def test_frames_of_one_number_in_two_folders_are_two_in_the_cache(tmp_path: Path, weights: Path) -> None:
    """Files of equal size and time, as a copy program leaves them, differ by their folder alone."""
    for level, video in ((20, "v1"), (200, "v2")):
        (tmp_path / "frames" / video).mkdir(parents=True)
        path = tmp_path / "frames" / video / "1.png"
        Image.new("RGB", (80, 70), (level,) * 3).save(path)
    sizes = {path.stat().st_size for path in (tmp_path / "frames").rglob("*.png")}
    longest = max(sizes)
    for path in (tmp_path / "frames").rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content + b"\0" * (longest - len(content)))
        os.utime(path, (1, 1))
    config = config_of(tmp_path, weights, read_csvs=False)
    extract(config)
    extract(replace(config, cache_dir=tmp_path / "cache", out_dir=tmp_path / "cached"))
    extract(replace(config, cache_dir=tmp_path / "cache", out_dir=tmp_path / "again"))
    for video in ("v1", "v2"):
        plain = FeatureFile(config.out_dir / f"{video}.h5").features()
        for folder in ("cached", "again"):
            np.testing.assert_array_equal(FeatureFile(tmp_path / folder / f"{video}.h5").features(), plain)
