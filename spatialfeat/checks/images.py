"""Every image of a data set decoded once, in parallel: size, kind, a hash of its pixels, or why it cannot be read.

Rows against files: images that are missing, that cannot be read, or that no row names.

Sizes, kinds and contents of the images: what differs, what is too small, which pictures are there twice.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatialfeat.checks.findings import Finding, first_places
from spatialfeat.console import FrameBar, count_text, frame_bar
from spatialfeat.data.dataset import describe_broken_image
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import PNG_HEADER, ImageError, ImageFolder, decode_rgb, png_header
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key
from spatialfeat.signals import leave_signals_to_main_process

CHUNK = 32
"""Images per piece of work: the bar moves every second even where one takes 30 ms."""


class ImageFacts(NamedTuple):
    """What one file holds.

    pixels: a hash of the decoded RGB pixels and their size, 0 where they were not decoded. one_colour: all pixels are
    equal. reason: why it cannot be read, None if it can; the rest is then meaningless.
    """

    width: int = 0
    height: int = 0
    kind: str = ""
    num_bytes: int = 0
    pixels: int = 0
    one_colour: bool = False
    reason: str | None = None


@dataclass(eq=False)
class ImageScan:
    """F images. ids: (F,) str, sorted; widths, heights: (F,) int32; kinds: (F,) str; sizes_bytes: (F,) int64.

    pixels: (F,) uint64, equal for equal pictures, and one_colour: (F,) bool; both meaningless unless `decoded`.
    reasons: {index: why it cannot be read}. seconds: how long it took with `processes` of them.
    """

    ids: NDArray[Any]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    kinds: NDArray[Any]
    sizes_bytes: NDArray[np.int64]
    pixels: NDArray[np.uint64]
    one_colour: NDArray[np.bool_]
    reasons: dict[int, str]
    decoded: bool
    seconds: float
    processes: int

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(F,): which images could be read."""
        readable = np.ones(len(self.ids), dtype=bool)
        readable[list(self.reasons)] = False
        return readable


def scan_images(images: ImageFolder, ids: Sequence[str], *, workers: int, decode: bool) -> ImageScan:
    """Look at the image of every id (sorted, each once), which must be there.

    Args:
        workers: processes; 0 decodes in this one.
        decode: False reads only the ends of the files: damage in the middle and equal pictures stay unknown.

    Raises:
        SpatialfeatError: a decoding process died.
    """
    count = len(ids)
    scan = ImageScan(
        ids=np.array(ids, dtype=str),
        widths=np.zeros(count, dtype=np.int32),
        heights=np.zeros(count, dtype=np.int32),
        kinds=np.full(count, "", dtype="<U24"),
        sizes_bytes=np.zeros(count, dtype=np.int64),
        pixels=np.zeros(count, dtype=np.uint64),
        one_colour=np.zeros(count, dtype=bool),
        reasons={},
        decoded=decode,
        seconds=0.0,
        processes=max(1, workers),
    )
    start = time.monotonic()
    look = partial(_look_at_all, images, decode=decode)
    chunks = [list(ids[index : index + CHUNK]) for index in range(0, count, CHUNK)]
    with frame_bar(count, "decoding images" if decode else "looking at images") as bar, _mapper(workers, chunks) as run:
        _collect(run(look, chunks), scan, bar)
    scan.seconds = time.monotonic() - start
    return scan


def look_at(images: ImageFolder, name: str, *, decode: bool) -> ImageFacts:
    """The facts of one image."""
    try:
        if not decode:
            reason = images.look(name)
            if reason is not None:
                return ImageFacts(reason=reason)
            with images.file(name).open("rb") as file:
                return ImageFacts(*png_header(file.read(PNG_HEADER.size)), images.fingerprint(name)[0])
        content = images.read(name)
        rgb = decode_rgb(content)
        width, height, kind = png_header(content)
    except ImageError as error:
        return ImageFacts(reason=str(error))
    except OSError as error:
        return ImageFacts(reason=error.strerror or str(error))
    # Pixels, not the file's bytes: the same picture saved by another program is still the same picture.
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=8)
    digest.update(rgb.tobytes())
    one_colour = rgb.getcolors(maxcolors=1) is not None
    return ImageFacts(width, height, kind, len(content), int.from_bytes(digest.digest(), "little"), one_colour)


def _look_at_all(images: ImageFolder, ids: list[str], *, decode: bool) -> list[ImageFacts]:
    return [look_at(images, frame_id, decode=decode) for frame_id in ids]


