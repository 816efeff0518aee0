"""Bars of scores per phase, and the reliability of confidences, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from spatialfeat.console import count_text
from spatialfeat.reporting.palette import set_colour, set_hatch
from spatialfeat.reporting.plots import plain_text
from spatialfeat.scores.evaluation import Evaluation
from spatialfeat.scores.metrics import FloatArray, IntArray

BAR_SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}


def per_phase_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """F1, precision and recall of each phase (all frames pooled), one bar per evaluation, with bootstrap intervals.

    A phase without a labelled frame is marked "no frames"; an undefined score "undefined". An interval is a black line.
    """
    rows = evaluations[0].metrics["per_phase"]
    num_phases, num_sets = len(rows), len(evaluations)
    height = max(0.30, 0.17 * num_sets + 0.12) * num_phases + 1.5
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(1, len(BAR_SCORES), sharey=True)
    bar = 0.8 / num_sets
    for axes, (score, label) in zip(panels, BAR_SCORES.items(), strict=True):
        for index, evaluation in enumerate(evaluations):
            places: FloatArray = np.arange(num_phases, dtype=np.float64) + (index + 0.5) * bar - 0.4
            _draw_bars(axes, evaluation.metrics, score, places, bar, index)
        for phase, row in enumerate(rows):
            if row["support"] == 0:
                axes.text(0.02, phase, "no frames", va="center", color="0.35", fontsize=8, style="italic")
        axes.set(xlim=(0, 1), xlabel=label)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(num_phases), [plain_text(f"{row['phase']} {row['name']}") for row in rows])
    panels[0].set_ylim(num_phases - 0.4, -0.6)
    figure.suptitle("Scores per phase, all frames of all videos pooled" + _interval_note(evaluations), fontsize=10)
    if num_sets > 1:
        handles = [
            Patch(facecolor=set_colour(i), hatch=set_hatch(i), edgecolor="white", label=plain_text(evaluation.name))
            for i, evaluation in enumerate(evaluations)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(num_sets, 4), frameon=False, fontsize=9)
    return figure


def _draw_bars(axes: Axes, metrics: dict[str, Any], score: str, places: FloatArray, bar: float, index: int) -> None:
    """One evaluation's bars of one score. places: (C,) middles; bar: thickness, in phases."""
    intervals = metrics["intervals"]["per_phase"]
    for place, row, interval in zip(places, metrics["per_phase"], intervals, strict=True):
        if row["support"] == 0:
            continue
        if row[score] is None:
            axes.text(0.02, place, "undefined", va="center", color="0.35", fontsize=7, style="italic")
            continue
        looks: dict[str, Any] = {
            "color": set_colour(index),
            "hatch": set_hatch(index),
            "edgecolor": "white",
            "linewidth": 0,
        }
        axes.barh(place, row[score], height=bar * 0.9, **looks)
        if row[score] == 0:
            axes.plot([0, 0], [place - bar / 2, place + bar / 2], color=set_colour(index), linewidth=3, clip_on=False)
        if interval[score] is not None:
            low, high = interval[score]
            # White under black: seen on every colour.
            axes.plot([low, high], [place, place], color="white", linewidth=3.4, solid_capstyle="butt")
            axes.plot([low, high], [place, place], color="black", linewidth=1.4, marker="|", markersize=5)


def _interval_note(evaluations: Sequence[Evaluation]) -> str:
    intervals = evaluations[0].metrics["intervals"]
    if not intervals["samples"]:
        return " (no intervals: fewer than two patients or no resamples)"
    return f", with {intervals['level']:.0%} bootstrap intervals over {intervals['num_patients']} patients"


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence, per bin, above the number of frames of each bin; the calibration error is written in.

    evaluation: with `metrics["calibration"]`.
    """
    calibration = evaluation.metrics["calibration"]
    bins = calibration["bins"]
    lows = np.array([entry["low"] for entry in bins])
    widths = np.array([entry["high"] for entry in bins]) - lows
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    filled = [entry for entry in bins if entry["num_frames"]]
    upper.plot([0, 1], [0, 1], color="0.35", linestyle="--", linewidth=1, label="perfect calibration")
    upper.bar(
        [entry["low"] for entry in filled],
        [entry["accuracy"] for entry in filled],
        width=[entry["high"] - entry["low"] for entry in filled],
        align="edge",
        color="#56B4E9",
        edgecolor="white",
        linewidth=0.6,
        label="accuracy of a bin",
    )
    upper.plot(
        [entry["confidence"] for entry in filled],
        [entry["accuracy"] for entry in filled],
        color="#D55E00",
        marker="o",
        markersize=4,
        clip_on=False,
        zorder=3,
        label="at its mean confidence",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(_reliability_title(evaluation), fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    _draw_counts(lower, lows, widths, np.array([entry["num_frames"] for entry in bins]))
    return figure


def _reliability_title(evaluation: Evaluation) -> str:
    calibration = evaluation.metrics["calibration"]
    error = calibration["expected_calibration_error"]
    shown = "undefined" if error is None else f"{error:.4f}"
    name = plain_text(evaluation.name, longest=40)
    frames = count_text(calibration["num_frames"], "frame")
    return f"{name}: expected calibration error {shown}\n{frames}, {calibration['num_bins']} bins"


def _draw_counts(axes: Axes, lows: FloatArray, widths: FloatArray, counts: IntArray) -> None:
    """Bars of frames per bin, the number above each."""
    axes.bar(lows, counts, width=widths, align="edge", color="0.65", edgecolor="white", linewidth=0.6)
    for low, width, count in zip(lows, widths, counts, strict=True):
        axes.annotate(
            str(count),
            (low + width / 2, count),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=7,
            color="black" if count else "0.5",
        )
    axes.set(xlabel="confidence (probability of the predicted phase)", ylabel="frames")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(1, int(counts.max())) * 1.45)  # Room for the numbers, which stand upright.
