"""Result files of temporal models, one per video, matched frame by frame with the feature files they were made from.

A file is named by its video (or by its patient, where patients were exported) and is one of these:

* `VIDEO` or `VIDEO.txt` with `### Frame level recognition: ###` and, on the next line, the phase of every frame: what
  MS-TCN, MS-TCN++, ASFormer and DiffAct write.
* `VIDEO.txt` or `VIDEO.csv` without that line: one phase a line, or one line of them; or a table of scores.
* `VIDEO.csv` with a column `predicted_label`, `prediction` or `predicted`, and perhaps one of ids.
* `VIDEO.npy`, or `VIDEO/pred.npy` as LTContext writes it: phases (T,), or scores (C, T) or (T, C).

A phase is written as its name or its number. What could be read in two ways is refused.

A CSV of all videos, as `predictions` reads it, may also name its frames `PATIENT_idxN`: the N-th of the patient from 0,
as the temporal study of the pituitary data does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spatialfeat.config import ResultsSource
from spatialfeat.console import count_text, name_some
from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.data.ids import IdRule
from spatialfeat.data.tables import read_rows, require_columns
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import patients_of
from spatialfeat.files import read_text
from spatialfeat.names import ID_BREAKS, PHASE_BREAKS, breaks_in, file_name, without_breaks
from spatialfeat.scores.metrics import BoolArray, FloatArray, IntArray, softmax
from spatialfeat.scores.predictions import (
    ID_COLUMNS,
    PREDICTED_COLUMNS,
    FramePredictions,
    OpenedSource,
    PredictionFile,
    feature_facts,
    feature_predictions,
    feature_table,
    named_paths,
    network_name,
    one_column,
    open_features,
)

SUFFIXES = (".txt", ".npy", ".csv")
RECOGNITION = re.compile(r"###\s*frame level recognition\W*", re.IGNORECASE)
FOLDER_RESULT = "pred.npy"
DROPPED = "export --unlabelled drop"

_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.0*)?(?:[eE][+-]?\d{1,2})?")
_SEPARATORS = r"[\s,;]+"
_POSITION = r"^(?P<patient>.+)_idx(?P<position>[0-9]{1,9})$"


def read_results(source: ResultsSource, num_classes: int | None, phase_names: tuple[str, ...] | None) -> OpenedSource:
    """Read labels and logits of the feature files, and what each of `source.predictions` says of their frames.

    The first set is what the stored logits say, if there are any; then come the folders of result files, and CSVs as
    `read_prediction_files` reads them.

    Raises:
        SpatialfeatError: with the place: a video without a result, another number of frames, what is no phase.
    """
    files = open_features(source, num_classes, phase_names)
    table = feature_table(source.place, files)
    has_logits, network = files[0].has_logits, network_name(files[0].provenance.backbone)
    paths = named_paths(source.predictions, num_others=int(has_logits))
    for name, path in paths.items():
        if name.casefold() == network.casefold():
            raise SpatialfeatError(
                f"--predictions {name}={path}: {network} is what the feature files themselves say; choose another name"
            )
    sets = {network: [feature_predictions(source.place, files, table)]} if has_logits else {}
    reader = _Reader(files, table, phase_names)
    if not has_logits:
        reader.notices.append(
            f"the files in {source.place} have no logits, as the weights that made them have no classifier; there "
            f"is no {network} to compare with"
        )
    for name, path in paths.items():
        sets[name] = [(reader.read if path.is_dir() else reader.read_csv)(path, name)]
    facts = feature_facts(source, files)
    return OpenedSource(
        tables=(table,),
        phase_names=phase_names or files[0].phase_names,
        predict=lambda: sets,
        stored_fps=files[0].fps,
        data=tuple(reader.paths),
        **facts | {"notices": (*facts.get("notices", ()), *reader.notices)},
    )


@dataclass(frozen=True, eq=False)
class _Sequence:
    """A video, or a patient with all segments in order. rows: (T,), where its frames are in the table."""

    name: str
    rows: IntArray


@dataclass(frozen=True, eq=False)
class _Content:
    """What one file holds. values: (T,) texts or whole numbers, or scores in two dimensions. ids: (T,), where given."""

    path: Path
    values: npt.NDArray[Any]
    ids: npt.NDArray[np.str_] | None = None


class _Reader:
    """Reads folders of result files, and CSVs, of the same videos.

    notices: what the user should know of what was read so far. paths: the files that were read.
    """

    def __init__(self, files: Sequence[FeatureFile], table: FrameTable, given_names: tuple[str, ...] | None) -> None:
        """given_names: of the phases in CSVs, where they are not the stored ones, which exports write."""
        self._files, self._table = files, table
        self._given_names = given_names
        self._phase_names = files[0].phase_names
        ends = list(accumulate(len(file) for file in files))
        self._rows = {file: np.arange(end - len(file), end) for file, end in zip(files, ends, strict=True)}
        self.notices: list[str] = []
        self.paths: list[Path] = []

    def read(self, folder: Path, name: str) -> FramePredictions:
        """The predictions of one folder. name: of the set, for notices."""
        found = _list_results(folder)
        pairs = self._match(folder, found, name)
        contents = [_read_content(path) for _, path in pairs]
        self.paths += [path for _, path in pairs]
        texts = [content.values for content in contents if content.values.dtype.kind == "U"]
        words = set(np.unique(np.concatenate(texts)).tolist()) if texts else set()
        written = _written_names(self._phase_names, words, PHASE_BREAKS, folder)
        phase_of = {written[name]: phase for phase, name in enumerate(self._phase_names) if name in written}
        predicted = np.full(len(self._table), UNLABELLED, dtype=np.int64)
        scores = np.zeros((len(self._table), len(self._phase_names)), dtype=np.float32)
        dropped: dict[str, bool] = {}
        strange: set[str] = set()
        for (sequence, _), content in zip(pairs, contents, strict=True):
            values = self._by_frame(content)
            rows = self._rows_of_frames(sequence, content.path, len(values), dropped)
            if content.ids is not None:
                rows = self._rows_of_ids(content, rows)
            if values.ndim == 2:
                predicted[rows], scores[rows] = values.argmax(axis=1), values
            else:
                predicted[rows], odd = self._phases(content.path, values, rows, phase_of)
                strange |= odd
        self._notice(folder, name, dropped, strange)
        if any(content.values.ndim == 1 for content in contents):
            return FramePredictions(self._table, predicted)
        known: BoolArray = predicted != UNLABELLED
        probabilities = np.full_like(scores, 1 / scores.shape[1])
        probabilities[known] = _probabilities(scores[known].astype(np.float64))
        return FramePredictions(self._table, predicted, probabilities)

    def read_csv(self, path: Path, name: str) -> FramePredictions:
        """The predictions of a CSV of all videos."""
        self.paths.append(path)
        names = self._given_names or self._phase_names
        rows = read_rows(path, "frame_id,true_label,predicted_label", [])
        id_column = next((column for column in ID_COLUMNS if column in rows.columns), None)
        fields = rows.columns[id_column].str.extract(_POSITION) if id_column else None
        if fields is None or fields.isna().to_numpy().any():
            rule = IdRule.parse(self._files[0].provenance.id_rule)
            file = PredictionFile.read(path, len(self._phase_names), names, rule)
            found = file.rows_of(self._table)
            if (found < 0).any():
                count = count_text(int((found < 0).sum()), "frame")
                self.notices.append(f"{name}: {path} has no prediction for {count} without a label")
            return FramePredictions(self._table, np.where(found < 0, UNLABELLED, file.predicted[found]))
        require_columns(path, rows.columns, ["true_label", "predicted_label"], "frame_id,true_label,predicted_label")
        num_phases, patients = len(self._phase_names), self._patients()
        values = rows.phases("predicted_label", num_phases, phase_names=names, name="predicted_label")
        truth = rows.phases("true_label", num_phases, phase_names=names, unlabelled=UNLABELLED)
        unknown = sorted(set(fields["patient"]) - {patient.name for patient in patients})
        if unknown:
            raise SpatialfeatError(
                f"{path}: patient {name_some(unknown)} is not in {self._table.source}; check --split"
            )
        predicted = np.full(len(self._table), UNLABELLED, dtype=np.int64)
        dropped: dict[str, bool] = {}
        for patient in patients:
            order = np.flatnonzero((fields["patient"] == patient.name).to_numpy())
            positions = fields["position"].to_numpy()[order].astype(np.int64)
            order = order[np.argsort(positions, kind="stable")]
            if len(set(positions.tolist())) < len(positions):
                raise SpatialfeatError(
                    f"{path}: a frame of patient {patient.name} is there twice, as windows overlap; pass "
                    "predictions_tcn_framewise.csv, which has every frame once"
                )
            if not len(order) and not self._lacking([patient], ()):
                continue
            if not len(order) or positions.max() != len(order) - 1:
                lack = f"{len(order)} of {count_text(len(patient.rows), 'frame')}"
                raise SpatialfeatError(
                    f"{path}: has {lack} of patient {patient.name}; the study predicts no patient that is shorter than "
                    "its window: lower window_size there"
                )
            frames = self._rows_of_frames(patient, path, len(order), dropped)
            labels = self._table.labels
            wrong = np.flatnonzero(truth[order] != labels[frames])
            if len(wrong):
                raise SpatialfeatError(
                    f"{rows.where(int(order[wrong[0]]))}: the true phase is {truth[order[wrong[0]]]}, but "
                    f"{labels[frames[wrong[0]]]} for {self._table.ids[frames[wrong[0]]]} in {self._table.source}; "
                    f"{len(wrong)} of {len(order)} frames of patient {patient.name} differ"
                )
            predicted[frames] = values[order]
        self._notice(path, name, dropped, ())
        return FramePredictions(self._table, predicted)

    def _match(self, folder: Path, found: Mapping[str, list[Path]], name: str) -> list[tuple[_Sequence, Path]]:
        """Every sequence that has a label, or a result, with its file."""
        videos = [_Sequence(file.video_id, self._rows[file]) for file in self._files]
        stems = _stems([video.name for video in videos], found, folder)
        chosen, kind = videos, "video"
        if self._lacking(videos, stems):
            of_patients = _stems(sorted({file.patient_id for file in self._files}), found, folder)
            if len(of_patients) > len(stems):
                chosen, stems, kind = self._patients(), of_patients, "patient"
        lacking = self._lacking(chosen, stems)
        if lacking:
            there = f"found: {name_some(found)}" if found else "it holds none at all"
            below = next((path for path in sorted(folder.iterdir()) if path.is_dir() and _list_results(path)), None)
            if not found and below is not None:
                there += f"; those in its folder {below.name}: pass {below}"
            raise SpatialfeatError(
                f"{folder}: has no result file of {kind} {name_some(lacking)} ({there}); predict these too, or choose "
                "with --split the videos that were predicted"
            )
        twice = [stem for stem in stems.values() if len(found[stem]) > 1]
        if twice:
            both = " and ".join(path.name for path in found[twice[0]])
            raise SpatialfeatError(f"{folder}: {both} are both the result of one {kind}; keep one of them")
        if kind == "patient":
            self.notices.append(f"{name}: {folder} holds a result per patient, all segments in order")
        others = sorted(found.keys() - set(stems.values()))
        if others:
            count = count_text(len(others), "other file")
            self.notices.append(f"{name}: {count} in {folder} left unread: {name_some(others)}")
        return [(sequence, found[stems[sequence.name]][0]) for sequence in chosen if sequence.name in stems]

    def _patients(self) -> list[_Sequence]:
        return [
            _Sequence(group[0].patient_id, np.concatenate([self._rows[file] for file in group]))
            for group in patients_of(self._files)
        ]

    def _lacking(self, sequences: Iterable[_Sequence], stems: Collection[str]) -> list[str]:
        """Those without a result. A wholly unlabelled one needs none: an export without such frames leaves it out."""
        labels = self._table.labels
        return [
            sequence.name
            for sequence in sequences
            if sequence.name not in stems and (labels[sequence.rows] != UNLABELLED).any()
        ]

    def _by_frame(self, content: _Content) -> npt.NDArray[Any]:
        """Phases as they are, scores as (T, C) float32. Raises where it is not clear which axis is time."""
        values, path, num_phases = content.values, content.path, len(self._phase_names)
        if values.ndim == 1:
            return values
        shape = f"an array of shape {tuple(values.shape)}"
        if values.ndim != 2 or num_phases not in values.shape:
            raise SpatialfeatError(
                f"{path}: is {shape}; save one phase per frame, (T,), or scores of the {num_phases} phases, "
                f"({num_phases}, T) or (T, {num_phases})"
            )
        if values.shape[0] == values.shape[1]:
            raise SpatialfeatError(
                f"{path}: is {shape}, as many frames as phases, so that either axis could be time; save one phase per "
                "frame, (T,)"
            )
        if not np.isfinite(values).all():
            raise SpatialfeatError(f"{path}: holds a score that is not finite; predict the video again")
        return values.T if values.shape[0] == num_phases else values

    def _rows_of_frames(self, sequence: _Sequence, path: Path, num_frames: int, dropped: dict[str, bool]) -> IntArray:
        """Where the file's frames are in the table: all of the video, or exactly those with a label.

        dropped: where the two differ, gets {name: whether frames without a label are left out}.
        """
        rows = sequence.rows
        labelled: IntArray = rows[self._table.labels[rows] != UNLABELLED]
        for frames in (rows, labelled):
            if num_frames == len(frames):
                if len(labelled) < len(rows):
                    dropped[sequence.name] = frames is labelled
                return frames
        also = f", {len(labelled)} of them labelled" if len(labelled) < len(rows) else ""
        raise SpatialfeatError(
            f"{path}: has {count_text(num_frames, 'frame')}, but {sequence.name} in "
            f"{self._table.source} has {count_text(len(rows), 'frame')}{also}; predict from an export of these features"
        )

    def _rows_of_ids(self, content: _Content, rows: IntArray) -> IntArray:
        """The rows in the order of the file's ids."""
        assert content.ids is not None
        row_of = dict(zip(self._table.ids[rows].tolist(), rows.tolist(), strict=True))
        unknown = [frame_id for frame_id in content.ids.tolist() if frame_id not in row_of]
        if unknown or len(set(content.ids.tolist())) < len(rows):
            what = f"frame {unknown[0]} is not in {self._table.source}" if unknown else "a frame is there twice"
            raise SpatialfeatError(f"{content.path}: {what}; predict exactly the same frames")
        return np.array([row_of[frame_id] for frame_id in content.ids.tolist()], dtype=np.int64)

    def _phases(
        self, path: Path, values: npt.NDArray[Any], rows: IntArray, phase_of: Mapping[str, int]
    ) -> tuple[IntArray, set[str]]:
        """(T,) int64, and what else stands at frames without a label: the background of an export that had one."""
        words, index = np.unique(values.astype(str), return_inverse=True)
        numbers = {word: round(float(word)) for word in words.tolist() if _is_whole(word)}
        known: Mapping[str, int] = phase_of
        if len(numbers) == len(words):
            for word, number in numbers.items():
                if phase_of.get(word, number) != number:
                    raise SpatialfeatError(
                        f"{path}: {word} could be phase {number} or the phase with the name {word}, which is "
                        f"{phase_of[word]}; save names that are no numbers, or scores"
                    )
            known = {word: number for word, number in numbers.items() if 0 <= number < len(self._phase_names)}
        phases = np.array([known.get(word, UNLABELLED) for word in words.tolist()], dtype=np.int64)[index.reshape(-1)]
        labels = self._table.labels[rows]
        wrong = np.flatnonzero((phases == UNLABELLED) & (labels != UNLABELLED))
        if len(wrong):
            raise SpatialfeatError(
                f"{path}: {values[wrong[0]]} for frame {self._table.ids[rows[wrong[0]]]} is no phase "
                f"({count_text(len(wrong), 'such frame')}; phases: {', '.join(self._phase_names)}); a model that was "
                f"trained with a phase for frames without a label must not choose it for others: train it on an "
                f"{DROPPED}, or save the best of the real phases"
            )
        odd = {word for word in words.tolist() if word not in known}
        return phases, odd

    def _notice(self, folder: Path, name: str, dropped: Mapping[str, bool], strange: Collection[str]) -> None:
        if len(set(dropped.values())) > 1:
            short = name_some(video for video, is_dropped in dropped.items() if is_dropped)
            whole = name_some(video for video, is_dropped in dropped.items() if not is_dropped)
            raise SpatialfeatError(
                f"{folder}: holds as many frames as have a label for {short}, but all frames of {whole}; predict all "
                "from one export"
            )
        if any(dropped.values()):
            self.notices.append(
                f"{name}: {folder} holds as many frames as have a label ({DROPPED}), and they are matched so; the "
                "others have no prediction"
            )
        if len(strange) > 1:
            raise SpatialfeatError(
                f"{folder}: {name_some(sorted(strange))} are no phases ({', '.join(self._phase_names)})"
            )
        for word in strange:
            self.notices.append(f"{name}: {word}, which is no phase, is predicted for frames without a label only")


