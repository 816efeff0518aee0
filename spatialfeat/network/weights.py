"""Weights files: a plain state dict, and beside it a JSON file with what the program knows besides.

`best_spatial_study_weights.pth` loads into anybody's ResNet-50, or whatever network it is of;
`best_spatial_study_weights.json` holds the backbone, phase names, preprocessing, epoch, validation accuracy and the
SHA-256 of the weights file.

Weights from elsewhere are read too. The network may lie under any keys of nested dictionaries and under any common
prefix of its names; one line says where it was found. Without a JSON file, a warning says what is assumed.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spatialfeat.config import IMAGENET, ExtractConfig, WeightsSource
from spatialfeat.console import count_text
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.ids import IdRule
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.encoders import NOT_FINE_TUNED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import atomic_path, file_sha256, json_text
from spatialfeat.network.backbone import COUNTERS, RESNET50, Backbone, Hub, find_backbone
from spatialfeat.network.classifier import PhaseClassifier
from spatialfeat.network.tensorfiles import (
    DAMAGED_FILE_ERRORS,
    SAVE_AGAIN,
    StateDict,
    convert_exactly,
    loading_line,
    read_content,
    refuse_odd_tensors,
    save_tensors,
    tensors_by_keys,
)
from spatialfeat.phases import DEFAULT_NUM_PHASES, check_phase_names, default_phase_names, names_beside

DESCRIPTION_SCHEMA = 1
MAX_DESCRIPTION_BYTES = 10_000_000
IMAGENET_CLASSES = 1000
MAX_CLASSES = 100_000
MOST_PHASES = 1000
PROJECTED = "encoder_q"
"""Under this key or part of a prefix (MoCo), the classifier's names mean a projection, which is not read."""
MORE_CLASSES = "use weights that have more classes"

MANY_CLASSES, FAR_MORE = 20, 3
"""So many classes, and so many times as many as the labels reach, look like weights of another task."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded weights file: the model on the CPU in evaluation mode, and what is known of it.

    num_classes: number of phases, also where the weights have no classifier of them: the model's then has no rows.
    origin: what the weights are, where that is known without training them here; else "".
    """

    path: Path
    backbone: Backbone
    model: PhaseClassifier
    num_classes: int
    phase_names: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str
    origin: str = ""

    @property
    def num_logits(self) -> int:
        """Rows of the classifier: as many as phases, or 0."""
        return self.model.num_classes


def description_path(weights_path: Path) -> Path:
    """The JSON file beside a weights file."""
    return weights_path.with_suffix(".json")


def snapshot(model: PhaseClassifier) -> StateDict:
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
    backbone: str = RESNET50.name,
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
            "backbone": backbone,
            "num_classes": len(phase_names),
            "phase_names": list(phase_names),
            "preprocessing": preprocessing.as_dict(),
            "weights_sha256": file_sha256(temporary),
            **training,
        }
        temporary_description.write_text(json_text(description), encoding="utf-8")


def checkpoint_of(
    options: WeightsSource | ExtractConfig,
    *,
    num_classes: int | None,
    phase_names: tuple[str, ...] | None,
    needs_classifier: bool = True,
    csv: Path | None = None,
) -> Checkpoint:
    """`load_checkpoint` of what the options of a command say: weights, backbone and preprocessing."""
    backbone = backbone_of(options.weights, options.backbone)
    usual = backbone.usual_preprocessing
    return load_checkpoint(
        options.weights,
        backbone=backbone,
        num_classes=num_classes,
        phase_names=phase_names,
        preprocessing=Preprocessing.of_options(options.preprocessing, options.mean, options.std, usual),
        needs_classifier=needs_classifier,
        csv=csv,
    )


