"""Drawn evaluations for the tests of pictures and report: every frame is made up, nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spatialfeat.reports.ribbons import ribbon_figure, timelines
from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.summary import Evaluation, ScoreOptions, compare, score

CHOLEC_NAMES = (
    "Preparation",
    "CalotTriangleDissection",
    "ClippingCutting",
    "GallbladderDissection",
    "GallbladderPackaging",
    "CleaningCoagulation",
    "GallbladderRetraction",
)


def small_video(video_id: str, labels: Sequence[int], predictions: Sequence[int], patient: str = "") -> EvaluatedVideo:
    """A video of successive frames, without probabilities; its patient is what its id begins with."""
    return EvaluatedVideo(
        video_id=video_id,
        patient_id=patient or video_id.split("_")[0],
        frame_ids=np.array([f"{video_id}_{frame}" for frame in range(len(labels))]),
        segments=np.zeros(len(labels), dtype=np.int64),
        frame_numbers=np.arange(len(labels)),
        labels=np.array(labels, dtype=np.int64),
        predictions=np.array(predictions, dtype=np.int64),
        probabilities=None,
    )


def drawn_video(
    number: int,
    num_frames: int,
    num_phases: int,
    *,
    seed: int = 0,
    step: int = 25,
    num_segments: int = 1,
    gaps: bool = False,
    unlabelled: bool = False,
    skill: float = 0.85,
) -> EvaluatedVideo:
    """Phases in order, each of random length; predictions are right with probability `skill`, in stretches.

    Labels depend on the number only, not on the seed: other seeds give other predictions of the same frames.
    """
    truth_rng, rng = np.random.default_rng(number), np.random.default_rng([seed, number])
    cuts = np.sort(truth_rng.integers(0, num_frames + 1, size=num_phases - 1))
    labels = np.searchsorted(cuts, np.arange(num_frames), side="right").astype(np.int64)
    stretches = np.repeat(rng.random(num_frames // 8 + 1) < skill, 8)[:num_frames]
    near = np.clip(labels + rng.integers(-1, 2, size=num_frames // 8 + 1).repeat(8)[:num_frames], 0, num_phases - 1)
    predictions = np.where(stretches, labels, near).astype(np.int64)
    logits = rng.normal(size=(num_frames, num_phases)) + 3.0 * np.eye(num_phases)[predictions]
    logits[np.arange(num_frames), predictions] = logits.max(axis=1) + 0.1
    powers = np.exp(logits)
    segments = (np.arange(num_frames) * num_segments // num_frames + 1).astype(np.int64)
    frames = np.concatenate([np.arange((segments == segment).sum()) for segment in np.unique(segments)]) * step + 1
    if gaps:
        frames = frames + np.where(np.arange(num_frames) >= num_frames // 2, num_frames // 8 * step, 0)
    if unlabelled:
        labels[num_frames // 3 : num_frames // 3 + max(1, num_frames // 12)] = -100
    video_id = f"{1000 + number}" if num_segments > 1 else f"{1000 + number}_1"
    ids = [f"{1000 + number}_{s}_{f:06d}" for s, f in zip(segments, frames, strict=True)]
    return EvaluatedVideo(
        video_id=video_id,
        patient_id=str(1000 + number),
        frame_ids=np.array(ids),
        segments=segments,
        frame_numbers=frames.astype(np.int64),
        labels=labels,
        predictions=predictions,
        probabilities=(powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
    )


def evaluation_of(
    name: str, videos: Sequence[EvaluatedVideo], phase_names: Sequence[str], options: ScoreOptions | None = None
) -> Evaluation:
    """Score drawn videos as the command would."""
    return score(name, videos, phase_names, options or ScoreOptions(num_samples=200))


def compared(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The first against every other, as the command compares them."""
    return [compare(evaluations[0], later, num_samples=100, seed=0) for later in evaluations[1:]]


def drawn_ribbon(evaluations: Sequence[Evaluation], position: int, *, fps: float) -> Figure:
    """The ribbons of one video."""
    return ribbon_figure(evaluations, position, timelines(evaluations[0].videos, fps)[position])


def drawn_evaluations(
    num_videos: int = 2,
    num_frames: int = 400,
    phase_names: Sequence[str] = CHOLEC_NAMES,
    names: Sequence[str] = ("resnet", "tcn"),
    options: ScoreOptions | None = None,
) -> list[Evaluation]:
    """Several predictions of the same videos: one of two segments, some with gaps or unlabelled frames."""
    return [
        evaluation_of(
            name,
            [
                drawn_video(
                    number,
                    num_frames + 7 * number,
                    len(phase_names),
                    seed=seed,
                    num_segments=2 if number == 0 else 1,
                    gaps=number % 3 == 1,
                    unlabelled=number % 2 == 1,
                    skill=0.6 + 0.25 * seed,
                )
                for number in range(num_videos)
            ],
            phase_names,
            options,
        )
        for seed, name in enumerate(names)
    ]
