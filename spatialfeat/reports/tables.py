"""Scores as text for a terminal. Every table says how its numbers were averaged, in at most 92 columns.

Pieces of HTML: text, numbers, tables, figures. Every text that comes from outside goes through `escaped`.

Tables of the report. Beside every number stands how it was averaged.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from spatialfeat.reports.plots import HATCHES, PHASE_COLOURS, phase_style
from spatialfeat.scores.predictions import Evaluation

NAME_WIDTH = 24
SCORE_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "jaccard": "Jaccard"}
SCORE_AVERAGES = {
    "accuracy": ("accuracy", "all frames together"),
    "macro_precision": ("macro precision", "pooled, mean over phases"),
    "macro_recall": ("macro recall", "pooled, mean over phases"),
    "macro_f1": ("macro F1", "pooled, mean over phases"),
    "macro_jaccard": ("macro Jaccard", "pooled, mean over phases"),
    "video_wise_accuracy": ("accuracy", "mean over {unit}s"),
    "edit": ("edit score", "mean over {unit}s"),
    "f1_10": ("F1@10", "segments of all {unit}s"),
    "f1_25": ("F1@25", "segments of all {unit}s"),
    "f1_50": ("F1@50", "segments of all {unit}s"),
}


def score_tables(evaluation: Evaluation) -> str:
    """Everything about one set of predictions: pooled, segmental, video-wise, relaxed, per phase."""
    metrics = evaluation.metrics
    parts = [
        _headline(evaluation),
        _overall(metrics),
        _video_wise(metrics),
        _relaxed(metrics),
        _per_phase(metrics),
    ]
    return "\n\n".join(part for part in parts if part)


def comparison_table(comparison: dict[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The differences of one set of predictions to the first. comparison: of `scorefiles.compare_with_first`."""
    found = {evaluation.name: evaluation.metrics for evaluation in evaluations}
    first, second = found[comparison["first"]], found[comparison["second"]]
    lines = [
        f"{comparison['second']} minus {comparison['first']}, on the same frames; {_resampling(comparison)}",
        f"{'score':<15}  {'how it is averaged':<26}  {'first':>6}  {'second':>6}  {'differ.':>7}  95 % interval",
    ]
    marked = False
    for name, (title, average) in SCORE_AVERAGES.items():
        difference, interval = (comparison["differences"][name][key] for key in ("difference", "interval"))
        clear = interval is not None and (interval[0] > 0 or interval[1] < 0)
        marked |= clear
        lines.append(
            f"{title:<15}  {average.format(unit=first['grouped_by']):<26}  {_number(_overall_score(first, name)):>6}  "
            f"{_number(_overall_score(second, name)):>6}  {difference:>+7.4f}  {_interval(interval, '+.4f')}"
            f"{' *' if clear else ''}"
        )
    return "\n".join([*lines, *(["* the interval excludes 0"] if marked else [])])


