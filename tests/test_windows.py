"""Windows and whole videos: exactly the right frames, in both layouts, and in worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinydata import PROVENANCE, TIME_FIRST_PROVENANCE, make_header, make_outputs, write_feature_file
from torch.utils.data import DataLoader

from spatialfeat import FeatureFile, FeatureWindows, collate_videos, read_features
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.windows import Window, window_starts

LENGTHS = {"1_1": 7, "2_1": 1, "10_1": 20}


@pytest.fixture(scope="module", params=["channel-first", "time-first"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 7, 1 (test) and 20 frames."""
    provenance = PROVENANCE if request.param == "channel-first" else TIME_FIRST_PROVENANCE
    features_dir = tmp_path_factory.mktemp(request.param)
    for video_id, num_frames in LENGTHS.items():
        header = replace(make_header(num_frames, video_id), split="test" if video_id == "2_1" else "train")
        write_feature_file(features_dir / f"{video_id}.h5", header, provenance)
    return features_dir


def _slice(num_frames: int, start: int, size: int) -> Window:
    """What a window must be, by plain slicing of what was written, frame by frame."""
    features, labels = torch.zeros(2048, size), torch.full((size,), -100)
    mask = torch.zeros(size, dtype=torch.bool)
    all_features, header = make_outputs(num_frames)[0], make_header(num_frames)
    for column, frame in enumerate(range(start, start + size)):
        if frame < num_frames:
            features[:, column] = torch.from_numpy(all_features[frame])
            labels[column] = int(header.labels[frame])
            mask[column] = True
    return Window(features, labels, mask)


def _expected_starts(num_frames: int, size: int, step: int, last: str) -> list[int]:
    """By trying every frame: full windows on the grid, then the documented rule for the frames left over."""
    full = [start for start in range(0, num_frames, step) if start + size <= num_frames]
    left_over = [frame for frame in range(num_frames) if frame > (full[-1] + size - 1 if full else -1)]
    following = [start for start in range(0, num_frames, step) if start not in full]
    if not left_over or not following or last == "drop":
        return full
    return [*full, following[0] if last == "pad" else max(num_frames - size, 0)]


def _assert_equal(found: Window, expected: Window) -> None:
    for tensor, wanted in zip(found, expected, strict=True):
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor, wanted)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 24), step=st.integers(1, 24), last=st.sampled_from(["pad", "drop", "shift"]))
def test_windows_cover_exactly_the_right_frames(folder: Path, size: int, step: int, last: str) -> None:
    expected = [
        (video_id, start)
        for video_id, num_frames in LENGTHS.items()
        for start in _expected_starts(num_frames, size, step, last)
    ]
    if not expected:
        with pytest.raises(SpatialfeatError, match=f"size_frames {size}: no video is that long"):
            FeatureWindows(folder, size_frames=size, step_frames=step, last=last)
        return
    windows = FeatureWindows(folder, size_frames=size, step_frames=step, last=last)
    assert [(windows.place(i).file.video_id, windows.place(i).start) for i in range(len(windows))] == expected
    for index, (video_id, start) in enumerate(expected):
        _assert_equal(windows[index], _slice(LENGTHS[video_id], start, size))
        assert windows.place(index).stop == min(start + size, LENGTHS[video_id])


@given(
    num_frames=st.integers(1, 200),
    size=st.integers(1, 60),
    overlap=st.integers(0, 59),
    last=st.sampled_from(["pad", "shift"]),
)
def test_no_frame_is_lost_when_windows_touch(num_frames: int, size: int, overlap: int, last: str) -> None:
    starts = window_starts(num_frames, size, max(1, size - overlap), last)
    covered = {frame for start in starts.tolist() for frame in range(start, min(start + size, num_frames))}
    assert covered == set(range(num_frames))
    assert len(set(starts.tolist())) == len(starts)


@given(num_frames=st.integers(1, 200), size=st.integers(1, 60), step=st.integers(1, 80))
def test_shifted_and_dropped_windows_are_full(num_frames: int, size: int, step: int) -> None:
    assert all(window_starts(num_frames, size, step, "drop") + size <= num_frames)
    if num_frames >= size:
        assert all(window_starts(num_frames, size, step, "shift") + size <= num_frames)


def test_the_last_window_by_example() -> None:
    assert window_starts(10, 4, 4, "pad").tolist() == [0, 4, 8]
    assert window_starts(10, 4, 4, "drop").tolist() == [0, 4]
    assert window_starts(10, 4, 4, "shift").tolist() == [0, 4, 6]
    assert window_starts(8, 4, 2, "pad").tolist() == [0, 2, 4]  # Nothing is left over: no window of old frames only.
    assert window_starts(9, 2, 8, "pad").tolist() == [0, 8]
    assert window_starts(8, 2, 8, "pad").tolist() == [0]  # Frames between two windows are left out by intention.


@pytest.mark.parametrize("last", ["pad", "shift"])
def test_a_video_shorter_than_a_window_is_padded(folder: Path, last: str) -> None:
    windows = FeatureWindows(folder / "2_1.h5", size_frames=3, last=last)
    assert len(windows) == 1
    _assert_equal(windows[0], _slice(1, 0, 3))
    assert windows[0].mask.tolist() == [True, False, False]
    assert windows[0].labels.tolist() == [0, -100, -100]


