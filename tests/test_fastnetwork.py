"""The folded network against the plain one, and against float64."""

import pytest
import torch
from networks import settled_network, smooth_images
from torch import nn

from spatialfeat.data.transforms import Preprocessing, normalize
from spatialfeat.device import choose_precision
from spatialfeat.network import resnet as fastnetwork
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.network.resnet import FoldedStages, PhaseResNet50

PREPROCESSING = Preprocessing.for_image_size(96)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return smooth_images(5, 96)


@pytest.fixture(scope="module")
def model(images: torch.Tensor) -> PhaseResNet50:
    return settled_network(7, images, PREPROCESSING)


@pytest.fixture(params=["as this machine is", "public operators only"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "public operators only":
        monkeypatch.setattr(fastnetwork, "has_onednn", lambda device: False)


def features_and_logits(model: PhaseResNet50, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What torchvision's own forward pass computes, tapped behind the pooling: (B, 2048) and (B, C)."""
    tapped: list[torch.Tensor] = []
    with model.avgpool.register_forward_hook(lambda module, inputs, output: tapped.append(output.flatten(1))):
        logits = model(x)
    return tapped[0], logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative distance of any frame."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.usefixtures("operators")
def test_float32_equals_the_plain_network(model: PhaseResNet50, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = features_and_logits(model, normalize(images, PREPROCESSING))
    found = InferenceNetwork(model, PREPROCESSING, "fp32", 8)(images)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert relative(one, other) < 1e-5


@pytest.mark.usefixtures("operators")
def test_bf16_is_within_a_percent(model: PhaseResNet50, images: torch.Tensor) -> None:
    if choose_precision("auto", CPU) != "bf16":
        pytest.skip("this processor has no bf16 instructions")
    with torch.no_grad():
        expected = features_and_logits(model.double(), normalize(images, PREPROCESSING).double())[0].float()
    model.float()
    features, logits = InferenceNetwork(model, PREPROCESSING, "bf16", 8)(images)
    assert features.dtype == logits.dtype == torch.float32
    assert 1e-4 < relative(features, expected) < 0.01  # Really computed in bf16, and well.
    assert float(nn.functional.cosine_similarity(features, expected).min()) > 0.9999


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("num_children", [4, 5, 6, 7, 8])
def test_the_first_stages_alone(model: PhaseResNet50, images: torch.Tensor, num_children: int) -> None:
    with torch.no_grad():
        expected = normalize(images, PREPROCESSING)
        for child in list(model.children())[:num_children]:
            expected = child(expected)
        found = FoldedStages(model, num_children, PREPROCESSING, "fp32")(images)
        rest = model.logits_from(found.clone(), num_children)
        logits = model(normalize(images, PREPROCESSING))
    assert found.shape == expected.shape
    assert relative(found.flatten(1), expected.flatten(1)) < 1e-5
    assert relative(rest, logits) < 1e-4


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frames_bits_do_not_depend_on_the_frames_beside_it(
    model: PhaseResNet50, images: torch.Tensor, precision: str
) -> None:
    if precision == "bf16" != choose_precision("auto", CPU):
        pytest.skip("this processor has no bf16 instructions")
    network = InferenceNetwork(model, PREPROCESSING, precision, batch_size=5)
    together = network(images)
    alone = [network(images[i : i + 1]) for i in range(5)]
    reversed_order = network(images.flip(0))
    for index, whole in enumerate(together):
        assert torch.equal(torch.cat([one[index] for one in alone]), whole)
        assert torch.equal(reversed_order[index].flip(0), whole)


def test_the_batch_size_hardly_matters(model: PhaseResNet50, images: torch.Tensor) -> None:
    found = [InferenceNetwork(model, PREPROCESSING, "fp32", batch_size)(images)[0] for batch_size in (1, 3, 64)]
    assert relative(found[0], found[2]) < 1e-5
    assert relative(found[1], found[2]) < 1e-5


def test_it_keeps_the_weights_of_its_making(images: torch.Tensor) -> None:
    model = PhaseResNet50(3).eval()
    network = InferenceNetwork(model, PREPROCESSING, "fp32", 8)
    before = network(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for one, other in zip(network(images), before, strict=True):
        assert torch.equal(one, other)


def test_it_leaves_the_model_alone(model: PhaseResNet50, images: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = images.clone()
    InferenceNetwork(model, PREPROCESSING, "fp32", 8)(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(images, copy)