def backbone_of(weights_path: Path, name: str | None = None) -> Backbone:
    """The backbone of a weights file: as the JSON file beside it says, else `name`, else ResNet-50.

    Raises:
        SpatialfeatError: `name` is another one than the JSON file says, or there is no such backbone.
    """
    path, described = description_path(weights_path), _description(weights_path).get("backbone")
    if described is None:
        return find_backbone(name or RESNET50.name)
    if name is not None and name != described:
        raise SpatialfeatError(
            f"--backbone {name}: {path} says that these are weights of {str(described)[:80]!r}; leave the option out, "
            "or pass other weights"
        )
    try:
        return find_backbone(str(described))
    except SpatialfeatError as error:
        raise SpatialfeatError(f"{path}: {str(error).removeprefix('--')}") from error


def load_checkpoint(
    weights_path: Path,
    *,
    backbone: Backbone | None = None,
    num_classes: int | None = None,
    phase_names: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
    needs_classifier: bool = True,
    csv: Path | None = None,
) -> Checkpoint:
    """Load weights, with or without their description. The path `imagenet` stands for torchvision's, or timm's.

    Args:
        backbone: whose weights these are; None takes it from the description, and is ResNet-50 without one.
        num_classes: what the caller expects; None accepts what the file holds.
        phase_names: names to use instead of the described ones.
        preprocessing: for weights without a description.
        needs_classifier: refuse weights without a classifier. Otherwise there are as many phases as `num_classes`
            says, as there are names, or as the specification has.
        csv: of the frames. The phase_names.txt beside it gives the names that nothing else gives, if it has as many.

    Raises:
        SpatialfeatError: missing or foreign file, another architecture or class count, a description that belongs
            to other weights, or a preprocessing for weights that are described.
    """
    backbone = backbone or backbone_of(weights_path)
    has_names = _description(weights_path).get("phase_names") is not None
    is_imagenet = weights_path == Path(IMAGENET)
    found = _imagenet_weights(backbone) if is_imagenet else _read_network(weights_path, backbone)
    is_foreign = found.num_classes is not None and IMAGENET_CLASSES <= found.num_classes != num_classes
    if is_foreign and not needs_classifier and backbone.name != RESNET50.name:
        found = found.without_classifier()
    path, rows = found.path, found.num_classes
    if rows == IMAGENET_CLASSES and needs_classifier and num_classes is None and not has_names:
        raise SpatialfeatError(
            f"{path}: its classifier has {rows} classes, as ImageNet's, so it predicts no phase; fine-tune it first "
            f"(spatialfeat finetune --weights {weights_path}), or pass --num-classes {rows} if these are phases"
        )
    if rows is None and needs_classifier:
        why = f"has no classifier `{backbone.classifier}weight`{found.but_another_head}"
        raise SpatialfeatError(
            f"{path}: {why}, so it predicts no phase; fine-tune it first (spatialfeat finetune --weights "
            f"{weights_path} --reset-classifier)"
        )
    if rows is not None and num_classes not in (None, rows):
        raise SpatialfeatError(
            f"{path}: has {rows} classes, not {num_classes}; pass --num-classes {rows} or other weights"
        )
    if rows is not None and rows > MOST_PHASES:
        raise SpatialfeatError(
            f"{path}: has {rows} classes, more than the {MOST_PHASES} phases that a feature file names: these are "
            "weights of another task; start from them with spatialfeat finetune --reset-classifier"
        )
    if phase_names is None and num_classes in (None, rows) and csv and not has_names:
        beside = names_beside(csv)
        phase_names = beside if beside is not None and rows in (None, len(beside)) else None
    num_phases = rows or num_classes or (len(phase_names) if phase_names else DEFAULT_NUM_PHASES)
    check_phase_names(phase_names, num_phases)
    model = backbone.build_to_fill(num_phases)
    if rows is None:
        model.remove_classifier()
    _load_state(model, found)
    if rows is None:
        head = "ImageNet's classifier is left out" if is_imagenet else "there is no classifier of phases"
        left_out = f" ({found.other_head} are left out)" if found.beside and not is_imagenet else ""
        logger.info("%s: %s%s, so there are features and no logits", path, head, left_out)
    sha256 = file_sha256(path)
    described_names, described = (None, None) if is_imagenet else read_description(path, sha256, num_phases)
    if described is not None and preprocessing is not None:
        raise SpatialfeatError(
            f"{description_path(path)}: says how frames are to be prepared for these weights ({described.describe()}); "
            "leave out --preprocessing, --mean and --std"
        )
    names = phase_names or described_names or default_phase_names(num_phases)
    used = described or preprocessing or backbone.usual_preprocessing
    backbone.require_image_size(used.crop_px)
    origin = ""
    if is_imagenet:
        logger.warning("--weights %s: these features are not fine-tuned; every feature file says so", IMAGENET)
        origin = f"{pretrained_name(backbone)}, {NOT_FINE_TUNED}"
    elif described is None:
        names_are_known = phase_names is not None or described_names is not None
        _warn_of_assumptions(backbone, path, None if preprocessing else used, None if names_are_known else names)
        if backbone.name != RESNET50.name:
            source = f" of {backbone.encoder.source}" if backbone.encoder else ""
            origin = f"{path.name}{source}, {NOT_FINE_TUNED if rows is None else 'made elsewhere'}"
    return Checkpoint(path, backbone, model.eval(), num_phases, names, used, sha256, origin)


