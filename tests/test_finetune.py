"""The study as a whole: what is kept, what stays frozen, what repeats."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from spatialfeat.config import FinetuneConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.errors import SpatialfeatError
from spatialfeat.finetune import FinetuneResult, finetune
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.network.inference import predict_logits
from spatialfeat.network.weights import load_checkpoint
from spatialfeat.training import trainer
from spatialfeat.training.trainer import RunningScore, TrainingStep

pytestmark = pytest.mark.usefixtures("small_network", "no_drawing")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def accuracy_of(weights_path: Path, csv_path: Path, img_dir: Path) -> float:
    """The accuracy of a weights file, read back from disk, on the frames of a CSV."""
    checkpoint = load_checkpoint(weights_path)
    table = read_frames(csv_path, img_dir, split="val")
    network = InferenceNetwork(checkpoint.model, checkpoint.preprocessing, "fp32", batch_size=10)
    logits = predict_logits(network, table, workers=0, title="again")
    return float((logits.argmax(axis=1) == table.labels).mean())


def always_predict(model: torch.nn.Module, phase: int) -> None:
    """Make the model predict one phase, by changing the live parameters in place as an optimizer does."""
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
        model.fc.bias[phase] = 1.0


def steer_training(monkeypatch: pytest.MonkeyPatch, phase_of_epoch: list[int]) -> None:
    """Replace the training step: after epoch e the model predicts phase_of_epoch[e - 1] for every frame."""
    phases = iter(phase_of_epoch)

    def steered(step: TrainingStep, loader: Any, **kwargs: Any) -> RunningScore:
        always_predict(step.model, next(phases))
        return RunningScore(loss_sum=1.0, correct=1, frames=len(loader.dataset))

    monkeypatch.setattr(trainer, "train_one_epoch", steered)


def write_val_csv(quick_config: FinetuneConfig, path: Path, phases: list[int]) -> Path:
    """A validation CSV over existing frames with labels of our choice."""
    ids = [row["id"] for row in rows_of(quick_config.val_csv)][: len(phases)]
    path.write_text("id,label\n" + "".join(f"{id_},{phase}\n" for id_, phase in zip(ids, phases, strict=True)))
    return path


def test_saved_weights_score_the_best_validation_accuracy_although_later_epochs_were_worse(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 10 frames, phase 0 is right 2 times, phase 1 5 times, phase 2 3 times: epoch 2 is the best of four.
    val_csv = write_val_csv(quick_config, tmp_path / "val.csv", [0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    steer_training(monkeypatch, [0, 1, 2, 0])
    result = finetune(replace(quick_config, val_csv=val_csv, out_dir=tmp_path, epochs=4))
    assert [record.val_acc for record in result.history] == [0.2, 0.5, 0.3, 0.2]
    assert result.best_epoch == 2

    accuracy = accuracy_of(result.weights_path, val_csv, quick_config.img_dir)
    assert accuracy == max(float(row["val_acc"]) for row in rows_of(tmp_path / "history.csv"))
    description = json.loads((tmp_path / "best_spatial_study_weights.json").read_text())
    assert (description["epoch"], description["val_accuracy"]) == (2, 0.5)


def test_really_trained_weights_score_the_best_validation_accuracy(
    quick_config: FinetuneConfig, small_study: FinetuneResult
) -> None:
    accuracy = accuracy_of(small_study.weights_path, quick_config.val_csv, quick_config.img_dir)
    assert accuracy == max(record.val_acc for record in small_study.history)


def test_early_stopping_and_learning_rate_schedule(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val_csv = write_val_csv(quick_config, tmp_path / "val.csv", [0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    # Best in epoch 1, ties and worse ever after: a tie is no improvement.
    steer_training(monkeypatch, [1, 1, 0, 2, 1, 0, 2, 1, 0])
    result = finetune(
        replace(quick_config, val_csv=val_csv, test_csv=None, out_dir=tmp_path, epochs=9, patience=6, lr_patience=3)
    )
    assert len(result.history) == 7
    assert result.best_epoch == 1
    # Patience 3: epochs 2, 3 and 4 are forgiven, epoch 5 halves the rate from epoch 6 on.
    assert [record.lr for record in result.history] == [1e-4] * 5 + [5e-5] * 2


def test_a_training_that_explodes_is_said_before_the_scores(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def exploded(step: TrainingStep, loader: Any, **kwargs: Any) -> RunningScore:
        always_predict(step.model, 0)
        with torch.no_grad():
            step.model.fc.bias[0] = 1e5
        return RunningScore(loss_sum=1.0, correct=1, frames=len(loader.dataset))

    monkeypatch.setattr(trainer, "train_one_epoch", exploded)
    with caplog.at_level("INFO", logger="spatialfeat"):
        finetune(replace(quick_config, out_dir=tmp_path, epochs=1))
    said = [record.getMessage() for record in caplog.records]
    (warning,) = [place for place, message in enumerate(said) if "training exploded" in message]
    (scores,) = [place for place, message in enumerate(said) if "how it is averaged" in message]
    assert warning < scores
    assert caplog.records[warning].levelname == "WARNING"


def test_frozen_children_do_not_change_at_all(
    quick_config: FinetuneConfig, small_plain_weights: Path, tmp_path: Path
) -> None:
    weights = str(small_plain_weights)
    result = finetune(replace(quick_config, weights=weights, freeze_until=6, epochs=1, out_dir=tmp_path, test_csv=None))
    before, after = torch.load(weights), torch.load(result.weights_path)
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    for name, tensor in before.items():
        same = torch.equal(tensor, after[name])
        # Parameters, and BatchNorm's running_mean, running_var and num_batches_tracked alike.
        assert same == name.startswith(frozen), name


def test_freezing_nothing_trains_everything(
    quick_config: FinetuneConfig, small_plain_weights: Path, tmp_path: Path
) -> None:
    weights = str(small_plain_weights)
    result = finetune(replace(quick_config, weights=weights, freeze_until=0, epochs=1, out_dir=tmp_path, test_csv=None))
    before, after = torch.load(weights), torch.load(result.weights_path)
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_weights_load_into_a_plain_torchvision_model(study: FinetuneResult) -> None:
    model = resnet50(num_classes=7)
    model.load_state_dict(torch.load(study.weights_path, weights_only=True), strict=True)


def test_same_seed_gives_the_same_history_whatever_the_workers(
    quick_config: FinetuneConfig, small_study: FinetuneResult, tmp_path: Path
) -> None:
    again = finetune(replace(quick_config, out_dir=tmp_path, workers=2, test_csv=None))
    assert [record._replace(seconds=0) for record in again.history] == [
        record._replace(seconds=0) for record in small_study.history
    ]
    other = finetune(replace(quick_config, out_dir=tmp_path, seed=1, epochs=1, test_csv=None))
    assert other.history[0].train_loss != small_study.history[0].train_loss


def test_output_folder_holds_what_the_specification_names(study: FinetuneResult, quick_config: FinetuneConfig) -> None:
    out_dir = study.weights_path.parent
    assert sorted(path.name for path in out_dir.iterdir()) == [
        "accuracy_curves.png",
        "accuracy_curves.svg",
        "best_spatial_study_weights.json",
        "best_spatial_study_weights.pth",
        "confusion_matrix.png",
        "confusion_matrix.svg",
        "history.csv",
        "loss_curves.png",
        "loss_curves.svg",
        "methods.md",
        "metrics.json",
        "per_phase.csv",
        "per_video.csv",
        "predictions_resnet.csv",
        "run.json",
    ]
    history = rows_of(out_dir / "history.csv")
    assert list(history[0]) == ["epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr", "seconds"]
    assert [int(row["epoch"]) for row in history] == [1]
    assert all(0 <= float(row[name]) <= 1 for row in history for name in ("train_acc", "val_acc"))
    predictions, test_rows = rows_of(out_dir / "predictions_resnet.csv"), rows_of(quick_config.test_csv or Path())
    assert list(predictions[0]) == ["img_id", "true_label", "predicted_label"]
    assert [(row["img_id"], row["true_label"]) for row in predictions] == [
        (row["id"], row["label"]) for row in test_rows
    ]
    run = json.loads((out_dir / "run.json").read_text())
    assert run["status"] == "complete"
    assert run["options"]["seed"] == 0
    assert set(run["data_sha256"]) == {
        str(quick_config.train_csv),
        str(quick_config.val_csv),
        str(quick_config.test_csv),
    }
    for name in ("accuracy_curves.png", "loss_curves.png", "confusion_matrix.png"):
        with Image.open(out_dir / name) as image:
            assert min(image.size) > 300


def test_what_lies_where_and_what_comes_next_is_shown(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steer_training(monkeypatch, [0])
    out_dir = tmp_path / "a study"
    with caplog.at_level("INFO", logger="spatialfeat"):
        finetune(replace(quick_config, out_dir=out_dir, epochs=1))
    tree, steps = (record.message.splitlines() for record in caplog.records[-2:])
    assert tree[0] == str(out_dir)
    names = {name.rstrip(",") for line in tree[1:] for name in line.split()}
    assert {path.name for path in out_dir.iterdir() if path.suffix != ".svg"} <= names
    given = ["--weights", str(out_dir / "best_spatial_study_weights.pth")]
    images = ["--img-dir", str(quick_config.img_dir)]
    csvs = {"train": quick_config.train_csv, "val": quick_config.val_csv, "test": quick_config.test_csv}
    named = [word for split, path in csvs.items() for word in ("--csv", f"{split}={path}")]
    assert [shlex.split(step) for step in steps[1:]] == [
        [
            "spatialfeat",
            "evaluate",
            *given,
            "--csv",
            str(quick_config.test_csv),
            *images,
            "--out",
            str(out_dir / "evaluation"),
        ],
        ["spatialfeat", "extract", *given, *named, *images, "--out", str(out_dir / "features")],
    ]


def test_results_of_an_earlier_study_are_moved_aside_as_a_whole(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(quick_config, out_dir=tmp_path, epochs=1, test_csv=None)
    steer_training(monkeypatch, [0, 1])
    first = finetune(replace(config, test_csv=quick_config.test_csv)).weights_path.read_bytes()
    assert (tmp_path / "metrics.json").exists()
    monkeypatch.chdir(tmp_path)
    second = finetune(config).weights_path.read_bytes()
    assert first != second
    # The second study had no test frames: test scores of the first beside its weights would be taken for its own.
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "predictions_resnet.csv").exists()
    assert (tmp_path / "previous1" / "metrics.json").exists()
    kept = load_checkpoint(tmp_path / "previous1" / "best_spatial_study_weights.pth")
    assert kept.path.read_bytes() == first


def test_a_missing_default_test_csv_is_a_notice_and_a_named_one_an_error(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    steer_training(monkeypatch, [0])
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = finetune(replace(quick_config, out_dir=tmp_path, epochs=1, test_csv=None))
    assert result.test_metrics is None
    assert "no test_ResNet_DB.csv here" in caplog.text
    assert not (tmp_path / "predictions_resnet.csv").exists()
    assert "spatialfeat evaluate" not in caplog.text
    with pytest.raises(SpatialfeatError, match=r"named\.csv: no such file"):
        finetune(replace(quick_config, out_dir=tmp_path, test_csv=Path("named.csv")))


def test_a_patient_in_two_splits_is_a_loud_warning(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steer_training(monkeypatch, [0])
    finetune(replace(quick_config, val_csv=quick_config.train_csv, out_dir=tmp_path, epochs=1, test_csv=None))
    # Before training, and again beside the scores.
    told = [record for record in caplog.records if "IN MORE THAN ONE SPLIT" in record.message]
    assert [record.levelname for record in told] == ["WARNING"] * 2
    assert all(record.message.count("is in train and val") == 2 for record in told)
    assert "2 PATIENTS IN MORE THAN ONE SPLIT: the scores of this study will be too good to publish" in told[0].message
    assert "2 patients are in more than one of these sets: scores are too good" in (tmp_path / "methods.md").read_text()


def test_a_broken_image_stops_training_before_it_starts(quick_config: FinetuneConfig, tmp_path: Path) -> None:
    img_dir = tmp_path / "images"
    img_dir.mkdir()
    for path in quick_config.img_dir.iterdir():
        (img_dir / path.name).symlink_to(path)
    victim = rows_of(quick_config.train_csv)[3]["id"]
    (img_dir / f"{victim}.png").unlink()
    (img_dir / f"{victim}.png").write_bytes(b"")
    with pytest.raises(SpatialfeatError, match=rf"train_ResNet_DB\.csv row 5: cannot read .*{victim}\.png: .*empty"):
        finetune(replace(quick_config, img_dir=img_dir, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_study_that_is_refused_leaves_no_folder(quick_config: FinetuneConfig, tmp_path: Path, resume: bool) -> None:
    no_rows, out_dir = tmp_path / "none.csv", tmp_path / "made" / "out"
    no_rows.write_text("id,label\n")
    for wrong in ({"train_csv": no_rows}, {"weights": str(tmp_path / "none.pth")}, {"img_dir": tmp_path / "none"}):
        with pytest.raises(SpatialfeatError, match="none"):
            finetune(replace(quick_config, out_dir=out_dir, resume=resume, **wrong))
        assert not (tmp_path / "made").exists()
    out_dir.mkdir(parents=True)
    with pytest.raises(SpatialfeatError, match=r"none\.pth"):
        finetune(replace(quick_config, out_dir=out_dir, resume=resume, weights=str(tmp_path / "none.pth")))
    assert out_dir.exists()  # It was there before.


def test_a_diverging_loss_ends_the_run_with_a_remedy(quick_config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"loss became (nan|inf).*lower --lr"):
        finetune(replace(quick_config, out_dir=tmp_path, lr=1e30, epochs=3, freeze_until=0))


def test_a_phase_without_training_frames_is_a_warning(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steer_training(monkeypatch, [0])
    names = tuple("ABCDEFGH")
    config = replace(quick_config, num_classes=8, phase_names=names, out_dir=tmp_path, epochs=1, test_csv=None)
    finetune(config)
    assert "has no frame of phase 7 (H)" in caplog.text