def _headline(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    left_out = sum(int((video.labels < 0).sum()) for video in evaluation.videos)
    unit = metrics["grouped_by"]
    text = f"{evaluation.name}: {_count(metrics['num_frames'], 'frame')} of {_count(metrics['num_videos'], unit)}"
    if unit != "patient":
        text += f", {_count(metrics['intervals']['num_patients'], 'patient')}"
    text += f", {metrics['num_phases']} phases"
    return text + (f"; {_count(left_out, 'unlabelled frame')} left out" if left_out else "")


def _overall(metrics: dict[str, Any]) -> str:
    intervals = metrics["intervals"]
    lines = [f"{'score':<15}  {'how it is averaged':<26}  {'value':>6}  95 % interval"]
    for name, (title, average) in SCORE_AVERAGES.items():
        lines.append(
            f"{title:<15}  {average.format(unit=metrics['grouped_by']):<26}  "
            f"{_number(_overall_score(metrics, name)):>6}  {_interval(intervals[name])}"
        )
    if "calibration" in metrics:
        error, bins = metrics["calibration"]["expected_calibration_error"], metrics["calibration"]["num_bins"]
        lines.append(f"{'calibration err.':<15} {f'all frames, {bins} bins':<26}  {_number(error):>6}")
    return "\n".join([*lines, f"intervals: {_resampling(intervals)}"])


def _video_wise(metrics: dict[str, Any]) -> str:
    """Precision, recall, F1 and Jaccard in all three averages under both strategies."""
    unit = metrics["grouped_by"]
    lines = [
        f"per {unit} and phase, then averaged; sd = standard deviation over {unit}s or over phases",
        f"{'':<17}  {f'mean over {unit}s of':<21}  {'mean over all':<15}  mean over phases of",
        f"{'':<17}  {'means over phases':<21}  {f'{unit} x phase':<15}  means over {unit}s",
    ]
    for strategy, meaning in (("A", "a phase predicted where it does not occur scores 0"), ("B", "it is left out")):
        lines.append(f"strategy {strategy}: {meaning}")
        for name, title in SCORE_TITLES.items():
            averages = metrics["video_wise"][strategy][name]
            by_video, by_phase = averages["video_macro"], averages["phase_macro"]
            lines.append(
                f"  {title:<15}  {_spread(by_video['mean'], by_video['std_over_videos']):<21}  "
                f"{_number(averages['cell_mean']):<15}  {_spread(by_phase['mean'], by_phase['std_over_phases'])}"
            )
    return "\n".join(lines)


def _relaxed(metrics: dict[str, Any]) -> str:
    relaxed = metrics["relaxed"]
    if relaxed is None:
        return ""
    unit = metrics["grouped_by"]
    window = (
        f"{relaxed['window_s']:g} s = {_count(relaxed['window_frames'], 'frame')} at {relaxed['sampling_fps']:g} fps"
    )
    return "\n".join([
        f"relaxed boundaries: window {window}",
        f"  {'accuracy':<15}  {f'mean over {unit}s':<43}  {_number(relaxed['accuracy'])}",
        *(
            f"  {SCORE_TITLES[name]:<15}  {f'mean over phases of means over {unit}s, B':<43}  {_number(relaxed[name])}"
            for name in ("precision", "recall", "jaccard")
        ),
    ])  # fmt: skip


def _per_phase(metrics: dict[str, Any]) -> str:
    intervals = metrics["intervals"]["per_phase"]
    width = min(NAME_WIDTH, max(len("phase"), *(len(name) for name in metrics["phase_names"])))
    lines = [
        "per phase, all frames together",
        f"{'phase':<{width}}  {'frames':>7}  {'precision':>9}  {'recall':>6}  {'Jaccard':>7}  {'F1':>6}  "
        "95 % interval of F1",
    ]
    for row, found in zip(metrics["per_phase"], intervals, strict=True):
        name = row["name"] if len(row["name"]) <= width else f"{row['name'][: width - 2]}.."
        lines.append(
            f"{name:<{width}}  {row['support']:>7}  {_number(row['precision']):>9}  {_number(row['recall']):>6}  "
            f"{_number(row['jaccard']):>7}  {_number(row['f1']):>6}  {_interval(found['f1'])}"
        )
    return "\n".join(lines)


def _overall_score(metrics: dict[str, Any], name: str) -> float | None:
    """The score that `intervals` and `differences` call so."""
    if name == "video_wise_accuracy":
        value = metrics["video_wise"]["accuracy"]["mean"]
    else:
        value = metrics["pooled"].get(name, metrics["segmental"].get(name))
    return None if value is None else float(value)


def _resampling(found: dict[str, Any]) -> str:
    if found["num_patients"] < 2:
        return "none, because they need at least 2 patients"
    if not found["samples"]:
        return "none, because no bootstrap samples were asked for"
    return f"{found['samples']} bootstrap samples of {found['num_patients']} patients"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spread(mean: float | None, deviation: float | None) -> str:
    return f"{_number(mean)} (sd {_number(deviation)})"


def _interval(interval: Sequence[float] | None, style: str = ".4f") -> str:
    return "-" if interval is None else f"{interval[0]:{style}} to {interval[1]:{style}}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


UNDEFINED = "\u2013"

# Lines of the hatchings in a tile of 12 x 12, by matplotlib's name.
_TILES = {
    "///": "M0 12L12 0M-3 3L3 -3M9 15L15 9",
    "xxx": "M0 12L12 0M0 0L12 12",
    "...": "M3 6h3M9 12h3M9 0h3",
    "---": "M0 6h12",
}


def escaped(text: object) -> str:
    """A text as HTML, inert inside elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: float | None) -> str:
    """Three decimals; a dash where undefined."""
    return UNDEFINED if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with the sign; a difference that rounds to zero has none."""
    return UNDEFINED if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("+0.000", "0.000")


def interval_text(interval: Sequence[float] | None, show: Any = number) -> str:
    """`[low, high]`, or a dash."""
    return UNDEFINED if interval is None else f"[{show(interval[0])}, {show(interval[1])}]"


def spread(value: dict[str, float | None]) -> str:
    """`mean ± standard deviation` of {"mean", "std_over_..."}; the mean alone if the deviation is undefined."""
    mean, deviation = value["mean"], next(other for name, other in value.items() if name.startswith("std_over_"))
    return number(mean) if mean is None or deviation is None else f"{number(mean)} ± {number(deviation)}"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, worded: bool = False) -> str:
    """A table in a box that scrolls by itself. All cells are HTML; the first of each row is its heading.

    worded: the last column holds words, not numbers.
    """
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>\n"
        for row in rows
    )
    style = ' class="worded"' if worded else ""
    # Focusable, so that the keyboard can scroll it too.
    return (
        f'<div class="scroll" tabindex="0"><table{style}><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def section(identifier: str, title: str, *parts: str) -> str:
    """One section of the page under a heading. title and parts are HTML."""
    return f'<section id="{identifier}">\n<h2>{title}</h2>\n{"".join(parts)}</section>\n'


def paragraph(text: str, style: str = "") -> str:
    """A paragraph; text is HTML, style a CSS class."""
    return f"<p{f' class={style!r}' if style else ''}>{text}</p>\n"


def picture(image: bytes, alternative: str, caption: str, style: str = "", *, kind: str = "svg+xml") -> str:
    """A finished SVG or PNG as an image: nothing inside can run, or clash with the page. caption is HTML."""
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure class="picture {style}"><div class="scroll" tabindex="0">'
        f'<img alt="{escaped(alternative)}" src="data:image/{kind};base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def paint(phase: int) -> str:
    """The value of `fill` or `stroke` for a phase: its colour, or the tile of its hatching from `tiles`."""
    style = phase_style(phase)
    return f"url(#{_tile_id(phase)})" if style.hatch else style.colour


def tiles(num_phases: int) -> str:
    """An invisible SVG with the hatchings of all phases that need one, and of unlabelled frames."""
    most = len(PHASE_COLOURS) * len(HATCHES)
    found = [
        _tile(_tile_id(phase), phase_style(phase).colour, phase_style(phase).ink, _TILES[phase_style(phase).hatch])
        for phase in range(len(PHASE_COLOURS), min(num_phases, most))
    ]
    found.append(_tile("no-label", "#ffffff", "#8a8a8a", "M0 0L12 12M-3 9L3 15M9 -3L15 3"))
    return f'<svg class="tiles" width="0" height="0" aria-hidden="true"><defs>{"".join(found)}</defs></svg>\n'


def swatch(fill: str) -> str:
    """A small box of a colour or tile."""
    box = f'<rect width="36" height="24" fill="{fill}" stroke="#777"/>'
    return f'<svg class="swatch" viewBox="0 0 36 24" aria-hidden="true">{box}</svg>'


def _tile_id(phase: int) -> str:
    return f"tile-{phase % (len(PHASE_COLOURS) * len(HATCHES))}"


def _tile(identifier: str, colour: str, ink: str, lines: str) -> str:
    return (
        f'<pattern id="{identifier}" width="12" height="12" patternUnits="userSpaceOnUse">'
        f'<rect width="12" height="12" fill="{colour}"/><path d="{lines}" stroke="{ink}" stroke-width="2"/></pattern>'
    )


POOLED = "all frames of all videos counted together"
MACRO = f"{POOLED}, then the mean over all phases (undefined counts as 0)"
VIDEO_MEAN = "per video, then the mean over videos"
SEGMENTS = "segments of all videos counted together"

# score as `bootstrap.resampled_scores` names it: (label, path in metrics.json, how it is averaged)
SCORES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "accuracy": ("Accuracy, pooled", ("pooled", "accuracy"), POOLED),
    "macro_f1": ("Macro F1, pooled", ("pooled", "macro_f1"), MACRO),
    "macro_precision": ("Macro precision, pooled", ("pooled", "macro_precision"), MACRO),
    "macro_recall": ("Macro recall, pooled", ("pooled", "macro_recall"), MACRO),
    "macro_jaccard": ("Macro Jaccard, pooled", ("pooled", "macro_jaccard"), MACRO),
    "video_wise_accuracy": ("Accuracy, video-wise", ("video_wise", "accuracy", "mean"), VIDEO_MEAN),
    "edit": ("Edit score", ("segmental", "edit"), VIDEO_MEAN),
    "f1_10": ("Segmental F1@10", ("segmental", "f1_10"), SEGMENTS),
    "f1_25": ("Segmental F1@25", ("segmental", "f1_25"), SEGMENTS),
    "f1_50": ("Segmental F1@50", ("segmental", "f1_50"), SEGMENTS),
}

