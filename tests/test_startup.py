"""Start and end of the process: nothing is lost although Python's own way of ending is cut short."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from spatialfeat.startup import end_process, quick_imports

FULL_DEVICE = Path("/dev/full")
ENDING = """
import atexit, sys
from spatialfeat.startup import end_process
atexit.register(print, "registered")
class TakenApart:
    def __del__(self):
        print("taken apart")
thing = TakenApart()
print("output" * 20_000)
try:
    sys.exit({code!r})
except SystemExit as ending:
    end_process(ending)
    raise
"""


def ended(code: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ENDING.format(code=code)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), (130, 130), (-1, 255)])
def test_what_is_registered_and_written_comes_out_and_only_taking_apart_is_left_out(
    code: object, expected: int
) -> None:
    done = ended(code)
    assert done.returncode == expected
    assert done.stdout == "output" * 20_000 + "\nregistered\n"


def test_a_message_in_place_of_a_code_is_left_to_python() -> None:
    done = ended("what is wrong")
    assert (done.returncode, done.stderr) == (1, "what is wrong\n")


def test_a_full_disk_behind_the_output_is_told() -> None:
    if not FULL_DEVICE.exists():
        pytest.skip("no /dev/full on this system")
    with FULL_DEVICE.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ENDING.format(code=0)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode != 0
    assert "No space left" in done.stderr


def test_an_uncaught_error_keeps_its_traceback() -> None:
    code = "import spatialfeat.cli as cli\ndef app(): raise KeyError('x')\ncli.app = app\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'x'")


def test_a_code_that_is_none_is_not_acted_on() -> None:
    end_process(SystemExit("text"))  # Would end this very process.


def test_garbage_is_collected_again_after_imports_also_when_they_fail() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()
