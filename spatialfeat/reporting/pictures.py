"""Which pictures an evaluation leaves behind, and under which names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spatialfeat.console import count_text
from spatialfeat.reporting.plots import save_confusion_matrix, save_figure
from spatialfeat.reporting.plots_ribbons import overview_figures, ribbon_figure
from spatialfeat.reporting.plots_scores import per_phase_figure, reliability_figure
from spatialfeat.scores.evaluation import Evaluation


def save_pictures(out_dir: Path, evaluations: Sequence[Evaluation], *, fps: float) -> list[Path]:
    """Write every picture, each as PNG and SVG, and return the paths written, in order.

    per_phase; confusion_matrix and, where there are probabilities, reliability (with _NAME for each of several
    evaluations); ribbons_overview (_1, _2, ... if it takes several pages); ribbons/VIDEO.
    fps: frame numbers per second.
    Raises SpatialfeatError unless fps is positive.
    """
    # The ribbons first: they check fps, and nothing is written if it is wrong.
    overviews = overview_figures(evaluations, fps=fps)
    suffixes = _suffixes(overviews)
    written = list(save_figure(per_phase_figure(evaluations), out_dir / "per_phase.png"))
    for evaluation, suffix in zip(evaluations, name_suffixes(evaluations), strict=True):
        counts = np.asarray(evaluation.metrics["confusion_matrix"], dtype=np.int64)
        written += save_confusion_matrix(
            out_dir / f"confusion_matrix{suffix}.png",
            counts,
            evaluation.metrics["phase_names"],
            confusion_title(evaluation),
        )
        if "calibration" in evaluation.metrics:
            written += save_figure(reliability_figure(evaluation), out_dir / f"reliability{suffix}.png")
    for figure, suffix in zip(overviews, suffixes, strict=True):
        written += save_figure(figure, out_dir / f"ribbons_overview{suffix}.png")
    (out_dir / "ribbons").mkdir(exist_ok=True)
    for position, video in enumerate(evaluations[0].videos):
        figure = ribbon_figure(evaluations, position, fps=fps)
        written += save_figure(figure, out_dir / "ribbons" / f"{video.video_id}.png")
    return written


def confusion_title(evaluation: Evaluation) -> str:
    """Whose predictions a confusion matrix shows, and of how many frames and videos."""
    metrics = evaluation.metrics
    frames, videos = count_text(metrics["num_frames"], "frame"), count_text(metrics["num_videos"], "video")
    return f"{evaluation.name}: {frames} of {videos}"


def name_suffixes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What tells the files of several evaluations apart: "_NAME" in letters safe for file names; "" for one alone."""
    if len(evaluations) == 1:
        return [""]
    suffixes: list[str] = []
    for evaluation in evaluations:
        safe = "_" + re.sub(r"[^\w.-]+", "-", evaluation.name)
        while safe.casefold() in (other.casefold() for other in suffixes):
            safe += "-2"
        suffixes.append(safe)
    return suffixes


def _suffixes(figures: Sequence[object]) -> list[str]:
    return [""] if len(figures) == 1 else [f"_{number}" for number in range(1, len(figures) + 1)]