MEASURES = {"precision": "Precision", "recall": "Recall", "jaccard": "Jaccard", "f1": "F1"}
RELAXED_MEASURES = {name: label for name, label in MEASURES.items() if name != "f1"}
NO_RELAXED = "not computed, because no graph of allowed transitions was given (--relaxed)"


def headline_cards(metrics: Mapping[str, Any]) -> str:
    """The numbers to quote first, each with its averaging and its interval or deviation."""
    cards = [
        _card(SCORES[name][0], number(_at(metrics, SCORES[name][1])), _interval_note(metrics, name), SCORES[name][2])
        for name in ("accuracy", "macro_f1")
    ]
    video_wise = metrics["video_wise"]
    cards.append(
        _card(
            "Accuracy, video-wise",
            number(video_wise["accuracy"]["mean"]),
            f"standard deviation over videos {number(video_wise['accuracy']['std_over_videos'])}; "
            + _interval_note(metrics, "video_wise_accuracy"),
            VIDEO_MEAN,
        )
    )
    for measure in ("f1", "jaccard"):
        found = video_wise["A"][measure]["video_macro"]
        note = f"standard deviation over videos {number(found['std_over_videos'])}; no interval computed"
        how = "strategy A; mean over the phases of each video, then the mean over videos"
        cards.append(_card(f"{MEASURES[measure]}, video-wise", number(found["mean"]), note, how))
    for name in ("edit", "f1_50"):
        label, path, how = SCORES[name]
        cards.append(_card(label, number(_at(metrics, path)), _interval_note(metrics, name), how))
    if "calibration" in metrics:
        error = number(metrics["calibration"]["expected_calibration_error"])
        how = f"{POOLED}, {metrics['calibration']['num_bins']} bins of equal width"
        cards.append(_card("Expected calibration error", error, "no interval computed; 0 is best", how))
    return f'<div class="cards">{"".join(cards)}</div>\n'


