"""finetune and extract by two processes give what one process gives, and end cleanly when one fails.

They are forked with the environment that torchrun would give them, which takes a third of the time; torchrun itself
starts those of the last test.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from forks import Forks
from networks import network
from torch.distributed.run import main as torchrun_main
from torchrun import TORCHRUN_OPTIONS, environment

from spatialfeat.config import ExtractConfig, FinetuneConfig
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult, finetune

COMMAND = Path(__file__).with_name("small_spatialfeat.py")
TWO_EPOCHS = 2


def damage(image_path: Path) -> None:
    """Zeros in the middle: the quick look at both ends passes, decoding does not."""
    content = bytearray(image_path.read_bytes())
    content[60:-20] = bytes(len(content) - 80)
    image_path.write_bytes(content)


def ids_of(csv_path: Path) -> list[str]:
    with csv_path.open() as file:
        return [row["id"] for row in csv.DictReader(file)]


def option_list(config: FinetuneConfig) -> list[str]:
    """The command line of what differs from the defaults."""
    return [
        "--train-csv", str(config.train_csv), "--val-csv", str(config.val_csv), "--test-csv", str(config.test_csv),
        "--img-dir", str(config.img_dir), "--weights", config.weights, "--image-size", "64", "--device", "cpu",
        "--epochs", str(config.epochs), "--batch-size", str(config.batch_size), "--workers", "0", "--no-tensorboard",
        "--class-weights", config.class_weights, "--label-smoothing", str(config.label_smoothing),
        "--clip-grad-norm", str(config.clip_grad_norm), "--freeze-until", str(config.freeze_until),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(quick_config: FinetuneConfig) -> FinetuneConfig:
    """28 training frames in batches of 9, 9, 9 and 1: uneven shares, and one without a frame.

    The classifier alone is trained. In a deep network Adam makes a whole step of gradients that are zero but for
    rounding, and two runs that add in another order drift apart; test_processgroup has the deep network's steps.
    """
    return replace(
        quick_config,
        freeze_until=9,
        batch_size=9,
        epochs=TWO_EPOCHS,
        tensorboard=False,
        class_weights="balanced",
        label_smoothing=0.1,
        clip_grad_norm=1.0,
    )


@pytest.fixture(scope="module")
def alone(recipe: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study by one process."""
    out_dir = tmp_path_factory.mktemp("alone")
    with network(small=True):
        finetune(replace(recipe, out_dir=out_dir))
    return out_dir


