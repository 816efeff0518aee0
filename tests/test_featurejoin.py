"""A patient's videos joined on export are the frames of all its segments, in order."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import make_video

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.features.folder import join_patients, open_feature_dir
from spatialfeat.features.schema import TIME_CHANNEL


def test_segments_follow_each_other_in_numeric_order(tmp_path: Path) -> None:
    made = {
        video: make_video(tmp_path, video, labels, layout=layout)
        for video, labels, layout in (
            ("9_10", [2, 2], "channel-first"),
            ("9_2", [0, 1, 1], "time-first"),
            ("11_1", [0], "channel-first"),
        )
    }
    joined = join_patients(open_feature_dir(tmp_path))
    assert [(video.video_id, video.num_frames) for video in joined] == [("9", 5), ("11", 1)]
    nine = joined[0]
    expected = np.concatenate([made["9_2"].features, made["9_10"].features])
    np.testing.assert_array_equal(nine.features(axes=TIME_CHANNEL), expected)
    np.testing.assert_array_equal(nine.features(), expected.T)
    assert nine.labels.tolist() == [0, 1, 1, 2, 2]
    assert nine.segments.tolist() == [2, 2, 2, 10, 10]
    assert [frame_id.rsplit("_", 1)[0] for frame_id in nine.frame_ids] == ["9_2"] * 3 + ["9_10"] * 2


@pytest.mark.parametrize("start", range(6))
def test_any_range_is_that_slice_of_the_whole(tmp_path: Path, start: int) -> None:
    for video, count in (("9_1", 2), ("9_2", 1), ("9_3", 3)):
        make_video(tmp_path, video, [0] * count)
    (nine,) = join_patients(open_feature_dir(tmp_path))
    for stop in range(start + 1, 7):
        np.testing.assert_array_equal(nine.features(start, stop), nine.features()[:, start:stop])
        np.testing.assert_array_equal(nine.logits(start, stop), nine.logits()[:, start:stop])


def test_export_joins_patients(tmp_path: Path) -> None:
    for video in ("9_2", "9_10", "11_1", "11_2"):
        make_video(tmp_path / "features", video, [0, 1, 2])
    export(
        ExportConfig(
            format="hdf5", features_dir=tmp_path / "features", out=tmp_path / "patients.h5", group_by="patient"
        )
    )
    with h5py.File(tmp_path / "patients.h5") as file:
        assert sorted(file) == ["11", "9"]
        assert file["9/features"].shape == (6, 2048)
        assert file["9/segment"][()].tolist() == [2] * 3 + [10] * 3


def test_a_patient_in_two_splits_cannot_be_joined(tmp_path: Path) -> None:
    make_video(tmp_path, "9_1", [0], split="train")
    make_video(tmp_path, "9_2", [0], split="test")
    with pytest.raises(SpatialfeatError, match=r"9_2\.h5: is in split test, but 9_1\.h5 .* in train"):
        join_patients(open_feature_dir(tmp_path))
