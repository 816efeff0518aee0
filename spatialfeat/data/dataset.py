"""From rows of frame tables to batches: decode, transform, collate. Training and inference load frames only here."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice
from multiprocessing.queues import Queue
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from spatialfeat.data.cache import CachedFrame, FrameCache
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import (
    MISSING,
    ImageError,
    ImageFolder,
    content_digest,
    decode_pixels,
    usual_jpeg_size,
)
from spatialfeat.data.transforms import FrameTransform
from spatialfeat.errors import SpatialfeatError
from spatialfeat.signals import leave_signals_to_main_process

RowNumbers = NDArray[np.int64]
"""(n,) int64: rows of one frame table, in the order in which they are wanted."""

BATCHES_AHEAD = 2
"""So many batches a decoding process has in hand that the main process has not taken yet."""

SLOT_BYTES_PER_FRAME = 2**20
"""Room for a frame in shared memory, more than most take. Of what is not used nothing is taken from the machine."""


def check_image_files(
    tables: Sequence[FrameTable],
    *,
    rows: Sequence[RowNumbers] | None = None,
    is_kept: Callable[[FrameTable, str], bool] | None = None,
) -> list[tuple[FrameTable, int, str]]:
    """Find rows whose image is missing or not a whole PNG or JPEG, without decoding: seconds for 200,000 frames.

    Args:
        rows: for each table the rows to look at; None looks at all.
        is_kept: of a table and the name of an image, whether a cache has it as its file is now; it is not opened then.

    Returns:
        (table, row, reason) per broken row, in the order of tables and rows.
    Raises:
        SpatialfeatError: the image folder does not exist or cannot be read.
    """
    present = {images: images.names(folders_of(images, tables)) for images in {table.images for table in tables}}
    broken: list[tuple[FrameTable, int, str]] = []
    for table, chosen in zip(tables, rows or [np.arange(len(table)) for table in tables], strict=True):
        names = table.image_names[chosen].tolist()
        there = [index for index, name in enumerate(names) if name in present[table.images]]
        reasons = dict.fromkeys(set(range(len(names))) - set(there), MISSING)
        known = partial(is_kept, table) if is_kept else None
        found = table.images.find_broken([names[index] for index in there], is_known=known)
        reasons |= {there[index]: reason for index, reason in found.items()}
        broken += [(table, int(chosen[index]), reasons[index]) for index in sorted(reasons)]
    return broken


def folders_of(images: ImageFolder, tables: Sequence[FrameTable]) -> set[str]:
    """The folders within `images` that rows name, "" where one names none."""
    names = {name for table in tables if table.images == images for name in table.image_names.tolist()}
    return {name.rpartition("/")[0] for name in names}


def where_missing_may_be(broken: Sequence[tuple[FrameTable, int, str]]) -> str:
    """What to do about the images of `check_image_files` that are missing; "" if nothing more is known of them."""
    images, missing = None, []
    for table, row, reason in broken:
        if reason == MISSING and images in (None, table.images):
            images = table.images
            missing.append(str(table.image_names[row]))
    return "" if images is None else images.where_else(missing)


def describe_broken_image(table: FrameTable, row: int, reason: str) -> str:
    """`train.csv row 812: cannot read images/1050_1_000812.png: the file is empty`."""
    path = table.images.shown(str(table.image_names[row])) if reason == MISSING else table.image_path(row)
    return f"{table.where(row)}: cannot read {path}: {reason}"


def count_broken(broken: Sequence[tuple[FrameTable, int, str]], num_rows: int) -> str:
    """` (2 of 140 images are missing)`, of what `check_image_files` found; "" of a single image."""
    what = "missing" if all(reason == MISSING for _, _, reason in broken) else "broken"
    return f" ({len(broken)} of {num_rows} images are {what})" if len(broken) > 1 else ""


def require_images(tables: Sequence[FrameTable], *, is_kept: Callable[[FrameTable, str], bool] | None = None) -> None:
    """Raise SpatialfeatError naming the first broken image and the number of others; see `check_image_files`."""
    broken = check_image_files(tables, is_kept=is_kept)
    if broken:
        others = count_broken(broken, sum(map(len, tables)))
        remedy = where_missing_may_be(broken) or "put the image there, pass --img-dir, or remove the row"
        raise SpatialfeatError(f"{describe_broken_image(*broken[0])}{others}; {remedy}")


class FrameSample(NamedTuple):
    """One frame, with what `Cut` says is left to do. `failure`: why it could not be decoded; the image is then None.

    piece: of a dataset that leaves JPEG to the device, a row of FrameBatch.pieces; the image of a JPEG is its bytes.
    """

    image: torch.Tensor | None
    label: int
    position: int
    digest: bytes = b""
    failure: str | None = None
    left_to_do: Sequence[float] = ()
    piece: tuple[int, ...] = ()


class FrameBatch(NamedTuple):
    """B frames of which G decoded: images (G, 3, H, W) uint8, labels and positions in the dataset (G,) int64 of those.

    digests: 16 bytes of the file's content per decoded frame, or b"" where the dataset was made without. failures: the
    undecodable (position, reason) pairs. left_to_do: (G, K) float64, what `augment_batch` has to do with the images,
    which are then (G, H, W, 3), each in its upper left corner; K is 0 where nothing is left.

    pieces: (G, 6) int64, of a dataset that leaves JPEG to the device, else (G, 0). `images` are then (n,) uint8: frame
    after frame either the bytes of a JPEG, or pixels (height, width, 3). Columns: 1 of a JPEG; how many bytes; top,
    left, height and width of what is wanted of the decoded frame.

    Only the images travel in shared memory, see `_Slots`.
    """

    images: torch.Tensor
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    digests: list[bytes]
    failures: list[tuple[int, str]]
    left_to_do: NDArray[np.float64]
    pieces: NDArray[np.int64]


class AugmentedFrame(NamedTuple):
    """A frame to train on: its position in the dataset, and the seed of its augmentation."""

    position: int
    seed: int


class FrameDataset(Dataset[FrameSample]):
    """Frames of one or more tables as images, numbered through from 0.

    A frame that cannot be decoded is returned with its reason instead of raised, so that the caller decides what it
    stops: training, or one video among many.

    Args:
        parts: tables, each with the rows of it that are wanted. A table alone stands for all its rows, in CSV order.
        transform: maps an RGB image to a (3, H, W) uint8 tensor.
        cache: keeps the result of the transform's fixed steps; a frame in it is not read from its image again.
        also_kept: other transforms; what they will want is put into the cache when a frame is decoded.
        with_digests: take the digest of every file's content, which costs about a tenth of its decoding.
        jpeg_on_device: hand JPEG files over as they are, for `staged` to decode; not with a cache.
    """

    def __init__(
        self,
        parts: FrameTable | Sequence[tuple[FrameTable, RowNumbers]],
        transform: FrameTransform,
        *,
        cache: FrameCache | None = None,
        also_kept: Sequence[FrameTransform] = (),
        with_digests: bool = False,
        jpeg_on_device: bool = False,
    ):
        if jpeg_on_device:
            assert cache is None, "a cache keeps what the processor decoded"
            assert transform.random is None or transform.ahead, "what is random must be done on the device, too"
        self._parts = [(parts, np.arange(len(parts)))] if isinstance(parts, FrameTable) else list(parts)
        self._ends = np.cumsum([len(rows) for _, rows in self._parts])
        self._transform, self._cache, self._with_digests = transform, cache, with_digests
        self._kept = (transform, *also_kept)
        self._jpeg_on_device = jpeg_on_device

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, position: int) -> tuple[FrameTable, int]:
        """The table of a frame, and its row there."""
        part = int(np.searchsorted(self._ends, position, side="right"))
        table, rows = self._parts[part]
        return table, int(rows[position - (self._ends[part] - len(rows))])

    def __getitem__(self, frame: int | AugmentedFrame) -> FrameSample:
        if not isinstance(frame, AugmentedFrame):
            return self._load(frame)
        # The augmentation depends on its seed alone, never on the worker that happens to draw it.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also seeds GPUs, and without one it notes down for later who called it: 0.4 ms a frame.
            torch.default_generator.manual_seed(frame.seed)
            return self._load(frame.position)

    def refuse_failures(self, failures: Sequence[tuple[int, str]]) -> None:
        """Raise SpatialfeatError for the first undecodable frame: skipping it would change the result unseen."""
        for position, reason in failures:
            broken = describe_broken_image(*self.locate(position), reason)
            raise SpatialfeatError(f"{broken}; replace the image or remove its row")

    def _load(self, position: int) -> FrameSample:
        table, row = self.locate(position)
        label = int(table.labels[row])
        try:
            if self._jpeg_on_device:
                return self._undecoded(table.images, str(table.image_names[row]), label, position)
            frame = self._fixed_part(table.images, str(table.image_names[row]))
        except ImageError as error:
            return FrameSample(None, label, position, failure=str(error))
        except OSError as error:
            return FrameSample(None, label, position, failure=error.strerror or str(error))
        pixels, left_to_do = self._transform.finish(frame.pixels)
        return FrameSample(pixels, label, position, frame.digest, left_to_do=left_to_do)

    def _undecoded(self, images: ImageFolder, name: str, label: int, position: int) -> FrameSample:
        """A JPEG as its bytes, if the device can decode it; else pixels."""
        content = images.read(name)
        digest = content_digest(content) if self._with_digests else b""
        size = usual_jpeg_size(content)
        if size is None:
            pixels, left_to_do = self._transform.finish(self._transform.fixed(decode_pixels(content)))
            piece = (0, pixels.numel(), 0, 0, *pixels.shape[1:])
            return FrameSample(pixels, label, position, digest, None, left_to_do, piece)
        box, left_to_do = ((0, 0, *size), []) if self._transform.ahead is None else self._transform.ahead(size)
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return FrameSample(data, label, position, digest, None, left_to_do, (1, len(content), *box))

    def _fixed_part(self, images: ImageFolder, name: str) -> CachedFrame:
        """What the fixed steps of the transform make of an image; from the cache if it is there as the file is now."""
        if self._cache is None:
            content = images.read(name)
            digest = content_digest(content) if self._with_digests else b""
            return CachedFrame(self._transform.fixed(decode_pixels(content)), digest)
        key = self._cache.key(images, name, self._transform.fixed_steps)
        frame = self._cache.get(key)
        if frame is not None:
            return frame
        keys = [key, *(self._cache.key(images, name, transform.fixed_steps) for transform in self._kept[1:])]
        content = images.read(name)
        pixels, digest = decode_pixels(content), content_digest(content)
        frames = [CachedFrame(transform.fixed(pixels), digest) for transform in self._kept]
        # A file that is being replaced must not be kept under the size and time that it had before.
        if self._cache.key(images, name, self._transform.fixed_steps) == key:
            for kept_key, kept in zip(keys, frames, strict=True):
                self._cache.put(kept_key, kept)
        return frames[0]


class EpochBatches(Sampler[list[AugmentedFrame]]):
    """Every frame once per epoch in random order, order and augmentation seeds drawn from (seed, epoch) alone.

    Iterating gives process `rank` of `size` its frames of each batch; together these are the batches that one process
    would load. Shares of a batch differ by one frame at most. In the last, smaller batch some may be empty.
    """

    def __init__(self, num_frames: int, batch_size: int, seed: int, *, rank: int = 0, size: int = 1) -> None:
        self._num_frames, self._batch_size, self._seed = num_frames, batch_size, seed
        self._rank, self._size = rank, size
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self._num_frames / self._batch_size)

    def __iter__(self) -> Iterator[list[AugmentedFrame]]:
        return map(self.share, self.whole())

    def share(self, batch: list[AugmentedFrame]) -> list[AugmentedFrame]:
        """This process's frames of a batch."""
        return batch[self._rank :: self._size]

    def whole(self) -> Iterator[list[AugmentedFrame]]:
        """The batches with the frames of all processes."""
        rng = np.random.default_rng([self._seed, self.epoch])
        positions = rng.permutation(self._num_frames)
        seeds = rng.integers(2**63, size=self._num_frames)
        frames = map(AugmentedFrame, positions.tolist(), seeds.tolist())
        while batch := list(islice(frames, self._batch_size)):
            yield batch


