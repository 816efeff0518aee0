"""Score sets of predictions, compare them, and write what an evaluation leaves: metrics.json and the CSVs.

metrics.json (schema 1): every number is a fraction 0..1, the edit score included (elsewhere often 0..100); null where
undefined. Keys say how a number was averaged:

* pooled: all frames of all videos counted together; macro = mean over all phases, undefined as 0.
* occurring: the same macro scores, as means over the num_phases phases that a labelled frame has.
* video_wise: computed per video, then averaged; A and B are the strategies for phases missing from a video
  (`metrics.missing_phases`), and video_macro, cell_mean, phase_macro the averages (`metrics.average_scores`).
* per_phase: each phase's scores over all frames, pooled.
* segmental: edit is the mean over videos; f1_10, f1_25, f1_50 pool runs over videos.
* relaxed: accuracy is the mean over videos; precision, recall and jaccard are the phase_macro under strategy B, as
  Cholec80's evaluation averages them. relaxed.video_wise holds the other averages, as in video_wise.
* intervals: [low, high] by resampling patients; with fewer than two patients null and samples 0. per_phase belongs to
  per_phase, the others to the overall scores of their names (`table.SCORES`).

* folds: only after a cross-validation with a network per fold: features, weights_sha256 and videos of each.

Videos without a labelled frame are left out; num_videos and num_frames count what was scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from spatialfeat.console import shown_phases
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.files import write_csv, write_json
from spatialfeat.scores.metrics import (
    MEASURES,
    STRATEGIES,
    BoolArray,
    FloatArray,
    IntArray,
    calibration,
    count_scores,
    labelled_frames,
    mean_and_deviation,
    missing_phases,
    nan_mean,
    strategy_averages,
)
from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.relaxed import DEFAULT_WINDOW_S, relaxed_scores, window_frames
from spatialfeat.scores.segmental import IOU_PERCENTS, f1_of_matches
from spatialfeat.scores.table import (
    LEVEL,
    NUM_SAMPLES,
    SCORES,
    Resamples,
    Tallies,
    interval,
    pooled_phase_scores,
    tally,
)

METRICS_SCHEMA = 1
COMPARISON_SCHEMA = 1

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreOptions:
    """How to score. group_by: what a video is, "video" or "patient".

    relaxed: the transition graph (C, C) of relaxed scores, None for none. They need sampling_fps, the rate of the
    scored frames, not the camera's. folds: of a cross-validation, what is known of each, for the record.
    """

    group_by: str = "video"
    relaxed: BoolArray | None = None
    window_s: float = DEFAULT_WINDOW_S
    sampling_fps: float | None = None
    num_samples: int = NUM_SAMPLES
    seed: int = 0
    folds: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One set of predictions, scored.

    name: for example the stem of the predictions file. metrics: the content of metrics.json. per_video: the rows of
    per_video.csv. Several evaluations of one run have the same videos with the same labels.
    """

    name: str
    videos: tuple[EvaluatedVideo, ...]
    tallies: Tallies
    metrics: dict[str, Any]
    per_video: list[dict[str, Any]]


def score(
    name: str,
    videos: Sequence[EvaluatedVideo],
    phase_names: Sequence[str],
    options: ScoreOptions | None = None,
) -> Evaluation:
    """Score one set of predictions; at least one frame must be labelled."""
    options = options or ScoreOptions()
    tallies = tally(videos, len(phase_names))
    metrics = _metrics(tallies, videos, phase_names, options)
    return Evaluation(
        name=name, videos=tuple(videos), tallies=tallies, metrics=metrics, per_video=_per_video_rows(tallies)
    )


def unscored(name: str, videos: Sequence[EvaluatedVideo], phase_names: Sequence[str]) -> Evaluation:
    """Predictions without any truth: what pictures along time need, and no scores."""
    assert not any(video.num_labelled for video in videos)
    tallies, metrics = tally(videos, len(phase_names)), {"phase_names": list(phase_names)}
    return Evaluation(name=name, videos=tuple(videos), tallies=tallies, metrics=metrics, per_video=[])


