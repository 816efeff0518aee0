"""Predicted phases, and where they come from: logits of a network, feature files, or anybody's CSV files.

Whatever the source, predictions arrive as `FramePredictions`, one per table of frames, and are scored as
`EvaluatedVideo`, one per video or patient. A predictions file looks so:

    img_id,true_label,predicted_label
    1050_1_000001,3,3

The id column is `img_id`, `frame_id` or `id`; the predicted phase `predicted_label`, `prediction` or `predicted`; the
true phase, which may be missing where another file has it, `true_label` or `label`. A column `patient` is read as in
the CSVs of frames; others are ignored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from spatialfeat.config import FeaturesSource, PredictionsSource, WeightsSource
from spatialfeat.console import count_text, name_some
from spatialfeat.data.frames import (
    UNLABELLED,
    UNNAMED_SPLIT,
    FrameTable,
    group_videos,
    list_frames,
    make_table,
    read_frames,
)
from spatialfeat.data.ids import IdRule
from spatialfeat.data.patients import show_reading
from spatialfeat.data.tables import Origin, Rows, read_rows, refuse_repeated_columns
from spatialfeat.encoders import RESNET50_NAME
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import AGAIN, FeatureFile
from spatialfeat.features.folder import read_features, read_folds, seen_in_training
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.files import read_json_object, write_csv
from spatialfeat.network.inference import TableInference
from spatialfeat.network.weights import (
    MORE_CLASSES,
    checkpoint_of,
    described_id_rule,
    description_path,
    warn_of_many_classes,
)
from spatialfeat.phases import DEFAULT_NUM_PHASES, check_phase_names, default_phase_names
from spatialfeat.scores.metrics import IntArray, softmax

ALL_SPLITS = "all"

ID_COLUMNS = ("img_id", "frame_id", "id")
PREDICTED_COLUMNS = ("predicted_label", "prediction", "predicted")
TRUTH_COLUMNS = ("true_label", "label")
SPLIT = "evaluation"
# With several sets, a set's name becomes a folder beside the other outputs: no separators, nothing hidden, no clash.
SAFE_NAME = r"[^\s./\\\x00-\x1f\x7f](?:[^/\\\x00-\x1f\x7f]{0,98}[^\s./\\\x00-\x1f\x7f])?"
OUTPUT_NAME = r"ribbons|.*\.(?:csv|html|json|png|svg)"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FramePredictions:
    """Predicted phases of the N frames of a table, in its order.

    predicted: (N,) int64, 0..C-1; -100 where a frame without a label has no prediction. probabilities: (N, C) float32,
    or None if the predictions came without.
    """

    table: FrameTable
    predicted: IntArray
    probabilities: npt.NDArray[np.float32] | None = None

    @classmethod
    def of_logits(cls, table: FrameTable, logits: npt.NDArray[np.float32]) -> FramePredictions:
        """The phases with the highest logits, and their probabilities. logits: (N, C) float32, finite."""
        return cls(table, logits.argmax(axis=1).astype(np.int64), softmax(logits).astype(np.float32))

    def write_csv(self, path: Path) -> None:
        """The specification's `img_id,true_label,predicted_label`, one line per row of the table, in its order.

        Where a column named the patients, which the ids then do not show, a fourth one, `patient`, follows.
        """
        columns = {"img_id": self.table.ids, "true_label": self.table.labels, "predicted_label": self.predicted}
        if self.table.patients_given:
            columns["patient"] = self.table.patients
        write_csv(path, pd.DataFrame(columns))


PredictionSets: TypeAlias = Mapping[str, Sequence[FramePredictions]]
"""Sets of predictions by name. The parts of a set are of different videos; all sets are of the same frames."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedVideo:
    """One video's (or patient's) T frames, in time order: by segment, then by frame number.

    frame_ids: (T,) texts. segments, frame_numbers: (T,) int64, parsed from the ids; frame number / fps = seconds
    within a segment. labels: (T,) int64, -100 where unlabelled. predictions: (T,) int64, 0..C-1; -100 where a frame
    without a label has no prediction. probabilities: (T, C) float32, rows that sum to 1, or None if the predictions
    came without.
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

    @property
    def num_labelled(self) -> int:
        return int((self.labels != UNLABELLED).sum())


def evaluated_videos(parts: Sequence[FramePredictions], group_by: str = "video") -> tuple[EvaluatedVideo, ...]:
    """The frames of one set of predictions as videos (or patients), in numeric order of their ids."""
    part_of = {id(part.table): part for part in parts}
    videos = []
    for video in group_videos([part.table for part in parts], group_by):
        table, rows, part = video.table, video.rows, part_of[id(video.table)]
        videos.append(
            EvaluatedVideo(
                video_id=video.video_id,
                patient_id=video.patient_id,
                frame_ids=table.ids[rows],
                segments=video.segments,
                frame_numbers=table.frame_numbers[rows],
                labels=table.labels[rows],
                predictions=part.predicted[rows],
                probabilities=None if part.probabilities is None else part.probabilities[rows],
            )
        )
    return tuple(videos)


def usual_step(videos: Iterable[EvaluatedVideo]) -> float:
    """The median difference of successive frame numbers, over all videos (the lower of two); 1 if none has two frames.

    One number for all, so that a video of a single frame gets a sensible length too.
    """
    steps = [np.diff(video.frame_numbers)[np.diff(video.segments) == 0] for video in videos]
    found = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
    return float(np.sort(found)[(len(found) - 1) // 2]) if len(found) else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedSource:
    """A source of predictions that has been opened and checked.

    tables: the frames that are scored. phase_names: C names. predict: gives the sets of predictions; long work, if
    there is any, happens there. stored_fps: frames per second of the frame numbers, where the source knows it. data:
    files that `run.json` gets hashes of. facts: more for `run.json`, and facts_after: what `predict` adds to them.
    notices: what a reader of the scores should know; warning: why not to believe them. folds: of a cross-validation,
    what `metrics.json` says of each: where its features are, by which weights, and of which videos.
    """

    tables: tuple[FrameTable, ...]
    phase_names: tuple[str, ...]
    predict: Callable[[], PredictionSets]
    stored_fps: float | None = None
    data: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    facts_after: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    warning: str = ""
    folds: tuple[dict[str, Any], ...] = ()


def network_name(backbone: str) -> str:
    """What pictures, tables and folders call the predictions of weights or feature files of this backbone."""
    return "ResNet-50" if backbone == RESNET50_NAME else backbone.replace(":", "-")


def open_weights(
    source: WeightsSource, num_classes: int | None, phase_names: tuple[str, ...] | None, *, to: str
) -> OpenedSource:
    """A weights file, and the frames of `source.csv` or, without one, of the folder, whose images are looked at.

    Args:
        to: the command, which `evaluate` needs labels for.

    Raises:
        SpatialfeatError: weights, CSV, device, cache or an image at fault.
    """
    id_rule = IdRule.given(source.id_form, source.id_pattern, lambda: described_id_rule(source.weights))
    # Before the weights, which take seconds.
    table = None if source.csv else list_frames(source.img_dir, split=UNNAMED_SPLIT, id_rule=id_rule)
    checkpoint = checkpoint_of(source, num_classes=num_classes, phase_names=phase_names, csv=source.csv)
    scored = to == "evaluate"
    if table is None:
        assert source.csv is not None
        table = read_frames(
            source.csv,
            source.img_dir,
            split=SPLIT if scored else UNNAMED_SPLIT,
            id_rule=id_rule,
            num_classes=checkpoint.num_classes,
            phase_names=checkpoint.phase_names,
            labels_required=scored,
            more_classes=MORE_CLASSES,
        )
    if not scored:  # Ids that were scored before were shown then.
        show_reading([table])
    warn_of_many_classes(checkpoint, [table])
    inference = TableInference(checkpoint, table, source)  # Last of the checks: it takes seconds, the others do not.
    epoch = read_json_object(description_path(source.weights)).get("epoch")

    def predict() -> PredictionSets:
        frames = count_text(len(table), "frame")
        logger.info("%s: predicting %s on %s", table.source, frames, inference.arithmetic)
        return {network_name(checkpoint.backbone.name): [FramePredictions.of_logits(table, inference.logits(to))]}

    return OpenedSource(
        tables=(table,),
        phase_names=checkpoint.phase_names,
        predict=predict,
        data=(source.csv,) if source.csv else (),
        facts=inference.facts | ({} if epoch is None else {"weights_epoch": epoch}),
        facts_after=inference.facts_after,
    )


def read_feature_predictions(
    source: FeaturesSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> OpenedSource:
    """Read labels and logits of the folder's files of one split, or of all. No image is decoded.

    Args:
        num_classes: what the caller expects; None accepts what the files hold.
        phase_names: names to use instead of the stored ones.

    Raises:
        SpatialfeatError: files that cannot be read, do not belong together or hold impossible values, no file of that
            split, or another number of phases.
    """
    files = open_features(source, num_classes, phase_names)
    for file in files:
        file.require_logits("predictions come from them")
    parts = [
        feature_predictions(source.place, [file for file in files if file.split == split])
        for split in dict.fromkeys(file.split for file in files)
    ]
    return OpenedSource(
        tables=tuple(part.table for part in parts),
        phase_names=phase_names or files[0].phase_names,
        predict=lambda: {network_name(files[0].provenance.backbone): parts},
        stored_fps=files[0].fps,
        **feature_facts(source, files),
    )


def open_features(
    source: FeaturesSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> list[FeatureFile]:
    """The files of one split, or of all, in numeric order of their videos: see `read_feature_predictions`."""
    if len(source.folders) == 1:
        files = read_features(source.folders[0], split=None if source.split == ALL_SPLITS else source.split)
    else:
        files = read_folds(source.folders, source.split)
    num_phases = files[0].num_phases
    if num_classes not in (None, num_phases):
        raise SpatialfeatError(
            f"{source.place}: its files have {num_phases} phases, not {num_classes}; leave --num-classes out"
        )
    check_phase_names(phase_names, num_phases)
    return files


def feature_facts(source: FeaturesSource, files: Sequence[FeatureFile]) -> dict[str, Any]:
    """What an `OpenedSource` says of feature files."""
    warning = seen_in_training(files)
    remedy = "the scores to publish are those of split test"
    said: dict[str, Any] = {"warning": f"{warning}; {remedy}"} if warning else {}
    if len(source.folders) == 1:
        sha256 = files[0].provenance.weights_sha256
        return said | {"facts": {"feature_files": [file.path.name for file in files], "weights_sha256": sha256}}
    folds = []
    for folder in source.folders:
        of_fold = [file for file in files if folder in (file.path, file.path.parent)]
        folds.append({
            "features": str(folder),
            "weights_sha256": of_fold[0].provenance.weights_sha256,
            "videos": [file.video_id for file in of_fold],
        })  # fmt: skip
    num_weights = len({fold["weights_sha256"] for fold in folds})
    notice = (
        f"cross-validation: the videos of split {source.split} in {len(folds)} folders are scored together, each as "
        f"the network of its folder sees it ({count_text(num_weights, 'network')})"
    )
    return said | {"facts": {"folds": folds}, "folds": tuple(folds), "notices": (notice,)}


def feature_table(features_dir: Path, files: Sequence[FeatureFile]) -> FrameTable:
    """The frames of all files as one table, file after file, so that the videos of a patient can be put together."""
    tables = [_frames_of(file) for file in files]
    names = ("ids", "labels", "videos", "patients", "segments", "frame_numbers")
    columns: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    return replace(tables[0], origin=Origin(features_dir, None), **columns)


def feature_predictions(
    features_dir: Path, files: Sequence[FeatureFile], table: FrameTable | None = None
) -> FramePredictions:
    """What the stored logits predict. table: `feature_table` of the same files, if the caller has it already."""
    logits = [_logits_of(file) for file in files]
    return FramePredictions.of_logits(table or feature_table(features_dir, files), np.concatenate(logits))


def _frames_of(file: FeatureFile) -> FrameTable:
    """The file's T frames."""
    with file:
        ids, labels = file.frame_ids, file.phases()
    rows = Rows(Origin(file.path, None), pd.DataFrame({"id": ids.astype(object), "patient": file.patient_id}))
    # The ids are parsed, not the stored video: a file of a whole patient holds several videos.
    rule = IdRule.parse(file.provenance.id_rule)
    return make_table(rows, file.path.parent, file.split, labels, id_rule=rule)


