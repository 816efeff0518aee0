"""Which patient goes where: whole patients, shares as asked, phases balanced, held against plain computations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.data.images import ImageFolder
from spatialfeat.data.splits import fold_rows, split_rows
from spatialfeat.data.tables import Origin
from spatialfeat.errors import SpatialfeatError

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def table_of(counts: list[list[int]], *, names: list[str] | None = None, unlabelled: int = 0) -> FrameTable:
    """A table with so many frames of each phase for each patient, and unlabelled frames behind them."""
    names = names or [f"p{number}" for number in range(len(counts))]
    rows = [
        (name, label)
        for name, own in zip(names, counts, strict=True)
        for label in [*np.repeat(np.arange(len(own)), own).tolist(), *[UNLABELLED] * unlabelled]
    ]
    patients, labels = np.array([name for name, _ in rows], dtype=str), np.array([label for _, label in rows])
    numbers = np.arange(len(rows))
    return FrameTable(
        origin=Origin(Path("all.csv"), numbers + 2),
        images=ImageFolder(Path("images")),
        split="all",
        ids=np.array([f"{name}_{number}" for name, number in zip(patients, numbers, strict=True)]),
        labels=labels.astype(np.int64),
        videos=patients,
        patients=patients,
        segments=np.zeros(len(rows), dtype=np.int64),
        frame_numbers=numbers,
    )


def cost(table: FrameTable, part_of_row: np.ndarray, shares: dict[str, float]) -> float:
    """What the head of data/splits.py says, one term after the other."""
    total = 0.0
    for part, asked in shares.items():
        own = part_of_row == part
        phases = [
            (np.mean(own[table.labels == phase]) - asked) ** 2 for phase in set(table.labels.tolist()) - {UNLABELLED}
        ]
        frames = np.mean(own[table.labels != UNLABELLED]) - asked
        patients = len(set(table.patients[own])) / len(set(table.patients)) - asked
        total += (np.mean(phases) + frames**2 + 0.1 * patients**2) / asked
    return total


def places(table: FrameTable, part_of_row: np.ndarray) -> dict[str, set[str]]:
    """{patient: the parts that its rows are in}."""
    found: dict[str, set[str]] = {}
    for patient, part in zip(table.patients.tolist(), part_of_row.tolist(), strict=True):
        found.setdefault(patient, set()).add(str(part))
    return found


frames = st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=3, max_size=6).map(
    lambda counts: [[own[0] + 1, *own[1:]] for own in counts]
)


@settings(max_examples=15)
@given(frames, st.sampled_from([SHARES, {"train": 0.5, "val": 0.5}, {"train": 0.75, "val": 0.1, "test": 0.15}]))
def test_a_few_patients_are_divided_as_well_as_can_be(counts: list[list[int]], shares: dict[str, float]) -> None:
    table = table_of(counts, unlabelled=2)
    got = split_rows(table, shares)
    assert all(len(parts) == 1 for parts in places(table, got).values())
    sizes = [sum(own) + 2 for own in counts]
    lowest = min(
        cost(table, np.repeat(np.array(parts), sizes), shares)
        for parts in itertools.product(shares, repeat=len(counts))
        if set(parts) == set(shares)
    )
    assert cost(table, got, shares) == pytest.approx(lowest, abs=1e-9)


patients = st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=5, max_size=25)


@settings(max_examples=25)
@given(patients, st.integers(2, 5), st.integers(0, 3))
def test_folds_keep_patients_whole_and_test_each_once(counts: list[list[int]], num_folds: int, seed: int) -> None:
    counts = [[own[0] + 1, *own[1:]] for own in counts]
    table = table_of(counts)
    folds = fold_rows(table, num_folds, val=0.2, seed=seed)
    assert len(folds) == num_folds
    tested = [sum(part == "test" for part in rows) for rows in zip(*folds, strict=True)]
    assert tested == [1] * len(table)
    longest = max(map(sum, counts)) / len(table)
    for splits in folds:
        assert set(splits) == {"train", "val", "test"}
        assert all(len(parts) == 1 for parts in places(table, splits).values())
        for split, asked in {"train": 0.8 - 1 / num_folds, "val": 0.2, "test": 1 / num_folds}.items():
            # Nobody can promise to come nearer than the longest patient is long.
            assert abs(np.mean(splits == split) - asked) <= longest


def test_never_worse_than_scikit_learn() -> None:
    """By our measure, and, on the whole, by the share of the frames alone, which is nobody's own measure."""
    rng = np.random.default_rng(5)
    shares = {str(part): 0.2 for part in range(5)}
    off = []
    for _ in range(8):
        # Patients of very different length, some phases that few have.
        counts = rng.integers(0, 30, (17, 5)) * rng.integers(1, 9, (17, 1)) * (rng.random((17, 5)) < 0.8)
        counts[:, 0] += 1
        table = table_of(counts.tolist())
        ours = split_rows(table, shares)
        theirs = np.empty(len(table), dtype="<U1")
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(table.labels, table.labels, table.patients)
        for part, (_, test) in enumerate(folds):
            theirs[test] = str(part)
        assert cost(table, ours, shares) <= cost(table, theirs, shares) + 1e-12
        off.append([max(abs(np.mean(rows == part) - 0.2) for part in shares) for rows in (ours, theirs)])
    assert np.mean(off, axis=0)[0] < np.mean(off, axis=0)[1]


