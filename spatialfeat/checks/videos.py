"""Frame numbers and labels along each video: gaps, steps, labels that flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialfeat.checks.findings import Finding, first_places
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED, FrameTable, Video, count_gaps, videos_of
from spatialfeat.names import natural_key

SHORT_RUN = 3
"""Fewer frames of a phase than this, between frames of one other phase, are called a flicker."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """One video of one split. step: the usual, most common difference of frame numbers.

    num_gaps: where they differ by more. missing_frames: how many frames the gaps stand for. longest_gap: of them in
    one gap; gap_after: the id before it, "" without gaps. flickers: the ids where one begins, in time order.
    """

    video_id: str
    patient_id: str
    split: str
    num_frames: int
    step: int
    num_gaps: int
    missing_frames: int
    longest_gap: int
    gap_after: str
    flickers: tuple[str, ...]


def video_facts(tables: Sequence[FrameTable]) -> list[VideoFacts]:
    """The facts of every video, in numeric order of their names."""
    facts = [_facts(video) for table in tables for video in videos_of(table)]
    return sorted(facts, key=lambda fact: natural_key(fact.video_id))


def _facts(video: Video) -> VideoFacts:
    frames, ids = video.table.frame_numbers[video.rows], video.table.ids[video.rows]
    step, num_gaps = count_gaps(video.table.segments[video.rows], frames)
    # Half a step more or less is jitter of the sampling, not a missing frame.
    missing = np.maximum(np.rint(np.diff(frames) / step).astype(np.int64) - 1, 0)
    longest = int(missing.max(initial=0))
    return VideoFacts(
        video_id=video.video_id,
        patient_id=video.patient_id,
        split=video.table.split,
        num_frames=len(video),
        step=step,
        num_gaps=num_gaps,
        missing_frames=int(missing.sum()),
        longest_gap=longest,
        gap_after=str(ids[int(missing.argmax())]) if longest else "",
        flickers=_flickers(video, step),
    )


def _flickers(video: Video, step: int) -> tuple[str, ...]:
    """Ids at which fewer than SHORT_RUN frames of a phase begin, with frames of one other phase right around them."""
    labels, frames = video.table.labels[video.rows], video.table.frame_numbers[video.rows]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    if len(starts) < 4:
        return ()
    first, end = starts[1:-2], starts[2:-1]  # Every run but the first and the last.
    short = (end - first < SHORT_RUN) & (labels[first - 1] == labels[end])
    short &= (labels[first] != UNLABELLED) & (labels[end] != UNLABELLED)
    # Beside a gap, the run may in truth have been longer.
    short &= frames[end] - frames[first - 1] <= step * (end - first + 1)
    ids = video.table.ids[video.rows]
    return tuple(f"{ids[at]} ({labels[at - 1]} {labels[at]} {labels[at - 1]})" for at in first[short].tolist())


def check_videos(videos: Sequence[VideoFacts], fps: float) -> list[Finding]:
    """Findings about videos. fps: frame numbers per second, as the user says."""
    return [*_gaps(videos, fps), *_steps(videos, fps), *_flicker(videos), *_short(videos)]


def _gaps(videos: Sequence[VideoFacts], fps: float) -> list[Finding]:
    gappy = [video for video in videos if video.missing_frames]
    if not gappy:
        return []
    longest = max(gappy, key=lambda video: video.longest_gap * video.step)
    total = sum(video.missing_frames for video in gappy)
    seconds = longest.longest_gap * longest.step / fps
    return [
        Finding(
            code="gaps",
            message=f"{count_text(total, 'frame')} missing in {count_text(sum(v.num_gaps for v in gappy), 'gap')}; the "
            f"longest, {count_text(longest.longest_gap, 'frame')} ({seconds:g} s at {fps:g} fps), follows "
            f"{longest.gap_after}",
            remedy="nothing, if seconds without a label were left out",
            count=len(gappy),
            unit="video",
            places=first_places(
                f"video {video.video_id}: {count_text(video.num_gaps, 'gap')}, "
                f"{count_text(video.missing_frames, 'frame')} missing"
                for video in gappy
            ),
        )
    ]


def _steps(videos: Sequence[VideoFacts], fps: float) -> list[Finding]:
    """A frame every 25 numbers says that the numbers count 25 per second, which `--fps` must say too."""
    stepped = [video for video in videos if video.num_frames > 1]
    steps = sorted({video.step for video in stepped})
    if not steps or (len(steps) == 1 and (steps[0] == 1 or fps != 1)):
        return []
    places = first_places(f"video {video.video_id}: every {video.step}" for video in stepped)
    if len(steps) == 1:
        message = f"frame numbers advance by {steps[0]}, so at --fps {fps:g} frames are {steps[0]} s apart"
        remedy = f"if that is one frame a second, pass --fps {steps[0]} to extract and check"
        return [
            Finding(code="frame-step", message=message, remedy=remedy, count=len(stepped), unit="video", places=places)
        ]
    usual = max(steps, key=lambda step: sum(video.step == step for video in stepped))
    odd = [video for video in stepped if video.step != usual]
    return [
        Finding(
            code="frame-step",
            message=f"frame numbers of video {odd[0].video_id} advance by {odd[0].step}, of most videos by {usual}",
            remedy="sample all videos at the same rate: temporal models take one frame as one unit of time",
            count=len(odd),
            unit="video",
            places=first_places(f"video {video.video_id}: every {video.step}" for video in odd),
        )
    ]


def _flicker(videos: Sequence[VideoFacts]) -> list[Finding]:
    shaky = [video for video in videos if video.flickers]
    if not shaky:
        return []
    places = first_places(
        f"video {video.video_id}: {count_text(len(video.flickers), 'flicker')}, first {video.flickers[0]}"
        for video in sorted(shaky, key=lambda video: -len(video.flickers))
    )
    return [
        Finding(
            code="label-flicker",
            message=f"{places[0]}: fewer than {SHORT_RUN} frames of a phase between two of one other phase",
            remedy="look at these frames: such labels are often slips, and every one costs segmental scores",
            count=len(shaky),
            unit="video",
            places=places,
        )
    ]


def _short(videos: Sequence[VideoFacts]) -> list[Finding]:
    short = [video for video in videos if video.num_frames == 1]
    if not short:
        return []
    return [
        Finding(
            code="short-video",
            message=f"video {short[0].video_id} has a single frame; MS-TCN needs two",
            remedy="nothing for finetune; is the last field of these ids the frame number?",
            count=len(short),
            unit="video",
            places=first_places(f"video {video.video_id}" for video in short),
        )
    ]
