"""Every broken image is found before work starts, with file and row."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinydata import make_table, png_bytes, write_images

from spatialfeat.data.dataset import check_images, require_images
from spatialfeat.errors import SpatialfeatError


def test_whole_images_pass(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    assert check_images([table], progress=False) == []
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
    broken = check_images([train, val], progress=False)
    assert [(table.split, row) for table, row, _ in broken] == [("train", 1), ("train", 2), ("train", 4), ("val", 1)]
    reasons = [reason for _, _, reason in broken]
    assert reasons[0] == "the file does not exist"
    assert reasons[1] == "the file is empty"
    assert "cannot be decoded" in reasons[2]
    assert reasons[3] == "the content is not a PNG image"


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


def test_upper_case_suffix_is_another_file(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"])
    table.images.path.mkdir()
    (table.images.path / "1_1_1.PNG").write_bytes(png_bytes())
    if table.image_path(0).exists():
        pytest.skip("this file system does not tell upper from lower case")
    assert [reason for _, _, reason in check_images([table], progress=False)] == ["the file does not exist"]


def test_missing_image_folder(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"])
    with pytest.raises(SpatialfeatError, match=r"--img-dir .*images: cannot be read \(No such file"):
        check_images([table], progress=False)
