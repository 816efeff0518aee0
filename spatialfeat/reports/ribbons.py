"""Where the frames of a video lie in time, and runs of frames with the same value: what ribbons are drawn from.

Ribbons: the phases of a video over time, ground truth above each set of predictions.

Blank = no frame with that number; white with grey lines = a frame without label. Colours as in `palette.py`.

Ribbons for the report: compact drawings that stretch with the page, their text as text.

A run costs about ten bytes: one path per phase and row, every run a horizontal stroke as wide as the row is high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from spatialfeat.console import count_text, duration_text
from spatialfeat.errors import SpatialfeatError
from spatialfeat.reports.plots import UNLABELLED_COLOUR, UNLABELLED_LINE, phase_style, plain_text
from spatialfeat.reports.tables import escaped, paint, swatch
from spatialfeat.scores.metrics import IGNORED_LABEL, FloatArray, IntArray
from spatialfeat.scores.predictions import EvaluatedVideo, Evaluation, usual_step

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


def timeline(video: EvaluatedVideo, *, fps: float, step: float) -> Timeline:
    """Place a video's frames in time.

    fps: frame numbers per second. step: frame numbers from one frame to the next where none is missing (`usual_step`).
    Raises SpatialfeatError unless fps is positive.
    """
    if not (np.isfinite(fps) and fps > 0):
        raise SpatialfeatError(f"fps is {fps}; give the frame numbers per second, above 0")
    num_frames = len(video.frame_numbers)
    if num_frames == 0:
        return Timeline(starts=np.zeros(0), ends=np.zeros(0), segment_starts=(), num_gaps=0)
    new_segment = np.diff(video.segments) != 0
    distance = np.diff(video.frame_numbers).astype(np.float64)
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


WIDTH_IN = 10.0
ROW_IN = 0.36
OVERVIEW_ROW_IN = 0.12
VIDEOS_PER_PAGE, ROWS_PER_PAGE = 20, 60

NUMBERED_FRACTION = 0.02
"""A run at least this long, as a part of the axis, carries the number of its phase."""


def ribbon_figure(evaluations: Sequence[Evaluation], position: int, *, fps: float) -> Figure:
    """One video: a row of ground truth above one row per evaluation, and a legend of all phases.

    position: of the video in `evaluations[0].videos`. fps: frame numbers per second.
    Raises SpatialfeatError unless fps is positive.
    """
    video = evaluations[0].videos[position]
    line = timeline(video, fps=fps, step=usual_step(evaluations[0].videos))
    unit_s, unit = time_unit(line.duration_s)
    names = evaluations[0].metrics["phase_names"]
    rows = _rows(evaluations, video)
    handles = _legend_handles(names, unlabelled=bool((video.labels == IGNORED_LABEL).any()))
    num_columns = _legend_columns(handles)
    figure = Figure(
        figsize=(WIDTH_IN, ROW_IN * len(rows) + 0.19 * -(-len(handles) // num_columns) + 1.1), layout="constrained"
    )
    axes = figure.add_subplot()
    for index, (_, values) in enumerate(rows):
        runs = find_runs(values, line)
        _draw_row(axes, runs, line, (index + 0.06, 0.88), unit_s)
        _write_numbers(axes, runs, line, index + 0.5, unit_s)
    _mark_segments(axes, line, len(rows), unit_s)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [label for label, _ in rows])
    axes.set_ylim(len(rows), 0)
    axes.set_xlim(0, max(line.duration_s, 1e-9) / unit_s)
    axes.set_xlabel(f"time since the first frame ({unit})")
    axes.set_title(_title(video, line), fontsize=10, pad=18 if len(line.segment_starts) > 1 else 6)
    _bare(axes)
    figure.legend(
        handles=_by_rows(handles, num_columns), loc="outside lower center", ncols=num_columns, fontsize=8, frameon=False
    )
    return figure


def overview_figures(evaluations: Sequence[Evaluation], *, fps: float) -> list[Figure]:
    """Every video on one time axis, at most `VIDEOS_PER_PAGE` to a figure, in the order of `evaluations[0]`.

    Raises SpatialfeatError unless fps is positive.
    """
    videos = evaluations[0].videos
    step = usual_step(videos)
    lines = [timeline(video, fps=fps, step=step) for video in videos]
    longest_s = max((line.duration_s for line in lines), default=0.0)
    most = max(1, min(VIDEOS_PER_PAGE, ROWS_PER_PAGE // (1 + len(evaluations))))
    num_pages = -(-len(videos) // most)
    per_page = -(-len(videos) // max(num_pages, 1))
    pages = [slice(page * per_page, (page + 1) * per_page) for page in range(num_pages)]
    return [
        _overview_page(
            evaluations,
            videos[page],
            lines[page],
            longest_s,
            f", page {number} of {num_pages}" if num_pages > 1 else "",
        )
        for number, page in enumerate(pages, start=1)
    ]


def _overview_page(
    evaluations: Sequence[Evaluation],
    videos: Sequence[EvaluatedVideo],
    lines: Sequence[Timeline],
    longest_s: float,
    page: str,
) -> Figure:
    unit_s, unit = time_unit(longest_s)
    unlabelled = any((video.labels == IGNORED_LABEL).any() for video in videos)
    handles = _legend_handles(evaluations[0].metrics["phase_names"], unlabelled=unlabelled)
    num_columns = _legend_columns(handles)
    pitch = len(evaluations) + 1.6  # Rows per video, and a space before the next.
    legend_in = 0.19 * -(-len(handles) // num_columns)
    figure = Figure(figsize=(WIDTH_IN, OVERVIEW_ROW_IN * pitch * len(videos) + legend_in + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (video, line) in enumerate(zip(videos, lines, strict=True)):
        rows = _rows(evaluations, video)
        for row, (_, values) in enumerate(rows):
            _draw_row(axes, find_runs(values, line), line, (number * pitch + row + 0.03, 0.94), unit_s)
        for _, start in line.segment_starts[1:]:
            _mark_segment(axes, start / unit_s, number * pitch, number * pitch + len(rows))
    ids = [plain_text(video.video_id, longest=24) for video in videos]
    axes.set_yticks((np.arange(len(videos)) * pitch + (len(evaluations) + 1) / 2), ids, fontsize=8)
    axes.set_ylim(len(videos) * pitch - 0.6, -0.3)
    axes.set_xlim(0, max(longest_s, 1e-9) / unit_s)
    axes.set_xlabel(f"time since each video's first frame ({unit})")
    order = ", ".join(["ground truth", *(plain_text(evaluation.name, longest=24) for evaluation in evaluations)])
    axes.set_title(f"All videos{page}. Rows of each, from above: {order}", fontsize=10, wrap=True)
    _bare(axes)
    figure.legend(
        handles=_by_rows(handles, num_columns), loc="outside lower center", ncols=num_columns, fontsize=8, frameon=False
    )
    return figure


def _rows(evaluations: Sequence[Evaluation], video: EvaluatedVideo) -> list[tuple[str, IntArray]]:
    """(label, values (T,)) per row, ground truth first; the label of predictions gives the video's accuracy."""
    rows = [("ground truth", video.labels)]
    for evaluation in evaluations:
        accuracy = next((row["accuracy"] for row in evaluation.per_video if row["video_id"] == video.video_id), None)
        label = plain_text(evaluation.name, longest=24)
        values = next(other.predictions for other in evaluation.videos if other.video_id == video.video_id)
        rows.append((label if accuracy is None else f"{label} ({accuracy:.3f})", values))
    return rows


