"""`report.html` and its pictures: one evaluation run, each picture as PNG and SVG, and all on one page.

The page (`report.html.j2`, `report.css`) needs no network, no script and no file beside it. It even forbids the browser
to fetch anything.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from spatialfeat.console import count_text, omission
from spatialfeat.data.frames import UNLABELLED, FrameTable
from spatialfeat.data.images import ImageError, decode_rgb
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
from spatialfeat.reports.tables import (
    REPORT,
    absence_note,
    can_claim,
    difference_rows,
    headline_cards,
    latex_table,
    main_rows,
    no_claim_note,
)
from spatialfeat.scores.metrics import MEASURES
from spatialfeat.scores.summary import Evaluation, shown_of

MOST_MISTAKES = 12

FRAME_PX = 256
"""The longer side of a frame on the page."""

PAGE_COLOURS = 128
"""A PNG on the page has so many colours: enough for bars and text, and a third of the bytes."""


logger = logging.getLogger(__name__)


class Mistake(NamedTuple):
    """A frame whose predicted phase is wrong. confidence: its probability. image: a data URI, "" without one."""

    frame_id: str
    true: int
    predicted: int
    confidence: float
    image: str = ""


def write_report(
    out_dir: Path,
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Mapping[str, Any]],
    *,
    fps: float,
    title: str,
    facts: Mapping[str, object],
    frames: FrameTable | None = None,
) -> None:
    """Write report.html and every picture, as PNG and SVG, of one or more evaluations of the same videos.

    Pictures: per_phase; confusion_matrix and, where there are probabilities, reliability (with _NAME for each of
    several evaluations); ribbons_overview (_1, _2, ... if it takes several pages); ribbons/VIDEO.

    Args:
        comparisons: of two of the evaluations each, as `summary.compare` returns them.
        fps: frame numbers per second.
        facts: what to say about the run, in order: {"weights": "best_....pth", ...}.
        frames: the frames that were scored, where their images may be shown: those of the first evaluation's most
            confident mistakes are then on the page, small.
    """
    videos, suffixes, shown = evaluations[0].videos, name_suffixes(evaluations), shown_of(evaluations)
    lines = timelines(videos, fps)
    save_figure(per_phase_figure(evaluations), out_dir / "per_phase.png")
    for evaluation, suffix in zip(evaluations, suffixes, strict=True):
        save_figure(confusion_figure(evaluation), out_dir / f"confusion_matrix{suffix}.png")
        if "calibration" in evaluation.metrics:
            save_figure(reliability_figure(evaluation), out_dir / f"reliability{suffix}.png")
    overviews = write_ribbons(out_dir, evaluations, lines)
    mistakes: list[Mistake] = []
    if frames is not None:
        row_of = {frame_id: row for row, frame_id in enumerate(frames.ids.tolist())}
        found = confident_mistakes(evaluations[0])
        mistakes = [mistake._replace(image=_small_frame(frames, row_of[mistake.frame_id])) for mistake in found]
    page = _page_template().render(
        title=title,
        facts=facts,
        metrics=evaluations[0].metrics,
        shown=shown,
        omission=omission(len(shown), evaluations[0].metrics["num_phases"]),
        evaluations=list(zip(evaluations, suffixes, strict=True)),
        headline=headline_cards(evaluations),
        main_rows=main_rows(evaluations),
        latex=latex_table(evaluations),
        absence_note=absence_note(evaluations[0].metrics),
        comparisons=[(found, difference_rows(found, evaluations)) for found in comparisons],
        no_claim_note=no_claim_note(comparisons[0]) if comparisons else "",
        is_marked=all(map(can_claim, comparisons)),
        is_calibrated=any("calibration" in evaluation.metrics for evaluation in evaluations),
        mistakes=mistakes,
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


def confident_mistakes(evaluation: Evaluation) -> list[Mistake]:
    """The wrong frames of which the predictions are surest, without images: of each video and confusion only the
    surest one, because its neighbours look alike. Empty without probabilities."""
    mistakes: dict[tuple[str, int, int], Mistake] = {}
    for video in evaluation.videos:
        if video.probabilities is None:
            return []
        wrong = np.flatnonzero((video.labels != UNLABELLED) & (video.labels != video.predictions))
        for row in wrong.tolist():
            true, predicted = int(video.labels[row]), int(video.predictions[row])
            confidence = float(video.probabilities[row, predicted])
            kind = (video.video_id, true, predicted)
            if kind not in mistakes or confidence > mistakes[kind].confidence:
                mistakes[kind] = Mistake(str(video.frame_ids[row]), true, predicted, confidence)
    return sorted(mistakes.values(), key=lambda mistake: -mistake.confidence)[:MOST_MISTAKES]


def _small_frame(table: FrameTable, row: int) -> str:
    """A frame as a small JPEG, for the page; "" if it has become unreadable: hours of prediction shall not be lost."""
    try:
        rgb = decode_rgb(table.images.read(str(table.image_names[row])))
    except (OSError, ImageError) as error:
        logger.warning("%s: cannot be shown in the report (%s)", table.image_path(row), error)
        return ""
    # Pixels only: a comment or a profile in the file may name the patient, and Pillow would write it again.
    small = Image.fromarray(np.asarray(rgb))
    small.thumbnail((FRAME_PX, FRAME_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return _data_uri("jpeg", buffer.getvalue())


@cache
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
