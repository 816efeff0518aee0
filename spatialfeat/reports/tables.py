"""Tables of scores: their rows, and how they are written on a terminal. The report writes the same rows as HTML.

Every table says how its numbers were averaged. A row holds labels and numbers; a `Style` turns these into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from spatialfeat.console import align, count_text, omission
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.scores.metrics import MEASURES, STRATEGIES
from spatialfeat.scores.summary import Evaluation, shown_of
from spatialfeat.scores.table import MEASURE_TITLES, SCORES, Score

Interval: TypeAlias = Sequence[float] | None

NAME_WIDTH = 24
"""Columns of a phase's name on a terminal."""


@dataclass(frozen=True)
class Style:
    """How numbers are written. digits: decimals. undefined: stands for None. interval: of its low and high end."""

    digits: int
    undefined: str
    interval: str

    def number(self, value: float | None, sign: str = "") -> str:
        """sign "+": a difference."""
        return self.undefined if value is None else f"{round(value, self.digits) + 0.0:{sign}.{self.digits}f}"

    def ends(self, interval: Interval, sign: str = "") -> str:
        """Both ends of an interval."""
        if interval is None:
            return self.undefined
        return self.interval.format(*(self.number(end, sign) for end in interval))


TERMINAL = Style(4, "-", "{} to {}")
REPORT = Style(3, "\u2013", "[{}, {}]")


class ScoreRow(NamedTuple):
    """An overall score of one set of predictions."""

    score: Score
    value: float | None
    interval: Interval


class DifferenceRow(NamedTuple):
    """An overall score of two sets. is_clear: whether the interval of the difference excludes 0, None without one."""

    score: Score
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval
    is_clear: bool | None


def overall_rows(metrics: Mapping[str, Any]) -> list[ScoreRow]:
    """One row per overall score."""
    return [ScoreRow(found, found.value_in(metrics), metrics["intervals"].get(key)) for key, found in SCORES.items()]


