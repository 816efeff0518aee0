from __future__ import annotations

from functools import partial
from pathlib import Path

import feature_folders
import pytest

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export

make_video = partial(feature_folders.make_video, num_channels=64)

VIDEOS = ("9_1", "10_1", "10_2", "11_1", "12_1", "12_2")


@pytest.fixture
def features_dir(tmp_path: Path) -> Path:
    for video in VIDEOS:
        make_video(tmp_path / "features", video, [0, 1])
    return tmp_path / "features"


def run(features_dir: Path, content: str, **options: object) -> Path:
    """Export with these folds; returns the folder of bundles."""
    folds = features_dir.parent / "folds.csv"
    folds.write_text(content, encoding="utf-8")
    out = features_dir.parent / "surgery"
    export(ExportConfig(format="ms-tcn", features_dir=features_dir, out=out, folds=folds, **options))  # type: ignore[arg-type]
    return out / "splits"


BY_PATIENT = "patient,fold\n9,b\n10,b\n11,a\n12,a\n"
BY_VIDEO = "fold, video\n2,9_1\n2,10_1\n2,10_2\n\n1,11_1\n1,12_1\n1,12_2\n"


@pytest.mark.parametrize("content", [BY_PATIENT, BY_VIDEO, "\ufeff" + BY_PATIENT.replace("\n", "\r\n")])
def test_each_fold_is_tested_once(features_dir: Path, content: str) -> None:
    splits = run(features_dir, content)
    assert sorted(path.name for path in splits.iterdir()) == [
        "test.split1.bundle", "test.split2.bundle", "train.split1.bundle", "train.split2.bundle"
    ]  # fmt: skip
    first, second = ("11_1", "12_1", "12_2"), ("9_1", "10_1", "10_2")
    assert (splits / "test.split1.bundle").read_text() == "".join(f"{video}.txt\n" for video in first)
    assert (splits / "train.split1.bundle").read_text() == "".join(f"{video}.txt\n" for video in second)
    assert (splits / "test.split2.bundle").read_text() == (splits / "train.split1.bundle").read_text()


def test_folds_are_numbered_in_numeric_order(features_dir: Path) -> None:
    splits = run(features_dir, "patient,fold\n9,10\n10,10\n11,9\n12,9\n")
    assert "11_1.txt" in (splits / "test.split1.bundle").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("patient,fold\n9,1\n77,2\n", r"row 3: patient '77' has no feature file \(there are 9, 10, 11, 12\)"),
        ("video,fold\n9_1,1\n10_1,2\n10_9,2\n", "row 4: video '10_9' has no feature file"),
        ("patient,fold\n9,1\n10,2\n", "lacks 2 of 4 patients: 11, 12"),
        ("patient,fold\n9,1\n9,1\n", "row 3: patient 9 is listed before"),
        ("patient,fold\n9,1\n10,\n", "row 3: has no fold"),
        ("patient,fold\n9,1\n10\n", "row 3: has no fold"),
        ("patient,fold\n9,1\n10,1\n11,1\n12,1\n", "names one fold only, 1"),
        (BY_VIDEO.replace("2,10_2", "1,10_2"), "patient 10 is in two folds, video 10_1 in 2 and 10_2 in 1"),
        ("name,fold\n9,1\n", "needs the column video or the column patient"),
        ("patient,video,fold\n9,9_1,1\n", "write `video,fold` or `patient,fold`"),
        ("", "is empty; the first line must be"),
        ("patient,fold\n", "has no rows"),
        ("patient,fold\n9,1\n10,2\n11,2\n12,2\n", "test.split1.bundle would name one video only, 9_1"),
    ],
)
def test_folds_that_do_not_fit_are_refused(features_dir: Path, content: str, message: str) -> None:
    with pytest.raises(SpatialfeatError, match=message):
        run(features_dir, content)
    assert not (features_dir.parent / "surgery").exists()


def test_a_missing_or_unreadable_csv_is_named(features_dir: Path) -> None:
    for folds in (features_dir / "none.csv", features_dir / "9_1.h5"):
        config = ExportConfig(format="ms-tcn", features_dir=features_dir, out=features_dir.parent / "s", folds=folds)
        with pytest.raises(SpatialfeatError, match=rf"{folds.name}: (no such file|is not UTF-8 text)"):
            export(config)


def test_a_skipped_video_may_stand_in_the_folds(features_dir: Path) -> None:
    make_video(features_dir, "13_1", [0])
    splits = run(features_dir, BY_PATIENT + "13,a\n", skip_short=True)
    assert "13_1" not in (splits / "test.split1.bundle").read_text()


def test_splits_that_mstcn_does_not_know_need_folds(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [0, 1], split="holdout")
    with pytest.raises(SpatialfeatError, match=r"split holdout: ms-tcn knows train, val and test only.*--folds"):
        export(ExportConfig(format="ms-tcn", features_dir=tmp_path / "features", out=tmp_path / "surgery"))


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [(("train", "val"), "no video has split test.*--val-to test"), (("train", "train"), "extract such videos too"),
     (("val", "test"), "no video has split train.*--val-to train")],
)  # fmt: skip
def test_training_and_test_videos_are_needed(tmp_path: Path, splits: tuple[str, str], remedy: str) -> None:
    for number, split in enumerate(splits):
        make_video(tmp_path / "features", f"{number}_1", [0, 1], split=split)
    with pytest.raises(SpatialfeatError, match=remedy):
        export(ExportConfig(format="ms-tcn", features_dir=tmp_path / "features", out=tmp_path / "surgery"))


def test_one_name_among_numbers_is_a_slip(features_dir: Path) -> None:
    with pytest.raises(SpatialfeatError, match="row 4: fold 'x' is not a whole number, as the others are"):
        run(features_dir, "patient,fold\n9,1\n10,1\n11,x\n12,2\n")


def test_renumbered_folds_are_reported(features_dir: Path) -> None:
    (features_dir.parent / "folds.csv").write_text("patient,fold\n9,0\n10,0\n11,5\n12,5\n")
    config = ExportConfig(
        format="ms-tcn",
        features_dir=features_dir,
        out=features_dir.parent / "s",
        folds=features_dir.parent / "folds.csv",
    )
    assert "splits are numbered from 1: fold 0 is split 1, fold 5 is split 2" in export(config).notices


def test_joined_patients_need_folds_of_patients(features_dir: Path) -> None:
    (features_dir.parent / "folds.csv").write_text("video,fold\n9_1,1\n")
    config = ExportConfig(
        format="ms-tcn", features_dir=features_dir, out=features_dir.parent / "s", group_by="patient",
        folds=features_dir.parent / "folds.csv",
    )  # fmt: skip
    with pytest.raises(SpatialfeatError, match="--group-by patient joins them; use the columns `patient,fold`"):
        export(config)


def test_results_of_all_splits_are_gathered_to_be_scored(features_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="spatialfeat"):
        run(features_dir, BY_PATIENT)
    text = caplog.text.partition("Next:")[2]
    assert "run, also with --split=2\n" in text
    assert "mkdir results/surgery/all; cp results/surgery/split_*/* results/surgery/all" in text
    assert f"--predictions MS-TCN=results/surgery/all --split all --features {features_dir}" in text
