"""The HDF5 file: the same whatever the blocks, described by itself, whole or not there at all."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinydata import (
    NUM_CHANNELS,
    PROVENANCE,
    TIME_FIRST_PROVENANCE,
    make_header,
    make_outputs,
    write_feature_file,
)

from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.schema import Provenance, VideoHeader
from spatialfeat.features.writer import FeatureFileWriter

LAYOUTS = pytest.mark.parametrize(
    "provenance", [PROVENANCE, TIME_FIRST_PROVENANCE], ids=["channel-first", "time-first"]
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@LAYOUTS
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_the_file_does_not_depend_on_the_blocks(
    provenance: Provenance, tmp_path_factory: pytest.TempPathFactory, block_sizes: list[int]
) -> None:
    num_frames = sum(block_sizes)
    folder = tmp_path_factory.mktemp("blocks")
    path = write_feature_file(folder / "1050_1.h5", make_header(num_frames), provenance, block_sizes=block_sizes)
    features, logits = make_outputs(num_frames)
    with h5py.File(path) as file:
        time_first = provenance.layout == "time-first"
        stored = (file["features"][()], file["logits"][()])
        stored_features, stored_logits = stored if time_first else (stored[0].T, stored[1].T)
        np.testing.assert_array_equal(stored_features, features)
        np.testing.assert_array_equal(stored_logits, logits)


def test_channel_first_is_ms_tcns_order(tmp_path: Path) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(100))
    with h5py.File(path) as file:
        assert file["features"].shape == (NUM_CHANNELS, 100)
        assert file["logits"].shape == (3, 100)
        assert file["features"].chunks == (NUM_CHANNELS, 64)
        # Frame 2, channel 5: `make_outputs` counts along the channels first.
        assert file["features"][5, 2] == 2 * NUM_CHANNELS + 5
        assert file["logits"][1, 2] == -(2 * 3 + 1) - 1
        for name in ("features", "logits"):
            assert file[name].dtype == np.dtype("<f4")
            assert file[name].attrs["axes"] == "channel,time"
            assert [dimension.label for dimension in file[name].dims] == ["channel", "time"]


def test_time_first(tmp_path: Path) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(100), TIME_FIRST_PROVENANCE)
    with h5py.File(path) as file:
        assert file["features"].shape == (100, NUM_CHANNELS)
        assert file["logits"].shape == (100, 3)
        assert file["features"].chunks == (64, NUM_CHANNELS)
        assert file["features"][2, 5] == 2 * NUM_CHANNELS + 5
        for name in ("features", "logits"):
            assert file[name].attrs["axes"] == "time,channel"
            assert [dimension.label for dimension in file[name].dims] == ["time", "channel"]


def test_vectors_and_attributes(tmp_path: Path) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(5), attributes={"images_stat": "s"})
    with h5py.File(path) as file:
        assert set(file) == {"features", "logits", "labels", "frame_ids", "segment", "frame"}
        assert file["frame_ids"].asstr()[()].tolist() == ["1050_1_1", "1050_1_3", "1050_1_5", "1050_1_7", "1050_1_9"]
        assert file["labels"][()].tolist() == [0, 1, 2, -100, 0]
        assert file["segment"][()].tolist() == [1] * 5
        assert file["frame"][()].tolist() == [1, 3, 5, 7, 9]
        for name in ("labels", "segment", "frame"):
            assert file[name].dtype == np.dtype("<i8")
        for name in ("labels", "segment", "frame", "frame_ids"):
            assert file[name].dims[0].label == "time"
        assert file.attrs["format"] == "spatialfeat features"
        assert file.attrs["schema"] == 2
        assert file.attrs["video_id"] == "1050_1"
        assert file.attrs["patient_id"] == "1050"
        assert file.attrs["split"] == "train"
        assert file.attrs["weights_sha256"] == "a" * 64
        assert list(file.attrs["phase_names"]) == ["nasal", "sphenoid", "sellar"]
        assert file.attrs["fps"] == 1.0
        assert file.attrs["images_stat"] == "s"
        assert json.loads(file.attrs["versions"]) == {"spatialfeat": "0.1.0"}


@pytest.mark.parametrize("num_frames", [1, 63, 64, 65])
def test_short_videos_get_no_longer_chunks_than_frames(tmp_path: Path, num_frames: int) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(num_frames))
    with h5py.File(path) as file:
        assert file["features"].shape == (NUM_CHANNELS, num_frames)
        assert file["features"].chunks == (NUM_CHANNELS, min(num_frames, 64))


@LAYOUTS
def test_everything_but_the_matrices_is_given_back(tmp_path: Path, provenance: Provenance) -> None:
    header = replace(make_header(70), split="holdout")
    path = write_feature_file(tmp_path / "1050_1.h5", header, provenance, attributes={"images_content": "c"})
    file = FeatureFile(path)
    assert file.path == path
    assert file.provenance == provenance
    assert file.attributes["images_content"] == "c"
    assert (file.video_id, file.patient_id, file.split) == ("1050_1", "1050", "holdout")
    assert file.frame_ids.tolist() == header.frame_ids.tolist()
    assert file.labels.tolist() == header.labels.tolist()
    assert file.segments.tolist() == header.segments.tolist()
    assert file.frames.tolist() == header.frame_numbers.tolist()


def test_text_is_utf8(tmp_path: Path) -> None:
    header, provenance = (
        make_header(2, "Fälle-手術_1"),
        replace(PROVENANCE, phase_names=("Zugang", "Präparation", "縫合")),
    )
    file = FeatureFile(write_feature_file(tmp_path / "Fälle-手術_1.h5", header, provenance))
    assert file.video_id == "Fälle-手術_1"
    assert file.frame_ids.tolist() == ["Fälle-手術_1_1", "Fälle-手術_1_3"]
    assert file.provenance.phase_names == ("Zugang", "Präparation", "縫合")


def test_provenance_differences() -> None:
    other = replace(PROVENANCE, weights_sha256="b" * 64, fps=25.0)
    assert PROVENANCE.differences(other) == ["weights_sha256", "fps"]
    assert PROVENANCE.differences(replace(PROVENANCE)) == []


def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "1050_1.h5"
    features, logits = make_outputs(200)
    with closing(FeatureFileWriter(path, make_header(200), PROVENANCE, {})) as writer:
        writer.append(features, logits)
        assert not path.exists()
        assert list(tmp_path.glob("*.h5")) == []  # readers that list the folder never see the unfinished file
        writer.finish()
        assert path.exists()
    assert _names(tmp_path) == ["1050_1.h5"]


def test_leaving_early_leaves_nothing(tmp_path: Path) -> None:
    features, logits = make_outputs(100)
    with closing(FeatureFileWriter(tmp_path / "1050_1.h5", make_header(100), PROVENANCE, {})) as writer:
        writer.append(features[:70], logits[:70])
    assert _names(tmp_path) == []


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(3))
    old = path.read_bytes()
    features, logits = make_outputs(100)

    def write_until_interrupted() -> None:
        with closing(FeatureFileWriter(path, make_header(100), PROVENANCE, {})) as writer:
            writer.append(features[:70], logits[:70])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    assert path.read_bytes() == old
    assert _names(tmp_path) == ["1050_1.h5"]


def _write_some(path: Path, header: VideoHeader, num_written: int) -> None:
    features, logits = make_outputs(num_written)
    with closing(FeatureFileWriter(path, header, PROVENANCE, {})) as writer:
        writer.append(features, logits)
        writer.finish()


@pytest.mark.parametrize("num_written", [99, 0])
def test_a_missing_frame_never_becomes_a_file(tmp_path: Path, num_written: int) -> None:
    with pytest.raises(AssertionError, match=f"{num_written} of 100 frames were written"):
        _write_some(tmp_path / "1050_1.h5", make_header(100), num_written)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("num_written", [65, 101])
def test_a_surplus_frame_never_becomes_a_file(tmp_path: Path, num_written: int) -> None:
    # 65: a single frame behind a full chunk, which h5py would broadcast to nothing.
    with pytest.raises((AssertionError, TypeError)):
        _write_some(tmp_path / "1050_1.h5", make_header(min(num_written - 1, 64)), num_written)
    assert _names(tmp_path) == []


def test_features_and_logits_of_different_length_are_refused(tmp_path: Path) -> None:
    features, logits = make_outputs(10)
    with (
        pytest.raises(AssertionError),
        closing(FeatureFileWriter(tmp_path / "1050_1.h5", make_header(10), PROVENANCE, {})) as writer,
    ):
        writer.append(features, logits[:9])
    assert _names(tmp_path) == []


def test_a_header_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    header = replace(make_header(1), frame_ids=np.array(["nul\x00inside_1"]))
    with pytest.raises(ValueError, match="NULL"):
        FeatureFileWriter(tmp_path / "1050_1.h5", header, PROVENANCE, {})
    assert _names(tmp_path) == []


def test_a_final_name_that_is_taken_by_a_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "1050_1.h5").mkdir()
    with pytest.raises(IsADirectoryError):
        write_feature_file(tmp_path / "1050_1.h5", make_header(2))
    assert _names(tmp_path) == ["1050_1.h5"]


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".1050_1.h5.partial").write_bytes(b"half a file")
    write_feature_file(tmp_path / "1050_1.h5", make_header(2))
    assert _names(tmp_path) == ["1050_1.h5"]
    assert FeatureFile(tmp_path / "1050_1.h5").frames.tolist() == [1, 3]


def test_two_processes_at_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    partial_path = tmp_path / ".1050_1.h5.partial"
    with partial_path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # what HDF5 does in the process that writes
        with pytest.raises(SpatialfeatError, match=r"1050_1\.h5: another process is writing this file; wait"):
            write_feature_file(tmp_path / "1050_1.h5", make_header(2))
    assert partial_path.exists()  # it belongs to the other process


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"gone\.h5: no such feature file; make it with"):
        FeatureFile(tmp_path / "gone.h5")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SpatialfeatError, match=r"1050_1\.h5: is not a whole HDF5 file .*; extract the video again"):
        FeatureFile(path)


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.h5"
    path.write_text("not HDF5 at all, but long enough to hold a superblock " * 100)
    with pytest.raises(SpatialfeatError, match=r"notes\.h5: is not a whole HDF5 file"):
        FeatureFile(path)


@pytest.mark.parametrize("attributes", [{}, {"format": "other"}, {"format": 3}], ids=["none", "other", "number"])
def test_a_foreign_hdf5_file(tmp_path: Path, attributes: dict[str, object]) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros((2, 2))
        file.attrs.update(attributes)
    with pytest.raises(SpatialfeatError, match=r"other\.h5: is not a feature file of spatialfeat"):
        FeatureFile(path)


def _set_schema(file: h5py.File) -> None:
    file.attrs["schema"] = 3


def _delete_labels(file: h5py.File) -> None:
    del file["labels"]


def _delete_fps(file: h5py.File) -> None:
    del file.attrs["fps"]


def _drop_a_label(file: h5py.File) -> None:
    labels = file["labels"][:-1]
    del file["labels"]
    file["labels"] = labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set_schema, "has schema 3, this version reads schema 1 and 2; use the version of spatialfeat that made it"),
        (_delete_labels, "lacks labels; extract the video again"),
        (_delete_fps, "lacks fps; extract the video again"),
        (_drop_a_label, r"datasets differ in length .*'labels': 9.*; extract the video again"),
    ],
)
@LAYOUTS
def test_a_changed_file(
    tmp_path: Path, provenance: Provenance, change: Callable[[h5py.File], None], message: str
) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(10), provenance)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SpatialfeatError, match=rf"1050_1\.h5: {message}"):
        FeatureFile(path)
    path.rename(tmp_path / "moved.h5")  # refused files are closed again
    with h5py.File(tmp_path / "moved.h5", "r+"):
        pass