def _probabilities(scores: FloatArray) -> FloatArray:
    """(N, C): the scores themselves where all rows are probabilities, else their softmax."""
    are_probabilities = (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3)
    return scores / scores.sum(axis=1, keepdims=True) if are_probabilities else softmax(scores)


def _list_results(folder: Path) -> dict[str, list[Path]]:
    """{name without ending: the files of that name}."""
    found: dict[str, list[Path]] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SpatialfeatError(
            f"{folder}: cannot be listed ({error.strerror}); pass a folder of result files"
        ) from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if (path / FOLDER_RESULT).is_file():
                found.setdefault(path.name, []).append(path / FOLDER_RESULT)
        elif path.is_file():
            suffix = path.suffix if path.suffix in SUFFIXES else ""
            found.setdefault(path.name.removesuffix(suffix), []).append(path)
    return found


def _stems(ids: Iterable[str], found: Collection[str], folder: Path) -> dict[str, str]:
    """{id of a video or patient: how its file is called, without ending}, for those that have one."""
    name_of = {file_name(text): text for text in ids}
    return {name_of[name]: stem for name, stem in _written_names(list(name_of), found, ID_BREAKS, folder).items()}


def _written_names(names: Sequence[str], written: Collection[str], breaks: str, folder: Path) -> dict[str, str]:
    """{name: how it is written}, for the names that are among `written`.

    An export may have put something for characters that its format does not allow, the same in all names: whatever
    lets most names be found. Raises SpatialfeatError if two ways would.
    """
    ways = {"": {name: name for name in names}}
    for pattern in filter(None, (_pattern(name, breaks) for name in names)):
        for put in {match["put"] for text in written if (match := re.fullmatch(pattern, text))} - ways.keys():
            ways[put] = {name: without_breaks(name, breaks, put) for name in names}
    found = [
        {name: text for name, text in way.items() if text in written}
        for way in ways.values()
        if len(set(way.values())) == len(names)
    ]
    best, *others = sorted(found, key=len, reverse=True)
    for other in others:
        if len(other) == len(best) and other != best:
            name = next(name for name in names if other.get(name) != best.get(name))
            both = " or ".join(sorted(way[name] for way in (best, other) if name in way))
            raise SpatialfeatError(f"{folder}: it is not clear which stands for {name!r}: {both}; keep one of them")
    return best


