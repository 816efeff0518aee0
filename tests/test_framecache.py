"""Decode once: the same numbers with and without a cache, and no image opened twice."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tinydata import make_table, png_bytes

from spatialfeat.config import EvaluateConfig, ExtractConfig, FinetuneConfig
from spatialfeat.data.cache import TAG_NAME, CachedFrame, FrameCache
from spatialfeat.data.dataset import AugmentedFrame, FrameDataset, FrameSample, make_loader
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import ImageFolder, content_digest, decode_rgb
from spatialfeat.data.transforms import FrameTransform, Preprocessing, evaluation_transform, training_transform
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import evaluate
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult, finetune

SMALL = Preprocessing.for_image_size(64)


@pytest.fixture
def table(tmp_path: Path) -> FrameTable:
    """Five frames of 120x90, more than the evaluation's 73 px high."""
    table = make_table(tmp_path, [f"1_1_{number}" for number in range(1, 6)])
    table.images.path.mkdir()
    for row in range(len(table)):
        table.image_path(row).write_bytes(png_bytes(seed=row, size_px=(120, 90)))
    return table


def samples(table: FrameTable, transform: FrameTransform, cache: FrameCache | None) -> list[FrameSample]:
    """Every frame, augmented from a fixed seed where the transform draws."""
    dataset = FrameDataset(table, transform, cache=cache)
    return [dataset[AugmentedFrame(row, row) if transform.random else row] for row in range(len(table))]