def _draw_row(axes: Axes, runs: Runs, line: Timeline, place: tuple[float, float], unit_s: float) -> None:
    """Draw runs as bars. place: (upper edge, height) in rows."""
    for value in np.unique(runs.values):
        chosen = runs.values == value
        starts, widths = runs.starts[chosen] / unit_s, (runs.ends - runs.starts)[chosen] / unit_s
        looks = _looks(int(value))
        # Without antialiasing, neighbours of the same row meet without a light seam.
        axes.broken_barh(list(zip(starts, widths, strict=True)), place, linewidth=0, antialiased=False, **looks)
    end = line.duration_s / unit_s
    frame = Rectangle((0, place[0]), end, place[1], fill=False, edgecolor="0.45", linewidth=0.5, clip_on=False)
    axes.add_patch(frame)


def _looks(value: int) -> dict[str, Any]:
    if value == IGNORED_LABEL:
        return {"facecolor": UNLABELLED_COLOUR, "edgecolor": UNLABELLED_LINE, "hatch": "\\\\\\\\"}
    style = phase_style(value)
    return {"facecolor": style.colour, "edgecolor": style.ink, "hatch": style.hatch}


def _write_numbers(axes: Axes, runs: Runs, line: Timeline, middle: float, unit_s: float) -> None:
    """Write the phase into long runs, so that grey print can be read."""
    shown = (runs.ends - runs.starts >= NUMBERED_FRACTION * line.duration_s) & (runs.values >= 0)
    for value, start, end in zip(runs.values[shown], runs.starts[shown], runs.ends[shown], strict=True):
        style = phase_style(int(value))
        box = {"facecolor": style.colour, "linewidth": 0, "pad": 0.8} if style.hatch else None
        axes.text(
            (start + end) / 2 / unit_s,
            middle,
            str(value),
            ha="center",
            va="center_baseline",
            fontsize=7,
            color=style.ink,
            bbox=box,
        )


