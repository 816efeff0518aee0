"""Colours of phases and of prediction sets, safe for the colour-blind.

The twelve phase colours were searched so that any two stay apart (CIE 1976 distance of 25 or more) for normal sight
and for simulated protanopia, deuteranopia and tritanopia, keep 20 or more from white (a gap), and so that neighbours in
the list, which are often neighbours in time, differ by 25 or more in lightness: they can be told apart in grey print.

Curves and the confusion matrix as figures; how every figure becomes files.

Only modules named plots* import matplotlib. Everything works without a display: Figure objects, no pyplot.

Bars of scores per phase, and the reliability of confidences, as figures.

How the frames of each split are shared out among the phases, as a picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spatialfeat.console import count_text
from spatialfeat.files import write_atomically
from spatialfeat.scores.metrics import FloatArray, IntArray
from spatialfeat.scores.predictions import Evaluation

PHASE_COLOURS = (
    "#a060f0",
    "#e0e01c",
    "#541c70",
    "#e05400",
    "#8c0000",
    "#60f0b0",
    "#709060",
    "#3000a0",
    "#f0a0f0",
    "#601030",
    "#a8e070",
    "#b06090",
)

# Matplotlib's names of hatchings. Colours repeat after twelve phases, each time with the next hatching.
HATCHES = ("", "///", "xxx", "...", "---")

UNLABELLED_COLOUR = "#ffffff"
UNLABELLED_LINE = "#8a8a8a"

# Okabe and Ito's colours, for sets of predictions. Bars also carry a hatching, for print without colour.
SET_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True)
class PhaseStyle:
    """colour: #rrggbb of the filling. hatch: matplotlib's name of the lines over it, "" for none. ink: of text."""

    colour: str
    hatch: str
    ink: str


