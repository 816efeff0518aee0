"""Transition graphs for relaxed metrics: the word `cholec80`, or a small CSV of which phase may follow which.

```csv
from,to
Preparation,Dissection
Dissection,2
```

Phases are written as names or as numbers from 0. Where a phase's name is a number, the name is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import CHOLEC80_GRAPH
from spatialfeat.data.tables import Rows, read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.relaxed import CHOLEC80, TransitionGraph

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
