"""check finds every planted fault, with place and remedy, and nothing in a clean data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_data import CPU, NUM_FRAMES, SIZE_PX, SPEEDS, DataSet, codes, found, make_clean
from PIL import Image
from tinydata import png_bytes

from spatialfeat.checks.estimate import Speeds, estimate_runs
from spatialfeat.checks.findings import CODES, ERROR, MAX_PLACES, Finding
from spatialfeat.checks.report import render
from spatialfeat.checks.rows import read_tables


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return make_clean(tmp_path / "data")


Plant = Callable[[DataSet], dict[str, Any] | None]
PLANTS: dict[str, tuple[Plant, int, str, str]] = {}
"""{code: (how to plant it, count, a part of the message, a part of the remedy)}"""


def plants(code: str, count: int, message: str, remedy: str) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        PLANTS[code] = (plant, count, message, remedy)
        return plant

    return keep


@plants("unreadable-csv", 1, "val.csv row 2: has 3 fields, the header 2", "remove surplus commas")
def surplus_comma(data: DataSet) -> None:
    data.rows["val"][0][1] += ","


@plants("bad-id", 2, "train.csv row 2: id '11_1_0001.png' does not end in _FRAME", "without .png")
def suffix_in_ids(data: DataSet) -> None:
    for row in data.rows["train"][:2]:
        row[0] += ".png"


@plants("repeated-id", 2, "id 11_1_1 repeats 11_1_0001 of", "remove one of them")
def repeated(data: DataSet) -> None:
    data.rows["train"] += [["11_1_1", "0"], ["11_1_0002", "1"]]


@plants("two-spellings", 1, "video 011_1 is the same as 11_1 in", "use one spelling")
def respelt_video(data: DataSet) -> None:
    data.add_video("val", "011_1")


@plants("two-patients", 1, "train.csv row 3: video 11_1 is of patient P2, but of P1 in", "a video is of one patient")
def patient_column(data: DataSet) -> None:
    data.patients = {"train": ["P1", "P2", *["P1"] * 7, *["P3"] * 9]}


@plants("many-videos", 1, "patient op2024 has 10 videos, in train and test, so that", "--id-form")
def year_before_a_number(data: DataSet) -> None:
    for number in range(10):
        data.add_video("train" if number < 9 else "test", f"op2024_{number}", seed=2000 + 10 * number)


@plants("one-frame-videos", 20, "20 of 26 videos have one frame each, such as video frame000000: is", "--id-pattern")
def frame_number_in_front(data: DataSet) -> None:
    for number in range(20):
        data.add_video("train", f"frame{number:06d}", frames=range(1, 2), seed=3000 + number)


@plants("frame-in-two-splits", 1, "val.csv row 20: id 11_1_0001 is also in", "remove these rows from")
def shared_frame(data: DataSet) -> None:
    data.rows["val"].append(data.rows["train"][0])


@plants("patient-in-two-splits", 1, "patient 11: 9 frames in train, 9 frames in test", "give each patient to one split")
def shared_patient(data: DataSet) -> None:
    data.add_video("test", "11_2")


@plants("label-not-a-number", 1, "train.csv row 3: label 'two' is not an integer", "write the phase's number")
def wordy_label(data: DataSet) -> None:
    data.rows["train"][1][1] = "two"


@plants("label-out-of-range", 6, "row 8: label 3 is outside 0..2", "subtract 1 everywhere")
def counted_from_one(data: DataSet) -> None:
    for row in data.rows["train"]:
        row[1] = str(int(row[1]) + 1)


@plants("no-labels", 1, "val.csv: has no labelled frame", "need the true phases of some frames")
def no_label_at_all(data: DataSet) -> None:
    for row in data.rows["val"]:
        row[1] = ""


@plants("unlabelled", 3, "3 of 18 train frames in", "nothing, if these frames belong to no phase")
def some_unlabelled(data: DataSet) -> None:
    for row, text in zip(data.rows["train"], ("-1", "", "-100", "faulty"), strict=False):
        row[1] = text


@plants("unlabelled-video", 1, "train.csv: video 12_1 has no label at all", "add its labels")
def unlabelled_video(data: DataSet) -> None:
    for row in data.rows["train"][NUM_FRAMES:]:
        row[1] = "-1"


@plants("no-label-zero", 1, "the labels found run from 1 to 2", "subtract 1 from every label")
def no_zero(data: DataSet) -> None:
    for rows in data.rows.values():
        rows[:] = [row for row in rows if row[1] != "0"]


@plants("no-image-folder", 1, "nowhere: cannot be read", "pass the folder of the images")
def no_folder(data: DataSet) -> dict[str, Any]:
    return {"img_dir": data.folder / "nowhere"}


@plants("missing-image", 2, "images/11_1_0003.png does not exist", "put the images there")
def missing(data: DataSet) -> None:
    for row in (2, 4):
        data.image("train", row).unlink()


@plants("unreadable-image", 2, "11_1_0001.png: the file is empty", "export these frames again")
def broken(data: DataSet) -> None:
    data.image("train", 0).write_bytes(b"")
    content = bytearray(data.image("train", 1).read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.image("train", 1).write_bytes(content)


@plants("leaked-images", 1, "11_1_0001 (train) = 21_1_0001 (val); in all, 1 of 18 frames of train", "each patient")
def leak(data: DataSet) -> None:
    # Saved anew, by another program so to speak: other bytes, equal pixels.
    with Image.open(data.image("train", 0)) as image:
        image.save(data.image("val", 0), compress_level=1)
    assert data.image("train", 0).read_bytes() != data.image("val", 0).read_bytes()


@plants("repeated-images", 1, "11_1_0001 (train) = 12_1_0001 (train)", "title or a test picture")
def title_picture(data: DataSet) -> None:
    shutil.copy(data.image("train", 0), data.image("train", NUM_FRAMES))


@plants("still-images", 1, "2 frames equal another one of their video: 11_1_0001 (train) = 11_1_0002", "stood still")
def still(data: DataSet) -> None:
    shutil.copy(data.image("train", 0), data.image("train", 1))


@plants("phase-not-in-train", 1, "phase 2: 3 frames in val, 6 frames in test", "move a video")
def absent_phase(data: DataSet) -> None:
    data.rows["train"] = [row for row in data.rows["train"] if row[1] != "2"]
    data.rows["val"] = data.rows["val"][:NUM_FRAMES]


@plants("phase-not-evaluated", 1, "phase 1: no frame in val", "quote the scores with that limit")
def unevaluated_phase(data: DataSet) -> None:
    data.rows["val"] = [row for row in data.rows["val"] if row[1] != "1"]


@plants("rare-phase", 1, "phase 2: 1 frame of 131 in train", "macro F1")
def rare_phase(data: DataSet) -> None:
    data.rows["train"] = [row for row in data.rows["train"] if row[1] != "2"] + [data.rows["train"][-1]]
    for frame in range(1, 119):
        data.rows["train"].append([f"13_1_{frame:04d}", "1"])
        (data.img_dir / f"13_1_{frame:04d}.png").write_bytes(png_bytes(5000 + frame, SIZE_PX))


@plants("gaps", 1, "3 frames missing in 2 gaps; the longest, 2 frames (2 s at 1 fps), follows 11_1_0002", "left out")
def gaps(data: DataSet) -> None:
    data.rows["train"] = [row for row in data.rows["train"] if row[0] not in ("11_1_0003", "11_1_0004", "11_1_0008")]


@plants("frame-step", 1, "frame numbers of video 13_1 advance by 25, of most videos by 1", "at the same rate")
def other_rate(data: DataSet) -> None:
    data.add_video("train", "13_1", frames=range(0, 225, 25))


@plants("label-flicker", 1, "video 11_1: 1 flicker, first 11_1_0002 (0 2 0)", "slips")
def flicker(data: DataSet) -> None:
    data.rows["train"][1][1] = "2"


@plants("short-video", 1, "video 13_1 has a single frame", "the last field of these ids")
def single_frame(data: DataSet) -> None:
    data.add_video("train", "13_1", frames=range(7, 8))


@plants("mixed-sizes", 1, "video 11_1: 8 frames of 90x80, 1 frame of 100x80", "belong to the video")
def other_size(data: DataSet) -> None:
    data.image("train", 0).write_bytes(png_bytes(1, (100, 80)))


@plants("several-sizes", 2, "45 images of 90x80, 9 images of 100x80", "nothing")
def other_size_of_a_video(data: DataSet) -> None:
    for row in range(NUM_FRAMES):
        data.image("train", row).write_bytes(png_bytes(row, (100, 80)))


@plants(
    "small-images", 1, "11_1_0001.png is below the 73 px that frames are resized to (the smallest: 72 px)", "larger"
)
def small(data: DataSet) -> None:
    data.image("train", 0).write_bytes(png_bytes(1, (90, 72)))


@plants("clipped-images", 1, "11_1_0001.png is 16-bit grey", "with 8 bits")
def sixteen_bit(data: DataSet) -> None:
    ramp = np.arange(SIZE_PX[0] * SIZE_PX[1], dtype=np.uint16).reshape(SIZE_PX[1], SIZE_PX[0])
    Image.fromarray(ramp).save(data.image("train", 0))


@plants("image-modes", 3, "1 grey, 1 palette, 1 RGB with alpha, such as 11_1_0001.png", "look right")
def odd_modes(data: DataSet) -> None:
    for row, mode in enumerate(("L", "P", "RGBA")):
        with Image.open(data.image("train", row)) as image:
            odd = image.convert(mode)
        odd.save(data.image("train", row))


@plants("one-colour-images", 2, "all pixels of 11_1_0001.png are equal", "if this is intended")
def black_frames(data: DataSet) -> None:
    for split in ("train", "val"):
        Image.new("RGB", SIZE_PX).save(data.image(split, 0))


@plants("unused-images", 1, "images/99_1_0001.png is in no CSV", "frames without a label")
def unused(data: DataSet) -> None:
    (data.img_dir / "99_1_0001.png").write_bytes(png_bytes(1))


@plants("no-test-csv", 1, "no test_ResNet_DB.csv here", "pass --test-csv")
def no_test_csv(data: DataSet) -> dict[str, Any]:
    return {"test_csv": None}


@plants("id-looks-like-date", 1, "video 2019-05-31_1 holds", "--pseudonymize MAP.csv")
def date(data: DataSet) -> None:
    data.add_video("train", "2019-05-31_1")


@plants("id-looks-like-number", 1, "video 4711089_1 holds", "--pseudonymize MAP.csv")
def record_number(data: DataSet) -> None:
    data.add_video("train", "4711089_1")


@plants("id-looks-like-name", 1, "video Doe_1 holds", "--pseudonymize MAP.csv")
def name(data: DataSet) -> None:
    data.add_video("train", "Doe_1")


NEEDING_AN_ESTIMATE = {"disk-too-small", "memory-too-small", "gpu-memory-too-small"}
WITHOUT_PLACES = {
    "unreadable-csv", "no-image-folder", "no-test-csv", "no-label-zero", "several-sizes", "no-labels", "unlabelled",
}  # fmt: skip
"""The message says all."""


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_fault_is_found(code: str, data: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plant, count, message, remedy = PLANTS[code]
    report = data.report(**(plant(data) or {}))
    finding = found(report, code)
    assert message in finding.message
    assert remedy in finding.remedy
    assert finding.count == count
    assert finding.unit == CODES[code][1]
    assert report.failed == any(CODES[other][0] == ERROR for other in codes(report))
    assert len(finding.places) == (0 if code in WITHOUT_PLACES else count)
    # Errors first, and within a level as the table of codes has them.
    order = [list(CODES).index(finding.code) for finding in report.findings]
    assert order == sorted(order)


def test_every_code_has_a_test() -> None:
    assert set(PLANTS) | NEEDING_AN_ESTIMATE == set(CODES)
    assert NEEDING_AN_ESTIMATE.isdisjoint(PLANTS)


def test_operations_of_numbers_behind_a_word_are_patients_of_their_own(data: DataSet) -> None:
    for rows in data.rows.values():
        rows.clear()
    for number in range(1, 13):
        split = ("train", "train", "val", "test")[number % 4]
        data.add_video(split, f"video_{number:02d}", seed=4000 + 20 * number)
    report = data.report()
    assert not report.failed
    assert sum(split["num_patients"] for split in report.splits) == 12
    assert report.ids[0] == "video_01_0001: patient video_01, frame 1"


@pytest.mark.parametrize(("options", "failed"), [({}, False), ({"id_form": "patient-segment-frame"}, True)])
def test_many_videos_of_one_patient_are_a_question_unless_it_was_said(
    data: DataSet, options: dict[str, Any], failed: bool
) -> None:
    year_before_a_number(data)
    report = data.report(**options)
    assert report.failed is failed
    assert ("many-videos" in codes(report)) is not failed
    assert ("patient-in-two-splits" in codes(report)) is failed


def test_nothing_is_said_of_a_clean_data_set(data: DataSet) -> None:
    report = data.report()
    assert report.findings == []
    assert not report.failed


def test_a_file_with_rows_in_two_csvs_is_no_leaked_picture(data: DataSet) -> None:
    shared_frame(data)
    assert codes(data.report()) == {"frame-in-two-splits", "patient-in-two-splits", "short-video"}


def test_few_pictures_that_splits_share_are_no_leak(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    leak(data)
    monkeypatch.setattr("spatialfeat.checks.images.LEAK_SHARE", 0.1)
    report = data.report()
    assert codes(report) == {"repeated-images"}
    assert report.findings[0].places == ["11_1_0001 (train) = 21_1_0001 (val)"]


def test_the_labels_found_are_named_where_none_is_0(data: DataSet) -> None:
    for rows in data.rows.values():
        rows[:] = [row for row in rows if row[1] == "2"]
    assert "the labels found run from 2 to 2" in found(data.report(), "no-label-zero").message


def test_a_finding_lists_many_places_but_not_all() -> None:
    finding = Finding("missing-image", "one", "find them", [f"row {row}" for row in range(MAX_PLACES + 1)])
    assert finding.count == finding.as_dict()["count"] == MAX_PLACES + 1
    assert finding.as_dict()["places"] == [f"row {row}" for row in range(MAX_PLACES)]


def test_many_faults_at_once_are_all_told(data: DataSet) -> None:
    several = ("leaked-images", "missing-image", "label-not-a-number", "unused-images", "repeated-id")
    for code in several:
        PLANTS[code][0](data)
    # A refused row may be that of an image that seems unused.
    assert codes(data.report()) == set(several) - {"unused-images"}


def test_without_decoding_only_the_ends_of_files_are_read(data: DataSet) -> None:
    for plant in (odd_modes, black_frames, other_size):
        plant(data)
    shutil.copy(data.image("train", 6), data.image("val", 6))
    content = bytearray(data.image("train", 4).read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.image("train", 4).write_bytes(content)
    assert codes(data.report(decode=False)) == {"mixed-sizes", "image-modes"}
    data.image("train", 5).write_bytes(b"GIF89a")
    assert found(data.report(decode=False), "unreadable-image").count == 1


def test_what_does_not_fit_on_the_machine(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(CPU, free_memory_bytes=1_900_000_000, free_disk_bytes=100_000_000)
    monkeypatch.setattr("spatialfeat.checks.estimate.machine_for", lambda *_: machine)
    monkeypatch.setattr("spatialfeat.checks.estimate.measure_speeds", lambda *_: SPEEDS)
    report = data.report(estimate=True)
    assert codes(report) == {"disk-too-small", "memory-too-small"}
    assert "write about 919." in found(report, "disk-too-small").message
    assert "100.0 MB are free" in found(report, "disk-too-small").message
    message = found(report, "memory-too-small").message
    assert message == "a batch of 8 frames took 2.0 GB of memory, 1.9 GB were free"
    assert "lower --batch-size" in found(report, "memory-too-small").remedy
    assert report.failed
    monkeypatch.setattr(
        "spatialfeat.checks.estimate.machine_for", lambda *_: replace(CPU, free_memory_bytes=2_000_000_000)
    )
    assert codes(data.report(estimate=True)) == set()


def test_a_batch_that_is_too_large_for_the_gpu(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> Speeds:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("spatialfeat.checks.estimate.measure_speeds", too_large)
    report = data.report(estimate=True, batch_size=4096)
    finding = found(report, "gpu-memory-too-small")
    assert "a training batch of 4096 frames" in finding.message
    assert "lower --batch-size" in finding.remedy
    assert report.failed
    assert report.estimate is None


def test_a_folder_without_a_readable_image_says_so(data: DataSet) -> None:
    for path in data.img_dir.iterdir():
        path.write_bytes(b"no picture")
    report = data.report(estimate=True)
    text = render(report)
    assert "54 images, none of which can be decoded" in text
    assert "0 B" not in text
    assert codes(report) == {"unreadable-image"}
    assert report.estimate is None


def test_unlabelled_frames_are_not_trained_on_but_extracted(data: DataSet) -> None:
    config = data.config()
    labelled, _ = read_tables(config)
    for rows in data.rows.values():
        rows[0][1] = "-1"
    data.write_csvs()
    tables, _ = read_tables(config)
    before, after = (estimate_runs(config.study(), some, 6, SPEEDS, CPU) for some in (labelled, tables))
    assert before.epoch_s is not None
    assert after.epoch_s == pytest.approx(before.epoch_s * 17 / 18)
    assert (after.extract_s, after.extract_disk_bytes) == (before.extract_s, before.extract_disk_bytes)
