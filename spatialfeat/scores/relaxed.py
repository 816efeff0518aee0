"""Relaxed scores: errors near a change of phase are forgiven if they respect the order of the phases.

Introduced with Cholec80 (M2CAI 2016 challenge); defined here as in Funke et al., "Metrics Matter in Surgical Phase
Recognition", 2023, arXiv 2305.13961. In each true run of phase c, with t = min(window, length of the run): a wrong
prediction p in the first t frames is forgiven if p -> c is an allowed transition, one in the last t frames if c -> p
is. With r = right or forgiven and U_c the frames where label or prediction is c:

    accuracy = sum r / T                       jaccard_c   = sum_{U_c} r / |U_c|
    precision_c = sum_{U_c} r / |p = c|        recall_c    = sum_{U_c} r / |y = c|

Precision and recall can exceed 1 and are clipped to 1, per video and phase. NaN where the divisor is 0; the strategies
for missing phases apply as in `metrics.missing_phases`.

Numbers can differ from Cholec80's published MATLAB script: it looks for early transitions in a run's last t frames but
then clears the errors of the first t. Here both ends are treated as defined above.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from spatialfeat.data.tables import Rows, read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.phases import CHOLEC80_PHASES
from spatialfeat.scores.metrics import BoolArray, IntArray, PhaseScores, ratio
from spatialfeat.scores.segmental import find_runs

DEFAULT_WINDOW_S = 10.0

CHOLEC80_GRAPH = "cholec80"
"""The word that stands for the built-in transition graph in `--relaxed`."""


def transition_graph(num_phases: int, pairs: Iterable[tuple[int, int]]) -> BoolArray:
    """(C, C) bool, [from, to]: which phase may follow which."""
    graph = np.zeros((num_phases, num_phases), dtype=np.bool_)
    for before, after in pairs:
        graph[before, after] = True
    return graph


# Cholec80's evaluation tolerates, for its phases 1..7, p - y of -1 (phases 1-5) or -1, -2 (6-7) at a run's start and +1
# (1-3) or +1, +2 (4-7) at its end, where such a phase exists. Read as transitions both say the same.
CHOLEC80 = transition_graph(7, [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), (4, 6), (5, 6)])


def window_frames(window_s: float, sampling_fps: float) -> int:
    """The window in frames: seconds times scored frames per second, rounded half up."""
    return int(np.floor(window_s * sampling_fps + 0.5))


def forgiven_frames(truth: IntArray, predicted: IntArray, graph: BoolArray, window: int) -> BoolArray:
    """Which errors are forgiven: (N,) bool. truth, predicted: (N,) int64, all labelled. window: frames."""
    runs = find_runs(truth)
    lengths = runs.ends - runs.starts
    from_start = np.arange(len(truth)) - np.repeat(runs.starts, lengths)
    to_end = np.repeat(runs.ends, lengths) - 1 - np.arange(len(truth))
    late = (from_start < window) & graph[predicted, truth]
    early = (to_end < window) & graph[truth, predicted]
    return late | early


def relaxed_scores(truth: IntArray, predicted: IntArray, graph: BoolArray, window: int) -> tuple[float, PhaseScores]:
    """Accuracy, and precision, recall and jaccard of each phase (C,), of one video.

    truth, predicted: (N,) int64, N >= 1, all labelled; the phases are those of the graph. window: frames.
    """
    phases = np.arange(len(graph))[:, None]
    right = (truth == predicted) | forgiven_frames(truth, predicted, graph, window)
    is_truth, is_predicted = truth == phases, predicted == phases
    union = is_truth | is_predicted
    hits = (union & right).sum(axis=1)
    return float(ratio(right.sum(), len(truth))), {
        "precision": np.minimum(ratio(hits, is_predicted.sum(axis=1)), 1.0),
        "recall": np.minimum(ratio(hits, is_truth.sum(axis=1)), 1.0),
        "jaccard": ratio(hits, union.sum(axis=1)),
    }


def relaxed_graph(relaxed: str, phase_names: Sequence[str]) -> BoolArray:
    """The graph of these phases (C names, phase 0 first) that `--relaxed` names: Cholec80's, or the one in a CSV.

    The CSV has one allowed transition per row:

        from,to
        Preparation,Dissection
        Dissection,2

    Phases are written as names or as numbers from 0; where a phase's name is a number, the name is meant. A pair may be
    listed twice.

    Raises:
        SpatialfeatError: Cholec80's graph for another number of phases; not a CSV with the columns from,to, an unknown
            phase, or a phase that follows itself, with the row.
    """
    if relaxed != CHOLEC80_GRAPH:
        rows = read_rows(Path(relaxed), "from,to", ["from", "to"], unit="allowed transition")
        before, after = (_phases(rows, column, phase_names) for column in ("from", "to"))
        rows.refuse("from", before == after, "{value} follows itself", "remove it: a phase may always last")
        return transition_graph(len(phase_names), zip(before.tolist(), after.tolist(), strict=True))
    if len(phase_names) != len(CHOLEC80):
        raise SpatialfeatError(
            f"--relaxed {CHOLEC80_GRAPH}: its graph has {len(CHOLEC80)} phases, these data have {len(phase_names)}; "
            "write your own as --relaxed GRAPH.csv with the columns from,to"
        )
    return CHOLEC80


def cholec80_notice(relaxed: str | None, phase_names: Sequence[str]) -> str | None:
    """What to say when Cholec80's graph is used on phases that have other names."""
    names = [name.replace("_", "").replace(" ", "").casefold() for name in phase_names]
    known = [name.casefold() for name in CHOLEC80_PHASES]
    numbered = [f"phase{phase}" for phase in range(len(phase_names))]
    if relaxed != CHOLEC80_GRAPH or names in (known, numbered):
        return None
    return (
        f"--relaxed {CHOLEC80_GRAPH} is made for the phases {', '.join(CHOLEC80_PHASES)}; these are called "
        f"{', '.join(phase_names)}: relaxed scores mean little unless they are the same phases in the same order"
    )


def _phases(rows: Rows, column: str, phase_names: Sequence[str]) -> IntArray:
    """(N,) int64: the phase that each row of the column names."""
    numbers = {str(phase): phase for phase in range(len(phase_names))}
    numbers |= {name: phase for phase, name in enumerate(phase_names)}
    found = rows.columns[column].str.strip().map(numbers)
    rows.refuse(
        column,
        found.isna().to_numpy(dtype=bool),
        f"column {column}: {{value!r}} is no phase",
        f"write 0..{len(phase_names) - 1} or one of {', '.join(phase_names)}",
    )
    return found.to_numpy(dtype=np.int64)
