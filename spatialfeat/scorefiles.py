"""What an evaluation leaves behind: predictions, metrics.json, per-phase table, confusion matrix, terminal table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatialfeat.config import PREDICTIONS_NAME
from spatialfeat.files import write_atomically, write_json
from spatialfeat.frames import FrameTable
from spatialfeat.plots import save_confusion_matrix
from spatialfeat.prediction import Predictions, write_predictions_csv
from spatialfeat.scoring import ScoredVideo
from spatialfeat.summary import summarize
from spatialfeat.videos import group_videos

PHASE_COLUMNS = ("precision", "recall", "f1", "jaccard")


def score_predictions(table: FrameTable, predictions: Predictions, phase_names: tuple[str, ...]) -> dict[str, Any]:
    """The content of metrics.json. Rows are put into time order per video before they are scored."""
    videos = [
        ScoredVideo(
            video_id=video.video_id,
            patient_id=video.patient_id,
            labels=predictions.labels[video.rows],
            predictions=predictions.predicted[video.rows],
        )
        for video in group_videos([table])
    ]
    return summarize(videos, phase_names)


def write_score_files(
    out_dir: Path, table: FrameTable, predictions: Predictions, phase_names: tuple[str, ...]
) -> dict[str, Any]:
    """Write everything that `out_dir` shall hold about these predictions. Returns the content of metrics.json."""
    metrics = score_predictions(table, predictions, phase_names)
    write_predictions_csv(out_dir / PREDICTIONS_NAME, predictions)
    write_json(out_dir / "metrics.json", metrics)
    per_phase = pd.DataFrame(metrics["per_phase"])
    write_atomically(out_dir / "per_phase.csv", lambda path: per_phase.to_csv(path, index=False, lineterminator="\n"))
    save_confusion_matrix(
        out_dir / "confusion_matrix.png",
        np.asarray(metrics["confusion_matrix"], dtype=np.int64),
        phase_names,
        f"Confusion matrix of {table.source.name} ({len(table)} frames)",
    )
    return metrics


def metrics_table(metrics: dict[str, Any]) -> str:
    """The pooled scores and the per-phase table, as text for a terminal."""
    pooled = metrics["pooled"]
    width = max(len("phase"), *(len(name) for name in metrics["phase_names"]))
    lines = [
        f"{metrics['num_frames']} frames of {metrics['num_videos']} videos, all frames counted alike:",
        f"accuracy {pooled['accuracy']:.4f}   macro-F1 {pooled['macro_f1']:.4f}",
        "",
        f"{'phase':<{width}}  {'frames':>7}  " + "  ".join(f"{name:>9}" for name in PHASE_COLUMNS),
    ]
    for row in metrics["per_phase"]:
        scores = "  ".join(f"{'-' if row[name] is None else format(row[name], '.4f'):>9}" for name in PHASE_COLUMNS)
        lines.append(f"{row['name']:<{width}}  {row['support']:>7}  {scores}")
    return "\n".join(lines)
