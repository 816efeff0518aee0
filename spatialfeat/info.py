"""What a feature file, or a folder of them, holds in a few numbers.

`spatialfeat info`: what feature files hold, and whether they can be used together. `infotext` writes it out.

Summaries of feature files as text of at most 100 columns, for ordinary ids and names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.console import NO_BREAK, align, clock_text, count_text, size_text, wrap
from spatialfeat.data.frames import UNLABELLED, count_gaps, patients_in_several_splits
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import SHORT_HASH, list_feature_files, mixed_provenances, repeated_videos
from spatialfeat.features.schema import Provenance
from spatialfeat.files import parse_json_object
from spatialfeat.names import natural_key


@dataclass(frozen=True, kw_only=True)
class VideoSummary:
    """One video in a few numbers.

    frame_step: the usual difference of consecutive frame numbers within a segment: the most common one, the smallest
        of several, 1 where there is none.
    num_gaps: how often consecutive frame numbers within a segment differ by more than that.
    duration_s: from the first to the last frame of each segment, gaps included, by fps.
    frames_per_phase: (C,) int64. num_unlabelled: frames with label -100.
    """

    path: Path
    video_id: str
    patient_id: str
    split: str
    provenance: Provenance
    num_frames: int
    num_segments: int
    frame_step: int
    num_gaps: int
    duration_s: float
    frames_per_phase: NDArray[np.int64]
    num_unlabelled: int
    size_bytes: int

    @property
    def phases(self) -> list[int]:
        """The phases that occur, in order."""
        return [int(phase) for phase in np.flatnonzero(self.frames_per_phase)]


@dataclass(frozen=True, kw_only=True)
class FolderSummary:
    """The videos of a folder in numeric order, and one sentence per problem: unreadable, foreign or mixed files.

    flagged: the files among `videos` that have a problem, i.e. should not be used together with the others.
    notes: what may be on purpose: patients in several splits, unfinished files.
    """

    path: Path
    videos: list[VideoSummary]
    problems: list[str]
    flagged: set[Path]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """A dataset of a feature file; `axes` names its dimensions, e.g. "channel,time"."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: str


@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """One feature file: its video, its datasets, and every root attribute as a Python value."""

    video: VideoSummary
    datasets: list[DatasetSummary]
    attributes: dict[str, Any]


def summarize_video(file: FeatureFile) -> VideoSummary:
    """Summarize one video from its labels and frame numbers.

    Raises:
        SpatialfeatError: the file cannot be read, or holds a label outside its phases.
    """
    labels, segments, frames = file.labels, file.segments, file.frames
    foreign = labels[(labels != UNLABELLED) & ((labels < 0) | (labels >= file.num_phases))]
    if len(foreign):
        raise SpatialfeatError(
            f"{file.path}: label {foreign[0]} is outside 0..{file.num_phases - 1}; extract the video again"
        )
    step, num_gaps = count_gaps(segments, frames)
    return VideoSummary(
        path=file.path,
        video_id=file.video_id,
        patient_id=file.patient_id,
        split=file.split,
        provenance=file.provenance,
        num_frames=len(file),
        num_segments=len(np.unique(segments)),
        frame_step=step,
        num_gaps=num_gaps,
        duration_s=_duration_frames(segments, frames, step) / file.fps,
        frames_per_phase=np.bincount(labels[labels != UNLABELLED], minlength=file.num_phases).astype(np.int64),
        num_unlabelled=int((labels == UNLABELLED).sum()),
        size_bytes=file.path.stat().st_size,
    )


def _duration_frames(segments: NDArray[np.int64], frames: NDArray[np.int64], step: int) -> int:
    # The last frame of a segment stands for as much time as any other.
    return sum(int(np.ptp(frames[segments == segment])) + step for segment in np.unique(segments))


def describe(path: Path) -> FolderSummary | FileSummary:
    """Summarize a folder of feature files or a single file, without reading features.

    Raises:
        SpatialfeatError: no such path, a folder without feature files, or a single file that cannot be read. Files of
            a folder that cannot be read are its problems instead.
    """
    if not path.exists():
        raise SpatialfeatError(f"{path}: no such file or folder; pass a folder of feature files, or one of them")
    if path.is_dir():
        return _describe_folder(path)
    with FeatureFile(path) as file:
        datasets = [DatasetSummary(**description) for description in file.describe_datasets()]
        return FileSummary(video=summarize_video(file), datasets=datasets, attributes=file.attributes)


