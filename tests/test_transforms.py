"""Preprocessing against torchvision's classic pipeline on Pillow images."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from spatialfeat.data.transforms import Preprocessing, evaluation_transform, normalize, training_transform


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (256, 456, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


@pytest.mark.parametrize("size_px", [(456, 256), (1280, 720), (200, 300), (160, 96)])
def test_evaluation_equals_the_classic_pipeline_within_one_level(image: Image.Image, size_px: tuple[int, int]) -> None:
    frame = image.resize(size_px)
    classic = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])(frame)
    ours = evaluation_transform(Preprocessing())(frame)
    assert (ours.shape, ours.dtype) == ((3, 224, 224), torch.uint8)
    assert (ours.int() - classic.int()).abs().max() <= 1


def test_normalize_equals_totensor_and_normalize(image: Image.Image) -> None:
    pixels = transforms.PILToTensor()(image)
    classic = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )(image)
    torch.testing.assert_close(normalize(pixels.unsqueeze(0), Preprocessing())[0], classic)


@pytest.mark.parametrize("size_px", [(456, 256), (320, 400)])
def test_training_augmentation_is_the_specified_one(image: Image.Image, size_px: tuple[int, int]) -> None:
    """From the same seed, the classic pipeline draws the same crops, flips, angles and colours."""
    frame = image.resize(size_px)
    classic = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            transforms.PILToTensor(),
        ]
    )
    ours = training_transform(Preprocessing())
    drawn = []
    for seed in range(20):
        torch.manual_seed(seed)
        expected = classic(frame).int()
        torch.manual_seed(seed)
        drawn.append(ours(frame).int())
        assert drawn[-1].shape == (3, 224, 224)
        difference = (drawn[-1] - expected).abs().float()
        assert difference.max() <= 4  # Each of four steps may round to the neighbouring level.
        assert difference.mean() < 0.5
    apart = [(one - other).abs().float().mean() for one, other in pairwise(drawn)]
    assert min(apart) > 5  # Whereas two seeds give quite other frames.


def test_training_augmentation_depends_on_the_seed_alone(image: Image.Image) -> None:
    transform = training_transform(Preprocessing(resize_px=73, crop_px=64))
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        draws.append(transform(image))
    assert draws[0].shape == (3, 64, 64)
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_image_size_keeps_the_specified_proportion() -> None:
    assert Preprocessing.for_image_size(224) == Preprocessing()
    assert Preprocessing.for_image_size(112).resize_px == 128
    assert Preprocessing.from_dict(Preprocessing().as_dict()) == Preprocessing()
