"""Charts as figures, and how every figure becomes files.

Only this module and `ribbons` import matplotlib. Everything works without a display: Figure objects, no pyplot.

The twelve phase colours were searched so that any two stay apart (CIE 1976 distance of 25 or more) for normal sight and
for simulated protanopia, deuteranopia and tritanopia, keep 20 or more from white (a gap), and so that neighbours in the
list, which are often neighbours in time, differ by 25 or more in lightness: they differ in grey print too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from spatialfeat.console import count_text, omission, shown_phases
from spatialfeat.files import write_atomically
from spatialfeat.reports.tables import REPORT
from spatialfeat.scores.summary import Evaluation, shown_of

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

# Okabe and Ito's colours, for sets of predictions. Bars also carry a hatching, for print without colour.
SET_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

# Of the same, for curves, with different marks for print without colour.
TRAIN_STYLE: dict[str, Any] = {"color": "#0072B2", "marker": "o", "markersize": 4}
VAL_STYLE: dict[str, Any] = {"color": "#D55E00", "marker": "s", "markersize": 4}

STEEP = 5
"""A loss so many times the median is drawn on a logarithmic axis."""

BAR_SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}

BAR_IN = 0.19
"""High enough for a number of 7 points beside the bar."""

LONGEST_NAME = 32
DPI = 150

HIGHEST_IN = 400
"""A PNG may have 65,536 pixels, which a figure of many folds and phases would exceed."""


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
    # Relative luminance 0..1 (WCAG 2).
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return PhaseStyle(colour, hatch, "#000000" if luminance > 0.18 else "#ffffff")


def set_colour(index: int) -> str:
    """Colour of the index-th set of predictions or frames; six, then repeated."""
    return SET_COLOURS[index % len(SET_COLOURS)]


def _set_bars(index: int) -> dict[str, Any]:
    """Looks of the index-th set's bars; the first has no hatching."""
    hatch = HATCHES[index % len(HATCHES)]
    return {"facecolor": set_colour(index), "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def plain_text(text: str, longest: int = LONGEST_NAME) -> str:
    """A user's text for a figure: one line, shortened in the middle; no formula or hidden label to matplotlib."""
    line = " ".join(text.split())
    if len(line) > longest:
        tail = (longest - 1) // 3
        line = f"{line[: longest - 1 - tail]}…{line[len(line) - tail :]}"
    # A label that begins with an underscore is left out of legends.
    return (" " + line if line.startswith("_") else line).replace("$", r"\$")


def save_figure(figure: Figure, png_path: Path) -> None:
    """Write a figure as PNG and, beside it, as SVG. Each file is whole or absent."""
    assert png_path.suffix == ".png", png_path
    save_png(figure, png_path)
    svg = svg_bytes(figure)
    write_atomically(png_path.with_suffix(".svg"), lambda temporary: temporary.write_bytes(svg))


def save_png(figure: Figure, png_path: Path) -> None:
    """Write a figure of photographs, of which an SVG would be no smaller and no sharper."""
    engine = figure.get_layout_engine()
    if engine is not None:
        # Everything gets its place for good, so that all files look the same. Arranging is the slow part: with a layout
        # engine, matplotlib would do it, and draw all once more, for each file.
        engine.execute(figure)
        with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)
    write_atomically(png_path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG with its text as text; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Ids inside the file come from its content.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spatialfeat"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_curves(
    path: Path,
    *,
    quantity: str,
    train: Sequence[float],
    val: Sequence[float],
    best_epoch: int,
) -> None:
    """One curve over epochs (1..E) for training and one for validation, with the epoch whose weights were kept.

    path: of the PNG; the SVG gets its name.
    """
    epochs = np.arange(1, len(train) + 1)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    # Above the frame, so that a mark on it is seen whole.
    axes.plot(epochs, train, label="train (augmented frames)", clip_on=False, zorder=3, **TRAIN_STYLE)
    axes.plot(epochs, val, label="validation", clip_on=False, zorder=3, **VAL_STYLE)
    axes.axvline(best_epoch, color="0.6", linestyle=":", zorder=0, label=f"weights kept (epoch {best_epoch})")
    axes.set(xlabel="epoch", ylabel=quantity, title=f"{quantity.capitalize()} over epochs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, len(epochs) + 0.5)
    if quantity == "accuracy":
        axes.set_ylim(0, 1)
    elif max(*train, *val) > STEEP * float(np.median([*train, *val])):
        # One early spike would press all other epochs flat.
        axes.set(yscale="log", ylabel=f"{quantity} (logarithmic)")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def confusion_figure(evaluation: Evaluation) -> Figure:
    """Rows are the true phases and sum to 1; each cell shows the fraction and, smaller, the number of frames.

    Phases carry their numbers, rows the number of all their frames. A phase without frames is a grey row. Of more than
    60 phases, those that occur are shown (`shown_phases`).
    """
    metrics, shown = evaluation.metrics, shown_of([evaluation])
    counts = evaluation.tallies.counts.sum(axis=0)
    note = omission(len(shown), len(counts))
    totals = counts.sum(axis=1, keepdims=True)[shown]
    counts, num_phases = counts[np.ix_(shown, shown)], len(shown)
    names = [plain_text(f"{phase} {metrics['phase_names'][phase]}") for phase in shown]
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
    for true, predicted in np.argwhere(counts).tolist():
        style = {"ha": "center", "va": "center", "color": "white" if fractions[true, predicted] > 0.6 else "black"}
        axes.text(predicted + 0.5, true + 0.40, REPORT.number(fractions[true, predicted]), style, fontsize=9)
        axes.text(predicted + 0.5, true + 0.76, f"{counts[true, predicted]}", style, fontsize=7)
    for true in np.flatnonzero(totals == 0).tolist():
        axes.text(num_phases / 2, true + 0.5, "no frames of this phase", ha="center", va="center", color="0.35")
    axes.set_xticks(np.arange(num_phases) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor")
    rows = [f"{name}\n{count_text(total, 'frame')}" for name, total in zip(names, totals[:, 0].tolist(), strict=True)]
    axes.set_yticks(np.arange(num_phases) + 0.5, rows)
    axes.set(xlabel="predicted phase", ylabel="true phase")
    frames, videos = count_text(metrics["num_frames"], "frame"), count_text(metrics["num_videos"], "video")
    title = plain_text(f"{evaluation.name}: {frames} of {videos}", longest=80)
    axes.set_title(f"{title}\n{note}" if note else title, wrap=True)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.046, label="fraction of the true phase's frames")
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # Without it, viewers of SVG show hairlines between the colours.
    return figure


def per_phase_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """F1, precision and recall of each phase (all frames pooled), one bar per evaluation, with bootstrap intervals.

    A phase without a labelled frame is marked "no frames"; an undefined score "undefined". An interval is a black line.
    """
    shown = shown_of(evaluations)
    rows = [evaluations[0].metrics["per_phase"][phase] for phase in shown]
    num_phases, num_sets = len(rows), len(evaluations)
    omitted = omission(num_phases, evaluations[0].metrics["num_phases"])
    height = max(0.30, 0.17 * num_sets + 0.12) * num_phases + 1.5
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(1, len(BAR_SCORES), sharey=True, gridspec_kw={"wspace": 0.06})
    bar = 0.8 / num_sets
    for axes, (measure, label) in zip(panels, BAR_SCORES.items(), strict=True):
        for index, evaluation in enumerate(evaluations):
            intervals = evaluation.metrics["intervals"]["per_phase"]
            for number, phase in enumerate(shown):
                row = evaluation.metrics["per_phase"][phase]
                if row["support"]:
                    place = number + (index + 0.5) * bar - 0.4
                    _draw_bar(axes, row[measure], intervals[phase][measure], place, bar, index)
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
    intervals = evaluations[0].metrics["intervals"]
    note = f", with {intervals['level']:.0%} bootstrap intervals over {intervals['num_patients']} patients"
    if not intervals["samples"]:
        note = " (no intervals: fewer than two patients or no resamples)"
    note += f"\n{omitted}" if omitted else ""
    figure.suptitle(f"Scores per phase, all frames of all videos pooled{note}", fontsize=10)
    if num_sets > 1:
        handles = [
            Patch(**_set_bars(index), label=plain_text(evaluation.name)) for index, evaluation in enumerate(evaluations)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(num_sets, 4), frameon=False, fontsize=9)
    return figure


def _draw_bar(
    axes: Axes, value: float | None, interval: Sequence[float] | None, place: float, bar: float, index: int
) -> None:
    """A score of the index-th set. place: the bar's middle; bar: its thickness, in phases."""
    if value is None:
        axes.text(0.02, place, "undefined", va="center", color="0.35", fontsize=7, style="italic")
        return
    axes.barh(place, value, height=bar * 0.9, **_set_bars(index))
    high = value if interval is None else interval[1]
    if value == 0:
        ends = [place - 0.45 * bar, place + 0.45 * bar]
        axes.plot([0, 0], ends, color=set_colour(index), linewidth=1.6, solid_capstyle="butt", clip_on=False)
        axes.annotate("0", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    if interval is not None and high > 0:
        # White under black: seen on every colour. An end on the frame is seen whole.
        axes.plot(interval, [place, place], color="white", linewidth=3.4, solid_capstyle="butt")
        axes.plot(interval, [place, place], color="black", linewidth=1.4, marker="|", markersize=5, clip_on=False)


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence, per bin, above the number of frames of each bin; the calibration error is written in.

    evaluation: with `metrics["calibration"]`.
    """
    calibration = evaluation.metrics["calibration"]
    bins = pd.DataFrame(calibration["bins"])
    filled, widths = bins[bins["num_frames"] > 0], bins["high"] - bins["low"]
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    bars: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.6}
    upper.plot([0, 1], [0, 1], color="0.35", linestyle="--", linewidth=1, label="perfect calibration")
    upper.bar(
        filled["low"],
        filled["accuracy"],
        width=widths[filled.index],
        color="#56B4E9",
        label="accuracy of a bin",
        **bars,
    )
    upper.plot(
        filled["confidence"],
        filled["accuracy"],
        color="#D55E00",
        marker="o",
        markersize=4,
        clip_on=False,
        zorder=3,
        label="at its mean confidence",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    error = calibration["expected_calibration_error"]
    shown = "undefined" if error is None else REPORT.number(error)
    frames = count_text(calibration["num_frames"], "frame")
    title = f"{plain_text(evaluation.name, longest=24)}: expected calibration error {shown}"
    upper.set_title(f"{title}\n{frames}, {calibration['num_bins']} bins", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    counted = lower.bar(bins["low"], bins["num_frames"], width=widths, color="0.65", **bars)
    for text, count in zip(
        lower.bar_label(counted, padding=2, rotation=90, fontsize=7), bins["num_frames"], strict=True
    ):
        text.set_color("black" if count else "0.5")
    lower.set(xlabel="confidence (probability of the predicted phase)", ylabel="frames")
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    lower.set_ylim(0, max(1, bins["num_frames"].max()) * 1.45)  # Room for the numbers, which stand upright.
    return figure


def balance_figure(counts: Mapping[str, Sequence[int]], phase_names: Sequence[str]) -> Figure:
    """One group of bars per phase, one bar per split: the phase's share of the split's frames, the number beside it.

    counts: {split: frames of each phase}, each with at least one frame.
    """
    num_splits = len(counts)
    figure = Figure(figsize=(7.2, _group_in(num_splits) * len(_shown(counts)) + 1.3), layout="constrained")
    _draw_balance(figure.add_subplot(), counts, phase_names)
    # Not on the bars, wherever the long ones are.
    figure.legend(loc="outside lower center", ncols=max(1, min(3, num_splits)), frameon=False)
    return figure


def split_figure(
    patients: Mapping[str, Sequence[int]], counts: Mapping[str, Sequence[int]], phase_names: Sequence[str]
) -> Figure:
    """What a division of patients gave: above, a bar per split with a piece per patient; below, `balance_figure`.

    patients: {split: labelled frames of each patient, > 0}. counts: {split: frames of each phase}.
    """
    num_splits = len(counts)
    heights = (0.28 * num_splits + 0.6, _group_in(num_splits) * len(_shown(counts)) + 0.6)
    figure = Figure(figsize=(7.2, min(sum(heights) + 0.5, HIGHEST_IN)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    total = sum(map(sum, patients.values()))
    for index, frames in enumerate(patients.values()):
        ordered = sorted(frames, reverse=True)
        starts = np.cumsum([0, *ordered[:-1]])
        upper.barh([index] * len(ordered), ordered, left=starts, height=0.8, **{**_set_bars(index), "linewidth": 1.2})
        text = f"{count_text(len(ordered), 'patient')}, {sum(ordered) / total:.1%}"
        upper.annotate(text, (sum(ordered), index), (4, 0), textcoords="offset points", va="center", fontsize=8)
    upper.set_yticks(range(num_splits), [plain_text(split) for split in patients])
    upper.set_ylim(num_splits - 0.5, -0.5)
    upper.set_xlim(0, 1.3 * max(map(sum, patients.values())))
    upper.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    upper.set(xlabel="labelled frames, one piece per patient", title="Patients")
    upper.tick_params(axis="y", length=0)
    upper.spines[["top", "right"]].set_visible(False)
    _draw_balance(lower, counts, phase_names)
    figure.legend(loc="outside lower center", ncols=max(1, min(3, num_splits)), frameon=False)
    return figure


def _shown(counts: Mapping[str, Sequence[int]]) -> list[int]:
    return shown_phases(np.sum([np.asarray(frames) for frames in counts.values()], axis=0))


def _group_in(num_splits: int) -> float:
    """Inches of the bars of one phase."""
    return BAR_IN * num_splits + 0.14


def _draw_balance(axes: Axes, counts: Mapping[str, Sequence[int]], phase_names: Sequence[str]) -> None:
    shown = _shown(counts)
    names = [plain_text(phase_names[phase]) for phase in shown]
    num_phases, num_splits = len(names), len(counts)
    note = omission(num_phases, len(phase_names))
    thickness = BAR_IN / _group_in(num_splits)
    widest = 0.0
    for index, (split, frames) in enumerate(counts.items()):
        shown_frames = [frames[phase] for phase in shown]
        shares = np.asarray(shown_frames) / sum(frames)
        widest = max(widest, float(shares.max()))
        places = np.arange(num_phases) + (index - (num_splits - 1) / 2) * thickness
        label = plain_text(f"{split}: {count_text(sum(frames), 'frame')}")
        bars = axes.barh(places, shares, height=0.92 * thickness, label=label, **_set_bars(index))
        texts = [
            f"{share:.1%}  {count}" if count else "none" for share, count in zip(shares, shown_frames, strict=True)
        ]
        axes.bar_label(bars, texts, padding=3, fontsize=7)
    axes.set_yticks(range(num_phases), names)
    axes.set_ylim(num_phases - 0.5, -0.5)  # The first phase on top.
    axes.set_xlim(0, 1.22 * widest)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set(xlabel="share of the split's frames", title=f"Frames per phase\n{note}" if note else "Frames per phase")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
