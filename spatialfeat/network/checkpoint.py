"""Weights files: a plain ResNet-50 state dict, and beside it a JSON file with what the program knows besides.

`best_spatial_study_weights.pth` loads into anybody's ResNet-50; `best_spatial_study_weights.json` holds phase names,
preprocessing, epoch, validation accuracy and the SHA-256 of the weights file. A weights file without JSON works:
it is taken to follow the specification. Loading never unpickles arbitrary objects.
"""

from __future__ import annotations

import logging
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet50_Weights

from spatialfeat.config import check_phase_names, default_phase_names
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import atomic_path, file_sha256, json_text
from spatialfeat.network.model import BACKBONE, PhaseResNet50
from spatialfeat.network.weightsdescription import (
    DESCRIPTION_SCHEMA,
    described_names,
    description_path,
    read_description,
    read_preprocessing,
)
from spatialfeat.network.weightsguard import convert_exactly, refuse_odd_tensors, refuse_zip_bomb

IMAGENET_WEIGHTS = ResNet50_Weights.IMAGENET1K_V1
IMAGENET_CLASSES = 1000
MAX_CLASSES = 100_000
MORE_CLASSES = "use weights that have more classes"

# What torch's restricted unpickler raises on bytes that no torch.save has written; it does not wrap them itself.
DAMAGED_FILE_ERRORS = (
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
    AssertionError,
    ArithmeticError,
    MemoryError,
)

logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded weights file: the model on the CPU in evaluation mode, and what is known of it."""

    path: Path
    model: PhaseResNet50
    num_classes: int
    phase_names: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str


def snapshot(model: PhaseResNet50) -> StateDict:
    """A copy of the weights on the CPU: references to the live ones would silently follow them."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def save_weights(
    weights_path: Path,
    weights: StateDict,
    *,
    phase_names: tuple[str, ...],
    preprocessing: Preprocessing,
    training: dict[str, Any],
) -> None:
    """Write a state dict and its description; each appears under its name only when whole.

    Both are complete before the first gets its name, so that a kill between the two is all but impossible.

    Args:
        weights: as `snapshot` gives them.
        training: JSON-ready facts about the training, such as epoch and validation accuracy.
    """
    with atomic_path(description_path(weights_path)) as temporary_description, atomic_path(weights_path) as temporary:
        save_tensors(weights, temporary)
        description = {
            "schema": DESCRIPTION_SCHEMA,
            "backbone": BACKBONE,
            "num_classes": len(phase_names),
            "phase_names": list(phase_names),
            "preprocessing": preprocessing.as_dict(),
            "weights_sha256": file_sha256(temporary),
            **training,
        }
        temporary_description.write_text(json_text(description), encoding="utf-8")


def load_checkpoint(
    weights_path: Path, *, num_classes: int | None = None, phase_names: tuple[str, ...] | None = None
) -> Checkpoint:
    """Load a fine-tuned weights file, with or without its description.

    Args:
        num_classes: what the caller expects; None accepts what the file holds.
        phase_names: names to use instead of the described ones.

    Raises:
        SpatialfeatError: missing or foreign file, another architecture or class count, or a description that belongs
            to other weights.
    """
    state = read_state_dict(weights_path)
    found_classes = _count_classes(weights_path, state)
    if num_classes not in (None, found_classes):
        raise SpatialfeatError(
            f"{weights_path}: has {found_classes} classes, not {num_classes}; pass --num-classes {found_classes} "
            "or other weights"
        )
    model = PhaseResNet50(found_classes)
    _load_state(model, state, weights_path)
    sha256 = file_sha256(weights_path)
    description = read_description(weights_path, sha256, found_classes)
    check_phase_names(phase_names, found_classes)
    names = phase_names or described_names(weights_path, description) or default_phase_names(found_classes)
    preprocessing = read_preprocessing(weights_path, description)
    return Checkpoint(weights_path, model.eval(), found_classes, tuple(names), preprocessing, sha256)


