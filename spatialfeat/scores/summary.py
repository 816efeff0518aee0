"""Videos with labels and predictions: check them, count what each contributes, score each alone.

Build the content of `metrics.json` (schema 1) from scored videos.

Every number is a fraction 0..1, the edit score included (elsewhere often printed as 0..100); null (None)
where undefined. Keys say how a number was averaged:

* pooled: all frames of all videos counted together; macro = mean over all phases, undefined as 0.
* video_wise: computed per video, then averaged; A and B are the strategies for phases missing from a video,
  and video_macro, cell_mean, phase_macro the averages (`metrics.missing_phases`, `metrics.ScoreAverages`).
* per_phase: each phase's scores over all frames, pooled.
* segmental: edit is the mean over videos; f1_10, f1_25, f1_50 pool segments over videos.
* relaxed: accuracy is the mean over videos; precision, recall and jaccard are the phase_macro under strategy
  B, as Cholec80's evaluation averages them. relaxed.video_wise holds the other averages, as in video_wise.
* intervals: [low, high] by resampling patients; with fewer than two patients null and samples 0.
  video_wise_accuracy belongs to video_wise.accuracy.mean, per_phase to per_phase, the others to their
  namesakes.

Videos without a labelled frame are left out; num_videos and num_frames count what was scored.

Score predictions, and write what an evaluation leaves behind about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import write_csv, write_json
from spatialfeat.scores.calibration import ReliabilityCurve, reliability_curve
from spatialfeat.scores.metrics import (
    SCORE_NAMES,
    STRATEGIES,
    FloatArray,
    IntArray,
    accuracies,
    average_scores,
    confusion_counts,
    missing_phases,
    nan_mean,
    nan_std,
    phase_scores,
    pooled_scores_of_counts,
    scored_frames,
)
from spatialfeat.scores.predictions import EvaluatedVideo, Evaluation
from spatialfeat.scores.relaxed import DEFAULT_WINDOW_S, TransitionGraph, relaxed_scores, window_frames
from spatialfeat.scores.segments import IOU_PERCENTS, edit_score, segment_f1, segment_matches
from spatialfeat.scores.table import (
    NUM_SAMPLES,
    Interval,
    VideoTallies,
    bootstrap_differences,
    bootstrap_intervals,
    bootstrap_phase_intervals,
    resampling_facts,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredVideo:
    """One video to score: labels and predictions (T,), in time order, as for `metrics.scored_frames`."""

    video_id: str
    patient_id: str
    labels: npt.NDArray[np.integer[Any]]
    predictions: npt.NDArray[np.integer[Any]]


def labelled_videos(videos: Sequence[ScoredVideo], num_phases: int) -> list[ScoredVideo]:
    """Check every video and keep those with a labelled frame, reduced to their labelled frames.

    Raises SpatialfeatError for a repeated video id, as `metrics.scored_frames`, and if nothing is labelled.
    """
    seen: set[str] = set()
    kept = []
    for video in videos:
        if video.video_id in seen:
            raise SpatialfeatError(f"video {video.video_id}: occurs twice; give each video once")
        seen.add(video.video_id)
        labels, predictions = scored_frames(
            video.labels, video.predictions, num_phases, place=f"video {video.video_id}"
        )
        if len(labels):
            kept.append(
                ScoredVideo(
                    video_id=video.video_id,
                    patient_id=video.patient_id,
                    labels=labels,
                    predictions=predictions,
                )
            )
    if not kept:
        raise SpatialfeatError(f"none of {len(videos)} videos has a labelled frame; metrics need labels")
    return kept


def tally(videos: Sequence[ScoredVideo], num_phases: int) -> VideoTallies:
    """Count what each video contributes; every video needs a labelled frame (`labelled_videos`)."""
    sequences = [(video.labels, video.predictions, num_phases) for video in videos]
    return VideoTallies(
        patient_ids=tuple(video.patient_id for video in videos),
        counts=np.stack([confusion_counts(*sequence) for sequence in sequences]),
        edit=np.array([edit_score(*sequence) for sequence in sequences]),
        matches=np.stack([segment_matches(*sequence) for sequence in sequences]),
    )


def per_video_rows(videos: Sequence[ScoredVideo], num_phases: int) -> list[dict[str, Any]]:
    """One row per scored video, for a table.

    {"video_id", "patient_id", "num_frames", "accuracy", "edit", "f1_10", "f1_25", "f1_50"} and, for
    precision, recall, jaccard and f1, "macro_<score>_A" and "macro_<score>_B": mean over the phases where
    defined, None where none is. Raises SpatialfeatError as `labelled_videos`.
    """
    scored = labelled_videos(videos, num_phases)
    tallies = tally(scored, num_phases)
    scores = phase_scores(tallies.counts)
    columns: dict[str, FloatArray] = {"accuracy": accuracies(tallies.counts)}
    for strategy in STRATEGIES:
        for name in SCORE_NAMES:
            table = missing_phases(getattr(scores, name), scores.support, strategy)
            columns[f"macro_{name}_{strategy}"] = nan_mean(table, axis=1)
    columns["edit"] = tallies.edit
    matched = segment_f1(tallies.matches)
    columns |= {f"f1_{percent}": matched[:, index] for index, percent in enumerate(IOU_PERCENTS)}
    num_frames = tallies.counts.sum(axis=(1, 2))
    return [
        {"video_id": video.video_id, "patient_id": video.patient_id, "num_frames": int(num_frames[row])}
        | {name: None if np.isnan(values[row]) else float(values[row]) for name, values in columns.items()}
        for row, video in enumerate(scored)
    ]


SCHEMA = 1
RELAXED_NAMES = ("precision", "recall", "jaccard")


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """What to report. relaxed needs sampling_fps: the rate of the scored frames, not the camera's."""

    relaxed: TransitionGraph | None = None
    window_s: float = DEFAULT_WINDOW_S
    sampling_fps: float | None = None
    bootstrap_samples: int = NUM_SAMPLES
    seed: int = 0


