"""Which videos does an extraction have to compute, which are done already, and which must not be mixed?

What became of the videos of an extraction, in one process and in all of them.

Whole videos shared out among processes and job arrays: every file is written by one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialfeat.data.frames import Video
from spatialfeat.data.images import content_digest
from spatialfeat.data.pseudonyms import Pseudonyms
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile, read_info
from spatialfeat.features.schema import SUFFIX, FeatureFileInfo, Recipe, VideoHeader


@dataclass(frozen=True)
class ExtractionPlan:
    """`to_compute` and `done` share out the videos; each list is in the order of the videos."""

    to_compute: list[Video]
    done: list[Video]


def feature_path(out_dir: Path, video: Video) -> Path:
    """Where the feature file of `video` lies, or will."""
    return out_dir / f"{video.video_id}{SUFFIX}"


def video_header(video: Video) -> VideoHeader:
    """What the feature file of `video` says of its frames."""
    table, rows = video.table, video.rows
    return VideoHeader(
        video_id=video.video_id,
        patient_id=video.patient_id,
        split=table.split,
        frame_ids=table.ids[rows],
        labels=table.labels[rows],
        segments=table.segments[rows],
        frames=table.frames[rows],
    )


def plan_extraction(
    videos: Sequence[Video],
    out_dir: Path,
    recipe: Recipe,
    *,
    overwrite: bool,
    pseudonyms: Pseudonyms | None = None,
    elsewhere: Collection[Path] = (),
) -> ExtractionPlan:
    """Compare the videos with the feature files that stand in `out_dir`.

    A file made by the same weights, options and frames is done. Any other file would mix features that do not belong
    together: it is an error, unless it belongs to one of `videos` and `overwrite` is set.

    Args:
        pseudonyms: those that the ids of `videos` are of, None if they are real ids.
        elsewhere: the files of other shares of the same extraction, which see to them: with `overwrite` they may be
            anything yet.

    Raises:
        SpatialfeatError: with the file and what differs.
    """
    by_path = {feature_path(out_dir, video): video for video in videos}
    done: set[str] = set()
    for path in sorted(out_dir.glob(f"*{SUFFIX}")):
        video = by_path.get(path)
        if video is None:
            if not (overwrite and path in elsewhere):
                _refuse_stranger(path, recipe, pseudonyms)
            continue
        problem = _why_not_reusable(path, video, recipe)
        if problem is None:
            done.add(video.video_id)
        elif not overwrite:
            raise SpatialfeatError(
                f"{path}: {problem}; pass --overwrite to replace such files, or choose another --out"
            )
    return ExtractionPlan(
        [video for video in videos if video.video_id not in done], [video for video in videos if video.video_id in done]
    )


def stat_digest(paths: Sequence[Path]) -> str:
    """A digest of the files' sizes and modification times: cheap, and equal only if no file was touched."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{stat.st_size},{stat.st_mtime_ns};".encode())
    return digest.hexdigest()


def image_paths(video: Video) -> list[Path]:
    """The images of `video` in time order, T paths."""
    return [video.table.image_path(row) for row in video.rows.tolist()]


def _refuse_stranger(path: Path, recipe: Recipe, pseudonyms: Pseudonyms | None) -> None:
    """A file of a video that is not part of this run may stay only if its features belong with the new ones."""
    with FeatureFile(path) as file:
        pass  # Its attributes say all: nothing else of it is read.
    apart = "a patient may be here under two names: move it away, or choose another --out"
    if pseudonyms is None and file.is_pseudonymized:
        raise SpatialfeatError(f"{path}: was made with --pseudonymize, and this run is without; {apart}")
    if pseudonyms is not None and file.patient_id not in pseudonyms.of_patient.values():
        raise SpatialfeatError(f"{path}: its patient {file.patient_id} is no pseudonym of {pseudonyms.path}; {apart}")
    differing = recipe.differences(file.recipe)
    if differing:
        raise SpatialfeatError(
            f"{path}: was made with other {_differences(differing, file.recipe, recipe)} and is not part of this run; "
            "move it away, or choose another --out"
        )


def _why_not_reusable(path: Path, video: Video, recipe: Recipe) -> str | None:
    try:
        info = read_info(path)
    except SpatialfeatError as error:
        return f"cannot be reused ({str(error).removeprefix(f'{path}: ')})"
    differing = recipe.differences(info.recipe)
    if differing:
        return f"was made with other {_differences(differing, info.recipe, recipe)}"
    expected, found = video_header(video), info.header
    if expected.split != found.split:
        return f"was made for split {found.split}, now {expected.split}"
    if expected.frame_ids.tolist() != found.frame_ids.tolist():
        return f"holds other frames ({len(found.frame_ids)} there, {len(expected.frame_ids)} now)"
    if expected.labels.tolist() != found.labels.tolist():
        return "holds other labels"
    if not _same_images(info, image_paths(video)):
        return "was made from images that have changed since"
    return None


def _same_images(info: FeatureFileInfo, paths: Sequence[Path]) -> bool:
    if info.attributes.get("images_stat") == stat_digest(paths):
        return True
    # Copied files have new times but the same content; reading them is far cheaper than extracting them.
    digest = hashlib.sha256()
    for path in paths:
        digest.update(content_digest(path.read_bytes()))
    return info.attributes.get("images_content") == digest.hexdigest()


def _differences(fields: Sequence[str], there: Recipe, now: Recipe) -> str:
    """`weights, precision (bf16 there, fp32 now)`: with the values of those that are options."""
    texts = []
    for name in fields:
        text = name.replace("_sha256", "").replace("group_by", "grouping").replace("_", " ")
        if name in ("precision", "layout", "group_by", "fps"):
            values = (str(getattr(recipe, name) or "none") for recipe in (there, now))
            text += " ({} there, {} now)".format(*values)
        texts.append(text)
    return ", ".join(texts)


@dataclass(frozen=True)
class ExtractIntent:
    """Video ids: what is to be computed, what is there already, and what has broken images and why."""

    to_compute: list[str]
    skipped: list[str]
    failed: dict[str, str]


@dataclass
class ExtractResult:
    """Video ids by what became of them; `failed` maps an id to the reason."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def merge_results(intent: ExtractIntent, shares: Sequence[dict[str, Any]]) -> ExtractResult:
    """What became of all videos, in their order, from the results of the processes as `asdict` gives them."""
    written = {video_id for share in shares for video_id in share["written"]}
    failed = {video_id: reason for share in shares for video_id, reason in share["failed"].items()}
    return ExtractResult(
        [video_id for video_id in intent.to_compute if video_id in written],
        intent.skipped,
        intent.failed | {video_id: failed[video_id] for video_id in intent.to_compute if video_id in failed},
    )


def share_out(videos: Sequence[Video], shares: int) -> list[list[Video]]:
    """Deal the videos out, longest first, each to the share that has the fewest frames by then.

    Depends on the videos alone, so processes that never speak to each other agree. No share has more than 4/3 of the
    frames of the best possible largest share (Graham's bound).

    Returns:
        `shares` lists, some of them empty if there are fewer videos; each in the order of `videos`.
    """
    loads = [0] * shares
    share_of = {}
    for index in sorted(range(len(videos)), key=lambda index: (-len(videos[index]), index)):
        share = loads.index(min(loads))
        loads[share] += len(videos[index])
        share_of[index] = share
    return [[videos[index] for index in range(len(videos)) if share_of[index] == share] for share in range(shares)]