def warn_of_many_classes(checkpoint: Checkpoint, tables: Iterable[FrameTable]) -> None:
    """Warn where weights have far more classes than the labels: they are most likely those of another task."""
    highest = max((int(table.labels.max()) for table in tables if len(table)), default=-1)
    if highest >= 0 and checkpoint.num_logits > max(MANY_CLASSES, FAR_MORE * (highest + 1)):
        logger.warning(
            "%s: has %d classes, but no label is above %d: these look like weights of another task%s; pass weights "
            "that were fine-tuned on these phases",
            checkpoint.path,
            checkpoint.num_logits,
            highest,
            ", ImageNet" if checkpoint.num_logits == IMAGENET_CLASSES else "",
        )


def _warn_of_assumptions(
    backbone: Backbone, path: Path, preprocessing: Preprocessing | None, names: Sequence[str] | None
) -> None:
    """Say what is taken for granted of weights that nothing is known of; None is known."""
    assumed, options = [], []
    if preprocessing is not None:
        whose = "ImageNet's" if backbone is RESNET50 else f"the usual of {backbone.name}"
        assumed.append(f"{preprocessing.describe()} ({whose})")
        options.append("--preprocessing, --mean and --std")
    if names is not None:
        assumed.append(f"phases called {names[0]} to {names[-1]}")
        options.append("--phase-names")
    if assumed:
        logger.warning(
            "%s: no JSON beside it says how it was trained; assumed: %s; if that is wrong, so are all numbers: pass %s",
            path,
            "; ".join(assumed),
            " and ".join(options),
        )


def _description(weights_path: Path) -> dict[str, Any]:
    """The JSON file beside weights; {} where there is none, or one that does not describe weights.

    Raises:
        SpatialfeatError: it is too large, or no JSON.
    """
    path = description_path(weights_path)
    if weights_path == Path(IMAGENET) or not path.exists():
        return {}
    if path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise SpatialfeatError(f"{path}: is too large for a description of weights; restore or delete it")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpatialfeatError(f"{path}: is not readable JSON ({error}); restore or delete it") from error
    return description if isinstance(description, dict) and "weights_sha256" in description else {}


