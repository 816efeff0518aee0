"""On a CUDA device: the same features as on the CPU, repeatable training, whole files. `scripts/gpu_check` runs these.

A test here needs nothing but the mark: conftest.py skips it where there is no device, and fails it where
SPATIALFEAT_REQUIRE_GPU=1 says that there must be one.
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import settled_network, smooth_images
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchrun import torchrun

from spatialfeat import read_features
from spatialfeat.config import PRECISIONS, WEIGHTS_NAME, ExtractConfig, FinetuneConfig
from spatialfeat.data.augmentation import Augmentation, augment_batch
from spatialfeat.data.dataset import EpochBatches, FrameDataset, make_loader
from spatialfeat.data.frames import read_frames
from spatialfeat.data.images import decode_pixels
from spatialfeat.data.staging import decode_jpegs, staged
from spatialfeat.data.transforms import Preprocessing, training_transform
from spatialfeat.device import describe_device, select_device, use_true_float32
from spatialfeat.errors import SpatialfeatError
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult, finetune
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.network.weights import save_weights, snapshot
from spatialfeat.phases import default_phase_names
from spatialfeat.training.trainer import TrainingStep, make_optimizer

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
SMALL = Preprocessing.for_image_size(64)

# Relative norm and cosine to the CPU's float32 features that each precision must keep to, for every frame.
ALLOWED = {"fp32": (1e-3, 0.999999), "bf16": (1e-2, 0.9999), "fp16": (1e-2, 0.9999)}


def features_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """{frame id: (2048,) features} of all feature files."""
    return {
        frame_id: feature
        for video in read_features(folder)
        for frame_id, feature in zip(video.frame_ids, video.features(axes="time,channel"), strict=True)
    }


@pytest.fixture(scope="module")
def extraction(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """The test frames of the tiny data set, in batches that do not divide them. `out_dir` must be replaced.

    The network rounds as trained ones do; one that two epochs have hardly trained would magnify every rounding.
    """
    weights = tmp_path_factory.mktemp("settled") / "weights.pth"
    preprocessing = Preprocessing.for_image_size(64)
    model = settled_network(7, smooth_images(8, 64), preprocessing)
    save_weights(weights, snapshot(model), phase_names=default_phase_names(7), preprocessing=preprocessing, training={})
    return ExtractConfig(
        csvs=(str(demo_dir / "test_ResNet_DB.csv"),),
        img_dir=demo_dir / "images",
        weights=weights,
        batch_size=5,
        workers=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def cpu_features(extraction: ExtractConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    out_dir = tmp_path_factory.mktemp("cpu") / "features"
    extract(replace(extraction, precision="fp32", out_dir=out_dir))
    return features_of(out_dir)


def test_auto_takes_the_cuda_device() -> None:
    device = select_device("auto")
    assert device.type == "cuda"
    assert torch.cuda.get_device_name() in describe_device(device)


def test_float32_convolutions_are_not_rounded_to_tf32() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(64, 64, 3), torch.randn(2, 64, 16, 16)
    use_true_float32()
    with torch.no_grad():
        exact = layer.double()(images.double())
        rounded = layer.float().cuda()(images.cuda()).cpu().double()
    # TF32 keeps 10 bits of each factor and would miss by about 3e-4.
    assert float((rounded - exact).norm() / exact.norm()) < 1e-5


# "auto" stands for one of the others.
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_features_equal_those_of_the_cpu(
    extraction: ExtractConfig,
    cpu_features: dict[str, NDArray[np.float32]],
    precision: str,
    workers: int,
    tmp_path: Path,
) -> None:
    config = replace(extraction, device="cuda", precision=precision, workers=workers, out_dir=tmp_path / "out")
    if precision == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        with pytest.raises(SpatialfeatError, match="does not compute it natively"):
            extract(config)
        return
    result = extract(config)
    assert result.failed == {}
    found = features_of(tmp_path / "out")
    assert found.keys() == cpu_features.keys()
    largest_difference, smallest_cosine = ALLOWED[precision]
    for frame_id, expected in cpu_features.items():
        feature = found[frame_id].astype(np.float64)
        norm = np.linalg.norm(expected)
        assert np.linalg.norm(feature - expected) / norm < largest_difference
        assert feature @ expected / (np.linalg.norm(feature) * norm) > smallest_cosine


def test_features_do_not_depend_on_the_batch_size(extraction: ExtractConfig, tmp_path: Path) -> None:
    for batch_size in (1, 14):
        extract(
            replace(
                extraction, device="cuda", precision="fp32", batch_size=batch_size, out_dir=tmp_path / str(batch_size)
            )
        )
    one, other = features_of(tmp_path / "1"), features_of(tmp_path / "14")
    for frame_id, feature in one.items():
        assert np.linalg.norm(feature - other[frame_id]) / np.linalg.norm(feature) < 1e-4


def test_a_folder_begun_on_the_gpu_is_done_on_the_cpu_too(extraction: ExtractConfig, tmp_path: Path) -> None:
    """The device is no part of what a feature file is: the second run has nothing to do."""
    config = replace(extraction, precision="fp32", out_dir=tmp_path)
    written = extract(replace(config, device="cuda")).written
    again = extract(replace(config, device="cpu"))
    assert again.written == []
    assert again.skipped == written


@pytest.fixture(scope="module")
def gpu_study(quick_config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """Two epochs on the GPU, decoded by two processes."""
    return finetune(
        replace(quick_config, device="cuda", precision="fp32", workers=2, out_dir=tmp_path_factory.mktemp("gpu_study"))
    )


def test_the_same_seed_gives_the_same_training(
    gpu_study: FinetuneResult, quick_config: FinetuneConfig, tmp_path: Path
) -> None:
    again = finetune(replace(quick_config, device="cuda", precision="fp32", workers=2, out_dir=tmp_path))
    assert [record._replace(seconds=0) for record in again.history] == [
        record._replace(seconds=0) for record in gpu_study.history
    ]
    first, second = (torch.load(run.weights_path, weights_only=True) for run in (gpu_study, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_trained_on_the_gpu_are_plain_files_and_evaluate_alike_on_the_cpu(
    gpu_study: FinetuneResult, demo_dir: Path, extraction: ExtractConfig, tmp_path: Path
) -> None:
    """A state dict that remembered its device would not load on a machine without one."""
    state = torch.load(gpu_study.weights_path, weights_only=True)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    logits = {}
    for device in ("cpu", "cuda"):
        config = replace(extraction, weights=gpu_study.weights_path, precision="fp32", out_dir=tmp_path / device)
        extract(replace(config, device=device))
        videos = read_features(tmp_path / device)
        logits[device] = np.concatenate([video.logits(axes="time,channel") for video in videos])
    assert np.linalg.norm(logits["cuda"] - logits["cpu"]) / np.linalg.norm(logits["cpu"]) < 1e-3


def test_the_gpu_trains_the_same_network_as_the_cpu(
    gpu_study: FinetuneResult, quick_config: FinetuneConfig, tmp_path: Path
) -> None:
    """Same frames, same augmentation, same start: after one epoch only rounding lies between the two."""
    on_cpu = finetune(replace(quick_config, device="cpu", precision="fp32", epochs=1, out_dir=tmp_path))
    assert gpu_study.history[0].train_loss == pytest.approx(on_cpu.history[0].train_loss, rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_study_ends_as_one_that_was_never_interrupted(
    quick_config: FinetuneConfig, precision: str, tmp_path: Path
) -> None:
    """Optimizer, schedule, CUDA's random numbers and fp16's gradient scale come back from the state."""
    config = replace(quick_config, device="cuda", precision=precision, keep_state=True)
    whole = finetune(replace(config, out_dir=tmp_path / "whole"))
    finetune(replace(config, out_dir=tmp_path / "parts", epochs=1))
    parts = finetune(replace(config, out_dir=tmp_path / "parts", resume=True))
    assert [record._replace(seconds=0) for record in parts.history] == [
        record._replace(seconds=0) for record in whole.history
    ]
    first, second = (torch.load(run.weights_path, weights_only=True) for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_that_does_not_fit_is_told_with_what_to_lower(quick_config: FinetuneConfig, tmp_path: Path) -> None:
    """The allocator is held to 150 MB, which a ResNet-50 with gradients exceeds."""
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(150e6 / total_bytes)
    try:
        with pytest.raises(SpatialfeatError, match="--batch-size"):
            finetune(replace(quick_config, device="cuda", precision="fp32", freeze_until=0, out_dir=tmp_path))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def steps_of(model: PhaseResNet50, precision: str, sizes: list[int]) -> tuple[list[float], bool]:
    """Losses of training steps on batches of these sizes, and whether they were recorded."""
    model = copy.deepcopy(model).to(CUDA)
    model.freeze(6)
    step = TrainingStep(
        model, make_optimizer(model, 1e-4), nn.CrossEntropyLoss(), preprocessing=SMALL, precision=precision
    )
    losses = []
    for _ in range(2):
        step.start_epoch()
        images, labels = smooth_images(max(sizes), 64).to(CUDA), (torch.arange(max(sizes)) % 7).to(CUDA)
        losses += [step(images[-size:].roll(number, 3), labels[-size:]).loss for number, size in enumerate(sizes)]
    recorded = step._recorded is not None and step._recorded._graph is not None
    return [float(loss) for loss in losses], recorded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_the_usual_ones(
    precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Several whole batches, a smaller one in between and at the end, two epochs."""
    if precision == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        return
    use_true_float32()
    torch.backends.cudnn.deterministic = True
    model, sizes = settled_network(7, smooth_images(8, 64), SMALL), [8, 8, 8, 8, 5, 8, 8, 3]
    found, recorded = steps_of(model, precision, sizes)
    assert recorded
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    monkeypatch.setenv("SPATIALFEAT_CUDA_GRAPHS", "0")
    expected, recorded = steps_of(model, precision, sizes)
    assert not recorded
    assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 1e-2)
    assert len(set(found)) == len(found)  # Each step has its own batch and weights.


