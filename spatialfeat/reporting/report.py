"""`report.html`: one evaluation run on one page, complete in itself.

The page needs no network, no script and no file beside it. It even forbids the browser to fetch anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialfeat.console import count_text
from spatialfeat.files import write_atomically
from spatialfeat.reporting.pictures import confusion_title
from spatialfeat.reporting.plots import confusion_figure, png_bytes, svg_bytes
from spatialfeat.reporting.plots_ribbons import overview_figures
from spatialfeat.reporting.plots_scores import per_phase_figure, reliability_figure
from spatialfeat.reporting.report_html import escaped, paragraph, picture, section, tiles
from spatialfeat.reporting.report_ribbons import legend, ribbons
from spatialfeat.reporting.report_style import STYLE
from spatialfeat.reporting.report_tables import (
    comparison_table,
    headline_cards,
    per_phase_table,
    per_video_table,
    protocol_table,
    relaxed_note,
    video_wise_table,
)
from spatialfeat.reporting.report_words import DEFINITIONS
from spatialfeat.scores.evaluation import Evaluation
from spatialfeat.scores.metrics import IGNORED_LABEL

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SECTIONS = {
    "headline": "Headline numbers",
    "protocols": "Every protocol",
    "comparisons": "Comparison",
    "phases": "Per phase",
    "confusion": "Confusion matrix",
    "calibration": "Calibration",
    "videos": "Per video",
    "ribbons": "Ribbons",
    "definitions": "How these numbers are defined",
}


def write_report(
    path: Path,
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    fps: float,
    title: str,
    facts: Mapping[str, object],
) -> None:
    """Write the report of one or more evaluations of the same videos.

    Args:
        comparisons: what `comparison.compare` returns, each with the keys "first" and "second", the names of two of
            the evaluations; empty for a single one.
        fps: frame numbers per second.
        facts: what to say about the run, in order: {"weights": "best_....pth", ...}. Every text is escaped.

    Raises:
        SpatialfeatError: fps is not positive.
    """
    bodies = {
        "headline": _headline(evaluations),
        "protocols": _protocols(evaluations),
        "comparisons": "".join(comparison_table(comparison, evaluations) for comparison in comparisons),
        "phases": _phases(evaluations),
        "confusion": "".join(_confusion(evaluation) for evaluation in evaluations),
        "calibration": "".join(map(_calibration, evaluations)),
        "videos": "".join(per_video_table(evaluation) for evaluation in evaluations),
        "ribbons": _ribbons(evaluations, fps),
        "definitions": DEFINITIONS,
    }
    if comparisons:
        bodies["comparisons"] = _comparison_note(comparisons[0]) + bodies["comparisons"]
    shown = {name: SECTIONS[name] for name, body in bodies.items() if body}
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading in shown.items())
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without an icon of its own a browser may ask a server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{tiles(len(evaluations[0].metrics['phase_names']))}<header>\n<h1>{escaped(title)}</h1>\n{_facts(facts)}"
        f"</header>\n<nav>{links}</nav>\n<main>\n"
        + "".join(section(name, heading, bodies[name]) for name, heading in shown.items())
        + "</main>\n</body>\n</html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _facts(facts: Mapping[str, object]) -> str:
    items = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>\n' if items else ""


def _headline(evaluations: Sequence[Evaluation]) -> str:
    metrics = evaluations[0].metrics
    intervals = metrics["intervals"]
    text = (
        f"{count_text(metrics['num_frames'], 'labelled frame')} of {count_text(metrics['num_videos'], 'video')} of "
        f"{count_text(intervals['num_patients'], 'patient')}; {count_text(metrics['num_phases'], 'phase')}. "
        "All numbers are fractions, 0 to 1. "
    )
    if intervals["samples"]:
        text += (
            f"Intervals: {intervals['level']:.0%}, by resampling patients {intervals['samples']} times "
            f"(seed {intervals['seed']})."
        )
    else:
        text += "No intervals: they need at least two patients and one resample."
    # A heading for a single evaluation too: its name says what was scored.
    return paragraph(text) + "".join(
        f"<h3>{escaped(evaluation.name)}</h3>\n{headline_cards(evaluation.metrics)}" for evaluation in evaluations
    )


def _protocols(evaluations: Sequence[Evaluation]) -> str:
    return (
        protocol_table(evaluations)
        + paragraph(relaxed_note(evaluations[0].metrics), "note")
        + "".join(video_wise_table(evaluation) for evaluation in evaluations)
    )


def _comparison_note(comparison: Mapping[str, Any]) -> str:
    if not comparison["samples"]:
        return paragraph("Differences of the same frames; no intervals, which need at least two patients.", "note")
    return paragraph(
        f"Paired bootstrap: each of {comparison['samples']} resamples of {comparison['num_patients']} patients scores "
        f"both predictions (seed {comparison['seed']}). Where 0 lies outside the interval, chance in the choice of "
        "patients hardly explains the difference.",
        "note",
    )


def _phases(evaluations: Sequence[Evaluation]) -> str:
    caption = (
        "F1, precision and recall of each phase, all frames of all videos pooled; the black line is the bootstrap "
        "interval over patients. Phases that do not occur are marked, not drawn as 0."
    )
    figure = picture(svg_bytes(per_phase_figure(evaluations)), "Bars of the scores of each phase", caption)
    return figure + "".join(per_phase_table(evaluation) for evaluation in evaluations)


def _confusion(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    counts = np.asarray(metrics["confusion_matrix"], dtype=np.int64)
    figure = confusion_figure(counts, metrics["phase_names"], confusion_title(evaluation))
    name = escaped(evaluation.name)
    caption = (
        f"{name}: of the frames of each true phase (row), the fraction predicted as each phase (column); the "
        "number of frames below it. Empty cells hold no frame."
    )
    return picture(svg_bytes(figure), f"Confusion matrix of {evaluation.name}", caption, "middle")


def _calibration(evaluation: Evaluation) -> str:
    if "calibration" not in evaluation.metrics:
        return paragraph(f"{escaped(evaluation.name)}: not computed, because these predictions have no probabilities.")
    caption = (
        f"{escaped(evaluation.name)}: accuracy of the frames in each bin of confidence, and below, how many frames "
        "fall into it. Above the dashed line the model is too modest, below it too sure."
    )
    alternative = f"Reliability curve of {evaluation.name}"
    return picture(svg_bytes(reliability_figure(evaluation)), alternative, caption, "small")


def _ribbons(evaluations: Sequence[Evaluation], fps: float) -> str:
    videos = evaluations[0].videos
    unlabelled = any(bool((video.labels == IGNORED_LABEL).any()) for video in videos)
    text = (
        "Phases over time: ground truth first, then each set of predictions with its accuracy in this video. "
        f"Time counts from the video's first frame, {fps:g} frame numbers per second. Blank: no frame of that number."
    )
    pages = "".join(
        picture(
            png_bytes(figure),
            "Overview of the ribbons of all videos",
            "All videos on one time axis, so that their lengths can be compared.",
            kind="png",
        )
        for figure in overview_figures(evaluations, fps=fps)
    )
    drawn = legend(evaluations[0].metrics["phase_names"], unlabelled=unlabelled) + ribbons(evaluations, fps=fps)
    return paragraph(text) + drawn + ("<h3>Overview</h3>\n" + pages if len(videos) > 1 else "")