def protocol_table(evaluations: Sequence[Evaluation]) -> str:
    """Pooled, video-wise accuracy, segmental and relaxed numbers, one column per evaluation."""
    rows = [
        [label, *(_with_interval(evaluation.metrics, score) for evaluation in evaluations), how]
        for score, (label, _, how) in SCORES.items()
    ]
    for measure in ("accuracy", *RELAXED_MEASURES):
        how = VIDEO_MEAN if measure == "accuracy" else "strategy B, phase-macro: mean over videos, then over phases"
        values = [
            number(relaxed[measure]) if (relaxed := evaluation.metrics["relaxed"]) else "not computed"
            for evaluation in evaluations
        ]
        rows.append([f"Relaxed {'Jaccard' if measure == 'jaccard' else measure}", *values, how])
    level = evaluations[0].metrics["intervals"]["level"]
    caption = f"Every protocol. In brackets: {level:.0%} bootstrap interval over patients; none for relaxed numbers."
    header = ["Number", *(escaped(evaluation.name) for evaluation in evaluations), "How it is averaged"]
    return table(caption, header, rows, worded=True)


def relaxed_note(metrics: Mapping[str, Any]) -> str:
    """How the relaxed numbers were made, or why there are none."""
    relaxed = metrics["relaxed"]
    if relaxed is None:
        return f"Relaxed numbers: {NO_RELAXED}."
    return (
        f"Relaxed numbers: errors within {relaxed['window_s']:g} s ({relaxed['window_frames']} frames at "
        f"{relaxed['sampling_fps']:g} per second) of a phase's start or end are forgiven where the predicted phase is "
        f"one of {len(relaxed['transitions'])} allowed transitions."
    )


