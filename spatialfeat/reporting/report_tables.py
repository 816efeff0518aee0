"""Tables of the report. Beside every number stands how it was averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spatialfeat.reporting.report_html import (
    UNDEFINED,
    escaped,
    interval_text,
    number,
    paint,
    signed,
    spread,
    swatch,
    table,
)
from spatialfeat.scores.evaluation import Evaluation

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


def comparison_table(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
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
