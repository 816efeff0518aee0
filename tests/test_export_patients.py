"""--group-by patient: the frames of all segments of a patient as one video, in order."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import make_video

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.exports import source


def join(features_dir: Path, **options: object) -> Path:
    """Export to one HDF5 file, one group per patient."""
    out = features_dir.parent / "patients.h5"
    export(ExportConfig(format="hdf5", features_dir=features_dir, out=out, group_by="patient", **options))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("frames_per_block", [1, 2, 3, 4096])
@pytest.mark.parametrize("unlabelled", ["keep", "drop"])
def test_segments_follow_each_other_in_numeric_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames_per_block: int, unlabelled: str
) -> None:
    monkeypatch.setattr(source, "FRAMES_PER_BLOCK", frames_per_block)
    made = {
        video: make_video(tmp_path / "features", video, labels, layout=layout)
        for video, labels, layout in (
            ("9_10", [2, -100, 2], "channel-first"),
            ("9_2", [0, 1, 1], "time-first"),
            ("9_3", [-100], "channel-first"),
            ("11_1", [0], "channel-first"),
        )
    }
    videos = [made[video] for video in ("9_2", "9_3", "9_10")]
    labels = np.concatenate([video.labels for video in videos])
    kept = labels != -100 if unlabelled == "drop" else np.ones(7, dtype=bool)
    with h5py.File(join(tmp_path / "features", unlabelled=unlabelled)) as file:
        assert list(file) == ["9", "11"]
        nine = file["9"]
        assert dict(nine.attrs) == {
            "video_id": "9", "patient_id": "9", "split": "train", "source": "9_2.h5, 9_3.h5, 9_10.h5"
        }  # fmt: skip
        for name in ("features", "logits"):
            expected = np.concatenate([getattr(video, name) for video in videos])[kept]
            np.testing.assert_array_equal(nine[name][()], expected)
        assert nine["labels"][()].tolist() == labels[kept].tolist()
        assert nine["segment"][()].tolist() == np.repeat([2, 3, 10], [3, 1, 3])[kept].tolist()
        assert nine["frame"][()].tolist() == np.array([1, 2, 3, 1, 1, 2, 3])[kept].tolist()
        frame_ids = np.array([frame_id for video in videos for frame_id in video.frame_ids])
        assert nine["frame_ids"].asstr()[()].tolist() == frame_ids[kept].tolist()
        assert file["11/features"].shape == (1, 2048)


def test_a_fault_is_reported_with_the_file_that_has_it(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "9_1", [0, 1])
    make_video(tmp_path / "features", "9_2", [0, 1], spoil=(1, float("nan")))
    with pytest.raises(SpatialfeatError, match=r"9_2\.h5: frame 9_2_000002 holds a value that is not finite"):
        join(tmp_path / "features")
    make_video(tmp_path / "features", "9_2", [0, 5])
    with pytest.raises(SpatialfeatError, match=r"9_2\.h5: frame 9_2_000002 has label 5, which is outside 0\.\.2"):
        join(tmp_path / "features")


def test_a_patient_in_two_splits_cannot_be_joined(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "9_1", [0], split="train")
    make_video(tmp_path / "features", "9_2", [0], split="test")
    with pytest.raises(SpatialfeatError, match=r"9_2\.h5: is in split test, but 9_1\.h5 .* in train"):
        join(tmp_path / "features")
