"""`spatialfeat check`: is a data set fit for a night of training? What is wrong with it, what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch

from spatialfeat.checks.estimate import estimate_study
from spatialfeat.checks.findings import CODES, Finding
from spatialfeat.checks.images import check_images
from spatialfeat.checks.report import CheckReport, render
from spatialfeat.checks.rows import check_labels, phase_counts, read_tables
from spatialfeat.checks.videos import check_videos, video_facts
from spatialfeat.config import CheckConfig
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.patients import ids_as_read
from spatialfeat.device import choose_precision, select_device
from spatialfeat.files import prepare_output_dir, write_atomically, write_json
from spatialfeat.names import natural_key
from spatialfeat.reports.plots import balance_figure, save_figure
from spatialfeat.runrecord import RunRecord


def check(config: CheckConfig) -> CheckReport:
    """Check the data set and write check.json, check.txt and class_balance.png to `config.out_dir`.

    Whatever is wrong with the data is a finding of the report, never an exception.

    Raises:
        SpatialfeatError: options that cannot be used.
    """
    device = select_device(config.device)
    config = replace(config, precision=choose_precision(config.precision, device))
    tables, findings = read_tables(config)
    prepare_output_dir(config.out_dir)
    with RunRecord(config.out_dir, "check", config, [table.source for table in tables]) as record:
        report = examine(config, tables, findings, device)
        _write(report)
        record.finish(ok=not report.failed)
    return report


def examine(
    config: CheckConfig, tables: Sequence[FrameTable], findings: Sequence[Finding], device: torch.device
) -> CheckReport:
    """Run every check. tables, findings: what `read_tables` has read, and found while reading."""
    counts = phase_counts(tables, config.num_classes)
    videos_of_tables = [video_facts(table) for table in tables]
    videos = sorted(chain(*videos_of_tables), key=lambda video: natural_key(video.video_id))
    asked = any(finding.code == "one-frame-videos" for finding in findings)
    findings = [*findings, *check_labels(counts, config.phase_names, findings)]
    findings += check_videos(videos, config.fps, asked_about_single_frames=asked)
    scan, about_images = check_images(config, tables, findings)
    findings += about_images
    estimate = None
    if config.estimate and scan is not None and scan.readable:
        estimate, about_machine = estimate_study(config, tables, len(videos), list(scan.readable), device)
        findings += about_machine
    return CheckReport(
        config=config,
        findings=sorted(findings, key=lambda finding: list(CODES).index(finding.code)),
        ids=ids_as_read(tables),
        splits=[
            {
                "split": table.split,
                "csv": str(table.source),
                "num_rows": len(table),
                "num_videos": len(own),
                "num_patients": len({video.patient_id for video in own}),
                "seconds": sum(video.num_frames * video.step for video in own) / config.fps,
            }
            for table, own in zip(tables, videos_of_tables, strict=True)
        ],
        videos=videos,
        phase_counts=counts,
        scan=scan,
        estimate=estimate,
    )


def _write(report: CheckReport) -> None:
    """check.json and check.txt, and class_balance as PNG and SVG where there are labels."""
    out_dir, text = report.config.out_dir, render(report) + "\n"
    write_json(out_dir / "check.json", report.as_json())
    write_atomically(out_dir / "check.txt", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    labelled = {split: frames for split, frames in report.phase_counts.items() if sum(frames)}
    if labelled:
        save_figure(balance_figure(labelled, report.phase_names), out_dir / "class_balance.png")
    else:
        # A picture of an earlier check would show other data.
        for suffix in (".png", ".svg"):
            (out_dir / f"class_balance{suffix}").unlink(missing_ok=True)
