"""Curves and the confusion matrix as figures; how every figure becomes files.

Only modules named plots* import matplotlib. Everything works without a display: Figure objects, no pyplot.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spatialfeat.files import write_atomically

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