@contextmanager
def _mapper(workers: int, chunks: Sequence[object]) -> Iterator[Any]:
    """`map` over the processes that are worth starting."""
    if workers == 0 or len(chunks) < 2:
        yield map
        return
    # Processes, not threads: Pillow lets other threads run while it inflates, but not while it converts and copies.
    pool = ProcessPoolExecutor(min(workers, len(chunks)), initializer=leave_signals_to_main_process)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise SpatialfeatError(
            "a decoding process died, perhaps for want of memory; pass fewer --workers, or 0"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(results: Any, scan: ImageScan, bar: FrameBar) -> None:
    index = 0
    for facts in results:
        for fact in facts:
            if fact.reason is not None:
                scan.reasons[index] = fact.reason
            scan.widths[index], scan.heights[index] = fact.width, fact.height
            scan.kinds[index], scan.sizes_bytes[index] = fact.kind, fact.num_bytes
            scan.pixels[index], scan.one_colour[index] = fact.pixels, fact.one_colour
            index += 1
        bar.advance(len(facts))


PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def present_ids(img_dir: Path, tables: Sequence[FrameTable]) -> tuple[list[str], set[str], list[Finding]]:
    """Which images are there: (ids with row and file, sorted; ids of all files; what is to be said of the folder)."""
    try:
        names = ImageFolder(img_dir).names()
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
    inside = [name for name in sorted(folders) if ImageFolder(img_dir / name).exists(missing[0])]
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


LEAK_SHARE = 0.01
"""From this share of a split's frames on, pictures that another split has too make its scores worthless."""

CLIPPED_KIND = "grey, 16 bit"


def size_counts(scan: ImageScan) -> dict[str, int]:
    """{`456x256`: images}, the most frequent first."""
    readable = scan.readable
    pairs = zip(scan.widths[readable].tolist(), scan.heights[readable].tolist(), strict=True)
    return {f"{width}x{height}": count for (width, height), count in Counter(pairs).most_common()}


def kind_counts(scan: ImageScan) -> dict[str, int]:
    """{`RGB`: images}, the most frequent first."""
    return dict(Counter(scan.kinds[scan.readable].tolist()).most_common())


def check_images(tables: Sequence[FrameTable], scan: ImageScan, resize_px: int) -> list[Finding]:
    """All findings about readable images. resize_px: what the shorter side is resized to."""
    findings = _check_kinds(scan) + _check_smallness(scan, resize_px) + _check_sizes(tables, scan)
    if scan.decoded:
        findings += _check_one_colour(scan) + _check_repeated(tables, scan)
    return findings


def _of_images(scan: ImageScan, which: NDArray[np.bool_], code: str, message: str, remedy: str) -> list[Finding]:
    """A finding about the images where `which` (F,), if there are any; `message` may hold {id}, the first of them."""
    ids = scan.ids[which & scan.readable].tolist()
    if not ids:
        return []
    text = message.format(id=ids[0])
    places = first_places(f"{frame_id}.png" for frame_id in ids)
    return [Finding(code=code, message=text, remedy=remedy, count=len(ids), unit="image", places=places)]


def _check_kinds(scan: ImageScan) -> list[Finding]:
    clipped = scan.kinds == CLIPPED_KIND
    odd = (scan.kinds != "RGB") & ~clipped
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in kind_counts(scan).items() if kind not in ("RGB", CLIPPED_KIND)
    )
    return [
        *_of_images(
            scan,
            clipped,
            "clipped-images",
            "{id}.png is 16-bit grey: conversion to RGB makes every value above 255 of 65535 white",
            "export these frames again with 8 bits",
        ),
        *_of_images(
            scan,
            odd,
            "image-modes",
            f"not plain RGB: {kinds}, such as {{id}}.png; they are converted, transparency is ignored",
            "nothing, if the pictures look right in a viewer that shows no transparency",
        ),
    ]


