"""Ribbons: the phases of a video over time, ground truth above each set of predictions.

Blank = no frame with that number; white with grey lines = a frame without label. Colours as in `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from spatialfeat.console import clock_text, count_text, duration_text
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.reports.plots import phase_style, plain_text
from spatialfeat.reports.tables import REPORT
from spatialfeat.scores.metrics import BoolArray, FloatArray, IntArray
from spatialfeat.scores.predictions import EvaluatedVideo, usual_step
from spatialfeat.scores.segmental import find_runs
from spatialfeat.scores.summary import Evaluation, shown_of

GAP_FACTOR = 1.5
"""Frame numbers further apart than this many usual steps leave a gap; less is jitter of the sampling."""

MINUTES_FROM_S = 180.0
"""Time is shown in minutes from this length on."""

WIDTH_IN = 10.0
ROW_IN = 0.36
OVERVIEW_ROW_IN = 0.12
VIDEOS_PER_PAGE, ROWS_PER_PAGE = 20, 60

NUMBERED_FRACTION = 0.02
"""A run at least this long, as a part of the axis, carries the number of its phase."""

SHORTEST_FRACTION = 0.001
"""A shorter run, as a part of the axis, is drawn this long: more than a pixel of a PNG, so that it can be seen."""

UNLABELLED_LOOKS: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "#8a8a8a", "hatch": "\\\\\\\\"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """Times in seconds since the video's first frame; segments follow each other without a break.

    starts, ends: (T,) float64, half-open; a frame lasts until the next one, or one usual step before a gap and at the
    end. breaks: (T-1,) bool, where a gap or a new segment follows. segment_starts: S pairs (segment number, time of its
    first frame). num_gaps: gaps within segments.
    """

    starts: FloatArray
    ends: FloatArray
    breaks: BoolArray
    segment_starts: tuple[tuple[int, float], ...]
    num_gaps: int

    @classmethod
    def of(cls, segments: IntArray, frame_numbers: IntArray, *, fps: float, step: float) -> Timeline:
        """Place a video's T frames, at least one, in time.

        fps: frame numbers per second. step: frame numbers from one frame to the next where none is missing.
        """
        assert fps > 0, fps
        new_segment = np.diff(segments) != 0
        distance = np.diff(frame_numbers).astype(np.float64)
        gap = ~new_segment & (distance > GAP_FACTOR * step)
        # The first frame of a segment follows the last frame of the one before at the usual distance.
        advance = np.where(new_segment, step, distance)
        starts = np.concatenate([[0.0], np.cumsum(advance)]) / fps
        lasts = np.concatenate([np.where(gap, step, advance), [step]]) / fps
        firsts = np.concatenate([[0], np.flatnonzero(new_segment) + 1])
        return cls(
            starts=starts,
            ends=np.where(np.append(gap, True), starts + lasts, np.append(starts[1:], 0.0)),
            breaks=gap | new_segment,
            segment_starts=tuple((int(segments[first]), float(starts[first])) for first in firsts),
            num_gaps=int(gap.sum()),
        )

    @property
    def duration_s(self) -> float:
        return float(self.ends[-1])

    def runs(self, values: IntArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """(values, starts, ends in seconds), each (R,), of the runs of values (T,); gaps and segments end a run."""
        runs = find_runs(values, self.breaks)
        return runs.values, self.starts[runs.starts], self.ends[runs.ends - 1]


def timelines(videos: Sequence[EvaluatedVideo], fps: float) -> list[Timeline]:
    """One per video. fps: frame numbers per second."""
    step = usual_step(videos)
    return [Timeline.of(video.segments, video.frame_numbers, fps=fps, step=step) for video in videos]


def time_unit(duration_s: float) -> tuple[float, str]:
    """(seconds per unit, name of the unit) of an axis of this length."""
    return (60.0, "min") if duration_s >= MINUTES_FROM_S else (1.0, "s")


def ribbon_figure(evaluations: Sequence[Evaluation], position: int, line: Timeline) -> Figure:
    """One video: a row of ground truth above one row per evaluation, and a legend of all phases.

    Where no video has a label, there is a row of confidence below instead.

    position: of the video in `evaluations[0].videos`. line: of that video.
    """
    video = evaluations[0].videos[position]
    unit_s, unit = time_unit(line.duration_s)
    rows = _rows(evaluations, position)
    confidence = None if _has_truth(evaluations) else video.probabilities
    num_rows = len(rows) + (confidence is not None)
    legend = _Legend(evaluations, [position])
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * num_rows + legend.height_in + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for index, (_, values) in enumerate(rows):
        _draw_row(axes, line, values, (index + 0.06, 0.88), unit_s, line.duration_s)
        _write_numbers(axes, line, values, index + 0.5, unit_s)
    if len(line.segment_starts) > 1:
        _mark_segments(axes, line, num_rows, unit_s)
    labels = [label for label, _ in rows]
    if confidence is not None:
        _draw_confidence(axes, line, confidence.max(axis=1), len(rows), unit_s)
        labels.append("confidence")
    axes.set_yticks(np.arange(num_rows) + 0.5, labels)
    axes.set_ylim(num_rows, 0)
    title = [plain_text(video.video_id, longest=48), *_facts(line)]
    axes.set_title(", ".join(title), fontsize=10, pad=18 if len(line.segment_starts) > 1 else 6)
    _time_axis(axes, line.duration_s / unit_s, f"time since the first frame ({unit})")
    legend.draw(figure)
    return figure


def describe_video(video: EvaluatedVideo, line: Timeline) -> str:
    """A video in words: frames, duration, first and last id, gaps and segments."""
    frames, duration, *gaps = _facts(line)
    parts = [frames, duration, f"from {video.frame_ids[0]} to {video.frame_ids[-1]}", *gaps]
    if len(line.segment_starts) > 1:
        starts = ", ".join(f"{number} from {duration_text(start)}" for number, start in line.segment_starts)
        parts.append(f"segments (dashed lines): {starts}")
    return "; ".join(parts)


def _facts(line: Timeline) -> list[str]:
    gaps = [f"{count_text(line.num_gaps, 'gap')} (blank)"] if line.num_gaps else []
    return [count_text(len(line.starts), "frame"), duration_text(line.duration_s), *gaps]


def overview_figures(evaluations: Sequence[Evaluation], lines: Sequence[Timeline]) -> list[Figure]:
    """Every video on one time axis, at most `VIDEOS_PER_PAGE` to a figure, in the order of `evaluations[0]`."""
    longest_s = max(line.duration_s for line in lines)
    most = max(1, min(VIDEOS_PER_PAGE, ROWS_PER_PAGE // (1 + len(evaluations))))
    num_pages = -(-len(lines) // most)
    per_page = -(-len(lines) // num_pages)
    figures = []
    for page in range(num_pages):
        positions = range(len(lines))[page * per_page : (page + 1) * per_page]
        note = f", page {page + 1} of {num_pages}" if num_pages > 1 else ""
        figures.append(_overview_page(evaluations, lines, positions, longest_s, note))
    return figures


def _overview_page(
    evaluations: Sequence[Evaluation], lines: Sequence[Timeline], positions: range, longest_s: float, note: str
) -> Figure:
    """positions: of the page's videos. note: which page it is, ", page 2 of 3"."""
    unit_s, unit = time_unit(longest_s)
    videos = [evaluations[0].videos[position] for position in positions]
    legend = _Legend(evaluations, positions)
    num_rows = len(_rows(evaluations, positions[0]))
    pitch = num_rows + 0.6  # Rows per video, and a space before the next.
    height_in = OVERVIEW_ROW_IN * pitch * len(videos) + legend.height_in + 1.2
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    for number, position in enumerate(positions):
        line, rows = lines[position], _rows(evaluations, position)
        for row, (_, values) in enumerate(rows):
            _draw_row(axes, line, values, (number * pitch + row + 0.03, 0.94), unit_s, longest_s)
        for _, start in line.segment_starts[1:]:
            _mark_segment(axes, start / unit_s, number * pitch, number * pitch + len(rows))
    ids = [plain_text(video.video_id, longest=24) for video in videos]
    axes.set_yticks((np.arange(len(videos)) * pitch + num_rows / 2), ids, fontsize=8)
    axes.set_ylim(len(videos) * pitch - 0.6, -0.3)
    truth = ["ground truth"] if _has_truth(evaluations) else []
    order = ", ".join([*truth, *(plain_text(evaluation.name, longest=24) for evaluation in evaluations)])
    axes.set_title(f"All videos{note}. Rows of each, from above: {order}", fontsize=10, wrap=True)
    _time_axis(axes, longest_s / unit_s, f"time since each video's first frame ({unit})")
    legend.draw(figure)
    return figure


