"""Are all images of the frame tables there and whole? Answered before long work starts.

From frame rows to batches: decode, transform, collate. Training and inference load frames here and nowhere else.

Batches of which every process loads its share: together they are the batches that one process would load.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from spatialfeat.data.cache import CachedFrame, FrameCache
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import (
    ImageError,
    content_digest,
    decode_rgb,
    find_broken_images,
    list_pngs,
    read_image_file,
)
from spatialfeat.data.transforms import FrameTransform
from spatialfeat.errors import SpatialfeatError
from spatialfeat.signals import leave_signals_to_main_process

IsCached = Callable[[FrameTable, Path], bool]
"""Is the image of a table in the frame cache, as the file is now?"""


def check_images(
    tables: Sequence[FrameTable],
    *,
    rows: Sequence[Sequence[int]] | None = None,
    progress: bool = True,
    is_cached: IsCached | None = None,
) -> list[tuple[FrameTable, int, str]]:
    """Find rows whose image is missing or not a whole PNG, without decoding: seconds for 200,000 frames.

    Images that are cached were decoded before and are not opened.

    Args:
        rows: for each table the rows to look at, in ascending order; None looks at all.

    Returns:
        (table, row, reason) per broken row, in the order of the tables.
    Raises:
        SpatialfeatError: the image folder does not exist or cannot be read.
    """
    present_by_dir = {img_dir: list_pngs(img_dir) for img_dir in {table.img_dir for table in tables}}
    broken: list[tuple[FrameTable, int, str]] = []
    for table, chosen in zip(tables, rows or [range(len(table)) for table in tables], strict=True):
        present, names = present_by_dir[table.img_dir], table.image_names.tolist()
        there = [row for row in chosen if names[row] in present]
        known = None if is_cached is None else partial(is_cached, table)
        reasons = find_broken_images([table.image_path(row) for row in there], progress=progress, is_known=known)
        unreadable = {there[index]: reason for index, reason in reasons.items()}
        missing = dict.fromkeys(set(chosen) - set(there), "the file does not exist")
        broken += [(table, row, reason) for row, reason in sorted((unreadable | missing).items())]
    return broken


def describe_broken_image(table: FrameTable, row: int, reason: str) -> str:
    """`train.csv row 812: cannot read images/1050_1_000812.png: the file is empty`."""
    return f"{table.where(row)}: cannot read {table.image_path(row)}: {reason}"


def require_images(tables: Sequence[FrameTable], is_cached: IsCached | None = None) -> None:
    """Raise SpatialfeatError naming the first broken image and the number of others, if there is any."""
    broken = check_images(tables, is_cached=is_cached)
    if broken:
        others = f" ({len(broken)} of {sum(map(len, tables))} images are broken)" if len(broken) > 1 else ""
        raise SpatialfeatError(
            f"{describe_broken_image(*broken[0])}{others}; put the image there, pass --img-dir, or remove the row"
        )


class FrameSample(NamedTuple):
    """One frame. `failure` is the reason why it could not be decoded; the image is then meaningless."""

    image: torch.Tensor | None
    label: int
    row: int
    digest: bytes
    failure: str | None


class FrameBatch(NamedTuple):
    """B frames of which G decoded: images (G, 3, H, W) uint8, labels and rows (G,) int64 of those.

    `digests` holds one 16-byte digest of the file's content per decoded frame, or b"" where the dataset was made
    without; `failures` the undecodable (row, reason) pairs.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    digests: list[bytes]
    failures: list[tuple[int, str]]


class AugmentedRow(NamedTuple):
    """A row to train on, with the seed of its augmentation."""

    row: int
    augmentation_seed: int


class FrameDataset(Dataset[FrameSample]):
    """Rows of a frame table as images.

    A frame that cannot be decoded is returned with its reason instead of raised, so that the caller decides what it
    stops: training, or one video among many.

    Args:
        img_dirs: (N,) str, the folder of each frame. ids: (N,) str. labels: (N,) int64.
        transform: maps an RGB Pillow image to a (3, H, W) uint8 tensor.
        cache: keeps the result of the transform's fixed steps; a frame in it is not read from its image again.
        with_digests: take the digest of every file's content, which costs about a tenth of its decoding.
    """

    def __init__(
        self,
        img_dirs: NDArray[Any],
        ids: NDArray[Any],
        labels: NDArray[np.int64],
        transform: FrameTransform,
        *,
        cache: FrameCache | None = None,
        with_digests: bool = False,
    ):
        # Arrays of fixed-width text, not lists of str: workers would copy every str object they touch.
        self._img_dirs, self._ids, self._labels = img_dirs, ids, labels
        self._transform, self._cache, self._with_digests = transform, cache, with_digests

    @classmethod
    def from_table(
        cls, table: FrameTable, transform: FrameTransform, *, cache: FrameCache | None = None
    ) -> FrameDataset:
        """All rows of a table, in CSV order, without digests."""
        return cls(np.full(len(table), str(table.img_dir)), table.image_names, table.labels, transform, cache=cache)

    def __len__(self) -> int:
        return len(self._ids)

    def image_path(self, row: int) -> Path:
        return Path(self._img_dirs[row]) / f"{self._ids[row]}.png"

    def __getitem__(self, index: int | AugmentedRow) -> FrameSample:
        if not isinstance(index, AugmentedRow):
            return self._load(index)
        # The augmentation depends on its seed alone, never on the worker that happens to draw it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index.augmentation_seed)
            return self._load(index.row)

    def _load(self, row: int) -> FrameSample:
        label = int(self._labels[row])
        try:
            frame = self._fixed_part(self.image_path(row))
        except ImageError as error:
            return FrameSample(None, label, row, b"", str(error))
        except OSError as error:
            return FrameSample(None, label, row, b"", error.strerror or str(error))
        return FrameSample(self._transform.finish(frame.pixels), label, row, frame.digest, None)

    def _fixed_part(self, path: Path) -> CachedFrame:
        """What the fixed steps of the transform make of an image; from the cache if it is there as the file is now."""
        if self._cache is None:
            return self._decode(path, self._with_digests)
        stat = path.stat()
        key = self._cache.key(path, stat, self._transform.recipe)
        frame = self._cache.get(key)
        if frame is None:
            frame = self._decode(path, with_digest=True)
            # A file that is being replaced must not be kept under the size and time that it had before.
            if self._cache.key(path, path.stat(), self._transform.recipe) == key:
                self._cache.put(key, frame)
        return frame

    def _decode(self, path: Path, with_digest: bool) -> CachedFrame:
        content = read_image_file(path)
        pixels = self._transform.fixed(decode_rgb(content))
        return CachedFrame(pixels, content_digest(content) if with_digest else b"")


