"""`spatialfeat extract`: one HDF5 feature file per video, in one pass over all frames."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from spatialfeat.config import ExtractConfig, parse_shard
from spatialfeat.console import count_text, frame_bar
from spatialfeat.data.cache import FrameCache, open_cache, total_use
from spatialfeat.data.dataset import FrameDataset, IsCached, check_images, describe_broken_image, make_loader
from spatialfeat.data.frames import UNNAMED_SPLIT, FrameTable, Video, group_videos, list_frames, named_csvs, read_frames
from spatialfeat.data.pseudonyms import Pseudonyms, pseudonymized
from spatialfeat.data.transforms import evaluation_transform
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    prepare_processor,
    use_true_float32,
)
from spatialfeat.distributed import ProcessGroup, lost_contact_told, process_group
from spatialfeat.errors import SpatialfeatError, computing_faults_told
from spatialfeat.features.plan import (
    ExtractIntent,
    ExtractResult,
    feature_path,
    merge_results,
    plan_extraction,
    share_out,
)
from spatialfeat.features.schema import Recipe
from spatialfeat.features.writer import FeatureSink, remove_partial_files
from spatialfeat.files import prepare_output_dir, require_room
from spatialfeat.network.inference import run_inference
from spatialfeat.network.resnet import BACKBONE, FEATURE_LAYER, NUM_FEATURES
from spatialfeat.network.weights import MORE_CLASSES, Checkpoint, load_checkpoint
from spatialfeat.runrecord import RunRecord

logger = logging.getLogger(__name__)


def extract(config: ExtractConfig) -> ExtractResult:
    """Write the feature files of all videos of all CSVs, or of one shard of them, to `config.out_dir`.

    A video with an unreadable frame gets no file and is listed in the result; the others are written. Processes that
    torchrun has started share out the videos; the result is that of all of them.

    Raises:
        SpatialfeatError: anything that the user can mend, before the first frame is computed where possible.
    """
    use_true_float32()
    prepare_processor()
    with process_group(config.device) as group:
        with group.together():
            job = _read_job(config, group)
            # Looking at every image and feature file is left to one process.
            intent = _look(job) if group.is_main else None
        group.require_same("--precision", job.recipe.precision, "pass the one that all devices have")
        intent = ExtractIntent(**group.broadcast(asdict(intent) if intent else None))
        return _run(job, intent, group)


@dataclass(frozen=True)
class _Job:
    """An extraction as its options and CSVs describe it. `videos` are those of this shard.

    elsewhere: the feature files of the other shards. pseudonyms: None if the ids are real ones.
    """

    config: ExtractConfig
    checkpoint: Checkpoint
    recipe: Recipe
    csv_paths: list[Path]
    tables: list[FrameTable]
    videos: list[Video]
    elsewhere: frozenset[Path]
    pseudonyms: Pseudonyms | None
    cache: FrameCache | None


def _read_job(config: ExtractConfig, group: ProcessGroup) -> _Job:
    csvs = named_csvs(config.csvs)
    unlabelled = [] if csvs else [_all_images(config.img_dir)]
    checkpoint = load_checkpoint(config.weights, num_classes=config.num_classes, phase_names=config.phase_names)
    tables = [_read_table(config, checkpoint, split, path) for split, path in csvs] + unlabelled
    pseudonyms = None
    if config.pseudonymize is not None:
        tables, pseudonyms = pseudonymized(tables, config.pseudonymize, config.out_dir)
    videos = group_videos(tables, config.group_by)
    shard = parse_shard(config.shard)
    shares = share_out(videos, shard.count)
    others = [video for index, share in enumerate(shares, start=1) if index != shard.index for video in share]
    return _Job(
        config=config,
        checkpoint=checkpoint,
        recipe=_recipe(config, checkpoint, choose_precision(config.precision, group.device)),
        csv_paths=[path for _, path in csvs],
        tables=tables,
        videos=shares[shard.index - 1],
        elsewhere=frozenset(feature_path(config.out_dir, video) for video in others),
        pseudonyms=pseudonyms,
        cache=open_cache(config.cache_dir, config.cache_limit_gb),
    )


def _look(job: _Job) -> ExtractIntent:
    """Look at the images, and at what is in the folder already."""
    config = job.config
    prepare_output_dir(config.out_dir)
    remove_partial_files(config.out_dir)
    failed = _videos_with_broken_images(job)
    sound = [video for video in job.videos if video.video_id not in failed]
    plan = plan_extraction(
        sound,
        config.out_dir,
        job.recipe,
        overwrite=config.overwrite,
        pseudonyms=job.pseudonyms,
        elsewhere=job.elsewhere,
    )
    if plan.to_compute:
        require_room(config.out_dir, _num_bytes(plan.to_compute, job.checkpoint), "the feature files take")
    return ExtractIntent([video.video_id for video in plan.to_compute], [video.video_id for video in plan.done], failed)


def _run(job: _Job, intent: ExtractIntent, group: ProcessGroup) -> ExtractResult:
    """Compute this process's share; the main process keeps the record and reports for all."""
    record = _start_record(job, group) if group.is_main else None
    with record or nullcontext(), lost_contact_told():
        _announce(job, group)
        chosen = set(intent.to_compute)
        to_compute = [video for video in job.videos if video.video_id in chosen]
        result = ExtractResult()
        if share := share_out(to_compute, group.size)[group.rank]:
            sink = FeatureSink(share, job.config.out_dir, job.recipe, result, private=job.pseudonyms is not None)
            _compute(job, share, group, sink)
        result = merge_results(intent, group.gather(asdict(result)))
        facts = {} if job.cache is None else {"cache": total_use(group.gather(job.cache.close()))}
        if record:
            status = "incomplete" if result.failed else "complete"
            # Reasons name images, and so patients.
            private = job.pseudonyms is not None
            failed = dict.fromkeys(result.failed, "told on the terminal only") if private else result.failed
            record.finish(status, written=result.written, skipped=result.skipped, failed=failed, **facts)
    if group.is_main:
        _report(job.config.out_dir, result)
    # The first process to end with an error makes torchrun end the others: everything is on disk and said by then.
    group.wait()
    return result


