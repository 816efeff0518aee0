"""`spatialfeat check`: is a data set fit for a night of training? What is wrong with it, what it will take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spatialfeat.checks.estimate import Speeds, check_room, estimate_runs, machine_for, measure_speeds, rows_by_split
from spatialfeat.checks.findings import Finding, in_order
from spatialfeat.checks.images import (
    ImageScan,
    check_images,
    check_missing,
    check_unreadable,
    check_unused,
    present_ids,
    scan_images,
)
from spatialfeat.checks.report import CheckReport, SplitFacts, render
from spatialfeat.checks.rows import CheckedTables, check_ids, check_labels, phase_counts, read_tables
from spatialfeat.checks.videos import VideoFacts, check_videos, video_facts
from spatialfeat.config import CheckConfig, default_phase_names
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import ImageFolder
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.device import (
    MAX_WORKERS,
    choose_precision,
    prepare_processor,
    select_device,
    usable_cores,
    use_true_float32,
)
from spatialfeat.files import prepare_output_dir, write_atomically, write_json
from spatialfeat.reports.plots import balance_figure, save_figure
from spatialfeat.runrecord import RunRecord

logger = logging.getLogger(__name__)

INCOMPLETE_IDS = {"unreadable-csv", "bad-id", "repeated-id"}
"""With these, images may lack a row only because the row was refused."""


def check(config: CheckConfig) -> CheckReport:
    """Check the data set and write check.json, check.txt and class_balance.png to `config.out_dir`.

    Whatever is wrong with the data is a finding of the report, never an exception.

    Raises:
        SpatialfeatError: options that cannot be used.
    """
    device = select_device(config.device)
    config = replace(config, precision=choose_precision(config.precision, device))
    checked = read_tables(config)
    prepare_output_dir(config.out_dir)
    csvs = [table.source for table in checked.tables]
    with RunRecord(config.out_dir, "check", config, csvs) as record:
        report = examine(config, checked, device)
        _write(config.out_dir, report)
        record.finish(ok=not report.failed)
    return report


def examine(config: CheckConfig, checked: CheckedTables, device: torch.device) -> CheckReport:
    """Run every check on the rows that could be read, and add to what was found when reading them."""
    tables, findings = checked.tables, list(checked.findings)
    counts = phase_counts(tables, config.num_classes)
    findings += check_labels(counts, config.phase_names, findings)
    videos = video_facts(tables)
    findings += check_videos(videos, config.fps) + check_ids(tables)
    scan = _scan(config, tables, findings)
    machine, speeds, estimate = None, None, None
    readable = [] if scan is None else _readable(tables, scan)
    if config.estimate and readable:
        machine = machine_for(config.workers, device, Path())
        speeds = _speeds(config, readable, device, findings)
        if speeds is not None:
            estimate = estimate_runs(config.study(), rows_by_split(tables), len(videos), speeds, machine)
            findings += check_room(estimate, machine)
    return CheckReport(
        config=config,
        phase_names=config.phase_names or default_phase_names(config.num_classes),
        findings=in_order(findings),
        splits=[_split_facts(table, videos, config.fps) for table in tables],
        videos=videos,
        phase_counts=counts,
        scan=scan,
        machine=machine,
        speeds=speeds,
        estimate=estimate,
    )


def _scan(config: CheckConfig, tables: Sequence[FrameTable], findings: list[Finding]) -> ImageScan | None:
    """Look at every image that a row names. None if there is no such image."""
    if not tables:
        return None
    ids, names, troubles = present_ids(config.img_dir, tables)
    findings += troubles
    if troubles:
        return None
    findings += check_missing(config.img_dir, tables, names)
    if INCOMPLETE_IDS.isdisjoint(finding.code for finding in findings):
        findings += check_unused(config.img_dir, tables, names)
    if not ids:
        return None
    workers = min(usable_cores(), MAX_WORKERS) if config.workers is None else config.workers
    scan = scan_images(ImageFolder(config.img_dir), ids, workers=workers, decode=config.decode)
    findings += check_unreadable(tables, scan)
    if scan.readable.any():
        findings += check_images(tables, scan, Preprocessing.for_image_size(config.image_size_px).resize_px)
    return scan


def _readable(tables: Sequence[FrameTable], scan: ImageScan) -> list[FrameTable]:
    """The rows whose images can be read; tables without such rows are left out."""
    readable = scan.ids[scan.readable]
    kept = [table.take(np.isin(table.ids, readable)) for table in tables]
    return [table for table in kept if len(table)]


def _speeds(
    config: CheckConfig, tables: Sequence[FrameTable], device: torch.device, findings: list[Finding]
) -> Speeds | None:
    logger.info("measuring how fast this machine trains: a few seconds")
    use_true_float32()
    prepare_processor()
    try:
        return measure_speeds(config.study(), tables, device)
    except torch.OutOfMemoryError:
        findings.append(
            Finding(
                code="gpu-memory-too-small",
                message=f"a training batch of {config.batch_size} frames does not fit into the memory of {device}",
                remedy="lower --batch-size, or free the GPU of other programs",
                unit="GPU",
            )
        )
        return None


def _split_facts(table: FrameTable, videos: Sequence[VideoFacts], fps: float) -> SplitFacts:
    own = set(table.videos.tolist())
    return SplitFacts(
        split=table.split,
        csv=str(table.source),
        num_rows=len(table),
        num_videos=len(own),
        num_patients=len(set(table.patients.tolist())),
        seconds=sum(
            video.num_frames * video.step / fps
            for video in videos
            if video.split == table.split and video.video_id in own
        ),
    )


def _write(out_dir: Path, report: CheckReport) -> None:
    """check.json and check.txt, and class_balance as PNG and SVG where there are labels."""
    write_json(out_dir / "check.json", report.as_json())
    text = render(report) + "\n"
    write_atomically(out_dir / "check.txt", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    labelled = {split: frames for split, frames in report.phase_counts.items() if sum(frames)}
    if labelled:
        save_figure(balance_figure(labelled, report.phase_names), out_dir / "class_balance.png")
    else:
        # A picture of an earlier check would tell of other data.
        for suffix in (".png", ".svg"):
            (out_dir / f"class_balance{suffix}").unlink(missing_ok=True)
