"""The style sheet of the report: light and dark, narrow and wide screens, print.

What the report says about its numbers.

Which pictures an evaluation leaves behind, and under which names.

`report.html`: one evaluation run on one page, complete in itself.

The page needs no network, no script and no file beside it. It even forbids the browser to fetch anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialfeat.console import count_text
from spatialfeat.files import write_atomically
from spatialfeat.reports.plots import (
    confusion_figure,
    confusion_title,
    per_phase_figure,
    png_bytes,
    reliability_figure,
    save_confusion_matrix,
    save_figure,
    svg_bytes,
)
from spatialfeat.reports.ribbons import legend, overview_figures, ribbon_figure, ribbons
from spatialfeat.reports.tables import comparison_html as comparison_table
from spatialfeat.reports.tables import (
    escaped,
    headline_cards,
    paragraph,
    per_phase_table,
    per_video_table,
    picture,
    protocol_table,
    relaxed_note,
    section,
    tiles,
    video_wise_table,
)
from spatialfeat.scores.metrics import IGNORED_LABEL
from spatialfeat.scores.predictions import Evaluation

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #59636e; --line: #d0d7de; --card: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --back: #15181c; --soft: #a3acb6; --line: #3b434c; --card: #20252b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 48rem; }
a { color: inherit; }
nav { font-size: 0.9rem; }
nav a { display: inline-block; margin: 0 0.9rem 0.2rem 0; padding: 0.2rem 0; }
.note, figcaption, caption { color: var(--soft); font-size: 0.9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  overflow-wrap: normal; }
thead th { border-bottom-width: 2px; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; }
table.worded td:last-child, table.worded th:last-child { text-align: left; white-space: normal; min-width: 15rem; }
tbody th { position: sticky; left: 0; background: var(--back); max-width: 22rem; white-space: normal; }
table.worded tbody th { white-space: nowrap; }
caption span { display: block; position: sticky; left: 0; max-width: min(48rem, 100vw - 2rem); }
dl.facts { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.15rem 1rem; font-size: 0.9rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0.7rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem 0.8rem; }
.card .what { font-weight: 600; }
.card .value { font-size: 1.6rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.card .how { color: var(--soft); font-size: 0.85rem; }
.tiles { position: absolute; }
.swatch { width: 1.3rem; height: 0.87rem; vertical-align: -0.1rem; margin-right: 0.4rem; }
figure { margin: 1rem 0; }
.picture .scroll, .ribbon .stage { background: #ffffff; border-radius: 0.3rem; }
.picture .scroll { padding: 0.5rem; }
.picture img { display: block; width: 100%; min-width: 34rem; max-width: 60rem; height: auto; margin: 0 auto; }
.picture.small img { max-width: 34rem; min-width: 24rem; }
.picture.middle img { max-width: 46rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; font-size: 0.9rem; }
.ribbon { margin: 1.3rem 0; }
.ribbon figcaption b { color: var(--text); }
.ribbon .grid { display: grid; grid-template-columns: 9.5rem minmax(0, 1fr); column-gap: 0.6rem; margin-top: 0.3rem; }
.ribbon .names { font-size: 0.8rem; text-align: right; }
.ribbon .names div { height: 23px; line-height: 20px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.ribbon .stage { position: relative; border: 1px solid var(--line); border-radius: 0; align-self: start; }
.ribbon .stage svg { display: block; width: 100%; }
.ribbon .stage span { position: absolute; transform: translateX(-50%); font-size: 11px; line-height: 20px;
  white-space: nowrap; }
.ribbon .unit { text-align: right; color: var(--soft); font-size: 0.75rem; }
.ribbon .axis { position: relative; height: 1.3rem; font-size: 0.75rem; color: var(--soft); }
.ribbon .axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.ribbon .axis span:first-child { transform: none; }
dl.words dt { font-weight: 600; margin-top: 0.6rem; }
dl.words dd { margin: 0 0 0 1rem; max-width: 48rem; }
@media (max-width: 40rem) {
  body { padding: 0.7rem; }
  .ribbon .grid { grid-template-columns: 5.6rem minmax(0, 1fr); column-gap: 0.4rem; }
  .ribbon .names { font-size: 0.72rem; }
  .ribbon .stage span.short { display: none; }
  th, td { padding: 0.25rem 0.5rem; }
  tbody th, table.worded tbody th { min-width: 7rem; max-width: 50vw; white-space: normal; overflow-wrap: break-word; }
}
@media print {
  :root { color-scheme: light; --text: #000000; --back: #ffffff; --soft: #444444; --line: #bbbbbb; --card: #ffffff; }
  @page { margin: 14mm 12mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.12rem 0.35rem; }
  tbody th { position: static; }
  thead { display: table-header-group; }
  tr, figure, .card, .scroll { break-inside: avoid; }
  h1, h2, h3, caption { break-after: avoid; }
  .picture img { min-width: 0; max-width: 100%; max-height: 230mm; width: auto; }
  .picture.small img { max-height: 105mm; }
  .picture.middle img { max-height: 150mm; }
}
"""