def _start_record(job: _Job, group: ProcessGroup) -> RunRecord:
    return RunRecord(
        job.config.out_dir,
        "extract",
        job.config,
        job.csv_paths,
        private=job.pseudonyms is not None,
        file_name=parse_shard(job.config.shard).run_record_name,
        device=group.description,
        precision=job.recipe.precision,
        weights_sha256=job.checkpoint.sha256,
    )


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


def _videos_with_broken_images(job: _Job) -> dict[str, str]:
    """{video id: its first broken image}. Refuses a run in which no video is left."""
    videos, tables = job.videos, job.tables
    of_table = [[video.rows for video in videos if video.table is table] for table in tables]
    rows = [np.sort(np.concatenate(found)).tolist() if found else [] for found in of_table]
    broken = check_images(tables, rows=rows, is_cached=_is_cached(job.checkpoint, job.cache))
    reasons = {(id(table), row): describe_broken_image(table, row, reason) for table, row, reason in broken}
    failed: dict[str, str] = {}
    for video in videos:
        found = [reasons[key] for row in video.rows.tolist() if (key := (id(video.table), row)) in reasons]
        if found:
            failed[video.video_id] = found[0] + (f" ({len(found)} such images)" if len(found) > 1 else "")
    if failed and len(failed) == len(videos):
        raise SpatialfeatError(f"{next(iter(failed.values()))}; no video is left to extract: check --img-dir")
    return failed


def _num_bytes(videos: Sequence[Video], checkpoint: Checkpoint) -> int:
    """What the feature files of `videos` take at least."""
    return sum(map(len, videos)) * (NUM_FEATURES + checkpoint.num_classes) * np.dtype(np.float32).itemsize


def _compute(job: _Job, videos: Sequence[Video], group: ProcessGroup, sink: FeatureSink) -> None:
    """Run the network over all frames of `videos`, this process's share, one video after the other."""
    config, checkpoint, device = job.config, job.checkpoint, group.device
    dataset = FrameDataset(
        np.concatenate([np.full(len(video), str(video.table.img_dir)) for video in videos]),
        np.concatenate([video.table.image_names[video.rows] for video in videos]),
        np.concatenate([video.table.labels[video.rows] for video in videos]),
        evaluation_transform(checkpoint.preprocessing),
        cache=job.cache,
        with_digests=True,
    )
    workers = choose_workers(config.workers, device, processes=group.local_size)
    loader = make_loader(dataset, batch_size=config.batch_size, workers=workers, device=device)
    try:
        with (
            computing_faults_told(batch_size=config.batch_size, workers=workers),
            frame_bar(len(dataset), "extract" + group.own_share_text) as bar,
        ):
            precision, batch_size = job.recipe.precision, config.batch_size
            batches = run_inference(checkpoint.model, loader, device, checkpoint.preprocessing, precision, batch_size)
            for outputs in batches:
                sink.take(outputs)
                bar.advance(len(outputs.rows) + len(outputs.failures))
    except (SpatialfeatError, KeyboardInterrupt):
        logger.info("%s; run the same command again for the others", sink.progress())
        raise
    finally:
        sink.close()


def _announce(job: _Job, group: ProcessGroup) -> None:
    what = count_text(len(job.videos), job.config.group_by)
    frames = count_text(sum(map(len, job.videos)), "frame")
    where = f"shard {job.config.shard}: " if job.config.shard else ""
    arithmetic = describe_arithmetic(group.device, job.recipe.precision)
    logger.info("%s%s, %s; computing on %s%s", where, what, frames, arithmetic, group.processes_text)


def _report(out_dir: Path, result: ExtractResult) -> None:
    logger.info("%s written to %s", count_text(len(result.written), "feature file"), out_dir)
    if result.skipped:
        logger.info("%d already there, made by the same weights, options and frames", len(result.skipped))
    for video_id, reason in result.failed.items():
        logger.error("video %s has no feature file: %s", video_id, reason)
