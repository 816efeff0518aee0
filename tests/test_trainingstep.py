"""One step of training against PyTorch's plain way of doing it."""

import copy

import pytest
import torch
from networks import settled_network, smooth_images
from torch import nn

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import choose_precision
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.training.trainer import TrainingStep

PREPROCESSING = Preprocessing.for_image_size(64)
NUM_CHILDREN = 10


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return smooth_images(6, 64), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def initial(batch: tuple[torch.Tensor, torch.Tensor]) -> PhaseResNet50:
    return settled_network(3, batch[0], PREPROCESSING)


def plain_steps(
    model: PhaseResNet50, freeze_until: int, batch: tuple[torch.Tensor, torch.Tensor], *, clip: float | None = None
) -> list[float]:
    """Two updates as anybody would write them. Returns the losses before each."""
    images, labels = batch
    for child in list(model.children())[:freeze_until]:
        child.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001)
    losses = []
    for _ in range(2):
        model.train()
        for child in list(model.children())[:freeze_until]:
            child.eval()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(normalize(images, PREPROCESSING)), labels)
        loss.backward()
        if clip is not None:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
            assert norm > clip
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= clip / norm
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_steps(
    model: PhaseResNet50,
    freeze_until: int,
    batch: tuple[torch.Tensor, torch.Tensor],
    *,
    precision: str = "fp32",
    clip: float | None = None,
) -> list[float]:
    model.freeze(freeze_until)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001)
    step = TrainingStep(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        preprocessing=PREPROCESSING,
        precision=precision,
        clip_grad_norm=clip,
    )
    step.start_epoch()
    return [step(*batch).loss.item() for _ in range(2)]


def moved(model: PhaseResNet50, initial: PhaseResNet50) -> torch.Tensor:
    """By how much each number of the state dict has changed, as one vector."""
    before = initial.state_dict()
    return torch.cat(
        [(v - before[k]).flatten().double() for k, v in model.state_dict().items() if v.is_floating_point()]
    )


@pytest.mark.parametrize("freeze_until", [0, 2, 4, 6, 8, 9])
def test_float32_equals_the_plain_way(
    initial: PhaseResNet50, batch: tuple[torch.Tensor, torch.Tensor], freeze_until: int
) -> None:
    expected, found = copy.deepcopy(initial), copy.deepcopy(initial)
    losses = our_steps(found, freeze_until, batch)
    assert losses == pytest.approx(plain_steps(expected, freeze_until, batch), rel=1e-4)
    wanted = moved(expected, initial)
    assert float((moved(found, initial) - wanted).norm() / wanted.norm()) < 1e-3


def test_clipping_equals_the_plain_way(initial: PhaseResNet50, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected, found = copy.deepcopy(initial), copy.deepcopy(initial)
    our_steps(found, 6, batch, clip=0.1)
    plain_steps(expected, 6, batch, clip=0.1)
    wanted = moved(expected, initial)
    assert float((moved(found, initial) - wanted).norm() / wanted.norm()) < 1e-3


def test_bf16_moves_the_weights_in_the_same_direction(
    initial: PhaseResNet50, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    if choose_precision("auto", torch.device("cpu")) != "bf16":
        pytest.skip("this processor has no bf16 instructions")
    expected, found = copy.deepcopy(initial), copy.deepcopy(initial)
    losses = our_steps(found, 6, batch, precision="bf16")
    plain = plain_steps(expected, 6, batch)
    assert losses == pytest.approx(plain, rel=0.1)
    assert losses != pytest.approx(plain, rel=1e-7)  # Really another precision.
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in found.state_dict().values())
    cosine = nn.functional.cosine_similarity(moved(found, initial), moved(expected, initial), dim=0)
    assert float(cosine) > 0.95


@pytest.mark.parametrize("freeze_until", [2, 5, 6])
def test_frozen_children_do_not_move(
    initial: PhaseResNet50, batch: tuple[torch.Tensor, torch.Tensor], freeze_until: int
) -> None:
    model = copy.deepcopy(initial)
    our_steps(model, freeze_until, batch)
    for index, (before, after) in enumerate(zip(initial.children(), model.children(), strict=True)):
        same = all(
            torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
        )
        has_state = bool(before.state_dict())
        assert same == (index < freeze_until or not has_state), index


def test_the_score_counts_hits(initial: PhaseResNet50, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = copy.deepcopy(initial)
    model.freeze(NUM_CHILDREN - 1)
    images, labels = batch
    model.train()
    predicted = model(normalize(images, PREPROCESSING)).argmax(dim=1)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    step = TrainingStep(model, optimizer, nn.CrossEntropyLoss(), preprocessing=PREPROCESSING, precision="fp32")
    step.start_epoch()
    assert int(step(images, labels).correct) == int((predicted == labels).sum())