def _rows(evaluations: Sequence[Evaluation], position: int) -> list[tuple[str, IntArray]]:
    """(label, values (T,)) per row, ground truth first; the label of predictions gives the video's accuracy."""
    video = evaluations[0].videos[position]
    rows = [("ground truth", video.labels)] if _has_truth(evaluations) else []
    for evaluation in evaluations:
        accuracy = next((row["accuracy"] for row in evaluation.per_video if row["video_id"] == video.video_id), None)
        label = plain_text(evaluation.name, longest=24)
        label = label if accuracy is None else f"{label} ({REPORT.number(accuracy)})"
        rows.append((label, evaluation.videos[position].predictions))
    return rows


def _has_truth(evaluations: Sequence[Evaluation]) -> bool:
    return any(video.num_labelled for video in evaluations[0].videos)


def _draw_confidence(axes: Axes, line: Timeline, values: FloatArray, row: int, unit_s: float) -> None:
    """Draw values (T,) of 0 to 1 as an area of the row's height, blank where frames are missing, with a scale."""
    bottom, height = row + 0.94, 0.88
    for frames in np.split(np.arange(len(values)), np.flatnonzero(line.breaks) + 1):
        times = np.column_stack([line.starts[frames], line.ends[frames]]).ravel() / unit_s
        axes.fill_between(times, bottom, bottom - height * np.repeat(values[frames], 2), color="#8a8a8a", linewidth=0)
    _frame_row(axes, line, (row + 0.06, height), unit_s)
    scale = axes.secondary_yaxis("right")
    scale.set_yticks([bottom, bottom - height / 2, bottom - height], ["0", "0.5", "1"], fontsize=7)
    scale.tick_params(length=2, pad=1)
    scale.spines["right"].set_visible(False)
    axes.plot([0, line.duration_s / unit_s], [bottom - height / 2] * 2, color="0.2", linestyle=":", linewidth=0.6)