def assert_same_images(first: list[FrameSample], second: list[FrameSample]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.image is not None
        assert b.image is not None
        assert torch.equal(a.image, b.image)


def make_unreadable(folder: Path) -> None:
    """Replace every PNG by rubbish of the same size and time: whoever opens one finds no image."""
    for path in folder.glob("*.png"):
        before = path.stat()
        path.unlink()
        path.write_bytes(b"x" * before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "transform",
    [evaluation_transform(SMALL), training_transform(SMALL), training_transform(SMALL, 80)],
    ids=["evaluation", "training", "training shrunk"],
)
def test_filling_filled_and_reopened_caches_give_the_same_bits(
    transform: FrameTransform, table: FrameTable, tmp_path: Path
) -> None:
    plain = samples(table, transform, None)
    assert [sample.digest for sample in plain] == [b""] * 5
    cache = FrameCache(tmp_path / "cache", 1)
    digests = [content_digest(table.image_path(row).read_bytes()) for row in range(5)]
    assert_same_images(plain, samples(table, transform, cache))
    make_unreadable(table.images.path)
    again = samples(table, transform, cache)
    assert_same_images(plain, again)
    assert [sample.digest for sample in again] == digests
    facts = cache.close()
    assert (facts["frames_from_cache"], facts["frames_decoded"]) == (5, 5)
    reopened = FrameCache(tmp_path / "cache", 1)
    assert_same_images(plain, samples(table, transform, reopened))
    assert reopened.close()["frames_decoded"] == 0


def test_training_on_frames_that_are_no_larger_is_training_without_a_cache(table: FrameTable, tmp_path: Path) -> None:
    plain = samples(table, training_transform(SMALL), None)
    assert_same_images(plain, samples(table, training_transform(SMALL, 90), FrameCache(tmp_path / "cache", 1)))
    shrunk = samples(table, training_transform(SMALL, 80), None)
    assert not torch.equal(shrunk[0].image, plain[0].image)  # type: ignore[arg-type]
    fixed = training_transform(SMALL, 80).fixed
    assert fixed(decode_rgb(table.image_path(0).read_bytes())).shape == (3, 80, 106)


def test_processes_share_it(table: FrameTable, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 1)
    dataset = FrameDataset(table, evaluation_transform(SMALL), cache=cache)
    loader = make_loader(dataset, batch_size=1, workers=2, device=torch.device("cpu"))
    first = torch.cat([batch.images for batch in loader])
    make_unreadable(table.images.path)
    assert torch.equal(torch.cat([batch.images for batch in loader]), first)
    facts = cache.close()
    assert (facts["frames_from_cache"], facts["frames_decoded"]) == (5, 5)
    # 5 images of 64x64, and little around them.
    assert 5 * 3 * 64 * 64 < facts["bytes"] < 5 * 3 * 64 * 64 + 1000


def test_a_changed_frame_is_decoded_again(table: FrameTable, tmp_path: Path) -> None:
    transform = evaluation_transform(SMALL)
    cache = FrameCache(tmp_path / "cache", 1)
    before = samples(table, transform, cache)
    same_size, other_size = table.image_path(0), table.image_path(1)
    pixels = bytearray(png_bytes(seed=77, size_px=(120, 90)))
    other_size.write_bytes(pixels + b"appended")
    os.utime(other_size, ns=(0, before_ns := other_size.stat().st_mtime_ns - 10**9))
    size = same_size.stat().st_size
    same_size.write_bytes(bytes(pixels).ljust(size, b"\0")[:size])
    os.utime(same_size, ns=(0, before_ns))
    after = samples(table, transform, cache)
    assert not torch.equal(after[1].image, before[1].image)  # type: ignore[arg-type]
    assert after[0].failure is not None or not torch.equal(after[0].image, before[0].image)  # type: ignore[arg-type]
    assert_same_images(before[2:], after[2:])


def test_a_frame_that_is_replaced_while_it_is_read_is_not_kept(
    table: FrameTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, cache = evaluation_transform(SMALL), FrameCache(tmp_path / "cache", 1)
    path, whole_read = table.image_path(0), ImageFolder.read

    def read_and_replace(images: ImageFolder, name: str) -> bytes:
        content = whole_read(images, name)
        if images.file(name) == path:
            path.write_bytes(png_bytes(seed=99, size_px=(120, 90)) + b"longer")
        return content

    monkeypatch.setattr(ImageFolder, "read", read_and_replace)
    old = samples(table, transform, cache)[0].image
    monkeypatch.undo()
    new = samples(table, transform, cache)[0].image
    assert torch.equal(new, samples(table, transform, None)[0].image)  # type: ignore[arg-type]
    assert not torch.equal(new, old)  # type: ignore[arg-type]


def test_an_undecodable_frame_is_reported_every_time(table: FrameTable, tmp_path: Path) -> None:
    table.image_path(2).write_bytes(png_bytes()[:60])
    table.image_path(3).unlink()
    cache = FrameCache(tmp_path / "cache", 1)
    for _ in range(2):
        failures = [sample.failure for sample in samples(table, evaluation_transform(SMALL), cache)]
        assert failures[2] is not None
        assert "cannot be decoded" in failures[2]
        assert failures[3] == "No such file or directory"
        assert [failures[row] for row in (0, 1, 4)] == [None] * 3


def test_a_full_cache_says_so_once_and_the_rest_is_decoded(
    table: FrameTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transform = evaluation_transform(SMALL)
    plain = samples(table, transform, None)
    cache = FrameCache(tmp_path / "cache", 30_000 / 1e9)  # Room for two of 12 kB.
    for _ in range(2):
        assert_same_images(plain, samples(table, transform, cache))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "takes no more frames: 0.00 GB of at most 0.00 GB are taken; the others are decoded" in record.message
    assert "Raise --cache-limit" in record.message
    facts = cache.close()
    assert (facts["frames_from_cache"], facts["frames_decoded"]) == (2, 8)
    assert facts["bytes"] <= 30_000


def test_what_a_frame_is_cached_for_is_part_of_its_name(table: FrameTable, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 1)
    images, name = table.images, str(table.image_names[0])
    transforms = [
        evaluation_transform(SMALL),
        evaluation_transform(Preprocessing.for_image_size(65)),
        evaluation_transform(replace(SMALL, antialias=False)),
        evaluation_transform(replace(SMALL, interpolation="bicubic")),
        training_transform(SMALL),
        training_transform(SMALL, 80),
        training_transform(SMALL, 81),
    ]
    assert len({cache.key(images, name, transform.fixed_steps) for transform in transforms}) == len(transforms)
    # Neither the colours' normalization nor the size of the random crop changes what is kept.
    same = [evaluation_transform(replace(SMALL, mean=(0.5, 0.5, 0.5))), training_transform(Preprocessing(), 80)]
    assert [transform.fixed_steps for transform in same] == [transforms[0].fixed_steps, transforms[5].fixed_steps]
    # Another way to the same folder is the same frame.
    link = tmp_path / "link"
    link.symlink_to(table.images.path)
    assert cache.key(ImageFolder(link), name, "r") == cache.key(images, name, "r")


def test_the_folder_is_private_marked_and_nobody_elses(tmp_path: Path) -> None:
    FrameCache(tmp_path / "new" / "cache", 1).close()
    folder = tmp_path / "new" / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / TAG_NAME).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    FrameCache(folder, 1).close()

    (tmp_path / "empty").mkdir()
    FrameCache(tmp_path / "empty", 1).close()
    assert stat.S_IMODE((tmp_path / "empty" / "slabs").stat().st_mode) == 0o700

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(SpatialfeatError, match=r"--cache .*thesis: is not a frame cache and not empty; choose a new"):
        FrameCache(tmp_path / "thesis", 1)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]

    (folder / TAG_NAME).write_text((folder / TAG_NAME).read_text().replace("schema 1", "schema 2"))
    with pytest.raises(SpatialfeatError, match="is a cache of another version of spatialfeat and not empty"):
        FrameCache(folder, 1)
    with pytest.raises(SpatialfeatError, match=r"chapter\.txt: is a file, not a folder"):
        FrameCache(tmp_path / "thesis" / "chapter.txt", 1)
    with pytest.raises(SpatialfeatError, match=r"--cache .*: cannot be used \(.*choose a folder that you may write to"):
        FrameCache(tmp_path / "thesis" / "chapter.txt" / "below", 1)


def test_a_cache_that_is_deleted_during_a_run_costs_time_only(
    table: FrameTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transform = evaluation_transform(SMALL)
    cache = FrameCache(tmp_path / "cache", 1)
    plain = samples(table, transform, cache)
    shutil.rmtree(tmp_path / "cache")
    again = FrameDataset(table, transform, cache=cache)
    assert_same_images(plain, [again[row] for row in range(len(table))])
    cache.close()
    assert "cannot be read any more (No such file or directory)" in caplog.text


def test_pixels_come_back_in_pillows_order(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 1)
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    cache.put(b"k" * 16, CachedFrame(pixels, b"d" * 16))
    frame = cache.get(b"k" * 16)
    assert frame is not None
    assert torch.equal(frame.pixels, pixels)
    assert frame.pixels.stride() == (1, 15, 3)
    assert frame.digest == b"d" * 16


def private_images(demo_dir: Path, folder: Path) -> Path:
    """A copy of the demo's images that a test may spoil."""
    shutil.copytree(demo_dir / "images", folder)
    return folder


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_a_study_decodes_each_frame_once_and_the_next_none(
    quick_config: FinetuneConfig, small_study: FinetuneResult, demo_dir: Path, tmp_path: Path
) -> None:
    """The demo's frames are 96x64, so nothing is shrunk: the history is that of the study without a cache."""
    img_dir = private_images(demo_dir, tmp_path / "images")
    config = replace(quick_config, img_dir=img_dir, out_dir=tmp_path / "out", workers=1, cache_dir=tmp_path / "cache")
    first = finetune(replace(config, phase_names=tuple("ABCDEFG")))
    expected = [record._replace(seconds=0) for record in small_study.history]
    assert [record._replace(seconds=0) for record in first.history] == expected
    assert first.test_metrics == small_study.test_metrics
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["cache"]
    num_train, num_val, num_test = (
        len((demo_dir / f"{split}_ResNet_DB.csv").read_text().splitlines()) - 1 for split in ("train", "val", "test")
    )
    assert facts["frames_decoded"] == num_train + num_val + num_test
    assert facts["frames_from_cache"] == num_train + num_val

    # From here on nothing opens an image: neither another study, nor the features and scores of any of its frames.
    make_unreadable(img_dir)
    second = finetune(replace(config, epochs=1, test_csv=None, workers=0, out_dir=tmp_path / "second"))
    assert second.history[0]._replace(seconds=0) == expected[0]
    facts = json.loads((tmp_path / "second" / "run.json").read_text())["cache"]
    assert (facts["frames_decoded"], facts["frames_from_cache"]) == (0, num_train + num_val)

    csvs = tuple(str(demo_dir / f"{split}_ResNet_DB.csv") for split in ("train", "val", "test"))
    extraction = ExtractConfig(
        csvs=csvs,
        img_dir=demo_dir / "images",
        weights=first.weights_path,
        out_dir=tmp_path / "decoded",
        workers=0,
        device="cpu",
    )
    extract(extraction)
    extract(replace(extraction, img_dir=img_dir, out_dir=tmp_path / "kept", cache_dir=tmp_path / "cache"))
    facts = json.loads((tmp_path / "kept" / "run.json").read_text())["cache"]
    assert (facts["frames_decoded"], facts["frames_from_cache"]) == (0, num_train + num_val + num_test)
    decoded, kept = feature_files(tmp_path / "decoded"), feature_files(tmp_path / "kept")
    assert list(decoded) == list(kept)
    for video, (numbers, attributes) in decoded.items():
        np.testing.assert_array_equal(kept[video][0], numbers)
        assert kept[video][1] == attributes

    scores = evaluate(
        EvaluateConfig(
            weights=first.weights_path,
            csv=demo_dir / "test_ResNet_DB.csv",
            img_dir=img_dir,
            device="cpu",
            batch_size=config.batch_size,
            workers=0,
            bootstrap=0,
            cache_dir=tmp_path / "cache",
            out_dir=tmp_path / "evaluation",
        )
    )
    assert first.test_metrics is not None
    assert scores.metrics["pooled"] == first.test_metrics["pooled"]
    facts = json.loads((tmp_path / "evaluation" / "run.json").read_text())["cache"]
    assert (facts["frames_decoded"], facts["frames_from_cache"]) == (0, num_test)


def feature_files(out_dir: Path) -> dict[str, tuple[NDArray[np.float32], dict[str, str]]]:
    found = {}
    for path in sorted(out_dir.glob("*.h5")):
        with h5py.File(path) as file:
            attributes = {name: str(value) for name, value in file.attrs.items()}
            found[path.stem] = (np.concatenate([file["features"][()], file["logits"][()]]), attributes)
    return found


@pytest.mark.usefixtures("small_network")
def test_extracted_files_are_the_same_with_and_without_a_cache(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path
) -> None:
    img_dir = private_images(demo_dir, tmp_path / "images")
    config = ExtractConfig(
        csvs=(str(demo_dir / "test_ResNet_DB.csv"),),
        img_dir=img_dir,
        weights=small_study.weights_path,
        out_dir=tmp_path / "plain",
        workers=2,
        device="cpu",
    )
    extract(config)
    extract(replace(config, out_dir=tmp_path / "cold", cache_dir=tmp_path / "cache"))
    make_unreadable(img_dir)
    result = extract(replace(config, out_dir=tmp_path / "warm", cache_dir=tmp_path / "cache"))
    assert not result.failed
    plain, cold, warm = (feature_files(tmp_path / name) for name in ("plain", "cold", "warm"))
    assert list(plain) == list(cold) == list(warm)
    for video, (numbers, attributes) in plain.items():
        np.testing.assert_array_equal(cold[video][0], numbers)
        np.testing.assert_array_equal(warm[video][0], numbers)
        # images_content among them: the digest of files that the warm run could not have read.
        assert cold[video][1] == warm[video][1] == attributes
