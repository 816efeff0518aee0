"""The formats for code of one's own: hdf5, npy, csv."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from feature_folders import PHASES, make_study, make_video

from spatialfeat.config import ExportConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.exports import source

MISSING = -100


def run(form: str, features_dir: Path, out: Path, **options: object) -> list[str]:
    """Export; returns the notices."""
    return export(ExportConfig(format=form, features_dir=features_dir, out=out, **options)).notices  # type: ignore[arg-type]


@pytest.mark.parametrize("frames_per_block", [50, 4096])
def test_every_frame_arrives_time_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames_per_block: int) -> None:
    monkeypatch.setattr(source, "FRAMES_PER_BLOCK", frames_per_block)
    study = make_study(tmp_path / "features")
    run("hdf5", tmp_path / "features", tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        assert list(file) == ["9_1", "1050_1", "1050_2", "1051_1", "1052_1", "1053_1", "1054_1", "1100_1"]
        for video, made in study.items():
            group = file[video]
            np.testing.assert_array_equal(group["features"][:], made.features)
            np.testing.assert_array_equal(group["logits"][:], made.logits)
            np.testing.assert_array_equal(group["labels"][:], made.labels)
            assert group["frame_ids"].asstr()[:].tolist() == made.frame_ids
            assert group["frame"][:].tolist() == [int(frame_id[-6:]) for frame_id in made.frame_ids]
            assert group["segment"][:].tolist() == [int(made.path.stem.split("_")[1])] * len(made.labels)
            assert dict(group["features"].attrs)["axes"] == "time,channel"
            assert [dimension.label for dimension in group["features"].dims] == ["time", "channel"]
        assert dict(file["1053_1"].attrs) == {
            "video_id": "1053_1", "patient_id": "1053", "split": "test", "source": "1053_1.h5"
        }  # fmt: skip


def test_the_file_says_how_the_features_were_made(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1])
    run("hdf5", tmp_path / "features", tmp_path / "all.hdf5")
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert file.attrs["phase_names"].tolist() == list(PHASES)
        assert file.attrs["weights_sha256"] == "a" * 64
        assert file.attrs["fps"] == 1.0
        assert "layout" not in file.attrs


def test_dropped_frames_are_missing_everywhere(tmp_path: Path) -> None:
    made = make_video(tmp_path / "features", "1_1", [0, -100, 2])
    run("hdf5", tmp_path / "features", tmp_path / "all.h5", unlabelled="drop")
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file["1_1/features"][:], made.features[[0, 2]])
        assert {name: len(dataset) for name, dataset in file["1_1"].items()} == dict.fromkeys(file["1_1"], 2)


def test_out_must_be_the_name_of_a_new_file(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1])
    (tmp_path / "there.h5").write_bytes(b"precious")
    for name, message in (
        ("there.h5", "exists already"),
        ("folder", r"hdf5 writes one file; name it with .h5 or .hdf5"),
    ):
        with pytest.raises(SpatialfeatError, match=message):
            run("hdf5", tmp_path / "features", tmp_path / name)
    assert (tmp_path / "there.h5").read_bytes() == b"precious"


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1])
    make_video(tmp_path / "features", "2_1", [0, 1], spoil=(0, float("inf")))
    with pytest.raises(SpatialfeatError, match="not finite"):
        run("hdf5", tmp_path / "features", tmp_path / "all.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


def test_every_frame_is_a_file_and_a_row(tmp_path: Path) -> None:
    study = make_study(tmp_path / "features", longest=20)
    run("npy", tmp_path / "features", tmp_path / "out")
    splits = {"train": ("9_1", "1050_1", "1050_2", "1051_1"), "val": ("1052_1", "1054_1"), "test": ("1053_1", "1100_1")}
    for split, videos in splits.items():
        rows = ["id,label"]
        for video in videos:
            made = study[video]
            rows += [f"{frame_id},{label}" for frame_id, label in zip(made.frame_ids, made.labels, strict=True)]
            for frame_id, expected in zip(made.frame_ids, made.features, strict=True):
                array = np.load(tmp_path / f"out/features_{split}/{frame_id}.npy")
                assert array.dtype.str == "<f4"
                np.testing.assert_array_equal(array, expected)
        assert (tmp_path / f"out/{split}_ResNet_DB.csv").read_bytes().decode() == "\n".join(rows) + "\n"
        assert len(list((tmp_path / f"out/features_{split}").iterdir())) == len(rows) - 1
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_the_csvs_are_read_by_this_program(tmp_path: Path) -> None:
    make_study(tmp_path / "features", longest=20)
    run("npy", tmp_path / "features", tmp_path / "out")
    table = read_frames(tmp_path / "out/train_ResNet_DB.csv", tmp_path, split="train", num_classes=3)
    assert len(table) == 20 + 5 + 4 + 18


def test_without_labels_there_is_no_label_column(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [MISSING, MISSING])
    make_video(tmp_path / "features", "2_1", [MISSING, 1], split="test")
    notices = run("npy", tmp_path / "features", tmp_path / "out")
    assert (tmp_path / "out/train_ResNet_DB.csv").read_text() == "id\n1_1_000001\n1_1_000002\n"
    assert (tmp_path / "out/test_ResNet_DB.csv").read_text() == "id,label\n2_1_000001,-100\n2_1_000002,1\n"
    assert "3 frames without a label" in notices[0]


def test_unlabelled_frames_can_be_dropped_or_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, MISSING, 2], split="other")
    run("npy", tmp_path / "features", tmp_path / "out", unlabelled="drop")
    assert (tmp_path / "out/other_ResNet_DB.csv").read_text() == "id,label\n1_1_000001,0\n1_1_000003,2\n"
    assert not (tmp_path / "out/features_other/1_1_000002.npy").exists()
    with pytest.raises(SpatialfeatError, match=r"1 frame without a label.*--unlabelled keep or --unlabelled drop"):
        run("npy", tmp_path / "features", tmp_path / "other", unlabelled="refuse")


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0], split="../../elsewhere")
    with pytest.raises(SpatialfeatError, match=r"attribute split is '../../elsewhere'"):
        run("npy", tmp_path / "features", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


def test_numbers_come_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FRAMES_PER_BLOCK", 4)
    made = make_video(tmp_path / "features", "1050_1", [0, 0, -100, 1, 2, 2], layout="time-first")
    run("csv", tmp_path / "features", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/1050_1.csv", dtype={"id": str})
    assert list(table.columns) == ["id", "label", *(f"f{channel}" for channel in range(2048))]
    assert table["id"].tolist() == made.frame_ids
    assert table["label"].tolist() == made.labels.tolist()
    np.testing.assert_array_equal(table.iloc[:, 2:].to_numpy(dtype=np.float32), made.features)
    assert b"\r" not in (tmp_path / "out/1050_1.csv").read_bytes()


def test_what_the_pituitary_study_needs_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for video, length in (("1_1", 200), ("1_2", 100), ("2_1", 299)):
        make_video(tmp_path / "features", video, [0] * length)
    config = ExportConfig(format="npy", features_dir=tmp_path / "features", out=tmp_path / "out")
    with caplog.at_level("INFO", logger="spatialfeat"):
        export(config)
    text = " ".join(caplog.text.partition("Next:")[2].split())
    assert "copy its temporal_study.py and your best_spatial_study_weights.pth into this folder" in text
    assert "windows take 300 frames of a patient" in text
    assert "leaves out, without a word, patients with fewer frames: 2 (299)." in text
    assert ".view(B_ * T_, C_) mixes phases and time" in text
    assert "docs/temporal.md, with combined_ResNet_DB.csv for its ribbons" in text
