"""`spatialfeat extract`: one HDF5 feature file per video, in one pass over all frames."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spatialfeat.config import IMAGENET, ExtractConfig
from spatialfeat.console import count_text, frame_bar
from spatialfeat.data.cache import open_cache, total_use
from spatialfeat.data.dataset import (
    FrameDataset,
    check_image_files,
    count_broken,
    describe_broken_image,
    make_loader,
    where_missing_may_be,
)
from spatialfeat.data.frames import (
    UNLABELLED,
    UNNAMED_SPLIT,
    FrameTable,
    count_gaps,
    doubtful_fps,
    group_videos,
    list_frames,
    named_csvs,
    read_frames,
    unlabelled_text,
)
from spatialfeat.data.ids import IdRule
from spatialfeat.data.patients import show_reading
from spatialfeat.data.pseudonyms import Pseudonyms, pseudonymized
from spatialfeat.data.staging import require_jpeg_decoder
from spatialfeat.data.transforms import evaluation_transform
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    prepare_processor,
    use_true_float32,
)
from spatialfeat.distributed import ProcessGroup, process_group, translate_lost_contact
from spatialfeat.encoders import data_set_warning
from spatialfeat.errors import SpatialfeatError, translate_computing_faults
from spatialfeat.features.plan import feature_path, parse_shard, plan_extraction, share_out
from spatialfeat.features.schema import Provenance
from spatialfeat.features.writer import FeatureSink, remove_partial_files
from spatialfeat.files import output_dir, require_room
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.network.inference import run_inference
from spatialfeat.network.weights import MORE_CLASSES, checkpoint_of, described_id_rule, warn_of_many_classes
from spatialfeat.runrecord import RunRecord

logger = logging.getLogger(__name__)


@dataclass
class ExtractResult:
    """Video ids by what became of them; `failed` maps an id to the reason."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def extract(config: ExtractConfig) -> ExtractResult:
    """Write the feature files of all videos of all CSVs, or of one shard of them, to `config.out_dir`.

    A video with an unreadable frame gets no file and is listed in the result; the others are written. Processes that
    torchrun has started share out the videos; the result is that of all of them.

    Raises:
        SpatialfeatError: anything that the user can fix, before the first frame is computed where possible.
    """
    use_true_float32()
    prepare_processor()
    with process_group(config.device) as group:
        with group.together():
            extraction = _Extraction(config, group)
            found = None
            if group.is_main:  # Looking at every image and feature file is left to one process.
                with output_dir(config.out_dir):
                    found = extraction.look()
        group.require_same("--precision", extraction.provenance.precision, "pass the one that all devices have")
        to_compute, result = group.broadcast(found)
        return extraction.run(to_compute, result)


