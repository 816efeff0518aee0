"""Scores as text for a terminal. Every table says how its numbers were averaged, in at most 92 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spatialfeat.scores.evaluation import Evaluation

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