def _describe_folder(features_dir: Path) -> FolderSummary:
    files: list[FeatureFile] = []
    videos: list[VideoSummary] = []
    problems: list[str] = []
    for path in list_feature_files(features_dir):
        try:
            with FeatureFile(path) as file:
                videos.append(summarize_video(file))
                files.append(file)
        except SpatialfeatError as error:
            problems.append(str(error).removeprefix(f"{features_dir}/"))
    conflicts = [*mixed_provenances(files), *repeated_videos(files)]
    problems += [f"{conflict.sentence}; extract it again, or move it away" for conflict in conflicts]
    videos.sort(key=lambda video: natural_key(video.video_id))
    return FolderSummary(
        path=features_dir,
        videos=videos,
        problems=problems,
        flagged={conflict.path for conflict in conflicts},
        notes=_notes(features_dir, videos),
    )


def _notes(features_dir: Path, videos: list[VideoSummary]) -> list[str]:
    shared = patients_in_several_splits((video.patient_id, video.split, video.num_frames) for video in videos)
    notes = [
        f"patient {patient} is in the splits {' and '.join(sorted(splits))}: scores on them are too good"
        for patient, splits in shared.items()
    ]
    unfinished = sorted(path.name for path in features_dir.glob(".*.partial"))
    return notes + [f"{name} is unfinished: an extraction is running, or was cut off" for name in unfinished]


_COLUMNS = ("video", "split", "frames", "duration", "gaps", "phases", "unlabelled", "weights", "precision", "size")
_LEFT = tuple(map(_COLUMNS.index, ("video", "split", "phases", "weights", "precision")))
_SPLIT_ORDER = ("train", "val", "test")


def render(summary: FolderSummary | FileSummary) -> str:
    """The summary as text, without a final newline."""
    return _render_folder(summary) if isinstance(summary, FolderSummary) else _render_file(summary)


def format_phases(phases: Sequence[int]) -> str:
    """Phases in increasing order as ranges: `0-3,5`; `-` for none."""
    runs: list[list[int]] = []
    for phase in phases:
        if runs and phase == runs[-1][-1] + 1:
            runs[-1].append(phase)
        else:
            runs.append([phase])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "-"


def _render_folder(folder: FolderSummary) -> str:
    lines: list[str] = []
    if folder.videos:
        rows = [_row(video) for video in folder.videos]
        table = align([_COLUMNS, *rows, *_totals(folder.videos)], left=_LEFT)
        # The header, a rule, the videos, a rule, the totals.
        rule = "-" * len(table[0])
        marks = ["  !" if video.path in folder.flagged else "" for video in folder.videos]
        marked = [line + mark for line, mark in zip(table[1 : len(rows) + 1], marks, strict=True)]
        lines += [table[0], rule, *marked, rule, *table[len(rows) + 1 :], ""]
        lines += [*_provenance_lines(folder.videos), ""]
    for word, sentences in (("problem", folder.problems), ("note", folder.notes)):
        for sentence in sentences:
            lines += wrap(sentence, f"{word}: ")
    if not folder.problems:
        lines.append("All files can be used together.")
    return "\n".join(line.rstrip() for line in lines)


def _row(video: VideoSummary) -> tuple[str, ...]:
    return (
        video.video_id,
        video.split,
        str(video.num_frames),
        clock_text(video.duration_s),
        str(video.num_gaps),
        format_phases(video.phases),
        str(video.num_unlabelled),
        video.provenance.weights_sha256[:SHORT_HASH],
        video.provenance.precision,
        size_text(video.size_bytes),
    )


def _totals(videos: Sequence[VideoSummary]) -> list[tuple[str, ...]]:
    splits = sorted({video.split for video in videos}, key=_split_key)
    groups = [(split, [video for video in videos if video.split == split]) for split in splits]
    if len(groups) > 1:
        groups.append(("all", list(videos)))
    return [_total(split, members) for split, members in groups]


def _split_key(split: str) -> tuple[int, str]:
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split)


