"""One rule for "the same name" wherever patients are put together: letter case, Unicode form, leading zeros."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from check_data import found, make_clean
from feature_folders import make_video
from tinydata import write_csv

from spatialfeat.config import ExportConfig, FinetuneConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.info import describe
from spatialfeat.training.data import read_study

# The names are those of one patient; their videos are different ones.
SPELLINGS = [("P1", "p1"), ("P1", "P01"), ("M\u00fcller1", "Mu\u0308ller1"), ("\uff301", "P1")]


@pytest.mark.parametrize(("first", "second"), SPELLINGS)
def test_finetune_warns_of_a_patient_in_two_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: str, second: str
) -> None:
    config = FinetuneConfig(
        train_csv=write_csv(tmp_path / "train.csv", [(f"{first}_1_{frame}", frame) for frame in range(3)]),
        val_csv=write_csv(tmp_path / "val.csv", [(f"{second}_2_1", 0)]),
        num_classes=3,
    )
    read_study(config)
    (warning,) = [record.getMessage() for record in caplog.records if "SPLIT" in record.getMessage()]
    assert f"patient {first} (also {second}) is in train and val" in warning


@pytest.mark.parametrize(("first", "second"), SPELLINGS)
def test_check_finds_a_patient_in_two_splits(tmp_path: Path, first: str, second: str) -> None:
    data = make_clean(tmp_path)
    data.add_video("train", f"{first}_1")
    data.add_video("val", f"{second}_2", seed=950)
    finding = found(data.report(), "patient-in-two-splits")
    assert f"patient {first} (also {second}): 9 frames in train, 9 frames in val" in finding.message


@pytest.mark.parametrize(("first", "second"), SPELLINGS)
def test_feature_files_of_one_patient(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "features"
    make_video(folder, f"{first}_1", [0, 1], split="train")
    make_video(folder, f"{second}_2", [0, 1], split="test")
    make_video(folder, "Q_1", [0, 1], split="train")
    make_video(folder, "R_1", [0, 1], split="test")
    summary = describe(folder)
    both = {f"patient {one} (also {other}) is in the splits test and train" for one, other in
            ((first, second), (second, first))}  # fmt: skip
    assert {note.partition(":")[0] for note in summary.notes} <= both  # type: ignore[union-attr]
    assert len(summary.notes) == 1  # type: ignore[union-attr]
    config = ExportConfig(format="ms-tcn", features_dir=folder, out=tmp_path / "surgery")
    assert any(f"patient {one} (also {other})" in notice for notice in export(config).notices
               for one, other in ((first, second), (second, first)))  # fmt: skip
    with pytest.raises(SpatialfeatError, match="written differently; use one spelling"):
        export(replace(config, out=tmp_path / "joined", group_by="patient"))
    folds = tmp_path / "folds.csv"
    folds.write_text(f"video,fold\n{first}_1,1\n{second}_2,2\nQ_1,1\nR_1,2\n", encoding="utf-8")
    with pytest.raises(SpatialfeatError, match="is in two folds"):
        export(replace(config, out=tmp_path / "folds", folds=folds))


def test_names_of_different_patients_stay_apart(tmp_path: Path) -> None:
    data = make_clean(tmp_path)
    data.add_video("train", "P1_1")
    data.add_video("val", "P10_1", seed=950)
    data.add_video("test", "P_1", seed=970)
    assert "patient-in-two-splits" not in {finding.code for finding in data.report().findings}
