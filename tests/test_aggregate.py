from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import PHASES, make_study, make_video

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.exports import source as exportsource


def run(features_dir: Path, out: Path, **options: object) -> None:
    export(ExportConfig(format="hdf5", features_dir=features_dir, out=out, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("frames_per_block", [50, 4096])
def test_every_frame_arrives_time_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames_per_block: int) -> None:
    monkeypatch.setattr(exportsource, "FRAMES_PER_BLOCK", frames_per_block)
    study = make_study(tmp_path / "features")
    run(tmp_path / "features", tmp_path / "all.h5")
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


def test_the_file_tells_how_the_features_were_made(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1])
    run(tmp_path / "features", tmp_path / "all.hdf5")
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert file.attrs["phase_names"].tolist() == list(PHASES)
        assert file.attrs["weights_sha256"] == "a" * 64
        assert file.attrs["fps"] == 1.0
        assert "layout" not in file.attrs


def test_dropped_frames_are_missing_everywhere(tmp_path: Path) -> None:
    made = make_video(tmp_path / "features", "1_1", [0, -100, 2])
    run(tmp_path / "features", tmp_path / "all.h5", unlabelled="drop")
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
            run(tmp_path / "features", tmp_path / name)
    assert (tmp_path / "there.h5").read_bytes() == b"precious"


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1])
    make_video(tmp_path / "features", "2_1", [0, 1], spoil=(0, float("inf")))
    with pytest.raises(SpatialfeatError, match="not finite"):
        run(tmp_path / "features", tmp_path / "all.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["features"]
