"""Along each video: gaps, steps of frame numbers, labels that flicker, and what its name may reveal of a patient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spatialfeat.checks.findings import Finding
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED, FrameTable, Video, count_gaps, doubtful_fps, most_common_step, videos_of

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


def video_facts(table: FrameTable) -> list[VideoFacts]:
    """The facts of every video of a CSV."""
    return [_facts(video) for video in videos_of(table)]


def _facts(video: Video) -> VideoFacts:
    frames, ids = video.table.frame_numbers[video.rows], video.table.ids[video.rows]
    step, num_gaps = count_gaps(video.segments, frames)
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


def check_videos(
    videos: Sequence[VideoFacts], fps: float, *, asked_about_single_frames: bool = False
) -> Iterator[Finding]:
    """Findings about videos (in the order of their names).

    Args:
        fps: frame numbers per second, as the user says.
        asked_about_single_frames: whether a question about videos of one frame is among the findings already.
    """
    gappy = [video for video in videos if video.missing_frames]
    if gappy:
        longest = max(gappy, key=lambda video: video.longest_gap * video.step)
        missing = count_text(sum(video.missing_frames for video in gappy), "frame")
        gaps = count_text(sum(video.num_gaps for video in gappy), "gap")
        message = (
            f"{missing} missing in {gaps}; the longest, {count_text(longest.longest_gap, 'frame')} "
            f"({longest.longest_gap * longest.step / fps:g} s at {fps:g} fps), follows {longest.gap_after}"
        )
        places = [
            f"video {video.video_id}: {count_text(video.num_gaps, 'gap')}, "
            f"{count_text(video.missing_frames, 'frame')} missing"
            for video in gappy
        ]
        yield Finding("gaps", message, "nothing, if seconds without a label were left out", places)

    yield from _check_steps([video for video in videos if video.num_frames > 1], fps)

    flickering = sorted((video for video in videos if video.flickers), key=lambda video: -len(video.flickers))
    places = [
        f"video {video.video_id}: {count_text(len(video.flickers), 'flicker')}, first {video.flickers[0]}"
        for video in flickering
    ]
    if places:
        message = f"{places[0]}: fewer than {SHORT_RUN} frames of a phase between two of one other phase"
        remedy = "look at these frames: such labels are often slips, and each one lowers segmental scores"
        yield Finding("label-flicker", message, remedy, places)

    single = [f"video {video.video_id}" for video in videos if video.num_frames == 1]
    if single and not asked_about_single_frames:
        message = f"{single[0]} has a single frame; MS-TCN needs two"
        remedy = "nothing for finetune; is the last field of these ids the frame number?"
        yield Finding("short-video", message, remedy, single)

    yield from _check_ids({video.video_id: video.patient_id for video in videos})


def _check_steps(videos: Sequence[VideoFacts], fps: float) -> Iterator[Finding]:
    """A frame every 25 numbers means that the numbers count 25 per second, which `--fps` must say too."""
    usual = most_common_step(video.step for video in videos)
    odd = [video for video in videos if video.step != usual]
    if odd:
        message = f"frame numbers of video {odd[0].video_id} advance by {odd[0].step}, of most videos by {usual}"
        remedy = "sample all videos at the same rate: temporal models take one frame as one unit of time"
    elif doubt := doubtful_fps((video.step for video in videos), fps):
        message, _, remedy = doubt.partition("; ")
    else:
        return
    places = [f"video {video.video_id}: every {video.step}" for video in odd or videos]
    yield Finding("frame-step", message, remedy, places)


_DATE = re.compile(
    r"""(?<![0-9])(?:
        (?:19|20)[0-9]{2}(?P<a>[-_.]?)(?:0[1-9]|1[0-2])(?P=a)(?:0[1-9]|[12][0-9]|3[01])      # 20190531, 2019-05-31
      | (?:0[1-9]|[12][0-9]|3[01])(?P<b>[-_.]?)(?:0[1-9]|1[0-2])(?P=b)(?:19|20)[0-9]{2}      # 31052019, 31.05.2019
      | (?:0[1-9]|1[0-2])(?P<c>[-_.]?)(?:0[1-9]|[12][0-9]|3[01])(?P=c)(?:19|20)[0-9]{2}      # 05-31-2019
      | (?:0[1-9]|[12][0-9]|3[01])(?P<d>[-.])(?:0[1-9]|1[0-2])(?P=d)[0-9]{2}                 # 31.05.19
    )(?![0-9])""",
    re.VERBOSE,
)
_RECORD_NUMBER = re.compile(r"[0-9]{6,}")
# A word with at most digits around it; letters and digits mixed further are a hash or a code.
_WORD_FIELD = re.compile(r"[0-9]*([^\W\d_]{3,})[0-9]*")
_USUAL = """
anon anonymous camera case cases cataract cholec clip control data dataset demo endo endoscopy eye fold frame hernia
hospital image images laparo left movie operation part patient patients phantom pituitary procedure proc pseudo record
recording rec right robot run sample segment seg sequence seq session simulation site study subject subj surgery surg
synthetic test train training trial val valid validation vid video videos
"""
_USUAL_WORDS = frozenset(_USUAL.split())


def _check_ids(patient_of: dict[str, str]) -> Iterator[Finding]:
    """Names of videos that may reveal who a patient is: dates, record numbers, names of people."""
    dates = [video for video in patient_of if _DATE.search(video)]
    # The digits of a date are not reported as a record number too.
    numbers = [video for video in patient_of if _RECORD_NUMBER.search(_DATE.sub("", video))]
    remedy = "if it shows who a patient is, give out made-up ids only: `--pseudonymize MAP.csv` of extract and export"
    for code, videos, what in (
        ("id-looks-like-date", dates, "what looks like a date"),
        ("id-looks-like-number", numbers, "six or more digits in a row, as record numbers do"),
        ("id-looks-like-name", _with_names(patient_of), "a word that few patients share, as names do"),
    ):
        places = [f"video {video}" for video in videos]
        if places:
            yield Finding(code, f"{places[0]} holds {what}", remedy, places)


def _with_names(patient_of: dict[str, str]) -> list[str]:
    """Videos with a word that is neither a usual one nor shared by most patients, as the name of a data set is."""
    words_of = {video: _words(video) for video in patient_of}
    owners: dict[str, set[str]] = {}
    for video, words in words_of.items():
        for word in words:
            owners.setdefault(word, set()).add(patient_of[video])
    num_patients = len(set(patient_of.values()))
    personal = {word for word, patients in owners.items() if num_patients == 1 or 2 * len(patients) <= num_patients}
    return [video for video, words in words_of.items() if words & personal]


def _words(video: str) -> set[str]:
    matches = map(_WORD_FIELD.fullmatch, re.split(r"[\W_]+", video))
    return {match[1].lower() for match in matches if match} - _USUAL_WORDS
