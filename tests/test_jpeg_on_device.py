"""JPEG frames that come to the device undecoded. On a CPU torchvision decodes them, as it does by a GPU on CUDA."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tinydata import make_header, make_table, png_bytes
from torchvision import io
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import ExtractConfig, FinetuneConfig
from spatialfeat.data.augmentation import Augmentation
from spatialfeat.data.dataset import AugmentedFrame, EpochBatches, FrameDataset, make_loader
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import content_digest, decode_rgb, image_header, usual_jpeg_size
from spatialfeat.data.staging import StagedBatch, staged
from spatialfeat.data.transforms import Preprocessing, evaluation_transform, training_transform
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import mixed_provenances
from spatialfeat.features.schema import Provenance
from spatialfeat.features.writer import FeatureFileWriter

CPU = torch.device("cpu")
SMALL = Preprocessing.for_image_size(64)
SQUASHED = Preprocessing(resize="squash", resize_px=64, crop_px=64, interpolation="bicubic")


def jpeg(width: int, height: int, *, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    target = BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).convert(mode).save(target, "JPEG", **options)
    return target.getvalue()


CONTENTS = {
    "one": jpeg(120, 90, seed=1),
    "another of its size": jpeg(120, 90, seed=2, quality=95),
    "upright": jpeg(70, 160, seed=3),
    "large, so that boxes are resized alone": jpeg(400, 300, seed=4),
    "progressive": jpeg(100, 80, seed=5, progressive=True),
    "fine colours": jpeg(100, 80, seed=6, subsampling=0),
    "a PNG": png_bytes(seed=7, size_px=(130, 70)),
    "a large PNG": png_bytes(seed=8, size_px=(300, 260)),
    "grey": jpeg(90, 90, seed=9, mode="L"),
    "CMYK": jpeg(90, 90, seed=10, mode="CMYK"),
}
LEFT_TO_DEVICE = 6


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameTable:
    folder = tmp_path_factory.mktemp("frames")
    table = make_table(folder, [f"1_1_{number + 1}" for number in range(len(CONTENTS))], labels=[0, 1] * 5)
    table.images.path.mkdir()
    for number, content in enumerate(CONTENTS.values()):
        (table.images.path / f"1_1_{number + 1}.{'png' if b'PNG' in content[:8] else 'jpg'}").write_bytes(content)
    return table


def plainly(content: bytes) -> torch.Tensor:
    """(3, H, W) as torchvision's decoder on this device gives what it is left, and Pillow all else."""
    if usual_jpeg_size(content) is None:
        return torch.from_numpy(np.array(decode_rgb(content))).permute(2, 0, 1)
    return io.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), io.ImageReadMode.RGB)


def batches_of(table: FrameTable, workers: int, preprocessing: Preprocessing, **options: Any) -> list[StagedBatch]:
    dataset = FrameDataset(table, evaluation_transform(preprocessing), with_digests=True, jpeg_on_device=True)
    loader = make_loader(dataset, batch_size=4, workers=workers, device=CPU, **options)
    return list(staged(loader, CPU, preprocessing))


def test_it_is_the_usual_files_that_are_left_to_the_device() -> None:
    sizes = [usual_jpeg_size(content) for content in CONTENTS.values()]
    assert sizes == [(90, 120), (90, 120), (160, 70), (300, 400), (80, 100), (80, 100), None, None, None, None]
    whole = CONTENTS["one"]
    behind_adobe = whole[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0" + whole[2:]
    for other in (b"", whole[:-1], whole + b"\0", whole[:200], behind_adobe):
        assert usual_jpeg_size(other) is None


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00",  # a Huffman table of one code
        b"\xff\xcc\x00\x0a\x00\x10\x01\x10\x10\x05\x11\x05",  # the settings of arithmetic coding, unused
        b"\xff\xfe\x00\x12A comment \xff\xc0 ...",
        b"\xff\xff\xff",
    ],
    ids=["DHT", "DAC", "COM", "fill"],
)
def test_both_readers_of_headers_find_the_same_size_behind_other_segments(segment: bytes) -> None:
    whole = CONTENTS["one"]
    behind = whole[:2] + segment + whole[2:]
    assert decode_rgb(behind).size == (120, 90)
    assert image_header(behind) == (120, 90, "RGB")
    assert usual_jpeg_size(behind) == (90, 120)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("preprocessing", [SMALL, SQUASHED])
def test_frames_to_evaluate_are_those_that_the_worker_would_make(
    table: FrameTable, workers: int, preprocessing: Preprocessing
) -> None:
    found = batches_of(table, workers, preprocessing)
    assert [len(batch.labels) for batch in found] == [4, 4, 2]
    images = torch.cat([batch.images for batch in found])
    transform = evaluation_transform(preprocessing)
    for image, content in zip(images, CONTENTS.values(), strict=True):
        assert torch.equal(image, transform(plainly(content).permute(1, 2, 0).numpy()))
    assert np.concatenate([batch.batch.positions for batch in found]).tolist() == list(range(10))
    digests = [digest for batch in found for digest in batch.batch.digests]
    assert digests == list(map(content_digest, CONTENTS.values()))
    assert torch.cat([batch.labels for batch in found]).tolist() == [0, 1] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_to_train_on_have_the_augmentation_of_their_seed(table: FrameTable, workers: int) -> None:
    dataset = FrameDataset(table, training_transform(SMALL, on_device=True), jpeg_on_device=True)
    order = EpochBatches(len(table), 4, seed=5)
    seeds = {frame.position: frame.seed for batch in order.whole() for frame in batch}
    loader = make_loader(dataset, batch_size=4, batches=order, workers=workers, device=CPU)
    differences = []
    for batch, images, labels in staged(loader, CPU, SMALL):
        assert images.shape == (len(labels), 3, 64, 64)
        assert labels.tolist() == table.labels[batch.positions].tolist()
        for position, image in zip(batch.positions.tolist(), images, strict=True):
            pixels = plainly(list(CONTENTS.values())[position])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds[position])
                expected = Augmentation.draw(pixels)(pixels, 64)
            differences.append((image.int() - expected.int()).abs())
    together = torch.stack(differences)
    assert len(together) == len(table)
    assert together.max() <= 2
    assert float((together > 0).float().mean()) < 0.01


