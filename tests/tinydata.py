"""Tiny inputs that several tests need: CSVs, PNG frames, frame tables and feature files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spatialfeat.data.frames import FrameTable, read_frames
from spatialfeat.features.schema import Provenance, VideoHeader
from spatialfeat.features.writer import FeatureFileWriter

PROVENANCE = Provenance(
    weights_sha256="a" * 64,
    phase_names=("nasal", "sphenoid", "sellar"),
    preprocessing='{"image_size_px": 224}',
    precision="fp32",
    backbone="resnet50",
    layer="avgpool",
    layout="channel-first",
    group_by="video",
    fps=1.0,
)
TIME_FIRST_PROVENANCE = replace(PROVENANCE, layout="time-first")
NUM_CHANNELS = 2048


def write_two_videos(source: Path, folder: Path, *, num_frames: int) -> tuple[str, ...]:
    """The first frames of two videos of a CSV, one to train and one to test on, as values of --csv."""
    lines = source.read_text().splitlines(keepends=True)
    videos = dict.fromkeys(line.rsplit("_", 1)[0] for line in lines[1:])
    for split, video in zip(("train", "test"), videos, strict=False):
        rows = [line for line in lines if line.startswith(f"{video}_")][:num_frames]
        (folder / f"{split}.csv").write_text("".join([lines[0], *rows]))
    return tuple(f"{split}={folder / split}.csv" for split in ("train", "test"))


def write_csv(path: Path, rows: Sequence[tuple[str, object]]) -> Path:
    """Write `id,label` and the rows."""
    lines = ["id,label", *(f"{frame_id},{label}" for frame_id, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_table(
    folder: Path, ids: Sequence[str], *, split: str = "train", labels: Sequence[int] | None = None
) -> FrameTable:
    """The frame table of `folder/{split}.csv` with these ids; labels are 0 if not given. Images are not written."""
    rows = list(zip(ids, labels or [0] * len(ids), strict=True))
    csv_path = write_csv(folder / f"{split}.csv", rows)
    return read_frames(csv_path, folder / "images", split=split)


def png_bytes(seed: int = 0, size_px: tuple[int, int] = (9, 7)) -> bytes:
    """A noisy RGB PNG, so that its pixel data is too long to fit in one small read."""
    width, height = size_px
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(table: FrameTable) -> None:
    """Write a different PNG for every row of the table."""
    table.images.path.mkdir(exist_ok=True)
    for row in range(len(table)):
        table.image_path(row).write_bytes(png_bytes(seed=row))


def make_header(num_frames: int, video_id: str = "1050_1") -> VideoHeader:
    """Frames 1, 3, 5, ... of one video, labelled 0, 1, 2, -100, 0, ..."""
    frames = np.arange(num_frames, dtype=np.int64) * 2 + 1
    return VideoHeader(
        video_id=video_id,
        patient_id=video_id.rpartition("_")[0] or video_id,
        split="train",
        frame_ids=np.array([f"{video_id}_{frame}" for frame in frames.tolist()]),
        labels=np.array([0, 1, 2, -100], dtype=np.int64)[np.arange(num_frames) % 4],
        segments=np.full(num_frames, 1, dtype=np.int64),
        frame_numbers=frames,
    )


def make_outputs(num_frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (T, 2048) and logits (T, 3), every number different, so that no mix-up goes unseen."""
    features = np.arange(num_frames * NUM_CHANNELS, dtype=np.float32).reshape(num_frames, NUM_CHANNELS)
    logits = -np.arange(num_frames * 3, dtype=np.float32).reshape(num_frames, 3) - 1
    return features, logits


def write_feature_file(
    path: Path,
    header: VideoHeader,
    provenance: Provenance = PROVENANCE,
    *,
    block_sizes: Sequence[int] | None = None,
    attributes: dict[str, str] | None = None,
) -> Path:
    """Write a feature file with `make_outputs`, in blocks of these sizes (default: one block)."""
    features, logits = make_outputs(len(header.labels))
    start = 0
    with closing(FeatureFileWriter(path, header, provenance, {"spatialfeat": "0.1.0"})) as writer:
        for size in block_sizes or [len(features)]:
            writer.append(features[start : start + size], logits[start : start + size])
            start += size
        writer.finish(**(attributes or {}))
    return path