def read_description(
    weights_path: Path, sha256: str, num_classes: int
) -> tuple[tuple[str, ...] | None, Preprocessing | None]:
    """(phase names, preprocessing) from the JSON file beside `weights_path`; None for what it does not say.

    Raises:
        SpatialfeatError: it is unreadable, or describes weights with another hash, or of another number of classes.
    """
    path, description = description_path(weights_path), _description(weights_path)
    if not description:
        if path.exists():
            logger.info("%s: was not written by spatialfeat and is ignored", path)
        return None, None
    if description["weights_sha256"] != sha256:
        raise SpatialfeatError(
            f"{path}: describes other weights than {weights_path} (the SHA-256 differs); "
            "restore the file that belongs to it, or delete it to use the specification's defaults"
        )
    if description.get("schema") != DESCRIPTION_SCHEMA or description.get("num_classes") != num_classes:
        raise SpatialfeatError(f"{path}: unknown schema or class count; it was made by another version of spatialfeat")
    names, preprocessing = description.get("phase_names"), description.get("preprocessing")
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SpatialfeatError(f"{path}: phase_names is no list of texts; correct or delete it")
        names = tuple(names)
        try:
            check_phase_names(names, num_classes)
        except SpatialfeatError as error:
            raise SpatialfeatError(f"{path}: {str(error).removeprefix('--phase-names: ')}") from error
    try:
        return names, None if preprocessing is None else Preprocessing.from_dict(preprocessing)
    except (TypeError, AttributeError, ValueError) as error:
        raise SpatialfeatError(f"{path}: unknown preprocessing ({error})") from error


def described_id_rule(weights_path: Path) -> IdRule | None:
    """How ids were read in training, as the JSON file beside the weights says; None where it does not say.

    Raises:
        SpatialfeatError: it names no rule.
    """
    text = _description(weights_path).get("id_rule")
    try:
        return None if text is None else IdRule.parse(text)
    except SpatialfeatError as error:
        raise SpatialfeatError(
            f"{description_path(weights_path)}: id_rule {error}; restore or delete the file"
        ) from error


def initial_model(
    weights: str, num_classes: int, *, reset_classifier: bool = False, backbone: Backbone = RESNET50
) -> PhaseClassifier:
    """The network that training starts from. Draws new layers from torch's global random number generator.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1, or timm's), "random", or the path of a file with the network.
            Weights of the 1000 ImageNet classes, or of nothing but the layers before the classifier, get a new
            classifier of `num_classes` rows.
        reset_classifier: also replace a classifier of another class count, or another head, instead of refusing it.
    """
    model = backbone.build(num_classes)
    if weights == "random":
        return model
    found = _imagenet_weights(backbone) if weights == IMAGENET else _read_network(Path(weights), backbone)
    rows = found.num_classes
    if rows == IMAGENET_CLASSES or reset_classifier or (rows is None and not found.beside):
        fresh = model.state_dict()
        found.state.update({name: fresh[name] for name in fresh if name.startswith(backbone.classifier)})
    elif rows is None:
        raise SpatialfeatError(
            f"--weights {weights}: has no classifier `{backbone.classifier}weight`{found.but_another_head}; pass "
            "--reset-classifier to keep the backbone and start a new classifier"
        )
    elif rows != num_classes:
        raise SpatialfeatError(
            f"--weights {found.path}: has {rows} classes, this study has {num_classes}; pass --num-classes {rows}, or "
            "--reset-classifier to keep the backbone and start a new classifier"
        )
    _load_state(model, found)
    return model


