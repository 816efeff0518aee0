"""A study that is killed, or asked to end, at any moment and resumed ends as one that was left alone."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Answer, Forks

Study = Callable[..., Answer]

SAME_BYTES = (
    "best_spatial_study_weights.pth",
    "best_spatial_study_weights.json",
    "predictions_resnet.csv",
    "metrics.json",
    "per_video.csv",
    "per_phase.csv",
    "loss_curves.png",
    "accuracy_curves.png",
    "methods.md",
)


@pytest.fixture(scope="module")
def study(demo_dir: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Runs a study of three epochs of 14 frames into a folder, in a process that can be killed."""
    paths = {}
    for split in ("train", "val", "test"):
        header, *rows = (demo_dir / f"{split}_ResNet_DB.csv").read_text().splitlines(keepends=True)
        paths[f"{split}-csv"] = tmp_path_factory.mktemp("csvs") / f"{split}.csv"
        paths[f"{split}-csv"].write_text(header + "".join(rows[::2]))
    # With this seed the second epoch is not better, so that the rate changes, and the third is the best.
    options = {**paths, "img-dir": demo_dir / "images", "weights": "random", "image-size": 64, "batch-size": 7,
               "lr": 3e-3, "lr-patience": 0, "seed": 4, "device": "cpu"}  # fmt: skip

    def run(out_dir: Path, *more: str, epochs: int = 3, workers: int = 0, **when: Any) -> Answer:
        arguments = ["finetune", "--no-tensorboard", f"--out={out_dir}", f"--epochs={epochs}", f"--workers={workers}"]
        arguments += [f"--{name}={value}" for name, value in options.items()]
        return forks.run(out_dir.with_suffix(".log"), *arguments, *more, **when)

    return run


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A study that nobody interrupted: its folder, and how the run went."""
    out_dir = tmp_path_factory.mktemp("whole") / "out"
    answer = study(out_dir)
    assert answer["code"] == 0, answer["log"]
    return out_dir, answer


def history_without_seconds(out_dir: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in (out_dir / "history.csv").read_text().splitlines()]


def assert_same_study(out_dir: Path, expected_dir: Path) -> None:
    assert history_without_seconds(out_dir) == history_without_seconds(expected_dir)
    for name in SAME_BYTES:
        assert (out_dir / name).read_bytes() == (expected_dir / name).read_bytes(), name
    # Neither the state nor anything half-written is left.
    assert sorted(path.name for path in out_dir.iterdir()) == sorted(path.name for path in expected_dir.iterdir())
    assert json.loads((out_dir / "run.json").read_text())["status"] == "complete"


def test_killed_around_every_single_write(study: Study, whole: tuple[Path, Answer], tmp_path: Path) -> None:
    expected_dir, _ = whole
    out_dir = tmp_path / "out"
    kills = 0
    for number in range(1, 40):
        for moment in ("before", "after"):
            answer = study(out_dir, "--resume", send=signal.SIGKILL, at_commit=[number, moment])
            if answer["code"] == 0:
                break
            assert answer["code"] == -signal.SIGKILL, answer["log"]
            kills += 1
        else:
            continue
        break
    # Record, state, two files of weights, three of history; after the last epoch six test results and the record.
    assert kills >= 2 * 12
    assert_same_study(out_dir, expected_dir)
    record = json.loads((out_dir / "run.json").read_text())
    assert record["resumed_after_epoch"] == 3
    assert {session["status"] for session in record["earlier_sessions"]} == {"running"}


@pytest.mark.parametrize(("workers", "seed", "num_kills"), [(0, 1, 5), (2, 3, 2)])
def test_killed_at_random_moments(
    workers: int, seed: int, num_kills: int, study: Study, whole: tuple[Path, Answer], tmp_path: Path
) -> None:
    expected_dir, undisturbed = whole
    out_dir = tmp_path / "out"
    rng = random.Random(seed)
    for _ in range(num_kills):
        after_s = rng.uniform(0, undisturbed["seconds"])
        answer = study(out_dir, "--resume", workers=workers, send=signal.SIGKILL, after_s=after_s)
        assert answer["code"] in (0, -signal.SIGKILL), answer["log"]
    answer = study(out_dir, "--resume", workers=workers)
    assert answer["code"] == 0, answer["log"]
    assert_same_study(out_dir, expected_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_cleanly(number: int, study: Study, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    answer = study(out_dir, epochs=1000, workers=2, send=number, after_epoch=1)
    assert answer["code"] == 128 + number, answer["log"]
    saved = re.search(r"interrupted; (\d+) epochs? saved: run the same command with --resume", answer["log"])
    assert saved, answer["log"]
    assert "Traceback" not in answer["log"]
    assert not answer["workers_left"]
    assert json.loads((out_dir / "run.json").read_text())["status"] == "interrupted"
    assert [path.name for path in out_dir.iterdir() if "partial" in path.name] == []

    epochs = int(saved[1])
    resumed = study(out_dir, "--resume", epochs=epochs + 1)
    assert resumed["code"] == 0, resumed["log"]
    assert f"resuming after epoch {epochs} of at most {epochs + 1}" in resumed["log"]
    assert len(history_without_seconds(out_dir)) == 1 + epochs + 1
    record = json.loads((out_dir / "run.json").read_text())
    assert [session["status"] for session in record["earlier_sessions"]] == ["interrupted"]


def test_a_signal_in_the_first_epoch_leaves_nothing_to_resume_and_says_so(study: Study, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    answer = study(out_dir, workers=2, send=signal.SIGTERM, after_epoch=0)
    assert answer["code"] == 128 + signal.SIGTERM
    assert "before the first epoch was saved: run the same command again" in answer["log"]
    assert [path.name for path in out_dir.iterdir()] == ["run.json"]
    again = study(out_dir, "--resume", epochs=1)
    assert again["code"] == 0, again["log"]
    assert "nothing to resume" in again["log"]
    # The record of a run without results is not worth a folder.
    assert not (out_dir / "previous1").exists()


def test_a_kept_state_is_trained_further_and_without_resume_a_study_is_moved_aside(
    study: Study, whole: tuple[Path, Answer], tmp_path: Path
) -> None:
    expected_dir, _ = whole
    out_dir = tmp_path / "out"
    first = study(out_dir, "--keep-state", epochs=2)
    assert first["code"] == 0, first["log"]
    assert (out_dir / "training_state.pt").exists()
    study(out_dir, "--resume", send=signal.SIGKILL, at_commit=[1, "after"])
    assert study(out_dir, "--resume")["code"] == 0
    assert history_without_seconds(out_dir) == history_without_seconds(expected_dir)
    for name in SAME_BYTES:
        assert (out_dir / name).read_bytes() == (expected_dir / name).read_bytes(), name
    # The scores of the weights after two epochs did not stand beside those of the third.
    assert (out_dir / "previous1" / "metrics.json").exists()
    assert not (out_dir / "training_state.pt").exists()

    again = study(out_dir, "--resume")
    assert again["code"] == 0
    assert "is finished: nothing to do" in again["log"]
    more = study(out_dir, "--resume", epochs=4)
    assert more["code"] == 2
    assert "error: --epochs 4: the study in" in more["log"]

    unfinished = tmp_path / "unfinished"
    study(unfinished, send=signal.SIGKILL, at_commit=[2, "after"])
    anew = study(unfinished, epochs=1)
    assert anew["code"] == 0, anew["log"]
    assert "holds an unfinished study, which is moved aside; --resume would have gone on with it" in anew["log"]
    assert f"still does with --resume --out {unfinished}/previous1" in anew["log"].replace("\n", " ")
    assert (unfinished / "previous1" / "training_state.pt").exists()