def _pattern(name: str, breaks: str) -> str:
    """A regular expression of the name with one text, the group `put`, for all characters that are cut; "" for none."""
    cut = breaks_in(name, breaks)
    parts, first = [], True
    for sign in name:
        if sign not in cut:
            parts.append(re.escape(sign))
        else:
            parts.append("(?P<put>.+?)" if first else "(?P=put)")
            first = False
    return "" if first else "".join(parts)


def _read_content(path: Path) -> _Content:
    if path.suffix == ".npy":
        return _Content(path, _read_npy(path))
    lines = [line.strip() for line in read_text(path).replace("\r\n", "\n").rstrip().split("\n")]
    for number, line in enumerate(lines):
        if RECOGNITION.fullmatch(line):
            words = " ".join(lines[number + 1 : number + 2]).split()
            return _Content(path, _texts(path, words))
    headers = [cell.strip().strip('"') for cell in re.split("[,;\t]", lines[0])]
    if any(cell in PREDICTED_COLUMNS for cell in headers):
        return _read_table(path)
    return _Content(path, _read_lines(path, lines))


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("an archive of several")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise SpatialfeatError(f"{path}: is no array that NumPy can load ({error}); save it with np.save") from error
    if values.dtype.kind == "S":
        values = values.astype(str)
    if values.dtype.kind not in "Uiuf" or (values.dtype.kind == "U" and values.ndim != 1):
        shown = f"{values.dtype} {values.shape}"
        raise SpatialfeatError(f"{path}: holds {shown}, neither phases nor scores; save one phase per frame, (T,)")
    if values.ndim == 1 and values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.round(values)).all()):
            raise SpatialfeatError(f"{path}: one number per frame that is not whole is no phase; save phases or scores")
        values = values.astype(np.int64)
    return np.asarray(values if values.ndim < 2 or values.dtype.kind == "U" else values.astype(np.float32))