class EpochSampler(Sampler[AugmentedRow]):
    """Every row once per epoch in random order, order and augmentation seeds drawn from (seed, epoch) alone."""

    def __init__(self, num_rows: int, seed: int):
        self._num_rows, self._seed = num_rows, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[AugmentedRow]:
        rng = np.random.default_rng([self._seed, self.epoch])
        rows = rng.permutation(self._num_rows)
        seeds = rng.integers(2**63, size=self._num_rows)
        for row, augmentation_seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            yield AugmentedRow(row, augmentation_seed)


def make_loader(
    dataset: FrameDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    rows: Sequence[int] | None = None,
    batches: Sampler[list[AugmentedRow]] | None = None,
) -> DataLoader[FrameSample]:
    """Iterating yields FrameBatch.

    Args:
        batch_size: frames per batch, unless `batches` are given.
        rows: the rows to load, in this order; None loads all.
        batches: the rows of every batch, for training; they may change from epoch to epoch.
    """
    order: dict[str, Any] = {"batch_sampler": batches} if batches else {"batch_size": batch_size, "sampler": rows}
    return DataLoader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        # Its own generator for the seeds of workers, which nothing draws from: the global one is left alone, so that
        # its state after an epoch does not depend on workers.
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0 and batches is not None,
    )


def _start_worker(_worker_id: int) -> None:
    leave_signals_to_main_process()
    # A batch that cannot be sent would only be reported, and the main process would wait for it for ever.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _batch: object) -> None:
    sys.stderr.write(f"a decoding process cannot hand over its frames: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def collate(samples: list[FrameSample]) -> FrameBatch:
    """Stack the decoded frames and list the others."""
    batch = _collate(samples)
    if get_worker_info() is not None:
        # They travel in shared memory. Put there here, and not on sending, a lack of it is an error of this batch.
        for tensor in (batch.images, batch.labels, batch.rows):
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    return batch


def _collate(samples: list[FrameSample]) -> FrameBatch:
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in good if sample.image is not None]
    return FrameBatch(
        images=torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        rows=torch.tensor([sample.row for sample in good], dtype=torch.int64),
        digests=[sample.digest for sample in good],
        failures=[(sample.row, sample.failure) for sample in samples if sample.failure is not None],
    )


def frames_of(loader: DataLoader[Any]) -> FrameDataset:
    """The dataset behind a loader made by `make_loader`."""
    assert isinstance(loader.dataset, FrameDataset)
    return loader.dataset


def refuse_failures(dataset: FrameDataset, failures: list[tuple[int, str]]) -> None:
    """Raise SpatialfeatError for the first undecodable frame, if any: skipping it would change the result unseen."""
    for row, reason in failures:
        raise SpatialfeatError(f"cannot read {dataset.image_path(row)}: {reason}; replace the image or remove its row")


class SharedBatches(Sampler[list[AugmentedRow]]):
    """The rows of `sampler` in batches of `batch_size`; iterating gives process `rank` of `size` its rows of each.

    Shares of a batch differ by one row at most. In the last, smaller batch some may be empty.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, *, rank: int = 0, size: int = 1) -> None:
        self._sampler, self._batch_size, self._rank, self._size = sampler, batch_size, rank, size

    def __len__(self) -> int:
        return math.ceil(len(self._sampler) / self._batch_size)

    def __iter__(self) -> Iterator[list[AugmentedRow]]:
        for batch in self.whole():
            yield self.share(batch)

    def share(self, batch: list[AugmentedRow]) -> list[AugmentedRow]:
        """This process's rows of a batch."""
        return batch[self._rank :: self._size]

    def whole(self) -> Iterator[list[AugmentedRow]]:
        """The batches with the rows of all processes."""
        rows = iter(self._sampler)
        while batch := list(islice(rows, self._batch_size)):
            yield batch
