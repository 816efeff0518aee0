"""Rows against files: images that are missing, that cannot be read, or that no row names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.checking.findings import Finding, first_places
from spatialfeat.checking.imagescan import ImageScan
from spatialfeat.console import count_text
from spatialfeat.data.dataset import describe_broken_image
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import list_pngs
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def present_ids(img_dir: Path, tables: Sequence[FrameTable]) -> tuple[list[str], set[str], list[Finding]]:
    """Which images are there: (ids with row and file, sorted; ids of all files; what is to be said of the folder)."""
    try:
        names = list_pngs(img_dir)
    except SpatialfeatError as error:
        message, _, remedy = str(error).partition("; ")
        return [], set(), [Finding(code="no-image-folder", message=message, remedy=remedy, unit="folder")]
    wanted = set(_all_ids(tables).tolist())
    return sorted(wanted & names), names, []


def check_missing(img_dir: Path, tables: Sequence[FrameTable], names: set[str]) -> list[Finding]:
    """Rows without a file, and where their images may be instead. names: of `present_ids`."""
    rows = [(table, int(row)) for table in tables for row in np.flatnonzero(~np.isin(table.ids, list(names)))]
    if not rows:
        return []
    missing = [str(table.ids[row]) for table, row in rows]
    places = first_places(f"{table.where(row)}: {table.image_path(row)} does not exist" for table, row in rows)
    return [
        Finding(
            code="missing-image",
            message=places[0],
            remedy=_where_else(img_dir, missing, names) or "put the images there, pass --img-dir, or remove the rows",
            count=len(missing),
            unit="row",
            places=places,
        )
    ]


def _where_else(img_dir: Path, missing: Sequence[str], names: set[str]) -> str:
    """What to do about images that are there under a slightly other name or in another place; "" if they are not."""
    others: dict[str, str] = {}
    folders: list[str] = []
    with os.scandir(img_dir) as entries:
        for entry in entries:
            stem, suffix = Path(entry.name).stem, Path(entry.name).suffix
            if suffix.lower() in PICTURE_SUFFIXES and suffix != ".png":
                others[stem] = entry.name
            elif not suffix and entry.is_dir():
                folders.append(entry.name)
    found = [others[frame_id] for frame_id in missing if frame_id in others]
    if found:
        how = "rename to .png, in small letters," if found[0].lower().endswith(".png") else "convert to PNG"
        others_missing = len(missing) - len(found)
        rest = (
            f"; the other {others_missing} have no such file: restore it, or remove the row" if others_missing else ""
        )
        return f"{how} the {count_text(len(found), 'file')} such as {img_dir / found[0]}{rest}"
    spellings = {natural_key(name): name for name in names}
    respelt = [(frame_id, spellings[key]) for frame_id in missing if (key := natural_key(frame_id)) in spellings]
    if respelt:
        return (
            f"write {count_text(len(respelt), 'id')} as the file is named: {respelt[0][1]} for {respelt[0][0]}, "
            "with as many zeros"
        )
    inside = [name for name in sorted(folders) if (img_dir / name / f"{missing[0]}.png").exists()]
    if inside:
        return f"put all images into one folder: this one is in {img_dir / inside[0]}"
    if not names:
        there = f"it holds {count_text(len(folders), 'folder')}, such as {min(folders)}" if folders else "it has no PNG"
        return f"pass the folder of the frames as --img-dir: {there}"
    if not any(name in names for name in missing) and len(set(missing)) > 10 * len(names):
        return f"is {img_dir} the right --img-dir? It holds {count_text(len(names), 'PNG')}, such as {min(names)}.png"
    return ""


def check_unreadable(tables: Sequence[FrameTable], scan: ImageScan) -> list[Finding]:
    """Rows whose image cannot be decoded."""
    reason_of = {str(scan.ids[index]): reason for index, reason in scan.reasons.items()}
    places = [
        describe_broken_image(table, row, reason_of[frame_id])
        for table in tables
        for row, frame_id in enumerate(table.ids.tolist())
        if frame_id in reason_of
    ]
    if not places:
        return []
    return [
        Finding(
            code="unreadable-image",
            message=places[0],
            remedy="export these frames again, or remove their rows",
            count=len(places),
            unit="row",
            places=first_places(places),
        )
    ]


def check_unused(img_dir: Path, tables: Sequence[FrameTable], names: set[str]) -> list[Finding]:
    """Images without a row. names: of `present_ids`."""
    unused = sorted(names - set(_all_ids(tables).tolist()))
    if not unused:
        return []
    return [
        Finding(
            code="unused-images",
            message=f"{img_dir / unused[0]}.png is in no CSV",
            remedy="nothing, if they are frames without a label; else look for rows that were lost",
            count=len(unused),
            unit="image",
            places=first_places(f"{name}.png" for name in unused),
        )
    ]


def _all_ids(tables: Sequence[FrameTable]) -> NDArray[Any]:
    return np.concatenate([table.ids for table in tables]) if tables else np.array([], dtype=str)