def summarize(
    videos: Sequence[ScoredVideo],
    phase_names: Sequence[str],
    options: SummaryOptions | None = None,
    calibration: ReliabilityCurve | None = None,
) -> dict[str, Any]:
    """Build the metrics.json dictionary: plain numbers, texts, lists and None only.

    phase_names: C names, phase 0 first. calibration: of the same frames; its key is absent when None.
    Raises SpatialfeatError for repeated video ids, values outside the phases, no labelled frame at all, a
    graph of another number of phases, or relaxed metrics without a sampling rate.
    """
    options = options or SummaryOptions()
    scored = labelled_videos(videos, len(phase_names))
    tallies = tally(scored, len(phase_names))
    counts = tallies.counts.sum(axis=0)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "num_videos": len(scored),
        "num_frames": int(counts.sum()),
        "num_phases": len(phase_names),
        "phase_names": list(phase_names),
        "pooled": _numbers(asdict(pooled_scores_of_counts(counts))),
        "video_wise": _video_wise(tallies.counts),
        "per_phase": _per_phase(counts, phase_names),
        "confusion_matrix": counts.tolist(),
        "segmental": _segmental(tallies.edit, tallies.matches),
        "relaxed": _relaxed(scored, len(phase_names), options),
        "intervals": _intervals(tallies, options),
    }
    if calibration is not None:
        summary["calibration"] = _calibration(calibration)
    return summary


def _video_wise(counts: IntArray) -> dict[str, Any]:
    scores = phase_scores(counts)
    tables = {name: getattr(scores, name) for name in SCORE_NAMES}
    return {"accuracy": _over_videos(accuracies(counts))} | _strategies(tables, scores.support)


def _strategies(tables: Mapping[str, FloatArray], support: IntArray) -> dict[str, Any]:
    """{"A": {score: averages}, "B": ...} of (V, C) tables."""
    return {
        strategy: {name: _averages(missing_phases(table, support, strategy)) for name, table in tables.items()}
        for strategy in STRATEGIES
    }


def _over_videos(values: FloatArray) -> dict[str, float | None]:
    return {"mean": _number(float(nan_mean(values))), "std_over_videos": _number(nan_std(values))}


def _averages(table: FloatArray) -> dict[str, Any]:
    found = average_scores(table)
    return {
        "video_macro": _numbers({"mean": found.video_macro, "std_over_videos": found.std_over_videos}),
        "cell_mean": _number(found.cell_mean),
        "phase_macro": _numbers({"mean": found.phase_macro, "std_over_phases": found.std_over_phases}),
    }


def _per_phase(counts: IntArray, phase_names: Sequence[str]) -> list[dict[str, Any]]:
    scores = phase_scores(counts)
    return [
        {"phase": phase, "name": name, "support": int(scores.support[phase])}
        | {score: _number(getattr(scores, score)[phase]) for score in SCORE_NAMES}
        for phase, name in enumerate(phase_names)
    ]


def _segmental(edit: FloatArray, matches: IntArray) -> dict[str, float | None]:
    pooled = segment_f1(matches.sum(axis=0))
    return {"edit": _number(float(nan_mean(edit)))} | {
        f"f1_{percent}": _number(pooled[index]) for index, percent in enumerate(IOU_PERCENTS)
    }