def _download_pretrained(backbone: Backbone) -> tuple[Path, StateDict]:
    """(file, content) of what --weights imagenet stands for: in a cache folder or, the first time, from the network.

    Raises:
        SpatialfeatError: the backbone has weights of its own only, or the download fails: which file to put where.
    """
    if isinstance(backbone.pretrained, Hub):
        return _from_hub(backbone, backbone.pretrained)
    if backbone.pretrained is None:
        row = backbone.encoder
        where = f"fetch {row.files} from {row.source}, and pass its path" if row else "pass --weights PATH"
        raise SpatialfeatError(
            f"--weights {IMAGENET}, the default of finetune: there are no weights of ImageNet's 1000 classes for "
            f"{backbone.name}; {where} (or finetune --weights random, which starts without pretraining)"
        )
    url = backbone.pretrained.url
    cached_path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        state: StateDict = backbone.pretrained.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        raise SpatialfeatError(
            f"cannot download the ImageNet weights ({error}); put the file {url} at {cached_path}, "
            "or pass --weights PATH (or finetune --weights random, which starts without pretraining)"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise SpatialfeatError(
            f"{cached_path}: the cached ImageNet weights are damaged; delete the file to "
            f"download it again, or fetch {url} by hand"
        ) from error
    return cached_path, state


def _from_hub(backbone: Backbone, hub: Hub) -> tuple[Path, StateDict]:
    from huggingface_hub import hf_hub_download  # timm, without which there is no such backbone, needs it anyway.
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = Path(hf_hub_download(hub.repository, hub.file_name))
    except (OSError, HfHubHTTPError, ValueError, RuntimeError) as error:
        raise SpatialfeatError(
            f"cannot download the weights of {backbone.name} ({str(error).split(chr(10))[0][:200]}); fetch the file "
            f"{hub.file_name} of https://huggingface.co/{hub.repository} and pass --weights PATH (or --weights random "
            "to start without pretraining)"
        ) from error
    return path, read_content(path)


def pretrained_text(backbone: Backbone) -> str:
    """That a network is pretrained, and how. Of timm's weights nobody knows here which pictures they have seen."""
    pretrained = backbone.pretrained
    if isinstance(pretrained, Hub):
        return f"pretrained ({pretrained.repository})"
    return f"pretrained on ImageNet (torchvision's weights {pretrained.name})"


def pretrained_name(backbone: Backbone) -> str:
    """What --weights imagenet stands for: `torchvision's IMAGENET1K_V1`, or a repository of timm's."""
    pretrained = backbone.pretrained
    return pretrained.repository if isinstance(pretrained, Hub) else f"torchvision's {pretrained.name}"


class _Place(NamedTuple):
    """Where in a file a network is: in the dictionary that the keys lead to, under names with this prefix.

    naming: which of the backbone's other namings its names are of; "" for the network's own.
    """

    keys: tuple[str, ...]
    prefix: str
    naming: str

    def text(self) -> str:
        parts = [f"from {'.'.join(self.keys)[:80]!r}"] if self.keys else []
        parts += [f"without the prefix {self.prefix[:80]!r}"] if self.prefix else []
        return ", ".join(parts) or "as it is"

    def parts(self) -> set[str]:
        return {part for key in (*self.keys, self.prefix) for part in key.split(".")}


AS_IT_IS = _Place((), "", "")


@dataclass(frozen=True)
class _Network:
    """A network in a file. state: its tensors by its own names. beside: what else lies there, by full name.

    num_classes: rows of its classifier, None where there is none.
    """

    path: Path
    backbone: Backbone
    place: _Place
    state: dict[str, torch.Tensor]
    beside: StateDict
    num_classes: int | None

    def without_classifier(self) -> _Network:
        """Its classifier, if there is one, lies beside it then: what it has learned are no phases."""
        mine = {name: tensor for name, tensor in self.state.items() if name.startswith(self.backbone.classifier)}
        state = {name: tensor for name, tensor in self.state.items() if name not in mine}
        beside = {**self.beside, **{self.place.prefix + name: tensor for name, tensor in mine.items()}}
        return replace(self, state=state, beside=beside, num_classes=None)

    def refuse_if_incomplete(self) -> None:
        names, needed = _names(self.backbone)
        missing = [name for name in names if name in needed and name not in self.state]
        if missing:
            where = "" if self.place == AS_IT_IS else f", taken {self.place.text()}"
            fits = len(self.state)
            what = f"{missing[0]} is missing, {len(missing)} missing in all{where}; {fits} of {len(names)} are there"
            _refuse_architecture(self.path, self.backbone, what)

    @property
    def other_head(self) -> str:
        """`'fc.1.weight', 'fc.1.bias'`: what may be another head; "" if nothing is there."""
        names = [repr(name[:80]) for name in self.beside]
        return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")

    @property
    def but_another_head(self) -> str:
        return f", but {self.other_head}" if self.beside else ""


def _imagenet_weights(backbone: Backbone) -> _Network:
    path, state = _download_pretrained(backbone)
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith(backbone.classifier)}
    if backbone.name != RESNET50.name:  # Auxiliary classifiers, for example.
        trunk = {name: tensor for name, tensor in trunk.items() if name in _names(backbone)[0]}
    return _Network(path, backbone, AS_IT_IS, trunk, {}, None)


