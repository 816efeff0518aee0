"""Tables of scores: their rows, and how they are written on a terminal. The report writes the same rows as HTML.

Every table says how its numbers were averaged. A row holds labels and numbers; a `Style` turns these into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from spatialfeat.console import align, count_text, omission, wrap
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.scores.metrics import MEASURES, STRATEGIES
from spatialfeat.scores.summary import Evaluation, shown_of
from spatialfeat.scores.table import FEWEST_FOR_A_CLAIM, MEASURE_TITLES, POOLED, SCORES, VIDEO_MEAN, Score

Interval: TypeAlias = Sequence[float] | None

NAME_WIDTH = 24
"""Columns of a phase's name on a terminal."""

NAMED_PHASES = 3
"""A line names so many phases; more would bury what it says of them."""

RELAXED_AVERAGE = "strategy B, phase-macro: mean over videos, then over phases"

DIGITS = 4
"""Decimals of a score, wherever it stands."""


@dataclass(frozen=True)
class Style:
    """How numbers are written. undefined: stands for None. interval: of its low and high end."""

    undefined: str
    interval: str

    def number(self, value: float | None, sign: str = "") -> str:
        """sign "+": a difference."""
        return self.undefined if value is None else f"{round(value, DIGITS) + 0.0:{sign}.{DIGITS}f}"

    def ends(self, interval: Interval, sign: str = "") -> str:
        """Both ends of an interval."""
        if interval is None:
            return self.undefined
        return self.interval.format(*(self.number(end, sign) for end in interval))


TERMINAL = Style("-", "{} to {}")
REPORT = Style("\u2013", "[{}, {}]")


class ScoreRow(NamedTuple):
    """An overall score of one set of predictions.

    occurring: of a macro score, where phases have no labelled frame: its mean over the others; else None.
    """

    score: Score
    value: float | None
    interval: Interval
    occurring: float | None


class HeadlineCard(NamedTuple):
    """One of the report's first numbers. estimates: name, value and a note of every set of predictions."""

    heading: str
    estimates: list[tuple[str, str, str]]
    averaging: str


class MainRow(NamedTuple):
    """A row of the report's main table: one text per set of predictions, and how the number is averaged."""

    heading: str
    cells: list[str]
    averaging: str


class DifferenceRow(NamedTuple):
    """An overall score of two sets.

    is_clear: whether the interval of the difference excludes 0; None without one, or with too few patients for a claim.
    """

    score: Score
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval
    is_clear: bool | None


def overall_rows(metrics: Mapping[str, Any]) -> list[ScoreRow]:
    """One row per overall score."""
    occurring = metrics["occurring"] if absent_phases(metrics) else {}
    return [
        ScoreRow(found, found.value_in(metrics), metrics["intervals"].get(key), occurring.get(key))
        for key, found in SCORES.items()
    ]


def headline_cards(evaluations: Sequence[Evaluation]) -> list[HeadlineCard]:
    """The few numbers that a reader looks for first; one card for each, however many sets there are."""

    def spread(found: Mapping[str, float | None]) -> str:
        return f"standard deviation over videos {REPORT.number(found['std_over_videos'])}"

    def score_card(key: str) -> HeadlineCard:
        score, estimates = SCORES[key], []
        for name, metrics in sets:
            row = next(row for row in overall_rows(metrics) if row.score is score)
            notes = [spread(metrics["video_wise"]["accuracy"])] if key == "video_wise_accuracy" else []
            if row.occurring is not None:
                notes.append(f"{REPORT.number(row.occurring)} over the phases that occur")
            level = f"{metrics['intervals']['level']:.0%}"
            why_none = ": fewer than two patients" if metrics["intervals"]["num_patients"] < 2 else ""
            notes.append(f"{level} interval {REPORT.ends(row.interval)}" if row.interval else f"no interval{why_none}")
            estimates.append((name, REPORT.number(row.value), "; ".join(notes)))
        return HeadlineCard(score.heading, estimates, score.averaging.long)

    def mean_card(measure: str) -> HeadlineCard:
        found = [(name, metrics["video_wise"]["A"][measure]["video_macro"]) for name, metrics in sets]
        estimates = [(name, REPORT.number(average["mean"]), spread(average)) for name, average in found]
        averaging = "strategy A; mean over the phases of each video, then the mean over videos"
        return HeadlineCard(f"{MEASURE_TITLES[measure]}, video-wise", estimates, averaging)

    sets = [(evaluation.name, evaluation.metrics) for evaluation in evaluations]
    cards = [score_card(key) for key in ("accuracy", "macro_f1", "video_wise_accuracy")]
    cards += [mean_card(measure) for measure in ("f1", "jaccard")]
    cards += [score_card(key) for key in ("edit", "f1_50")]
    calibrated = [(name, metrics["calibration"]) for name, metrics in sets if "calibration" in metrics]
    if calibrated:
        errors = [(name, REPORT.number(found["expected_calibration_error"]), "0 is best") for name, found in calibrated]
        averaging = f"{POOLED.long}, {calibrated[0][1]['num_bins']} bins of equal width"
        cards.append(HeadlineCard("Expected calibration error", errors, averaging))
    return cards