def phase_style(phase: int) -> PhaseStyle:
    """Give a phase its looks. Twelve colours, then the same under four hatchings: 60 phases, then it starts over.

    A phase has the same looks in every picture, whichever phases occur there.
    """
    colour = PHASE_COLOURS[phase % len(PHASE_COLOURS)]
    hatch = HATCHES[phase // len(PHASE_COLOURS) % len(HATCHES)]
    return PhaseStyle(colour, hatch, "#000000" if _luminance(colour) > 0.18 else "#ffffff")


def set_colour(index: int) -> str:
    """Colour of the index-th set of predictions; six, then repeated."""
    return SET_COLOURS[index % len(SET_COLOURS)]


def set_hatch(index: int) -> str:
    """Hatching of the index-th set's bars: the first has none."""
    return HATCHES[index % len(HATCHES)]


def _luminance(colour: str) -> float:
    """Relative luminance 0..1 of #rrggbb (WCAG 2)."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# Okabe and Ito's colour-blind-safe blue and vermilion, with different marks for print without colour.
TRAIN_COLOUR, TRAIN_MARKER = "#0072B2", "o"
VAL_COLOUR, VAL_MARKER = "#D55E00", "s"
STEEP = 5
"""A loss so many times the median is drawn on a logarithmic axis."""
DPI = 150

SVG_METADATA = {"Date": None, "Creator": None}

LONGEST_NAME = 32


def save_curves(
    path: Path,
    *,
    quantity: str,
    train: Sequence[float],
    val: Sequence[float],
    best_epoch: int,
) -> None:
    """One curve over epochs (1..E) for training and one for validation, with the epoch whose weights were kept."""
    epochs = np.arange(1, len(train) + 1)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, train, label="train (augmented frames)", color=TRAIN_COLOUR, marker=TRAIN_MARKER, markersize=4)
    axes.plot(epochs, val, label="validation", color=VAL_COLOUR, marker=VAL_MARKER, markersize=4)
    axes.axvline(best_epoch, color="0.6", linestyle=":", zorder=0, label=f"weights kept (epoch {best_epoch})")
    axes.set(xlabel="epoch", ylabel=quantity, title=f"{quantity.capitalize()} over epochs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, len(epochs) + 0.5)
    if quantity == "accuracy":
        axes.set_ylim(0, 1.02)
    elif max(*train, *val) > STEEP * float(np.median([*train, *val])):
        # One early spike would press all other epochs flat.
        axes.set(yscale="log", ylabel=f"{quantity} (logarithmic)")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI))


def confusion_title(evaluation: Evaluation) -> str:
    """Whose predictions a confusion matrix shows, and of how many frames and videos."""
    metrics = evaluation.metrics
    frames, videos = count_text(metrics["num_frames"], "frame"), count_text(metrics["num_videos"], "video")
    return f"{evaluation.name}: {frames} of {videos}"


def save_confusion_matrix(
    path: Path, counts: NDArray[np.int64], phase_names: Sequence[str], title: str
) -> tuple[Path, Path]:
    """Write `confusion_figure` as PNG at `path` and as SVG beside it. Returns both paths."""
    return save_figure(confusion_figure(counts, phase_names, title), path)


def confusion_figure(counts: NDArray[np.int64], phase_names: Sequence[str], title: str) -> Figure:
    """Rows are the true phases and sum to 1; each cell shows the fraction and, smaller, the number of frames.

    Args:
        counts: (C, C) int64, rows = true phase, columns = predicted phase. A phase without frames is a grey row.
    """
    num_phases = len(phase_names)
    names = [plain_text(name) for name in phase_names]
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    # Inches: a cell holds four digits; a letter of a name is about 0.085 wide, below the cells it leans by 40 degrees.
    cells, longest = max(2.6, 0.62 * num_phases), 0.085 * max(len(name) for name in names)
    figure = Figure(figsize=(cells + longest + 2.2, cells + 0.64 * longest + 1.2), layout="compressed")
    axes = figure.add_subplot()
    axes.set_facecolor("0.92")
    # Cells as vectors: an image would be blurred at their borders in some viewers of SVG.
    mesh = axes.pcolormesh(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    _write_cells(axes, counts, fractions)
    axes.set_xticks(np.arange(num_phases) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(num_phases) + 0.5, names)
    axes.set(xlabel="predicted phase", ylabel="true phase")
    axes.set_title(plain_text(title, longest=80), wrap=True)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.046, label="fraction of the true phase's frames")
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # Without it, viewers of SVG show hairlines between the colours.
    return figure


def _write_cells(axes: Axes, counts: NDArray[np.int64], fractions: NDArray[np.float64]) -> None:
    """Numbers into the cells, and a note into rows without frames."""
    num_phases = len(counts)
    for true, predicted in np.ndindex(num_phases, num_phases):
        if counts[true, predicted]:
            colour = "white" if fractions[true, predicted] > 0.6 else "black"
            style = {"ha": "center", "va": "center", "color": colour}
            axes.text(predicted + 0.5, true + 0.40, f"{fractions[true, predicted]:.2f}", style)
            axes.text(predicted + 0.5, true + 0.76, f"{counts[true, predicted]}", style, fontsize=7)
    for true in np.flatnonzero(counts.sum(axis=1) == 0):
        axes.text(num_phases / 2, true + 0.5, "no frames of this phase", ha="center", va="center", color="0.35")


def plain_text(text: str, longest: int = LONGEST_NAME) -> str:
    """A user's text for a figure: one line, shortened in the middle; no formula or hidden label to matplotlib."""
    line = " ".join(text.split())
    if len(line) > longest:
        tail = (longest - 1) // 3
        line = f"{line[: longest - 1 - tail]}…{line[len(line) - tail :]}"
    # A label that begins with an underscore is left out of legends.
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def save_figure(figure: Figure, png_path: Path) -> tuple[Path, Path]:
    """Write a figure as PNG and, beside it, as SVG. Each file is whole or absent. Returns (png, svg)."""
    svg_path = png_path.with_name(f"{png_path.name.removesuffix('.png')}.svg")
    png_path = svg_path.with_name(f"{svg_path.name.removesuffix('.svg')}.png")
    # Arranging is the slow part: once is enough, and both files then look the same.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_atomically(png_path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    svg = svg_bytes(figure)
    write_atomically(svg_path, lambda temporary: temporary.write_bytes(svg))
    return png_path, svg_path


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG: smaller than SVG where thousands of bars are drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG with its text as text; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        # Text stays text, and ids inside the file come from its content.
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["svg.hashsalt"] = "spatialfeat"
        figure.savefig(buffer, format="svg", metadata=SVG_METADATA)
    return buffer.getvalue()


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


BAR_INCHES = 0.19
"""High enough for a number of 7 points beside the bar."""


def balance_figure(counts: Mapping[str, Sequence[int]], phase_names: Sequence[str]) -> Figure:
    """One group of bars per phase, one bar per split: the phase's share of the split's frames, the number beside it.

    counts: {split: frames of each phase}, each with at least one frame.
    """
    names = [plain_text(name) for name in phase_names]
    num_phases, num_splits = len(names), len(counts)
    group = BAR_INCHES * num_splits + 0.14
    figure = Figure(figsize=(7.2, group * num_phases + 1.3), layout="constrained")
    axes = figure.add_subplot()
    thickness = BAR_INCHES / group
    widest = 0.0
    for index, (split, frames) in enumerate(counts.items()):
        shares = np.asarray(frames) / sum(frames)
        widest = max(widest, float(shares.max()))
        places = np.arange(num_phases) + (index - (num_splits - 1) / 2) * thickness
        bars = axes.barh(
            places,
            shares,
            height=0.92 * thickness,
            color=set_colour(index),
            hatch=set_hatch(index),
            edgecolor="white",
            linewidth=0,
            label=plain_text(f"{split}: {sum(frames)} frames"),
        )
        texts = [f"{share:.1%}  {count}" if count else "none" for share, count in zip(shares, frames, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=7)
    axes.set_yticks(range(num_phases), names)
    axes.set_ylim(num_phases - 0.5, -0.5)  # The first phase on top.
    axes.set_xlim(0, 1.22 * widest)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set(xlabel="share of the split's frames", title="Frames per phase")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    # Not on the bars, wherever the long ones are.
    figure.legend(loc="outside lower center", ncols=max(1, min(3, num_splits)), frameon=False)
    return figure
