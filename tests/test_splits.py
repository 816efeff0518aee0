"""Which CSV is which split."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from spatialfeat.data.frames import named_csvs
from spatialfeat.errors import SpatialfeatError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_ResNet_DB.csv", "train"),
        ("val_ResNet_DB.csv", "val"),
        ("test_ResNet_DB.csv", "test"),
        ("Training.csv", "train"),
        ("fold2-VALID.csv", "val"),
        ("my.validation.v2.csv", "val"),
        ("testing1.csv", "test"),
        ("some/test/train.csv", "train"),
    ],
)
def test_the_name_tells_the_split(name: str, split: str) -> None:
    assert named_csvs([name]) == [(split, Path(name))]


@pytest.mark.parametrize("name", ["frames.csv", "train_and_test.csv", "latest.csv", "trainval.csv", "train/frames.csv"])
def test_a_name_that_does_not_tell_the_split(name: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        named_csvs([name])
    assert f"--csv {name}: the file's name does not say which split it is" in str(caught.value)
    assert f"write --csv SPLIT={name}" in str(caught.value)


def test_the_user_names_the_split() -> None:
    csvs = ["holdout=frames.csv", "val=train.csv", "fold_1-a=x=y.csv"]
    assert named_csvs(csvs) == [
        ("holdout", Path("frames.csv")),
        ("val", Path("train.csv")),
        ("fold_1-a", Path("x=y.csv")),
    ]


def test_a_file_whose_name_has_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k=5_train.csv").touch()
    assert named_csvs(["k=5_train.csv"]) == [("train", Path("k=5_train.csv"))]


def test_the_same_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpatialfeatError, match=r"--csv train\.csv: is given twice"):
        named_csvs(["test=./train.csv", "train.csv"])


def test_defaults_are_the_specified_files_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_csvs([]) == []
    Path("train_ResNet_DB.csv").touch()
    Path("test_ResNet_DB.csv").touch()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert named_csvs([]) == [("train", Path("train_ResNet_DB.csv")), ("test", Path("test_ResNet_DB.csv"))]
    assert caplog.messages == ["no val_ResNet_DB.csv here: leaving it out"]