def _logits_of(file: FeatureFile) -> npt.NDArray[np.float32]:
    """(T, C) float32."""
    with file:
        logits = file.logits(axes=TIME_CHANNEL)
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            raise SpatialfeatError(f"{file.path}: {file.frame_ids[wrong[0]]}: its logits are not finite; {AGAIN}")
    return logits


def read_prediction_files(
    source: PredictionsSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> OpenedSource:
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
    paths = named_paths(source.predictions)
    for name, path in paths.items():
        if path.is_dir():
            raise SpatialfeatError(
                f"--predictions {name}={path}: is a folder; result files, one per video, are matched with feature "
                "files: pass --features, the folder of these (of a cross-validation one per fold: repeat it)"
            )
    rule = IdRule.given(source.id_form, source.id_pattern)
    files = {name: PredictionFile.read(path, num_classes, phase_names, rule) for name, path in paths.items()}
    if source.csv is not None:
        truth = read_frames(
            source.csv, Path(), split=SPLIT, id_rule=rule, num_classes=num_classes, phase_names=phase_names
        )
    else:
        found = [file.table for file in files.values() if file.has_truth]
        if not found:
            raise SpatialfeatError(
                f"{next(iter(paths.values()))}: has no column of true phases ({' or '.join(TRUTH_COLUMNS)}) and no "
                "other file has; pass --csv, the CSV with columns id,label"
            )
        truth = found[0]
    rows = {name: file.rows_of(truth) for name, file in files.items()}
    # Frames without a true phase count nowhere: a program may have left them out.
    predicted = np.all([found >= 0 for found in rows.values()], axis=0)
    if not predicted.all():
        count = count_text(int((~predicted).sum()), "unlabelled frame")
        logger.info("%s of %s not predicted by all files: left out", count, truth.source)
    truth = truth.take(predicted)
    sets = {name: [FramePredictions(truth, file.predicted[rows[name][predicted]])] for name, file in files.items()}
    return OpenedSource(
        tables=(truth,),
        phase_names=phase_names or default_phase_names(num_classes),
        predict=lambda: sets,
        data=tuple(dict.fromkeys([*paths.values(), *([source.csv] if source.csv else [])])),
    )


def named_paths(predictions: Sequence[str], num_others: int = 0) -> dict[str, Path]:
    """{name: path} of each `PATH` or `NAME=PATH`. Names of several sets become folders, so must be safe and differ.

    num_others: so many sets stand beside these.
    """
    named: dict[str, tuple[str, Path]] = {}
    for text in predictions:
        match = re.fullmatch(r"(?P<name>[^/=]+)=(?P<path>.+)", text)
        # A file whose own name holds "=" is that file.
        if match is None or Path(text).exists():
            name, path = Path(text).stem, Path(text)
        else:
            name, path = match["name"], Path(match["path"])
        safe = re.fullmatch(SAFE_NAME, name) and not re.fullmatch(OUTPUT_NAME, name.casefold())
        if len(predictions) + num_others > 1 and not safe:
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
    return dict(named.values())


@dataclass(frozen=True, eq=False)
class PredictionFile:
    """One file's N rows. table.labels: its own ground truth, if has_truth. predicted: (N,) int64."""

    table: FrameTable
    has_truth: bool
    predicted: IntArray

    @classmethod
    def read(cls, path: Path, num_phases: int, phase_names: tuple[str, ...] | None, id_rule: IdRule) -> PredictionFile:
        rows = read_rows(path, "img_id,true_label,predicted_label", [])
        rows = replace(rows, id_column=one_column(rows, ID_COLUMNS, "ids"))
        predicted_column = one_column(rows, PREDICTED_COLUMNS, "predicted phases")
        truth_column = one_column(rows, TRUTH_COLUMNS, "true phases", required=False)
        predicted = rows.phases(predicted_column, num_phases, phase_names=phase_names, name=predicted_column)
        labels = None
        if truth_column:
            labels = rows.phases(truth_column, num_phases, phase_names=phase_names, unlabelled=UNLABELLED)
        return cls(make_table(rows, path.parent, SPLIT, labels, id_rule=id_rule), labels is not None, predicted)

    def rows_of(self, truth: FrameTable) -> IntArray:
        """(M,) int64: the row that holds each of the M frames of `truth`, -1 for an unlabelled one that is not there.

        Raises:
            SpatialfeatError: another frame that only one of the two has, or another true phase than `truth` has.
        """
        table = self.table
        row_of = {frame_id: row for row, frame_id in enumerate(table.ids.tolist())}
        ids = truth.ids.tolist()
        rows = np.array([row_of.get(frame_id, -1) for frame_id in ids], dtype=np.int64)
        lacking = np.flatnonzero((rows < 0) & (truth.labels != UNLABELLED)).tolist()
        added = [row_of[frame_id] for frame_id in row_of.keys() - set(ids)]
        problems = []
        if lacking:
            problems.append(f"lacks {_ids_text(truth, lacking)} of {truth.source}")
        if added:
            problems.append(f"has {_ids_text(table, sorted(added))} that {truth.source} has not")
        if problems:
            raise SpatialfeatError(f"{table.source}: {' and '.join(problems)}; predict exactly the same frames")
        differs = (rows >= 0) & (table.labels[rows] != truth.labels)
        differing = np.flatnonzero(differs).tolist() if self.has_truth else []
        if differing:
            first = differing[0]
            row = int(rows[first])
            raise SpatialfeatError(
                f"{table.where(row)}: the true phase of {truth.ids[first]} is {table.labels[row]}, but "
                f"{truth.labels[first]} in {truth.where(first)}; {len(differing)} of {len(truth)} frames differ "
                f"({name_some(truth.ids[differing])}); use one ground truth"
            )
        return rows


def one_column(rows: Rows, names: Sequence[str], content: str, *, required: bool = True) -> str:
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


def _ids_text(table: FrameTable, rows: Sequence[int]) -> str:
    """`3 frames (1_1_4 in row 5, 1_1_5 in row 6, 1_1_6 in row 7)`; without rows where feature files are the table."""
    numbers = table.origin.row_numbers
    named = name_some(f"{table.ids[row]}{'' if numbers is None else f' in row {numbers[row]}'}" for row in rows)
    return f"{count_text(len(rows), 'frame')} ({named})"
