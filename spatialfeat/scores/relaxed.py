"""Relaxed-boundary metrics: errors near a phase transition are forgiven if they respect the order of phases.

Introduced with Cholec80 (M2CAI 2016 challenge); defined here as in Funke et al., "Metrics Matter in Surgical
Phase Recognition", 2023, arXiv 2305.13961. In each ground-truth segment of phase c, with t = min(window,
segment length): a wrong prediction p in the first t frames is forgiven if p -> c is an allowed transition,
one in the last t frames if c -> p is. With r = right or forgiven and U_c the frames where label or prediction
is c:

    accuracy = sum r / T                       jaccard_c   = sum_{U_c} r / |U_c|
    precision_c = sum_{U_c} r / |p = c|        recall_c    = sum_{U_c} r / |y = c|

Precision and recall can exceed 1 and are clipped to 1, per video and phase. NaN where the divisor is 0; the
strategies for missing phases apply as in `metrics.missing_phases`.

Numbers can differ from Cholec80's published MATLAB script: it looks for early transitions in a segment's last
t frames but then clears the errors of the first t. Here both ends are treated as defined above.

Transition graphs for relaxed metrics: the word `cholec80`, or a small CSV of which phase may follow which.

```csv
from,to
Preparation,Dissection
Dissection,2
```

Phases are written as names or as numbers from 0. Where a phase's name is a number, the name is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from spatialfeat.config import CHOLEC80_GRAPH
from spatialfeat.data.tables import Rows, read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.metrics import FloatArray, IntArray, ratio, scored_frames
from spatialfeat.scores.segments import find_segments

DEFAULT_WINDOW_S = 10.0


@dataclass(frozen=True)
class TransitionGraph:
    """Which phase may follow which: `pairs` of (from, to), phases numbered from 0.

    Raises SpatialfeatError for a phase outside 0..num_phases-1 and for a transition from a phase to itself.
    """

    num_phases: int
    pairs: frozenset[tuple[int, int]]

    def __post_init__(self) -> None:
        for before, after in sorted(self.pairs):
            if not (0 <= before < self.num_phases and 0 <= after < self.num_phases):
                raise SpatialfeatError(
                    f"transition {before} -> {after}: phases are 0..{self.num_phases - 1}; correct it"
                )
            if before == after:
                raise SpatialfeatError(
                    f"transition {before} -> {after}: a phase needs no transition to itself; remove it"
                )

    @classmethod
    def from_pairs(cls, num_phases: int, pairs: Iterable[tuple[int, int]]) -> TransitionGraph:
        """Build a graph from (from, to) pairs in any order; repeats are harmless."""
        return cls(num_phases, frozenset((int(before), int(after)) for before, after in pairs))

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(C, C) bool: [from, to] is True for an allowed transition."""
        table = np.zeros((self.num_phases, self.num_phases), dtype=np.bool_)
        for before, after in self.pairs:
            table[before, after] = True
        return table


# Cholec80's evaluation tolerates, for its phases 1..7, p - y of -1 (phases 1-5) or -1, -2 (6-7) at a
# segment's start and +1 (1-3) or +1, +2 (4-7) at its end, where such a phase exists. Read as transitions both
# say the same.
CHOLEC80 = TransitionGraph.from_pairs(7, [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), (4, 6), (5, 6)])


@dataclass(frozen=True, eq=False, kw_only=True)
class RelaxedScores:
    """Relaxed scores of one video: accuracy, and per phase (C,) float64.

    support: (C,) int64 ground-truth frames.
    """

    accuracy: float
    precision: FloatArray
    recall: FloatArray
    jaccard: FloatArray
    support: IntArray


def window_frames(window_s: float, sampling_fps: float) -> int:
    """Window in frames: window_s (seconds) x sampling_fps (scored frames per second), rounded half up.

    Raises SpatialfeatError if the window is negative, the rate not positive, or either not finite.
    """
    if not (np.isfinite(window_s) and window_s >= 0):
        raise SpatialfeatError(f"relaxed window is {window_s} s; give seconds, 0 or more")
    if not (np.isfinite(sampling_fps) and sampling_fps > 0):
        raise SpatialfeatError(f"sampling rate is {sampling_fps} frames per second; give a number above 0")
    return int(np.floor(window_s * sampling_fps + 0.5))


