"""The augmentation of a batch on a device against torchvision's own steps, frame by frame, and against its draws."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import ks_2samp
from tinydata import make_table, png_bytes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from spatialfeat.config import FinetuneConfig
from spatialfeat.data.augmentation import BRIGHTNESS, CONTRAST, MAX_CUT, SATURATION, Augmentation, augment_batch
from spatialfeat.data.dataset import EpochBatches, FrameBatch, FrameDataset, make_loader
from spatialfeat.data.staging import staged
from spatialfeat.data.transforms import Preprocessing, training_transform
from spatialfeat.device import augments_on_device
from spatialfeat.errors import SpatialfeatError
from spatialfeat.finetune import FinetuneResult, finetune

CPU = torch.device("cpu")
SMALL = Preprocessing.for_image_size(64)


def frame(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """A picture with edges of all strengths, (3, height, width) uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels: torch.Tensor = functional.pil_to_tensor(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)))
    return pixels


def step_by_step(pixels: torch.Tensor, drawn: Augmentation, size_px: int) -> torch.Tensor:
    """torchvision's functionals with these parameters; rotation on Pillow images, as the specification's way does."""
    crop = functional.resized_crop(
        pixels, drawn.top, drawn.left, drawn.height, drawn.width, [size_px, size_px], antialias=True
    )
    flipped = functional.horizontal_flip(crop) if drawn.flip else crop
    result = functional.pil_to_tensor(functional.rotate(functional.to_pil_image(flipped), drawn.angle))
    adjust = {
        BRIGHTNESS: functional.adjust_brightness,
        CONTRAST: functional.adjust_contrast,
        SATURATION: functional.adjust_saturation,
    }
    for which, factor in drawn.colours:
        result = adjust[which](result, factor)
    assert isinstance(result, torch.Tensor)
    return result


