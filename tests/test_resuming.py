"""What `--resume` goes on with, what it refuses, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinydata import make_table, write_csv

from spatialfeat.config import FinetuneConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.runrecord import RunRecord
from spatialfeat.training.data import StudyData
from spatialfeat.training.files import TrainingState, find_study, study_identity, write_state
from spatialfeat.training.history import EpochRecord

ENVIRONMENT = {"device": "cpu (2 cores)", "torch": "2.6.0"}
ACCURACIES = (0.5, 0.4, 0.3)  # Best in the first of three epochs.


@pytest.fixture
def data(tmp_path: Path) -> StudyData:
    return StudyData(
        make_table(tmp_path, ["1_1_1", "1_1_2"]),
        make_table(tmp_path, ["2_1_1"], split="val"),
        make_table(tmp_path, ["3_1_1"], split="test"),
    )


@pytest.fixture
def config(data: StudyData, tmp_path: Path) -> FinetuneConfig:
    (tmp_path / "out").mkdir()
    return FinetuneConfig(out_dir=tmp_path / "out", epochs=5, patience=4, lr=1e-3, phase_names=tuple("ABCDEFG"))


def save(config: FinetuneConfig, data: StudyData, **changes: Any) -> None:
    """A state after three epochs of this study."""
    history = tuple(EpochRecord(epoch, 1.0, 0.5, 1.0, acc, 1e-3, 9.0) for epoch, acc in enumerate(ACCURACIES, start=1))
    identity = study_identity(config, data) | changes.pop("identity", {})
    write_state(
        config.out_dir / "training_state.pt",
        TrainingState(history=history, training={}, best_weights={}, identity=identity, environment=ENVIRONMENT),
    )


def finish(config: FinetuneConfig, data: StudyData) -> None:
    """What a finished study leaves, without its state."""
    (config.out_dir / "best_spatial_study_weights.pth").touch()
    config = replace(config, train_csv=data.train.source, val_csv=data.val.source)
    RunRecord(config.out_dir, "finetune", config, [table.source for table in data.tables]).finish()


def look(
    config: FinetuneConfig, data: StudyData, environment: dict[str, str] = ENVIRONMENT
) -> tuple[TrainingState | None, bool]:
    return find_study(config, data, study_identity(config, data), environment)


def test_an_empty_folder_is_a_new_study(
    config: FinetuneConfig, data: StudyData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="spatialfeat"):
        assert look(config, data) == (None, False)
    assert "nothing to resume in" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 50, "device": "cuda", "workers": 7, "img_dir": Path("elsewhere"), "tensorboard": False},
        {"epochs": 3, "patience": 2, "keep_state": True},
    ],
)
def test_the_same_study_is_resumed_also_elsewhere_and_for_longer(
    changes: dict[str, Any], config: FinetuneConfig, data: StudyData, caplog: pytest.LogCaptureFixture
) -> None:
    save(config, data)
    found = look(replace(config, **changes), data)
    state, is_finished = found
    assert state is not None
    assert [record.val_acc for record in state.history] == list(ACCURACIES)
    assert not is_finished
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 2e-3}, "other options: --lr 0.002 (it was 0.001); give the same again"),
        ({"image_size_px": 64, "seed": 3}, "--image-size 64 (it was 224), --seed 3 (it was 0); give"),
        ({"class_weights": "balanced"}, "--class-weights balanced (it was none)"),
        ({"clip_grad_norm": 1.0}, "--clip-grad-norm 1.0 (it was None)"),
        ({"phase_names": None}, "--phase-names None (it was A,B,C,D,E,F,G)"),
        ({"epochs": 2}, "--epochs 2: "),
        ({"patience": 1}, "would have stopped before epoch 3, which is trained already"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_another_study_is_refused_with_what_differs(
    changes: dict[str, Any], message: str, is_finished: bool, config: FinetuneConfig, data: StudyData
) -> None:
    if is_finished:
        finish(config, data)
    else:
        save(config, data)
    with pytest.raises(SpatialfeatError) as caught:
        look(replace(config, **changes), data)
    if is_finished and changes.keys() & {"epochs", "patience"}:
        message = "and without --keep-state, so it cannot be trained further"
    assert message in str(caught.value)
    assert "leave out --resume to start the study anew" in str(caught.value)


def test_resume_names_the_same_study_in_another_folder(
    config: FinetuneConfig, data: StudyData, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    missing = replace(config, out_dir=tmp_path / "outt")
    for other in (config, replace(config, seed=1, out_dir=tmp_path / "seed1")):
        other.out_dir.mkdir(exist_ok=True)
        save(other, data)
        named = replace(other, train_csv=data.train.source, val_csv=data.val.source)
        RunRecord(other.out_dir, "finetune", named, [table.source for table in data.tables]).finish()
    assert look(missing, data) == (None, False)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        f"nothing to resume in {tmp_path}/outt, but {tmp_path}/out holds this study; to go on with it, pass --resume "
        f"--out {tmp_path}/out"
    ]
    caplog.clear()
    look(replace(config, out_dir=tmp_path), data)
    assert f"{tmp_path}/out holds this study" in caplog.text


@pytest.mark.parametrize("leave", [save, finish])
def test_other_training_frames_are_refused(
    leave: Callable[[FinetuneConfig, StudyData], None], config: FinetuneConfig, data: StudyData
) -> None:
    leave(config, data)
    write_csv(data.train.source, [("1_1_1", 0), ("1_1_2", 1)])
    with pytest.raises(SpatialfeatError, match="other options: --train-csv has other content; "):
        look(config, data)


def test_a_moved_csv_with_the_same_content_is_the_same(config: FinetuneConfig, data: StudyData, tmp_path: Path) -> None:
    save(config, data)
    moved = make_table(tmp_path, ["1_1_1", "1_1_2"], split="train")
    data.train.source.rename(tmp_path / "moved.csv")
    write_csv(moved.source, [("1_1_1", 0), ("1_1_2", 0)])
    assert look(replace(config, train_csv=tmp_path / "moved.csv"), replace(data, train=moved))[0] is not None


def test_an_option_that_the_earlier_version_did_not_have_counts_as_its_default(
    config: FinetuneConfig, data: StudyData
) -> None:
    identity = study_identity(config, data)
    del identity["class_weights"]
    save(config, data)
    content = torch.load(config.out_dir / "training_state.pt", weights_only=True)
    torch.save(content | {"identity": identity}, config.out_dir / "training_state.pt")
    assert look(config, data)[0] is not None
    with pytest.raises(SpatialfeatError, match=r"--class-weights balanced \(it was none\)"):
        look(replace(config, class_weights="balanced"), data)


def test_an_option_of_a_later_version_is_refused(config: FinetuneConfig, data: StudyData) -> None:
    save(config, data, identity={"mixup": 0.2})
    with pytest.raises(SpatialfeatError, match=r"--mixup None \(it was 0\.2\)"):
        look(config, data)


def test_another_machine_is_a_warning(
    config: FinetuneConfig, data: StudyData, caplog: pytest.LogCaptureFixture
) -> None:
    save(config, data)
    assert look(config, data, ENVIRONMENT | {"torch": "2.7.0"})[0] is not None
    assert "resuming with torch 2.7.0 (it was 2.6.0): results may differ in their last digits" in caplog.text


def test_a_finished_study_is_finished(config: FinetuneConfig, data: StudyData) -> None:
    finish(config, data)
    assert look(config, data) == (None, True)
    assert look(replace(config, workers=5), data)[1]
    (config.out_dir / "best_spatial_study_weights.pth").unlink()
    assert look(config, data) == (None, False)


def test_a_finished_study_is_not_tested_on_other_frames(config: FinetuneConfig, data: StudyData) -> None:
    finish(config, data)
    with pytest.raises(SpatialfeatError, match=r"with other test frames; score these with `spatialfeat evaluate"):
        look(config, replace(data, test=None))


def test_a_kept_state_can_be_trained_further(config: FinetuneConfig, data: StudyData) -> None:
    config = replace(config, epochs=3)
    save(config, data)
    finish(config, data)
    assert look(config, data) == (None, True)
    longer = look(replace(config, epochs=4), data)
    assert longer[0] is not None
    # The state of a study that was killed in its test stage, or whose test frames are others, is tested again.
    assert look(config, replace(data, test=None))[0] is not None
    record = json.loads((config.out_dir / "run.json").read_text())
    (config.out_dir / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert look(config, data)[0] is not None


def test_resume_names_unfinished_studies_that_were_moved_aside(
    config: FinetuneConfig, data: StudyData, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (10, 2):
        aside = config.out_dir / f"previous{number}"
        aside.mkdir()
        save(replace(config, out_dir=aside), data)
    (config.out_dir / "previous2" / "history.csv").write_text(
        "epoch,train_loss,train_acc,val_loss,val_acc,lr,seconds\n1,1.0,0.5,1.0,0.5,0.001,9.0\n"
    )
    finished = config.out_dir / "previous3"
    finished.mkdir()
    save(replace(config, out_dir=finished), data)
    finish(replace(config, out_dir=finished), data)
    assert look(config, data) == (None, False)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        f"{config.out_dir}/{name} holds an unfinished study{epochs}, which was moved aside; to go on with it, pass "
        f"--resume --out {config.out_dir}/{name}"
        for name, epochs in (("previous2", " of 1 epoch"), ("previous10", ""))
    ]
    # And that is true.
    assert look(replace(config, out_dir=config.out_dir / "previous2"), data)[0] is not None


@pytest.mark.parametrize("leave", [save, finish])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_other_line_ends_are_the_same_csv(
    line_end: bytes, leave: Callable[[FinetuneConfig, StudyData], None], config: FinetuneConfig, data: StudyData
) -> None:
    for table in data.tables:
        table.source.write_bytes(table.source.read_bytes().replace(b"\n", line_end))
    leave(config, data)
    other = b"\n" if line_end == b"\r\n" else b"\r\n"
    for table in data.tables:
        table.source.write_bytes(table.source.read_bytes().replace(line_end, other))
    assert look(config, data) != (None, False)
    data.val.source.write_bytes(data.val.source.read_bytes().replace(b",0", b",1"))
    with pytest.raises(SpatialfeatError, match="--val-csv has other content"):
        look(config, data)
