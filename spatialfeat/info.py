"""`spatialfeat info`: what feature files hold in a few numbers, and whether they can be used together.

`describe` reads labels and frame numbers but no features; `render` writes text of at most 100 columns for ordinary ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialfeat.config import CPU_DECODER
from spatialfeat.console import MOST_PHASES, NO_BREAK, align, clock_text, count_text, shown_phases, size_text, wrap
from spatialfeat.data.frames import UNLABELLED, count_gaps, doubtful_fps
from spatialfeat.data.ids import AUTO
from spatialfeat.data.patients import patients_in_several_splits
from spatialfeat.encoders import data_set_warning
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import (
    SHORT_HASH,
    list_feature_files,
    mixed_provenances,
    ordered_splits,
    repeated_videos,
)
from spatialfeat.features.schema import DATA_SET, WEIGHTS_ORIGIN, Provenance
from spatialfeat.files import parse_json_object
from spatialfeat.names import natural_key


class VideoSummary:
    """One video in a few numbers, from its labels and frame numbers.

    Attributes:
        frame_step: the usual difference of consecutive frame numbers within a segment: the most common one, the
            smallest of several, 1 where there is none.
        num_gaps: how often consecutive frame numbers within a segment differ by more than that.
        duration_s: from the first to the last frame of each segment, gaps included, by fps.
        frames_per_phase: (C,) int64. phases: those that occur. num_unlabelled: frames with label -100.
        notes: what is doubtful about it, in sentences.

    Raises SpatialfeatError if the file cannot be read, or holds a label outside its phases.
    """

    def __init__(self, file: FeatureFile, data_set: str | None = None) -> None:
        labels, segments, frames = file.phases(), file.segments, file.frames
        labelled = labels[labels != UNLABELLED]
        self.file = file
        self.datasets = file.describe_datasets()
        self.size_bytes = file.path.stat().st_size
        self.frames_per_phase = np.bincount(labelled, minlength=file.num_phases)
        self.phases = np.flatnonzero(self.frames_per_phase).tolist()
        self.num_unlabelled = len(labels) - len(labelled)
        self.frame_step, self.num_gaps = count_gaps(segments, frames)
        numbers = [frames[segments == segment] for segment in np.unique(segments)]
        self.num_segments = len(numbers)
        # The last frame of a segment stands for as much time as any other.
        self.duration_s = sum(int(np.ptp(part)) + self.frame_step for part in numbers) / file.fps
        self.notes = [*_rate_notes([self]), *_data_set_notes([file], data_set)]


class FolderSummary:
    """What a folder holds, and whether its files can be used together.

    Attributes:
        videos: those that can be read, in numeric order.
        problems: one sentence per unreadable, foreign or mixed file.
        flagged: the files among `videos` that have a problem, i.e. should not be used together with the others.
        notes: what may be on purpose: patients in several splits, unfinished files.

    Raises SpatialfeatError if there is no feature file.
    """

    def __init__(self, features_dir: Path, data_set: str | None = None) -> None:
        self.videos: list[VideoSummary] = []
        self.problems: list[str] = []
        for path in list_feature_files(features_dir):
            try:
                with FeatureFile(path) as file:
                    self.videos.append(VideoSummary(file))
            except SpatialfeatError as error:
                self.problems.append(str(error).removeprefix(f"{features_dir}/"))
        files = [video.file for video in self.videos]
        conflicts = [*mixed_provenances(files), *repeated_videos(files)]
        self.problems += [f"{conflict.sentence}; extract it again, or move it away" for conflict in conflicts]
        self.flagged = {conflict.path for conflict in conflicts}
        self.videos.sort(key=lambda video: natural_key(video.file.video_id))
        shared = patients_in_several_splits(
            (video.file.patient_id, video.file.split, len(video.file)) for video in self.videos
        )
        unfinished = sorted(path.name for path in features_dir.glob(".*.partial"))
        self.notes = [
            f"patient {patient} is in the splits {' and '.join(sorted(splits))}: scores on them are too good"
            for patient, splits in shared.items()
        ] + [f"{name} is unfinished: an extraction is running, or was cut off" for name in unfinished]
        self.notes += [*_rate_notes(self.videos), *_data_set_notes([video.file for video in self.videos], data_set)]


def _rate_notes(videos: Sequence[VideoSummary]) -> list[str]:
    """What is doubtful about the rates that the files say."""
    rates = sorted({video.file.fps for video in videos})
    doubts = (
        doubtful_fps((video.frame_step for video in videos if video.file.fps == fps and len(video.file) > 1), fps)
        for fps in rates
    )
    return [doubt for doubt in doubts if doubt]


def _data_set_notes(files: Sequence[FeatureFile], data_set: str | None) -> list[str]:
    """What is doubtful about the encoder for the data set that the frames are from; None is what the files say."""
    pairs = {(file.provenance.backbone, data_set or file.attributes.get(DATA_SET)) for file in files}
    found = (data_set_warning(backbone, name) for backbone, name in sorted(pairs, key=str) if name)
    return [text for text in dict.fromkeys(found) if text]


def describe(path: Path, data_set: str | None = None) -> FolderSummary | VideoSummary:
    """Summarize a folder of feature files or a single file, without reading features.

    data_set: the public data set that the frames are from; None is what the files say.

    Raises:
        SpatialfeatError: no such path, a folder without feature files, or a single file that cannot be read. Files of
            a folder that cannot be read are its problems instead.
    """
    if not path.exists():
        raise SpatialfeatError(f"{path}: no such file or folder; pass a folder of feature files, or one of them")
    if path.is_dir():
        return FolderSummary(path, data_set)
    with FeatureFile(path) as file:
        return VideoSummary(file, data_set)


def render(summary: FolderSummary | VideoSummary) -> str:
    """The summary as text, without a final newline."""
    lines = _folder_lines(summary) if isinstance(summary, FolderSummary) else _video_lines(summary)
    return "\n".join(line.rstrip() for line in lines)


_COLUMNS = ("video", "split", "frames", "duration", "gaps", "phases", "unlabelled", "weights", "precision", "size")
_LEFT = tuple(map(_COLUMNS.index, ("video", "split", "phases", "weights", "precision")))


def _folder_lines(folder: FolderSummary) -> list[str]:
    lines: list[str] = []
    if folder.videos:
        rows = [_row(video.file.video_id, video.file.split, [video], video.file.provenance) for video in folder.videos]
        table = align([_COLUMNS, *rows, *_totals(folder.videos)], left=_LEFT)
        # The header, a rule, the videos, a rule, the totals.
        rule = "-" * len(table[0])
        marks = ["  !" if video.file.path in folder.flagged else "" for video in folder.videos]
        marked = [line + mark for line, mark in zip(table[1 : len(rows) + 1], marks, strict=True)]
        lines += [table[0], rule, *marked, rule, *table[len(rows) + 1 :], ""]
        lines += [*_provenance_lines([video.file for video in folder.videos]), ""]
    for word, sentences in (("problem", folder.problems), ("note", folder.notes)):
        for sentence in sentences:
            lines += wrap(sentence, f"{word}: ")
    if not folder.problems:
        lines.append("All files can be used together.")
    return lines


def _totals(videos: Sequence[VideoSummary]) -> list[tuple[str, ...]]:
    """A row for each split, and one for all if there are several."""
    splits = ordered_splits(video.file.split for video in videos)
    groups = [(split, [video for video in videos if video.file.split == split]) for split in splits]
    if len(groups) > 1:
        groups.append(("all", list(videos)))
    return [_row(count_text(len(members), "video"), split, members) for split, members in groups]


def _row(
    name: str, split: str, videos: Sequence[VideoSummary], provenance: Provenance | None = None
) -> tuple[str, ...]:
    """The cells of `_COLUMNS` for one video, or for several together."""
    return (
        name,
        split,
        str(sum(len(video.file) for video in videos)),
        clock_text(sum(video.duration_s for video in videos)),
        str(sum(video.num_gaps for video in videos)),
        format_phases(sorted({phase for video in videos for phase in video.phases})),
        str(sum(video.num_unlabelled for video in videos)),
        provenance.weights_sha256[:SHORT_HASH] if provenance else "",
        provenance.precision if provenance else "",
        size_text(sum(video.size_bytes for video in videos)),
    )


def format_phases(phases: Sequence[int]) -> str:
    """Phases in increasing order as ranges: `0-3,5`; `-` for none."""
    runs: list[list[int]] = []
    for phase in phases:
        if runs and phase == runs[-1][-1] + 1:
            runs[-1].append(phase)
        else:
            runs.append([phase])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "-"


def _provenance_lines(files: Sequence[FeatureFile]) -> list[str]:
    """How the files were made. Names, network and preprocessing only where all agree; if not, a problem says it."""
    provenances = list(dict.fromkeys(file.provenance for file in files))

    def values(name: str, template: str = "{}") -> list[str]:
        return list(dict.fromkeys(template.format(getattr(provenance, name)) for provenance in provenances))

    first = provenances[0]
    lines = wrap(" and ".join(values("fps", "{:g}")), "fps: ")
    if len(values("phase_names")) == 1:
        names = [_unbroken(f"{index} {name}") for index, name in enumerate(first.phase_names[:MOST_PHASES])]
        names += ["..."] if len(first.phase_names) > MOST_PHASES else []
        lines += wrap(", ".join(names), "phases: ")
    lines += wrap(" and ".join(values("group_by")), "one file per: ")
    lines += wrap(" and ".join(values("layout")), "layout: ")
    if values("id_rule") != [AUTO]:
        lines += wrap(" and ".join(values("id_rule")), "ids are read by: ")
    if len(values("backbone")) == len(values("layer")) == 1:
        lines += wrap(f"{first.backbone}, layer {first.layer}{_weights_text(files)}", "network: ")
    lines += wrap(" or ".join(map(str, sorted({file.num_channels for file in files}))), "features per frame: ")
    if values("jpeg_decoder") != [CPU_DECODER]:
        lines += wrap(" and ".join(values("jpeg_decoder")), "JPEG frames decoded by: ")
    if len(values("preprocessing")) == 1:
        lines += wrap(_readable(first.preprocessing), "preprocessing: ")
    return lines


def _weights_text(files: Sequence[FeatureFile]) -> str:
    """What there is to know of the weights: that they were not fine-tuned, that they had no classifier."""
    origins = {file.attributes.get(WEIGHTS_ORIGIN, "") for file in files}
    text = f"; {origins.pop()}" if len(origins) == 1 and origins != {""} else ""
    return text if any(file.has_logits for file in files) else f"{text}; without logits"


def _video_lines(video: VideoSummary) -> list[str]:
    file = video.file
    gaps = f"{count_text(video.num_gaps, 'gap')} in frame numbers"
    segments = count_text(video.num_segments, "segment")
    lines = [
        str(file.path),
        f"video {file.video_id}, patient {file.patient_id}, split {file.split}, {size_text(video.size_bytes)}",
        f"{count_text(len(file), 'frame')} in {segments}, {clock_text(video.duration_s)} at {file.fps:g} fps, {gaps} "
        f"(usual step {video.frame_step})",
        *(line for note in video.notes for line in wrap(note, "note: ")),
        "",
        "datasets",
    ]
    rows = [(part["name"], str(part["shape"]), part["dtype"], part["axes"]) for part in video.datasets]
    lines += [f"  {line}" for line in align(rows, left=range(4))]
    lines += ["", "frames per phase", *_phase_lines(video), "", "attributes"]
    width = max(map(len, file.attributes))
    for name in sorted(file.attributes):
        lines += wrap(_readable(file.attributes[name]), f"  {name:<{width}}  ")
    return lines


def _phase_lines(video: VideoSummary) -> list[str]:
    names, frames = video.file.phase_names, video.frames_per_phase.tolist()
    shown = shown_phases(frames)
    rows = [(str(phase), names[phase], frames[phase]) for phase in shown]
    if len(shown) < len(names):
        rows.append(("", f"{len(names) - len(shown)} others", sum(frames) - sum(frames[phase] for phase in shown)))
    if video.num_unlabelled:
        rows.append(("", "unlabelled", video.num_unlabelled))
    wide = max(len(name) for _, name, _ in rows)
    return [f"  {index:>2} {name:<{wide}} {count:>7} {count / len(video.file):>7.1%}" for index, name, count in rows]


def _readable(value: Any) -> str:
    """An attribute for a person: JSON objects as `key value, key value`, lists with commas."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    content = parse_json_object(value) if isinstance(value, str) else None
    if content is None:
        return str(value)
    shown = {key: f"({' '.join(map(str, part))})" if isinstance(part, list) else part for key, part in content.items()}
    return ", ".join(_unbroken(f"{key} {part}") for key, part in shown.items())


def _unbroken(text: str) -> str:
    """Text whose blanks `wrap` does not take for the end of a line."""
    return text.replace(" ", NO_BREAK)
