"""A folder of feature files: which files are in it, and whether they belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spatialfeat.errors import SpatialfeatError
from spatialfeat.featurefile import CHANNEL_FIRST, SUFFIX, FeatureFile, Recipe
from spatialfeat.frames import natural_key

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

    Their recipes must agree in everything but the layout, which reading evens out. `allow_mixed` drops this check:
    features of different weights or preprocessing are then not comparable.

    Raises:
        SpatialfeatError: naming the files and what differs; also for a file that is not a feature file of this
            schema, and for a video that is there twice.
    """
    files = [FeatureFile(path) for path in list_feature_files(features_dir)]
    problems = repeated_videos(files)
    if not problems and not allow_mixed:
        problems = mixed_recipes(files)
    if problems:
        more = f" (and {len(problems) - _NAMED_FILES} more)" if len(problems) > _NAMED_FILES else ""
        raise SpatialfeatError(
            f"{features_dir}: {'; '.join(problems[:_NAMED_FILES])}{more}; extract them again or move them away"
        )
    return sorted(files, key=lambda file: natural_key(file.video_id))


def repeated_videos(files: Sequence[FeatureFile]) -> list[str]:
    """One sentence for each file whose video another file holds too, also if it is spelled 1050_01 and 1050_1."""
    first: dict[tuple[object, ...], FeatureFile] = {}
    problems = []
    for file in files:
        known = first.setdefault(natural_key(file.video_id), file)
        if known is not file:
            problems.append(f"{file.path.name} holds video {file.video_id}, which {known.path.name} holds too")
    return problems


def mixed_recipes(files: Sequence[FeatureFile]) -> list[str]:
    """One sentence for each file that was made otherwise than most: what differs, there and in the others."""
    if not files:
        return []
    usual = Counter(_comparable(file) for file in files).most_common(1)[0][0]
    example = next(file for file in files if _comparable(file) == usual)
    problems = []
    for file in files:
        differing = usual.differences(_comparable(file))
        if differing:
            values = ", ".join(f"{_name(field)} ({_both(field, file, example)})" for field in differing)
            problems.append(f"{file.path.name} was made with other {values} than {example.path.name}")
    return problems


def _comparable(file: FeatureFile) -> Recipe:
    return replace(file.recipe, layout=CHANNEL_FIRST)


def _name(field: str) -> str:
    return field.replace("_sha256", "").replace("_", " ")


def _both(field: str, file: FeatureFile, example: FeatureFile) -> str:
    return " against ".join(_short(field, getattr(recipe, field)) for recipe in (file.recipe, example.recipe))


def _short(field: str, value: object) -> str:
    if field == "weights_sha256":
        return str(value)[:8]
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
