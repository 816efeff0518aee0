"""`report.html` and its pictures: one evaluation run, each picture as PNG and SVG, and all on one page.

The page (`report.html.j2`, `report.css`) needs no network, no script and no file beside it. It even forbids the browser
to fetch anything.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from spatialfeat.console import count_text, omission
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.files import write_atomically
from spatialfeat.names import file_name
from spatialfeat.reports.plots import (
    HATCHES,
    confusion_figure,
    per_phase_figure,
    phase_style,
    reliability_figure,
    save_figure,
)
from spatialfeat.reports.ribbons import Timeline, describe_video, overview_figures, ribbon_figure, timelines
from spatialfeat.reports.tables import REPORT, difference_rows, overall_rows
from spatialfeat.scores.metrics import MEASURES
from spatialfeat.scores.summary import Evaluation, shown_of

PAGE_COLOURS = 128
"""A PNG on the page has so many colours: enough for bars and text, and a third of the bytes."""


def write_report(
    out_dir: Path,
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    fps: float,
    title: str,
    facts: Mapping[str, object],
) -> None:
    """Write report.html and every picture, as PNG and SVG, of one or more evaluations of the same videos.

    Pictures: per_phase; confusion_matrix and, where there are probabilities, reliability (with _NAME for each of
    several evaluations); ribbons_overview (_1, _2, ... if it takes several pages); ribbons/VIDEO.

    Args:
        comparisons: of two of the evaluations each, as `summary.compare` returns them.
        fps: frame numbers per second.
        facts: what to say about the run, in order: {"weights": "best_....pth", ...}.
    """
    videos, suffixes, shown = evaluations[0].videos, name_suffixes(evaluations), shown_of(evaluations)
    lines = timelines(videos, fps)
    overviews = _write_pictures(out_dir, evaluations, suffixes, lines)
    page = _page_template().render(
        title=title,
        facts=facts,
        metrics=evaluations[0].metrics,
        shown=shown,
        omission=omission(len(shown), evaluations[0].metrics["num_phases"]),
        evaluations=list(zip(evaluations, suffixes, strict=True)),
        score_rows=[{row.score.key: row for row in overall_rows(evaluation.metrics)} for evaluation in evaluations],
        comparisons=[(found, difference_rows(found, evaluations)) for found in comparisons],
        overviews=overviews,
        videos=[(video.video_id, describe_video(video, line)) for video, line in zip(videos, lines, strict=True)],
        has_unlabelled=any((video.labels == UNLABELLED).any() for video in videos),
        fps=fps,
        svg=lambda name: _data_uri("svg+xml", (out_dir / f"{name}.svg").read_bytes()),
        png=lambda name: _data_uri("png", _reduced_png(out_dir / f"{name}.png")),
        file_name=file_name,
    )
    write_atomically(out_dir / "report.html", lambda temporary: temporary.write_text(page, encoding="utf-8"))


def name_suffixes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Endings of the files of several evaluations: "_NAME" in letters safe for file names; "" for one alone."""
    if len(evaluations) == 1:
        return [""]
    suffixes: list[str] = []
    for evaluation in evaluations:
        safe = "_" + re.sub(r"[^\w.-]+", "-", evaluation.name)
        while safe.casefold() in (other.casefold() for other in suffixes):
            safe += "-2"
        suffixes.append(safe)
    return suffixes


def _write_pictures(
    out_dir: Path, evaluations: Sequence[Evaluation], suffixes: Sequence[str], lines: Sequence[Timeline]
) -> list[str]:
    """Returns the names of the overview's pages."""
    save_figure(per_phase_figure(evaluations), out_dir / "per_phase.png")
    for evaluation, suffix in zip(evaluations, suffixes, strict=True):
        save_figure(confusion_figure(evaluation), out_dir / f"confusion_matrix{suffix}.png")
        if "calibration" in evaluation.metrics:
            save_figure(reliability_figure(evaluation), out_dir / f"reliability{suffix}.png")
    return write_ribbons(out_dir, evaluations, lines)


def write_ribbons(out_dir: Path, evaluations: Sequence[Evaluation], lines: Sequence[Timeline]) -> list[str]:
    """Write ribbons_overview (_1, _2, ... if it takes several pages) and ribbons/VIDEO, as PNG and SVG.

    lines: one per video. Returns the names of the overview's pages.
    """
    (out_dir / "ribbons").mkdir(exist_ok=True)
    for position, line in enumerate(lines):
        video_id = evaluations[0].videos[position].video_id
        save_figure(ribbon_figure(evaluations, position, line), out_dir / "ribbons" / f"{file_name(video_id)}.png")
    pages = overview_figures(evaluations, lines)
    names = [f"ribbons_overview_{number}" for number in range(1, len(pages) + 1)]
    if len(pages) == 1:
        names = ["ribbons_overview"]
    for name, figure in zip(names, pages, strict=True):
        save_figure(figure, out_dir / f"{name}.png")
    return names


def _page_template() -> Template:
    """The template, with the functions and constants that it uses."""
    folder = resources.files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": REPORT.number, "ends": REPORT.ends}
    environment.globals |= {
        "style": (folder / "report.css").read_text(encoding="utf-8"),
        "measures": {measure: measure.capitalize() for measure in MEASURES},
        "hatches": HATCHES,
        "phase_style": phase_style,
        "count": count_text,
    }
    return environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))


def _reduced_png(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(PAGE_COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(kind: str, image: bytes) -> str:
    """An image inside the page: nothing in it can run, or clash with the page."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