@pytest.mark.parametrize("training", [False, True])
def test_a_file_that_nothing_decodes_is_named_and_the_others_stay_in_order(training: bool, tmp_path: Path) -> None:
    table = make_table(tmp_path, [f"1_1_{number}" for number in (1, 2, 3)], labels=[2, 1, 0])
    table.images.path.mkdir()
    broken = bytearray(jpeg(120, 90))
    scan = broken.index(b"\xff\xda")
    broken[scan + 5 : scan + 10 : 2] = b"\x77" * 3  # Components that the frame does not have.
    for number, content in enumerate((jpeg(120, 90, seed=1), bytes(broken), jpeg(120, 90, seed=3)), start=1):
        (table.images.path / f"1_1_{number}.jpg").write_bytes(content)
    assert usual_jpeg_size(bytes(broken)) == (90, 120)
    transform = training_transform(SMALL, on_device=True) if training else evaluation_transform(SMALL)
    dataset = FrameDataset(table, transform, jpeg_on_device=True)
    samples = [dataset[AugmentedFrame(position, 7) if training else position] for position in range(3)]
    assert [sample.failure for sample in samples] == [None] * 3
    loader = make_loader(dataset, batch_size=3, workers=0, device=CPU)
    ((batch, images, labels),) = staged(loader, CPU, SMALL)
    assert labels.tolist() == [2, 0]
    assert batch.positions.tolist() == [0, 2]
    assert len(images) == 2
    ((position, reason),) = batch.failures
    assert position == 1
    with pytest.raises(SpatialfeatError, match=rf"row 3: .*1_1_2\.jpg.*{reason[:20]}"):
        dataset.refuse_failures(batch.failures)


def test_a_batch_without_any_frame_is_none(tmp_path: Path) -> None:
    table = make_table(tmp_path, ["1_1_1"], labels=[0])
    table.images.path.mkdir()
    (table.images.path / "1_1_1.jpg").write_bytes(b"no picture")
    dataset = FrameDataset(table, evaluation_transform(SMALL), jpeg_on_device=True)
    ((batch, _, labels),) = staged(make_loader(dataset, batch_size=2, workers=0, device=CPU), CPU, SMALL)
    assert len(labels) == 0
    assert "not a PNG or JPEG" in batch.failures[0][1]


@pytest.mark.parametrize("command", ["finetune", "extract", "evaluate", "predict"])
def test_without_a_gpu_or_with_a_cache_it_is_refused(
    command: str, quick_config: FinetuneConfig, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = [command, "--jpeg-decoder", "gpu", "--device", "cpu", "--img-dir", str(demo_dir / "images")]
    of_study = [
        "--train-csv",
        str(quick_config.train_csv),
        "--val-csv",
        str(quick_config.val_csv),
        "--weights",
        "random",
    ]
    cached = CliRunner().invoke(app, [*wanted, "--cache", "kept"])
    assert cached.exit_code == 2
    assert "--jpeg-decoder gpu and --cache" in cached.output
    if command not in ("evaluate", "predict"):  # Which read the weights first.
        result = CliRunner().invoke(app, wanted + (of_study if command == "finetune" else []))
        assert result.exit_code == 2
        assert "--jpeg-decoder gpu: needs a CUDA device" in " ".join(result.output.split())
        assert "leave it out" in " ".join(result.output.split())


def test_feature_files_say_it_and_do_not_mix(tmp_path: Path) -> None:
    usual = Provenance(
        weights_sha256="0" * 64, phase_names=("a", "b"), preprocessing="{}", precision="fp32", backbone="resnet50",
        layer="avgpool", layout="channel-first", group_by="video", fps=1.0,
    )  # fmt: skip
    files = []
    for number, provenance in enumerate((usual, replace(usual, jpeg_decoder="gpu"))):
        path = tmp_path / f"{number}.h5"
        writer = FeatureFileWriter(path, make_header(2, f"10{number}_1"), provenance, {})
        writer.append(np.ones((2, 4), np.float32), np.ones((2, 2), np.float32))
        writer.finish()
        files.append(FeatureFile(path))
    assert [file.provenance.jpeg_decoder for file in files] == ["cpu", "gpu"]
    with h5py.File(files[0].path) as file:
        assert "jpeg_decoder" not in file.attrs  # As in files of earlier versions.
    (conflict,) = mixed_provenances(files)
    assert "jpeg decoder" in str(conflict).replace("_", " ")
    with h5py.File(files[1].path, "r+") as file:
        file.attrs["jpeg_decoder"] = "abacus"
    with pytest.raises(SpatialfeatError, match=r"1\.h5: attribute jpeg_decoder is 'abacus'"):
        FeatureFile(files[1].path)


def test_the_default_is_the_processor() -> None:
    assert (ExtractConfig().jpeg_decoder, FinetuneConfig(num_classes=7).jpeg_decoder) == ("cpu", "cpu")
