"""Killed at any moment, extract and export leave only whole files, and a second run ends as an uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
from feature_folders import make_study
from forks import Forks
from tinydata import write_csv
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.finetune import FinetuneResult

NUM_KILLS = 6


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("workers", [0, 1])
def test_extract_killed_at_random_moments(
    workers: int, forks: Forks, demo_dir: Path, small_study: FinetuneResult, tmp_path: Path
) -> None:
    ids = [path.stem for path in sorted((demo_dir / "images").glob("*.png"))]
    csv_path = write_csv(tmp_path / "train.csv", [(frame_id, 0) for frame_id in ids])
    command: list[object] = ["extract", "--csv", csv_path, "--img-dir", demo_dir / "images", "--device", "cpu"]
    command += ["--weights", small_study.weights_path, "--batch-size", 3, "--workers", workers, "--out"]
    undisturbed = forks.run(tmp_path / "log", *command, tmp_path / "whole")
    assert undisturbed["code"] == 0, undisturbed["log"]
    whole = {name: content for name, content in contents(tmp_path / "whole").items() if name.endswith(".h5")}
    assert len(whole) == 10

    seed = 4 + workers
    moments = random.Random(seed)
    out, unfinished, killed, seconds = tmp_path / "out", 0, 0, undisturbed["seconds"]
    for _ in range(NUM_KILLS if workers == 0 else 3):
        moment = moments.uniform(0, seconds)
        # Decoding workers notice by themselves that it is gone.
        run = forks.run(tmp_path / "log", *command, out, send=signal.SIGKILL, after_s=moment)
        assert run["code"] in (-9, 0), (seed, moment)
        killed += run["code"] == -9
        if run["code"] == 0:  # The machine has become faster.
            seconds = min(seconds, run["seconds"])
        there = contents(out) if out.exists() else {}
        features = {name: content for name, content in there.items() if name.endswith(".h5")}
        for name, content in features.items():
            assert content == whole[name], (seed, moment, name)
        unfinished += len(features) < len(whole)
        assert json.loads(there.get("run.json", b"{}")) is not None, (seed, moment)
        if len(features) == len(whole):  # The next moment should find work to do.
            for name in list(features)[1::2]:
                (out / name).unlink()
    assert killed
    assert unfinished
    assert forks.run(tmp_path / "log", *command, out)["code"] == 0
    assert {name: content for name, content in contents(out).items() if name != "run.json"} == whole


@pytest.mark.parametrize("form", ["ms-tcn", "hdf5"])
def test_export_killed_at_random_moments(form: str, forks: Forks, tmp_path: Path) -> None:
    make_study(tmp_path / "features")
    name = "all.h5" if form == "hdf5" else "tree"
    reference, out = tmp_path / "whole" / name, tmp_path / "out" / name
    command: list[object] = ["export", form, tmp_path / "features"]
    undisturbed = forks.run(tmp_path / "log", *command, reference)
    assert undisturbed["code"] == 0, undisturbed["log"]
    seed = 8
    moments = random.Random(seed)
    killed = 0
    for _ in range(NUM_KILLS):
        moment = moments.uniform(0, undisturbed["seconds"])
        code = forks.run(tmp_path / "log", *command, out, send=signal.SIGKILL, after_s=moment)["code"]
        killed += code == -9
        if out.exists():
            assert contents(out.parent).get(name) == contents(reference.parent).get(name), (seed, moment)
            assert contents(out) == contents(reference), (seed, moment)
            out.rename(tmp_path / f"done{killed}-{moment}")
    assert killed
    assert forks.run(tmp_path / "log", *command, out)["code"] == 0
    assert contents(out.parent) == contents(reference.parent)


@pytest.mark.usefixtures("small_network")
def test_what_a_kill_left_goes_with_the_next_run(demo_dir: Path, small_study: FinetuneResult, tmp_path: Path) -> None:
    """Also of a video that is no part of the next run."""
    (tmp_path / ".gone_1.h5.partial").write_bytes(b"half a video")
    done = CliRunner().invoke(
        app,
        [
            *("extract", "--csv", str(demo_dir / "test_ResNet_DB.csv"), "--img-dir", str(demo_dir / "images")),
            *("--weights", str(small_study.weights_path), "--out", str(tmp_path), "--device", "cpu", "--workers", "0"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.glob(".*"))
