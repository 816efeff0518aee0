"""A folder of feature files: which files are in it, and whether they belong together.

Several videos of one patient read as one, segment after segment, without extracting them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.schema import CHANNEL_FIRST, CHANNEL_TIME, SUFFIX, Provenance
from spatialfeat.files import parse_json_object
from spatialfeat.names import natural_key, same_name_key

SHORT_HASH = 8
"""So many digits of a hash tell files apart for a person."""

_SHOWN = 200
"""A message shows so many characters of a value."""

_NAMED_FILES = 5
"""A message names so many files; more would bury the first."""


def read_features(path: Path | str, *, split: str | None = None, allow_mixed: bool = False) -> list[FeatureFile]:
    """Open a folder of feature files, or one file, as a list in numeric order of the video ids.

    Nothing but the headers is read yet. One file gives a list of one: use `FeatureFile(path)` for the file itself.

    Args:
        split: keep only the videos of this split.
        allow_mixed: see `open_feature_dir`.

    Raises:
        SpatialfeatError: no such path, a file that cannot be used, files that do not belong together (see
            `open_feature_dir`), or no video of that split.
    """
    path = Path(path)
    files = open_feature_dir(path, allow_mixed=allow_mixed) if path.is_dir() else [FeatureFile(path)]
    return files if split is None else of_split(files, split, path)


def of_split(files: Sequence[FeatureFile], split: str, place: Path | str) -> list[FeatureFile]:
    """The files of one split. Raises SpatialfeatError, naming `place`, if there are none."""
    chosen = [file for file in files if file.split == split]
    if not chosen:
        there = ", ".join(sorted({file.split for file in files}))
        raise SpatialfeatError(f"{place}: has no video of split {split} (there: {there}); choose one of these")
    return chosen


def list_feature_files(features_dir: Path) -> list[Path]:
    """The .h5 files of a folder in numeric order of their names. Hidden (unfinished) and other files are ignored.

    Raises:
        SpatialfeatError: there is no such folder, or no such file in it.
    """
    try:
        paths = [path for path in features_dir.iterdir() if path.suffix == SUFFIX and not path.name.startswith(".")]
    except FileNotFoundError as error:
        raise SpatialfeatError(f"{features_dir}: no such folder; make it with `spatialfeat extract`") from error
    except OSError as error:
        raise SpatialfeatError(f"{features_dir}: cannot be listed ({error.strerror}); pass a folder") from error
    if not paths:
        raise SpatialfeatError(
            f"{features_dir}: holds no feature file (*{SUFFIX}); make them with `spatialfeat extract`"
        )
    return sorted(paths, key=lambda path: (natural_key(path.stem), path.name))


def open_feature_dir(features_dir: Path, *, allow_mixed: bool = False) -> list[FeatureFile]:
    """Open all feature files of a folder, in numeric order of the video ids.

    Their provenances must agree in everything but the layout, which reading evens out. `allow_mixed` drops this check:
    features of different weights or preprocessing are then not comparable.

    Raises:
        SpatialfeatError: naming the files and what differs; also for a file that is not a feature file of this
            schema, and for a video that is there twice.
    """
    files = [FeatureFile(path) for path in list_feature_files(features_dir)]
    conflicts = repeated_videos(files)
    if not conflicts and not allow_mixed:
        conflicts = mixed_provenances(files)
    if conflicts:
        more = f" (and {len(conflicts) - _NAMED_FILES} more)" if len(conflicts) > _NAMED_FILES else ""
        sentences = "; ".join(conflict.sentence for conflict in conflicts[:_NAMED_FILES])
        raise SpatialfeatError(f"{features_dir}: {sentences}{more}; extract them again or move them away")
    return sorted(files, key=lambda file: natural_key(file.video_id))


class Conflict(NamedTuple):
    """A file that should not be used together with the others of its folder, and why, in one sentence."""

    path: Path
    sentence: str


def repeated_videos(files: Sequence[FeatureFile]) -> list[Conflict]:
    """A conflict for each file whose video an earlier file holds, also where it is written 1050_01 and 1050_1."""
    first: dict[tuple[object, ...], FeatureFile] = {}
    conflicts = []
    for file in files:
        known = first.setdefault(same_name_key(file.video_id), file)
        if known is not file:
            both = " and ".join(sorted((file.path.name, known.path.name), key=natural_key))
            conflicts.append(Conflict(file.path, f"{both} both hold video {file.video_id}"))
    return conflicts


def mixed_provenances(files: Sequence[FeatureFile]) -> list[Conflict]:
    """A conflict for each file that was made otherwise than most: what differs, there and in the others."""
    if not files:
        return []
    hidden = {file.is_pseudonymized: file for file in files}
    if len(hidden) == 2:
        other = hidden[False].path.name
        sentence = f"{hidden[True].path.name} was made with --pseudonymize, {other} without"
        return [Conflict(hidden[True].path, sentence)]
    usual = Counter(_comparable(file) for file in files).most_common(1)[0][0]
    example = next(file for file in files if _comparable(file) == usual)
    conflicts = []
    for file in files:
        differing = usual.differences(_comparable(file))
        if differing:
            values = ", ".join(
                f"{_name(field)} ({_both(field, file.provenance, example.provenance)})" for field in differing
            )
            sentence = f"{file.path.name} was made with other {values} than {example.path.name}"
            conflicts.append(Conflict(file.path, sentence))
    return conflicts


def _comparable(file: FeatureFile) -> Provenance:
    return replace(file.provenance, layout=CHANNEL_FIRST)


def _name(field: str) -> str:
    return field.replace("_sha256", "").replace("_", " ")


def _both(field: str, provenance: Provenance, usual: Provenance) -> str:
    """`bf16 against fp32`, and only what differs of the preprocessing."""
    value, usual_value = getattr(provenance, field), getattr(usual, field)
    if field == "weights_sha256":
        return f"{value[:SHORT_HASH]} against {usual_value[:SHORT_HASH]}"
    if field == "phase_names":
        return f"{', '.join(value)} against {', '.join(usual_value)}"
    if field == "preprocessing":
        return _both_preprocessings(value, usual_value)
    return f"{value} against {usual_value}"


def _both_preprocessings(text: str, usual_text: str) -> str:
    parts, usual_parts = parse_json_object(text), parse_json_object(usual_text)
    if parts is None or usual_parts is None:
        return f"{text[:_SHOWN]} against {usual_text[:_SHOWN]}"
    keys = [key for key in {**usual_parts, **parts} if parts.get(key) != usual_parts.get(key)]
    return ", ".join(f"{key} {parts.get(key)} against {usual_parts.get(key)}" for key in keys)


class FeatureReader(Protocol):
    """What FeatureFile and JoinedVideos have in common; see FeatureFile for shapes and errors."""

    @property
    def path(self) -> Path: ...
    @property
    def paths(self) -> tuple[Path, ...]: ...
    @property
    def video_id(self) -> str: ...
    @property
    def patient_id(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def is_pseudonymized(self) -> bool: ...
    @property
    def provenance(self) -> Provenance: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def num_phases(self) -> int: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def frame_ids(self) -> NDArray[np.str_]: ...
    @property
    def segments(self) -> NDArray[np.int64]: ...
    @property
    def frames(self) -> NDArray[np.int64]: ...
    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]: ...
    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


class JoinedVideos:
    """The videos of one patient as one video with the patient's id, in the order of their segments.

    Raises:
        SpatialfeatError: the videos are in different splits.
    """

    def __init__(self, files: Sequence[FeatureFile]) -> None:
        self._files = sorted(files, key=lambda file: (int(file.segments[0]), natural_key(file.video_id)))
        first = self._files[0]
        for file in self._files:
            if file.split != first.split:
                raise SpatialfeatError(
                    f"{file.path}: is in split {file.split}, but {first.path.name} of the same patient is in "
                    f"{first.split}; a patient can only be joined within one split"
                )
        self.paths = tuple(file.path for file in self._files)
        self._ends = np.cumsum([file.num_frames for file in self._files])
        self.path, self.split, self.provenance = first.path, first.split, first.provenance
        self.video_id = self.patient_id = first.patient_id
        self.is_pseudonymized = first.is_pseudonymized
        self.num_frames, self.num_phases, self.num_channels = int(self._ends[-1]), first.num_phases, first.num_channels

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.concatenate([file.labels for file in self._files])

    @property
    def frame_ids(self) -> NDArray[np.str_]:
        return np.concatenate([file.frame_ids for file in self._files])

    @property
    def segments(self) -> NDArray[np.int64]:
        return np.concatenate([file.segments for file in self._files])

    @property
    def frames(self) -> NDArray[np.int64]:
        return np.concatenate([file.frames for file in self._files])

    def features(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Features of the frames [start, stop) of the joined video."""
        return self._matrix(FeatureFile.features, start, stop, axes)

    def logits(self, start: int = 0, stop: int | None = None, *, axes: str = CHANNEL_TIME) -> NDArray[np.float32]:
        """Logits of the frames [start, stop) of the joined video."""
        return self._matrix(FeatureFile.logits, start, stop, axes)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _matrix(
        self, read: Callable[..., NDArray[np.float32]], start: int, stop: int | None, axes: str
    ) -> NDArray[np.float32]:
        stop = self.num_frames if stop is None else stop
        assert 0 <= start <= stop <= self.num_frames
        parts = []
        for file, end in zip(self._files, self._ends.tolist(), strict=True):
            offset = end - file.num_frames
            first, last = max(start - offset, 0), min(stop - offset, file.num_frames)
            if first < last:
                parts.append(read(file, first, last, axes=axes))
        return np.concatenate(parts, axis=1 if axes == CHANNEL_TIME else 0)


def join_patients(files: Sequence[FeatureFile]) -> list[FeatureReader]:
    """One reader per patient, in numeric order of the patients. `files` must belong together (`open_feature_dir`).

    Raises:
        SpatialfeatError: a patient in two splits, or written in two ways.
    """
    patients: dict[tuple[object, ...], list[FeatureFile]] = {}
    for file in files:
        known = patients.setdefault(same_name_key(file.patient_id), [])
        if known and known[0].patient_id != file.patient_id:
            raise SpatialfeatError(
                f"{file.path}: patient {file.patient_id} is the same as {known[0].patient_id} in "
                f"{known[0].path.name}, written differently; use one spelling and extract again"
            )
        known.append(file)
    return [
        JoinedVideos(videos)
        for videos in sorted(patients.values(), key=lambda videos: natural_key(videos[0].patient_id))
    ]