def video_wise_table(evaluation: Evaluation) -> str:
    """Strategies A and B with their three averages; the relaxed ones below, where computed."""
    groups = [("", evaluation.metrics["video_wise"], MEASURES)]
    if evaluation.metrics["relaxed"]:
        groups.append(("Relaxed: ", evaluation.metrics["relaxed"]["video_wise"], RELAXED_MEASURES))
    rows = []
    for prefix, content, measures in groups:
        for strategy in ("A", "B"):
            for name, label in measures.items():
                found = content[strategy][name]
                rows.append(
                    [
                        f"{prefix}{label}, strategy {strategy}",
                        spread(found["video_macro"]),
                        number(found["cell_mean"]),
                        spread(found["phase_macro"]),
                    ]
                )
    header = ["Measure", "video-macro<br>(± over videos)", "cell mean", "phase-macro<br>(± over phases)"]
    return table(f"{escaped(evaluation.name)}: video-wise numbers, by strategy and average", header, rows)


def per_phase_table(evaluation: Evaluation) -> str:
    """Each phase over all frames, pooled, with its intervals."""
    intervals = evaluation.metrics["intervals"]["per_phase"]
    rows = []
    for row, found in zip(evaluation.metrics["per_phase"], intervals, strict=True):
        cells = [
            number(row[name]) if found[name] is None else f"{number(row[name])} {interval_text(found[name])}"
            for name in MEASURES
        ]
        support = str(row["support"]) if row["support"] else "no frames"
        name = f"{swatch(paint(row['phase']))}{row['phase']} {escaped(row['name'])}"
        rows.append([name, support, *cells])
    return table(f"{escaped(evaluation.name)}: {POOLED}", ["Phase", "Frames", *MEASURES.values()], rows)


def per_video_table(evaluation: Evaluation) -> str:
    """Each video alone."""
    columns = {"accuracy": "Accuracy"} | {f"macro_{name}_A": f"{label} (A)" for name, label in MEASURES.items()}
    columns |= {"edit": "Edit", "f1_10": "F1@10", "f1_25": "F1@25", "f1_50": "F1@50"}
    rows = [
        [
            escaped(row["video_id"]),
            escaped(row["patient_id"]),
            str(row["num_frames"]),
            *(number(row[name]) for name in columns),
        ]
        for row in evaluation.per_video
    ]
    caption = f"{escaped(evaluation.name)}: each video alone; precision to F1 are means over its phases, strategy A"
    return table(caption, ["Video", "Patient", "Frames", *columns.values()], rows)


def comparison_html(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """Paired differences of two evaluations, second minus first."""
    first, second = str(comparison["first"]), str(comparison["second"])
    metrics = {evaluation.name: evaluation.metrics for evaluation in evaluations}
    rows = []
    for score, found in comparison["differences"].items():
        label, path, _ = SCORES[score]
        interval = found["interval"]
        verdict = UNDEFINED if interval is None else ("no" if interval[0] <= 0 <= interval[1] else "yes")
        rows.append(
            [
                label,
                number(_at(metrics[first], path)),
                number(_at(metrics[second], path)),
                signed(found["difference"]),
                interval_text(interval, signed),
                verdict,
            ]
        )
    level = f"{comparison['level']:.0%} interval"
    caption = f"{escaped(second)} minus {escaped(first)}, on the same frames"
    header = ["Number", escaped(first), escaped(second), "Difference", level, "0 outside?"]
    return table(caption, header, rows)


def _card(what: str, value: str, note: str, how: str) -> str:
    return (
        f'<div class="card"><div class="what">{what}</div><div class="value">{value}</div>'
        f'<div class="how">{note}<br>{how}</div></div>\n'
    )


def _interval_note(metrics: Mapping[str, Any], score: str) -> str:
    interval = metrics["intervals"][score]
    if interval is None:
        return "no interval: fewer than two patients"
    return f"{metrics['intervals']['level']:.0%} interval {interval_text(interval)}"


def _with_interval(metrics: Mapping[str, Any], score: str) -> str:
    value, interval = number(_at(metrics, SCORES[score][1])), metrics["intervals"][score]
    return value if interval is None else f"{value} {interval_text(interval)}"


def _at(metrics: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = metrics
    for key in path:
        found = found[key]
    return None if found is None else float(found)
