from __future__ import annotations

import os
from pathlib import Path

import pytest

from spatialfeat import files
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import atomic_folder


def test_the_folder_appears_only_when_complete(tmp_path: Path) -> None:
    final = tmp_path / "parent/data"
    with atomic_folder(final) as folder:
        assert folder == tmp_path / "parent/.data.partial"
        (folder / "a.txt").write_text("a")
        assert not final.exists()
    assert (final / "a.txt").read_text() == "a"
    assert [path.name for path in final.parent.iterdir()] == ["data"]


def _write_and_raise(folder: Path, error: type[BaseException]) -> None:
    (folder / "sub").mkdir()
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "data") as folder:
        _write_and_raise(folder, error)
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "data"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data/mine.txt").read_text() == "mine"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".data.partial"
    (left / "sub").mkdir(parents=True)
    (left / "sub/old.txt").write_text("old")
    (left / "link").symlink_to(tmp_path)
    with atomic_folder(tmp_path / "data") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "data") as folder:
        (folder / "a.txt").write_text("a")
        with pytest.raises(SpatialfeatError, match="another process is writing it"), atomic_folder(tmp_path / "data"):
            pass
    assert (tmp_path / "data/a.txt").read_text() == "a"


def test_many_files_are_flushed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(files, "FSYNC_FILES", 1)
    monkeypatch.setattr(os, "sync", lambda: calls.append("sync"))
    with atomic_folder(tmp_path / "data") as folder:
        for name in "ab":
            (folder / name).write_text(name)
    assert calls == ["sync"]


def test_a_prepared_folder_keeps_its_rights(tmp_path: Path) -> None:
    prepared = tmp_path / "shared"
    prepared.mkdir()
    prepared.chmod(0o2775)
    with atomic_folder(prepared) as partial:
        (partial / "file").write_text("content")
    assert (prepared / "file").read_text() == "content"
    assert prepared.stat().st_mode & 0o7777 == 0o2775
