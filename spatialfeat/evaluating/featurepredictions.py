"""Predictions from a folder of feature files: the phase with the highest logit. No image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import FeaturesSource, check_phase_names
from spatialfeat.data.frames import UNLABELLED, FrameTable, make_table
from spatialfeat.data.tables import Origin, Rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluating.evaluationinput import NETWORK_NAME, EvaluationInput, FramePredictions, PredictionSet
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import read_features
from spatialfeat.features.schema import TIME_CHANNEL
from spatialfeat.scores.calibration import softmax

ALL_SPLITS = "all"
AGAIN = "extract the video again"


def read_feature_predictions(
    source: FeaturesSource, num_classes: int | None, phase_names: tuple[str, ...] | None
) -> EvaluationInput:
    """Read labels and logits of the folder's files of one split, or of all.

    Args:
        num_classes: what the caller expects; None accepts what the files hold.
        phase_names: names to use instead of the stored ones.

    Raises:
        SpatialfeatError: files that cannot be read, do not belong together or hold impossible values, no file of that
            split, or another number of phases.
    """
    split = None if source.split == ALL_SPLITS else source.split
    files = read_features(source.features, split=split)
    num_phases = files[0].num_phases
    if num_classes not in (None, num_phases):
        raise SpatialfeatError(
            f"{source.features}: its files have {num_phases} phases, not {num_classes}; leave --num-classes out"
        )
    check_phase_names(phase_names, num_phases)
    parts = tuple(
        _joined(source.features, [_read_file(file) for file in files if file.split == name])
        for name in dict.fromkeys(file.split for file in files)
    )
    return EvaluationInput(
        tables=tuple(part.table for part in parts),
        phase_names=phase_names or files[0].phase_names,
        predict=lambda: (PredictionSet(name=NETWORK_NAME, parts=parts),),
        stored_fps=files[0].fps,
        facts={
            "feature_files": [file.path.name for file in files],
            "weights_sha256": files[0].recipe.weights_sha256,
        },
    )


def _joined(features_dir: Path, parts: Sequence[FramePredictions]) -> FramePredictions:
    """All files of one split as one table, so that the videos of a patient can be put together."""

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part.table, name) for part in parts])

    table = FrameTable(
        origin=Origin(features_dir, None),
        img_dir=features_dir,
        split=parts[0].table.split,
        ids=column("ids"),
        labels=column("labels"),
        videos=column("videos"),
        patients=column("patients"),
        segments=column("segments"),
        frames=column("frames"),
    )
    return FramePredictions(
        table=table,
        predicted=np.concatenate([part.predicted for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts if part.probabilities is not None]),
    )


def _read_file(file: FeatureFile) -> FramePredictions:
    with file:
        ids, labels, logits = file.frame_ids, file.labels, file.logits(axes=TIME_CHANNEL)
    rows = Rows(Origin(file.path, None), pd.DataFrame({"id": ids.astype(object), "label": labels}))
    outside: NDArray[np.bool_] = ((labels < 0) | (labels >= file.num_phases)) & (labels != UNLABELLED)
    rows.refuse("label", outside, f"label {{value}} is outside 0..{file.num_phases - 1}", AGAIN)
    finite = np.asarray(np.isfinite(logits).all(axis=1), dtype=bool)
    rows.refuse("id", ~finite, "its logits are not finite", AGAIN)
    # The ids are parsed, not the stored video: a file of a whole patient holds several videos.
    table = make_table(rows, file.path.parent, file.split, labels)
    return FramePredictions(
        table=table, predicted=logits.argmax(axis=1).astype(np.int64), probabilities=softmax(logits).astype(np.float32)
    )
