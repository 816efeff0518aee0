"""What feature files are for: a temporal model trained on them beats the frame-wise classifier."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from drawing import draw_nothing
from networks import network
from numpy.typing import NDArray
from tinydata import NUM_CHANNELS, PROVENANCE
from tinytcn import TinyTcn, frame_predictions, segmental_scores, temporal_predictions, train_tcn

from spatialfeat import read_features
from spatialfeat.config import ExtractConfig, FinetuneConfig
from spatialfeat.extract import extract
from spatialfeat.features.schema import VideoHeader
from spatialfeat.features.writer import FeatureFileWriter
from spatialfeat.finetune import finetune

NUM_PHASES = 5
NUM_HIDDEN = 12
"""Features of a trained network vary in few directions; with noise in all 2048, a small data set is learnt by heart."""
NUM_VIDEOS = {"train": 8, "test": 4}
DISTANCE = 2.4
"""Between two phases' mean features, in standard deviations of a frame: about three of four frames are told right."""


def _labels(rng: np.random.Generator) -> NDArray[np.int64]:
    """Phases in order, each of 15 to 45 frames; some are left out, some come back, ten frames are unlabelled."""
    phases = [phase for phase in range(NUM_PHASES) if rng.random() < 0.85]
    again = int(rng.integers(1, len(phases)))
    phases.insert(again + 1, phases[again - 1])
    labels = np.concatenate([np.full(rng.integers(15, 46), phase) for phase in phases]).astype(np.int64)
    labels[20:30] = -100
    return labels


def _write_video(
    folder: Path, video_id: str, split: str, directions: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Noisy class means in a few of 2048 dimensions. The logits tell the best guess from a single frame."""
    labels = _labels(rng)
    true_phases = np.where(labels == -100, labels[19], labels)
    frames = np.arange(1, len(labels) + 1)
    hidden = DISTANCE / np.sqrt(2) * np.eye(NUM_PHASES, NUM_HIDDEN)[true_phases] + rng.standard_normal(
        (len(labels), NUM_HIDDEN)
    )
    features = hidden @ directions + 0.02 * rng.standard_normal((len(labels), NUM_CHANNELS))
    logits = hidden[:, :NUM_PHASES]
    header = VideoHeader(
        video_id=video_id,
        patient_id=video_id.partition("_")[0],
        split=split,
        frame_ids=np.array([f"{video_id}_{frame:06d}" for frame in frames]),
        labels=labels,
        segments=np.where(frames > 60, 2, 1),
        frame_numbers=frames,
    )
    provenance = replace(PROVENANCE, phase_names=tuple(f"phase{number}" for number in range(NUM_PHASES)))
    with closing(FeatureFileWriter(folder / f"{video_id}.h5", header, provenance, {})) as writer:
        writer.append(features.astype(np.float32), logits.astype(np.float32))
        writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features_dir = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((NUM_CHANNELS, NUM_HIDDEN)))[0].T
    for split, count in NUM_VIDEOS.items():
        for number in range(count):
            _write_video(features_dir, f"{1000 + number + 100 * (split == 'test')}_1", split, directions, rng)
    return features_dir


@pytest.fixture(scope="module")
def model(folder: Path) -> TinyTcn:
    return train_tcn(folder)


def test_the_frame_wise_classifier_is_good_but_flickers(folder: Path) -> None:
    """Otherwise the comparison below would say nothing."""
    files = read_features(folder, split="test")
    right = np.concatenate([(frame_predictions(file) == file.labels)[file.labels >= 0] for file in files])
    assert 0.65 < right.mean() < 0.85


def test_a_temporal_model_beats_the_frame_wise_classifier(folder: Path, model: TinyTcn) -> None:
    frame_wise, temporal = segmental_scores(folder, model)
    assert all(temporal > frame_wise + 0.4), (frame_wise, temporal)
    assert temporal[1] > 0.6, temporal


def test_padding_does_not_change_a_video(folder: Path, model: TinyTcn) -> None:
    """Predictions of padded batches are those of each video alone."""
    with torch.inference_mode():
        for file, batched in zip(read_features(folder, split="test"), temporal_predictions(model, folder), strict=True):
            features = torch.from_numpy(file.features())[None]
            alone = model(features, torch.ones(1, len(file), dtype=torch.bool)).argmax(dim=1)[0].numpy()
            assert batched.shape == (len(file),)
            assert (batched == alone).mean() > 0.99  # Sums of another order may turn a tie.


def test_training_is_repeatable_with_workers(folder: Path) -> None:
    models = [train_tcn(folder, epochs=1, workers=workers) for workers in (0, 2)]
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.fixture(scope="module")
def demo_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real extraction: a small network trained on drawn operations for two epochs, its features grouped by patient."""
    data, out = tmp_path_factory.mktemp("operations"), tmp_path_factory.mktemp("trained")
    load_script("make_demo_data").make_demo_data(
        data, num_train=5, num_val=1, num_test=2, frames_per_patient=36, size_px=(96, 64), workers=1
    )
    csvs = {split: data / f"{split}_ResNet_DB.csv" for split in ("train", "val", "test")}
    with network(small=True), pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch.setattr)
        study = finetune(
            FinetuneConfig(
                train_csv=csvs["train"],
                val_csv=csvs["val"],
                img_dir=data / "images",
                out_dir=out,
                weights="random",
                image_size_px=64,
                batch_size=12,
                lr=1e-3,
                epochs=2,
                workers=0,
                device="cpu",
            )
        )
        extract(
            ExtractConfig(
                csvs=tuple(map(str, csvs.values())),
                img_dir=data / "images",
                weights=study.weights_path,
                out_dir=out / "features",
                group_by="patient",
                workers=0,
                device="cpu",
            )
        )
    return out / "features"


def test_a_temporal_model_beats_the_frame_wise_classifier_on_extracted_features(demo_features: Path) -> None:
    model = train_tcn(demo_features, size_frames=36, epochs=40)
    frame_wise, temporal = segmental_scores(demo_features, model)
    assert (temporal > frame_wise + 0.1).all(), (frame_wise, temporal)