def main_rows(evaluations: Sequence[Evaluation]) -> list[MainRow]:
    """Every overall score of every set with its interval, then the relaxed ones where they were computed."""
    rows = []
    for found in zip(*(overall_rows(evaluation.metrics) for evaluation in evaluations), strict=True):
        score = found[0].score
        rows.append(MainRow(score.heading, [_estimate(row.value, row.interval) for row in found], score.averaging.long))
        if found[0].occurring is not None:
            over = f"the mean over {_occurring(evaluations[0].metrics)}"
            rows.append(MainRow(f"{score.heading}, occurring", [REPORT.number(row.occurring) for row in found], over))
    relaxed = [evaluation.metrics["relaxed"] for evaluation in evaluations]
    if None in relaxed:
        return rows
    measures = {"accuracy": "accuracy"} | {key: title for key, title in MEASURE_TITLES.items() if key in relaxed[0]}
    for measure, title in measures.items():
        average = VIDEO_MEAN.long if measure == "accuracy" else RELAXED_AVERAGE
        rows.append(MainRow(f"Relaxed {title}", [REPORT.number(scores[measure]) for scores in relaxed], average))
    return rows


def _estimate(value: float | None, interval: Interval) -> str:
    return REPORT.number(value) if interval is None else f"{REPORT.number(value)} {REPORT.ends(interval)}"


LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2013": "--",
}  # fmt: skip
"""What these letters are in LaTeX."""


def latex_table(evaluations: Sequence[Evaluation]) -> str:
    """The main table for a paper, with LaTeX's package booktabs; every text is escaped."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    note = (
        f"{_headline(evaluations[0]).partition(': ')[2]}; intervals: {_resampling(evaluations[0].metrics['intervals'])}"
    )
    return "\n".join([
        rf"% \usepackage{{booktabs}}  % {note}",
        rf"\begin{{tabular}}{{l{'c' * len(evaluations)}}}",
        r"\toprule",
        line(["Score", *(" ".join(evaluation.name.split()) for evaluation in evaluations)]),
        r"\midrule",
        *(line([row.heading, *row.cells]) for row in main_rows(evaluations)),
        r"\bottomrule",
        r"\end{tabular}",
    ])  # fmt: skip


def absent_phases(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the phases that no labelled frame has."""
    return [row["name"] for row in metrics["per_phase"] if row["support"] == 0]


def absence_note(metrics: Mapping[str, Any]) -> str:
    """That phases without a labelled frame lower the macro scores; "" if all phases occur."""
    absent = absent_phases(metrics)
    if not absent:
        return ""
    named = ", ".join(map(_short, absent[:NAMED_PHASES])) + (", ..." if len(absent) > NAMED_PHASES else "")
    verb = "counts" if len(absent) == 1 else "count"
    return (
        f"{count_text(len(absent), 'phase')} of {metrics['num_phases']} without a labelled frame ({named}) {verb} as 0 "
        f"in macro scores; below each of these is its mean over {_occurring(metrics)}"
    )


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 2]}.."


def _occurring(metrics: Mapping[str, Any]) -> str:
    """`the 6 phases that occur`: that have a labelled frame."""
    return f"the {count_text(metrics['occurring']['num_phases'], 'phase')} that occur"


def can_claim(found: Mapping[str, Any]) -> bool:
    """Whether intervals rest on enough patients to say what they exclude. found: intervals, or a comparison."""
    return bool(found["num_patients"] >= FEWEST_FOR_A_CLAIM)


def no_claim_note(found: Mapping[str, Any]) -> str:
    """Why a comparison marks no interval; "" if it does, or has none."""
    if can_claim(found) or not found["samples"]:
        return ""
    return (
        f"{count_text(found['num_patients'], 'patient')}, fewer than {FEWEST_FOR_A_CLAIM}, are too few for an interval "
        "to carry the claim that one is better: none is marked"
    )


