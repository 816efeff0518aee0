"""Small feature folders with known content, made with the program's own writer."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatialfeat.features.schema import Provenance, VideoHeader
from spatialfeat.features.writer import FeatureFileWriter

PHASES = ("access", "resection", "closure")


@dataclass(frozen=True)
class Made:
    """What was put into one feature file: features (T, channels), logits (T, C), labels (T,), ids."""

    path: Path
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    frame_ids: list[str]


def make_video(
    folder: Path,
    video_id: str,
    labels: list[int],
    *,
    split: str = "train",
    patient: str | None = None,
    layout: str = "channel-first",
    phases: tuple[str, ...] = PHASES,
    weights: str = "a" * 64,
    fps: float = 1.0,
    spoil: tuple[int, float] | None = None,
    file_name: str | None = None,
    num_channels: int = 2048,
    has_logits: bool = True,
) -> Made:
    """Write `{video_id}.h5` with random features. Frame numbers have a gap after each third frame.

    `spoil` is (frame, value): this value is put into one channel of that frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(video_id.encode()) + len(labels))
    features = rng.standard_normal((len(labels), num_channels), dtype=np.float32)
    logits = rng.standard_normal((len(labels), len(phases)), dtype=np.float32)
    if spoil is not None:
        features[spoil[0], 3] = spoil[1]
    frames = np.array([1 + index + 5 * (index // 3) for index in range(len(labels))], dtype=np.int64)
    frame_ids = [f"{video_id}_{frame:06d}" for frame in frames]
    last_field = video_id.split("_")[-1]
    header = VideoHeader(
        video_id=video_id,
        patient_id=patient or video_id.split("_")[0],
        split=split,
        frame_ids=np.array(frame_ids),
        labels=np.array(labels, dtype=np.int64),
        segments=np.full(len(labels), int(last_field) if last_field.isdigit() else 0, dtype=np.int64),
        frame_numbers=frames,
    )
    provenance = Provenance(
        weights_sha256=weights,
        phase_names=phases,
        preprocessing="{}",
        precision="fp32",
        backbone="resnet50",
        layer="avgpool",
        layout=layout,
        group_by="video",
        fps=fps,
    )
    path = folder / f"{file_name or video_id}.h5"
    with closing(FeatureFileWriter(path, header, provenance, {"numpy": np.__version__})) as writer:
        writer.append(features, logits if has_logits else logits[:, :0])
        writer.finish()
    return Made(path, features, logits, header.labels, frame_ids)


def make_study(folder: Path, longest: int = 130, num_channels: int = 2048) -> dict[str, Made]:
    """Eight labelled videos: four to train, two to validate, two to test; both layouts; two videos of patient 1050."""
    lengths = {
        "9_1": longest,
        "1050_1": 5,
        "1050_2": 4,
        "1051_1": longest - 2,
        "1052_1": 3,
        "1053_1": 6,
        "1054_1": 7,
        "1100_1": 2,
    }
    splits = {"1052_1": "val", "1054_1": "val", "1053_1": "test", "1100_1": "test"}
    return {
        video: make_video(
            folder,
            video,
            [index * 3 // length for index in range(length)],
            split=splits.get(video, "train"),
            layout="time-first" if video in ("1051_1", "1100_1") else "channel-first",
            num_channels=num_channels,
        )
        for video, length in lengths.items()
    }
