"""Which CSV is which split: told by its name, or by the user as `SPLIT=PATH`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from spatialfeat.config import TEST_CSV, TRAIN_CSV, VAL_CSV
from spatialfeat.errors import SpatialfeatError

UNNAMED_SPLIT = "all"
"""The split of frames that come from a folder, without a CSV."""

logger = logging.getLogger(__name__)

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def named_csvs(csvs: Sequence[str]) -> list[tuple[str, Path]]:
    """(split, path) of each `PATH` or `SPLIT=PATH`; with none given, those of the specification's files that are here.

    Raises:
        SpatialfeatError: a file name that does not tell its split, or a file given twice.
    """
    if not csvs:
        defaults = [("train", TRAIN_CSV), ("val", VAL_CSV), ("test", TEST_CSV)]
        for _, path in defaults:
            if not path.exists():
                logger.info("no %s here: leaving it out", path)
        return [(split, path) for split, path in defaults if path.exists()]
    named = [_split_and_path(text) for text in csvs]
    paths = [path.resolve() for _, path in named]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise SpatialfeatError(f"--csv {named[index][1]}: is given twice; give each file once")
    return named


def _split_and_path(text: str) -> tuple[str, Path]:
    match = re.fullmatch(r"(?P<split>[A-Za-z0-9_-]+)=(?P<path>.+)", text)
    if match and not Path(text).exists():
        return match["split"], Path(match["path"]).expanduser()  # The shell expands no `~` behind `=`.
    path = Path(text)
    words = re.split(r"[^a-z]+", path.stem.lower())
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(splits) != 1:
        raise SpatialfeatError(
            f"--csv {text}: the file's name does not tell which split it is (train, val or test); "
            f"write --csv SPLIT={text}"
        )
    return splits.pop(), path
