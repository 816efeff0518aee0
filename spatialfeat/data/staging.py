"""Batches on their way to the device. To a GPU they are copied and augmented one batch ahead, beside its other work.

With `--jpeg-decoder gpu`, JPEG files come as they are, and the GPU decodes them here (nvJPEG, through torchvision).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import NamedTuple

import torch
from PIL import Image
from torchvision import io

from spatialfeat.config import GPU_DECODER
from spatialfeat.data.augmentation import augment_batch, cut_box
from spatialfeat.data.dataset import FrameBatch, stack_cuts
from spatialfeat.data.images import ImageError, decode_pixels
from spatialfeat.data.transforms import Preprocessing, evaluation_transform
from spatialfeat.errors import SpatialfeatError


class StagedBatch(NamedTuple):
    """A batch, with its images (G, 3, S, S) uint8 and labels (G,) int64 on the device, ready for the network."""

    batch: FrameBatch
    images: torch.Tensor
    labels: torch.Tensor


def staged(batches: Iterable[FrameBatch], device: torch.device, preprocessing: Preprocessing) -> Iterator[StagedBatch]:
    """Bring batches to the device and do there what workers have left to do. preprocessing: the network's.

    On a GPU this runs on a stream of its own while the network computes on the batch before.
    """
    if device.type == "cpu":
        for batch in batches:
            yield _moved(batch, device, preprocessing)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[StagedBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved, done = _moved(batch, device, preprocessing), torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = moved, done
    if ahead is not None:
        yield _arrived(*ahead)


def _moved(batch: FrameBatch, device: torch.device, preprocessing: Preprocessing) -> StagedBatch:
    if batch.pieces.size:
        batch, images = _decoded(batch, device, preprocessing)
    else:
        images = batch.images.to(device, non_blocking=True)
    if batch.left_to_do.size:
        images = augment_batch(images, _sent(torch.from_numpy(batch.left_to_do), device), preprocessing.crop_px)
    return StagedBatch(batch, images, _sent(torch.from_numpy(batch.labels), device))


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, for which the program does not wait: only from pinned memory is it sure not to."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def _arrived(moved: StagedBatch, done: torch.cuda.Event) -> StagedBatch:
    """Make what is computed from now on wait for the batch; the program itself goes on."""
    stream = torch.cuda.current_stream(moved.images.device)
    stream.wait_event(done)
    for tensor in (moved.images, moved.labels):
        tensor.record_stream(stream)  # Its memory must not be used again before that.
    return moved


def _decoded(batch: FrameBatch, device: torch.device, preprocessing: Preprocessing) -> tuple[FrameBatch, torch.Tensor]:
    """Decode the JPEG files of a batch. Returns it without those that cannot be decoded, and the images of the others.

    These are (G, H, W, 3) cuts to augment, or (G, 3, S, S) if nothing is left to do, on the device.
    """
    pieces = batch.pieces.tolist()
    contents = torch.split(batch.images, [num_bytes for _, num_bytes, *_ in pieces])
    is_jpeg = [bool(jpeg) for jpeg, *_ in pieces]
    decoded = iter(decode_jpegs([content for content, jpeg in zip(contents, is_jpeg, strict=True) if jpeg], device))
    good: dict[int, torch.Tensor] = {}
    failures = batch.failures.copy()
    for index, (jpeg, _, *box) in enumerate(pieces):
        top, left, height, width = box
        if not jpeg:
            good[index] = contents[index].to(device, non_blocking=True).view(height, width, 3).permute(2, 0, 1)
            continue
        frame = next(decoded)
        if isinstance(frame, torch.Tensor) and (frame.shape[1] < top + height or frame.shape[2] < left + width):
            frame = "the JPEG cannot be decoded (it is smaller than its header says)"
        if isinstance(frame, str):
            failures.append((int(batch.positions[index]), frame))
        else:
            good[index] = (
                cut_box(frame, (top, left, height, width), preprocessing.crop_px) if batch.left_to_do.size else frame
            )
    kept = list(good)
    batch = batch._replace(
        labels=batch.labels[kept],
        positions=batch.positions[kept],
        digests=[batch.digests[index] for index in kept],
        failures=failures,
        left_to_do=batch.left_to_do[kept],
        pieces=batch.pieces[kept],
    )
    empty = partial(torch.empty, dtype=torch.uint8, device=device)
    if batch.left_to_do.size:
        return batch, stack_cuts(list(good.values()), empty)
    alike = defaultdict[tuple[bool, torch.Size], list[int]](list)
    for place, (index, frame) in enumerate(good.items()):
        alike[is_jpeg[index], frame.shape].append(place)
    images = empty((len(good), 3, preprocessing.crop_px, preprocessing.crop_px))
    for (jpeg, _), places in alike.items():
        # Those of one size at once: of a video, these are all.
        together = torch.stack([good[kept[place]] for place in places])
        images[places] = evaluation_transform(preprocessing).fixed(together) if jpeg else together
    return batch, images


def decode_jpegs(contents: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor | str]:
    """Decode files of `usual_jpeg_size` on a device: on a CUDA device, by nvJPEG.

    Args:
        contents: the bytes of each file, (n,) uint8, in the main memory.

    Returns:
        For each (3, H, W) uint8 on the device, or why it cannot be decoded. What the device does not decode is decoded
        as without it.
    """
    if not contents:
        return []
    try:
        decoded: list[torch.Tensor | str] = io.decode_jpeg(list(contents), io.ImageReadMode.RGB, device=device)
    except RuntimeError:
        if len(contents) > 1:
            return [found for content in contents for found in decode_jpegs([content], device)]
        try:
            return [torch.from_numpy(decode_pixels(contents[0].numpy().tobytes())).permute(2, 0, 1).to(device)]
        except ImageError as error:
            return [str(error)]
    return decoded


def require_jpeg_decoder(device: torch.device) -> None:
    """Refuse --jpeg-decoder gpu where no GPU decodes JPEG."""
    option, remedy = f"--jpeg-decoder {GPU_DECODER}", "leave it out: the processor then decodes them"
    if device.type != "cuda":
        raise SpatialfeatError(f"{option}: needs a CUDA device, and this runs on {device}; {remedy}")
    small = BytesIO()
    Image.new("RGB", (64, 64)).save(small, "JPEG")
    content = torch.frombuffer(bytearray(small.getvalue()), dtype=torch.uint8)
    try:
        io.decode_jpeg([content], io.ImageReadMode.RGB, device=device)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise SpatialfeatError(f"{option}: this torchvision does not decode on the GPU ({reason}); {remedy}") from error