def _total(split: str, videos: Sequence[VideoSummary]) -> tuple[str, ...]:
    phases = sorted({phase for video in videos for phase in video.phases})
    return (
        count_text(len(videos), "video"),
        split,
        str(sum(video.num_frames for video in videos)),
        clock_text(sum(video.duration_s for video in videos)),
        str(sum(video.num_gaps for video in videos)),
        format_phases(phases),
        str(sum(video.num_unlabelled for video in videos)),
        "",
        "",
        size_text(sum(video.size_bytes for video in videos)),
    )


def _provenance_lines(videos: Sequence[VideoSummary]) -> list[str]:
    """How the files were made, where all agree; what differs among them is a problem and told there."""
    provenances = [video.provenance for video in videos]
    lines = _field("fps", provenances, "{:g}")
    if len({provenance.phase_names for provenance in provenances}) == 1:
        lines += _phases_line(provenances[0].phase_names)
    lines += _field("group_by", provenances) + _field("layout", provenances)
    if len({(provenance.backbone, provenance.layer) for provenance in provenances}) == 1:
        lines += wrap(f"{provenances[0].backbone}, layer {provenances[0].layer}", "network: ")
    if len({provenance.preprocessing for provenance in provenances}) == 1:
        lines += wrap(_readable(provenances[0].preprocessing), "preprocessing: ")
    return lines


def _field(name: str, provenances: Sequence[Provenance], template: str = "{}") -> list[str]:
    values = list(dict.fromkeys(getattr(provenance, name) for provenance in provenances))
    label = {"group_by": "one file per"}.get(name, name)
    return wrap(" and ".join(template.format(value) for value in values), f"{label}: ")


def _phases_line(names: Sequence[str]) -> list[str]:
    return wrap(", ".join(_unbroken(f"{index} {name}") for index, name in enumerate(names)), "phases: ")


def _render_file(summary: FileSummary) -> str:
    video, provenance = summary.video, summary.video.provenance
    gaps = f"{count_text(video.num_gaps, 'gap')} in frame numbers"
    segments = count_text(video.num_segments, "segment")
    lines = [
        str(video.path),
        f"video {video.video_id}, patient {video.patient_id}, split {video.split}, {size_text(video.size_bytes)}",
        f"{video.num_frames} frames in {segments}, {clock_text(video.duration_s)} at {provenance.fps:g} fps, {gaps} "
        f"(usual step {video.frame_step})",
        "",
        "datasets",
    ]
    shapes = [str(dataset.shape) for dataset in summary.datasets]
    for dataset, shape in zip(summary.datasets, shapes, strict=True):
        lines.append(f"  {dataset.name:<10} {shape:<{max(map(len, shapes))}}  {dataset.dtype:<8} {dataset.axes}")
    lines += ["", "frames per phase", *_phase_table(video), "", "attributes"]
    width = max(map(len, summary.attributes))
    for name in sorted(summary.attributes):
        lines += wrap(_readable(summary.attributes[name]), f"  {name:<{width}}  ")
    return "\n".join(line.rstrip() for line in lines)


def _phase_table(video: VideoSummary) -> list[str]:
    names = [*video.provenance.phase_names, "unlabelled"]
    numbers = [*map(str, range(len(video.provenance.phase_names))), ""]
    counts = [*video.frames_per_phase.tolist(), video.num_unlabelled]
    if not video.num_unlabelled:
        names, numbers, counts = names[:-1], numbers[:-1], counts[:-1]
    wide = max(map(len, names))
    return [
        f"  {number:>2} {name:<{wide}} {count:>7} {count / video.num_frames:>7.1%}"
        for number, name, count in zip(numbers, names, counts, strict=True)
    ]


def _readable(value: Any) -> str:
    """An attribute for a person: JSON objects as `key value, key value`, lists with commas."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    content = parse_json_object(value) if isinstance(value, str) else None
    if content is not None:
        return ", ".join(_unbroken(f"{key} {_short_list(part)}") for key, part in content.items())
    return str(value)


def _short_list(value: Any) -> str:
    return "(" + " ".join(map(str, value)) + ")" if isinstance(value, list) else str(value)


def _unbroken(text: str) -> str:
    """Text whose blanks `wrap` does not take for the end of a line."""
    return text.replace(" ", NO_BREAK)
