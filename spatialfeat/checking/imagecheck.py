"""Sizes, kinds and contents of the images: what differs, what is too small, which pictures are there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.checking.findings import Finding, first_places
from spatialfeat.checking.imagescan import ImageScan
from spatialfeat.console import count_text
from spatialfeat.data.frames import FrameTable

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