def _mark_segments(axes: Axes, line: Timeline, num_rows: int, unit_s: float) -> None:
    """A dashed line where a segment begins, its number above; nothing for a single segment."""
    if len(line.segment_starts) < 2:
        return
    last_end = -np.inf
    for number, start in line.segment_starts:
        if start > 0:
            _mark_segment(axes, start / unit_s, -0.12, num_rows)
        # Beside a short segment there is no room for the next number.
        if start - last_end >= 0.09 * line.duration_s:
            axes.text(start / unit_s, -0.16, f"segment {number}", fontsize=8, ha="left", va="bottom")
            last_end = start


def _mark_segment(axes: Axes, place: float, top: float, bottom: float) -> None:
    axes.plot([place, place], [top, bottom], color="white", linewidth=3, clip_on=False, solid_capstyle="butt")
    axes.plot([place, place], [top, bottom], color="black", linewidth=1, linestyle=(0, (3, 2)), clip_on=False)


def _by_rows(handles: Sequence[Patch], num_columns: int) -> list[Patch]:
    """The order in which matplotlib, which fills a legend column by column, shows them row by row."""
    return [handle for column in range(num_columns) for handle in handles[column::num_columns]]


def _legend_handles(names: Sequence[str], *, unlabelled: bool) -> list[Patch]:
    handles = [
        Patch(label=plain_text(f"{phase} {name}"), linewidth=0, **_looks(phase)) for phase, name in enumerate(names)
    ]
    if unlabelled:
        handles.append(Patch(label="no label", linewidth=0.5, **_looks(IGNORED_LABEL)))
    return handles


def _legend_columns(handles: Sequence[Patch]) -> int:
    """As many columns as surely fit: an 8 point letter is about 0.07 inch wide."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(len(handles), int((WIDTH_IN - 0.4) / (0.07 * longest + 0.55))))


def _title(video: EvaluatedVideo, line: Timeline) -> str:
    parts = [
        plain_text(video.video_id, longest=48),
        count_text(len(video.frame_numbers), "frame"),
        duration_text(line.duration_s),
    ]
    if line.num_gaps:
        parts.append(f"{count_text(line.num_gaps, 'gap')} (blank)")
    return ", ".join(parts)


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


WIDTH = 2000
"""Units across a ribbon. A shorter run is drawn one unit long, so that it can be seen."""

ROW, PITCH = 20, 23
NUMBERED_ON_PAGE_FRACTION, NUMBERED_ON_PHONE_FRACTION = 0.04, 0.07
"""A run at least this long, as a part of the axis, carries the number of its phase; on a phone it must be longer."""


def legend(phase_names: Sequence[str], *, unlabelled: bool) -> str:
    """Every phase with its number and colour."""
    items = [f"<li>{swatch(paint(phase))}{phase} {escaped(name)}</li>" for phase, name in enumerate(phase_names)]
    if unlabelled:
        items.append(f"<li>{swatch('url(#no-label)')}no label</li>")
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def ribbons(evaluations: Sequence[Evaluation], *, fps: float) -> str:
    """One figure per video. fps: frame numbers per second. Raises SpatialfeatError unless it is positive."""
    videos = evaluations[0].videos
    step = usual_step(videos)
    predictions = [{video.video_id: video.predictions for video in evaluation.videos} for evaluation in evaluations]
    accuracies = [{row["video_id"]: row["accuracy"] for row in evaluation.per_video} for evaluation in evaluations]
    figures = []
    for video in videos:
        rows = [("ground truth", "", video.labels)]
        for evaluation, values, scores in zip(evaluations, predictions, accuracies, strict=True):
            score = scores.get(video.video_id)
            shown = "" if score is None else f"{score:.3f}"
            rows.append((evaluation.name, shown, values[video.video_id]))
        figures.append(_figure(video, rows, timeline(video, fps=fps, step=step), evaluations[0].metrics["phase_names"]))
    return "".join(figures)


def _figure(
    video: EvaluatedVideo, rows: Sequence[tuple[str, str, IntArray]], line: Timeline, phase_names: Sequence[str]
) -> str:
    """rows: (name, accuracy as text, values (T,))."""
    names = "".join(
        f'<div title="{escaped(name)}">{score}{" " if score else ""}{escaped(name)}</div>' for name, score, _ in rows
    )
    found = [find_runs(values, line) for _, _, values in rows]
    paths = "".join(_row(runs, line, index * PITCH + ROW / 2, phase_names) for index, runs in enumerate(found))
    numbers = "".join(_numbers(runs, line, index * PITCH) for index, runs in enumerate(found))
    height = len(rows) * PITCH - (PITCH - ROW)
    marks = "".join(
        f'<path d="M{_place(start, line)} 0v{height}" stroke="{colour}" stroke-width="{width}"{dash} '
        'vector-effect="non-scaling-stroke"/>'
        for _, start in line.segment_starts[1:]
        for colour, width, dash in (("#fff", 4, ""), ("#000", 1.5, ' stroke-dasharray="4 3"'))
    )
    unit_s, unit = time_unit(line.duration_s)
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {height}" height="{height}" preserveAspectRatio="none" fill="none" role="img" '
        f'aria-label="Ribbons of video {escaped(video.video_id)}" shape-rendering="crispEdges">{paths}{marks}</svg>'
    )
    return (
        f'<figure class="ribbon"><figcaption>{_caption(video, line)}</figcaption><div class="grid">'
        f'<div class="names">{names}</div><div class="stage">{picture}{numbers}</div>'
        f'<div class="unit">{unit}</div><div class="axis">{_ticks(line.duration_s / unit_s)}</div>'
        "</div></figure>\n"
    )


def _row(runs: Runs, line: Timeline, middle: float, phase_names: Sequence[str]) -> str:
    """One path per phase that occurs; the phase's name appears when the pointer rests on it."""
    parts = []
    firsts, lasts = _units(runs.starts, line), _units(runs.ends, line)
    lasts = np.maximum(lasts, firsts + 1)
    for value in np.unique(runs.values).tolist():
        chosen = runs.values == value
        strokes = "".join(
            f"M{first} {middle:g}h{last - first}"
            for first, last in zip(firsts[chosen].tolist(), lasts[chosen].tolist(), strict=True)
        )
        name = "no label" if value == IGNORED_LABEL else f"{value} {phase_names[value]}"
        colour = "url(#no-label)" if value == IGNORED_LABEL else paint(value)
        parts.append(
            f'<path stroke="{colour}" stroke-width="{ROW}" d="{strokes}"><title>{escaped(name)}</title></path>'
        )
    return "".join(parts)


