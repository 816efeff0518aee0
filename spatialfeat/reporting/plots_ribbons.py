"""Ribbons: the phases of a video over time, ground truth above each set of predictions.

Blank = no frame with that number; white with grey lines = a frame without label. Colours as in `palette.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from spatialfeat.console import count_text
from spatialfeat.reporting.palette import UNLABELLED_COLOUR, UNLABELLED_LINE, phase_style
from spatialfeat.reporting.plots import plain_text
from spatialfeat.scores.evaluation import EvaluatedVideo, Evaluation
from spatialfeat.scores.metrics import IGNORED_LABEL, IntArray
from spatialfeat.scores.timeline import Runs, Timeline, duration_text, find_runs, time_unit, timeline, usual_step

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
        count_text(len(video.frames), "frame"),
        duration_text(line.duration_s),
    ]
    if line.num_gaps:
        parts.append(f"{count_text(line.num_gaps, 'gap')} (blank)")
    return ", ".join(parts)


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
