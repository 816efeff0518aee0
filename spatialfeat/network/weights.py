"""Weights files: a plain ResNet-50 state dict, and beside it a JSON file with what the program knows besides.

`best_spatial_study_weights.pth` loads into anybody's ResNet-50; `best_spatial_study_weights.json` holds phase names,
preprocessing, epoch, validation accuracy and the SHA-256 of the weights file. A weights file without JSON works:
it is taken to follow the specification.

A file may come from a stranger. Loading executes nothing, and refuses what would unpack to gigabytes or be rounded.
"""

from __future__ import annotations

import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet50_Weights

from spatialfeat.config import check_phase_names, default_phase_names
from spatialfeat.data.ids import IdRule
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import atomic_path, file_sha256, json_text, read_json_object
from spatialfeat.network.backbone import RESNET50
from spatialfeat.network.resnet import PhaseResNet50

DESCRIPTION_SCHEMA = 1
MAX_DESCRIPTION_BYTES = 10_000_000
IMAGENET_WEIGHTS = ResNet50_Weights.IMAGENET1K_V1
IMAGENET_CLASSES = 1000
MAX_CLASSES = 100_000
MORE_CLASSES = "use weights that have more classes"
SAVE_AGAIN = "save the weights with torch.save(model.state_dict(), path)"

# What torch's restricted unpickler raises on bytes that no torch.save has written; it does not wrap them itself.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, AttributeError, TypeError, struct.error,
    AssertionError, ArithmeticError, MemoryError,
)  # fmt: skip