def _numbers(runs: Runs, line: Timeline, top: int) -> str:
    """Numbers of the phases on long runs, for print without colour. They lie over the drawing, which is stretched."""
    shown = (runs.ends - runs.starts >= NUMBERED_ON_PAGE_FRACTION * line.duration_s) & (runs.values >= 0)
    whole = max(line.duration_s, 1e-9)
    middles = (runs.starts + runs.ends)[shown] / 2 / whole * 100
    short = (runs.ends - runs.starts)[shown] < NUMBERED_ON_PHONE_FRACTION * whole
    parts = []
    for value, middle, is_short in zip(runs.values[shown].tolist(), middles.tolist(), short.tolist(), strict=True):
        style = phase_style(value)
        back = f";background:{style.colour};line-height:1.2;margin-top:3px" if style.hatch else ""
        place = f"left:{middle:.1f}%;top:{top}px;color:{style.ink}{back}"
        parts.append(f'<span{" class=short" if is_short else ""} style="{place}">{value}</span>')
    return "".join(parts)


def _caption(video: EvaluatedVideo, line: Timeline) -> str:
    count = len(video.frame_numbers)
    parts = [count_text(count, "frame"), duration_text(line.duration_s)]
    if count:
        parts.append(f"from {escaped(video.frame_ids[0])} to {escaped(video.frame_ids[-1])}")
    if line.num_gaps:
        parts.append(f"{count_text(line.num_gaps, 'gap')} (blank)")
    if len(line.segment_starts) > 1:
        starts = ", ".join(f"{number} from {duration_text(start)}" for number, start in line.segment_starts)
        parts.append(f"segments (dashed lines): {starts}")
    return f"<b>{escaped(video.video_id)}</b>: {'; '.join(parts)}"


def _ticks(length: float) -> str:
    """About seven labels at round numbers; none so near the end that it would be cut off."""
    if length <= 0:
        return ""
    raw = length / 7
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    places = np.arange(0, length * 0.97, step)
    return "".join(f'<span style="left:{place / length * 100:.2f}%">{place:.10g}</span>' for place in places)


def _units(times: FloatArray, line: Timeline) -> IntArray:
    return np.rint(times / max(line.duration_s, 1e-9) * WIDTH).astype(np.int64)


def _place(time_s: float, line: Timeline) -> int:
    return round(time_s / max(line.duration_s, 1e-9) * WIDTH)
