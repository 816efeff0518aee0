"""`spatialfeat predict`: phases and confidences of frames that nobody has labelled, as a CSV and as ribbons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from spatialfeat.config import ExtractConfig, FeaturesSource, PredictConfig
from spatialfeat.console import align, clock_text, count_text
from spatialfeat.data.frames import UNLABELLED, group_videos
from spatialfeat.files import write_csv
from spatialfeat.reports.report import write_ribbons
from spatialfeat.reports.ribbons import Timeline, timelines
from spatialfeat.runrecord import RunRecord, results_folder
from spatialfeat.scores.predictions import (
    EvaluatedVideo,
    FramePredictions,
    evaluated_videos,
    open_weights,
    read_feature_predictions,
)
from spatialfeat.scores.summary import unscored

CSV_NAME = "predictions.csv"
RESULT_PATTERNS = (CSV_NAME, "ribbons_overview*.[ps][nv]g", "ribbons/*.[ps][nv]g")
"""What a prediction leaves in its folder."""

UNSURE = 0.5
"""A phase of a smaller probability has all others together against it."""

logger = logging.getLogger(__name__)


def predict(config: PredictConfig) -> list[EvaluatedVideo]:
    """Predict every frame of the source and write predictions.csv and ribbons to `config.out_dir`.

    Returns the videos, each with its predictions and probabilities, in numeric order.

    Raises:
        SpatialfeatError: anything that the user can fix, before the first frame is computed where possible. An image
            that cannot be read ends the run, and nothing is kept: a frame that is left out would shift those after it.
    """
    source = config.source
    if isinstance(source, FeaturesSource):
        opened = read_feature_predictions(source, config.num_classes, config.phase_names)
    else:
        opened = open_weights(source, config.num_classes, config.phase_names, to="predict")
    group_videos(opened.tables, config.group_by)  # Raises for a video or patient that is written in two ways.
    num_labelled = sum(int((table.labels != UNLABELLED).sum()) for table in opened.tables)
    if num_labelled:
        frames = count_text(num_labelled, "frame")
        logger.info("note: the labels of %s are not used; `spatialfeat evaluate` scores predictions", frames)
    with (
        results_folder(config.out_dir, "predict", RESULT_PATTERNS) as results_dir,
        RunRecord(results_dir, "predict", config, opened.data, **opened.facts) as record,
    ):
        ((network, found),) = opened.predict().items()
        parts = [_without_labels(part) for part in found]
        videos = evaluated_videos(parts, config.group_by)
        lines = timelines(videos, config.fps or opened.stored_fps or ExtractConfig.fps)
        _write_csv(results_dir / CSV_NAME, videos, opened.phase_names)
        logger.info("\n%s", "\n".join(_summary(videos, lines)))
        logger.info("\nwriting ribbons to %s", config.out_dir)
        write_ribbons(results_dir, [unscored(network, videos, opened.phase_names)], lines)
        num_frames = sum(map(len, opened.tables))
        record.finish(videos=[video.video_id for video in videos], num_frames=num_frames, **opened.facts_after)
    logger.info("phases and confidences: %s", config.out_dir / CSV_NAME)
    return list(videos)


def _without_labels(part: FramePredictions) -> FramePredictions:
    return replace(part, table=replace(part.table, labels=np.full(len(part.table), UNLABELLED, dtype=np.int64)))


def _write_csv(path: Path, videos: Sequence[EvaluatedVideo], phase_names: Sequence[str]) -> None:
    """img_id,predicted_label,phase,confidence: video after video, each in time order."""
    predicted = np.concatenate([video.predictions for video in videos])
    table = pd.DataFrame(
        {
            "img_id": np.concatenate([video.frame_ids for video in videos]),
            "predicted_label": predicted,
            "phase": np.array(phase_names, dtype=object)[predicted],
            "confidence": np.concatenate([_confidence(video) for video in videos]).round(4),
        }
    )
    write_csv(path, table)


def _confidence(video: EvaluatedVideo) -> np.ndarray:
    """(T,): the probability of each frame's predicted phase."""
    assert video.probabilities is not None
    return np.asarray(video.probabilities.max(axis=1), dtype=np.float64)


def _summary(videos: Sequence[EvaluatedVideo], lines: Sequence[Timeline]) -> list[str]:
    """A line per video for the terminal."""
    rows = [("video", "frames", "duration", "phases", "mean confidence", f"frames below {UNSURE:g}")]
    for video, line in zip(videos, lines, strict=True):
        confidence = _confidence(video)
        rows.append(
            (
                video.video_id,
                str(len(confidence)),
                clock_text(line.duration_s),
                str(len(np.unique(video.predictions))),
                f"{confidence.mean():.3f}",
                f"{(confidence < UNSURE).mean():.1%}",
            )
        )
    return align(rows)
