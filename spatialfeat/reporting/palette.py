"""Colours of phases and of prediction sets, safe for the colour-blind.

The twelve phase colours were searched so that any two stay apart (CIE 1976 distance of 25 or more) for normal sight
and for simulated protanopia, deuteranopia and tritanopia, keep 20 or more from white (a gap), and so that neighbours in
the list, which are often neighbours in time, differ by 25 or more in lightness: they can be told apart in grey print.
"""

from __future__ import annotations

from dataclasses import dataclass

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
