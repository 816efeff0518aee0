"""The store below the frame cache: whole entries only, many writers, bounded."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialfeat.data import cache
from spatialfeat.data.cache import HEADER, RECORD, PackStore

LIMIT = 10_000_000


def key_of(number: int) -> bytes:
    """Keys are digests: their first bytes differ too."""
    return np.random.default_rng(number).bytes(16)


def body_of(number: int, length: int = 100) -> bytes:
    return np.random.default_rng(number + 1000).bytes(length)


def fill(store: PackStore, numbers: range, length: int = 100) -> None:
    for number in numbers:
        store.put(key_of(number), body_of(number, length))


def found(store: PackStore, numbers: range, length: int = 100) -> list[int]:
    """Those that are there; each must be what was stored."""
    there = [number for number in numbers if store.get(key_of(number)) is not None]
    assert all(bytes(store.get(key_of(number)) or b"") == body_of(number, length) for number in there)
    return there


def slab_files(folder: Path) -> list[Path]:
    return sorted((folder / "slabs").iterdir())


def test_what_is_put_is_got_now_and_later_and_elsewhere(tmp_path: Path) -> None:
    store, neighbour = PackStore(tmp_path, LIMIT), PackStore(tmp_path, LIMIT)
    assert store.get(key_of(0)) is None
    store.put(key_of(0), b"head", body_of(0))
    assert bytes(store.get(key_of(0)) or b"") == bytes(neighbour.get(key_of(0)) or b"") == b"head" + body_of(0)
    fill(store, range(1, 1000))
    assert neighbour.get(key_of(999)) is not None
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert len(found(neighbour, range(1, 1000))) == len(found(copy, range(1, 1000))) == 999
    assert neighbour.get(key_of(1000)) is None
    assert store.full is None


def test_an_entry_that_another_process_stored_is_not_stored_again(tmp_path: Path) -> None:
    first, second = PackStore(tmp_path, LIMIT), PackStore(tmp_path, LIMIT)
    assert second.get(key_of(0)) is None
    first.put(key_of(0), body_of(0))
    second.put(key_of(0), body_of(0))
    assert len(slab_files(tmp_path)) == 1


def test_a_damaged_last_record_does_not_cost_the_entries_before_it(tmp_path: Path) -> None:
    store = PackStore(tmp_path, LIMIT)
    fill(store, range(3))
    store.close()
    (index,) = (tmp_path / "index").iterdir()
    content = bytearray(index.read_bytes())
    content[-16:-8] = bytes(8)  # The last record's offset.
    index.write_bytes(content)
    assert found(PackStore(tmp_path, LIMIT), range(3)) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_entry_is_a_miss_and_is_replaced(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = PackStore(folder, LIMIT)
    fill(store, range(3))
    store.close()
    target = next((folder / data.draw(st.sampled_from(["slabs", "index"]))).iterdir())
    content = bytearray(target.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    target.write_bytes(content)
    damaged = PackStore(folder, LIMIT)
    found(damaged, range(3))  # Asserts that nothing wrong is found.
    fill(damaged, range(3))
    assert found(damaged, range(3)) == [0, 1, 2]
    damaged.close()
    # A later run finds the new entry, not the damaged one before it.
    assert found(PackStore(folder, LIMIT), range(3)) == [0, 1, 2]


def test_the_limit_holds_with_several_writers(tmp_path: Path) -> None:
    limit = 400_000
    stores = [PackStore(tmp_path, limit) for _ in range(3)]
    for number in range(0, 90, 3):
        for shift, store in enumerate(stores):
            store.put(key_of(number + shift), body_of(number + shift, 10_000))
            assert store.usage_bytes() <= limit
    assert all(store.full is not None and "0.00 GB of at most 0.00 GB" in store.full for store in stores)
    # What fits stays, and nothing was thrown out for what came later.
    assert found(stores[0], range(90), 10_000) == list(range(39))
    later = PackStore(tmp_path, limit)
    later.put(key_of(100), body_of(100, 10_000))
    assert later.full is not None
    more_room = PackStore(tmp_path, 2 * limit)
    more_room.put(key_of(100), body_of(100, 10_000))
    assert found(later, range(101), 10_000) == [*range(39), 100]


def test_writers_measure_again_after_a_part_of_the_limit(tmp_path: Path) -> None:
    """Not before every entry, which would take longer than to store it; so a little more may be written."""
    limit = 2_000_000
    stores = [PackStore(tmp_path, limit) for _ in range(3)]
    for number in range(0, 6000, 3):
        for shift, store in enumerate(stores):
            store.put(key_of(number + shift), body_of(number + shift, 400))
    assert all(store.full is not None for store in stores)
    assert 0.9 * limit < stores[0].usage_bytes() <= limit * (1 + 3 / 256)


def test_a_full_disk_stops_storing_and_gives_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackStore(tmp_path, LIMIT)
    fill(store, range(5))

    def full_disk(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "writev", full_disk)
    store.put(key_of(5), body_of(5))
    assert store.full == "No space left on device"
    assert slab_files(tmp_path) == []
    monkeypatch.undo()
    store.put(key_of(6), body_of(6))
    assert PackStore(tmp_path, LIMIT).get(key_of(6)) is None


def test_half_an_entry_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackStore(tmp_path, LIMIT)
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: whole(fd, parts[:1]))
    store.put(key_of(0), body_of(0))
    assert store.full is not None
    assert PackStore(tmp_path, LIMIT).get(key_of(0)) is None


def test_too_little_free_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.data.cache.KEEP_FREE_BYTES", 10**18)
    store = PackStore(tmp_path, LIMIT)
    fill(store, range(1))
    assert store.full is not None
    assert "are free on the disk" in store.full


def test_a_store_that_is_deleted_during_the_run_is_a_miss(tmp_path: Path) -> None:
    store = PackStore(tmp_path / ".", LIMIT)
    fill(store, range(2))
    neighbour = PackStore(tmp_path, LIMIT)
    for folder in ("slabs", "index"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
        (tmp_path / folder).rmdir()
    assert neighbour.get(key_of(0)) is None
    neighbour.put(key_of(0), body_of(0))
    assert neighbour.full is not None
    assert "No such file" in neighbour.full


def write(folder: Path, count: int, pipe: Connection) -> None:
    store = PackStore(folder, LIMIT)
    pipe.send("ready")
    pipe.recv()
    for number in range(count):
        if store.get(key_of(number)) is None:
            store.put(key_of(number), body_of(number))
    pipe.send(len(found(store, range(count))))
    pipe.recv()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_fill_it_at_once_and_are_killed(tmp_path: Path) -> None:
    count, context = 500, multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=write, args=(tmp_path, count, theirs), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    for message in ("ready", count):
        for mine, _ in pipes:
            assert mine.poll(60)
            assert mine.recv() == message
        for mine, _ in pipes:
            if message == "ready":
                mine.send("go")
    store = PackStore(tmp_path, LIMIT)
    assert len(found(store, range(count))) == count
    for process in processes:
        process.kill()
        process.join(60)
    entry = 100 + HEADER.size + RECORD.itemsize
    assert count * entry <= store.usage_bytes() <= 2 * count * entry
    assert len(found(PackStore(tmp_path, LIMIT), range(count))) == count


@pytest.mark.parametrize("merge_at", [1, 3, 1000])
def test_of_two_entries_under_one_key_the_later_one_is_found(
    merge_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a damaged entry was replaced; however many entries the table of places keeps apart."""
    monkeypatch.setattr(cache, "MERGE_AT", merge_at)
    reader = PackStore(tmp_path, LIMIT)
    for step in range(4):
        for path in slab_files(tmp_path):
            path.write_bytes(bytes(path.stat().st_size))
        writer = PackStore(tmp_path, LIMIT)
        assert found(writer, range(60)) == []  # So that all is stored once more.
        fill(writer, range(step, 40 + step))
        assert found(reader, range(60)) == list(range(step, 40 + step))
