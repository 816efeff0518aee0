from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feature_folders import make_video

from spatialfeat.config import ExportConfig
from spatialfeat.export import export
from spatialfeat.exports import source as exportsource


def test_numbers_come_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exportsource, "FRAMES_PER_BLOCK", 4)
    made = make_video(tmp_path / "features", "1050_1", [0, 0, -100, 1, 2, 2], layout="time-first")
    export(ExportConfig(format="csv", features_dir=tmp_path / "features", out=tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out/1050_1.csv", dtype={"id": str})
    assert list(table.columns) == ["id", "label", *(f"f{channel}" for channel in range(2048))]
    assert table["id"].tolist() == made.frame_ids
    assert table["label"].tolist() == made.labels.tolist()
    np.testing.assert_array_equal(table.iloc[:, 2:].to_numpy(dtype=np.float32), made.features)
    assert b"\r" not in (tmp_path / "out/1050_1.csv").read_bytes()
