"""The image files: missing or without a row, and, each decoded once in parallel, unreadable, too small, or equal."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from spatialfeat.checks.findings import Finding, finding_of_error
from spatialfeat.config import CheckConfig
from spatialfeat.console import count_text, frame_bar
from spatialfeat.data.dataset import describe_broken_image, folders_of
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import CLIPPED_KIND, ImageError, ImageFolder, decode_rgb, image_header
from spatialfeat.device import MAX_WORKERS, usable_cores
from spatialfeat.errors import SpatialfeatError
from spatialfeat.network.backbone import find_backbone
from spatialfeat.signals import leave_signals_to_main_process, signals_held

LEAK_SHARE = 0.01
"""From this share of a split's frames on, pictures that another split has too make its scores worthless."""

CHUNK = 32
"""Images that a process is given at once: the bar moves every second even where one takes 30 ms."""

INCOMPLETE_IDS = {"unreadable-csv", "bad-id", "repeated-id"}
"""With these findings, images may lack a row only because the row was refused."""


class ImageFacts(NamedTuple):
    """What one file holds.

    pixels: a hash of the decoded RGB pixels and their size, "" where they were not decoded. one_colour: all pixels are
    equal. reason: why it cannot be read, "" if it can; the rest is then meaningless.
    """

    width: int = 0
    height: int = 0
    kind: str = ""
    num_bytes: int = 0
    pixels: str = ""
    one_colour: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageScan:
    """What all images of a data set hold. facts: {name of the image: its facts}, in the order of the names.

    decoded: whether pixels were looked at. seconds: how long it took with `processes` of them.
    """

    facts: dict[str, ImageFacts]
    decoded: bool
    seconds: float
    processes: int

    @property
    def readable(self) -> dict[str, ImageFacts]:
        """Of the images that can be read."""
        return {name: facts for name, facts in self.facts.items() if not facts.reason}

    @property
    def sizes(self) -> dict[str, int]:
        """{`456x256`: images}, the most frequent first."""
        return dict(Counter(f"{facts.width}x{facts.height}" for facts in self.readable.values()).most_common())

    @property
    def kinds(self) -> dict[str, int]:
        """{`RGB`: images}, the most frequent first."""
        return dict(Counter(facts.kind for facts in self.readable.values()).most_common())

    @property
    def num_bytes(self) -> int:
        return sum(facts.num_bytes for facts in self.facts.values())

    def as_dict(self) -> dict[str, Any]:
        """As check.json has it."""
        return {
            "checked": len(self.facts),
            "decoded": self.decoded,
            "unreadable": len(self.facts) - len(self.readable),
            "bytes": self.num_bytes,
            "sizes": self.sizes,
            "kinds": self.kinds,
            "seconds": round(self.seconds, 3),
            "processes": self.processes,
        }


class _Frame(NamedTuple):
    """A row of a CSV whose image can be read."""

    frame_id: str
    video: str
    split: str
    image_name: str
    image: ImageFacts

    def __str__(self) -> str:
        return f"{self.frame_id} ({self.split})"


def check_images(
    config: CheckConfig, tables: Sequence[FrameTable], findings: Sequence[Finding]
) -> tuple[ImageScan | None, list[Finding]]:
    """Look at every image that a row names. Returns what they hold, None if there is no such image, and findings.

    findings: what reading the CSVs has found.
    """
    if not tables:
        return None, []
    images = ImageFolder(config.img_dir)
    try:
        present = images.names({"", *folders_of(images, tables)})
    except SpatialfeatError as error:
        return None, [finding_of_error("no-image-folder", error)]
    named = {name for _, _, name in _rows(tables)}
    found = [*_check_missing(images, tables, present)]
    if INCOMPLETE_IDS.isdisjoint(finding.code for finding in findings):
        found += _check_unused(images, sorted(present - named))
    if not named & present:
        return None, found

    workers = min(usable_cores(), MAX_WORKERS) if config.workers is None else config.workers
    scan = scan_images(images, sorted(named & present), workers=workers, decode=config.decode)
    readable = scan.readable
    files = {images.file_name(name): facts for name, facts in readable.items()}
    frames = [
        _Frame(str(table.ids[row]), str(table.videos[row]), table.split, name, readable[name])
        for table, row, name in _rows(tables)
        if name in readable
    ]
    found += [*_check_unreadable(tables, scan), *_check_kinds(files, scan.kinds)]
    preprocessing = find_backbone(config.backbone).preprocessing(config.image_size_px)
    found += _check_sizes(files, frames, scan.sizes, preprocessing.resize_px)
    if scan.decoded:
        found += _check_contents(files, frames)
    return scan, found


