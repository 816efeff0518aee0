"""Which videos are computed again, which are done, and what is never mixed."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from tinydata import (
    PROVENANCE,
    TIME_FIRST_PROVENANCE,
    make_header,
    make_table,
    png_bytes,
    write_csv,
    write_feature_file,
    write_images,
)

from spatialfeat.data.frames import Video, group_videos, read_frames
from spatialfeat.data.images import content_digest
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.plan import feature_path, fingerprints_digest, plan_extraction, video_header
from spatialfeat.features.schema import Provenance

IDS = ["video10_1", "video2_10", "video2_9", "video10_2"]


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    path = tmp_path / "features"
    path.mkdir()
    return path


@pytest.fixture
def videos(tmp_path: Path) -> list[Video]:
    """video2 (frames 9, 10) and video10 (frames 1, 2), with images."""
    table = make_table(tmp_path, IDS)
    write_images(table)
    return group_videos([table])


def image_paths(video: Video) -> list[Path]:
    return [video.table.image_path(row) for row in video.rows.tolist()]


def _extract(video: Video, out_dir: Path, provenance: Provenance = PROVENANCE) -> Path:
    """Write the file that `extract` would write."""
    digests = b"".join(content_digest(path.read_bytes()) for path in image_paths(video))
    attributes = {
        "images_stat": fingerprints_digest(video),
        "images_content": hashlib.sha256(digests).hexdigest(),
    }
    return write_feature_file(feature_path(out_dir, video), video_header(video), provenance, attributes=attributes)


def _plan(
    videos: list[Video], out_dir: Path, *, provenance: Provenance = PROVENANCE, overwrite: bool = False
) -> tuple[list[str], list[str]]:
    """Ids (to compute, done)."""
    to_compute, done = plan_extraction(videos, out_dir, provenance, overwrite=overwrite)
    return [video.video_id for video in to_compute], [video.video_id for video in done]


def _refusal(
    videos: list[Video], out_dir: Path, *, provenance: Provenance = PROVENANCE, overwrite: bool = False
) -> str:
    with pytest.raises(SpatialfeatError) as caught:
        _plan(videos, out_dir, provenance=provenance, overwrite=overwrite)
    return str(caught.value).replace(f"{out_dir}/", "")


def _changed(tmp_path: Path, rows: list[tuple[str, object]], split: str = "train") -> list[Video]:
    """The videos of another CSV over the same images."""
    csv_path = write_csv(tmp_path / "changed.csv", rows)
    return group_videos([read_frames(csv_path, tmp_path / "images", split=split, labels_required=False)])


def test_an_empty_folder(videos: list[Video], out_dir: Path) -> None:
    assert _plan(videos, out_dir) == (["video2", "video10"], [])
    assert _plan(videos, out_dir / "not made yet") == (["video2", "video10"], [])


def test_header_and_images_are_in_time_order(videos: list[Video], tmp_path: Path) -> None:
    header = video_header(videos[0])
    assert header.frame_ids.tolist() == ["video2_9", "video2_10"]
    assert header.frame_numbers.tolist() == [9, 10]
    assert (header.video_id, header.patient_id, header.split) == ("video2", "video2", "train")
    assert [path.name for path in image_paths(videos[0])] == ["video2_9.png", "video2_10.png"]
    assert feature_path(tmp_path, videos[0]) == tmp_path / "video2.h5"


@pytest.mark.parametrize("overwrite", [False, True])
def test_done_videos_are_not_computed_again(videos: list[Video], out_dir: Path, overwrite: bool) -> None:
    _extract(videos[1], out_dir)
    assert _plan(videos, out_dir, overwrite=overwrite) == (["video2"], ["video10"])
    _extract(videos[0], out_dir)
    assert _plan(videos, out_dir, overwrite=overwrite) == ([], ["video2", "video10"])


def test_an_unfinished_file_does_not_count(videos: list[Video], out_dir: Path) -> None:
    _extract(videos[0], out_dir).rename(out_dir / ".video2.h5.partial")
    assert _plan(videos, out_dir) == (["video2", "video10"], [])


@pytest.mark.parametrize(
    ("provenance", "named"),
    [
        (replace(PROVENANCE, weights_sha256="b" * 64), "weights (aaaaaaaa there, bbbbbbbb now)"),
        (
            replace(PROVENANCE, phase_names=("nasal", "sellar", "sphenoid")),
            "phase names (nasal, sphenoid, sellar there, nasal, sellar, sphenoid now)",
        ),
        (replace(PROVENANCE, preprocessing="{}"), "preprocessing (image_size_px 224 there, None now)"),
        (replace(PROVENANCE, precision="bf16"), "precision (fp32 there, bf16 now)"),
        (TIME_FIRST_PROVENANCE, "layout (channel-first there, time-first now)"),
        (replace(PROVENANCE, group_by="patient"), "grouping (video there, patient now)"),
        (
            replace(PROVENANCE, weights_sha256="b" * 64, fps=25.0),
            "weights (aaaaaaaa there, bbbbbbbb now), fps (1.0 there, 25.0 now)",
        ),
    ],
)
def test_files_of_another_provenance(videos: list[Video], out_dir: Path, provenance: Provenance, named: str) -> None:
    _extract(videos[0], out_dir)
    assert _refusal(videos, out_dir, provenance=provenance) == (
        f"video2.h5: was made with other {named}; pass --overwrite to replace such files, or choose another --out"
    )
    assert _plan(videos, out_dir, provenance=provenance, overwrite=True) == (["video2", "video10"], [])


@pytest.mark.parametrize(
    ("rows", "split", "reason"),
    [
        ([("video2_9", 0), ("video2_10", 1)], "train", "holds other labels"),
        ([("video2_9", 0), ("video2_10", -100)], "train", "holds other labels"),
        ([("video2_9", 0)], "train", "holds other frames (2 there, 1 now)"),
        ([("video2_9", 0), ("video2_11", 0)], "train", "holds other frames (2 there, 2 now)"),
        ([("video2_9", 0), ("video2_010", 0)], "train", "holds other frames (2 there, 2 now)"),
        ([("video2_9", 0), ("video2_10", 0)], "test", "was made for split train, now test"),
    ],
)
def test_another_csv(
    videos: list[Video], out_dir: Path, tmp_path: Path, rows: list[tuple[str, object]], split: str, reason: str
) -> None:
    _extract(videos[0], out_dir)
    changed = _changed(tmp_path, rows, split)
    assert _refusal(changed, out_dir).startswith(f"video2.h5: {reason}; pass --overwrite")
    assert _plan(changed, out_dir, overwrite=True) == (["video2"], [])


def test_the_order_of_the_csv_does_not_matter(videos: list[Video], out_dir: Path, tmp_path: Path) -> None:
    _extract(videos[0], out_dir)
    assert _plan(_changed(tmp_path, [("video2_9", 0), ("video2_10", 0)]), out_dir) == ([], ["video2"])


def test_touched_images_are_the_same_images(videos: list[Video], out_dir: Path) -> None:
    _extract(videos[0], out_dir)
    before = fingerprints_digest(videos[0])
    os.utime(image_paths(videos[0])[1], (1, 1))
    assert fingerprints_digest(videos[0]) != before
    assert _plan(videos, out_dir) == (["video10"], ["video2"])


def test_copied_images_are_the_same_images(videos: list[Video], out_dir: Path, tmp_path: Path) -> None:
    _extract(videos[0], out_dir)
    shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    copied = group_videos([read_frames(tmp_path / "train.csv", tmp_path / "copy", split="train")])
    assert _plan(copied, out_dir) == (["video10"], ["video2"])


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_images(videos: list[Video], out_dir: Path, same_size: bool) -> None:
    _extract(videos[0], out_dir)
    path = image_paths(videos[0])[1]
    content = png_bytes(seed=99)
    path.write_bytes(path.read_bytes()[:-1] + b"?" if same_size else content + b"longer")
    os.utime(path, (1, 1))  # file systems with coarse clocks could give the old time
    message = _refusal(videos, out_dir)
    assert message.startswith("video2.h5: was made from images that have changed since; pass --overwrite")
    assert _plan(videos, out_dir, overwrite=True) == (["video2", "video10"], [])


def test_exchanged_images(videos: list[Video], out_dir: Path) -> None:
    # The same contents in another order are other frames.
    _extract(videos[0], out_dir)
    first, second = image_paths(videos[0])
    first_content, second_content = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_content)
    second.write_bytes(first_content)
    os.utime(first, (1, 1))
    assert "images that have changed" in _refusal(videos, out_dir)


def test_a_file_of_another_run_may_stay_if_it_belongs_with_the_new_ones(videos: list[Video], out_dir: Path) -> None:
    write_feature_file(out_dir / "video7.h5", make_header(2, "video7"))
    assert _plan(videos, out_dir) == (["video2", "video10"], [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stranger_made_with_other_weights_is_never_mixed_in(
    videos: list[Video], out_dir: Path, overwrite: bool
) -> None:
    path = write_feature_file(
        out_dir / "video7.h5", make_header(2, "video7"), replace(PROVENANCE, weights_sha256="b" * 64)
    )
    assert _refusal(videos, out_dir, overwrite=overwrite) == (
        "video7.h5: was made with other weights (bbbbbbbb there, aaaaaaaa now) and is not part of this run; "
        "move it away, or choose another --out"
    )
    assert path.exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _make_foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["features"] = [1, 2, 3]


def _make_newer(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "is not a whole HDF5 file"),
        (_make_foreign, "is not a feature file of spatialfeat"),
        (_make_newer, "has schema 3"),
    ],
)
def test_an_unusable_file_under_a_videos_name_can_be_overwritten(
    videos: list[Video], out_dir: Path, damage: object, reason: str
) -> None:
    assert callable(damage)
    damage(_extract(videos[0], out_dir))
    message = _refusal(videos, out_dir)
    assert message.startswith("video2.h5: ")
    assert reason in message
    assert "pass --overwrite to replace such files" in message
    assert _plan(videos, out_dir, overwrite=True) == (["video2", "video10"], [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_file_under_another_name_is_refused(videos: list[Video], out_dir: Path, overwrite: bool) -> None:
    _make_foreign(_extract(videos[0], out_dir).rename(out_dir / "notes.h5"))
    message = _refusal(videos, out_dir, overwrite=overwrite)
    assert message.startswith("notes.h5: is not a feature file of spatialfeat; keep other files elsewhere")


def test_other_kinds_of_files_are_ignored(videos: list[Video], out_dir: Path) -> None:
    (out_dir / "run.json").write_text("{}")
    (out_dir / "notes.txt").write_text("mine")
    assert _plan(videos, out_dir) == (["video2", "video10"], [])


def test_the_data_set_that_is_named_is_the_one_in_the_files(videos: list[Video], out_dir: Path) -> None:
    for video in videos:
        path = _extract(video, out_dir)
        with h5py.File(path, "r+") as file:
            file.attrs["data_set"] = "cholec8"
    everything = (["video2", "video10"], [])
    for name in (None, "cholec8"):
        to_compute, done = plan_extraction(videos, out_dir, PROVENANCE, overwrite=False, data_set=name)
        assert (to_compute, len(done)) == ([], 2)
    with pytest.raises(SpatialfeatError, match="was made with --data-set cholec8, now cholec80; pass --overwrite"):
        plan_extraction(videos, out_dir, PROVENANCE, overwrite=False, data_set="cholec80")
    to_compute, done = plan_extraction(videos, out_dir, PROVENANCE, overwrite=True, data_set="cholec80")
    assert ([video.video_id for video in to_compute], done) == everything
