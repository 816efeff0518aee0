"""`spatialfeat evaluate`: score the predictions of weights, of feature files, or of anybody's CSV, and compare them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialfeat import __version__
from spatialfeat.config import PREDICTIONS_NAME, EvaluateConfig, FeaturesSource, PredictionsSource, WeightsSource
from spatialfeat.console import count_text
from spatialfeat.data.dataset import require_images
from spatialfeat.data.frames import UNLABELLED, group_videos, read_frames
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    prepare_processor,
    select_device,
    use_true_float32,
)
from spatialfeat.errors import SpatialfeatError, translate_computing_faults, translate_os_errors
from spatialfeat.files import move_into, prepare_output_dir, read_json_object, working_folder
from spatialfeat.network.inference import predict_logits
from spatialfeat.network.resnet import InferenceNetwork
from spatialfeat.network.weights import MORE_CLASSES, load_checkpoint
from spatialfeat.reports.report import save_pictures, write_report
from spatialfeat.reports.tables import comparison_table, score_tables
from spatialfeat.runrecord import RECORD_NAME, RunRecord
from spatialfeat.scores.predictions import (
    NETWORK_NAME,
    Evaluation,
    EvaluationInput,
    FramePredictions,
    PredictionSet,
    Rates,
    evaluated_videos,
    find_rates,
    read_feature_predictions,
    read_prediction_files,
    write_predictions_csv,
)
from spatialfeat.scores.relaxed import DEFAULT_WINDOW_S, cholec80_notice, relaxed_graph
from spatialfeat.scores.summary import SummaryOptions, compare_with_first, score, write_comparison, write_scores

RESULT_PATTERNS = (
    "metrics.json",
    "per_video.csv",
    "per_phase.*",
    "comparison.json",
    "report.html",
    PREDICTIONS_NAME,
    "confusion_matrix*.[ps][nv]g",
    "reliability*.[ps][nv]g",
    "ribbons_overview*.[ps][nv]g",
    "ribbons/*.[ps][nv]g",
)
"""What an evaluation leaves in its folder, beside a folder per set where there are several."""

WORKING_NAME = ".evaluation.partial"

FEW_PATIENTS = 10
"""With fewer, percentiles of resampled patients are little more than the worst and the best of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """evaluations: one per set of predictions. comparisons: every later set with the first, as in comparison.json."""

    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[dict[str, Any], ...]

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
    with (
        _results_folder(config.out_dir) as results_dir,
        RunRecord(results_dir, "evaluate", config.resolved(), opened.data, **opened.facts) as record,
    ):
        found_sets = opened.predict()
        if isinstance(config.source, WeightsSource):
            write_predictions_csv(results_dir / PREDICTIONS_NAME, found_sets[0].parts[0])
        sets = {found.name: evaluated_videos(found, config.group_by) for found in found_sets}
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
        comparisons = tuple(compare_with_first(evaluations, num_samples=config.bootstrap, seed=config.seed))
        result = EvaluationResult(evaluations, comparisons)
        _write_scores(results_dir, result)
        notices = _notices(config, opened, evaluations[0])
        for notice in notices:
            logger.info("note: %s", notice)
        for text in (*map(score_tables, evaluations), *(comparison_table(found, evaluations) for found in comparisons)):
            logger.info("\n%s", text)
        # Last, because they take a minute for many videos: the numbers are on the terminal by now.
        logger.info("\nwriting pictures and report.html to %s", config.out_dir)
        _write_pictures(results_dir, config, result, rates, notices)
        record.finish(scores={evaluation.name: evaluation.metrics["pooled"] for evaluation in evaluations})
    return result


@contextmanager
def _results_folder(out_dir: Path) -> Iterator[Path]:
    """A hidden folder for the results; they move to `out_dir` when all are there, so a failure leaves earlier ones.

    Of a failed evaluation only the record moves, and only where no whole run has left one.
    """
    with working_folder(out_dir / WORKING_NAME, out_dir) as results_dir, translate_os_errors(out_dir):
        try:
            yield results_dir
        except BaseException:
            whole = read_json_object(out_dir / RECORD_NAME).get("status") == "complete"
            if (results_dir / RECORD_NAME).exists() and not whole:
                (results_dir / RECORD_NAME).replace(out_dir / RECORD_NAME)
            raise
        if _holds_evaluation(out_dir):
            _remove_earlier_results(out_dir)
        move_into(results_dir, out_dir, last=RECORD_NAME)


