"""Decoded, resized frames on disk, so that a frame is decoded once and not in every epoch.

What is stored of a frame is the result of its transform's fixed steps, uint8, and the digest of its file. It is found
again by the file's real path, size and modification time and by the fixed steps' description: a frame that changes, or
another way of resizing, asks for another entry. `slabstore` keeps the entries.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import struct
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from spatialfeat.console import count_text
from spatialfeat.data.slabstore import SlabStore
from spatialfeat.errors import SpatialfeatError

TAG_NAME = "CACHEDIR.TAG"
TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# spatialfeat frame cache, schema 1
#
# Decoded video frames, kept so that training and extraction need not decode them again. The first line tells backup
# programs to leave this folder out. The frames in it are as confidential as the images that they were made from.
# Deleting the folder loses nothing but time, and is safe while no run uses it.
"""
DIGEST_BYTES = 16
_SHAPE = struct.Struct(f"<{DIGEST_BYTES}sII")  # Digest of the PNG file, height, width; then the pixels, (H, W, 3).
_FROM_CACHE, _DECODED, _NOTICE_GIVEN = range(3)

logger = logging.getLogger(__name__)


class CachedFrame(NamedTuple):
    """pixels: (3, H, W) uint8, laid out in memory as Pillow gives them. digest: 16 bytes, of the PNG file."""

    pixels: torch.Tensor
    digest: bytes


class FrameCache:
    """The cache of one run, shared by its datasets and their decoding processes.

    Raises:
        SpatialfeatError: `cache_dir` is something else than a cache or a new folder, or cannot be used.
    """

    def __init__(self, cache_dir: Path, limit_gb: float) -> None:
        self._cache_dir = cache_dir
        self._real_dirs: dict[str, str] = {}
        # Counted by every decoding process of the run.
        self._counts = multiprocessing.Array("q", 3)
        _claim_folder(cache_dir)
        try:
            self._store = SlabStore(cache_dir, int(limit_gb * 1e9))
            self._store.files.trim()
            self._store.files.shrink()
            self._store.refresh()
        except OSError as error:
            raise _unusable(cache_dir, error) from error

    def key(self, path: Path, stat: os.stat_result, recipe: str) -> bytes:
        """16 bytes that stand for this state of a file, and for what the fixed steps described by `recipe` make of it.

        Only the folder of the frames is resolved, once: frames that are links count as files of the folder.
        """
        folder = str(path.parent)
        if folder not in self._real_dirs:
            self._real_dirs[folder] = os.path.realpath(folder)
        identity = f"{self._real_dirs[folder]}\0{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{recipe}"
        return blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).digest()

    def holds(self, path: Path, recipe: str) -> bool:
        """Was the frame cached, as its file is now, when the run began? Safe to call from several threads."""
        return self._store.holds(self.key(path, path.stat(), recipe))

    def get(self, key: bytes) -> CachedFrame | None:
        """The frame, or None if it has to be decoded."""
        body = self._store.get(key)
        self._count(_DECODED if body is None else _FROM_CACHE)
        if body is None:
            return None
        digest, height, width = _SHAPE.unpack_from(body)
        pixels = np.frombuffer(body, np.uint8, offset=_SHAPE.size).reshape(height, width, 3)
        return CachedFrame(torch.from_numpy(pixels).permute(2, 0, 1), digest)

    def put(self, key: bytes, frame: CachedFrame) -> None:
        """Store the frame if there is room; the first time that there is none, say so."""
        pixels = frame.pixels.permute(1, 2, 0).contiguous().numpy()
        shape = _SHAPE.pack(frame.digest, *pixels.shape[:2])
        self._store.put(key, shape, pixels.reshape(-1).data)
        if self._store.full is not None and self._is_first_notice():
            logger.warning(
                "the frame cache %s takes no more frames: %s; the others are decoded every time. Raise --cache-limit, "
                "choose a --cache folder with more room, or delete what is in it",
                self._cache_dir,
                self._store.full,
            )

    def close(self) -> dict[str, int]:
        """Give back reserved space. Returns frames_from_cache, frames_decoded and the folder's bytes."""
        self._store.close()
        num_bytes = 0
        try:
            self._store.files.trim()
            num_bytes = self._store.files.usage_bytes()
        except OSError as error:  # A finished study is not lost because its cache is.
            logger.warning("the frame cache %s cannot be read any more (%s)", self._cache_dir, error.strerror)
        facts = {
            "frames_from_cache": int(self._counts[_FROM_CACHE]),
            "frames_decoded": int(self._counts[_DECODED]),
            "bytes": num_bytes,
        }
        logger.info(
            "frame cache %s: %s from it, %d decoded; it now holds %.2f GB",
            self._cache_dir,
            count_text(facts["frames_from_cache"], "frame"),
            facts["frames_decoded"],
            facts["bytes"] / 1e9,
        )
        return facts

    def _count(self, which: int) -> None:
        with self._counts.get_lock():
            self._counts[which] += 1

    def _is_first_notice(self) -> bool:
        with self._counts.get_lock():
            self._counts[_NOTICE_GIVEN] += 1
            return bool(self._counts[_NOTICE_GIVEN] == 1)


def total_use(uses: Sequence[dict[str, int]]) -> dict[str, int]:
    """What processes that share one folder tell at `close`, as one: frames add up, the folder's bytes do not."""
    return {name: (max if name == "bytes" else sum)(use[name] for use in uses) for name in uses[0]}


def open_cache(cache_dir: Path | None, limit_gb: float) -> FrameCache | None:
    """The cache that the options name; None without `--cache`."""
    return None if cache_dir is None else FrameCache(cache_dir, limit_gb)


def _claim_folder(cache_dir: Path) -> None:
    """Make sure that the folder is a cache of ours, or make it one if it is new or empty."""
    if cache_dir.exists() and not cache_dir.is_dir():
        raise SpatialfeatError(f"--cache {cache_dir}: is a file, not a folder; choose another name")
    tag_path = cache_dir / TAG_NAME
    try:
        if not cache_dir.is_dir():
            cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A second run may be claiming the same folder: its unfinished tag is no stranger.
        names = {path.name for path in cache_dir.iterdir() if not path.name.startswith(f".{TAG_NAME}")}
        if not names:
            unfinished = cache_dir / f".{TAG_NAME}-{secrets.token_hex(4)}"
            unfinished.write_text(TAG, encoding="utf-8")
            unfinished.replace(tag_path)
        content = tag_path.read_text(encoding="utf-8") if tag_path.is_file() else ""
    except OSError as error:
        raise _unusable(cache_dir, error) from error
    if content.splitlines()[:2] != TAG.splitlines()[:2]:
        reason = "a cache of another version of spatialfeat" if "spatialfeat" in content else "not a frame cache"
        raise SpatialfeatError(f"--cache {cache_dir}: is {reason} and not empty; choose a new or empty folder for it")


def _unusable(cache_dir: Path, error: OSError) -> SpatialfeatError:
    return SpatialfeatError(
        f"--cache {cache_dir}: cannot be used ({error.strerror}); choose a folder that you may write to, "
        "on a file system with file locks"
    )