def test_unlabelled_frames_are_in_the_mask(folder: Path) -> None:
    window = FeatureWindows(folder / "1_1.h5", size_frames=8)[0]
    assert window.labels.tolist() == [0, 1, 2, -100, 0, 1, 2, -100]
    assert window.mask.tolist() == [True] * 7 + [False]


def test_iteration_ends_and_indices_wrap(folder: Path) -> None:
    windows = FeatureWindows(folder, size_frames=5)
    assert len(list(windows)) == len(windows) == 2 + 1 + 4
    _assert_equal(windows[-1], windows[len(windows) - 1])
    with pytest.raises(IndexError, match="window 7 of 7"):
        windows[7]


def test_a_split_and_open_files(folder: Path) -> None:
    assert len(FeatureWindows(folder, size_frames=5, split="test")) == 1
    files = read_features(folder)
    assert len(FeatureWindows(files, size_frames=5, split="test")) == 1
    assert [FeatureWindows(files[::-1], size_frames=99).place(i).file.video_id for i in range(3)] == list(LENGTHS)[::-1]
    with pytest.raises(SpatialfeatError, match=r"the given files: has no video of split val \(there: test, train\)"):
        FeatureWindows(files, size_frames=5, split="val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_frames": 0}, "size_frames 0: must be at least 1"),
        ({"size_frames": 4, "step_frames": 0}, "step_frames 0: must be at least 1"),
        ({"size_frames": 4, "last": "wrap"}, "last 'wrap': must be one of pad, drop, shift"),
        ({"size_frames": 21, "last": "drop"}, r"size_frames 21: no video is that long \(the longest has 20 frames\)"),
    ],
)
def test_wrong_options(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(SpatialfeatError, match=message):
        FeatureWindows(folder, **options)


def test_no_files() -> None:
    with pytest.raises(SpatialfeatError, match="no feature files were given; pass at least one"):
        FeatureWindows([], size_frames=4)


def test_whole_videos_padded_to_the_longest(folder: Path) -> None:
    videos = FeatureWindows.whole_videos(folder)
    assert [len(video.labels) for video in videos] == list(LENGTHS.values())
    batch = collate_videos([videos[0], videos[1], videos[2]])
    assert batch.features.shape == (3, 2048, 20)
    assert (batch.labels.shape, batch.mask.shape) == ((3, 20), (3, 20))
    for row, num_frames in enumerate(LENGTHS.values()):
        _assert_equal(Window(*(tensor[row] for tensor in batch)), _slice(num_frames, 0, 20))


def test_the_mask_is_what_cross_entropy_ignores(folder: Path) -> None:
    """Padding must not change the loss: -100 is PyTorch's ignored label."""
    videos = FeatureWindows.whole_videos(folder)
    batch = collate_videos(list(videos))
    scores = torch.randn(3, 3, 20, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(scores, batch.labels)
    labelled = batch.labels != -100
    expected = torch.nn.functional.cross_entropy(scores.transpose(1, 2)[labelled], batch.labels[labelled])
    torch.testing.assert_close(loss, expected)
    assert not (labelled & ~batch.mask).any()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_same(folder: Path, method: str) -> None:
    """Two epochs with persistent workers, after this process has opened the files itself."""
    windows = FeatureWindows(folder, size_frames=4, step_frames=3)
    expected = list(DataLoader(windows, batch_size=2))
    workers = 2 if method == "fork" else 1  # A spawned one takes seconds to import PyTorch.
    loader = DataLoader(
        windows, batch_size=2, num_workers=workers, multiprocessing_context=method, persistent_workers=True
    )
    for _ in range(2):
        found = list(loader)
        assert len(found) == len(expected) > 2
        for batch, wanted in zip(found, expected, strict=True):
            assert isinstance(batch, Window)
            assert batch.features.shape == (len(batch.labels), 2048, 4)
            _assert_equal(batch, wanted)
    _assert_equal(next(iter(DataLoader(windows, batch_size=2))), expected[0])
    _stop(loader)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_whole_videos(folder: Path) -> None:
    videos = FeatureWindows.whole_videos(folder)
    loader = DataLoader(videos, batch_size=3, num_workers=2, multiprocessing_context="fork", collate_fn=collate_videos)
    batches = list(loader)
    assert len(batches) == 1
    _assert_equal(batches[0], collate_videos(list(videos)))


def _stop(loader: DataLoader[Window]) -> None:
    del loader._iterator  # Persistent workers end with their iterator.
    loader._iterator = None


def test_nothing_is_opened_until_a_window_is_read(folder: Path) -> None:
    for file in read_features(folder):
        file.close()
    windows = FeatureWindows(folder, size_frames=4)
    assert not list(_open_paths(folder))
    windows[0]
    assert list(_open_paths(folder)) == [FeatureFile(folder / "1_1.h5").path]


def test_a_window_reads_its_own_labels_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = FeatureWindows(folder, size_frames=4)
    read: list[tuple[str, int]] = []
    whole = h5py.Dataset.__getitem__

    def count(dataset: h5py.Dataset, *where: object, **options: object) -> object:
        values = whole(dataset, *where, **options)
        read.append((dataset.name, np.size(values)))
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", count)
    windows[0]
    assert read == [("/features", 4 * 2048), ("/labels", 4)]


def _open_paths(folder: Path) -> Iterator[Path]:
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # an entry may be gone already
        link = Path("/proc/self/fd") / number
        if link.is_symlink() and folder in (target := link.readlink()).parents:
            yield target
