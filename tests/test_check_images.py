"""How check looks at images: where missing ones may be, and the scan, by one process or several."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from forks import Forks
from PIL import Image
from tinydata import make_table, write_csv, write_images

import spatialfeat.checks.images as images_module
from spatialfeat.checks.images import ImageFacts, check_images, look_at, scan_images
from spatialfeat.cli import app
from spatialfeat.config import CheckConfig
from spatialfeat.data.images import ImageFolder
from spatialfeat.errors import SpatialfeatError


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("1_1_2.tiff", "convert to PNG or JPEG the 1 file such as"),
        ("1_1_0002.png", "write 1 id as the file is named: 1_1_0002 for 1_1_2"),
        ("1_1/1_1_2.png", "write the folder in the ids, 1_1/1_1_2 for 1_1_2: this one is"),
        ("1_1/2.jpg", "write the folder in the ids, 1_1/2 for 1_1_2: this one is"),
    ],
)
def test_where_a_missing_image_may_be(tmp_path: Path, file: str, remedy: str) -> None:
    table = make_table(tmp_path, ["1_1_1", "1_1_2"])
    write_images(table)
    target = table.images.path / file
    target.parent.mkdir(exist_ok=True)
    table.image_path(1).rename(target)
    _, findings = check_images(CheckConfig(img_dir=table.images.path, workers=0), [table], [])
    (finding,) = [finding for finding in findings if finding.code == "missing-image"]
    assert finding.remedy.startswith(remedy)


def test_an_image_folder_without_images(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"])
    (table.images.path / "1050_1").mkdir(parents=True)
    scan, (finding,) = check_images(CheckConfig(img_dir=table.images.path), [table], [])
    assert scan is None
    assert finding.code == "missing-image"
    assert "pass the folder of the frames as --img-dir: it holds 1 folder, such as 1050_1" in finding.remedy


def test_a_jpeg_with_much_before_its_header_is_no_broken_image(tmp_path: Path) -> None:
    path = tmp_path / "1_1_1.jpg"
    Image.new("RGB", (40, 30)).save(path, icc_profile=bytes(30_000))
    expected = ImageFacts(40, 30, "RGB", path.stat().st_size)
    assert look_at(ImageFolder(tmp_path), "1_1_1", decode=False) == expected


def test_processes_see_what_one_process_sees(tmp_path: Path) -> None:
    table = make_table(tmp_path, [f"1_1_{frame}" for frame in range(70)])
    write_images(table)
    table.image_path(40).write_bytes(b"")
    ids = sorted(table.ids.tolist())
    alone, together = (scan_images(table.images, ids, workers=workers, decode=True) for workers in (0, 2))
    assert list(alone.facts.items()) == list(together.facts.items())
    assert list(alone.facts) == ids
    assert alone.facts["1_1_40"] == ImageFacts(reason="the file is empty")
    assert len({facts.pixels for facts in alone.readable.values()}) == 69
    assert (alone.processes, together.processes) == (1, 2)


def end_process(*_: object, **__: object) -> ImageFacts:
    os._exit(1)


def test_a_decoding_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path, [f"1_1_{frame}" for frame in range(70)])
    write_images(table)
    monkeypatch.setattr("spatialfeat.checks.images.look_at", end_process)
    with pytest.raises(SpatialfeatError) as caught:
        scan_images(table.images, table.ids.tolist(), workers=2, decode=True)
    assert "a decoding process died, perhaps for want of memory; pass fewer --workers, or 0" in str(caught.value)


def look_and_press_ctrl_c(images: ImageFolder, name: str, *, decode: bool) -> ImageFacts:
    """At one of the images, as a terminal does it: to the whole process group, so that all processes are hit."""
    if name == "1_1_150":
        os.killpg(os.getpgrp(), signal.SIGINT)
    return look_at(images, name, decode=decode)


def check_and_press_ctrl_c(*command: str) -> None:
    images_module.look_at = look_and_press_ctrl_c
    app(command)


def test_ctrl_c_ends_the_scan_with_a_message(tmp_path: Path, forks: Forks) -> None:
    rows = [(f"1_1_{frame}", 0) for frame in range(1000)]
    write_images(make_table(tmp_path, ["1_1_0"]))
    for frame_id, _ in rows[1:]:
        (tmp_path / "images" / f"{frame_id}.png").hardlink_to(tmp_path / "images" / "1_1_0.png")
    csv, out = write_csv(tmp_path / "a.csv", rows), tmp_path / "check"
    command = ["check", "--csv", f"train={csv}", "--img-dir", str(tmp_path / "images"), "--out", str(out)]
    call = [__name__, "check_and_press_ctrl_c", *command, "--workers", "2", "--device", "cpu"]
    run = forks.run(tmp_path / "log", call=call)
    assert run["code"] == 130
    assert "decoding images" in run["log"]
    assert "interrupted" in run["log"]
    assert "Traceback" not in run["log"]
    assert not run["workers_left"]
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    assert [path.name for path in out.iterdir()] == ["run.json"]