def make_loader(
    dataset: FrameDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    positions: Sequence[int] | None = None,
    batches: EpochBatches | None = None,
    keep_workers: bool = False,
) -> DataLoader[FrameSample]:
    """Iterating yields FrameBatch.

    Args:
        batch_size: frames per batch, unless `batches` are given.
        positions: the frames to load, in this order; None loads all.
        batches: the frames of every batch, for training; they change from epoch to epoch.
        keep_workers: for a loader that is iterated again: starting 16 processes anew takes a second.
    """
    order: dict[str, Any] = {"batch_sampler": batches} if batches else {"batch_size": batch_size, "sampler": positions}
    num_batches = len(batches) if batches else math.ceil(len(dataset if positions is None else positions) / batch_size)
    workers = min(workers, num_batches)
    pinned = device.type == "cuda"
    slots = None
    forked = multiprocessing.get_context().get_start_method() == "fork"
    # Where processes are not forked, they have no memory in common beforehand; and some systems grant no such mapping.
    if workers and forked:
        with suppress(OSError):
            slots = _Slots(workers, batch_size * SLOT_BYTES_PER_FRAME, pinned=pinned)
    return DataLoader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=partial(collate, slots=slots),
        worker_init_fn=partial(_start_worker, os.getpid() if forked else None),
        # Its own generator for the seeds of workers, which nothing draws from: the global one is left alone, so that
        # its state after an epoch does not depend on workers.
        generator=torch.Generator(),
        pin_memory=pinned,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        persistent_workers=workers > 0 and keep_workers,
    )