def _draw_row(
    axes: Axes, line: Timeline, values: IntArray, place: tuple[float, float], unit_s: float, axis_s: float
) -> None:
    """Draw the runs of values (T,) as bars. place: (upper edge, height) in rows. axis_s: length of the axis."""
    values, starts, ends = line.runs(values)
    lengths, shortest_s = ends - starts, SHORTEST_FRACTION * axis_s
    # Short runs last, or their neighbours would cover them.
    for chosen in (lengths >= shortest_s, lengths < shortest_s):
        for value in np.unique(values[chosen]).tolist():
            of_value = chosen & (values == value)
            widths = np.maximum(lengths[of_value], shortest_s) / unit_s
            bars = list(zip(starts[of_value] / unit_s, widths, strict=True))
            # Without antialiasing, neighbours of the same row meet without a light seam.
            axes.broken_barh(bars, place, linewidth=0, antialiased=False, **_looks(value))
    _frame_row(axes, line, place, unit_s)


def _frame_row(axes: Axes, line: Timeline, place: tuple[float, float], unit_s: float) -> None:
    length, (top, height) = line.duration_s / unit_s, place
    looks: dict[str, Any] = {"fill": False, "edgecolor": "0.45", "linewidth": 0.5, "clip_on": False}
    axes.add_patch(Rectangle((0, top), length, height, **looks))


def _looks(value: int) -> dict[str, Any]:
    if value == UNLABELLED:
        return UNLABELLED_LOOKS
    style = phase_style(value)
    return {"facecolor": style.colour, "edgecolor": style.ink, "hatch": style.hatch}


def _write_numbers(axes: Axes, line: Timeline, values: IntArray, middle: float, unit_s: float) -> None:
    """Write the phase into long runs, so that grey print can be read."""
    for value, start, end in zip(*line.runs(values), strict=True):
        if value == UNLABELLED or end - start < NUMBERED_FRACTION * line.duration_s:
            continue
        style = phase_style(int(value))
        box = {"facecolor": style.colour, "linewidth": 0, "pad": 0.8} if style.hatch else None
        place = (start + end) / 2 / unit_s
        axes.text(place, middle, str(value), ha="center", va="center_baseline", fontsize=7, color=style.ink, bbox=box)


def _mark_segments(axes: Axes, line: Timeline, num_rows: int, unit_s: float) -> None:
    """A dashed line where a segment begins, its number above."""
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


