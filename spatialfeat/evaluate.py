"""`spatialfeat evaluate`: score and compare predictions of weights, feature files, temporal models or anybody's CSV."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from spatialfeat import __version__
from spatialfeat.config import (
    PREDICTIONS_NAME,
    EvaluateConfig,
    FeaturesSource,
    PredictionsSource,
    ResultsSource,
    WeightsSource,
)
from spatialfeat.console import count_text
from spatialfeat.data.frames import NO_LABELLED_FRAME, UNLABELLED, doubtful_fps, group_videos, unlabelled_text
from spatialfeat.errors import SpatialfeatError
from spatialfeat.reports.report import write_report
from spatialfeat.reports.tables import comparison_table, score_tables
from spatialfeat.runrecord import RunRecord, results_folder
from spatialfeat.scores.predictions import (
    EvaluatedVideo,
    OpenedSource,
    evaluated_videos,
    open_weights,
    read_feature_predictions,
    read_prediction_files,
    usual_step,
)
from spatialfeat.scores.relaxed import DEFAULT_WINDOW_S, cholec80_notice, relaxed_graph, window_frames
from spatialfeat.scores.results import read_results
from spatialfeat.scores.summary import Evaluation, ScoreOptions, compare, score, write_comparisons, write_scores

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
        SpatialfeatError: anything that the user can fix, before the first frame is computed where possible.
    """
    opened = open_source(config)
    graph = None if config.relaxed is None else relaxed_graph(config.relaxed, opened.phase_names)
    _refuse_empty_window(config, config.fps)
    with (
        results_folder(config.out_dir, "evaluate", RESULT_PATTERNS) as results_dir,
        RunRecord(results_dir, "evaluate", config.resolved(), opened.data, **opened.facts) as record,
    ):
        sets = opened.predict()
        if isinstance(config.source, WeightsSource):
            (parts,) = sets.values()
            parts[0].write_csv(results_dir / PREDICTIONS_NAME)
        videos = {name: evaluated_videos(parts, config.group_by) for name, parts in sets.items()}
        sampling_fps, numbering_fps = find_rates(next(iter(videos.values())), config.fps, opened.stored_fps)
        _refuse_empty_window(config, sampling_fps)
        options = ScoreOptions(
            group_by=config.group_by,
            relaxed=graph,
            window_s=config.relaxed_window or DEFAULT_WINDOW_S,
            sampling_fps=sampling_fps,
            num_samples=config.bootstrap,
            seed=config.seed,
            folds=opened.folds,
        )
        evaluations = tuple(score(name, found, opened.phase_names, options) for name, found in videos.items())
        comparisons = tuple(
            compare(evaluations[0], later, num_samples=config.bootstrap, seed=config.seed) for later in evaluations[1:]
        )
        for evaluation in evaluations:
            # Each of several sets has a folder of its name for its scores.
            write_scores(results_dir / evaluation.name if comparisons else results_dir, evaluation)
        if comparisons:
            write_comparisons(results_dir, comparisons)
        notices = _notices(config, opened, evaluations[0])
        for notice in notices:
            logger.info("note: %s", notice)
        for text in (*map(score_tables, evaluations), *(comparison_table(found, evaluations) for found in comparisons)):
            logger.info("\n%s", text)
        if opened.warning:
            logger.warning("%s", opened.warning)
        # Last, because they take a minute for many videos: the numbers are on the terminal by now.
        logger.info("\nwriting pictures and report.html to %s", config.out_dir)
        write_report(
            results_dir,
            evaluations,
            comparisons,
            fps=numbering_fps,
            title=f"Evaluation of {', '.join(evaluation.name for evaluation in evaluations)}",
            facts=_report_facts(config, opened, sampling_fps, notices),
            frames=opened.tables[0] if config.frames and isinstance(config.source, WeightsSource) else None,
        )
        pooled = {evaluation.name: evaluation.metrics["pooled"] for evaluation in evaluations}
        record.finish(scores=pooled, **opened.facts_after)
    return EvaluationResult(evaluations, comparisons)


