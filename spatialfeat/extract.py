"""`spatialfeat extract`: one HDF5 feature file per video, in one pass over all frames."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spatialfeat.config import ExtractConfig
from spatialfeat.data.dataset import FrameDataset, make_loader
from spatialfeat.data.framecache import FrameCache, open_cache
from spatialfeat.data.framecheck import IsCached, check_images, describe_broken_image
from spatialfeat.data.frames import FrameTable, list_frames, read_frames
from spatialfeat.data.pseudonyms import pseudonymized
from spatialfeat.data.splits import UNNAMED_SPLIT, named_csvs
from spatialfeat.data.transforms import evaluation_transform
from spatialfeat.data.videos import Video, group_videos
from spatialfeat.errors import SpatialfeatError
from spatialfeat.faults import computing_faults_told
from spatialfeat.features.extractplan import feature_path, image_paths, plan_extraction, stat_digest, video_header
from spatialfeat.features.featureschema import PSEUDONYMIZED, Recipe
from spatialfeat.features.featurewriter import FeatureFileWriter, remove_partial_files
from spatialfeat.files import prepare_output_dir, require_room
from spatialfeat.network.checkpoint import MORE_CLASSES, Checkpoint, load_checkpoint
from spatialfeat.network.inference import NOT_FINITE, FrameOutputs, run_inference
from spatialfeat.network.model import BACKBONE, FEATURE_LAYER, NUM_FEATURES
from spatialfeat.progress import frame_bar
from spatialfeat.runrecord import RunRecord
from spatialfeat.runtime import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    keep_freed_memory,
    library_versions,
    select_device,
    use_true_float32,
)
from spatialfeat.wording import count_text

logger = logging.getLogger(__name__)


@dataclass
class ExtractResult:
    """Video ids by what became of them; `failed` maps an id to the reason."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def extract(config: ExtractConfig) -> ExtractResult:
    """Write the feature files of all videos of all CSVs to `config.out_dir`.

    A video with an unreadable frame gets no file and is listed in the result; the others are written.

    Raises:
        SpatialfeatError: anything that the user can mend, before the first frame is computed where possible.
    """
    csvs = named_csvs(config.csvs)
    unlabelled = [] if csvs else [_all_images(config.img_dir)]
    checkpoint = load_checkpoint(config.weights, num_classes=config.num_classes, phase_names=config.phase_names)
    tables = [_read_table(config, checkpoint, split, path) for split, path in csvs] + unlabelled
    pseudonyms = None
    if config.pseudonymize is not None:
        tables, pseudonyms = pseudonymized(tables, config.pseudonymize, config.out_dir)
    videos = group_videos(tables, config.group_by)
    prepare_output_dir(config.out_dir)
    remove_partial_files(config.out_dir)
    result = ExtractResult()
    cache = open_cache(config.cache_dir, config.cache_limit_gb)
    result.failed = _videos_with_broken_images(videos, tables, _is_cached(checkpoint, cache))
    device = select_device(config.device)
    precision = choose_precision(config.precision, device)
    recipe = _recipe(config, checkpoint, precision)
    sound = [video for video in videos if video.video_id not in result.failed]
    plan = plan_extraction(sound, config.out_dir, recipe, overwrite=config.overwrite, pseudonyms=pseudonyms)
    result.skipped = [video.video_id for video in plan.done]
    use_true_float32()
    keep_freed_memory()
    with RunRecord(
        config.out_dir,
        "extract",
        config,
        [path for _, path in csvs],
        private=pseudonyms is not None,
        device=describe_device(device),
        precision=precision,
        weights_sha256=checkpoint.sha256,
    ) as record:
        _announce(config, videos, device, precision)
        if plan.to_compute:
            require_room(config.out_dir, _num_bytes(plan.to_compute, checkpoint), "the feature files take")
            sink = _FeatureSink(plan.to_compute, config.out_dir, recipe, result, private=pseudonyms is not None)
            _compute(config, checkpoint, plan.to_compute, device, precision, sink, cache)
        status = "incomplete" if result.failed else "complete"
        facts = {} if cache is None else {"cache": cache.close()}
        # Reasons name images, and so patients.
        failed = result.failed if pseudonyms is None else dict.fromkeys(result.failed, "told on the terminal only")
        record.finish(status, written=result.written, skipped=result.skipped, failed=failed, **facts)
    _report(config.out_dir, result)
    return result