def _metrics(
    tallies: Tallies, videos: Sequence[EvaluatedVideo], phase_names: Sequence[str], options: ScoreOptions
) -> dict[str, Any]:
    counts = tallies.counts.sum(axis=0)
    resamples = Resamples.draw(tallies.patient_ids, options.num_samples, options.seed)
    samples = {key: found.compute(tallies, resamples) for key, found in SCORES.items()}
    metrics: dict[str, Any] = {
        "schema": METRICS_SCHEMA,
        "num_videos": len(tallies.video_ids),
        "num_frames": counts.sum(),
        "num_phases": len(phase_names),
        "phase_names": phase_names,
        # The order of keys belongs to the file; `SCORES` has that of the tables.
        "pooled": dict.fromkeys(["accuracy", *(f"macro_{measure}" for measure in MEASURES)]),
        "occurring": _occurring(counts),
        "video_wise": {
            "accuracy": mean_and_deviation(tallies.accuracy, over="videos"),
            **strategy_averages(count_scores(tallies.counts), tallies.support),
        },
        "per_phase": _per_phase(counts, phase_names),
        "confusion_matrix": counts,
        "segmental": {},
        "relaxed": _relaxed(videos, tallies, options),
        "intervals": {
            **_resampling_facts(tallies, options.num_samples, options.seed),
            **{key: interval(found[1:]) for key, found in _in_file_order(samples) if SCORES[key].bootstrapped},
            "per_phase": _phase_intervals(tallies, resamples),
        },
    }
    for key, found in samples.items():
        *sections, last = SCORES[key].place.split(".")
        section = metrics
        for name in sections:
            section = section[name]
        section[last] = found[0]
    if all(video.probabilities is not None for video in videos):
        probabilities = np.concatenate([video.probabilities for video in videos if video.probabilities is not None])
        metrics["calibration"] = calibration(probabilities, np.concatenate([video.labels for video in videos]))
    folds = {"folds": list(options.folds)} if options.folds else {}
    plain: dict[str, Any] = _plain(metrics | {"grouped_by": options.group_by} | folds)
    return plain


def _occurring(counts: IntArray) -> dict[str, Any]:
    """Macro scores over the phases with a labelled frame; a precision that is undefined there counts as 0."""
    occurs, scores = counts.sum(axis=1) > 0, count_scores(counts)
    return {"num_phases": occurs.sum()} | {
        f"macro_{measure}": np.nan_to_num(scores[measure][occurs]).mean() for measure in MEASURES
    }


def _per_phase(counts: IntArray, phase_names: Sequence[str]) -> list[dict[str, Any]]:
    scores = count_scores(counts)
    return [
        {"phase": phase, "name": name, "support": counts[phase].sum()}
        | {measure: scores[measure][phase] for measure in MEASURES}
        for phase, name in enumerate(phase_names)
    ]


def _relaxed(videos: Sequence[EvaluatedVideo], tallies: Tallies, options: ScoreOptions) -> dict[str, Any] | None:
    graph, sampling_fps = options.relaxed, options.sampling_fps
    if graph is None:
        return None
    num_phases = tallies.counts.shape[1]
    assert sampling_fps is not None, "the window is given in seconds"
    assert len(graph) == num_phases, (len(graph), num_phases)
    window = window_frames(options.window_s, sampling_fps)
    accuracies, scores = zip(
        *(
            relaxed_scores(*labelled_frames(video.labels, video.predictions, num_phases), graph, window)
            for video in videos
            if video.num_labelled
        ),
        strict=True,
    )
    accuracy = mean_and_deviation(np.array(accuracies), over="videos")
    tables = {measure: np.stack([found[measure] for found in scores]) for measure in scores[0]}
    averages = strategy_averages(tables, tallies.support)
    return {
        "window_s": float(options.window_s),
        "sampling_fps": float(sampling_fps),
        "window_frames": window,
        "transitions": np.argwhere(graph),
        "accuracy": accuracy["mean"],
        **{measure: found["phase_macro"]["mean"] for measure, found in averages["B"].items()},
        "video_wise": {"accuracy": accuracy} | averages,
    }


def _phase_intervals(tallies: Tallies, resamples: Resamples) -> list[dict[str, Any]]:
    scores = pooled_phase_scores(tallies, resamples)
    return [
        {"phase": phase} | {measure: interval(scores[measure][1:, phase]) for measure in MEASURES}
        for phase in range(tallies.counts.shape[1])
    ]


