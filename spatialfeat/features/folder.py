"""A folder of feature files: which files are in it, and whether they belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from spatialfeat.console import count_text
from spatialfeat.encoders import NOT_FINE_TUNED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.schema import CHANNEL_FIRST, SUFFIX, WEIGHTS_ORIGIN, Provenance
from spatialfeat.files import parse_json_object
from spatialfeat.names import natural_key, same_name_key

SHORT_HASH = 8
"""So many digits of a hash are enough for a person to distinguish files."""

SEEN_SPLITS = ("train", "val")
"""The splits that a network has seen: it was trained on the one, and its epoch chosen by the other."""

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


def read_folds(folders: Sequence[Path], split: str) -> list[FeatureFile]:
    """The files of one split in several folders, one per fold of a cross-validation, in numeric order of the video ids.

    For scores only, not for training: the weights may differ from folder to folder, and nothing else. Each video and
    each patient must be in one folder's files only, and those weights must not have been trained on that patient.

    Raises:
        SpatialfeatError: see `read_features`; files of different folders that do not fit; a patient of that split in
            two folders, or whom other files, of the same weights, have in train or val.
    """
    tested: list[tuple[int, FeatureFile]] = []
    seen: dict[object, FeatureFile] = {}
    for fold, folder in enumerate(folders):
        found = read_features(folder)
        tested += [(fold, file) for file in of_split(found, split, folder)]
        for file in found:
            if _is_seen(file):
                seen.setdefault((file.provenance.weights_sha256, same_name_key(file.patient_id)), file)
    of_patient: dict[tuple[object, ...], tuple[int, FeatureFile]] = {}
    for fold, file in tested:
        first_fold, first = of_patient.setdefault(same_name_key(file.patient_id), (fold, file))
        if first_fold != fold:
            what = "the same video" if same_name_key(first.video_id) == same_name_key(file.video_id) else "one patient"
            raise SpatialfeatError(
                f"{file.path} and {first.path}: are {what}, of split {split} in both folders; in a cross-validation "
                "each patient is tested once: pass each folder once, or extract the folds that `spatialfeat split` made"
            )
        known = seen.get((file.provenance.weights_sha256, same_name_key(file.patient_id)))
        if known is not None and split not in SEEN_SPLITS:
            raise SpatialfeatError(
                f"{file.path}: is of split {split}, but {known.path}, made by the same weights, has the patient in "
                f"split {known.split}: the network has seen the answers; extract each fold with its own weights"
            )
    files = [file for _, file in tested]
    conflicts = mixed_provenances(files, across_folds=True)
    if conflicts:
        raise SpatialfeatError(
            f"{conflicts[0].sentence}; folds may differ in their weights only: extract them again, all alike"
        )
    return sorted(files, key=lambda file: natural_key(file.video_id))


def _is_seen(file: FeatureFile) -> bool:
    return file.split in SEEN_SPLITS and not file.attributes.get(WEIGHTS_ORIGIN, "").endswith(NOT_FINE_TUNED)


def seen_in_training(files: Iterable[FeatureFile]) -> str:
    """What to say of files whose network was trained on them, or chosen by them: "" if there are none."""
    seen = [file for file in files if _is_seen(file)]
    if not seen:
        return ""
    are = "is" if len(seen) == 1 else "are"
    return (
        f"{count_text(len(seen), 'video')} of split train or val {are} now tested on: if the network was trained on "
        "them, scores will be too good"
    )


def of_split(files: Sequence[FeatureFile], split: str, place: Path | str) -> list[FeatureFile]:
    """The files of one split. Raises SpatialfeatError, naming `place`, if there are none."""
    chosen = [file for file in files if file.split == split]
    if not chosen:
        there = ", ".join(sorted({file.split for file in files}))
        raise SpatialfeatError(f"{place}: has no video of split {split} (there: {there}); choose one of these")
    return chosen


def ordered_splits(splits: Iterable[str]) -> list[str]:
    """Each split once: train, val and test first, then others by name."""
    usual = ("train", "val", "test")
    return sorted(set(splits), key=lambda split: (usual.index(split) if split in usual else len(usual), split))


def patients_of(files: Sequence[FeatureFile]) -> list[list[FeatureFile]]:
    """The files of each patient in the order of their segments; the patients in numeric order.

    Raises SpatialfeatError for a patient that is written in two ways, or is in two splits.
    """
    patients: dict[tuple[object, ...], list[FeatureFile]] = {}
    for file in files:
        group = patients.setdefault(same_name_key(file.patient_id), [])
        if group and group[0].patient_id != file.patient_id:
            raise SpatialfeatError(
                f"{file.path}: patient {file.patient_id} is the same as {group[0].patient_id} in "
                f"{group[0].path.name}, written differently; use one spelling and extract again"
            )
        group.append(file)
    groups = sorted(patients.values(), key=lambda group: natural_key(group[0].patient_id))
    for group in groups:
        group.sort(key=lambda file: (int(file.segments[0]), natural_key(file.video_id)))
        for file in group:
            if file.split != group[0].split:
                raise SpatialfeatError(
                    f"{file.path}: is in split {file.split}, but {group[0].path.name} of the same patient is in "
                    f"{group[0].split}; a patient can only be joined within one split"
                )
    return groups


def open_feature_dir(features_dir: Path, *, allow_mixed: bool = False) -> list[FeatureFile]:
    """Open all feature files of a folder, in numeric order of the video ids.

    They must be made alike (see `mixed_provenances`). `allow_mixed` drops this check: features of different weights or
    preprocessing are then not comparable.

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