def _all_images(img_dir: Path) -> FrameTable:
    """Without any CSV: all frames of the folder, unlabelled."""
    table = list_frames(img_dir, split=UNNAMED_SPLIT)
    logger.info("no CSV: extracting all %d images of %s, unlabelled, as split %r", len(table), img_dir, UNNAMED_SPLIT)
    return table


def _read_table(config: ExtractConfig, checkpoint: Checkpoint, split: str, path: Path) -> FrameTable:
    return read_frames(
        path,
        config.img_dir,
        split=split,
        num_classes=checkpoint.num_classes,
        labels_required=False,
        more_classes=MORE_CLASSES,
    )


def _recipe(config: ExtractConfig, checkpoint: Checkpoint, precision: str) -> Recipe:
    return Recipe(
        weights_sha256=checkpoint.sha256,
        phase_names=checkpoint.phase_names,
        preprocessing=json.dumps(checkpoint.preprocessing.as_dict(), sort_keys=True),
        precision=precision,
        backbone=BACKBONE,
        layer=FEATURE_LAYER,
        layout=config.layout,
        group_by=config.group_by,
        fps=config.fps,
    )


def _is_cached(checkpoint: Checkpoint, cache: FrameCache | None) -> IsCached | None:
    if cache is None:
        return None
    recipe = evaluation_transform(checkpoint.preprocessing).recipe
    return lambda _, path: cache.holds(path, recipe)


def _videos_with_broken_images(
    videos: Sequence[Video], tables: Sequence[FrameTable], is_cached: IsCached | None
) -> dict[str, str]:
    """{video id: its first broken image}. Refuses a run in which no video is left."""
    broken = check_images(tables, is_cached=is_cached)
    reasons = {(id(table), row): describe_broken_image(table, row, reason) for table, row, reason in broken}
    failed: dict[str, str] = {}
    for video in videos:
        found = [reasons[key] for row in video.rows.tolist() if (key := (id(video.table), row)) in reasons]
        if found:
            failed[video.video_id] = found[0] + (f" ({len(found)} such images)" if len(found) > 1 else "")
    if len(failed) == len(videos):
        raise SpatialfeatError(f"{next(iter(failed.values()))}; no video is left to extract: check --img-dir")
    return failed


def _num_bytes(videos: Sequence[Video], checkpoint: Checkpoint) -> int:
    """What the feature files of `videos` take at least."""
    return sum(map(len, videos)) * (NUM_FEATURES + checkpoint.num_classes) * np.dtype(np.float32).itemsize