def _read_network(path: Path, backbone: Backbone) -> _Network:
    """The one network of the backbone in a file, wherever it lies; a line says where, if not in the usual place.

    Raises:
        SpatialfeatError: a file that cannot be read or holds none, or several of which none is preferred.
    """
    if backbone.encoder is not None and not path.exists():
        row = backbone.encoder
        raise SpatialfeatError(
            f"--weights {path}: there is no such file; fetch {row.files} from {row.source}, and pass its path with "
            "--weights"
        )
    content = read_content(path)
    if isinstance(content, torch.Tensor) or not hasattr(content, "keys"):
        raise SpatialfeatError(f"{path}: holds a {type(content).__name__}, not a state dict; {SAVE_AGAIN}")
    groups = tensors_by_keys(content)
    if not groups:
        raise SpatialfeatError(f"{path}: is not a plain state dict, and holds none; {SAVE_AGAIN}")
    needed = _names(backbone)[1]
    places = _places(groups, backbone)
    whole = [
        _network_at(path, place, names, groups[place.keys], backbone)
        for place, names in places.items()
        if needed <= names.keys()
    ]
    if not whole:
        # Report what is wrong with what comes nearest.
        place = max(places, key=lambda place: len(places[place]), default=_Place(next(iter(groups)), "", ""))
        refuse_odd_tensors(path, groups[place.keys])
        _network_at(path, place, places.get(place, {}), groups[place.keys], backbone).refuse_if_incomplete()
    network = _choose(path, whole)
    _refuse_other_trunk(network)
    _tell_place(network, whole)
    return network


@cache
def _names(backbone: Backbone) -> tuple[dict[str, None], frozenset[str]]:
    """The names of the network's tensors in order, and those that a file must have."""
    names = dict.fromkeys(backbone.build_empty(2).state_dict())
    optional = [name for name in names if name.endswith(COUNTERS) or name.startswith(backbone.classifier)]
    return names, frozenset(names) - frozenset(optional)


def _places(groups: Mapping[tuple[str, ...], StateDict], backbone: Backbone) -> Mapping[_Place, dict[str, str]]:
    """Every place with a tensor of the network: {the network's name for it: its name in the file}."""
    places: defaultdict[_Place, dict[str, str]] = defaultdict(dict)
    expected = _names(backbone)[0]
    deepest = max(name.count(".") for name in expected) + 1  # Names of other namings can be a little longer.
    for keys, tensors in groups.items():
        for name in map(str, tensors):
            pieces = name.rsplit(".", deepest + 1)
            for length, naming in product(range(1, len(pieces) + 1), ("", *backbone.namings)):
                rest = ".".join(pieces[-length:])
                own = _named(rest, naming, backbone)
                if own in expected:
                    places[_Place(keys, name.removesuffix(rest), naming)][own] = name
    return places


def _named(name: str, naming: str, backbone: Backbone) -> str:
    """The network's name for a name in a file, "" if there is none."""
    return backbone.namings[naming](name) if naming else name


def _network_at(
    path: Path, place: _Place, names: Mapping[str, str], tensors: StateDict, backbone: Backbone
) -> _Network:
    """names: as `_places` has them. tensors: all that lie there."""
    by_text = {str(name): tensor for name, tensor in tensors.items()}
    state = {own: by_text[name] for own, name in names.items()}
    refuse_odd_tensors(path, state)
    rows = None if PROJECTED in place.parts() else _count_classes(path, state, backbone)
    used = set(names.values())
    beside = {name: tensor for name, tensor in by_text.items() if name not in used}
    network = _Network(path, backbone, place, state, beside, rows)
    return network.without_classifier() if rows is None else network


