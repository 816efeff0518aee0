"""How the frames of each split are shared out among the phases, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from spatialfeat.reporting.palette import set_colour, set_hatch
from spatialfeat.reporting.plots import plain_text

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