def scan_images(images: ImageFolder, names: Sequence[str], *, workers: int, decode: bool) -> ImageScan:
    """Look at images (sorted, each once), which must be there.

    Args:
        workers: processes; 0 decodes in this one.
        decode: False reads only the ends of the files: damage in the middle and equal pictures stay unknown.

    Raises:
        SpatialfeatError: a decoding process died.
    """
    start = time.monotonic()
    facts: dict[str, ImageFacts] = {}
    look = partial(look_at, images, decode=decode)
    title = "decoding images" if decode else "looking at images"
    with frame_bar(len(names), title) as advance, closing(_in_parallel(look, names, workers)) as found:
        for name, of_image in zip(names, found, strict=True):
            facts[name] = of_image
            advance(1)
    return ImageScan(facts=facts, decoded=decode, seconds=time.monotonic() - start, processes=max(1, workers))


def _in_parallel(
    look: Callable[[str], ImageFacts], names: Sequence[str], workers: int
) -> Generator[ImageFacts, None, None]:
    """`map(look, names)` by as many processes as are worth starting. To be closed, which ends them."""
    if workers == 0 or len(names) <= CHUNK:
        yield from map(look, names)
        return
    # Processes, not threads: Pillow lets other threads run while it inflates, but not while it converts and copies.
    pool = ProcessPoolExecutor(min(workers, math.ceil(len(names) / CHUNK)), initializer=leave_signals_to_main_process)
    try:
        with signals_held():  # An exception in the middle of a fork would be printed and lost.
            found = pool.map(look, names, chunksize=CHUNK)
        yield from found
    except BrokenProcessPool as error:
        raise SpatialfeatError(
            "a decoding process died, perhaps for want of memory; pass fewer --workers, or 0"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def look_at(images: ImageFolder, name: str, *, decode: bool) -> ImageFacts:
    """The facts of one image."""
    try:
        if not decode:
            width, height, kind = images.look(name)
            if kind:
                return ImageFacts(width, height, kind, images.fingerprint(name)[0])
        # Also what the first bytes do not say, of a JPEG with a picture or a profile before its header.
        content = images.read(name)
        rgb = decode_rgb(content)
        width, height, kind = image_header(content)
    except ImageError as error:
        return ImageFacts(reason=str(error))
    except OSError as error:
        return ImageFacts(reason=error.strerror or str(error))
    if not decode:
        return ImageFacts(width, height, kind, len(content))
    # Pixels, not the file's bytes: the same picture saved by another program is still the same picture.
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=8)
    digest.update(rgb.tobytes())
    one_colour = rgb.getcolors(maxcolors=1) is not None
    return ImageFacts(width, height, kind, len(content), digest.hexdigest(), one_colour)


def _rows(tables: Sequence[FrameTable]) -> Iterator[tuple[FrameTable, int, str]]:
    """(table, row, name of its image) of all rows."""
    return ((table, row, name) for table in tables for row, name in enumerate(table.image_names.tolist()))


def _check_missing(images: ImageFolder, tables: Sequence[FrameTable], present: set[str]) -> Iterator[Finding]:
    """Rows without a file, and where their images may be instead. present: names of all images in the folder."""
    missing = [(table, row, name) for table, row, name in _rows(tables) if name not in present]
    if missing:
        places = [f"{table.where(row)}: {images.shown(name)} does not exist" for table, row, name in missing]
        elsewhere = images.where_else([name for _, _, name in missing])
        remedy = elsewhere or "put the images there, pass --img-dir, or remove the rows"
        yield Finding("missing-image", places[0], remedy, places)


def _check_unused(images: ImageFolder, unused: Sequence[str]) -> Iterator[Finding]:
    """Images without a row."""
    if unused:
        remedy = "nothing, if they are frames without a label; else look for rows that were lost"
        places = [images.file_name(name) for name in unused]
        yield Finding("unused-images", f"{images.file(unused[0])} is in no CSV", remedy, places)


def _check_unreadable(tables: Sequence[FrameTable], scan: ImageScan) -> Iterator[Finding]:
    """Rows whose image cannot be decoded."""
    reasons = {name: facts.reason for name, facts in scan.facts.items() if facts.reason}
    places = [describe_broken_image(table, row, reasons[name]) for table, row, name in _rows(tables) if name in reasons]
    if places:
        yield Finding("unreadable-image", places[0], "export these frames again, or remove their rows", places)


