"""Whole patients shared out to train, val and test, or to the folds of a cross-validation, with the phases balanced.

The frames of a phase, all labelled frames, and the patients should each be divided as asked. The cost of a division is

    sum over parts of  ( mean over phases of d(phase)^2 + d(labelled frames)^2 + 0.1 d(patients)^2 ) / asked

where asked is the part's share and d(...) = (the share that it got) - asked. From a random division, single patients
are moved and pairs exchanged, always those that lower the cost most, until none does; of several such divisions the
best is kept. With a handful of patients that is the best there is. Dividing by what was asked sends a phase that only
one patient has to the largest part: to train.

scikit-learn's StratifiedGroupKFold knows parts of equal size only, and never takes a patient back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.console import align, count_text, phase_lines, share_cells
from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import same_name_key

PATIENT_WEIGHT = 0.1
"""What the number of patients counts beside that of frames: it decides where frames can be divided in several ways."""

MOST_STARTS = 32
"""Random divisions to start from; fewer where there are many patients, who can be divided well from anywhere."""

MOST_EXCHANGED = 500
"""With more patients only single ones are moved: pairs are then too many, and not needed."""

MOST_COLUMNS = 8
"""So many parts are shown side by side."""

DIGITS = 12
"""Costs are compared to so many decimals: which of two equal ones is less must not depend on the processor."""


def split_rows(table: FrameTable, shares: Mapping[str, float], *, seed: int = 0) -> NDArray[Any]:
    """(N,) str: the split of each row, so that whole patients are in one and each has its share of the frames.

    Patients whose names count as one go together. Unlabelled frames do not count; patients without a labelled frame are
    given out last, by number. The result depends on the seed and on the rows, not on their order.

    Args:
        shares: {split: its share of the labelled frames, > 0}, together 1.

    Raises:
        SpatialfeatError: fewer patients with labelled frames than splits: every split gets one at least.
    """
    patient_of_row, counts = _count_frames(table)
    num_labelled = int(counts.any(axis=1).sum())
    if num_labelled < len(shares):
        raise SpatialfeatError(
            f"{table.source}: has {count_text(num_labelled, 'patient')} with labelled frames, but "
            f"{', '.join(shares)} need one each; add patients, or leave the test set out"
        )
    parts = _share_out(counts, np.array(list(shares.values())), np.random.default_rng(seed))
    return np.array(list(shares))[parts][patient_of_row]


def fold_rows(table: FrameTable, num_folds: int, *, val: float, seed: int = 0) -> list[NDArray[Any]]:
    """For each fold (N,) str: the split of each row, train, val or test. Every patient is tested in one fold.

    The test sets are equal parts, as `split_rows` makes them; in each fold, the others are divided into train and val.

    Args:
        val: the validation set's share of all labelled frames, less than 1 - 1/num_folds.

    Raises:
        SpatialfeatError: too few patients with labelled frames.
    """
    patient_of_row, counts = _count_frames(table)
    num_labelled = int(counts.any(axis=1).sum())
    # The other of two folds is divided into train and val.
    least = 2 if num_folds == 2 else 1
    if num_labelled < max(num_folds * least, 3):
        remedy = f"ask for {num_labelled} folds" if num_labelled >= 3 else "add patients"
        raise SpatialfeatError(
            f"{table.source}: has {count_text(num_labelled, 'patient')} with labelled frames, too few for "
            f"{num_folds} folds that each have patients of their own for test, val and train; {remedy}"
        )
    fold_of_patient = _share_out(counts, np.full(num_folds, 1 / num_folds), np.random.default_rng(seed), least)
    left = val / (1 - 1 / num_folds)
    folds = []
    for fold in range(num_folds):
        splits = np.full(len(counts), "test", dtype="<U5")
        others = np.flatnonzero(fold_of_patient != fold)
        parts = _share_out(counts[others], np.array([1 - left, left]), np.random.default_rng([seed, fold + 1]))
        splits[others] = np.array(["train", "val"])[parts]
        folds.append(splits[patient_of_row])
    return folds


def _count_frames(table: FrameTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """((N,): the patient of each row, (P, C): each patient's frames of each phase that occurs).

    Patients are numbered in the order of their names, so that the order of rows does not matter.
    """
    names, name_of_row = np.unique(table.patients, return_inverse=True)
    numbers: dict[tuple[object, ...], int] = {}
    patient_of_name = np.array([numbers.setdefault(same_name_key(name), len(numbers)) for name in names.tolist()])
    patient_of_row = patient_of_name[name_of_row]
    labelled = table.labels != UNLABELLED
    phases, phase_of_row = np.unique(table.labels[labelled], return_inverse=True)
    counts = np.zeros((len(numbers), len(phases)), dtype=np.int64)
    np.add.at(counts, (patient_of_row[labelled], phase_of_row), 1)
    return patient_of_row, counts


def _share_out(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator, least: int = 1
) -> NDArray[np.int64]:
    """(P,): the part of each patient.

    counts: (P, C) frames of each phase; at least `least` patients per part have some. shares: (S,), together 1.
    """
    parts = np.zeros(len(counts), dtype=np.int64)
    labelled = counts.any(axis=1)
    parts[labelled] = _balance(counts[labelled], shares, rng, least)
    taken = np.bincount(parts[labelled], minlength=len(shares))
    for patient in np.flatnonzero(~labelled):
        parts[patient] = _lowest((taken + 1) / shares)
        taken[parts[patient]] += 1
    return parts


def _balance(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator, least: int
) -> NDArray[np.int64]:
    """`_share_out` for patients who all have labelled frames."""
    counts = counts[:, counts.any(axis=0)]
    (num_patients, num_phases), num_parts = counts.shape, len(shares)
    # With these (P, D) the cost is the sum over parts of |sum of its patients' values|^2 / share, but for a constant.
    values: NDArray[np.float64] = np.hstack(
        [
            counts / counts.sum(axis=0) / np.sqrt(num_phases),
            counts.sum(axis=1, keepdims=True) / counts.sum(),
            np.full((num_patients, 1), np.sqrt(PATIENT_WEIGHT) / num_patients),
        ]
    )
    found: list[NDArray[np.int64]] = []
    for _ in range(min(MOST_STARTS, max(1, 2000 // num_patients))):
        anywhere = rng.choice(num_parts, num_patients - least * num_parts, p=shares)
        parts = rng.permutation(np.concatenate([np.repeat(np.arange(num_parts), least), anywhere]))
        _improve(values, shares, parts, least)
        found.append(parts)
    costs = [((_sums(values, num_parts, parts) ** 2).sum(axis=1) / shares).sum() for parts in found]
    return found[_lowest(np.array(costs))]


def _improve(values: NDArray[np.float64], shares: NDArray[np.float64], parts: NDArray[np.int64], least: int) -> None:
    """Move and exchange patients, in `parts`, as long as that lowers the cost; `least` stay in every part."""
    patients = np.arange(len(values))
    products = values @ values.T if len(values) <= MOST_EXCHANGED else None
    norms = (values**2).sum(axis=1)
    while True:
        likeness = values @ _sums(values, len(shares), parts).T
        leaving = (norms - 2 * likeness[patients, parts]) / shares[parts]
        moves = leaving[:, None] + (norms[:, None] + 2 * likeness) / shares  # (P, S): what it costs.
        allowed = moves.copy()
        allowed[patients, parts] = np.inf
        allowed[np.bincount(parts)[parts] <= least] = np.inf
        move = np.unravel_index(_lowest(allowed), allowed.shape)
        change = allowed[move]
        exchange = None
        if products is not None:
            there, own = moves[:, parts], 1 / shares[parts]  # (P, P): what it costs to go where another one is.
            exchanges = there + there.T - 2 * products * (own[:, None] + own)
            exchanges[parts[:, None] == parts] = np.inf
            pair = np.unravel_index(_lowest(exchanges), exchanges.shape)
            if exchanges[pair] < change - 10.0**-DIGITS:
                change, exchange = exchanges[pair], list(pair)
        if change > -(10.0 ** -(DIGITS - 1)):
            return
        if exchange is not None:
            parts[exchange] = parts[exchange[::-1]]
        else:
            parts[move[0]] = move[1]


def _sums(values: NDArray[np.float64], num_parts: int, parts: NDArray[np.int64]) -> NDArray[np.float64]:
    sums = np.zeros((num_parts, values.shape[1]))
    np.add.at(sums, parts, values)
    return sums


def _lowest(costs: NDArray[np.float64]) -> int:
    """The index of the lowest, the first of equal ones."""
    return int(np.argmin(np.round(costs, DIGITS)))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is in one CSV. folder: `fold1`; `` without folds. frames_per_phase: (C,) int64.

    patient_frames: {patient: labelled frames}, of those whose names count as one together.
    share: of all labelled frames, or of all where none has a label. asked: None where no share was.
    """

    folder: str
    split: str
    num_rows: int
    num_videos: int
    patient_frames: Mapping[str, int]
    frames_per_phase: NDArray[np.int64]
    asked: float | None
    share: float

    @property
    def name(self) -> str:
        """As messages call it: `fold1 train`, `train`."""
        return f"{self.folder} {self.split}".strip()


def part_of(
    table: FrameTable, rows: NDArray[np.bool_], num_phases: int, *, split: str, folder: str = "", asked: float | None
) -> Part:
    """The part that the rows (N,) of the table make."""
    own = table.take(rows)
    labelled = own.labels != UNLABELLED
    patients, patient_of_row = np.unique(own.patients, return_inverse=True)
    names: dict[tuple[object, ...], str] = {}
    patient_frames: Counter[str] = Counter()
    for patient, frames in zip(patients.tolist(), np.bincount(patient_of_row, labelled).tolist(), strict=True):
        patient_frames[names.setdefault(same_name_key(patient), patient)] += int(frames)
    all_labelled = table.labels != UNLABELLED
    return Part(
        folder=folder,
        split=split,
        num_rows=len(own),
        num_videos=len(np.unique(own.videos)),
        patient_frames=patient_frames,
        frames_per_phase=np.bincount(own.labels[labelled], minlength=num_phases),
        asked=asked,
        share=float(rows[all_labelled].mean() if all_labelled.any() else rows.mean()),
    )


def parts_text(table: FrameTable, parts: Sequence[Part], phase_names: Sequence[str]) -> str:
    """Two tables for the terminal: a line per part, and one per phase of the labelled frames, if there are any.

    Of several folds, the second shows their test sets.
    """
    lines = [["", "patients", "videos", "rows", "labelled", "share", "asked"]]
    for part in parts:
        counts = (len(part.patient_frames), part.num_videos, part.num_rows, part.frames_per_phase.sum())
        asked = "" if part.asked is None else f"{part.asked:.1%}"
        lines.append([part.name, *map(str, counts), f"{part.share:.1%}", asked])
    if all(part.asked is None for part in parts):
        lines = [line[:-1] for line in lines]
    shown = [part for part in parts if not part.folder or part.split == "test"]
    frames = np.array([part.frames_per_phase for part in shown])
    totals = frames.sum(axis=0).tolist()
    if not any(totals):
        return "\n".join(align(lines))
    labelled = table.labels != UNLABELLED
    _, video_of_row = np.unique(table.videos, return_inverse=True)
    pairs = np.unique(np.stack([table.labels, video_of_row])[:, labelled], axis=1)
    videos = np.bincount(pairs[0], minlength=len(totals)).tolist()
    columns = {"videos": list(map(str, videos)), "frames": share_cells(totals)}
    if len(shown) > MOST_COLUMNS:
        shares = frames / frames.sum(axis=1, keepdims=True)
        summary = np.quantile(shares, (0, 0.5, 1), axis=0)
        titles = ("lowest", "median", f"highest of {len(shown)} folds")
        columns |= {title: [f"{share:.1%}" for share in of] for title, of in zip(titles, summary, strict=True)}
    elif len(shown) > 1:
        columns |= {part.folder or part.split: share_cells(part.frames_per_phase.tolist()) for part in shown}
    return "\n".join([*align(lines), "", *phase_lines(phase_names, columns, totals)])
