"""The store below the frame cache: whole entries only, many writers, bounded, nothing left by the dead."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spatialfeat.data.cache as slabstore
from spatialfeat.data.cache import HEADER, IN_USE_SECONDS, RECORD, SLABS_PER_LIMIT, SlabStore, _PlaceTable

LIMIT = 10_000_000


def key_of(number: int) -> bytes:
    """Keys are digests: their first bytes differ too."""
    return np.random.default_rng(number).bytes(16)


def body_of(number: int, length: int = 100) -> bytes:
    return np.random.default_rng(number + 1000).bytes(length)


def fill(store: SlabStore, numbers: range, length: int = 100) -> None:
    for number in numbers:
        store.put(key_of(number), body_of(number, length))


def found(store: SlabStore, numbers: range, length: int = 100) -> list[int]:
    """Those that are there; each must be what was stored."""
    there = [number for number in numbers if store.get(key_of(number)) is not None]
    assert all(bytes(store.get(key_of(number)) or b"") == body_of(number, length) for number in there)
    return there


def slab_files(folder: Path) -> list[Path]:
    return sorted((folder / "slabs").iterdir())


def test_what_is_put_is_got_now_and_later_and_elsewhere(tmp_path: Path) -> None:
    store, neighbour = SlabStore(tmp_path, LIMIT), SlabStore(tmp_path, LIMIT)
    assert store.get(key_of(0)) is None
    store.put(key_of(0), b"head", body_of(0))
    assert bytes(store.get(key_of(0)) or b"") == bytes(neighbour.get(key_of(0)) or b"") == b"head" + body_of(0)
    fill(store, range(1, 1000))
    neighbour.refresh()
    assert neighbour.holds(key_of(999))
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert len(found(neighbour, range(1, 1000))) == len(found(copy, range(1, 1000))) == 999
    assert neighbour.get(key_of(1000)) is None
    assert store.full is None


def test_an_entry_that_another_process_stored_is_not_stored_again(tmp_path: Path) -> None:
    first, second = SlabStore(tmp_path, LIMIT), SlabStore(tmp_path, LIMIT)
    assert second.get(key_of(0)) is None
    first.put(key_of(0), body_of(0))
    second.put(key_of(0), body_of(0))
    assert len(slab_files(tmp_path)) == 1


def test_a_damaged_last_record_does_not_cost_the_entries_before_it(tmp_path: Path) -> None:
    """Trimming once took the end of the last record for the end of the slab."""
    store = SlabStore(tmp_path, LIMIT)
    fill(store, range(3))
    store.close()
    (index,) = (tmp_path / "index").iterdir()
    content = bytearray(index.read_bytes())
    content[-16:-8] = bytes(8)  # The last record's offset.
    index.write_bytes(content)
    later = SlabStore(tmp_path, LIMIT)
    later.files.trim()
    assert found(later, range(3)) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_entry_is_a_miss_and_is_replaced(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = SlabStore(folder, LIMIT)
    fill(store, range(3))
    store.close()
    target = next((folder / data.draw(st.sampled_from(["slabs", "index"]))).iterdir())
    content = bytearray(target.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    target.write_bytes(content)
    damaged = SlabStore(folder, LIMIT)
    found(damaged, range(3))  # Asserts that nothing wrong is found.
    fill(damaged, range(3))
    assert found(damaged, range(3)) == [0, 1, 2]
    damaged.close()
    # A later run finds the new entry, not the damaged one before it.
    later = SlabStore(folder, LIMIT)
    later.files.trim()
    assert found(later, range(3)) == [0, 1, 2]


def test_the_limit_holds_with_several_writers(tmp_path: Path) -> None:
    limit = 400_000
    stores = [SlabStore(tmp_path, limit) for _ in range(3)]
    for number in range(0, 90, 3):
        for shift, store in enumerate(stores):
            store.put(key_of(number + shift), body_of(number + shift, 10_000))
            assert store.files.usage_bytes() <= limit
    assert all(store.full is not None and "0.00 GB of at most 0.00 GB" in store.full for store in stores)
    # What fits stays, and nothing of this run was thrown out for what came later.
    there = found(stores[0], range(90), 10_000)
    assert 35 <= len(there) < 40
    assert there == list(range(len(there)))


def test_slabs_that_nobody_uses_make_way_the_oldest_first(tmp_path: Path) -> None:
    limit = 100_000
    store = SlabStore(tmp_path, limit)
    fill(store, range(9), 10_000)
    store.close()
    names = [path.name for path in slab_files(tmp_path)]
    assert len(names) == 9
    old = time.time() - IN_USE_SECONDS - 60
    for position, path in enumerate(slab_files(tmp_path)[:4]):
        for file in (path, tmp_path / "index" / path.name):
            os.utime(file, (old + position, old + position))
    reader = SlabStore(tmp_path, limit)
    assert found(reader, range(1), 10_000) == [0]  # Read now, so it is in use.
    writer = SlabStore(tmp_path, limit)
    fill(writer, range(100, 101), 10_000)
    assert [path.name for path in slab_files(tmp_path)][:2] == [names[0], names[2]]
    fill(writer, range(101, 110), 10_000)
    assert writer.full is not None
    assert writer.files.usage_bytes() <= limit
    assert found(SlabStore(tmp_path, limit), range(9), 10_000) == [0, 4, 5, 6, 7, 8]
    assert found(SlabStore(tmp_path, limit), range(100, 110), 10_000) == [100, 101, 102]


def test_a_smaller_limit_shrinks_what_is_there_but_not_under_a_living_writer(tmp_path: Path) -> None:
    store = SlabStore(tmp_path, 200_000)
    fill(store, range(10), 10_000)
    smaller = SlabStore(tmp_path, 35_000)
    smaller.files.shrink()
    assert smaller.files.usage_bytes() <= 35_000
    assert found(SlabStore(tmp_path, 35_000), range(10), 10_000) == [7, 8, 9]
    SlabStore(tmp_path, 1).files.shrink()
    assert found(SlabStore(tmp_path, 1), range(10), 10_000) == [9]


def test_a_full_disk_stops_storing_and_gives_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlabStore(tmp_path, LIMIT)
    fill(store, range(5))

    def full_disk(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full_disk)
    store.put(key_of(5), body_of(5))
    assert store.full == "No space left on device"
    assert slab_files(tmp_path) == []
    monkeypatch.undo()
    store.put(key_of(6), body_of(6))
    assert SlabStore(tmp_path, LIMIT).get(key_of(6)) is None


def test_half_an_entry_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlabStore(tmp_path, LIMIT)
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, offset: whole(fd, parts[:1], offset))
    store.put(key_of(0), body_of(0))
    assert store.full is not None
    assert SlabStore(tmp_path, LIMIT).get(key_of(0)) is None


def test_too_little_free_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.data.cache.KEEP_FREE_BYTES", 10**18)
    store = SlabStore(tmp_path, LIMIT)
    fill(store, range(1))
    assert store.full is not None
    assert "are free on the disk" in store.full


def test_a_store_that_is_deleted_during_the_run_is_a_miss(tmp_path: Path) -> None:
    store = SlabStore(tmp_path / ".", LIMIT)
    fill(store, range(2))
    neighbour = SlabStore(tmp_path, LIMIT)
    for folder in ("slabs", "index"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
        (tmp_path / folder).rmdir()
    assert neighbour.get(key_of(0)) is None
    neighbour.put(key_of(0), body_of(0))
    assert neighbour.full is not None
    assert "No such file" in neighbour.full


WRITER = """
import sys
from pathlib import Path
from test_slabstore import LIMIT, body_of, key_of
from spatialfeat.data.cache import SlabStore
store = SlabStore(Path(sys.argv[1]), LIMIT)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    if store.get(key_of(number)) is None:
        store.put(key_of(number), body_of(number))
