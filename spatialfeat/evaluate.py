"""`spatialfeat evaluate`: score a weights file on the frames of one CSV."""

from __future__ import annotations

import logging
from typing import Any

from spatialfeat.checkpoint import MORE_CLASSES, load_checkpoint
from spatialfeat.config import EvaluateConfig
from spatialfeat.files import prepare_output_dir
from spatialfeat.framecheck import require_images
from spatialfeat.frames import read_frames
from spatialfeat.prediction import predict_frames
from spatialfeat.runrecord import RunRecord
from spatialfeat.runtime import choose_workers, describe_device, select_device, use_true_float32
from spatialfeat.scorefiles import metrics_table, write_score_files

logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Predict every frame of `config.csv` and write the scores to `config.out_dir`.

    Returns:
        The content of metrics.json.
    Raises:
        SpatialfeatError: anything that the user can mend, before the first frame is computed where possible.
    """
    checkpoint = load_checkpoint(config.weights, num_classes=config.num_classes, phase_names=config.phase_names)
    table = read_frames(
        config.csv, config.img_dir, split="evaluation", num_classes=checkpoint.num_classes, more_classes=MORE_CLASSES
    )
    prepare_output_dir(config.out_dir)
    require_images([table])
    device = select_device(config.device)
    use_true_float32()
    record = RunRecord(
        config.out_dir,
        "evaluate",
        config,
        [config.csv],
        device=describe_device(device),
        weights_sha256=checkpoint.sha256,
    )
    logger.info("evaluating %s: %d frames on %s", config.csv, len(table), describe_device(device))
    predictions = predict_frames(
        checkpoint.model,
        table,
        checkpoint.preprocessing,
        device=device,
        batch_size=config.batch_size,
        workers=choose_workers(config.workers, device),
        title="evaluate",
    )
    metrics = write_score_files(config.out_dir, table, predictions, checkpoint.phase_names)
    record.finish(accuracy=metrics["pooled"]["accuracy"], macro_f1=metrics["pooled"]["macro_f1"])
    logger.info("%s", metrics_table(metrics))
    logger.info("scores, predictions and confusion matrix are in %s", config.out_dir)
    return metrics
