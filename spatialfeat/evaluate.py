"""`spatialfeat evaluate`: score the predictions of weights, of feature files, or of anybody's CSV, and compare them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialfeat.checkpoint import MORE_CLASSES, load_checkpoint
from spatialfeat.config import PREDICTIONS_NAME
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluateconfig import EvaluateConfig, FeaturesSource, PredictionsSource, WeightsSource
from spatialfeat.evaluation import Evaluation
from spatialfeat.evaluationinput import EvaluationInput, PredictionSet, evaluated_videos, find_rates
from spatialfeat.featurepredictions import read_feature_predictions
from spatialfeat.files import prepare_output_dir, write_json
from spatialfeat.framecheck import require_images
from spatialfeat.frames import UNLABELLED, read_frames
from spatialfeat.prediction import as_set, predict_frames, write_predictions_csv
from spatialfeat.predictionfiles import read_prediction_files
from spatialfeat.relaxed import DEFAULT_WINDOW_S
from spatialfeat.runrecord import RunRecord
from spatialfeat.runtime import choose_workers, describe_device, select_device, use_true_float32
from spatialfeat.scorefiles import compare_with_first, score, write_confusion_matrix, write_scores
from spatialfeat.scoretables import comparison_table, score_tables
from spatialfeat.summary import SummaryOptions
from spatialfeat.transitions import relaxed_graph
from spatialfeat.videos import group_videos

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """evaluations: one per set of predictions. comparison: content of comparison.json, None for a single set."""

    evaluations: tuple[Evaluation, ...]
    comparison: dict[str, Any] | None

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of the first set's metrics.json."""
        return self.evaluations[0].metrics


def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Score every set of predictions and write the scores to `config.out_dir`; see docs/evaluation.md.

    Raises:
        SpatialfeatError: anything that the user can mend, before the first frame is computed where possible.
    """
    opened = open_source(config)
    graph = None if config.relaxed is None else relaxed_graph(config.relaxed, opened.phase_names)
    prepare_output_dir(config.out_dir)
    record = RunRecord(config.out_dir, "evaluate", config.resolved(), opened.data, **opened.facts)
    sets = {found.name: evaluated_videos(found, config.group_by) for found in opened.predict()}
    rates = find_rates(next(iter(sets.values())), given_fps=config.fps, stored_fps=opened.stored_fps)
    options = SummaryOptions(
        relaxed=graph,
        window_s=DEFAULT_WINDOW_S if config.relaxed_window is None else config.relaxed_window,
        sampling_fps=rates.sampling_fps,
        bootstrap_samples=config.bootstrap,
        seed=config.seed,
    )
    evaluations = tuple(
        score(name, videos, opened.phase_names, options, group_by=config.group_by) for name, videos in sets.items()
    )
    comparison = None
    if len(evaluations) > 1:
        comparison = compare_with_first(evaluations, num_samples=config.bootstrap, seed=config.seed)
        write_json(config.out_dir / "comparison.json", comparison)
    for evaluation in evaluations:
        out_dir = config.out_dir if comparison is None else config.out_dir / evaluation.name
        prepare_output_dir(out_dir)
        write_scores(out_dir, evaluation)
        write_confusion_matrix(out_dir, evaluation, evaluation.name)
    record.finish(scores={evaluation.name: evaluation.metrics["pooled"] for evaluation in evaluations})
    _print_tables(evaluations, comparison)
    logger.info("scores, pictures and report.html are in %s", config.out_dir)
    return EvaluationResult(evaluations, comparison)


def open_source(config: EvaluateConfig) -> EvaluationInput:
    """Check the predictions' source. Nothing is written, and nothing is predicted yet."""
    source = config.source
    if isinstance(source, PredictionsSource):
        opened = read_prediction_files(source, config.num_classes, config.phase_names)
    elif isinstance(source, FeaturesSource):
        opened = read_feature_predictions(source, config.num_classes, config.phase_names)
    else:
        opened = _open_weights(source, config)
    group_videos(opened.tables, config.group_by)  # Raises for a video or patient that is written in two ways.
    if all((table.labels == UNLABELLED).all() for table in opened.tables):
        raise SpatialfeatError(
            f"{opened.tables[0].source}: has no labelled frame; scores need the true phases of some frames"
        )
    return opened


def _open_weights(source: WeightsSource, config: EvaluateConfig) -> EvaluationInput:
    checkpoint = load_checkpoint(source.weights, num_classes=config.num_classes, phase_names=config.phase_names)
    table = read_frames(
        source.csv,
        source.img_dir,
        split="evaluation",
        num_classes=checkpoint.num_classes,
        allow_unlabelled=True,
        more_classes=MORE_CLASSES,
    )
    require_images([table])
    device = select_device(source.device)

    def predict() -> tuple[PredictionSet, ...]:
        use_true_float32()
        logger.info("evaluating %s: %d frames on %s", source.csv, len(table), describe_device(device))
        predictions = predict_frames(
            checkpoint.model,
            table,
            checkpoint.preprocessing,
            device=device,
            batch_size=source.batch_size,
            workers=choose_workers(source.workers, device),
            title="evaluate",
        )
        write_predictions_csv(config.out_dir / PREDICTIONS_NAME, predictions)
        return (as_set(Path(PREDICTIONS_NAME).stem, table, predictions),)

    return EvaluationInput(
        tables=(table,),
        phase_names=checkpoint.phase_names,
        predict=predict,
        data=(source.csv,),
        facts={"device": describe_device(device), "weights_sha256": checkpoint.sha256},
    )


def _print_tables(evaluations: tuple[Evaluation, ...], comparison: dict[str, Any] | None) -> None:
    for evaluation in evaluations:
        logger.info("\n%s\n", score_tables(evaluation))
    if comparison is not None:
        for later in comparison["comparisons"]:
            logger.info("%s\n", comparison_table(comparison, later, evaluations))