def _read_table(path: Path) -> _Content:
    """A CSV with a header."""
    rows = read_rows(path, "img_id,predicted_label", [])
    words = rows.columns[one_column(rows, PREDICTED_COLUMNS, "predicted phases")].str.strip().tolist()
    id_column = one_column(rows, ID_COLUMNS, "ids", required=False)
    ids = rows.columns[id_column].to_numpy(dtype=str) if id_column else None
    return _Content(path, _texts(path, words), ids)


def _read_lines(path: Path, lines: Sequence[str]) -> npt.NDArray[Any]:
    """One phase a line, one line of phases, or a table of scores."""
    if any(line.startswith("###") for line in lines):
        raise SpatialfeatError(f"{path}: has a line ### ... but none `### Frame level recognition: ###`; save that one")
    cells = [re.split(_SEPARATORS, line) for line in lines]
    if len(lines) == 1:
        return _texts(path, cells[0])
    numbers = [_numbers(row) for row in cells]
    if len(cells[0]) > 1 and all(row is not None and len(row) == len(cells[0]) for row in numbers):
        return np.array(numbers, dtype=np.float32)
    return _texts(path, lines)


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _texts(path: Path, words: Sequence[str]) -> npt.NDArray[np.str_]:
    if not words or "" in words:
        where = f"line {words.index('') + 1} is empty" if words and len(words) > 1 else "holds no phase"
        raise SpatialfeatError(f"{path}: {where}; write one phase per frame")
    return np.array(words, dtype=str)


def _is_whole(word: str) -> bool:
    return _WHOLE_NUMBER.fullmatch(word) is not None and float(word) == round(float(word))