def forgiven_frames(
    labels: IntArray, predictions: IntArray, graph: TransitionGraph, window: int
) -> npt.NDArray[np.bool_]:
    """Mark the forgiven errors.

    labels, predictions: (T,) int64 in 0..C-1, all labelled. window: frames. Returns (T,) bool.
    """
    assert window >= 0, window
    segments = find_segments(labels)
    lengths = segments.ends - segments.starts
    from_start = np.arange(len(labels)) - np.repeat(segments.starts, lengths)
    to_end = np.repeat(segments.ends, lengths) - 1 - np.arange(len(labels))
    allowed = graph.allowed()
    late = (from_start < window) & allowed[predictions, labels]
    early = (to_end < window) & allowed[labels, predictions]
    return late | early


def relaxed_scores(
    labels: npt.ArrayLike,
    predictions: npt.ArrayLike,
    graph: TransitionGraph,
    *,
    sampling_fps: float,
    window_s: float = DEFAULT_WINDOW_S,
) -> RelaxedScores:
    """Score one video with relaxed boundaries.

    labels, predictions: (T,) integers; the phases are those of the graph. sampling_fps: the rate of these
    frames, not the camera's. Everything is NaN without a labelled frame.
    Raises SpatialfeatError as `metrics.scored_frames` and `window_frames`.
    """
    phases = np.arange(graph.num_phases)[:, None]
    truth, predicted = scored_frames(labels, predictions, graph.num_phases)
    window = window_frames(window_s, sampling_fps)
    right = (truth == predicted) | forgiven_frames(truth, predicted, graph, window)
    is_truth, is_predicted = truth == phases, predicted == phases
    union = is_truth | is_predicted
    hits = (union & right).sum(axis=1)
    return RelaxedScores(
        accuracy=float(ratio(right.sum(), len(truth))),
        precision=np.minimum(ratio(hits, is_predicted.sum(axis=1)), 1.0),
        recall=np.minimum(ratio(hits, is_truth.sum(axis=1)), 1.0),
        jaccard=ratio(hits, union.sum(axis=1)),
        support=is_truth.sum(axis=1).astype(np.int64),
    )


CHOLEC80_PHASES = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)


def relaxed_graph(relaxed: str, phase_names: Sequence[str]) -> TransitionGraph:
    """The graph that `--relaxed` names: Cholec80's, or the one in a CSV.

    Raises:
        SpatialfeatError: Cholec80's graph for another number of phases, or as `read_transitions`.
    """
    if relaxed != CHOLEC80_GRAPH:
        return read_transitions(Path(relaxed), phase_names)
    if len(phase_names) != CHOLEC80.num_phases:
        raise SpatialfeatError(
            f"--relaxed {CHOLEC80_GRAPH}: its graph has {CHOLEC80.num_phases} phases, these data have "
            f"{len(phase_names)}; write your own as --relaxed GRAPH.csv with the columns from,to"
        )
    return CHOLEC80


def cholec80_notice(relaxed: str | None, phase_names: Sequence[str]) -> str | None:
    """What to say when Cholec80's graph is used on phases that have other names."""
    others = [name.replace("_", "").replace(" ", "").casefold() for name in phase_names]
    if relaxed != CHOLEC80_GRAPH or others in (
        [name.casefold() for name in CHOLEC80_PHASES],
        [f"phase{phase}" for phase in range(len(phase_names))],
    ):
        return None
    return (
        f"--relaxed {CHOLEC80_GRAPH} is made for the phases {', '.join(CHOLEC80_PHASES)}; these are called "
        f"{', '.join(phase_names)}: relaxed scores mean little unless they are the same phases in the same order"
    )


def read_transitions(path: Path, phase_names: Sequence[str]) -> TransitionGraph:
    """Read a graph of these phases (C names, phase 0 first). A pair may be listed twice, in any order.

    Raises:
        SpatialfeatError: not a CSV with the columns from,to, an unknown phase, or a phase that follows itself, with
            the row.
    """
    rows = read_rows(path, "from,to", ["from", "to"], unit="allowed transition")
    before, after = (_phases(rows, column, phase_names) for column in ("from", "to"))
    rows.refuse("from", before == after, "{value} follows itself", "remove it: a phase may always last")
    return TransitionGraph.from_pairs(len(phase_names), zip(before.tolist(), after.tolist(), strict=True))


def _phases(rows: Rows, column: str, phase_names: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: the phase that each row of the column names."""
    numbers = {str(phase): phase for phase in range(len(phase_names))}
    numbers |= {name: phase for phase, name in enumerate(phase_names)}
    found = rows.columns[column].str.strip().map(numbers)
    rows.refuse(column, found.isna().to_numpy(dtype=bool), f"column {column}: {{value!r}} is no phase",
                f"write 0..{len(phase_names) - 1} or one of {', '.join(phase_names)}")  # fmt: skip
    return found.to_numpy(dtype=np.int64)