class _Extraction:
    """One run of the command, in one process of `group`. `videos` are those of this shard."""

    def __init__(self, config: ExtractConfig, group: ProcessGroup) -> None:
        self.config, self.group = config, group
        if config.jpeg_on_device:
            require_jpeg_decoder(group.device)
        csvs = named_csvs(config.csvs) if config.read_csvs else []
        self.csv_paths = [path for _, path in csvs]
        self.id_rule = IdRule.given(config.id_form, config.id_pattern, lambda: described_id_rule(config.weights))
        self.tables = [] if csvs else [self._all_images()]  # Before the weights, which take seconds.
        # ImageNet weights are downloaded once.
        with group.main_first() if config.weights == Path(IMAGENET) else nullcontext():
            self.checkpoint = checkpoint_of(
                config,
                num_classes=config.num_classes,
                phase_names=config.phase_names,
                needs_classifier=False,
                csv=self.csv_paths[0] if csvs else None,
            )
        self.tables += [self._read_table(split, path) for split, path in csvs]
        show_reading(self.tables)
        warn_of_many_classes(self.checkpoint, self.tables)
        self.pseudonyms: Pseudonyms | None = None
        if config.pseudonymize is not None:
            self.tables, self.pseudonyms = pseudonymized(self.tables, config.pseudonymize, config.out_dir)
        self.shard = parse_shard(config.shard)
        shares = share_out(group_videos(self.tables, config.group_by), self.shard.count)
        self.videos = shares.pop(self.shard.index - 1)
        self.elsewhere = frozenset(feature_path(config.out_dir, video) for share in shares for video in share)
        self.provenance = Provenance(
            weights_sha256=self.checkpoint.sha256,
            phase_names=self.checkpoint.phase_names,
            preprocessing=json.dumps(self.checkpoint.preprocessing.as_dict(), sort_keys=True),
            precision=choose_precision(config.precision, group.device),
            backbone=self.checkpoint.backbone.name,
            layer=self.checkpoint.backbone.layer,
            layout=config.layout,
            group_by=config.group_by,
            fps=config.fps,
            id_rule=str(self.tables[0].id_rule),
            jpeg_decoder=config.jpeg_decoder,
        )
        self.cache = open_cache(config.cache_dir, config.cache_limit_gb)

    def look(self) -> tuple[list[str], ExtractResult]:
        """Look at the images, and at what is in the folder: (videos to compute, result so far)."""
        config = self.config
        remove_partial_files(config.out_dir)
        failed = self._videos_with_broken_images()
        to_compute, done = plan_extraction(
            [video for video in self.videos if video.video_id not in failed],
            config.out_dir,
            self.provenance,
            overwrite=config.overwrite,
            data_set=config.data_set,
            pseudonyms=self.pseudonyms,
            elsewhere=self.elsewhere,
        )
        if to_compute:
            num_features = self.checkpoint.backbone.num_features
            num_values = sum(map(len, to_compute)) * (num_features + self.checkpoint.num_logits)
            num_bytes = num_values * np.dtype(np.float32).itemsize
            require_room(config.out_dir, num_bytes, "the feature files take")
        skipped = [video.video_id for video in done]
        return [video.video_id for video in to_compute], ExtractResult(skipped=skipped, failed=failed)

    def run(self, to_compute: list[str], result: ExtractResult) -> ExtractResult:
        """Compute this process's share; the main process keeps the record and reports for all."""
        group, config, private = self.group, self.config, self.pseudonyms is not None
        record = self._start_record() if group.is_main else None
        with record or nullcontext(), translate_lost_contact():
            self._announce()
            chosen = set(to_compute)
            share = share_out([video for video in self.videos if video.video_id in chosen], group.size)[group.rank]
            sink = FeatureSink(
                share,
                config.out_dir,
                self.provenance,
                pseudonymized=private,
                weights_origin=self.checkpoint.origin,
                data_set=config.data_set or "",
            )
            if share:
                self._compute(sink)
            written, failed = set[str](), dict[str, str]()
            for some_written, some_failed in group.gather((sink.written, sink.failed)):
                written |= set(some_written)
                failed |= some_failed
            result.written = [video_id for video_id in to_compute if video_id in written]
            result.failed |= {video_id: failed[video_id] for video_id in to_compute if video_id in failed}
            facts = {} if self.cache is None else {"cache": total_use(group.gather(self.cache.close()))}
            if record:
                status = "incomplete" if result.failed else "complete"
                # Reasons name images, and so patients.
                reasons = dict.fromkeys(result.failed, "see the terminal") if private else result.failed
                record.finish(status, written=result.written, skipped=result.skipped, failed=reasons, **facts)
        if group.is_main:
            self._report(result)
        # The first process to end with an error makes torchrun end the others: everything is on disk and said by then.
        group.wait()
        return result

    def _read_table(self, split: str, path: Path) -> FrameTable:
        return read_frames(
            path,
            self.config.img_dir,
            split=split,
            id_rule=self.id_rule,
            num_classes=self.checkpoint.num_classes,
            phase_names=self.checkpoint.phase_names,
            labels_required=False,
            more_classes=MORE_CLASSES if self.checkpoint.num_logits else "pass --num-classes",
        )

    def _videos_with_broken_images(self) -> dict[str, str]:
        """{video id: its first broken image}. Refuses a run in which no video is left."""
        of_table = [[video.rows for video in self.videos if video.table is table] for table in self.tables]
        rows = [np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64) for found in of_table]
        cache, steps = self.cache, evaluation_transform(self.checkpoint.preprocessing).fixed_steps
        is_kept = None if cache is None else lambda table, name: cache.holds(table.images, name, steps)
        broken = check_image_files(self.tables, rows=rows, is_kept=is_kept)
        reasons = {(id(table), row): describe_broken_image(table, row, reason) for table, row, reason in broken}
        failed: dict[str, str] = {}
        for video in self.videos:
            found = [reasons[key] for row in video.rows.tolist() if (key := (id(video.table), row)) in reasons]
            if found:
                failed[video.video_id] = found[0] + (f" ({len(found)} such images)" if len(found) > 1 else "")
        where = where_missing_may_be(broken)
        if failed and len(failed) == len(self.videos):
            first = describe_broken_image(*broken[0])
            others = count_broken(broken, sum(map(len, self.videos)))
            raise SpatialfeatError(f"{first}{others}; no video is left to extract: {where or 'check --img-dir'}")
        if where:
            logger.warning("of the missing images: %s", where)
        return failed

    def _all_images(self) -> FrameTable:
        """Without any CSV: all frames of the folder, unlabelled."""
        table = list_frames(self.config.img_dir, split=UNNAMED_SPLIT, id_rule=self.id_rule)
        count, where = len(table), self.config.img_dir
        logger.info("no CSV: extracting all %d images of %s, unlabelled, as split %r", count, where, UNNAMED_SPLIT)
        return table

    def _start_record(self) -> RunRecord:
        return RunRecord(
            self.config.out_dir,
            "extract",
            self.config,
            self.csv_paths,
            private=self.pseudonyms is not None,
            file_name=self.shard.run_record_name,
            device=describe_device(self.group.device) + self.group.processes_text,
            precision=self.provenance.precision,
            weights_sha256=self.checkpoint.sha256,
        )

    def _compute(self, sink: FeatureSink) -> None:
        """Run the network over all frames of the sink's videos, one video after the other."""
        config, checkpoint, device = self.config, self.checkpoint, self.group.device
        dataset = FrameDataset(
            [(video.table, video.rows) for video in sink.videos],
            evaluation_transform(checkpoint.preprocessing),
            cache=self.cache,
            with_digests=True,
            jpeg_on_device=config.jpeg_on_device,
        )
        workers = choose_workers(config.workers, device, processes=self.group.local_size)
        loader = make_loader(dataset, batch_size=config.batch_size, workers=workers, device=device)
        try:
            with (
                translate_computing_faults(batch_size=config.batch_size, workers=workers),
                frame_bar(len(dataset), "extract" + self.group.own_share_text) as advance,
            ):
                batches = iter(loader)  # Decoding begins, while the network is made ready.
                network = InferenceNetwork(
                    checkpoint.model.to(device), checkpoint.preprocessing, self.provenance.precision, config.batch_size
                )
                for outputs in run_inference(network, batches):
                    sink.take(outputs)
                    advance(len(outputs.positions) + len(outputs.failures))
        except (SpatialfeatError, KeyboardInterrupt):
            logger.info("%s; run the same command again for the others", sink.progress())
            raise
        finally:
            sink.close()

    def _announce(self) -> None:
        what = count_text(len(self.videos), self.config.group_by)
        frames = count_text(sum(map(len, self.videos)), "frame")
        where = f"shard {self.config.shard}: " if self.config.shard else ""
        arithmetic = describe_arithmetic(self.group.device, self.provenance.precision)
        logger.info("%s%s, %s; computing on %s%s", where, what, frames, arithmetic, self.group.processes_text)
        if self.config.data_set and (doubt := data_set_warning(self.provenance.backbone, self.config.data_set)):
            logger.warning("%s", doubt)
        for table in self.tables:
            if self.csv_paths and (text := unlabelled_text(table)):
                logger.info("%s: kept, with label %d", text, UNLABELLED)
        steps = (
            count_gaps(video.table.segments[video.rows], video.table.frame_numbers[video.rows])[0]
            for video in self.videos
            if len(video) > 1
        )
        if doubt := doubtful_fps(steps, self.config.fps):
            logger.warning("%s", doubt)

    def _report(self, result: ExtractResult) -> None:
        logger.info("%s written to %s", count_text(len(result.written), "feature file"), self.config.out_dir)
        if result.skipped:
            logger.info("%d already there, made by the same weights, options and frames", len(result.skipped))
        for video_id, reason in result.failed.items():
            logger.error("video %s has no feature file: %s", video_id, reason)
