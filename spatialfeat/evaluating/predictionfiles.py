"""Predictions as CSV files, ours or anybody's, brought into the order of one table of ground truth.

    img_id,true_label,predicted_label
    1050_1_000001,3,3

The id column is `img_id`, `frame_id` or `id`; the predicted phase `predicted_label`, `prediction` or `predicted`; the
true phase, which may be missing where another file has it, `true_label` or `label`. Other columns are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spatialfeat.config import DEFAULT_NUM_PHASES, PredictionsSource, check_phase_names, default_phase_names
from spatialfeat.data.frames import UNLABELLED, FrameTable, make_table, read_frames
from spatialfeat.data.tables import Rows, read_rows, refuse_repeated_columns
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluating.evaluationinput import EvaluationInput, FramePredictions, PredictionSet
from spatialfeat.scores.metrics import IntArray

ID_COLUMNS = ("img_id", "frame_id", "id")
PREDICTED_COLUMNS = ("predicted_label", "prediction", "predicted")
TRUTH_COLUMNS = ("true_label", "label")
SPLIT = "evaluation"
# With several sets, a set's name becomes a folder beside the other outputs: no separators, nothing hidden, no clash.
SAFE_NAME = r"[^\s./\\\x00-\x1f\x7f](?:[^/\\\x00-\x1f\x7f]{0,98}[^\s./\\\x00-\x1f\x7f])?"
OUTPUT_NAME = r"ribbons|.*\.(?:csv|html|json|png|svg)"
NAMED_IDS = 5
"""A message names so many ids; more would bury the first."""


@dataclass(frozen=True, eq=False)
class _PredictionFile:
    """One file's N rows. table.labels: its own ground truth, if has_truth. predicted: (N,) int64."""

    name: str
    table: FrameTable
    has_truth: bool
    predicted: IntArray


