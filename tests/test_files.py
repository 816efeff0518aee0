"""A name only ever points at a whole file, and a failure leaves the old one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import (
    atomic_path,
    file_sha256,
    prepare_output_dir,
    read_json_object,
    write_atomically,
    write_json,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    with atomic_path(path) as temporary_path:
        temporary_path.write_text("half")
        assert not path.exists()
        assert temporary_path.parent == tmp_path  # a rename across file systems would not be one step
        assert temporary_path.suffix == ".png"
        assert temporary_path.name.startswith(".")
    assert path.read_text() == "half"
    assert _names(tmp_path) == ["curves.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "history.csv"
    path.write_text("old")

    def fail(temporary_path: Path) -> None:
        temporary_path.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["history.csv"]


def test_a_writer_that_fails_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), atomic_path(tmp_path / "a.txt"):
        raise ValueError("early")
    assert _names(tmp_path) == []


def test_the_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("a much longer old content, of which nothing may remain")
    write_json(path, {"accuracy": 0.5})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}


def test_json_is_readable_utf8(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"phase": "Wächter", "seconds": [1, 2.5, None]})
    assert (
        path.read_bytes() == '{\n  "phase": "Wächter",\n  "seconds": [\n    1,\n    2.5,\n    null\n  ]\n}\n'.encode()
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_json_has_not(tmp_path: Path, number: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert _names(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_sha256(tmp_path: Path, size: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * size)
    assert file_sha256(path) == hashlib.sha256(b"x" * size).hexdigest()


def test_output_dir_is_made_and_left_empty(tmp_path: Path) -> None:
    out_dir = tmp_path / "a" / "b"
    prepare_output_dir(out_dir)
    prepare_output_dir(out_dir)
    assert _names(out_dir) == []


@pytest.mark.parametrize(
    ("below", "reason"),
    [("", r"is a file, not a folder; choose"), ("features", r"cannot write there \(.+\); choose a folder")],
)
def test_output_dir_that_cannot_be(tmp_path: Path, below: str, reason: str) -> None:
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(SpatialfeatError, match=rf"--out .*occupied.*: {reason}"):
        prepare_output_dir(tmp_path / "occupied" / below)
    assert (tmp_path / "occupied").read_text() == "a file"


def test_output_dir_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    # The permission bits of a real folder do not stop the superuser, who runs tests in containers.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(SpatialfeatError, match=r"cannot write there \(Permission denied\)"):
        prepare_output_dir(tmp_path)


def test_a_json_object_is_read_and_anything_else_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert read_json_object(path) == {}
    for content in (b"", b"{half", b"[1]", b"\xff"):
        path.write_bytes(content)
        assert read_json_object(path) == {}
    path.write_text('{"command": "evaluate"}')
    assert read_json_object(path) == {"command": "evaluate"}