def _check_kinds(files: dict[str, ImageFacts], kinds: dict[str, int]) -> Iterator[Finding]:
    clipped = [file for file, facts in files.items() if facts.kind == CLIPPED_KIND]
    if clipped:
        message = f"{clipped[0]} is 16-bit grey: conversion to RGB makes every value above 255 of 65535 white"
        yield Finding("clipped-images", message, "export these frames again with 8 bits", clipped)
    odd_kinds = {kind: count for kind, count in kinds.items() if kind not in ("RGB", CLIPPED_KIND)}
    odd = [file for file, facts in files.items() if facts.kind in odd_kinds]
    if odd:
        counts = ", ".join(f"{count} {kind}" for kind, count in odd_kinds.items())
        message = f"not plain RGB: {counts}, such as {odd[0]}; they are converted, transparency is ignored"
        remedy = "nothing, if the pictures look right in a viewer that shows no transparency"
        yield Finding("image-modes", message, remedy, odd)


def _check_sizes(
    files: dict[str, ImageFacts], frames: Sequence[_Frame], sizes: dict[str, int], resize_px: int
) -> Iterator[Finding]:
    small = [file for file, facts in files.items() if min(facts.width, facts.height) < resize_px]
    if small:
        smallest = min(min(files[file].width, files[file].height) for file in small)
        message = (
            f"the shorter side of {small[0]} is below the {resize_px} px that frames are resized to (the smallest: "
            f"{smallest} px): they are enlarged, which adds no detail"
        )
        remedy = "export larger frames, or pass a smaller --image-size to check and finetune"
        yield Finding("small-images", message, remedy, small)
    counts = Counter((frame.video, frame.image.width, frame.image.height) for frame in frames)
    texts: dict[str, list[str]] = {}
    for (video, width, height), count in sorted(counts.items()):
        texts.setdefault(video, []).append(f"{count_text(count, 'frame')} of {width}x{height}")
    mixed = [f"video {video}: {', '.join(of_video)}" for video, of_video in texts.items() if len(of_video) > 1]
    if mixed:
        remedy = "check whether these frames belong to the video, and were cropped alike"
        yield Finding("mixed-sizes", mixed[0], remedy, mixed)
    elif len(sizes) > 1:
        all_sizes = [f"{count_text(count, 'image')} of {size}" for size, count in sizes.items()]
        message = ", ".join(all_sizes[:4]) + (", ..." if len(all_sizes) > 4 else "")
        remedy = "nothing: each frame is resized by its shorter side, and its centre is used"
        yield Finding("several-sizes", message, remedy, total=len(all_sizes))


def _check_contents(files: dict[str, ImageFacts], frames: Sequence[_Frame]) -> Iterator[Finding]:
    """Images of one colour; and other pictures that are equal across splits, across videos, and within a video."""
    one_colour = [file for file, facts in files.items() if facts.one_colour]
    if one_colour:
        message = f"all pixels of {one_colour[0]} are equal: a black frame, or one that was blanked"
        yield Finding("one-colour-images", message, "nothing, if this is intended", one_colour)

    pictures: dict[str, list[_Frame]] = {}
    for frame in frames:
        if not frame.image.one_colour:
            pictures.setdefault(frame.image.pixels, []).append(frame)
    # One file with rows in two CSVs is reported as a frame in two splits.
    copies = [group for group in pictures.values() if len({frame.image_name for frame in group}) > 1]
    within = [group for group in copies if len({frame.video for frame in group}) == 1]
    across_videos = [group for group in copies if len({frame.video for frame in group}) > 1]
    across_splits = [group for group in across_videos if len({frame.split for frame in group}) > 1]

    shared = Counter(frame.split for group in across_splits for frame in group)
    totals = Counter(frame.split for frame in frames)
    leaks = [
        f"{shared[split]} of {total} frames of {split} ({shared[split] / total:.1%})"
        for split, total in sorted(totals.items())
        if shared[split] >= LEAK_SHARE * total
    ]
    if leaks:
        places = list(map(_group_text, across_splits))
        message = f"the same picture: {places[0]}; in all, {', '.join(leaks)} are in another split, too"
        remedy = "find out which patient they are of, and keep each patient in one split"
        yield Finding("leaked-images", message, remedy, places)
        across_videos = [group for group in across_videos if len({frame.split for frame in group}) == 1]
    if across_videos:
        places = list(map(_group_text, across_videos))
        remedy = "nothing, if it is a title or a test picture; else one video was exported under two names"
        yield Finding("repeated-images", f"the same picture in several videos: {places[0]}", remedy, places)
    if within:
        per_video = Counter(group[0].video for group in within)
        equal = count_text(sum(map(len, within)), "frame")
        message = f"{equal} equal another one of their video: {_group_text(within[0])}"
        remedy = "nothing, if the camera stood still or the video was paused"
        places = [f"video {video}: {count_text(count, 'picture')}" for video, count in per_video.items()]
        yield Finding("still-images", message, remedy, places, total=len(within))


def _group_text(group: Sequence[_Frame]) -> str:
    return " = ".join(map(str, group[:4]))
