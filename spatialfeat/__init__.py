"""The spatial stage of surgical phase recognition."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spatialfeat.features.file import FeatureFile
    from spatialfeat.features.folder import read_features
    from spatialfeat.features.windows import FeatureWindows, collate_videos

__version__ = "0.1.0"

__all__ = ["FeatureFile", "FeatureWindows", "collate_videos", "read_features"]

_MODULES = {
    "FeatureFile": "spatialfeat.features.file",
    "FeatureWindows": "spatialfeat.features.windows",
    "collate_videos": "spatialfeat.features.windows",
    "read_features": "spatialfeat.features.folder",
}


def __getattr__(name: str) -> object:
    # Imported on first use: `import spatialfeat` and `spatialfeat --help` must not wait for torch, pandas or h5py.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
