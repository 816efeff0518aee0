"""What one evaluation knows: the data that tables, pictures and the report are made of.

What an evaluation starts from, wherever the predictions come from: frames, predicted phases, names, rates.

Predictions from a folder of feature files: the phase with the highest logit. No image is decoded.

Predictions as CSV files, ours or anybody's, brought into the order of one table of ground truth.

    img_id,true_label,predicted_label
    1050_1_000001,3,3

The id column is `img_id`, `frame_id` or `id`; the predicted phase `predicted_label`, `prediction` or `predicted`; the
true phase, which may be missing where another file has it, `true_label` or `label`. Other columns are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import (
    DEFAULT_NUM_PHASES,
    FeaturesSource,
    PredictionsSource,
    check_phase_names,
    default_phase_names,
)
from spatialfeat.data.frames import UNLABELLED, FrameTable, group_videos, make_table, read_frames
from spatialfeat.data.images import ImageFolder
from spatialfeat.data.tables import Origin, Rows, read_rows, refuse_repeated_columns
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import read_features
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import write_csv
from spatialfeat.scores.calibration import softmax
from spatialfeat.scores.metrics import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedVideo:
    """One video's T frames, in time order: by segment, then by frame number.

    frame_ids: (T,) texts. segments, frame_numbers: (T,) int64, parsed from the ids; frame number / fps = seconds
    within a segment. labels: (T,) int64, -100 where unlabelled. predictions: (T,) int64, 0..C-1.
    probabilities: (T, C) float32, rows that sum to 1, or None if the predictions came without.
    """

    video_id: str
    patient_id: str
    frame_ids: npt.NDArray[np.str_]
    segments: IntArray
    frame_numbers: IntArray
    labels: IntArray
    predictions: IntArray
    probabilities: npt.NDArray[np.float32] | None

    def __post_init__(self) -> None:
        num_frames = len(self.frame_ids)
        for name in ("segments", "frame_numbers", "labels", "predictions"):
            assert getattr(self, name).shape == (num_frames,), (name, getattr(self, name).shape, num_frames)
        assert self.probabilities is None or len(self.probabilities) == num_frames, self.video_id


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One set of predictions, scored.

    name: what tells it from others, for example the stem of the predictions file. metrics: the content of
    metrics.json (`summary.summarize`), calibration included when there are probabilities. per_video: rows of
    `scoring.per_video_rows`. Several evaluations of one run hold the same videos with the same labels.
    """

    name: str
    videos: tuple[EvaluatedVideo, ...]
    metrics: dict[str, Any]
    per_video: list[dict[str, Any]]


NETWORK_NAME = "ResNet-50"
"""What pictures and tables call the predictions that come from weights or feature files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FramePredictions:
    """Predicted phases of the N frames of a table, in its order.

    predicted: (N,) int64, 0..C-1. probabilities: (N, C) float32, or None if the predictions came without.
    """

    table: FrameTable
    predicted: IntArray
    probabilities: npt.NDArray[np.float32] | None = None

    @property
    def ids(self) -> npt.NDArray[Any]:
        return self.table.ids

    @property
    def labels(self) -> IntArray:
        return self.table.labels

    @classmethod
    def of_logits(cls, table: FrameTable, logits: npt.NDArray[np.float32]) -> FramePredictions:
        """The phases with the highest logits, and their probabilities. logits: (N, C) float32, in the table's order."""
        predicted = logits.argmax(axis=1).astype(np.int64)
        return cls(table=table, predicted=predicted, probabilities=softmax(logits).astype(np.float32))