def _time_axis(axes: Axes, length: float, label: str) -> None:
    axes.set_xlim(0, length)
    axes.set_xlabel(label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


class _Legend:
    """The phases with number and colour, in as many columns as surely fit: all, or of more than 60 those that occur.

    Without any truth, where a phase that is not drawn means nothing, those that are drawn.
    """

    def __init__(self, evaluations: Sequence[Evaluation], positions: Sequence[int]) -> None:
        """positions: of the videos that are drawn."""
        names = evaluations[0].metrics["phase_names"]
        drawn = {value for position in positions for _, row in _rows(evaluations, position) for value in np.unique(row)}
        listed = set(range(len(names))) if _has_truth(evaluations) else drawn - {UNLABELLED}
        shown = [phase for phase in shown_of(evaluations) if phase in listed]
        self._handles = [
            Patch(label=plain_text(f"{phase} {names[phase]}"), linewidth=0, **_looks(phase)) for phase in shown
        ]
        if len(shown) < len(listed):
            self._handles.append(Patch(label=f"{len(listed) - len(shown)} other phases", linewidth=0, fill=False))
        if UNLABELLED in drawn:
            self._handles.append(Patch(label="no label", linewidth=0.5, **UNLABELLED_LOOKS))
        # An 8 point letter is about 0.07 inch wide.
        longest = max(len(str(handle.get_label())) for handle in self._handles)
        self._num_columns = max(1, min(len(self._handles), int((WIDTH_IN - 0.4) / (0.07 * longest + 0.55))))
        self.height_in = 0.19 * -(-len(self._handles) // self._num_columns)

    def draw(self, figure: Figure) -> None:
        # Matplotlib fills a legend column by column; this is the order in which it reads row by row.
        handles = [
            handle for column in range(self._num_columns) for handle in self._handles[column :: self._num_columns]
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=self._num_columns, fontsize=8, frameon=False)


SHEET_COLUMNS = 6


def contact_sheet(
    video_id: str,
    frame_numbers: Sequence[int],
    labels: Sequence[int],
    fps: float,
    phase_names: Sequence[str],
    pictures: Sequence[tuple[int, float, Path]],
) -> Figure:
    """A prepared video at a glance: the ribbon of its phases above one frame of each.

    frame_numbers, labels: T each, the first frame of the video being number 0. fps: frame numbers per second.
    pictures: (label, seconds, file) of each frame shown.
    """
    phases, numbers = np.array(labels, dtype=np.int64), np.array(frame_numbers, dtype=np.int64)
    line = Timeline.of(np.zeros_like(numbers), numbers, fps=fps, step=1)
    before_s = frame_numbers[0] / fps  # The pictures' times count from the video's start; so must the ribbon's.
    line = replace(line, starts=line.starts + before_s, ends=line.ends + before_s)
    unit_s, unit = time_unit(line.duration_s)
    num_columns = min(SHEET_COLUMNS, len(pictures))
    num_rows = -(-len(pictures) // num_columns)
    height_in = min(1.7 * SHEET_COLUMNS / num_columns, 3.4)  # Few pictures are larger, and take the whole width.
    figure = Figure(figsize=(WIDTH_IN, 1.3 + height_in * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows + 1, num_columns, height_ratios=[0.35, *[height_in] * num_rows])
    ribbon = figure.add_subplot(grid[0, :])
    _draw_row(ribbon, line, phases, (0.0, 1.0), unit_s, line.duration_s)
    _write_numbers(ribbon, line, phases, 0.5, unit_s)
    ribbon.set_ylim(1, 0)
    ribbon.set_yticks([])
    _time_axis(ribbon, line.duration_s / unit_s, f"time ({unit})")
    num_unlabelled = labels.count(UNLABELLED)
    unlabelled = [f"{num_unlabelled} without a phase"] if num_unlabelled else []
    facts = [count_text(len(labels), "sample"), *_facts(line)[1:]]  # The video itself has more frames than these.
    title = [plain_text(video_id, longest=48), *facts, *unlabelled]
    ribbon.set_title(", ".join(title), fontsize=10)
    for index, (label, seconds, path) in enumerate(pictures):
        axes = figure.add_subplot(grid[1 + index // num_columns, index % num_columns])
        name = "no label" if label == UNLABELLED else f"{label} {phase_names[label]}"
        _show_picture(axes, path, f"{plain_text(name, longest=24)}\n{clock_text(seconds)}")
        looks = _looks(label)
        for spine in axes.spines.values():
            spine.set_edgecolor(looks["edgecolor"] if label == UNLABELLED else looks["facecolor"])
            spine.set_linewidth(4)
    return figure


def crop_sheet(pictures: Sequence[tuple[str, bool, Path]]) -> Figure:
    """What is cut off each video. pictures: (video, whether anything is, a picture with the box drawn in)."""
    num_rows = -(-len(pictures) // SHEET_COLUMNS)
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 1.6 * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, SHEET_COLUMNS)
    for index, (video, is_cut, path) in enumerate(pictures):
        axes = figure.add_subplot(grid[index // SHEET_COLUMNS, index % SHEET_COLUMNS])
        _show_picture(axes, path, plain_text(video, longest=24) + ("" if is_cut else "\nkept whole"))
    return figure


def _show_picture(axes: Axes, path: Path, title: str) -> None:
    with Image.open(path) as image:
        image.thumbnail((320, 320))
        axes.imshow(np.asarray(image.convert("RGB")))
    axes.set_title(title, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