assert all(bytes(store.get(key_of(number))) == body_of(number) for number in range(int(sys.argv[2])))
print("done", flush=True)
sys.stdin.readline()
"""


def start_writer(folder: Path, count: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_fill_it_at_once_and_what_the_killed_one_leaves_is_cleaned_up(tmp_path: Path) -> None:
    count = 500
    processes = [start_writer(tmp_path, count) for _ in range(2)]
    for process in processes:
        go(process)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
    store = SlabStore(tmp_path, LIMIT)
    assert len(found(store, range(count))) == count
    entry = 100 + HEADER.size + RECORD.itemsize
    # Both still reserve their slabs: cleaning up must not touch those of the living.
    store.files.trim()
    assert len(slab_files(tmp_path)) >= 2
    assert store.files.usage_bytes() >= 2 * (LIMIT // SLABS_PER_LIMIT)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    store.files.trim()
    assert count * entry <= store.files.usage_bytes() <= 2 * count * entry
    assert len(found(SlabStore(tmp_path, LIMIT), range(count))) == count


@pytest.mark.parametrize("merge_at", [1, 3, 1000])
def test_the_table_of_places_keeps_the_latest(merge_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabstore, "MERGE_AT", merge_at)
    rng = np.random.default_rng(0)
    table, expected = _PlaceTable(), {}
    for step in range(100):
        keys = rng.integers(0, 40, 2)
        records = np.array([(key, step * 2 + i, 10, step) for i, key in enumerate(keys.tolist())], RECORD)
        table.add(records)
        expected |= {key: (step, step * 2 + i, 10) for i, key in enumerate(keys.tolist())}
        if step % 7 == 0:
            table.forget(int(keys[0]))
            expected.pop(int(keys[0]))
    assert {key: place for key in range(40) if (place := table.find(key)) is not None} == expected
    assert table.find(2**64 - 1) is None