def test_a_recorded_evaluation_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    use_true_float32()
    model = settled_network(7, smooth_images(8, 64), SMALL).to(CUDA)
    batches = [smooth_images(8, 64).roll(number, 2).to(CUDA)[: 8 - number] for number in range(5)]
    network = InferenceNetwork(model, SMALL, "fp32", 8)
    found = [network(images) for images in batches]
    monkeypatch.setenv("SPATIALFEAT_CUDA_GRAPHS", "0")
    network = InferenceNetwork(model, SMALL, "fp32", 8)
    for images, outputs in zip(batches, found, strict=True):
        for one, other in zip(outputs, network(images), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_augmentation_on_the_gpu_equals_that_on_the_cpu() -> None:
    torch.manual_seed(0)
    frames = [torch.randint(0, 256, (3, 90 + 20 * number, 160), dtype=torch.uint8) for number in range(4)]
    drawn = [Augmentation.draw(frame) for frame in frames]
    cuts = torch.zeros(4, 200, 160, 3, dtype=torch.uint8)
    for cut, frame, one in zip(cuts, frames, drawn, strict=True):
        cut[: one.height, : one.width] = frame[:, one.top :, one.left :][:, : one.height, : one.width].permute(1, 2, 0)
    rows = torch.tensor([one.row(64, (one.height, one.width)) for one in drawn], dtype=torch.float64)
    use_true_float32()
    found = augment_batch(cuts.to(CUDA), rows.to(CUDA), 64).cpu().int()
    difference = (found - torch.stack([one(frame, 64) for one, frame in zip(drawn, frames, strict=True)]).int()).abs()
    assert difference.max() <= 2
    assert float((difference > 0).float().mean()) < 0.01


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_reach_the_gpu_in_order_and_whole(demo_dir: Path, workers: int) -> None:
    table = read_frames(demo_dir / "train_ResNet_DB.csv", demo_dir / "images", split="train")
    found = {}
    for device in (torch.device("cpu"), CUDA):
        dataset = FrameDataset(table, training_transform(SMALL, on_device=True))
        order = EpochBatches(len(table), 5, seed=3)
        loader = make_loader(dataset, batch_size=5, batches=order, workers=workers, device=device)
        found[device.type] = list(staged(loader, device, SMALL))
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        assert (there.images.device, there.labels.device) == (CUDA, CUDA)
        assert torch.equal(here.labels, there.labels.cpu())
        assert (here.images.int() - there.images.cpu().int()).abs().max() <= 2


def test_a_study_goes_on_on_the_other_device(quick_config: FinetuneConfig, tmp_path: Path) -> None:
    """The optimizer of a GPU computes in another way; what it knows is the same."""
    config = replace(quick_config, precision="fp32", keep_state=True, test_csv=None, out_dir=tmp_path)
    finetune(replace(config, device="cpu", epochs=1))
    finetune(replace(config, device="cuda", epochs=2, resume=True))
    assert len(finetune(replace(config, device="cpu", epochs=3, resume=True)).history) == 3


def test_two_processes_train_as_one(quick_config: FinetuneConfig, gpu_study: FinetuneResult, tmp_path: Path) -> None:
    """NCCL and SyncBatchNorm, where there are two GPUs; with one there is nothing to look at."""
    if torch.cuda.device_count() < 2:
        return
    config = quick_config
    options = [
        "--train-csv", config.train_csv, "--val-csv", config.val_csv, "--test-csv", config.test_csv or "",
        "--img-dir", config.img_dir, "--weights", config.weights, "--image-size", "64", "--device", "cuda",
        "--epochs", "2", "--batch-size", str(config.batch_size), "--workers", "0", "--no-tensorboard",
    ]  # fmt: skip
    run = torchrun("-m", "spatialfeat", "finetune", *options, "--out", tmp_path / "two", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "two" / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[1]) for line in lines[1:]]
    assert losses == pytest.approx([record.train_loss for record in gpu_study.history], rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_16"])
def test_another_encoder_has_the_cpus_features(name: str) -> None:
    """Folded or under autocast, recorded as a CUDA graph from the third call on, and whatever the batch."""
    use_true_float32()
    torch.manual_seed(0)
    backbone = find_backbone(name)
    model, preprocessing = backbone.build(3).eval(), backbone.preprocessing(224 if name == "vit_b_16" else 64)
    images = smooth_images(4, preprocessing.crop_px)
    expected = InferenceNetwork(model, preprocessing, "fp32", 4)(images)[0]
    model.to(CUDA)
    for precision, allowed in (("fp32", 1e-3), ("bf16", 5e-2)):
        network = InferenceNetwork(model, preprocessing, precision, 4)
        found = [network(images.to(CUDA))[0] for _ in range(4)]
        assert all(torch.equal(again, found[0]) for again in found)
        parts = torch.cat([network(part.to(CUDA))[0] for part in (images[:1], images[1:])])
        assert torch.equal(parts, found[0])
        distance = (found[0].cpu() - expected).norm(dim=1) / expected.norm(dim=1)
        assert float(distance.max()) < allowed


@pytest.fixture(scope="module")
def jpeg_study(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's frames as JPEG."""
    folder = tmp_path_factory.mktemp("jpeg")
    for path in (demo_dir / "images").glob("*.png"):
        Image.open(path).convert("RGB").resize((160, 120)).save(folder / f"{path.stem}.jpg", quality=95)
    return folder


def test_a_jpeg_decoded_by_the_gpu_is_nearly_that_of_the_processor_and_alone_the_same(jpeg_study: Path) -> None:
    paths = sorted(jpeg_study.iterdir())[:12]
    contents = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    together = decode_jpegs(contents, CUDA)
    for path, content, image in zip(paths, contents, together, strict=True):
        assert isinstance(image, torch.Tensor)
        (alone,) = decode_jpegs([content], CUDA)
        assert torch.equal(alone, image)  # type: ignore[arg-type]
        usual = torch.from_numpy(decode_pixels(path.read_bytes())).permute(2, 0, 1)
        assert float((image.cpu().int() - usual.int()).abs().float().mean()) < 2


def test_features_of_jpegs_decoded_by_the_gpu_are_nearly_the_usual_ones_whatever_the_batch(
    extraction: ExtractConfig, jpeg_study: Path, tmp_path: Path
) -> None:
    config = replace(extraction, img_dir=jpeg_study, device="cuda", precision="fp32")
    usual = extract(replace(config, out_dir=tmp_path / "usual"))
    found = {}
    for name, workers in (("by gpu", 2), ("again", 0)):
        result = extract(replace(config, jpeg_decoder="gpu", workers=workers, out_dir=tmp_path / name))
        assert (result.failed, result.written) == ({}, usual.written)
        found[name] = features_of(tmp_path / name)
    for frame_id, expected in features_of(tmp_path / "usual").items():
        assert np.array_equal(found["by gpu"][frame_id], found["again"][frame_id])
        assert np.linalg.norm(found["again"][frame_id] - expected) / np.linalg.norm(expected) < 0.1
    assert {file.provenance.jpeg_decoder for file in read_features(tmp_path / "again")} == {"gpu"}


def test_training_on_jpegs_decoded_by_the_gpu_is_nearly_the_usual_one(
    quick_config: FinetuneConfig, jpeg_study: Path, tmp_path: Path
) -> None:
    config = replace(quick_config, img_dir=jpeg_study, device="cuda", precision="fp32", workers=2, epochs=1)
    usual = finetune(replace(config, out_dir=tmp_path / "usual")).history[0]
    found = finetune(replace(config, jpeg_decoder="gpu", out_dir=tmp_path / "by gpu")).history[0]
    assert found.train_loss == pytest.approx(usual.train_loss, rel=0.02)
    described = json.loads((tmp_path / "by gpu" / WEIGHTS_NAME).with_suffix(".json").read_text())
    assert described["jpeg_decoder"] == "gpu"