class _FeatureSink:
    """Takes the network's outputs in the order of the frames and cuts them into one file per video."""

    def __init__(
        self, videos: Sequence[Video], out_dir: Path, recipe: Recipe, result: ExtractResult, *, private: bool
    ) -> None:
        self._attributes = {PSEUDONYMIZED: "yes"} if private else {}
        self._videos, self._out_dir, self._recipe, self._result = videos, out_dir, recipe, result
        self._ends = np.cumsum([len(video) for video in videos])
        self._versions = library_versions()
        self._writer: FeatureFileWriter | None = None
        self._images_digest = hashlib.sha256()

    def take(self, outputs: FrameOutputs) -> None:
        """Write the frames of one batch. A frame without features fails its video, never a single row."""
        for row, reason in outputs.failures:
            video, table_row = self._locate(row)
            self._fail(video, describe_broken_image(video.table, table_row, reason))
        for row in outputs.rows_not_finite():
            video, table_row = self._locate(row)
            self._fail(video, f"{video.table.where(table_row)}: {NOT_FINITE}")
        video_of_row = np.searchsorted(self._ends, outputs.rows, side="right")
        for index in np.unique(video_of_row).tolist():
            mine = np.flatnonzero(video_of_row == index)
            video = self._videos[index]
            if video.video_id not in self._result.failed:
                self._append(video, outputs.features[mine], outputs.logits[mine], [outputs.digests[i] for i in mine])
            if outputs.rows[mine[-1]] == self._ends[index] - 1:
                self._finish(video)

    def progress(self) -> str:
        """`2 of 7 videos are finished and kept: 1050_1, 1050_2`."""
        written = self._result.written
        names = f": {', '.join(written)}" if written else ""
        return f"{len(written)} of {count_text(len(self._videos), 'video')} are finished and kept{names}"

    def close(self) -> None:
        """Remove the file of the video that was not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _append(
        self, video: Video, features: NDArray[np.float32], logits: NDArray[np.float32], digests: list[bytes]
    ) -> None:
        if self._writer is None:
            path = feature_path(self._out_dir, video)
            self._writer = FeatureFileWriter(path, video_header(video), self._recipe, self._versions)
            self._images_digest = hashlib.sha256()
        self._writer.append(features, logits)
        self._images_digest.update(b"".join(digests))

    def _finish(self, video: Video) -> None:
        if self._writer is None:
            return
        try:
            images_stat = stat_digest(image_paths(video))
        except FileNotFoundError as error:
            self._fail(video, f"{error.filename}: was removed while the video was extracted")
            return
        content = self._images_digest.hexdigest()
        self._writer.finish(images_stat=images_stat, images_content=content, **self._attributes)
        self._writer = None
        self._result.written.append(video.video_id)

    def _locate(self, row: int) -> tuple[Video, int]:
        """The video that a row of the dataset belongs to, and the row of the video's table."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        video = self._videos[index]
        return video, int(video.rows[row - (self._ends[index] - len(video))])

    def _fail(self, video: Video, reason: str) -> None:
        self._result.failed.setdefault(video.video_id, reason)
        if self._writer is not None and self._writer.video_id == video.video_id:
            self.close()


def _compute(
    config: ExtractConfig,
    checkpoint: Checkpoint,
    videos: Sequence[Video],
    device: torch.device,
    precision: str,
    sink: _FeatureSink,
    cache: FrameCache | None,
) -> None:
    """Run the network over all frames of `videos`, one video after the other."""
    dataset = FrameDataset(
        np.concatenate([np.full(len(video), str(video.table.img_dir)) for video in videos]),
        np.concatenate([video.table.image_names[video.rows] for video in videos]),
        np.concatenate([video.table.labels[video.rows] for video in videos]),
        evaluation_transform(checkpoint.preprocessing),
        cache=cache,
        with_digests=True,
    )
    workers = choose_workers(config.workers, device)
    loader = make_loader(dataset, batch_size=config.batch_size, workers=workers, device=device)
    try:
        with (
            computing_faults_told(batch_size=config.batch_size, workers=workers),
            frame_bar(len(dataset), "extract") as bar,
        ):
            outputs_of_batches = run_inference(
                checkpoint.model, loader, device, checkpoint.preprocessing, precision, config.batch_size
            )
            for outputs in outputs_of_batches:
                sink.take(outputs)
                bar.advance(len(outputs.rows) + len(outputs.failures))
    except (SpatialfeatError, KeyboardInterrupt):
        logger.info("%s; run the same command again for the others", sink.progress())
        raise
    finally:
        sink.close()


def _announce(config: ExtractConfig, videos: Sequence[Video], device: torch.device, precision: str) -> None:
    what = count_text(len(videos), config.group_by)
    arithmetic = describe_arithmetic(device, precision)
    logger.info("%s, %s; computing on %s", what, count_text(sum(map(len, videos)), "frame"), arithmetic)


def _report(out_dir: Path, result: ExtractResult) -> None:
    logger.info("%s written to %s", count_text(len(result.written), "feature file"), out_dir)
    if result.skipped:
        logger.info("%d already there, made by the same weights, options and frames", len(result.skipped))
    for video_id, reason in result.failed.items():
        logger.error("video %s has no feature file: %s", video_id, reason)
