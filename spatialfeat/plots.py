"""Figures as files; the only module that imports matplotlib. Works without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spatialfeat.files import write_atomically

# Okabe and Ito's colour-blind-safe blue and vermilion, with different marks for print without colour.
TRAIN_COLOUR, TRAIN_MARKER = "#0072B2", "o"
VAL_COLOUR, VAL_MARKER = "#D55E00", "s"
DPI = 150


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
    if quantity == "accuracy":
        axes.set_ylim(0, 1.02)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def save_confusion_matrix(path: Path, counts: NDArray[np.int64], phase_names: Sequence[str], title: str) -> None:
    """Rows are the true phases and sum to 1; each cell shows the fraction and, smaller, the number of frames.

    Args:
        counts: (C, C) int64, rows = true phase, columns = predicted phase. A phase without frames is a grey row.
    """
    num_phases = len(phase_names)
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side = max(4.5, 0.85 * num_phases + 1.8)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.92")
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.ndindex(num_phases, num_phases):
        if counts[true, predicted]:
            colour = "white" if fractions[true, predicted] > 0.6 else "black"
            style = {"ha": "center", "va": "center", "color": colour}
            axes.text(predicted, true - 0.08, f"{fractions[true, predicted]:.2f}", style)
            axes.text(predicted, true + 0.25, f"{counts[true, predicted]}", style, fontsize=7)
        elif totals[true] == 0 and predicted == 0:
            axes.text((num_phases - 1) / 2, true, "no frames of this phase", ha="center", va="center", color="0.4")
    axes.set_xticks(range(num_phases), phase_names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(num_phases), phase_names)
    axes.set(xlabel="predicted phase", ylabel="true phase", title=title)
    figure.colorbar(image, ax=axes, fraction=0.046, label="fraction of the true phase's frames")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI))