@pytest.fixture(scope="module")
def together(recipe: FinetuneConfig, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the same study by two processes, and what they printed."""
    out_dir = tmp_path_factory.mktemp("together") / "out"
    run = forks.run(out_dir.with_suffix(".log"), "finetune", *option_list(recipe), "--out", out_dir, processes=2)
    assert run["code"] == 0, run["log"]
    return out_dir, run["log"]


def history_of(out_dir: Path) -> list[dict[str, float]]:
    with (out_dir / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_train_as_one(alone: Path, together: tuple[Path, str]) -> None:
    one, two = history_of(alone), history_of(together[0])
    assert len(one) == len(two) == TWO_EPOCHS
    for mine, theirs in zip(one, two, strict=True):
        for name in ("epoch", "train_acc", "val_acc", "lr"):
            assert theirs[name] == mine[name], name
        for name in ("train_loss", "val_loss"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name


def test_their_weights_are_those_of_one_process(alone: Path, together: tuple[Path, str]) -> None:
    one, two = (
        torch.load(folder / "best_spatial_study_weights.pth", weights_only=True) for folder in (alone, together[0])
    )
    assert list(one) == list(two)
    for name, weights in one.items():
        # A hundredth of one of Adam's steps.
        torch.testing.assert_close(two[name], weights, rtol=1e-5, atol=FinetuneConfig.lr / 100, msg=name)


def test_the_test_stage_keeps_every_frame_in_the_csvs_order(alone: Path, together: tuple[Path, str]) -> None:
    one, two = ((folder / "predictions_resnet.csv").read_text() for folder in (alone, together[0]))
    assert two == one
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (alone, together[0])]
    assert scores[0]["pooled"]["accuracy"] == scores[1]["pooled"]["accuracy"]


def test_one_process_speaks_and_writes_for_both(alone: Path, together: tuple[Path, str]) -> None:
    folder, printed = together
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert printed.count("epoch 1/2  train loss") == 1
    assert printed.count("kept the weights of epoch") == 1
    assert printed.count("per phase, all frames together") == 1
    assert printed.count("random weights with 9 frozen children") == 1
    assert "/28 [" in printed  # The bar counts the frames of both.
    assert json.loads((folder / "run.json").read_text())["device"].endswith("2 processes")


@pytest.fixture(scope="module")
def broken_images(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the demo, one training frame and one test frame damaged."""
    img_dir = tmp_path_factory.mktemp("broken") / "images"
    shutil.copytree(demo_dir / "images", img_dir)
    for split in ("train", "test"):
        damage(img_dir / f"{ids_of(demo_dir / f'{split}_ResNet_DB.csv')[5]}.png")
    return img_dir


def test_a_bad_image_in_one_process_ends_all(
    recipe: FinetuneConfig, broken_images: Path, forks: Forks, tmp_path: Path
) -> None:
    config = replace(recipe, img_dir=broken_images, batch_size=14)
    out_dir = tmp_path / "out"
    run = forks.run(tmp_path / "log", "finetune", *option_list(config), "--out", out_dir, processes=2)
    assert run["code"] == 2, run["log"]
    name = ids_of(recipe.train_csv)[5]
    messages = [line for line in run["log"].splitlines() if "cannot read" in line]
    assert len(messages) == 1
    assert f"{name}.png: the PNG cannot be decoded" in messages[0]
    assert "Traceback" not in run["log"]
    record = json.loads((out_dir / "run.json").read_text())
    assert record["status"] == "failed"
    assert "lost contact with another process" in record["error"]
    assert not (out_dir / "history.csv").exists()


@pytest.mark.usefixtures("small_network")
def test_a_shard_by_two_processes_and_another_by_one_give_the_files_of_one_run(
    demo_dir: Path, small_study: FinetuneResult, broken_images: Path, forks: Forks, tmp_path: Path
) -> None:
    csvs = tuple(str(demo_dir / f"{split}_ResNet_DB.csv") for split in ("train", "val", "test"))
    whole = ExtractConfig(
        csvs=csvs,
        img_dir=broken_images,
        weights=small_study.weights_path,
        out_dir=tmp_path / "whole",
        workers=0,
        device="cpu",
    )
    expected = extract(whole)
    assert len(expected.failed) == 2
    options = [option for csv_path in csvs for option in ("--csv", csv_path)]
    run = forks.run(
        tmp_path / "log", "extract", *options, "--img-dir", broken_images, "--weights", small_study.weights_path,
        "--out", tmp_path / "shared", "--workers", "0", "--device", "cpu", "--shard", "1/2", processes=2,
    )  # fmt: skip
    rest = extract(replace(whole, out_dir=tmp_path / "shared", shard="2/2"))
    record = json.loads((tmp_path / "shared" / "run-1of2.json").read_text())
    failed = record["failed"] | rest.failed
    assert failed == expected.failed
    assert record["status"] == ("incomplete" if record["failed"] else "complete")
    assert (run["code"] != 0) == bool(record["failed"]), run["log"]
    for video, reason in record["failed"].items():
        assert run["log"].count(f"error: video {video} has no feature file: {reason}") == 1
    assert sorted(record["written"] + rest.written) == sorted(expected.written)
    assert len(record["written"]) >= 2
    for video in expected.written:
        with (
            h5py.File(tmp_path / "whole" / f"{video}.h5") as one,
            h5py.File(tmp_path / "shared" / f"{video}.h5") as two,
        ):
            assert dict(one.attrs).keys() == dict(two.attrs).keys()
            assert one["frame_ids"][()].tolist() == two["frame_ids"][()].tolist()
            for name in ("features", "logits", "labels"):
                np.testing.assert_allclose(two[name][()], one[name][()], rtol=1e-4, atol=1e-5)
    assert not list((tmp_path / "shared").glob(".*"))


def torchrun_and_terminate(log: str, *command: str) -> None:
    """As the command torchrun does. It is told to end when its two processes have finished an epoch."""

    def terminate() -> None:
        while "train loss" not in Path(log).read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    os.environ.update(environment())
    threading.Thread(target=terminate, daemon=True).start()
    torchrun_main([*TORCHRUN_OPTIONS, *command])


def test_sigterm_to_torchrun_ends_both_processes_cleanly(recipe: FinetuneConfig, forks: Forks, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    command = [str(COMMAND), "finetune", *option_list(replace(recipe, epochs=1000)), "--out", str(out)]
    run = forks.run(log, call=[__name__, "torchrun_and_terminate", str(log), *command])
    assert run["code"] != 0
    record = json.loads((out / "run.json").read_text())
    assert record["status"] in ("interrupted", "failed")
    assert not [path for path in out.iterdir() if ".partial" in path.name]
    assert "interrupted" in run["log"] or "lost contact" in run["log"]
    assert (out / "best_spatial_study_weights.pth").is_file()