def _per_video_rows(tallies: Tallies) -> list[dict[str, Any]]:
    """One row per scored video: macro_... are means over the phases where defined, None where none is."""
    scores = count_scores(tallies.counts)
    columns: dict[str, FloatArray] = {"accuracy": tallies.accuracy}
    for strategy in STRATEGIES:
        for measure in MEASURES:
            table = missing_phases(scores[measure], tallies.support, strategy)
            columns[f"macro_{measure}_{strategy}"] = nan_mean(table, axis=1)
    columns["edit"] = tallies.edit
    matched = f1_of_matches(tallies.matches)
    columns |= {f"f1_{percent}": matched[:, index] for index, percent in enumerate(IOU_PERCENTS)}
    rows: list[dict[str, Any]] = _plain([
        {"video_id": video_id, "patient_id": tallies.patient_ids[row], "num_frames": tallies.num_frames[row]}
        | {name: values[row] for name, values in columns.items()}
        for row, video_id in enumerate(tallies.video_ids)
    ])  # fmt: skip
    return rows


def shown_of(evaluations: Sequence[Evaluation]) -> list[int]:
    """`shown_phases` of predictions of the same frames: labelled phases go before those that are only predicted."""
    counts = np.sum([evaluation.tallies.counts.sum(axis=0) for evaluation in evaluations], axis=0)
    # Counted anew, because tallies leave out frames without a label, which pictures along time show.
    predicted = np.concatenate([video.predictions for evaluation in evaluations for video in evaluation.videos])
    times_predicted = np.bincount(predicted[predicted != UNLABELLED], minlength=len(counts))
    return shown_phases(counts.sum(axis=1).tolist(), times_predicted.tolist())


def compare(first: Evaluation, second: Evaluation, *, num_samples: int, seed: int) -> dict[str, Any]:
    """Second minus first, of the same frames: an entry of comparison.json.

    Each resample scores both on the same patients, so what the two find equally hard cancels out of the interval.
    """
    tallies = first.tallies
    assert tallies.patient_ids == second.tallies.patient_ids, "different videos"
    assert (tallies.support == second.tallies.support).all(), "different labels"
    resamples = Resamples.draw(tallies.patient_ids, num_samples, seed)
    differences = {
        key: found.compute(second.tallies, resamples) - found.compute(tallies, resamples)
        for key, found in SCORES.items()
    }
    plain: dict[str, Any] = _plain(
        {
            "first": first.name,
            "second": second.name,
            **_resampling_facts(tallies, num_samples, seed),
            "differences": {
                key: {
                    "difference": found[0],
                    "interval": interval(found[1:]) if SCORES[key].bootstrapped else None,
                }
                for key, found in _in_file_order(differences)
            },
        }
    )
    return plain


def _resampling_facts(tallies: Tallies, num_samples: int, seed: int) -> dict[str, Any]:
    """What intervals rest on; 0 samples with fewer than two patients."""
    num_patients = len(set(tallies.patient_ids))
    return {
        "level": LEVEL,
        "unit": "patient",
        "num_patients": num_patients,
        "samples": num_samples if num_patients >= 2 else 0,
        "seed": seed,
    }


def _in_file_order(scores: Mapping[str, T]) -> list[tuple[str, T]]:
    """Items of {key: ...} of overall scores, in the order of the files' keys."""
    return [(key, scores[key]) for key in dict.fromkeys(["accuracy", "macro_f1", *scores])]


def _plain(value: Any) -> Any:
    """Numbers, texts, lists, dictionaries and None, as JSON has them; it has no NaN: undefined is null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and np.isnan(value) else value


def write_scores(out_dir: Path, evaluation: Evaluation) -> None:
    """Write metrics.json, per_video.csv and per_phase.csv, the last with intervals beside the scores."""
    metrics = evaluation.metrics
    out_dir.mkdir(exist_ok=True)
    write_json(out_dir / "metrics.json", metrics)
    write_csv(out_dir / "per_video.csv", pd.DataFrame(evaluation.per_video))
    rows = []
    for row, intervals in zip(metrics["per_phase"], metrics["intervals"]["per_phase"], strict=True):
        with_intervals = dict(row)
        for measure in MEASURES:
            low, high = intervals[measure] or (None, None)
            with_intervals |= {f"{measure}_low": low, f"{measure}_high": high}
        rows.append(with_intervals)
    write_csv(out_dir / "per_phase.csv", pd.DataFrame(rows))


def write_comparisons(out_dir: Path, comparisons: Sequence[dict[str, Any]]) -> None:
    """Write comparison.json, for two or more sets of predictions."""
    write_json(out_dir / "comparison.json", {"schema": COMPARISON_SCHEMA, "comparisons": list(comparisons)})
