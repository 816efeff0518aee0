"""How check looks at images: where missing ones may be, and the scan, by one process or several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tinydata import make_table, png_bytes, write_csv, write_images

from spatialfeat.checks.images import ImageFacts, check_images, scan_images
from spatialfeat.config import CheckConfig
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


def test_ctrl_c_ends_the_scan_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    content = png_bytes(0, (1280, 720))
    rows = [(f"1_1_{frame}", 0) for frame in range(3000)]
    first = tmp_path / "images" / "1_1_0.png"
    first.write_bytes(content)
    for frame_id, _ in rows[1:]:
        (tmp_path / "images" / f"{frame_id}.png").hardlink_to(first)
    # A script that runs the tests in the background makes them ignore SIGINT, and with them their children.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "spatialfeat", "check", "--csv", f"train={write_csv(tmp_path / 'a.csv', rows)}",
         "--workers", "2", "--device", "cpu"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, handler)
    assert process.stderr is not None
    seen = ""
    while "decoding images" not in seen:
        assert process.poll() is None, seen
        seen += process.stderr.read(1)
    # As a terminal does it: to the whole process group, so the decoding processes are hit too.
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "check" / "run.json").read_text())["status"] == "interrupted"
    assert [path.name for path in (tmp_path / "check").iterdir()] == ["run.json"]