def write_predictions_csv(path: Path, predictions: FramePredictions) -> None:
    """The specification's `img_id,true_label,predicted_label`, one line per row of the CSV, in its order."""
    columns = {"img_id": predictions.ids, "true_label": predictions.labels, "predicted_label": predictions.predicted}
    write_csv(path, pd.DataFrame(columns))


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionSet:
    """One set of predictions under the name that tells it from others; the parts are of different videos."""

    name: str
    parts: tuple[FramePredictions, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationInput:
    """A source that has been opened and checked.

    tables: the frames that are scored; every set is of these. phase_names: C names. stored_fps: frames per second of
    the frame numbers, where the source knows it. data: files that `run.json` gets hashes of. facts: more for
    `run.json`. notices: what a reader of the scores should know. predict: gives the sets; long work, if there is any,
    happens there.
    """

    tables: tuple[FrameTable, ...]
    phase_names: tuple[str, ...]
    predict: Callable[[], tuple[PredictionSet, ...]]
    stored_fps: float | None = None
    data: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def evaluated_videos(predictions: PredictionSet, group_by: str) -> tuple[EvaluatedVideo, ...]:
    """The set's frames as videos (or whole patients), each in time order, in numeric order of their ids."""
    part_of = {id(part.table): part for part in predictions.parts}
    videos = []
    for video in group_videos([part.table for part in predictions.parts], group_by):
        table, rows, part = video.table, video.rows, part_of[id(video.table)]
        videos.append(
            EvaluatedVideo(
                video_id=video.video_id,
                patient_id=video.patient_id,
                frame_ids=table.ids[rows],
                segments=table.segments[rows],
                frame_numbers=table.frame_numbers[rows],
                labels=table.labels[rows],
                predictions=part.predicted[rows],
                probabilities=None if part.probabilities is None else part.probabilities[rows],
            )
        )
    return tuple(videos)


@dataclass(frozen=True)
class Rates:
    """sampling_fps: scored frames per second, None if nobody said. numbering_fps: frame number / it = seconds."""

    sampling_fps: float | None
    numbering_fps: float


def usual_step(videos: Iterable[EvaluatedVideo]) -> float:
    """The median difference of successive frame numbers, over all videos (the lower of two); 1 if none has two frames.

    One number for all, so that a video of a single frame gets a sensible length too.
    """
    steps = [np.diff(video.frame_numbers)[np.diff(video.segments) == 0] for video in videos]
    found = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
    return float(np.sort(found)[(len(found) - 1) // 2]) if len(found) else 1.0


def find_rates(videos: Sequence[EvaluatedVideo], *, given_fps: float | None, stored_fps: float | None) -> Rates:
    """Tell the rate of the frames from the rate of their numbers.

    Every 25th frame of a 25 fps video is one frame per second whose numbers run at 25 per second: the usual step
    between neighbouring numbers stands between the two.

    Args:
        given_fps: scored frames per second, as the user says.
        stored_fps: frame numbers per second, as feature files say; `given_fps` goes before it.
    """
    step = usual_step(videos)
    if given_fps is None and stored_fps is not None:
        return Rates(stored_fps / step, stored_fps)
    return Rates(given_fps, (1.0 if given_fps is None else given_fps) * step)


ALL_SPLITS = "all"
AGAIN = "extract the video again"


def read_feature_predictions(
    source: FeaturesSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> EvaluationInput:
    """Read labels and logits of the folder's files of one split, or of all.

    Args:
        num_classes: what the caller expects; None accepts what the files hold.
        phase_names: names to use instead of the stored ones.

    Raises:
        SpatialfeatError: files that cannot be read, do not belong together or hold impossible values, no file of that
            split, or another number of phases.
    """
    split = None if source.split == ALL_SPLITS else source.split
    files = read_features(source.features, split=split)
    num_phases = files[0].num_phases
    if num_classes not in (None, num_phases):
        raise SpatialfeatError(
            f"{source.features}: its files have {num_phases} phases, not {num_classes}; leave --num-classes out"
        )
    check_phase_names(phase_names, num_phases)
    parts = tuple(
        _joined(source.features, [_read_feature_file(file) for file in files if file.split == name])
        for name in dict.fromkeys(file.split for file in files)
    )
    return EvaluationInput(
        tables=tuple(part.table for part in parts),
        phase_names=phase_names or files[0].phase_names,
        predict=lambda: (PredictionSet(name=NETWORK_NAME, parts=parts),),
        stored_fps=files[0].fps,
        facts={
            "feature_files": [file.path.name for file in files],
            "weights_sha256": files[0].provenance.weights_sha256,
        },
    )


def _joined(features_dir: Path, parts: Sequence[FramePredictions]) -> FramePredictions:
    """All files of one split as one table, so that the videos of a patient can be put together."""

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part.table, name) for part in parts])

    table = FrameTable(
        origin=Origin(features_dir, None),
        images=ImageFolder(features_dir),
        split=parts[0].table.split,
        ids=column("ids"),
        labels=column("labels"),
        videos=column("videos"),
        patients=column("patients"),
        segments=column("segments"),
        frame_numbers=column("frame_numbers"),
    )
    return FramePredictions(
        table=table,
        predicted=np.concatenate([part.predicted for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts if part.probabilities is not None]),
    )


def _read_feature_file(file: FeatureFile) -> FramePredictions:
    with file:
        ids, labels, logits = file.frame_ids, file.labels, file.logits(axes=TIME_CHANNEL)
    rows = Rows(Origin(file.path, None), pd.DataFrame({"id": ids.astype(object), "label": labels}))
    outside: NDArray[np.bool_] = ((labels < 0) | (labels >= file.num_phases)) & (labels != UNLABELLED)
    rows.refuse("label", outside, f"label {{value}} is outside 0..{file.num_phases - 1}", AGAIN)
    finite = np.asarray(np.isfinite(logits).all(axis=1), dtype=bool)
    rows.refuse("id", ~finite, "its logits are not finite", AGAIN)
    # The ids are parsed, not the stored video: a file of a whole patient holds several videos.
    table = make_table(rows, file.path.parent, file.split, labels)
    return FramePredictions.of_logits(table, logits)


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