def difference_rows(comparison: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[DifferenceRow]:
    """One row per overall score. comparison: as `summary.compare` returns it, of two of the evaluations."""
    metrics = {evaluation.name: evaluation.metrics for evaluation in evaluations}
    first, second = metrics[comparison["first"]], metrics[comparison["second"]]
    rows = []
    for key, found in SCORES.items():
        difference, interval = (comparison["differences"][key][name] for name in ("difference", "interval"))
        is_clear = (interval[0] > 0 or interval[1] < 0) if interval is not None and can_claim(comparison) else None
        rows.append(DifferenceRow(found, found.value_in(first), found.value_in(second), difference, interval, is_clear))
    return rows


def score_tables(evaluation: Evaluation) -> str:
    """Everything about one set of predictions for a terminal: overall, video-wise, relaxed, per phase."""
    metrics = evaluation.metrics
    parts = [
        [_headline(evaluation)],
        _overall(metrics),
        _video_wise(metrics),
        _relaxed(metrics),
        _per_phase(evaluation),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _headline(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    unit = metrics["grouped_by"]
    counts = [f"{count_text(metrics['num_frames'], 'frame')} of {count_text(metrics['num_videos'], unit)}"]
    if unit != "patient":
        counts.append(count_text(metrics["intervals"]["num_patients"], "patient"))
    counts.append(count_text(metrics["num_phases"], "phase"))
    left_out = sum(int((video.labels == UNLABELLED).sum()) for video in evaluation.videos)
    note = f"; {count_text(left_out, 'unlabelled frame')} left out" if left_out else ""
    return f"{evaluation.name}: {', '.join(counts)}{note}"


def _overall(metrics: Mapping[str, Any]) -> list[str]:
    rows = [["score", "how it is averaged", "value", "95 % interval"]]
    for row in overall_rows(metrics):
        average = row.score.averaging.short.format(unit=metrics["grouped_by"])
        rows.append([row.score.title, average, TERMINAL.number(row.value), TERMINAL.ends(row.interval)])
        if row.occurring is not None:
            rows.append(["", f"over {_occurring(metrics)}", TERMINAL.number(row.occurring)])
    if "calibration" in metrics:
        error, bins = (metrics["calibration"][name] for name in ("expected_calibration_error", "num_bins"))
        rows.append(["calibration err.", f"all frames, {bins} bins", TERMINAL.number(error)])
    note = absence_note(metrics)
    return [
        *_filled(rows, left=(0, 1, 3)),
        f"intervals: {_resampling(metrics['intervals'])}",
        *(wrap(note, rest="  ") if note else []),
    ]


def _video_wise(metrics: Mapping[str, Any]) -> list[str]:
    """All three averages of each measure under both strategies."""
    unit = metrics["grouped_by"]
    rows = [
        ["", f"mean over {unit}s of", "mean over all", "mean over phases of"],
        ["", "means over phases", f"{unit} x phase", f"means over {unit}s"],
    ]
    # No phase is predicted in a video that does not have it.
    are_equal = metrics["video_wise"]["A"] == metrics["video_wise"]["B"]
    for strategy in STRATEGIES[:1] if are_equal else STRATEGIES:
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
    heading = [f"per {unit} and phase, then averaged; sd = standard deviation over {unit}s or over phases", *lines[:2]]
    if are_equal:
        return [*heading, f"strategies A and B alike: no phase is predicted in a {unit} without it", *lines[2:]]
    return [
        *heading,
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
        numbers = [TERMINAL.number(row[measure]) for measure in MEASURES]
        rows.append([_short(row["name"]), str(row["support"]), *numbers, TERMINAL.ends(intervals["f1"])])
    note = f" ({note}; all: per_phase.csv)" if note else ""
    return [f"per phase, all frames together{note}", *_filled(rows, left=(0, 2 + len(MEASURES)))]


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
    names, note = f"{comparison['second']} minus {comparison['first']}", no_claim_note(comparison)
    return "\n".join([
        f"{names}, on the same frames; intervals: {_resampling(comparison)}",
        *_filled(rows, left=(0, 1, 5)),
        *(["* the interval excludes 0"] if any(row.is_clear for row in found) else []),
        *(wrap(note, rest="  ") if note else []),
    ])  # fmt: skip


def _filled(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """`align`, without the columns that hold nothing below their title, such as intervals of a single patient."""
    kept = [
        column
        for column in range(len(rows[0]))
        if any(cell not in ("", TERMINAL.undefined) for row in rows[1:] for cell in row[column : column + 1])
    ]
    texts = [[row[column] for column in kept if column < len(row)] for row in rows]
    return align(texts, left=[place for place, column in enumerate(kept) if column in left])


def _resampling(found: Mapping[str, Any]) -> str:
    if found["num_patients"] < 2:
        return "none, because they need at least 2 patients"
    if not found["samples"]:
        return "none, because no bootstrap samples were asked for"
    return f"{found['samples']} bootstrap samples of {found['num_patients']} patients"