def _holds_evaluation(out_dir: Path) -> bool:
    return read_json_object(out_dir / RECORD_NAME).get("command") == "evaluate"


def _remove_earlier_results(out_dir: Path) -> None:
    """Remove what an earlier evaluation left here: pictures of other videos or sets would look like this one's."""
    for pattern in RESULT_PATTERNS:
        for path in out_dir.glob(pattern):
            path.unlink()


def _write_scores(out_dir: Path, result: EvaluationResult) -> None:
    """One set's scores lie in the output folder itself; each of several sets has a folder of its name for them."""
    for evaluation in result.evaluations:
        scores_dir = out_dir / evaluation.name if result.comparisons else out_dir
        prepare_output_dir(scores_dir)
        write_scores(scores_dir, evaluation)
    if result.comparisons:
        write_comparison(out_dir, result.comparisons)


def _write_pictures(
    out_dir: Path, config: EvaluateConfig, result: EvaluationResult, rates: Rates, notices: list[str]
) -> None:
    evaluations = result.evaluations
    save_pictures(out_dir, evaluations, fps=rates.numbering_fps)
    write_report(
        out_dir / "report.html",
        evaluations,
        result.comparisons,
        fps=rates.numbering_fps,
        title=f"Evaluation of {', '.join(evaluation.name for evaluation in evaluations)}",
        facts=_report_facts(config, rates) | {f"note {number}": text for number, text in enumerate(notices, start=1)},
    )


def _notices(config: EvaluateConfig, opened: EvaluationInput, evaluation: Evaluation) -> list[str]:
    """What a reader of the scores should know, on the terminal and in the report."""
    notices = list(opened.notices)
    relaxed = cholec80_notice(config.relaxed, opened.phase_names)
    notices += [relaxed] if relaxed else []
    num_patients = len({video.patient_id for video in evaluation.videos})
    num_videos = len(evaluation.videos)
    if config.group_by == "video" and num_patients < num_videos:
        notices.append(
            f"{num_videos} videos of {count_text(num_patients, 'patient')}: numbers per video are per part of an "
            "operation; for numbers per operation pass --group-by patient"
        )
    if 1 < num_patients < FEW_PATIENTS:
        notices.append(
            f"{num_patients} patients are too few for intervals to be trusted: they are rough and mostly too narrow"
        )
    return notices


def _report_facts(config: EvaluateConfig, rates: Rates) -> dict[str, object]:
    """What the report says about the run beside its numbers; nothing that differs between two equal runs."""
    source = config.source
    facts: dict[str, object] = {}
    if isinstance(source, PredictionsSource):
        facts["predictions"] = ", ".join(source.predictions)
        facts["true phases"] = source.csv or "from the predictions files"
    elif isinstance(source, FeaturesSource):
        facts["feature files"] = f"{source.features} (split: {source.split})"
    else:
        facts |= {"weights": source.weights, "frames": source.csv}
    facts["one video is"] = "a video" if config.group_by == "video" else "a patient, all segments in order"
    if rates.sampling_fps is not None:
        facts["scored frames per second"] = f"{rates.sampling_fps:g}"
    return facts | {"made by": f"spatialfeat {__version__}"}


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
    device = select_device(source.device)
    precision = choose_precision(source.precision, device)
    require_images([table])  # Last of the checks: it takes seconds, the others do not.

    def predict() -> tuple[PredictionSet, ...]:
        use_true_float32()
        prepare_processor()
        logger.info("evaluating %s: %d frames on %s", source.csv, len(table), describe_arithmetic(device, precision))
        workers = choose_workers(source.workers, device)
        with translate_computing_faults(batch_size=source.batch_size, workers=workers):
            network = InferenceNetwork(
                checkpoint.model.to(device), checkpoint.preprocessing, precision, source.batch_size
            )
            logits = predict_logits(network, table, workers=workers, title="evaluate")
        return (PredictionSet(name=NETWORK_NAME, parts=(FramePredictions.of_logits(table, logits),)),)

    return EvaluationInput(
        tables=(table,),
        phase_names=checkpoint.phase_names,
        predict=predict,
        data=(source.csv,),
        facts={"device": describe_device(device), "precision": precision, "weights_sha256": checkpoint.sha256},
    )