def _check_smallness(scan: ImageScan, resize_px: int) -> list[Finding]:
    shorter = np.minimum(scan.widths, scan.heights)
    smallest = int(shorter[scan.readable].min()) if scan.readable.any() else 0
    return _of_images(
        scan,
        shorter < resize_px,
        "small-images",
        f"the shorter side of {{id}}.png is below the {resize_px} px that frames are resized to (the smallest: "
        f"{smallest} px): they are blown up, which adds no detail",
        "export larger frames, or pass a smaller --image-size to check and finetune",
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows with a readable image. image: (N,) index into the scan. video, split: (N,) numbers into the names."""

    image: NDArray[np.int64]
    video: NDArray[np.int64]
    split: NDArray[np.int64]
    patient: NDArray[Any]
    ids: NDArray[Any]
    video_names: NDArray[Any]
    split_names: NDArray[Any]


def _rows(tables: Sequence[FrameTable], scan: ImageScan) -> _Rows:
    ids = np.concatenate([table.ids for table in tables])
    videos = np.concatenate([table.videos for table in tables])
    splits = np.concatenate([np.full(len(table), table.split) for table in tables])
    image = np.minimum(np.searchsorted(scan.ids, ids), len(scan.ids) - 1)
    there = (scan.ids[image] == ids) & scan.readable[image]
    video_names, video = np.unique(videos[there], return_inverse=True)
    split_names, split = np.unique(splits[there], return_inverse=True)
    patients = np.concatenate([table.patients for table in tables])[there]
    return _Rows(image[there], video, split, patients, ids[there], video_names, split_names)


def _check_sizes(tables: Sequence[FrameTable], scan: ImageScan) -> list[Finding]:
    rows = _rows(tables, scan)
    sizes = np.stack([rows.video, scan.widths[rows.image], scan.heights[rows.image]], axis=1)
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    sizes_of: dict[int, list[str]] = {}
    for (video, width, height), count in zip(found.tolist(), counts.tolist(), strict=True):
        sizes_of.setdefault(video, []).append(f"{count_text(count, 'frame')} of {width}x{height}")
    mixed = [
        f"video {rows.video_names[video]}: {', '.join(texts)}" for video, texts in sizes_of.items() if len(texts) > 1
    ]
    all_sizes = size_counts(scan)
    findings = []
    if mixed:
        findings.append(
            Finding(
                code="mixed-sizes",
                message=mixed[0],
                remedy="look whether these frames belong to the video, and were cropped alike",
                count=len(mixed),
                unit="video",
                places=first_places(mixed),
            )
        )
    elif len(all_sizes) > 1:
        texts = [f"{count_text(count, 'image')} of {size}" for size, count in all_sizes.items()]
        findings.append(
            Finding(
                code="several-sizes",
                message=", ".join(texts[:4]) + (", ..." if len(texts) > 4 else ""),
                remedy="nothing: each frame is resized by its shorter side, and its centre is used",
                count=len(texts),
                unit="size",
            )
        )
    return findings


def _check_one_colour(scan: ImageScan) -> list[Finding]:
    return _of_images(
        scan,
        scan.one_colour,
        "one-colour-images",
        "all pixels of {id}.png are equal: a black frame, or one that was blanked",
        "nothing, if it is meant so",
    )


def _check_repeated(tables: Sequence[FrameTable], scan: ImageScan) -> list[Finding]:
    """Equal pictures across splits, across videos, and within a video. Frames of one colour are left out."""
    rows = _rows(tables, scan)
    keep = ~scan.one_colour[rows.image]
    _, picture, copies = np.unique(scan.pixels[rows.image], return_inverse=True, return_counts=True)
    # Only pictures that several files hold: a file with rows in two CSVs is told of as a frame in two splits.
    files_of = np.bincount(picture[np.unique(rows.image, return_index=True)[1]], minlength=len(copies))
    keep &= files_of[picture] > 1
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(keep).tolist():
        members.setdefault(int(picture[row]), []).append(row)
    across: list[list[int]] = []
    within: list[list[int]] = []
    for group in members.values():
        (across if len({int(rows.video[row]) for row in group}) > 1 else within).append(group)
    leaked = _leaked_splits(rows, across)
    leaking: list[list[int]] = []
    others: list[list[int]] = []
    for group in across:
        (leaking if leaked and len({int(rows.split[row]) for row in group}) > 1 else others).append(group)
    return _leaks(rows, leaking, leaked) + _repeats(rows, others) + _stills(rows, within)


def _leaked_splits(rows: _Rows, groups: Sequence[Sequence[int]]) -> list[str]:
    """`12 of 40 frames of val (30.0 %)` for each split of which LEAK_SHARE of the frames are in another split too."""
    shared = np.zeros(len(rows.split_names), dtype=np.int64)
    for group in groups:
        splits = [int(rows.split[row]) for row in group]
        if len(set(splits)) > 1:
            np.add.at(shared, splits, 1)
    totals = np.bincount(rows.split, minlength=len(shared))
    return [
        f"{count} of {total} frames of {name} ({count / total:.1%})"
        for name, count, total in zip(rows.split_names.tolist(), shared.tolist(), totals.tolist(), strict=True)
        if count >= LEAK_SHARE * total
    ]


def _group_text(rows: _Rows, group: Sequence[int]) -> str:
    return " = ".join(f"{rows.ids[row]} ({rows.split_names[rows.split[row]]})" for row in group[:4])


def _leaks(rows: _Rows, groups: Sequence[Sequence[int]], leaked: Sequence[str]) -> list[Finding]:
    if not groups:
        return []
    return [
        Finding(
            code="leaked-images",
            message=f"the same picture: {_group_text(rows, groups[0])}; in all, {', '.join(leaked)} are in another "
            "split, too",
            remedy="find out which patient they are of, and keep each patient in one split",
            count=len(groups),
            unit="picture",
            places=first_places(_group_text(rows, group) for group in groups),
        )
    ]


def _repeats(rows: _Rows, groups: Sequence[Sequence[int]]) -> list[Finding]:
    if not groups:
        return []
    return [
        Finding(
            code="repeated-images",
            message=f"the same picture in several videos: {_group_text(rows, groups[0])}",
            remedy="nothing, if it is a title or a test picture; else one video was exported under two names",
            count=len(groups),
            unit="picture",
            places=first_places(_group_text(rows, group) for group in groups),
        )
    ]


def _stills(rows: _Rows, groups: Sequence[Sequence[int]]) -> list[Finding]:
    if not groups:
        return []
    frames = sum(map(len, groups))
    videos = Counter(str(rows.video_names[rows.video[group[0]]]) for group in groups)
    return [
        Finding(
            code="still-images",
            message=f"{count_text(frames, 'frame')} equal another one of their video: {_group_text(rows, groups[0])}",
            remedy="nothing, if the camera stood still or the video was paused",
            count=len(groups),
            unit="picture",
            places=first_places(f"video {video}: {count_text(count, 'picture')}" for video, count in videos.items()),
        )
    ]
