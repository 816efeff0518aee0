"""The JSON file beside a weights file: phase names, preprocessing, and the SHA-256 of the weights it belongs to."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from spatialfeat.config import check_phase_names
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.model import BACKBONE

DESCRIPTION_SCHEMA = 1
MAX_DESCRIPTION_BYTES = 10_000_000

logger = logging.getLogger(__name__)


def description_path(weights_path: Path) -> Path:
    """The JSON file beside a weights file."""
    return weights_path.with_suffix(".json")


def read_description(weights_path: Path, sha256: str, num_classes: int) -> dict[str, Any]:
    """The content of the JSON file beside `weights_path`; empty where there is none.

    Raises:
        SpatialfeatError: it is unreadable, or describes weights with another hash, or of another number of classes.
    """
    path = description_path(weights_path)
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise SpatialfeatError(f"{path}: is too large for a description of weights; restore or delete it")
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        logger.info("%s has no %s beside it: taking the specification's preprocessing", weights_path, path.name)
        return {}
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
    if description.get("backbone", BACKBONE) != BACKBONE:
        raise SpatialfeatError(
            f"{path}: describes weights of {str(description['backbone'])[:80]!r}, and this version reads {BACKBONE} "
            "only; pass the weights of one, or delete the description if they are"
        )
    return description


def described_names(weights_path: Path, description: dict[str, Any]) -> tuple[str, ...] | None:
    """The phase names of a description, or None if it has none. Raises SpatialfeatError for names that cannot be."""
    names = description.get("phase_names")
    if names is None:
        return None
    path = description_path(weights_path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpatialfeatError(f"{path}: phase_names is no list of texts; mend or delete it")
    try:
        check_phase_names(tuple(names), description["num_classes"])
    except SpatialfeatError as error:
        raise SpatialfeatError(f"{path}: {str(error).removeprefix('--phase-names: ')}") from error
    return tuple(names)


def read_preprocessing(weights_path: Path, description: dict[str, Any]) -> Preprocessing:
    """The preprocessing of a description, the specification's if it has none. Raises SpatialfeatError if unknown."""
    stored = description.get("preprocessing")
    if stored is None:
        return Preprocessing()
    try:
        return Preprocessing.from_dict(stored)
    except (TypeError, AttributeError, ValueError) as error:
        raise SpatialfeatError(f"{description_path(weights_path)}: unknown preprocessing ({error})") from error
