"""Killed at any moment, extract and export leave only whole files, and a second run ends as an uninterrupted one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from feature_folders import make_study
from tinydata import write_csv
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.finetune import FinetuneResult

NUM_KILLS = 10

# One process imports everything; each trial is a fork of it, since importing takes far longer than extracting.
TRIALS = """
import json, os, signal, sys, time
import spatialfeat.extract, spatialfeat.export
from spatialfeat.cli import app

def start(command):
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        app(command)
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(9)

for line in sys.stdin:
    command, seconds = json.loads(line)
    begin = time.monotonic()
    child = start(command)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # Decoding workers notice by themselves that it is gone.
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begin]), flush=True)
"""


class Trials:
    """Runs commands in forks of one process that has everything imported."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRIALS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[object], kill_after: float | None = None) -> tuple[int, float]:
        """The exit code (-9 if it was killed before its end) and the seconds it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([[str(word) for word in command], kill_after]) + "\n")
        self._process.stdin.flush()
        exit_code, seconds = json.loads(self._process.stdout.readline())
        return exit_code, seconds

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    found = Trials()
    yield found
    found.end()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("workers", [0, 1])
def test_extract_killed_at_random_moments(
    workers: int, trials: Trials, demo_dir: Path, study: FinetuneResult, tmp_path: Path
) -> None:
    ids = [path.stem for path in sorted((demo_dir / "images").glob("*.png"))]
    csv_path = write_csv(tmp_path / "train.csv", [(frame_id, 0) for frame_id in ids])
    command: list[object] = ["extract", "--csv", csv_path, "--img-dir", demo_dir / "images", "--device", "cpu"]
    command += ["--weights", study.weights_path, "--batch-size", 3, "--workers", workers, "--out"]
    code, seconds = trials.run([*command, tmp_path / "whole"])
    assert code == 0
    whole = {name: content for name, content in contents(tmp_path / "whole").items() if name.endswith(".h5")}
    assert len(whole) == 10

    seed = 4 + workers
    moments = random.Random(seed)
    out, unfinished, killed = tmp_path / "out", 0, 0
    for _ in range(NUM_KILLS if workers == 0 else 3):
        moment = moments.uniform(0, seconds)
        code, _ = trials.run([*command, out], kill_after=moment)
        killed += code == -9
        assert code in (-9, 0), (seed, moment)
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
    assert trials.run([*command, out])[0] == 0
    assert {name: content for name, content in contents(out).items() if name != "run.json"} == whole


@pytest.mark.parametrize("form", ["ms-tcn", "hdf5"])
def test_export_killed_at_random_moments(form: str, trials: Trials, tmp_path: Path) -> None:
    make_study(tmp_path / "features")
    name = "all.h5" if form == "hdf5" else "tree"
    reference, out = tmp_path / "whole" / name, tmp_path / "out" / name
    command: list[object] = ["export", form, tmp_path / "features"]
    code, seconds = trials.run([*command, reference])
    assert code == 0
    seed = 8
    moments = random.Random(seed)
    killed = 0
    for _ in range(NUM_KILLS):
        moment = moments.uniform(0, seconds)
        code, _ = trials.run([*command, out], kill_after=moment)
        killed += code == -9
        if out.exists():
            assert contents(out.parent).get(name) == contents(reference.parent).get(name), (seed, moment)
            assert contents(out) == contents(reference), (seed, moment)
            out.rename(tmp_path / f"done{killed}-{moment}")
    assert killed
    assert trials.run([*command, out])[0] == 0
    assert contents(out.parent) == contents(reference.parent)


def test_what_a_kill_left_goes_with_the_next_run(demo_dir: Path, study: FinetuneResult, tmp_path: Path) -> None:
    """Also of a video that is no part of the next run."""
    (tmp_path / ".gone_1.h5.partial").write_bytes(b"half a video")
    done = CliRunner().invoke(
        app,
        [
            *("extract", "--csv", str(demo_dir / "test_ResNet_DB.csv"), "--img-dir", str(demo_dir / "images")),
            *("--weights", str(study.weights_path), "--out", str(tmp_path), "--device", "cpu", "--workers", "0"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.glob(".*"))