DEFINITIONS = """
<p>For a phase, TP, FP and FN count frames: rightly predicted, wrongly predicted, missed. Precision = TP / (TP + FP),
recall = TP / (TP + FN), Jaccard = TP / (TP + FP + FN), F1 = 2 TP / (2 TP + FP + FN). Phases are always the full list,
never only those that happen to occur. Frames without label are left out.</p>
<dl class="words">
<dt>Pooled</dt>
<dd>All frames of all videos counted together, so that long videos weigh more. Macro: the mean over all phases, where an
undefined score counts as 0.</dd>
<dt>Video-wise</dt>
<dd>Computed in each video, then averaged; long and short videos weigh the same. The standard deviation (n - 1) is over
videos or over phases, as named.</dd>
<dt>Strategies A and B</dt>
<dd>What happens to a phase that is missing from a video. If it is neither there nor predicted, all its scores are left
out. If it is predicted though not there, A counts precision, F1 and Jaccard as 0 and leaves recall out; B leaves all
out. If it is there but never predicted, recall, F1 and Jaccard are 0 and precision is left out in both.</dd>
<dt>Three averages</dt>
<dd>They differ as soon as something is left out. Video-macro: the mean over the phases of each video, then over videos.
Cell mean: the mean over all pairs of video and phase. Phase-macro: the mean over the videos of each phase, then over
phases. F1 is always a mean of F1s, never the F1 of mean precision and mean recall.</dd>
<dt>Segmental</dt>
<dd>Edit score: 1 minus the edit distance between the two sequences of segments, divided by the length of the longer
one. F1@10, 25, 50: a predicted segment is right if it overlaps a true segment of the same phase, not yet taken, with an
intersection over union of at least 10, 25 or 50 %; counted over the segments of all videos.</dd>
<dt>Relaxed</dt>
<dd>Near the start of a true segment, a phase that may come before it is forgiven; near its end, one that may follow.
Precision and recall are cut at 1. Comparable only with the same graph, window and sampling rate.</dd>
<dt>Intervals</dt>
<dd>Percentile bootstrap over patients: whole patients are drawn with replacement, because frames of one patient are
alike. Differences are paired: both predictions are scored on the same patients drawn.</dd>
<dt>Expected calibration error</dt>
<dd>The mean distance between confidence and accuracy over bins of equal width, weighted by their frames; confidence is
the probability of the predicted phase.</dd>
</dl>
<p>References: I. Funke, D. Rivoir, S. Speidel, "Metrics Matter in Surgical Phase Recognition", 2023, arXiv 2305.13961
(strategies, averages, relaxed numbers). Y. A. Farha, J. Gall, "MS-TCN: Multi-Stage Temporal Convolutional Network for
Action Segmentation", CVPR 2019 (segmental numbers). M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well
Calibrated Probabilities Using Bayesian Binning", AAAI 2015 (calibration error). B. Efron, R. J. Tibshirani,
"An Introduction to the Bootstrap", 1993.</p>
"""


def save_pictures(out_dir: Path, evaluations: Sequence[Evaluation], *, fps: float) -> list[Path]:
    """Write every picture, each as PNG and SVG, and return the paths written, in order.

    per_phase; confusion_matrix and, where there are probabilities, reliability (with _NAME for each of several
    evaluations); ribbons_overview (_1, _2, ... if it takes several pages); ribbons/VIDEO.
    fps: frame numbers per second.
    Raises SpatialfeatError unless fps is positive.
    """
    # The ribbons first: they check fps, and nothing is written if it is wrong.
    overviews = overview_figures(evaluations, fps=fps)
    suffixes = _suffixes(overviews)
    written = list(save_figure(per_phase_figure(evaluations), out_dir / "per_phase.png"))
    for evaluation, suffix in zip(evaluations, name_suffixes(evaluations), strict=True):
        counts = np.asarray(evaluation.metrics["confusion_matrix"], dtype=np.int64)
        written += save_confusion_matrix(
            out_dir / f"confusion_matrix{suffix}.png",
            counts,
            evaluation.metrics["phase_names"],
            confusion_title(evaluation),
        )
        if "calibration" in evaluation.metrics:
            written += save_figure(reliability_figure(evaluation), out_dir / f"reliability{suffix}.png")
    for figure, suffix in zip(overviews, suffixes, strict=True):
        written += save_figure(figure, out_dir / f"ribbons_overview{suffix}.png")
    (out_dir / "ribbons").mkdir(exist_ok=True)
    for position, video in enumerate(evaluations[0].videos):
        figure = ribbon_figure(evaluations, position, fps=fps)
        written += save_figure(figure, out_dir / "ribbons" / f"{video.video_id}.png")
    return written


def name_suffixes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What tells the files of several evaluations apart: "_NAME" in letters safe for file names; "" for one alone."""
    if len(evaluations) == 1:
        return [""]
    suffixes: list[str] = []
    for evaluation in evaluations:
        safe = "_" + re.sub(r"[^\w.-]+", "-", evaluation.name)
        while safe.casefold() in (other.casefold() for other in suffixes):
            safe += "-2"
        suffixes.append(safe)
    return suffixes


def _suffixes(figures: Sequence[object]) -> list[str]:
    return [""] if len(figures) == 1 else [f"_{number}" for number in range(1, len(figures) + 1)]


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