def _count_classes(path: Path, state: StateDict, backbone: Backbone) -> int | None:
    """Rows of the classifier, None where there is none, or one that takes something else than the features."""
    weight, bias = (state.get(f"{backbone.classifier}{name}") for name in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != backbone.num_features:
        return None
    rows = int(weight.shape[0])
    if not 0 < rows <= MAX_CLASSES:
        _refuse_architecture(path, backbone, f"its classifier has {rows} rows")
    return rows


def _choose(path: Path, whole: Sequence[_Network]) -> _Network:
    """The network that is meant by a file with these. Equal ones count once."""

    def are_equal(first: _Network, second: _Network) -> bool:
        return first.state.keys() == second.state.keys() and all(
            torch.equal(tensor, second.state[name]) for name, tensor in first.state.items()
        )

    different: list[_Network] = []
    for network in whole:
        if not any(are_equal(network, other) for other in different):
            different.append(network)
    if len(different) == 1:
        return different[0]
    backbone = different[0].backbone
    for word in backbone.preferred:
        chosen = [network for network in different if word in network.place.parts()]
        if len(chosen) == 1:
            return chosen[0]
    places = " and ".join(network.place.text() for network in different)
    keys, prefix, _ = different[-1].place
    copy = str(path.with_name(f"{path.stem}-chosen.pth"))
    imports, load = loading_line(path)
    load += "".join(f"[{key!r}]" for key in keys)
    raise SpatialfeatError(
        f"{path}: holds {len(different)} different {backbone.kind}s, {places}, and does not say which to use; save the "
        f"one that is meant, for example the last:\n    import {imports}; state = {load}\n    "
        f"torch.save({{name: state[name] for name in state if name.startswith({prefix!r})}}, {copy!r})"
    )


def _tell_place(network: _Network, whole: Sequence[_Network]) -> None:
    place = network.place
    if place == AS_IT_IS and not network.beside:
        return
    texts = [f"the {network.backbone.kind} is taken {place.text()}"]
    if place.naming:
        texts.append(f"with {place.naming}")
    texts += [f"not {other.place.text()}" for other in whole if other is not network]
    if network.beside:
        first, *others = network.beside
        more = ", ..." if others else ""
        texts.append(f"left out: {count_text(1 + len(others), 'other tensor')} ({first[:80]!r}{more})")
    logger.info("%s: %s", network.path, "; ".join(texts))


def _refuse_other_trunk(network: _Network) -> None:
    """A ResNet-101 has every name of a ResNet-50, and more in the same stages."""
    place, backbone = network.place, network.backbone
    head = backbone.classifier.partition(".")[0]
    trunk = {name.partition(".")[0] for name in _names(backbone)[1]} - {head}
    own = {name.removeprefix(place.prefix): name for name in network.beside if name.startswith(place.prefix)}
    surplus = [name for name in own if _named(name, place.naming, backbone).partition(".")[0] in trunk]
    surplus = [
        name
        for name in surplus
        if not name.endswith(backbone.unused)
        and not (name.endswith(backbone.unused_zeros) and not network.beside[own[name]].any())
    ]
    if surplus:
        _refuse_architecture(network.path, backbone, f"{surplus[0][:80]} is surplus, {len(surplus)} surplus in all")


def _load_state(model: PhaseClassifier, network: _Network) -> None:
    """Copy the network's weights into `model`, refusing missing ones, other shapes and values that are not finite."""
    network.refuse_if_incomplete()
    expected, backbone = model.state_dict(), network.backbone
    tensors = dict(network.state)
    if network.place.naming:
        # What one code has as a linear layer is a 1 x 1 convolution in another: sides of one number make no difference.
        for name, tensor in tensors.items():
            if _sides(tensor) == _sides(expected[name]):
                tensors[name] = tensor.reshape(expected[name].shape)
    converted = {
        name: convert_exactly(network.path, name, tensor, expected[name], backbone.title)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(converted, strict=False)
    for name in expected.keys() - converted.keys():
        if name.endswith(COUNTERS):
            expected[name].zero_()


def _sides(tensor: torch.Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def _refuse_architecture(path: Path, backbone: Backbone, why: str) -> None:
    other = ", or say with --backbone which network it is" if backbone is RESNET50 else ""
    raise SpatialfeatError(f"{path}: is not {backbone.title} ({why}); pass the state dict of one{other}")