def test_many_patients_are_divided_almost_exactly() -> None:
    """Above 500 patients pairs are no longer exchanged."""
    counts = np.random.default_rng(1).integers(1, 20, (700, 3)).tolist()
    table = table_of(counts)
    got = split_rows(table, SHARES)
    for split, asked in SHARES.items():
        assert np.mean(got == split) == pytest.approx(asked, abs=0.002)
        for phase in range(3):
            assert np.mean(got[table.labels == phase] == split) == pytest.approx(asked, abs=0.005)


def test_a_hand_worked_division() -> None:
    # 60, 20 and 20 % of the frames of both phases: only one way of putting these six together gives that.
    table = table_of([[40, 4], [14, 16], [6, 40], [20, 10], [10, 20], [10, 10]])
    got = places(table, split_rows(table, {"train": 0.6, "val": 0.3, "test": 0.1}))
    assert got == {"p0": {"train"}, "p1": {"train"}, "p2": {"train"}, "p3": {"val"}, "p4": {"val"}, "p5": {"test"}}


def test_a_phase_of_one_patient_is_trained_on() -> None:
    table = table_of([[50, 0]] * 7 + [[50, 9]])
    assert places(table, split_rows(table, SHARES))["p7"] == {"train"}


def test_names_that_count_as_one_go_together() -> None:
    table = table_of([[5]] * 6, names=["P1", "p1", "7", "007", "x", "y"])
    for seed in range(5):
        found = places(table, split_rows(table, {"train": 0.5, "val": 0.5}, seed=seed))
        assert found["P1"] == found["p1"]
        assert found["7"] == found["007"]


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    counts = np.random.default_rng(2).integers(1, 30, (20, 4)).tolist()
    table = table_of(counts)
    shuffled = np.random.default_rng(0).permutation(len(table))
    other = FrameTable(
        origin=Origin(table.source, np.arange(len(table)) + 2),
        images=table.images,
        split="all",
        **{
            name: getattr(table, name)[shuffled]
            for name in ("ids", "labels", "videos", "patients", "segments", "frame_numbers")
        },
    )
    assert places(table, split_rows(table, SHARES)) == places(other, split_rows(other, SHARES))
    assert len({str(places(table, split_rows(table, SHARES, seed=seed))) for seed in range(6)}) > 1
    first, second = (fold_rows(table, 3, val=0.2, seed=4) for _ in range(2))
    assert all(map(np.array_equal, first, second))


def test_unlabelled_frames_do_not_count_and_their_patients_are_spread() -> None:
    counts = [[10], [10], [10], [10], [0], [0], [0], [0]]
    table = table_of(counts, unlabelled=3)
    for seed in range(4):
        got = split_rows(table, {"train": 0.5, "val": 0.5}, seed=seed)
        for split in ("train", "val"):
            assert np.sum((got == split) & (table.labels == 0)) == 20
            assert sum(parts == {split} for parts in places(table, got).values()) == 4


@pytest.mark.parametrize(
    ("counts", "num_folds", "message"),
    [
        ([[3], [3], [0]], 0, "all.csv: has 2 patients with labelled frames, but train, val, test need one each"),
        ([[3]] * 4, 5, "all.csv: has 4 patients with labelled frames, too few for 5 folds .*ask for 4 folds"),
        ([[3], [3], [0], [0]], 2, "all.csv: has 2 patients with labelled frames, too few for 2 folds .*add patients"),
        ([[3], [3], [3]], 2, "all.csv: has 3 patients with labelled frames, too few for 2 folds .*ask for 3 folds"),
    ],
)
def test_too_few_patients_are_refused_with_the_numbers(counts: list[list[int]], num_folds: int, message: str) -> None:
    table = table_of(counts, unlabelled=1)
    with pytest.raises(SpatialfeatError, match=message):
        fold_rows(table, num_folds, val=0.2) if num_folds else split_rows(table, SHARES)


def test_as_many_folds_as_patients_leave_one_out() -> None:
    table = table_of([[9, 1], [2, 3], [4, 4], [30, 1]])
    tested = [set(table.patients[splits == "test"]) for splits in fold_rows(table, 4, val=0.2)]
    assert sorted(map(sorted, tested)) == [["p0"], ["p1"], ["p2"], ["p3"]]