def list_feature_files(features_dir: Path) -> list[Path]:
    """The .h5 files of a folder in numeric order of their names. Hidden (unfinished) and other files are ignored.

    Raises SpatialfeatError if there is no such folder, or no such file in it.
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


def mixed_provenances(files: Sequence[FeatureFile], *, across_folds: bool = False) -> list[Conflict]:
    """A conflict for each file that was made otherwise than most: what differs, there and in the others.

    Everything must agree but the layout, which does not matter to readers, and of several folds the weights.
    """
    if not files:
        return []
    hidden = {file.is_pseudonymized: file.path for file in files}
    if len(hidden) == 2:
        named = {kind: path if across_folds else path.name for kind, path in hidden.items()}
        sentence = f"{named[True]} was made with --pseudonymize, {named[False]} without"
        return [Conflict(hidden[True], sentence)]
    free: dict[str, Any] = {"layout": CHANNEL_FIRST} | ({"weights_sha256": ""} if across_folds else {})
    kinds = [(replace(file.provenance, **free), file.num_channels, file.has_logits) for file in files]
    usual = Counter(kinds).most_common(1)[0][0]
    example = files[kinds.index(usual)]
    conflicts = []
    for file, kind in zip(files, kinds, strict=True):
        if kind != usual:
            differing = ", ".join(_differences(file, example, free))
            paths = [each.path if across_folds else each.path.name for each in (file, example)]
            sentence = f"{paths[0]} was made with other {differing} than {paths[1]}"
            conflicts.append(Conflict(file.path, sentence))
    return conflicts


def describe_differences(provenance: Provenance, other: Provenance, form: str, free: Collection[str] = ()) -> list[str]:
    """`precision (bf16 against fp32)` for everything that differs. form: "{} against {}". free: what may differ."""
    texts = []
    for name in provenance.differences(other):
        if name in free:
            continue
        values = getattr(provenance, name), getattr(other, name)
        parts, others = map(parse_json_object, values) if name == "preprocessing" else (None, None)
        if parts is not None and others is not None:
            keys = [key for key in {**others, **parts} if parts.get(key) != others.get(key)]
            shown = [f"{key} {form.format(parts.get(key), others.get(key))}" for key in keys]
        elif name == "phase_names":
            shown = [form.format(*map(", ".join, values))]
        else:
            longest = SHORT_HASH if name == "weights_sha256" else _SHOWN
            shown = [form.format(*(str(value)[:longest] for value in values))]
        title = {"weights_sha256": "weights", "group_by": "grouping"}.get(name, name.replace("_", " "))
        texts.append(f"{title} ({', '.join(shown)})")
    return texts


def _differences(file: FeatureFile, usual: FeatureFile, free: Collection[str]) -> list[str]:
    """`describe_differences`, also of what the files hold."""
    texts = describe_differences(file.provenance, usual.provenance, "{} against {}", free)
    if file.num_channels != usual.num_channels:
        texts.append(f"number of channels ({file.num_channels} against {usual.num_channels})")
    if file.has_logits != usual.has_logits:
        texts.append("classifier ({} against {})".format(*("there" if f.has_logits else "none" for f in (file, usual))))
    return texts
