"""Score predictions, and write what an evaluation leaves behind about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatialfeat.files import write_csv, write_json
from spatialfeat.scores.calibration import ReliabilityCurve, reliability_curve
from spatialfeat.scores.comparison import compare
from spatialfeat.scores.evaluation import EvaluatedVideo, Evaluation
from spatialfeat.scores.metrics import SCORE_NAMES
from spatialfeat.scores.scoring import ScoredVideo, per_video_rows
from spatialfeat.scores.summary import SummaryOptions, summarize

COMPARISON_SCHEMA = 1


def score(
    name: str,
    videos: tuple[EvaluatedVideo, ...],
    phase_names: Sequence[str],
    options: SummaryOptions | None = None,
    *,
    group_by: str = "video",
) -> Evaluation:
    """Score one set of predictions. group_by: what `videos` are, "video" or "patient"; metrics.json says so too.

    Raises:
        SpatialfeatError: as `summary.summarize`.
    """
    scored = _scored(videos)
    metrics = summarize(scored, phase_names, options, _calibration(videos)) | {"grouped_by": group_by}
    return Evaluation(name=name, videos=videos, metrics=metrics, per_video=per_video_rows(scored, len(phase_names)))


def compare_with_first(evaluations: Sequence[Evaluation], *, num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Every later set of predictions minus the first: what `comparison.compare` returns, under the names of the two."""
    first = evaluations[0]
    return [
        {"first": first.name, "second": later.name}
        | compare(
            _scored(first.videos),
            _scored(later.videos),
            first.metrics["num_phases"],
            num_samples=num_samples,
            seed=seed,
        )
        for later in evaluations[1:]
    ]


def write_comparison(out_dir: Path, comparisons: Sequence[dict[str, Any]]) -> None:
    """Write comparison.json, for two or more sets of predictions."""
    write_json(out_dir / "comparison.json", {"schema": COMPARISON_SCHEMA, "comparisons": list(comparisons)})


def write_scores(out_dir: Path, evaluation: Evaluation) -> None:
    """Write metrics.json, per_video.csv and per_phase.csv, the last with intervals beside the scores."""
    metrics = evaluation.metrics
    write_json(out_dir / "metrics.json", metrics)
    write_csv(out_dir / "per_video.csv", pd.DataFrame(evaluation.per_video))
    intervals = metrics["intervals"]["per_phase"]
    rows = [row | _bounds(found) for row, found in zip(metrics["per_phase"], intervals, strict=True)]
    write_csv(out_dir / "per_phase.csv", pd.DataFrame(rows))


def _scored(videos: Sequence[EvaluatedVideo]) -> list[ScoredVideo]:
    return [
        ScoredVideo(
            video_id=video.video_id, patient_id=video.patient_id, labels=video.labels, predictions=video.predictions
        )
        for video in videos
    ]


def _calibration(videos: Sequence[EvaluatedVideo]) -> ReliabilityCurve | None:
    """Of all frames together; None if the predictions came without probabilities."""
    tables = [video.probabilities for video in videos if video.probabilities is not None]
    if len(tables) < len(videos):
        return None
    return reliability_curve(np.concatenate(tables), np.concatenate([video.labels for video in videos]))


def _bounds(intervals: dict[str, Any]) -> dict[str, float | None]:
    """{"f1_low", "f1_high", ...} of one phase's {"f1": [low, high] or None, ...}."""
    return {
        f"{name}_{end}": None if intervals[name] is None else intervals[name][index]
        for name in SCORE_NAMES
        for index, end in enumerate(("low", "high"))
    }
