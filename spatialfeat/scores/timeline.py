"""Where the frames of a video lie in time, and runs of frames with the same value: what ribbons are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.evaluation import EvaluatedVideo
from spatialfeat.scores.metrics import FloatArray, IntArray

GAP_FACTOR = 1.5
"""Frame numbers further apart than this many usual steps leave a gap; less is jitter of the sampling."""

MINUTES_FROM_S = 180.0
"""Time is shown in minutes from this length on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """Times in seconds since the video's first frame; segments follow each other without a break.

    starts, ends: (T,) float64, half-open; a frame lasts until the next one, or one usual step before a gap and at the
    end. segment_starts: S pairs (segment number, time of its first frame). num_gaps: gaps within segments.
    """

    starts: FloatArray
    ends: FloatArray
    segment_starts: tuple[tuple[int, float], ...]
    num_gaps: int

    @property
    def duration_s(self) -> float:
        return float(self.ends[-1]) if len(self.ends) else 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Runs:
    """R runs of equal values without a gap. values: (R,) int64. starts, ends: (R,) float64, seconds, half-open."""

    values: IntArray
    starts: FloatArray
    ends: FloatArray


def usual_step(videos: Iterable[EvaluatedVideo]) -> float:
    """The median difference of successive frame numbers, over all videos (the lower of two); 1 if none has two frames.

    One number for all, so that a video of a single frame gets a sensible length too.
    """
    steps = [np.diff(video.frames)[np.diff(video.segments) == 0] for video in videos]
    found = np.concatenate([*steps, np.zeros(0, dtype=np.int64)])
    return float(np.sort(found)[(len(found) - 1) // 2]) if len(found) else 1.0


def timeline(video: EvaluatedVideo, *, fps: float, step: float) -> Timeline:
    """Place a video's frames in time.

    fps: frame numbers per second. step: frame numbers from one frame to the next where none is missing (`usual_step`).
    Raises SpatialfeatError unless fps is positive.
    """
    if not (np.isfinite(fps) and fps > 0):
        raise SpatialfeatError(f"fps is {fps}; give the frame numbers per second, above 0")
    num_frames = len(video.frames)
    if num_frames == 0:
        return Timeline(starts=np.zeros(0), ends=np.zeros(0), segment_starts=(), num_gaps=0)
    new_segment = np.diff(video.segments) != 0
    distance = np.diff(video.frames).astype(np.float64)
    gap = ~new_segment & (distance > GAP_FACTOR * step)
    # The first frame of a segment follows the last frame of the one before at the usual distance.
    advance = np.where(new_segment, step, distance)
    starts = np.concatenate([[0.0], np.cumsum(advance)]) / fps
    lasts = np.concatenate([np.where(gap, step, advance), [step]]) / fps
    firsts = np.concatenate([[0], np.flatnonzero(new_segment) + 1])
    return Timeline(
        starts=starts,
        ends=np.where(np.append(gap, True), starts + lasts, np.append(starts[1:], 0.0)),
        segment_starts=tuple((int(video.segments[first]), float(starts[first])) for first in firsts),
        num_gaps=int(gap.sum()),
    )


def find_runs(values: IntArray, line: Timeline) -> Runs:
    """Join frames of equal value; a gap or a new segment ends a run. values: (T,), as the frames of `line`."""
    assert len(values) == len(line.starts), (len(values), len(line.starts))
    if len(values) == 0:
        return Runs(values=np.zeros(0, dtype=np.int64), starts=np.zeros(0), ends=np.zeros(0))
    segment_starts = np.array([start for _, start in line.segment_starts])
    ended = (np.diff(values) != 0) | (line.starts[1:] != line.ends[:-1]) | np.isin(line.starts[1:], segment_starts)
    firsts = np.concatenate([[0], np.flatnonzero(ended) + 1])
    lasts = np.concatenate([np.flatnonzero(ended), [len(values) - 1]])
    return Runs(values=values[firsts].astype(np.int64), starts=line.starts[firsts], ends=line.ends[lasts])


def time_unit(duration_s: float) -> tuple[float, str]:
    """(seconds per unit, name of the unit) of an axis of this length."""
    return (60.0, "min") if duration_s >= MINUTES_FROM_S else (1.0, "s")


def duration_text(duration_s: float) -> str:
    """`0.04 s`, `42 s`, `3 min 05 s` or `1 h 02 min`, rounded."""
    seconds = round(duration_s)
    if seconds < 60:
        return f"{duration_s:.2g} s" if duration_s < 10 else f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(duration_s / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
