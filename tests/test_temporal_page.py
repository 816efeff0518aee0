"""Every block of docs/temporal.md runs, in order, in a folder with real features; MS-TCN itself is stood in for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import ExtractConfig
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult

PAGE = Path(__file__).parent.parent / "docs" / "temporal.md"

# Reads a data set as MS-TCN's own batch reader does: names by splitting at line ends and dropping what follows the
# last one, features by np.load, labels by a dictionary. It predicts the truth, and writes it as MS-TCN writes results.
# Written for this test from the format's description.
STAND_IN = """
import argparse
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
for option in ("--action", "--dataset", "--split"):
    parser.add_argument(option)
options = parser.parse_args()
root = Path("data") / options.dataset
numbers = {line.split()[1]: int(line.split()[0]) for line in (root / "mapping.txt").read_text().split("\\n")[:-1]}
for part in ("train", "test"):
    for name in (root / "splits" / f"{part}.split{options.split}.bundle").read_text().split("\\n")[:-1]:
        features = np.load(root / "features" / f"{name.split('.')[0]}.npy")
        names = (root / "groundTruth" / name).read_text().split("\\n")[:-1]
        assert features.shape == (2048, len(names)) and features.dtype == np.float32
        classes = [numbers[name] for name in names]
        with open("seen.txt", "a") as file:
            file.write(f"{part} {name} {len(classes)}\\n")
        if options.action == "predict" and part == "test":
            results = Path("results") / options.dataset / f"split_{options.split}"
            results.mkdir(parents=True, exist_ok=True)
            (results / name.split(".")[0]).write_text("### Frame level recognition: ###\\n" + " ".join(names))
"""


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def folder(demo_dir: Path, small_study: FinetuneResult, small_network: None, tmp_path: Path) -> Path:
    """What a user has after the README: data, weights, features; and a checkout of MS-TCN beside them."""
    for path in demo_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("best_spatial_study_weights.pth", "best_spatial_study_weights.json"):
        shutil.copy(small_study.weights_path.parent / name, tmp_path)
    csvs = tuple(str(demo_dir / f"{split}_ResNet_DB.csv") for split in ("train", "val", "test"))
    extract(
        ExtractConfig(
            csvs=csvs,
            img_dir=demo_dir / "images",
            weights=small_study.weights_path,
            out_dir=tmp_path / "features",
            workers=0,
        )
    )
    checkout = tmp_path / "MS-TCN"
    (checkout / "data").mkdir(parents=True)
    (checkout / "main.py").write_text(STAND_IN)
    (checkout / "eval.py").write_text(STAND_IN)
    return tmp_path


@pytest.mark.usefixtures("no_drawing")
def test_every_block_runs_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = folder / "bin"
    commands.mkdir()
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (commands / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    names: dict[str, object] = {}
    for language, code in blocks():
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
        elif all(line.startswith("spatialfeat ") for line in code.splitlines()):
            # Without a process for each, which takes seconds to start.
            for line in code.splitlines():
                ran = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
                assert ran.exit_code == 0, f"{line}\n{ran.output}"
        else:
            run = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, env=environment, timeout=300)
            assert run.returncode == 0, f"{code}\n{run.stdout}\n{run.stderr}"

    losses = names["losses"]
    assert isinstance(losses, list)
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    seen = {tuple(line.split()[:2]) for line in (folder / "MS-TCN" / "seen.txt").read_text().splitlines()}
    stored = {path.stem for path in (folder / "features").glob("*.h5")}
    assert {name.removesuffix(".txt") for _, name in seen} < stored
    assert {part for part, _ in seen} == {"train", "test"}
    assert (folder / "all_videos.h5").is_file()
    assert len(list((folder / "tecno" / "1.0fps").glob("*.pkl"))) == len(stored)
    # The stand-in for MS-TCN says the truth; the model of the page says something.
    comparisons = json.loads((folder / "evaluation/comparison.json").read_text())["comparisons"]
    assert [(found["first"], found["second"]) for found in comparisons] == [
        ("ResNet-50", "TCN"),
        ("ResNet-50", "MS-TCN"),
    ]
    scores = {name: json.loads((folder / f"evaluation/{name}/metrics.json").read_text()) for name in ("TCN", "MS-TCN")}
    assert scores["MS-TCN"]["pooled"]["accuracy"] == 1.0
    assert 0 < scores["TCN"]["pooled"]["accuracy"] < 1
    assert "calibration" in scores["TCN"]
    combined = (folder / "per_frame/combined_ResNet_DB.csv").read_text().splitlines()
    assert (combined[0], len(combined) - 1) == ("id,label", len(list((folder / "per_frame").glob("features_*/*.npy"))))
    # One file per patient: the demo's ids begin with the patient's number.
    assert {path.stem for path in (folder / "features_by_patient").glob("*.h5")} == {
        video.split("_")[0] for video in stored
    }
