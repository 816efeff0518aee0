"""The last stage of a study: its saved weights on the test frames."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from spatialfeat.config import PREDICTIONS_NAME, WEIGHTS_NAME, FinetuneConfig
from spatialfeat.data.cache import FrameCache
from spatialfeat.data.frames import FrameTable
from spatialfeat.distributed import ProcessGroup
from spatialfeat.network.inference import as_set, predict_frames, write_predictions_csv
from spatialfeat.network.weights import load_checkpoint
from spatialfeat.reports.plots import save_confusion_matrix
from spatialfeat.reports.report import confusion_title
from spatialfeat.reports.tables import score_tables
from spatialfeat.scores.predictions import evaluated_videos
from spatialfeat.scores.summary import score, write_scores

TEST_NAMES = (
    PREDICTIONS_NAME,
    "metrics.json",
    "per_video.csv",
    "per_phase.csv",
    "confusion_matrix.png",
    "confusion_matrix.svg",
)
"""What the test leaves in the study's folder."""

logger = logging.getLogger(__name__)


def run_test_stage(
    config: FinetuneConfig, table: FrameTable, group: ProcessGroup, workers: int, cache: FrameCache | None
) -> dict[str, Any] | None:
    """Score the saved weights, read back from their file. None in all processes but the main one, which writes."""
    out_dir = config.out_dir
    checkpoint = load_checkpoint(out_dir / WEIGHTS_NAME)
    predictions = predict_frames(
        checkpoint.model,
        table,
        checkpoint.preprocessing,
        device=group.device,
        precision=config.precision,
        batch_size=group.share(config.batch_size),
        workers=workers,
        title="test",
        cache=cache,
        group=group,
    )
    if not group.is_main:
        return None
    write_predictions_csv(out_dir / PREDICTIONS_NAME, predictions)
    evaluation = score("test", evaluated_videos(as_set(table, predictions), "video"), checkpoint.phase_names)
    write_scores(out_dir, evaluation)
    counts = np.asarray(evaluation.metrics["confusion_matrix"], dtype=np.int64)
    title = confusion_title(evaluation)
    save_confusion_matrix(out_dir / "confusion_matrix.png", counts, checkpoint.phase_names, title)
    logger.info("\n%s\n", score_tables(evaluation))
    return evaluation.metrics