def initial_model(weights: str, num_classes: int, *, reset_classifier: bool = False) -> PhaseResNet50:
    """The network that training starts from. Draws new layers from torch's global random number generator.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1), "random", or the path of a ResNet-50 state dict. Weights
            of the 1000 ImageNet classes, or without a classifier, get a new classifier of `num_classes` rows.
        reset_classifier: also replace a classifier of another class count, instead of refusing it.
    """
    model = PhaseResNet50(num_classes)
    if weights == "random":
        return model
    path = Path("ImageNet weights" if weights == "imagenet" else weights)
    state = dict(download_imagenet_weights() if weights == "imagenet" else read_state_dict(path))
    rows = _count_classes(path, state) if "fc.weight" in state else None
    if rows in (None, IMAGENET_CLASSES) or reset_classifier:
        fresh = model.state_dict()
        state |= {"fc.weight": fresh["fc.weight"], "fc.bias": fresh["fc.bias"]}
    elif rows != num_classes:
        raise SpatialfeatError(
            f"--weights {path}: has {rows} classes, this study has {num_classes}; pass --num-classes {rows}, or "
            "--reset-classifier to keep the backbone and start a new classifier"
        )
    _load_state(model, state, path)
    return model


def download_imagenet_weights() -> StateDict:
    """torchvision's IMAGENET1K_V1 weights, from torch's cache folder or, the first time, from the network."""
    url = IMAGENET_WEIGHTS.url
    cached_path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        state: StateDict = IMAGENET_WEIGHTS.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise SpatialfeatError(
            f"cannot download the ImageNet weights ({error}); put the file {url} at {cached_path}, "
            "or pass --weights PATH (or --weights random to start without pretraining)"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise SpatialfeatError(
            f"{cached_path}: the cached ImageNet weights are damaged; delete the file to "
            f"download it again, or fetch {url} by hand"
        ) from error
    return state


def read_state_dict(weights_path: Path) -> StateDict:
    """Read {name: tensor} from a file without executing code in it.

    Raises:
        SpatialfeatError: no such file, not a PyTorch file, or holding anything but tensors.
    """
    try:
        # Mapped, not read: a record shorter than a tensor needs is then an error in every version of torch.
        state = torch.load(weights_path, map_location="cpu", weights_only=True, mmap=refuse_zip_bomb(weights_path))
    except SpatialfeatError:
        raise
    except FileNotFoundError as error:
        raise SpatialfeatError(
            f"{weights_path}: no such weights file; train with `spatialfeat finetune` or pass --weights PATH"
        ) from error
    except OSError as error:
        raise SpatialfeatError(f"{weights_path}: cannot be read ({error.strerror or error})") from error
    except DAMAGED_FILE_ERRORS as error:
        raise SpatialfeatError(
            # torch's own text advises to load the file unsafely; that advice is not passed on.
            f"{weights_path}: is damaged, or holds other things than tensors and is not loaded for safety; "
            "save the weights with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping):
        raise SpatialfeatError(
            f"{weights_path}: holds a {type(state).__name__}, not a state dict; "
            "save it with torch.save(model.state_dict(), path)"
        )
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        nested = [key for key in ("state_dict", "model_state_dict", "model") if key in state]
        hint = f'; the state dict seems to be under "{nested[0]}"' if nested else ""
        raise SpatialfeatError(
            f"{weights_path}: is not a plain state dict{hint}; save it with torch.save(model.state_dict(), path)"
        )
    refuse_odd_tensors(weights_path, state)
    return state


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """torch.save, so that equal content gives equal bytes and a full disk an OSError."""
    # Given a path, it would write the name into the file, and tell of a full disk in words of its own.
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        # What torch says when it cannot end the archive, because a write before has failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _count_classes(path: Path, state: StateDict) -> int:
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        _refuse_architecture(path, "it has no classifier `fc.weight`" + _prefix_hint(state))
    rows = int(state["fc.weight"].shape[0])
    if not 0 < rows <= MAX_CLASSES:
        _refuse_architecture(path, f"its classifier has {rows} rows")
    return rows


def _load_state(model: PhaseResNet50, state: StateDict, path: Path) -> None:
    """Copy `state` into `model`, refusing other names, shapes and values that are not finite."""
    expected = model.state_dict()
    # Files of very old PyTorch versions lack BatchNorm's counters, which nothing reads in this recipe.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    if missing or surplus:
        first = f"{missing[0]} is missing" if missing else f"{surplus[0][:80]} is surplus"
        _refuse_architecture(
            path, f"{first}, {len(missing)} missing and {len(surplus)} surplus in all" + _prefix_hint(state)
        )
    converted = {name: convert_exactly(path, name, tensor, expected[name]) for name, tensor in state.items()}
    model.load_state_dict(converted, strict=False)


def _refuse_architecture(path: Path, why: str) -> None:
    raise SpatialfeatError(f"{path}: is not a torchvision ResNet-50 ({why}); pass the state dict of one")


def _prefix_hint(state: StateDict) -> str:
    if any(name.startswith("module.") for name in state):
        return "; its names start with `module.`: save model.module.state_dict() instead"
    return ""
