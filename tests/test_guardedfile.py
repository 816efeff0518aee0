"""HDF5 on a disk that fills up: one message, nothing left, and no crash at exit."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import pytest
from feature_folders import make_video
from forks import Forks

from spatialfeat.cli import app
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.writer import GuardedFile


def limit_file_size() -> None:
    """It stands in for a full disk: the write fails in the same way, without needing a small disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


def run_limited(*arguments: str) -> None:
    limit_file_size()
    app(list(arguments))


def test_an_export_that_runs_out_of_room_ends_with_one_message(forks: Forks, tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "features", "9_1", [0, 1, 2] * 100)
    command = ["export", "hdf5", str(tmp_path / "in" / "features"), str(tmp_path / "in" / "all.h5")]
    run = forks.run(tmp_path / "log", call=[__name__, "run_limited", *command], to_the_end=True)
    assert run["code"] == 2, run["log"]
    assert "all.h5: File too large; make room" in run["log"]
    assert "Traceback" not in run["log"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["features"]


def make_limited_video(folder: str) -> None:
    limit_file_size()
    try:
        make_video(Path(folder), "9_1", [0] * 300)
    except SpatialfeatError as error:
        sys.exit(f"told: {error}")


def test_a_feature_file_that_runs_out_of_room_leaves_nothing(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    call = [__name__, "make_limited_video", str(tmp_path / "out")]
    run = forks.run(tmp_path / "log", call=call, to_the_end=True)
    assert run["code"] == 1, run["log"]
    assert run["log"].strip().startswith(f"told: {tmp_path / 'out' / '9_1.h5'}: File too large; make room")
    assert list((tmp_path / "out").iterdir()) == []


def test_bytes_arrive_as_in_a_plain_file(tmp_path: Path) -> None:
    with GuardedFile(tmp_path / "guarded", tmp_path / "guarded") as file:
        file.write(b"abcdef")
        file.seek(2)
        file.write(memoryview(b"XY"))
        file.check()
    assert (tmp_path / "guarded").read_bytes() == b"abXYef"


def test_what_could_not_be_written_is_read_back_all_the_same(tmp_path: Path) -> None:
    """HDF5 reads its own structures back; on bytes that nobody wrote it has crashed."""
    with GuardedFile(tmp_path / "guarded", tmp_path / "guarded") as file:
        file.write(b"0123456789")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, limit[1]))
        try:
            file.write(b"abcdef")  # Two bytes fit.
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, previous)
        file.seek(4)
        file.write(b"XY")
        file.seek(20)
        file.write(b"far")
        file.seek(2)
        buffer = bytearray(b"?" * 22)
        assert file.readinto(buffer) == 22
        assert bytes(buffer) == b"23XY6789abcdef\0\0\0\0far\0"
        with pytest.raises(SpatialfeatError, match="File too large"):
            file.check()


def test_two_writers_are_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with GuardedFile(tmp_path / "x", tmp_path / "final") as first:
        first.write(b"first")
        with pytest.raises(SpatialfeatError, match="final: another process is writing this file"):
            GuardedFile(tmp_path / "x", tmp_path / "final")
    assert (tmp_path / "x").read_bytes() == b"first"
