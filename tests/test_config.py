"""Options: the specified study is the default, and impossible values are refused with the option's name."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from feature_folders import PHASES, make_video

from spatialfeat.config import CheckConfig, EvaluateConfig, ExtractConfig, FinetuneConfig, SplitConfig, WeightsSource
from spatialfeat.errors import SpatialfeatError
from spatialfeat.phases import check_phase_names, read_phase_names


@pytest.mark.parametrize("kind", [FinetuneConfig, CheckConfig])
def test_the_number_of_phases_follows_their_names(kind: type[FinetuneConfig] | type[CheckConfig]) -> None:
    config = kind(phase_names=tuple("abcde"))
    assert config.num_classes == 5
    assert replace(config, phase_names=None).num_classes == 5
    assert kind().num_classes == 7
    assert kind(num_classes=5).num_classes == 5
    with pytest.raises(SpatialfeatError, match="--phase-names: 5 names for 7 phases"):
        kind(num_classes=7, phase_names=tuple("abcde"))


def test_the_defaults_are_the_specified_study() -> None:
    config = FinetuneConfig()
    assert (config.train_csv, config.val_csv) == (Path("train_ResNet_DB.csv"), Path("val_ResNet_DB.csv"))
    assert (config.img_dir, config.out_dir) == (Path("images"), Path())
    assert (config.num_classes, config.batch_size, config.lr, config.epochs) == (7, 32, 1e-4, 50)
    assert (config.freeze_until, config.patience, config.weights) == (6, 10, "imagenet")
    assert (config.lr_patience, config.lr_factor, config.image_size_px) == (3, 0.5, 224)


def test_evaluate_and_extract_take_what_finetune_leaves() -> None:
    assert EvaluateConfig().source == WeightsSource()
    assert WeightsSource().weights == ExtractConfig().weights == Path("best_spatial_study_weights.pth")
    assert WeightsSource().csv == Path("test_ResNet_DB.csv")
    assert ExtractConfig().csvs == ()
    assert ExtractConfig().out_dir == Path("features")


def test_options_cannot_change_during_a_run() -> None:
    with pytest.raises(FrozenInstanceError):
        FinetuneConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "--num-classes 1: must be at least 2"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"patience": 0}, "--patience 0: must be at least 1"),
        ({"lr_patience": -1}, "--lr-patience -1: must be at least 0"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"image_size_px": 63}, "--image-size 63: must be at least 64"),
        ({"lr": 0.0}, "--lr 0: must be a positive number"),
        ({"lr": float("nan")}, "--lr nan: must be a positive number"),
        ({"lr": float("inf")}, "--lr inf: must be a positive number"),
        ({"lr_factor": 1.0}, "--lr-factor 1: must lie between 0 and 1"),
        ({"freeze_until": 10}, "--freeze-until 10: must be 0 (train everything) to 9"),
        ({"freeze_until": -1}, "--freeze-until -1: must be 0"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"workers": -1}, "--workers -1: must be at least 0"),
        ({"precision": "fp8"}, "--precision fp8: must be one of auto, fp32, bf16, fp16"),
        ({"class_weights": "sqrt"}, "--class-weights sqrt: must be one of none, balanced"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1: must be at least 0 (off) and less than 1"),
        ({"label_smoothing": -0.1}, "--label-smoothing -0.1: must be at least 0"),
        ({"label_smoothing": float("nan")}, "--label-smoothing nan: must be at least 0"),
        ({"clip_grad_norm": 0.0}, "--clip-grad-norm 0: must be a positive number"),
        ({"clip_grad_norm": float("inf")}, "--clip-grad-norm inf: must be a positive number"),
        ({"phase_names": ("a", "b"), "num_classes": 7}, "--phase-names: 2 names for 7 phases"),
        ({"phase_names": ("a",)}, "--phase-names: 1 names for 7 phases; give one name per phase"),
        ({"cache_limit_gb": 0.0}, "--cache-limit 0: must be a positive number of gigabytes, e.g. 100"),
        ({"img_dir": Path("a/b"), "out_dir": Path("a/./b")}, "--out a/b: is the folder of the frames (--img-dir)"),
        ({"cache_size_px": 320}, "--cache-size does nothing without --cache"),
        ({"cache_size_px": 223, "cache_dir": Path("cache")}, "--cache-size 223: must be at least 224"),
    ],
)
def test_finetune_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        FinetuneConfig(**options)
    assert str(caught.value).startswith(message)


def test_only_a_cache_shrinks_training_frames_in_proportion_to_the_input() -> None:
    cached = FinetuneConfig(cache_dir=Path("cache"))
    assert FinetuneConfig().training_frames_px is None
    assert cached.training_frames_px == 320
    assert replace(cached, image_size_px=448).training_frames_px == 640
    assert replace(cached, cache_size_px=512).training_frames_px == 512


@pytest.mark.parametrize("options", [{"freeze_until": 0}, {"freeze_until": 9}, {"workers": 0}, {"lr_patience": 0}])
def test_finetune_takes_the_extremes(options: dict[str, Any]) -> None:
    FinetuneConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "segment"}, "--group-by segment: must be one of video, patient"),
        ({"layout": "time"}, "--layout time: must be one of channel-first, time-first"),
        ({"fps": 0.0}, "--fps 0: must be a positive number of frames per second"),
        ({"fps": float("nan")}, "--fps nan: must be a positive number"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"out_dir": Path("images")}, "--out images: is the folder of the frames (--img-dir); choose another one"),
    ],
)
def test_extract_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        ExtractConfig(**options)
    assert str(caught.value).startswith(message)


def test_evaluate_refuses() -> None:
    with pytest.raises(SpatialfeatError, match="--batch-size 0: must be at least 1"):
        EvaluateConfig(batch_size=0)


def test_phase_names() -> None:
    check_phase_names(None, 7)
    check_phase_names(("nasal", "sellar"), 2)
    with pytest.raises(SpatialfeatError, match="3 names for 2 phases; give one name per phase"):
        check_phase_names(("a", "b", "c"), 2)
    for names in (("a", "a"), ("a", " ")):
        with pytest.raises(SpatialfeatError, match="every name must be present and unique"):
            check_phase_names(names, 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("nasal\nsellar\n", ("nasal", "sellar")),
        ("\ufeffnasal\r\n\r\n sellar \r\n", ("nasal", "sellar")),
        ("0 nasal\n1 sellar phase\n", ("nasal", "sellar phase")),
        ("\ufeff1\tsellar\r\n0\tnasal\r\n", ("nasal", "sellar")),  # In any order.
        ("0,nasal\n1;sellar\n", ("nasal", "sellar")),
        ("phase1\n2nd phase\n", ("phase1", "2nd phase")),
        ("1\n2\n", ("1", "2")),
    ],
)
def test_files_of_phase_names(tmp_path: Path, content: str, expected: tuple[str, ...]) -> None:
    path = tmp_path / "mapping.txt"
    path.write_bytes(content.encode())
    assert read_phase_names(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 a\n1 b\n\n1 c\n", "mapping.txt line 4: '1 c' has number 1 again; number every line or none"),
        ("0 a\nb\n", "mapping.txt line 2: 'b' has no number before the name, as others have; number every line"),
        ("1 a\n2 b\n", "mapping.txt: its lines are numbered 1 to 2; number 2 phases from 0 to 1, each once"),
        ("0 a\n5 b\n900000000 c\n", "mapping.txt: its lines are numbered 0 to 900000000, without 1 and 899999997 o"),
        (
            "0 a\n2 b\n3 c\n",
            "mapping.txt: its lines are numbered 0 to 3, without 1; number 3 phases from 0 to 2, each once",
        ),
    ],
)
def test_numbers_before_phase_names_are_0_to_the_last_each_once(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mapping.txt").write_text(content)
    with pytest.raises(SpatialfeatError) as caught:
        read_phase_names(str(tmp_path / "mapping.txt"))
    assert str(caught.value).startswith(f"--phase-names {tmp_path}/{message}")


def test_phase_names_from_a_long_list_from_the_json_beside_weights_and_from_feature_files(tmp_path: Path) -> None:
    names = tuple(f"a phase with a long name {number}" for number in range(50))  # No path is so long.
    assert read_phase_names(",".join(names)) == names
    (tmp_path / "weights.json").write_text('{"phase_names": ["nasal", "sellar, late"]}')
    assert read_phase_names(str(tmp_path / "weights.json")) == ("nasal", "sellar, late")
    path = make_video(tmp_path / "features", "1_1", [0, 1, 2]).path
    assert read_phase_names(str(path)) == read_phase_names(str(path.parent)) == PHASES
    (tmp_path / "other.json").write_text('{"phases": []}')
    with pytest.raises(SpatialfeatError, match=r"other\.json: holds no list phase_names; pass the JSON file beside"):
        read_phase_names(str(tmp_path / "other.json"))
    with pytest.raises(SpatialfeatError, match="--phase-names gone: cannot be read"):
        read_phase_names("gone")


def test_names_beside_the_csv(tmp_path: Path) -> None:
    (tmp_path / "phase_names.txt").write_text("cut\nsew\nclose\n")
    csv, names = tmp_path / "train.csv", ("cut", "sew", "close")
    for config in (
        FinetuneConfig(train_csv=csv),
        CheckConfig(train_csv=csv),
        CheckConfig(csvs=(f"test={csv}",)),
    ):
        assert (config.phase_names, config.num_classes) == (names, 3)
    assert SplitConfig(csv=csv, out=tmp_path / "out").phase_names == names
    assert EvaluateConfig(predictions=("p.csv",), csv=csv).phase_names == names
    # What is said goes before the file; weights and feature files know their own names; elsewhere there is no file.
    assert FinetuneConfig(train_csv=csv, num_classes=4).phase_names is None
    assert CheckConfig(train_csv=csv, phase_names=("a", "b")).phase_names == ("a", "b")
    assert EvaluateConfig(predictions=("p.csv",), csv=csv, num_classes=3).phase_names is None
    assert EvaluateConfig(csv=csv).phase_names is None
    assert FinetuneConfig(train_csv=tmp_path / "other" / "train.csv").num_classes == 7


@pytest.mark.parametrize("content", ["", "cut\n", "cut\ncut\n", "1 cut\n2 sew\n"])
def test_a_file_beside_the_csv_that_cannot_be_used(content: str, tmp_path: Path) -> None:
    (tmp_path / "phase_names.txt").write_text(content)
    with pytest.raises(SpatialfeatError) as caught:
        FinetuneConfig(train_csv=tmp_path / "train.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'phase_names.txt'}: ")
    assert "pass one of these options" in str(caught.value)


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_resumed_study_keeps_the_phases_it_began_with(names: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / "phase_names.txt").write_text("cut\nsew\nclose\n")
    csv, number = tmp_path / "train.csv", 7 if names is None else 2
    record = {"command": "finetune", "options": {"num_classes": number, "phase_names": names}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    # Stopped in its first epoch, it left nothing to go on with.
    assert FinetuneConfig(train_csv=csv, out_dir=tmp_path, resume=True).num_classes == 3
    (tmp_path / "training_state.pt").touch()
    config = FinetuneConfig(train_csv=csv, out_dir=tmp_path, resume=True)
    assert (config.num_classes, config.phase_names) == (number, names and tuple(names))
    assert FinetuneConfig(train_csv=csv, out_dir=tmp_path).num_classes == 3  # A new study.
    assert FinetuneConfig(train_csv=csv, out_dir=tmp_path / "new", resume=True).num_classes == 3  # Nothing to resume.
    assert FinetuneConfig(train_csv=csv, out_dir=tmp_path, resume=True, num_classes=5).num_classes == 5
