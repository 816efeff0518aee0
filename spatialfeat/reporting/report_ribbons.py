"""Ribbons for the report: compact drawings that stretch with the page, their text as text.

A run costs about ten bytes: one path per phase and row, every run a horizontal stroke as wide as the row is high.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialfeat.console import count_text
from spatialfeat.reporting.palette import phase_style
from spatialfeat.reporting.report_html import escaped, paint, swatch
from spatialfeat.scores.evaluation import EvaluatedVideo, Evaluation
from spatialfeat.scores.metrics import IGNORED_LABEL, FloatArray, IntArray
from spatialfeat.scores.timeline import Runs, Timeline, duration_text, find_runs, time_unit, timeline, usual_step

WIDTH = 2000
"""Units across a ribbon. A shorter run is drawn one unit long, so that it can be seen."""

ROW, PITCH = 20, 23
NUMBERED_FRACTION, NUMBERED_ON_PHONE_FRACTION = 0.04, 0.07
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
    shown = (runs.ends - runs.starts >= NUMBERED_FRACTION * line.duration_s) & (runs.values >= 0)
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
    count = len(video.frames)
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
