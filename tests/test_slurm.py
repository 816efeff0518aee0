"""The Slurm examples are valid shell, and pass to spatialfeat what they should: run with stand-ins for Slurm."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SLURM_DIR = Path(__file__).parent.parent / "scripts" / "slurm"
SCRIPTS = sorted(SLURM_DIR.glob("*.sh"))


def test_there_is_one_for_each_command_that_shares_work() -> None:
    assert [path.stem for path in SCRIPTS] == ["extract", "finetune"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_they_are_valid_shell(script: Path) -> None:
    run = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def commands_of(script: Path, folder: Path, **environment: str) -> list[str]:
    """What the script starts, through an `srun` that only prints."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text("")
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text('#!/bin/bash\necho "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", script, "--out", "my study"],
        cwd=folder,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_finetune_starts_a_process_per_gpu_and_goes_on_when_requeued(tmp_path: Path) -> None:
    (command,) = commands_of(SLURM_DIR / "finetune.sh", tmp_path, SLURM_GPUS_ON_NODE="4")
    assert command == "torchrun --standalone --nproc-per-node=4 -m spatialfeat finetune --resume --out my study"


def test_every_task_of_the_array_is_a_shard(tmp_path: Path) -> None:
    script = SLURM_DIR / "extract.sh"
    (tasks,) = re.findall(r"#SBATCH --array=1-(\d+)", script.read_text())
    (command,) = commands_of(script, tmp_path, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="1")
    assert command == f"spatialfeat extract --shard 3/{tasks} --out my study"