def difference_rows(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[DifferenceRow]:
    """One row per overall score. comparison: as `summary.compare` returns it, of two of the evaluations."""
    metrics = {evaluation.name: evaluation.metrics for evaluation in evaluations}
    first, second = metrics[comparison["first"]], metrics[comparison["second"]]
    rows = []
    for key, found in SCORES.items():
        difference, interval = (comparison["differences"][key][name] for name in ("difference", "interval"))
        is_clear = None if interval is None else interval[0] > 0 or interval[1] < 0
        rows.append(DifferenceRow(found, found.value_in(first), found.value_in(second), difference, interval, is_clear))
    return rows


def score_tables(evaluation: Evaluation) -> str:
    """Everything about one set of predictions for a terminal: overall, video-wise, relaxed, per phase."""
    metrics = evaluation.metrics
    parts = [_headline(evaluation), _overall(metrics), _video_wise(metrics), _relaxed(metrics), _per_phase(evaluation)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _headline(evaluation: Evaluation) -> list[str]:
    metrics = evaluation.metrics
    unit = metrics["grouped_by"]
    counts = [f"{count_text(metrics['num_frames'], 'frame')} of {count_text(metrics['num_videos'], unit)}"]
    if unit != "patient":
        counts.append(count_text(metrics["intervals"]["num_patients"], "patient"))
    counts.append(f"{metrics['num_phases']} phases")
    left_out = sum(int((video.labels == UNLABELLED).sum()) for video in evaluation.videos)
    note = f"; {count_text(left_out, 'unlabelled frame')} left out" if left_out else ""
    return [f"{evaluation.name}: {', '.join(counts)}{note}"]


def _overall(metrics: Mapping[str, Any]) -> list[str]:
    rows = [["score", "how it is averaged", "value", "95 % interval"]]
    for row in overall_rows(metrics):
        average = row.score.averaging.short.format(unit=metrics["grouped_by"])
        rows.append([row.score.title, average, TERMINAL.number(row.value), TERMINAL.ends(row.interval)])
    if "calibration" in metrics:
        error, bins = (metrics["calibration"][name] for name in ("expected_calibration_error", "num_bins"))
        rows.append(["calibration err.", f"all frames, {bins} bins", TERMINAL.number(error)])
    return [*align(rows, left=(0, 1, 3)), f"intervals: {_resampling(metrics['intervals'])}"]


def _video_wise(metrics: Mapping[str, Any]) -> list[str]:
    """All three averages of each measure under both strategies."""
    unit = metrics["grouped_by"]
    rows = [
        ["", f"mean over {unit}s of", "mean over all", "mean over phases of"],
        ["", "means over phases", f"{unit} x phase", f"means over {unit}s"],
    ]
    for strategy in STRATEGIES:
        for measure, title in MEASURE_TITLES.items():
            found = metrics["video_wise"][strategy][measure]
            by_video, by_phase = found["video_macro"], found["phase_macro"]
            rows.append(
                [
                    f"  {title}",
                    f"{TERMINAL.number(by_video['mean'])} (sd {TERMINAL.number(by_video['std_over_videos'])})",
                    TERMINAL.number(found["cell_mean"]),
                    f"{TERMINAL.number(by_phase['mean'])} (sd {TERMINAL.number(by_phase['std_over_phases'])})",
                ]
            )
    lines = align(rows, left=range(4))
    half = 2 + len(MEASURE_TITLES)
    return [
        f"per {unit} and phase, then averaged; sd = standard deviation over {unit}s or over phases",
        *lines[:2],
        "strategy A: a phase predicted where it does not occur scores 0",
        *lines[2:half],
        "strategy B: it is left out",
        *lines[half:],
    ]


def _relaxed(metrics: Mapping[str, Any]) -> list[str]:
    relaxed = metrics["relaxed"]
    if relaxed is None:
        return []
    unit, window = metrics["grouped_by"], count_text(relaxed["window_frames"], "frame")
    rows = [["  accuracy", f"mean over {unit}s", TERMINAL.number(relaxed["accuracy"])]]
    for measure, title in MEASURE_TITLES.items():
        if measure in relaxed:
            rows.append([f"  {title}", f"mean over phases of means over {unit}s, B", TERMINAL.number(relaxed[measure])])
    heading = f"window {relaxed['window_s']:g} s = {window} at {relaxed['sampling_fps']:g} fps"
    return [f"relaxed boundaries: {heading}", *align(rows, left=(0, 1))]


def _per_phase(evaluation: Evaluation) -> list[str]:
    metrics, shown = evaluation.metrics, shown_of([evaluation])
    note = omission(len(shown), metrics["num_phases"])
    rows = [["phase", "frames", *(MEASURE_TITLES[measure] for measure in MEASURES), "95 % interval of F1"]]
    for phase in shown:
        row, intervals = metrics["per_phase"][phase], metrics["intervals"]["per_phase"][phase]
        name = row["name"] if len(row["name"]) <= NAME_WIDTH else f"{row['name'][: NAME_WIDTH - 2]}.."
        numbers = [TERMINAL.number(row[measure]) for measure in MEASURES]
        rows.append([name, str(row["support"]), *numbers, TERMINAL.ends(intervals["f1"])])
    note = f" ({note}; all: per_phase.csv)" if note else ""
    return [f"per phase, all frames together{note}", *align(rows, left=(0, 2 + len(MEASURES)))]


def comparison_table(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The differences of one set of predictions to the first, for a terminal."""
    unit = evaluations[0].metrics["grouped_by"]
    found = difference_rows(comparison, evaluations)
    rows = [["score", "how it is averaged", "first", "second", "differ.", "95 % interval"]]
    for row in found:
        average = row.score.averaging.short.format(unit=unit)
        numbers = [TERMINAL.number(row.first), TERMINAL.number(row.second), TERMINAL.number(row.difference, "+")]
        mark = " *" if row.is_clear else ""
        rows.append([row.score.title, average, *numbers, TERMINAL.ends(row.interval, "+") + mark])
    names = f"{comparison['second']} minus {comparison['first']}"
    return "\n".join([
        f"{names}, on the same frames; {_resampling(comparison)}",
        *align(rows, left=(0, 1, 5)),
        *(["* the interval excludes 0"] if any(row.is_clear for row in found) else []),
    ])  # fmt: skip


def _resampling(found: Mapping[str, Any]) -> str:
    if found["num_patients"] < 2:
        return "none, because they need at least 2 patients"
    if not found["samples"]:
        return "none, because no bootstrap samples were asked for"
    return f"{found['samples']} bootstrap samples of {found['num_patients']} patients"