class _Slots:
    """Memory in which decoding processes hand batches over, mapped before they are forked.

    The usual way, a file of shared memory for each batch, costs the main process a connection to a thread of the
    worker, which waits there for a turn beside the decoding: 5 to 15 ms per batch, at which everything else waits.

    A worker fills its slots in turn. A slot's batch was copied out long before its turn comes again: a worker gets a
    new batch to load only when the one `BATCHES_AHEAD` before it has been taken.
    """

    _numbers = count()
    _of_number: ClassVar[WeakValueDictionary[int, _Slots]] = WeakValueDictionary()

    def __init__(self, workers: int, slot_bytes: int, *, pinned: bool) -> None:
        # Anonymous: it needs no room in /dev/shm, of which containers have little.
        self._memory = torch.frombuffer(mmap.mmap(-1, workers * BATCHES_AHEAD * slot_bytes), dtype=torch.uint8)
        self._slot_bytes, self._pinned = slot_bytes, pinned
        self._number, self._turn = next(self._numbers), 0
        self._of_number[self._number] = self

    def empty(self, worker: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Of uint8, in the next slot of this worker; elsewhere if it is too large for one."""
        num_bytes = math.prod(shape)
        if num_bytes > self._slot_bytes:
            return torch.empty(shape, dtype=torch.uint8)
        start = (worker * BATCHES_AHEAD + self._turn) * self._slot_bytes
        self._turn = (self._turn + 1) % BATCHES_AHEAD
        return self._memory[start : start + num_bytes].view(shape)

    def hold(self, images: torch.Tensor) -> bool:
        """Whether `images` came from `empty` and are in a slot."""
        return images.untyped_storage().data_ptr() == self._memory.untyped_storage().data_ptr()

    def ticket(self, images: torch.Tensor) -> _Ticket:
        """What the main process gets instead of `images`, and unpickles to a copy of them."""
        return _Ticket(self._number, tuple(images.shape), images.stride(), int(images.storage_offset()))

    @classmethod
    def redeem(cls, number: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> torch.Tensor:
        """The images of a ticket, in memory of their own; pinned, if they are going to a GPU."""
        slots = cls._of_number[number]
        own = torch.empty_strided(shape, stride, dtype=torch.uint8, pin_memory=slots._pinned)
        return own.copy_(slots._memory.as_strided(shape, stride, offset))


class _Ticket(NamedTuple):
    number: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _Slots.redeem, tuple(self)


def _start_worker(main_process: int | None, _worker_id: int) -> None:
    if main_process is not None and os.getppid() != main_process:
        os._exit(1)  # It was killed before PyTorch began to watch it: nothing would ever end this process.
    leave_signals_to_main_process()
    # A batch that cannot be sent would only be reported, and the main process would wait for it for ever.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _batch: object) -> None:
    sys.stderr.write(f"a decoding process cannot hand over its frames: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def collate(samples: list[FrameSample], slots: _Slots | None = None) -> FrameBatch:
    """Stack the decoded frames and list the others."""
    worker = get_worker_info()
    empty: EmptyImages = partial(torch.empty, dtype=torch.uint8)
    if worker is not None and slots is not None:
        empty = partial(slots.empty, worker.id)
    good = [sample for sample in samples if sample.image is not None]
    rows = [sample.left_to_do for sample in good]
    images = [sample.image for sample in good if sample.image is not None]
    pieces = [sample.piece for sample in good]
    put_together = _join if any(pieces) else stack_cuts if any(rows) else _stack
    batch = FrameBatch(
        images=put_together(images, empty),
        labels=np.array([sample.label for sample in good], np.int64),
        positions=np.array([sample.position for sample in good], np.int64),
        digests=[sample.digest for sample in good],
        failures=[(sample.position, sample.failure) for sample in samples if sample.failure is not None],
        left_to_do=np.array(rows, np.float64).reshape(len(good), -1 if good else 0),
        pieces=np.array(pieces, np.int64).reshape(len(good), -1 if good else 0),
    )
    if worker is None or not good:
        return batch
    if slots is not None and slots.hold(batch.images):
        ticket: Any = slots.ticket(batch.images)
        return batch._replace(images=ticket)
    # Put into a file of shared memory here, and not on sending, a lack of it is an error of this batch.
    batch.images.share_memory_()  # type: ignore[no-untyped-call]
    return batch


EmptyImages = Callable[[tuple[int, ...]], torch.Tensor]
"""Makes a uint8 tensor of a shape."""


def _stack(images: list[torch.Tensor], empty: EmptyImages) -> torch.Tensor:
    """Images (3, S, S) as (G, 3, S, S), in the order in memory that they have: turning it would take longer."""
    if not images:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    height, width = images[0].shape[1:]
    if all(image.stride(0) == 1 for image in images):
        stacked = empty((len(images), height, width, 3)).permute(0, 3, 1, 2)
    else:
        stacked = empty((len(images), 3, height, width))
    for place, image in zip(stacked, images, strict=True):
        place.copy_(image)
    return stacked


def _join(images: list[torch.Tensor], empty: EmptyImages) -> torch.Tensor:
    """Bytes (n,) and pixels (3, h, w) one after the other, the pixels in the order (h, w, 3)."""
    pieces = [image.movedim(0, -1).reshape(-1) for image in images]
    return torch.cat(pieces, out=empty((sum(map(len, pieces)),)))


def stack_cuts(cuts: list[torch.Tensor], empty: EmptyImages) -> torch.Tensor:
    """Cuts (3, h, w) of different sizes in one tensor (G, H, W, 3), in the order in memory that they are decoded to."""
    height, width = (max(cut.shape[side] for cut in cuts) for side in (1, 2))
    stacked = empty((len(cuts), height, width, 3))
    for place, cut in zip(stacked, cuts, strict=True):
        place[: cut.shape[1], : cut.shape[2]] = cut.permute(1, 2, 0)
    return stacked
