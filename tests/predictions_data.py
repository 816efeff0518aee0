"""Predictions and ground truth as small CSVs: what tests of evaluation are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Rows = Sequence[tuple[object, ...]]

# Two patients; the second has two segments, the second of them of a single frame. Phase 3 occurs nowhere.
TRUTH: list[tuple[str, int]] = [
    ("1_1_1", 0), ("1_1_2", 0), ("1_1_3", 1), ("1_1_4", 1),
    ("2_1_8", 0), ("2_1_9", 1), ("2_1_10", 2), ("2_1_11", 2),
    ("2_2_1", 2),
]  # fmt: skip
PREDICTED = [0, 1, 1, 1, 0, 1, 2, 1, 2]
"""7 of the 9 frames are right: wrong are 1_1_2 (1 for 0) and 2_1_11 (1 for 2)."""

BETTER = [0, 0, 1, 1, 0, 1, 2, 1, 2]
"""As PREDICTED, but 1_1_2 is right: 8 of 9."""


def write_rows(path: Path, header: str, rows: Rows) -> Path:
    """Write a header and rows of a CSV."""
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_predictions(path: Path, predicted: Sequence[int] = PREDICTED, truth: Rows = TRUTH) -> Path:
    """Our own format: img_id,true_label,predicted_label."""
    rows = [(*row, value) for row, value in zip(truth, predicted, strict=True)]
    return write_rows(path, "img_id,true_label,predicted_label", rows)


def write_truth(path: Path) -> Path:
    return write_rows(path, "id,label", TRUTH)


def foreign_rows(predicted: Sequence[int] = PREDICTED) -> list[tuple[str, int]]:
    """(id, predicted phase) of every frame, without the ground truth."""
    return [(frame_id, value) for (frame_id, _), value in zip(TRUTH, predicted, strict=True)]
