"""Pieces of HTML: text, numbers, tables, figures. Every text that comes from outside goes through `escaped`."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from spatialfeat.reporting.palette import HATCHES, PHASE_COLOURS, phase_style

UNDEFINED = "\u2013"

# Lines of the hatchings in a tile of 12 x 12, by matplotlib's name.
_TILES = {
    "///": "M0 12L12 0M-3 3L3 -3M9 15L15 9",
    "xxx": "M0 12L12 0M0 0L12 12",
    "...": "M3 6h3M9 12h3M9 0h3",
    "---": "M0 6h12",
}


def escaped(text: object) -> str:
    """A text as HTML, inert inside elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: float | None) -> str:
    """Three decimals; a dash where undefined."""
    return UNDEFINED if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with the sign; a difference that rounds to zero has none."""
    return UNDEFINED if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("+0.000", "0.000")


def interval_text(interval: Sequence[float] | None, show: Any = number) -> str:
    """`[low, high]`, or a dash."""
    return UNDEFINED if interval is None else f"[{show(interval[0])}, {show(interval[1])}]"


def spread(value: dict[str, float | None]) -> str:
    """`mean ± standard deviation` of {"mean", "std_over_..."}; the mean alone if the deviation is undefined."""
    mean, deviation = value["mean"], next(other for name, other in value.items() if name.startswith("std_over_"))
    return number(mean) if mean is None or deviation is None else f"{number(mean)} ± {number(deviation)}"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, worded: bool = False) -> str:
    """A table in a box that scrolls by itself. All cells are HTML; the first of each row is its heading.

    worded: the last column holds words, not numbers.
    """
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>\n"
        for row in rows
    )
    style = ' class="worded"' if worded else ""
    # Focusable, so that the keyboard can scroll it too.
    return (
        f'<div class="scroll" tabindex="0"><table{style}><caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def section(identifier: str, title: str, *parts: str) -> str:
    """One section of the page under a heading. title and parts are HTML."""
    return f'<section id="{identifier}">\n<h2>{title}</h2>\n{"".join(parts)}</section>\n'


def paragraph(text: str, style: str = "") -> str:
    """A paragraph; text is HTML, style a CSS class."""
    return f"<p{f' class={style!r}' if style else ''}>{text}</p>\n"


def picture(image: bytes, alternative: str, caption: str, style: str = "", *, kind: str = "svg+xml") -> str:
    """A finished SVG or PNG as an image: nothing inside can run, or clash with the page. caption is HTML."""
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure class="picture {style}"><div class="scroll" tabindex="0">'
        f'<img alt="{escaped(alternative)}" src="data:image/{kind};base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def paint(phase: int) -> str:
    """The value of `fill` or `stroke` for a phase: its colour, or the tile of its hatching from `tiles`."""
    style = phase_style(phase)
    return f"url(#{_tile_id(phase)})" if style.hatch else style.colour


def tiles(num_phases: int) -> str:
    """An invisible SVG with the hatchings of all phases that need one, and of unlabelled frames."""
    most = len(PHASE_COLOURS) * len(HATCHES)
    found = [
        _tile(_tile_id(phase), phase_style(phase).colour, phase_style(phase).ink, _TILES[phase_style(phase).hatch])
        for phase in range(len(PHASE_COLOURS), min(num_phases, most))
    ]
    found.append(_tile("no-label", "#ffffff", "#8a8a8a", "M0 0L12 12M-3 9L3 15M9 -3L15 3"))
    return f'<svg class="tiles" width="0" height="0" aria-hidden="true"><defs>{"".join(found)}</defs></svg>\n'


def swatch(fill: str) -> str:
    """A small box of a colour or tile."""
    box = f'<rect width="36" height="24" fill="{fill}" stroke="#777"/>'
    return f'<svg class="swatch" viewBox="0 0 36 24" aria-hidden="true">{box}</svg>'


def _tile_id(phase: int) -> str:
    return f"tile-{phase % (len(PHASE_COLOURS) * len(HATCHES))}"


def _tile(identifier: str, colour: str, ink: str, lines: str) -> str:
    return (
        f'<pattern id="{identifier}" width="12" height="12" patternUnits="userSpaceOnUse">'
        f'<rect width="12" height="12" fill="{colour}"/><path d="{lines}" stroke="{ink}" stroke-width="2"/></pattern>'
    )