def read_prediction_files(
    source: PredictionsSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> EvaluationInput:
    """Read the files and bring their rows into the order of the ground truth: `source.csv`, or the first file that
    has a column of true phases.

    Args:
        num_classes: None means as many as there are names, or the specification's 7 without names.

    Raises:
        SpatialfeatError: with file, row and value: see `docs/evaluation.md` for what predictions must be.
    """
    if num_classes is None:
        num_classes = len(phase_names) if phase_names else DEFAULT_NUM_PHASES
    check_phase_names(phase_names, num_classes)
    paths = _named_paths(source.predictions)
    files = [_read_file(name, path, num_classes) for name, path in paths]
    truth = _ground_truth(source, files, num_classes)
    sets = []
    for file in files:
        rows = _rows_of(truth, file.table)
        if file.has_truth:
            _require_same_truth(truth, file.table, rows)
        sets.append(
            PredictionSet(name=file.name, parts=(FramePredictions(table=truth, predicted=file.predicted[rows]),))
        )
    return EvaluationInput(
        tables=(truth,),
        phase_names=phase_names or default_phase_names(num_classes),
        predict=lambda: tuple(sets),
        data=tuple(dict.fromkeys([*(path for _, path in paths), *([source.csv] if source.csv else [])])),
        notices=()
        if source.csv
        else (
            f"the true phases are those in {truth.source}: a frame that it leaves out is "
            "missed by nobody; pass --csv to check that all are there",
        ),
    )


def _named_paths(predictions: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, path) of each `PATH` or `NAME=PATH`. Names become folders, so they are safe and tell the sets apart."""
    named: dict[str, tuple[str, Path]] = {}
    for text in predictions:
        match = re.fullmatch(r"(?P<name>[^/=]+)=(?P<path>.+)", text)
        # A file whose own name holds "=" is that file.
        split = match is not None and not Path(text).exists()
        name, path = (match["name"], Path(match["path"])) if match and split else (Path(text).stem, Path(text))
        safe = re.fullmatch(SAFE_NAME, name) and not re.fullmatch(OUTPUT_NAME, name.casefold())
        if len(predictions) > 1 and not safe:
            raise SpatialfeatError(
                f"--predictions {text}: {name!r} cannot be the name of an output folder; write "
                "--predictions NAME=PATH with letters, digits, - and _"
            )
        known, known_path = named.setdefault(name.casefold(), (name, path))
        if known_path is not path:
            raise SpatialfeatError(
                f"--predictions {text}: {known_path} is called {known} already; "
                "give each file once, with a name of its own: --predictions NAME=PATH"
            )
    return list(named.values())


def _read_file(name: str, path: Path, num_phases: int) -> _PredictionFile:
    rows = read_rows(path, "img_id,true_label,predicted_label", [])
    rows = replace(rows, id_column=_one_column(rows, ID_COLUMNS, "ids"))
    predicted_column = _one_column(rows, PREDICTED_COLUMNS, "predicted phases")
    truth_column = _one_column(rows, TRUTH_COLUMNS, "true phases", required=False)
    predicted = rows.phases(predicted_column, num_phases, name=predicted_column)
    labels = rows.phases(truth_column, num_phases, also=UNLABELLED) if truth_column else None
    return _PredictionFile(name, make_table(rows, path.parent, SPLIT, labels), labels is not None, predicted)


def _one_column(rows: Rows, names: Sequence[str], content: str, *, required: bool = True) -> str:
    """The column of these names that the file has, "" if it has none and needs none."""
    path = rows.origin.path
    refuse_repeated_columns(path, rows.columns, names)
    there = [name for name in names if name in rows.columns]
    if len(there) > 1:
        raise SpatialfeatError(f"{path}: columns {' and '.join(there)} could both be the {content}; keep one")
    if not there and required:
        found = ", ".join(map(str, rows.columns.columns))
        raise SpatialfeatError(
            f"{path}: has no column of {content} (found: {found}); name it {', '.join(names[:-1])} or {names[-1]}"
        )
    return there[0] if there else ""


def _ground_truth(source: PredictionsSource, files: Sequence[_PredictionFile], num_phases: int) -> FrameTable:
    """The labelled frames that every file is compared with."""
    if source.csv is not None:
        truth = read_frames(source.csv, Path(), split=SPLIT, num_classes=num_phases, allow_unlabelled=True)
    else:
        with_truth = [file.table for file in files if file.has_truth]
        if not with_truth:
            raise SpatialfeatError(
                f"{files[0].table.source}: has no column of true phases ({' or '.join(TRUTH_COLUMNS)}) and no other "
                "file has; pass --csv, the CSV with columns id,label"
            )
        truth = with_truth[0]
    return truth


def _rows_of(truth: FrameTable, table: FrameTable) -> IntArray:
    """(N,) int64: the row of `table` that holds each frame of `truth`. Both must have the same frames."""
    row_of = {frame_id: row for row, frame_id in enumerate(table.ids.tolist())}
    known = set(truth.ids.tolist())
    lacking = [row for row, frame_id in enumerate(truth.ids.tolist()) if frame_id not in row_of]
    added = [row for frame_id, row in row_of.items() if frame_id not in known]
    problems = []
    if lacking:
        problems.append(f"lacks {_ids(truth, lacking)} of {truth.source}")
    if added:
        problems.append(f"has {_ids(table, added)} that {truth.source} has not")
    if problems:
        raise SpatialfeatError(f"{table.source}: {' and '.join(problems)}; predict exactly the same frames")
    return np.array([row_of[frame_id] for frame_id in truth.ids.tolist()], dtype=np.int64)


def _ids(table: FrameTable, rows: Sequence[int]) -> str:
    """`3 frames (1_1_4 in row 5, 1_1_5 in row 6, 1_1_6 in row 7)`."""
    numbers = table.origin.row_numbers
    assert numbers is not None, table.source
    named = ", ".join(f"{table.ids[row]} in row {numbers[row]}" for row in rows[:NAMED_IDS])
    more = ", ..." if len(rows) > NAMED_IDS else ""
    return f"{len(rows)} {'frame' if len(rows) == 1 else 'frames'} ({named}{more})"


def _require_same_truth(truth: FrameTable, table: FrameTable, rows: IntArray) -> None:
    """Refuse another true phase than `truth` has. rows: (N,) as `_rows_of` gives them."""
    differing = np.flatnonzero(table.labels[rows] != truth.labels)
    if len(differing):
        first = int(differing[0])
        row = int(rows[first])
        raise SpatialfeatError(
            f"{table.where(row)}: the true phase of {truth.ids[first]} is {table.labels[row]}, but "
            f"{truth.labels[first]} in {truth.where(first)}; {len(differing)} of {len(truth)} frames differ "
            f"({', '.join(truth.ids[differing[:NAMED_IDS]].tolist())}{', ...' if len(differing) > NAMED_IDS else ''}); "
            "use one ground truth"
        )
