"""A tiny temporal convolution, trained and scored on a folder of feature files through FeatureWindows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from spatialfeat import FeatureFile, FeatureWindows, collate_videos, read_features
from spatialfeat.scores.metrics import labelled_frames
from spatialfeat.scores.segmental import f1_of_matches, match_runs

DILATIONS = (1, 2, 4, 8, 16)
WIDTH = 16


class TinyTcn(nn.Module):
    """2048 channels, standardized, projected to 16; residual dilated convolutions; scores per frame.

    features: (B, 2048, T) float32, mask: (B, T) bool. Returns (B, C, T) scores.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, num_phases: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None])
        self.register_buffer("std", std[:, None])
        self.project = nn.Conv1d(len(mean), WIDTH, 1)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, padding=d, dilation=d) for d in DILATIONS)
        self.classify = nn.Conv1d(WIDTH, num_phases, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        real = mask[:, None].float()
        hidden = self.project(self.dropout((features - self.mean) / self.std)) * real
        for layer in self.layers:
            # Padding must stay 0 in every layer, or a video's scores would depend on its neighbours in the batch.
            hidden = (hidden + torch.relu(layer(hidden))) * real
        return self.classify(hidden)


def train_tcn(
    features_dir: Path,
    *,
    split: str = "train",
    size_frames: int = 96,
    epochs: int = 15,
    workers: int = 0,
    seed: int = 0,
) -> TinyTcn:
    """Train on windows that overlap by half. Same seed, same model; unlabelled frames count for nothing."""
    windows = FeatureWindows(features_dir, size_frames=size_frames, step_frames=size_frames // 2, split=split)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyTcn(*_statistics(windows), windows.place(0).file.num_phases)
        loader = DataLoader(windows, batch_size=4, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
        for _ in range(epochs):
            for features, labels, mask in loader:
                loss = nn.functional.cross_entropy(model(features, mask), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def temporal_predictions(model: TinyTcn, features_dir: Path, *, split: str = "test") -> list[NDArray[np.int64]]:
    """The phases (T,) that the model predicts for each video of the split, computed in padded batches."""
    videos = FeatureWindows.whole_videos(features_dir, split=split)
    predictions: list[NDArray[np.int64]] = []
    with _one_thread(), torch.inference_mode():
        for features, _, mask in DataLoader(videos, batch_size=3, collate_fn=collate_videos):
            phases = model(features, mask).argmax(dim=1)
            predictions += [row[real].numpy() for row, real in zip(phases, mask, strict=True)]
    return predictions


def frame_predictions(file: FeatureFile) -> NDArray[np.int64]:
    """The phases (T,) of the frame-wise classifier, from the stored logits."""
    return file.logits().argmax(axis=0)


def segmental_scores(features_dir: Path, model: TinyTcn, *, split: str = "test") -> tuple[NDArray[np.float64], ...]:
    """F1@10, 25, 50, pooled over the videos: (of the frame-wise classifier, of the temporal model), each (3,)."""
    files = read_features(features_dir, split=split)
    frame_wise = [frame_predictions(file) for file in files]
    temporal = temporal_predictions(model, features_dir, split=split)
    return tuple(
        f1_of_matches(
            sum(
                match_runs(*labelled_frames(file.labels, predicted, file.num_phases))
                for file, predicted in zip(files, predictions, strict=True)
            )
        )
        for predictions in (frame_wise, temporal)
    )


def _statistics(windows: FeatureWindows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel over all frames of the windows, each (2048,)."""
    frames = torch.cat([window.features[:, window.mask] for window in windows], dim=1)
    return frames.mean(dim=1), frames.std(dim=1).clamp_min(1e-3)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