def _relaxed(videos: Sequence[ScoredVideo], num_phases: int, options: SummaryOptions) -> dict[str, Any] | None:
    graph, sampling_fps = options.relaxed, options.sampling_fps
    if graph is None:
        return None
    if sampling_fps is None:
        raise SpatialfeatError("relaxed metrics: sampling rate not given; give the scored frames per second")
    if graph.num_phases != num_phases:
        raise SpatialfeatError(
            f"relaxed metrics: the transition graph has {graph.num_phases} phases, the data {num_phases}; "
            "give a graph of the data's phases"
        )
    found = [
        relaxed_scores(video.labels, video.predictions, graph, sampling_fps=sampling_fps, window_s=options.window_s)
        for video in videos
    ]
    tables = {name: np.stack([getattr(scores, name) for scores in found]) for name in RELAXED_NAMES}
    accuracy = _over_videos(np.array([scores.accuracy for scores in found]))
    averages = _strategies(tables, np.stack([scores.support for scores in found]))
    return {
        "window_s": float(options.window_s),
        "sampling_fps": float(sampling_fps),
        "window_frames": window_frames(options.window_s, sampling_fps),
        "transitions": [list(pair) for pair in sorted(graph.pairs)],
        "accuracy": accuracy["mean"],
        **{name: averages["B"][name]["phase_macro"]["mean"] for name in RELAXED_NAMES},
        "video_wise": {"accuracy": accuracy} | averages,
    }


def _intervals(tallies: VideoTallies, options: SummaryOptions) -> dict[str, Any]:
    samples, seed = options.bootstrap_samples, options.seed
    overall = bootstrap_intervals(tallies, num_samples=samples, seed=seed)
    phases = bootstrap_phase_intervals(tallies, num_samples=samples, seed=seed)
    return resampling_facts(tallies, num_samples=samples, seed=seed) | {
        **{name: _pair(found) for name, found in overall.items()},
        "per_phase": [
            {"phase": phase} | {name: _pair(found) for name, found in row.items()} for phase, row in enumerate(phases)
        ],
    }


def _calibration(curve: ReliabilityCurve) -> dict[str, Any]:
    bins = zip(curve.edges[:-1], curve.edges[1:], curve.counts, curve.confidence, curve.accuracy, strict=True)
    return {
        "expected_calibration_error": _number(curve.expected_calibration_error),
        "num_bins": len(curve.counts),
        "num_frames": int(curve.counts.sum()),
        "bins": [
            {
                "low": float(low),
                "high": float(high),
                "num_frames": int(count),
                "confidence": _number(confidence),
                "accuracy": _number(accuracy),
            }
            for low, high, count, confidence, accuracy in bins
        ],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: undefined is null."""
    return None if np.isnan(value) else float(value)


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


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
    metrics = summarize(scored, phase_names, options, _reliability(videos)) | {"grouped_by": group_by}
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


def _reliability(videos: Sequence[EvaluatedVideo]) -> ReliabilityCurve | None:
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


def compare(
    first: Sequence[ScoredVideo],
    second: Sequence[ScoredVideo],
    num_phases: int,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two predictions of the same frames by paired bootstrap over patients.

    Returns {"level", "unit", "num_patients", "samples", "seed", "differences": {score: {"difference": second
    - first, "interval": [low, high] or None}}}, scores as `bootstrap.resampled_scores` names them.
    Raises SpatialfeatError if videos, patients or labels disagree, and as `scoring.labelled_videos`.
    """
    scored, other_scored = labelled_videos(first, num_phases), labelled_videos(second, num_phases)
    _require_same_frames(first, second)
    others = {video.video_id: video for video in other_scored}
    tallies = tally(scored, num_phases)
    other_tallies = tally([others[video.video_id] for video in scored], num_phases)
    found = bootstrap_differences(tallies, other_tallies, num_samples=num_samples, seed=seed)
    return resampling_facts(tallies, num_samples=num_samples, seed=seed) | {
        "differences": {
            name: {
                "difference": item.estimate,
                "interval": None if item.interval is None else list(item.interval),
            }
            for name, item in found.items()
        },
    }


def _require_same_frames(first: Sequence[ScoredVideo], second: Sequence[ScoredVideo]) -> None:
    others = {video.video_id: video for video in second}
    lone = sorted({video.video_id for video in first} ^ set(others))
    if lone:
        raise SpatialfeatError(
            f"{len(lone)} videos are in one prediction only ({', '.join(lone[:5])}); predict the same videos"
        )
    for video in first:
        other = others[video.video_id]
        if video.patient_id != other.patient_id or not np.array_equal(video.labels, other.labels):
            raise SpatialfeatError(
                f"video {video.video_id}: patient or labels differ between predictions; use the same frames"
            )