def box_of(pixels: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    return pixels[:, drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]


def in_a_batch(frames: list[torch.Tensor], drawn: list[Augmentation], size_px: int) -> torch.Tensor:
    """`augment_batch` of the cut boxes, among rubbish."""
    height, width = max(one.height for one in drawn), max(one.width for one in drawn)
    cuts = torch.full((len(frames), height, width, 3), 255, dtype=torch.uint8)
    for cut, pixels, one in zip(cuts, frames, drawn, strict=True):
        cut[: one.height, : one.width] = box_of(pixels, one).permute(1, 2, 0)
    rows = [one.row(size_px, (one.height, one.width)) for one in drawn]
    return augment_batch(cuts, torch.tensor(rows, dtype=torch.float64), size_px)


@pytest.mark.parametrize("size_px", [64, 224])
def test_a_batch_equals_torchvision_frame_by_frame(size_px: int) -> None:
    """Frames of different sizes in one batch, enlarged and shrunk."""
    sizes = [(456, 256), (96, 64), (300, 500), (720, 405), (64, 64), (1280, 720)]
    frames = [frame(*size, seed) for seed, size in enumerate(sizes * 2)]
    torch.manual_seed(0)
    drawn = [Augmentation.draw(pixels) for pixels in frames]
    found = in_a_batch(frames, drawn, size_px)
    assert (found.shape, found.dtype) == ((12, 3, size_px, size_px), torch.uint8)
    expected = torch.stack([step_by_step(pixels, one, size_px) for pixels, one in zip(frames, drawn, strict=True)])
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 2
    resized_in_integers = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert float((difference > 0).float().mean()) < (0.005 if resized_in_integers else 0.05)


@pytest.mark.parametrize("angle", [-10.0, -3.7, 0.0, 0.01, 6.2, 10.0])
@pytest.mark.parametrize("size_px", [63, 64])
def test_crop_flip_and_rotation_equal_torchvision(angle: float, size_px: int) -> None:
    frames = [frame(96, 80, seed) for seed in range(3)]
    unchanged = ((BRIGHTNESS, 1.0), (SATURATION, 1.0), (CONTRAST, 1.0))
    flips = (False, True, True)
    boxes = [(0, 0, 80, 96), (3, 5, size_px, size_px), (70, 1, 7, 90)]
    drawn = [
        Augmentation(*box, flip=flip, angle=angle, colours=unchanged) for box, flip in zip(boxes, flips, strict=True)
    ]
    expected = torch.stack([step_by_step(pixels, one, size_px) for pixels, one in zip(frames, drawn, strict=True)])
    difference = (in_a_batch(frames, drawn, size_px).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert float((difference > 0).float().mean()) < 0.05


@pytest.mark.parametrize("size_px", [(456, 256), (64, 300)])
def test_the_draws_are_those_of_torchvision(size_px: tuple[int, int]) -> None:
    """The same pixels, to the bit, as v2's transforms in a row from the same seed."""
    transforms = v2.Compose(
        [
            v2.RandomResizedCrop(64, antialias=True),
            v2.RandomHorizontalFlip(),
            functional.to_pil_image,
            v2.RandomRotation(10),
            functional.pil_to_tensor,
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    pixels = frame(*size_px)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = transforms(pixels)
        torch.manual_seed(seed)
        assert torch.equal(Augmentation.draw(pixels)(pixels, 64), expected)


def test_the_draws_are_distributed_as_those_of_v2() -> None:
    """Other seeds on both sides, so that only the distributions can agree."""
    pixels, count = frame(456, 256), 1500
    torch.manual_seed(1)
    drawn = [Augmentation.draw(pixels) for _ in range(count)]
    torch.manual_seed(2)
    crop, rotation, jitter = v2.RandomResizedCrop(64), v2.RandomRotation(10), v2.ColorJitter(0.2, 0.2, 0.2)
    crops, turns, colours = ([step.make_params([pixels]) for _ in range(count)] for step in (crop, rotation, jitter))
    pairs = {
        name: ([getattr(one, name) for one in drawn], [one[name] for one in crops])
        for name in ("top", "left", "height", "width")
    }
    pairs["angle"] = ([one.angle for one in drawn], [one["angle"] for one in turns])
    for which, name in ((BRIGHTNESS, "brightness"), (CONTRAST, "contrast"), (SATURATION, "saturation")):
        pairs[name] = ([dict(one.colours)[which] for one in drawn], [one[f"{name}_factor"] for one in colours])
    assert {name: pair for name, pair in pairs.items() if ks_2samp(*pair).pvalue < 1e-3} == {}
    assert abs(np.mean([one.flip for one in drawn]) - 0.5) < 0.05
    orders = Counter(tuple(which for which, _ in one.colours) for one in drawn)
    assert len(orders) == 6
    assert all(abs(number / count - 1 / 6) < 0.05 for number in orders.values())


def test_a_large_box_is_resized_before_it_is_handed_over() -> None:
    """What workers hand over is bounded, and the result the same."""
    image = functional.to_pil_image(frame(1280, 720))
    here, later = training_transform(SMALL), training_transform(SMALL, on_device=True)
    for seed in range(6):
        torch.manual_seed(seed)
        pixels, row = later.finish(later.fixed(image))
        assert pixels.shape[1] * pixels.shape[2] <= MAX_CUT * 64**2
        found = augment_batch(pixels.permute(1, 2, 0)[None], torch.tensor([row], dtype=torch.float64), 64)[0]
        torch.manual_seed(seed)
        assert (found.int() - here(image).int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_the_same_by_both_ways(workers: int, tmp_path: Path) -> None:
    table = make_table(tmp_path, [f"1_1_{number}" for number in range(1, 12)], labels=[0, 1, 2] * 3 + [0, 1])
    table.images.path.mkdir()
    for row in range(len(table)):
        size = (120, 90) if row % 2 else (70, 160)
        table.image_path(row).write_bytes(png_bytes(seed=row, size_px=size))
    found = {}
    for on_device in (False, True):
        dataset = FrameDataset(table, training_transform(SMALL, on_device=on_device))
        order = EpochBatches(len(table), 4, seed=5)
        loader = make_loader(dataset, batch_size=4, batches=order, workers=workers, device=CPU)
        found[on_device] = list(staged(loader, CPU, SMALL))
    assert [len(batch.labels) for batch in found[True]] == [4, 4, 3]
    for here, there in zip(found[False], found[True], strict=True):
        assert there.images.shape == (len(there.labels), 3, 64, 64)
        assert (here.images.int() - there.images.int()).abs().max() <= 2
        assert torch.equal(here.labels, there.labels)
        assert torch.equal(there.labels, torch.from_numpy(table.labels[there.batch.positions]))


def test_to_a_gpu_a_batch_is_sent_while_the_one_before_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA; what arrives is tested on a device, in test_gpu.py."""
    log: list[str] = []

    class FakeEvent:
        def record(self, _stream: object) -> None:
            log.append("sent")

    class FakeStream:
        def wait_event(self, _event: FakeEvent) -> None:
            log.append("awaited")

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: FakeStream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr("spatialfeat.data.staging._sent", lambda values, _device: values)
    nothing_left = np.zeros((2, 0))
    batches = [
        FrameBatch(
            torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
            np.array([number] * 2),
            np.zeros(2),
            [],
            [],
            nothing_left,
            nothing_left,
        )
        for number in range(3)
    ]
    found = []
    for batch in staged(batches, torch.device("meta"), SMALL):
        log.append("computed")
        found.append(int(batch.labels[0]))
    assert found == [0, 1, 2]
    assert log == ["sent", "sent", "awaited", "computed", "sent", "awaited", "computed", "awaited", "computed"]


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_a_study_by_batches_is_the_same_study(
    quick_config: FinetuneConfig, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPATIALFEAT_AUGMENT", "device")
    (record,) = finetune(replace(quick_config, epochs=1, test_csv=None, out_dir=tmp_path)).history
    assert record.train_loss == pytest.approx(small_study.history[0].train_loss, rel=1e-3)
    assert record.val_loss == pytest.approx(small_study.history[0].val_loss, rel=1e-2)


def test_a_misspelt_switch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not augments_on_device(CPU)
    assert augments_on_device(torch.device("cuda"))
    monkeypatch.setenv("SPATIALFEAT_AUGMENT", "gpu")
    with pytest.raises(SpatialfeatError, match="SPATIALFEAT_AUGMENT=gpu: must be device or workers; unset it"):
        augments_on_device(CPU)
