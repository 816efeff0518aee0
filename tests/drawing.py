"""Pictures that become files without being drawn, which takes half a second each, where tests do not look at them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(buffer, "PNG")
    return buffer.getvalue()


STAND_INS = {"png": _png(), "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'}
"""What is written for a picture of each form."""


def draw_nothing(patch: Callable[[object, str, object], None] = setattr) -> None:
    """From now on figures are made, but neither arranged nor drawn. patch: monkeypatch.setattr, to end that again."""

    def save(_: Figure, target: Path | io.BytesIO, *, format: str, **__: object) -> None:
        target.write_bytes(STAND_INS[format]) if isinstance(target, Path) else target.write(STAND_INS[format])

    patch(Figure, "savefig", save)
    patch(ConstrainedLayoutEngine, "execute", lambda *_: None)
