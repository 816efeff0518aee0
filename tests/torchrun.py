"""Starts two CPU processes as a user does, with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TORCHRUN_OPTIONS = ["--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    """One thread each, so that tests do not fight over cores; and this package, wherever the processes start."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def torchrun(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script or `-m MODULE` with arguments in two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *TORCHRUN_OPTIONS, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