StateDict = Mapping[str, torch.Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded weights file: the model on the CPU in evaluation mode, and what is known of it."""

    path: Path
    model: PhaseResNet50
    num_classes: int
    phase_names: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str


def description_path(weights_path: Path) -> Path:
    """The JSON file beside a weights file."""
    return weights_path.with_suffix(".json")


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
            "backbone": RESNET50.name,
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
    described_names, preprocessing = read_description(weights_path, sha256, found_classes)
    check_phase_names(phase_names, found_classes)
    names = phase_names or described_names
    return Checkpoint(weights_path, model.eval(), found_classes, names, preprocessing, sha256)


def read_description(weights_path: Path, sha256: str, num_classes: int) -> tuple[tuple[str, ...], Preprocessing]:
    """(phase names, preprocessing) from the JSON file beside `weights_path`; the defaults where there is none.

    Raises:
        SpatialfeatError: it is unreadable, or describes weights with another hash, or of another number of classes.
    """
    path = description_path(weights_path)
    names, preprocessing = default_phase_names(num_classes), Preprocessing()
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise SpatialfeatError(f"{path}: is too large for a description of weights; restore or delete it")
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        logger.info("%s has no %s beside it: taking the specification's preprocessing", weights_path, path.name)
        return names, preprocessing
    except SpatialfeatError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SpatialfeatError(f"{path}: is not readable JSON ({error}); restore or delete it") from error
    if not isinstance(description, dict) or description.get("weights_sha256") != sha256:
        raise SpatialfeatError(
            f"{path}: describes other weights than {weights_path} (the SHA-256 differs); "
            "restore the file that belongs to it, or delete it to use the specification's defaults"
        )
    if description.get("schema") != DESCRIPTION_SCHEMA or description.get("num_classes") != num_classes:
        raise SpatialfeatError(f"{path}: unknown schema or class count; it was made by another version of spatialfeat")
    if description.get("backbone", RESNET50.name) != RESNET50.name:
        raise SpatialfeatError(
            f"{path}: describes weights of {str(description['backbone'])[:80]!r}, and this version reads "
            f"{RESNET50.name} only; pass the weights of one, or delete the description if they are"
        )
    if description.get("phase_names") is not None:
        names = description["phase_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SpatialfeatError(f"{path}: phase_names is no list of texts; correct or delete it")
        names = tuple(names)
        try:
            check_phase_names(names, num_classes)
        except SpatialfeatError as error:
            raise SpatialfeatError(f"{path}: {str(error).removeprefix('--phase-names: ')}") from error
    if description.get("preprocessing") is not None:
        try:
            preprocessing = Preprocessing.from_dict(description["preprocessing"])
        except (TypeError, AttributeError, ValueError) as error:
            raise SpatialfeatError(f"{path}: unknown preprocessing ({error})") from error
    return names, preprocessing


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
        state = torch.load(weights_path, map_location="cpu", weights_only=True, mmap=_is_sound_archive(weights_path))
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
            f"{weights_path}: is damaged, or holds other things than tensors and is not loaded for safety; {SAVE_AGAIN}"
        ) from error
    if not isinstance(state, Mapping):
        raise SpatialfeatError(f"{weights_path}: holds a {type(state).__name__}, not a state dict; {SAVE_AGAIN}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        nested = [key for key in ("state_dict", "model_state_dict", "model") if key in state]
        hint = f'; the state dict seems to be under "{nested[0]}"' if nested else ""
        raise SpatialfeatError(f"{weights_path}: is not a plain state dict{hint}; {SAVE_AGAIN}")
    _refuse_odd_tensors(weights_path, state)
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


def _is_sound_archive(path: Path) -> bool:
    """Whether `path` is a zip archive, as torch.save writes; one that would unpack to more than itself is refused.

    Raises:
        SpatialfeatError: packed entries, or entries that overlap. torch.save packs nothing.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # By this torch itself tells the two kinds of files apart.
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SpatialfeatError(f"{path}: is damaged ({error}); {SAVE_AGAIN}") from error
    declared_bytes = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or declared_bytes > path.stat().st_size:
        raise SpatialfeatError(
            f"{path}: is a packed archive that would unpack to {declared_bytes} bytes and is not loaded for safety; "
            f"{SAVE_AGAIN}"
        )
    return True


def _refuse_odd_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse keys that are no names, and tensors that are not plain numbers, all of them in the file.

    Raises:
        SpatialfeatError: with the tensor's name.
    """
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise SpatialfeatError(f"{path}: a tensor's name is {str(name)[:80]!r}, not a text; {SAVE_AGAIN}")
        kind = _odd_kind(tensor)
        if kind:
            raise SpatialfeatError(f"{path}: {name[:80]!r} is {kind}, not a plain tensor of numbers; {SAVE_AGAIN}")
        # An element may stand for many by a stride of 0, and one number become a tensor of terabytes.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise SpatialfeatError(
                f"{path}: {name[:80]!r} is declared as {tuple(tensor.shape)}, but the file holds less; {SAVE_AGAIN}"
            )


def _odd_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}, without its numbers"
    if tensor.is_quantized:
        return "quantized"
    return f"of type {tensor.dtype}" if tensor.is_complex() or tensor.dtype == torch.bool else None


def described_id_rule(weights_path: Path) -> IdRule | None:
    """How ids were read in training, as the JSON file beside the weights says; None where it does not say.

    Raises:
        SpatialfeatError: it names no rule.
    """
    path = description_path(weights_path)
    text = read_json_object(path).get("id_rule")
    try:
        return None if text is None else IdRule.parse(text)
    except SpatialfeatError as error:
        raise SpatialfeatError(f"{path}: id_rule {error}; restore or delete the file") from error


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


def convert_exactly(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """`tensor` in the type of `expected`: weights in half precision are taken, no number is rounded.

    Raises:
        SpatialfeatError: another shape or kind of numbers, numbers that would be rounded, NaN or infinity.
    """
    if tensor.shape != expected.shape:
        raise SpatialfeatError(
            f"{path}: is not a torchvision ResNet-50 ({name} is {tuple(tensor.shape)}, "
            f"expected {tuple(expected.shape)}); pass the state dict of one"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise SpatialfeatError(f"{path}: {name} is {tensor.dtype}, expected {expected.dtype}; {SAVE_AGAIN}")
    converted = tensor.detach().to(expected.dtype)
    if not torch.isfinite(converted).all():
        raise SpatialfeatError(f"{path}: {name} holds NaN or infinity; the training that made it has diverged")
    if not torch.equal(converted.to(tensor.dtype), tensor):
        raise SpatialfeatError(
            f"{path}: {name} is {tensor.dtype} and would be rounded to {expected.dtype}; "
            "save the weights of model.float()"
        )
    return converted


def _refuse_architecture(path: Path, why: str) -> None:
    raise SpatialfeatError(f"{path}: is not a torchvision ResNet-50 ({why}); pass the state dict of one")


def _prefix_hint(state: StateDict) -> str:
    if any(name.startswith("module.") for name in state):
        return "; its names start with `module.`: save model.module.state_dict() instead"
    return ""
