from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_folders import make_study, make_video

from spatialfeat.config import ExportConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export

MISSING = -100


def run(features_dir: Path, out: Path, **options: object) -> list[str]:
    """Export to npy; returns the notices."""
    return export(ExportConfig(format="npy", features_dir=features_dir, out=out, **options)).notices  # type: ignore[arg-type]


def test_every_frame_is_a_file_and_a_row(tmp_path: Path) -> None:
    study = make_study(tmp_path / "features", longest=20)
    run(tmp_path / "features", tmp_path / "out")
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
    run(tmp_path / "features", tmp_path / "out")
    table = read_frames(tmp_path / "out/train_ResNet_DB.csv", tmp_path, split="train", num_classes=3)
    assert len(table) == 20 + 5 + 4 + 18


def test_without_labels_there_is_no_label_column(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [MISSING, MISSING])
    make_video(tmp_path / "features", "2_1", [MISSING, 1], split="test")
    notices = run(tmp_path / "features", tmp_path / "out")
    assert (tmp_path / "out/train_ResNet_DB.csv").read_text() == "id\n1_1_000001\n1_1_000002\n"
    assert (tmp_path / "out/test_ResNet_DB.csv").read_text() == "id,label\n2_1_000001,-100\n2_1_000002,1\n"
    assert "3 frames without a label" in notices[0]


def test_unlabelled_frames_can_be_dropped_or_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, MISSING, 2], split="other")
    run(tmp_path / "features", tmp_path / "out", unlabelled="drop")
    assert (tmp_path / "out/other_ResNet_DB.csv").read_text() == "id,label\n1_1_000001,0\n1_1_000003,2\n"
    assert not (tmp_path / "out/features_other/1_1_000002.npy").exists()
    with pytest.raises(SpatialfeatError, match=r"1 frame without a label.*--unlabelled keep or --unlabelled drop"):
        run(tmp_path / "features", tmp_path / "other", unlabelled="refuse")


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0], split="../../elsewhere")
    with pytest.raises(SpatialfeatError, match=r"attribute split is '../../elsewhere'"):
        run(tmp_path / "features", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["features"]