def open_source(config: EvaluateConfig) -> OpenedSource:
    """Check the predictions' source. Nothing is written, and nothing is predicted yet."""
    source = config.source
    if isinstance(source, PredictionsSource):
        opened = read_prediction_files(source, config.num_classes, config.phase_names)
    elif isinstance(source, ResultsSource):
        opened = read_results(source, config.num_classes, config.phase_names)
    elif isinstance(source, FeaturesSource):
        opened = read_feature_predictions(source, config.num_classes, config.phase_names)
    else:
        opened = open_weights(source, config.num_classes, config.phase_names, to="evaluate")
    group_videos(opened.tables, config.group_by)  # Raises for a video or patient that is written in two ways.
    if all((table.labels == UNLABELLED).all() for table in opened.tables):
        raise SpatialfeatError(f"{opened.tables[0].source}: {NO_LABELLED_FRAME}")
    return opened


def find_rates(
    videos: tuple[EvaluatedVideo, ...], given_fps: float | None, stored_fps: float | None
) -> tuple[float | None, float]:
    """(scored frames per second, None if unknown; frame numbers per second).

    Every 25th frame of a 25 fps video is one frame per second whose numbers run at 25 per second: the usual step
    between neighbouring numbers lies between the two.

    Args:
        given_fps: scored frames per second, as the user says.
        stored_fps: frame numbers per second, as feature files say; `given_fps` goes before it.
    """
    step = usual_step(videos)
    if given_fps is None and stored_fps is not None:
        return stored_fps / step, stored_fps
    return given_fps, (1.0 if given_fps is None else given_fps) * step


def _refuse_empty_window(config: EvaluateConfig, sampling_fps: float | None) -> None:
    """A window of no frame forgives nothing: most likely the rate is wrong."""
    window_s = config.relaxed_window or DEFAULT_WINDOW_S
    if config.relaxed is not None and sampling_fps is not None and window_frames(window_s, sampling_fps) == 0:
        raise SpatialfeatError(
            f"--relaxed {config.relaxed}: a window of {window_s:g} s holds no frame at {sampling_fps:g} scored frames "
            "per second; pass the right --fps, or a longer --relaxed-window"
        )


def _notices(config: EvaluateConfig, opened: OpenedSource, evaluation: Evaluation) -> list[str]:
    """What a reader of the scores should know, on the terminal and in the report."""
    notices = list(opened.notices)
    if isinstance(config.source, PredictionsSource) and config.source.csv is None:
        notices.append(
            f"the true phases are those in {opened.tables[0].source}: a frame that is missing from it is not noticed; "
            "pass --csv to check that all are there"
        )
    notices += [f"{text}: in no score" for table in opened.tables if (text := unlabelled_text(table))]
    if opened.stored_fps is not None and config.fps is None:
        doubt = doubtful_fps([int(usual_step(evaluation.videos))], opened.stored_fps)
        notices += [f"{doubt}, or --fps 1 to evaluate"] if doubt else []
    relaxed = cholec80_notice(config.relaxed, opened.phase_names)
    if relaxed is not None:
        notices.append(relaxed)
    num_patients, num_videos = len({video.patient_id for video in evaluation.videos}), len(evaluation.videos)
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


def _report_facts(
    config: EvaluateConfig, opened: OpenedSource, sampling_fps: float | None, notices: list[str]
) -> dict[str, object]:
    """What the report says about the run beside its numbers; of what differs between two equal runs only the date."""
    source = config.source
    facts: dict[str, object] = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}"}
    if isinstance(source, PredictionsSource):
        facts["predictions"] = ", ".join(source.predictions)
        facts["true phases"] = source.csv or "from the predictions files"
    elif isinstance(source, FeaturesSource):
        facts["feature files"] = f"{', '.join(map(str, source.folders))} (split: {source.split})"
        if isinstance(source, ResultsSource):
            facts["predictions"] = ", ".join(source.predictions)
    else:
        facts |= {"weights": source.weights, "frames": source.csv}
    for name, title in (("weights_epoch", "weights of epoch"), ("weights_sha256", "SHA-256 of the weights")):
        if name in opened.facts:
            facts[title] = opened.facts[name]
    for number, fold in enumerate(opened.folds, start=1):
        facts[f"SHA-256 of the weights {number}"] = fold["weights_sha256"]
    if config.group_by == "patient":
        facts["one video is"] = "a patient, all segments in order"
    if sampling_fps is not None:
        facts["scored frames per second"] = f"{sampling_fps:g}"
    facts["made by"] = f"spatialfeat {__version__}"
    notes = {f"note {number}": text for number, text in enumerate(notices, start=1)}
    return facts | ({"warning": opened.warning} if opened.warning else {}) | notes
