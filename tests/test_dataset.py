"""Rows of tables as frames; every broken image is found before work starts, with file and row."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tinydata import make_table, png_bytes, write_images

from spatialfeat.data import dataset as dataset_module
from spatialfeat.data.dataset import FrameDataset, check_image_files, make_loader, require_images
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import ImageFolder
from spatialfeat.data.transforms import Preprocessing, evaluation_transform
from spatialfeat.errors import SpatialfeatError


def test_whole_images_pass(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    assert check_image_files([table]) == []
    require_images([table])


def test_all_broken_rows_in_order(tmp_path: Path) -> None:
    train = make_table(tmp_path, ["1_1_5", "1_1_4", "1_1_3", "1_1_2", "1_1_1"])
    val = make_table(tmp_path, ["2_1_1", "2_1_2"], split="val")
    write_images(train)
    write_images(val)
    train.image_path(1).unlink()
    train.image_path(2).write_bytes(b"")
    train.image_path(4).write_bytes(png_bytes()[:100])
    val.image_path(1).write_bytes(b"GIF89a")
    broken = check_image_files([train, val])
    assert [(table.split, row) for table, row, _ in broken] == [("train", 1), ("train", 2), ("train", 4), ("val", 1)]
    reasons = [reason for _, _, reason in broken]
    assert reasons[0] == "the file does not exist"
    assert reasons[1] == "the file is empty"
    assert "cannot be decoded" in reasons[2]
    assert reasons[3] == "it is a GIF image, whatever its name says, not a PNG or JPEG image"


def test_what_a_cache_has_is_not_opened(tmp_path: Path) -> None:
    """But a file that is not there is missed all the same."""
    table = make_table(tmp_path, ["1_1_1", "1_1_2", "1_1_3"])
    write_images(table)
    table.image_path(0).write_bytes(b"")
    table.image_path(1).write_bytes(b"")
    table.image_path(2).unlink()

    def is_kept(asked: FrameTable, name: str) -> bool:
        return asked is table and name in ("1_1_1", "1_1_3")

    broken = check_image_files([table], is_kept=is_kept)
    assert [(row, reason) for _, row, reason in broken] == [(1, "the file is empty"), (2, "the file does not exist")]


def test_the_message_names_row_file_reason_number_and_remedy(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2", "1_1_3"])
    write_images(table)
    table.image_path(1).unlink()
    with pytest.raises(SpatialfeatError) as caught:
        require_images([table])
    place = f"{tmp_path}/train.csv row 3: cannot read {tmp_path}/images/1_1_2.png: the file does not exist"
    remedy = "put the image there, pass --img-dir, or remove the row"
    assert str(caught.value) == f"{place}; {remedy}"
    table.image_path(2).write_bytes(b"")
    with pytest.raises(SpatialfeatError) as caught:
        require_images([table])
    assert str(caught.value) == f"{place} (2 of 3 images are broken); {remedy}"


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("1_1_2.tif", "convert to PNG or JPEG the 1 file such as {img_dir}/1_1_2.tif"),
        ("1_1_0002.jpg", "write 1 id as the file is named: 1_1_0002 for 1_1_2"),
        ("1_1/1_1_2.jpg", "write the folder in the ids, 1_1/1_1_2 for 1_1_2: this one is {img_dir}/1_1/1_1_2.jpg"),
        ("1_1/2.png", "write the folder in the ids, 1_1/2 for 1_1_2: this one is {img_dir}/1_1/2.png"),
        ("other_2.png", "put the image there, pass --img-dir, or remove the row"),
    ],
)
def test_what_is_known_of_a_missing_image_is_said(tmp_path: Path, file: str, remedy: str) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    target = table.images.path / file
    target.parent.mkdir(exist_ok=True)
    table.image_path(1).rename(target)
    with pytest.raises(SpatialfeatError) as caught:
        require_images([table])
    assert "train.csv row 3: cannot read " in str(caught.value)
    assert remedy.format(img_dir=table.images.path) in str(caught.value)


def test_the_letter_case_of_a_missing_image_and_folders_too_many(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["Video1/frame_2"])
    (table.images.path / "Video1").mkdir(parents=True)
    (table.images.path / "Video1" / "Frame_2.jpg").write_bytes(png_bytes())
    with pytest.raises(SpatialfeatError, match="write 1 id as the file is named: Video1/Frame_2 for Video1/frame_2"):
        require_images([table])
    with pytest.raises(SpatialfeatError, match="write the folder of the ids as it is named: Video1, not video01"):
        require_images([make_table(tmp_path, ["video01/frame_2"])])
    within = replace(table, images=ImageFolder(table.images.path / "Video1"))
    (table.images.path / "Video1" / "Frame_2.jpg").rename(table.images.path / "Video1" / "frame_2.jpg")
    with pytest.raises(SpatialfeatError, match=rf"pass --img-dir {table.images.path}: the ids name the folder Video1"):
        require_images([within])


def test_missing_image_folder(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"])
    with pytest.raises(SpatialfeatError, match=r"--img-dir .*images: cannot be read \(No such file"):
        check_image_files([table])


def test_a_wrong_folder_of_images_is_named_with_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("check", "frames/video01"):
        Path(folder).mkdir(parents=True)
    ids = ["video01/1", "video01/2", "video02/1"]
    table = make_table(tmp_path, ids)

    def error(img_dir: str) -> str:
        with pytest.raises(SpatialfeatError) as caught:
            require_images([replace(table, images=ImageFolder(Path(img_dir)))])
        return str(caught.value)

    assert error("frame") == (
        "--img-dir frame: cannot be read (No such file or directory); pass the folder of the images, such as frames, "
        "which holds video01"
    )
    found = error(".")
    assert "row 2: cannot read video01/1.png or .jpg: the file does not exist (3 of 3 images are missing); " in found
    assert found.endswith("; pass --img-dir frames, which holds the folder video01 of the ids")
    flat = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(flat)
    with pytest.raises(SpatialfeatError, match=r"pass --img-dir images: all of them are there$"):
        require_images([replace(flat, images=ImageFolder(Path()))])
    # The others say what a missing image would be called.
    for frame_id in ids[:2]:
        Path("frames", f"{frame_id}.jpg").write_bytes(png_bytes())
    assert "row 4: cannot read frames/video02/1.jpg: the file does not exist; put the image there" in error("frames")


def test_what_a_decoding_process_gets_does_not_grow_with_the_length_of_the_folder_name(tmp_path: Path) -> None:
    """A path for every frame would be copied to every process: gigabytes for a large data set in a deep folder."""
    table = make_table(tmp_path, [f"1_1_{number}" for number in range(1000)])
    sizes = []
    for folder in (tmp_path / "a", tmp_path / ("a" * 200)):
        table = replace(table, images=ImageFolder(folder))
        sizes.append(len(pickle.dumps(FrameDataset(table, evaluation_transform(Preprocessing())))))
    assert abs(sizes[1] - sizes[0]) < 1000


def test_frames_of_several_tables_come_in_the_order_of_their_parts(tmp_path: Path) -> None:
    train = make_table(tmp_path, ["1_1_1", "1_1_2", "1_1_3"])
    test = make_table(tmp_path, ["2_1_1", "2_1_2"], split="test")
    wanted = [(train, 2), (train, 0), (test, 1)]
    train.images.path.mkdir()
    for level, (table, row) in enumerate(wanted):
        Image.new("RGB", (80, 70), (level,) * 3).save(table.image_path(row))
    parts = [(train, np.array([2, 0])), (test, np.array([1]))]
    dataset = FrameDataset(parts, evaluation_transform(Preprocessing.for_image_size(64)))
    assert [dataset.locate(position) for position in range(len(dataset))] == wanted
    assert [dataset[position].image.unique().tolist() for position in range(len(dataset))] == [[0], [1], [2]]


@pytest.mark.parametrize("room", [2**20, 3 * 16 * 16], ids=["in slots", "some too large for one"])
def test_batches_that_are_kept_stay_what_workers_loaded(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers use their memory again: what the caller has must be its own. Also of batches that fit in no slot."""
    table = make_table(tmp_path, [f"1_1_{number}" for number in range(1, 24)])
    write_images(table)
    table.image_path(4).write_bytes(b"")
    dataset = FrameDataset(table, evaluation_transform(Preprocessing.for_image_size(16)), with_digests=True)
    cpu = torch.device("cpu")
    expected = list(make_loader(dataset, batch_size=2, workers=0, device=cpu))
    monkeypatch.setattr(dataset_module, "SLOT_BYTES_PER_FRAME", room - (room < 2**20))
    loader = make_loader(dataset, batch_size=2, workers=2, device=cpu, keep_workers=True)
    first = list(loader)
    processes = {process.pid for process in multiprocessing.active_children()}
    second = list(loader)
    assert processes == {process.pid for process in multiprocessing.active_children()}
    for found in (first, second):
        for batch, own in zip(found, expected, strict=True):
            assert torch.equal(batch.images, own.images)
            assert batch.images.stride() == own.images.stride()
            assert batch.positions.tolist() == own.positions.tolist()
            assert (batch.digests, batch.failures) == (own.digests, own.failures)


def test_no_more_workers_than_batches(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2", "1_1_3"])
    write_images(table)
    dataset = FrameDataset(table, evaluation_transform(Preprocessing.for_image_size(16)))
    assert make_loader(dataset, batch_size=2, workers=16, device=torch.device("cpu")).num_workers == 2


def test_a_worker_whose_main_process_is_gone_ends(tmp_path: Path) -> None:
    """PyTorch looks after its parent only from the moment at which a worker is ready; a kill may come before."""
    table = make_table(tmp_path, ["1_1_1"], labels=[0])
    dataset = FrameDataset(table, evaluation_transform(Preprocessing()))
    loader = make_loader(dataset, batch_size=1, workers=1, device=torch.device("cpu"))
    assert loader.worker_init_fn is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:  # Its parent is not the process that made the loader.
                loader.worker_init_fn(0)
                os.write(writer, b"went on")
            else:
                os.wait()
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b""
