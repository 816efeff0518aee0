"""All that a check found: as check.json for programs, and as text for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from spatialfeat.checks.estimate import Estimate
from spatialfeat.checks.findings import ERROR, LEVELS, NOTE, WARNING, Finding
from spatialfeat.checks.images import ImageScan
from spatialfeat.checks.videos import VideoFacts
from spatialfeat.config import CheckConfig
from spatialfeat.console import (
    align,
    clock_text,
    count_text,
    duration_text,
    name_some,
    phase_lines,
    share_cells,
    size_text,
    wrap,
)
from spatialfeat.phases import default_phase_names

CHECK_SCHEMA = 1
SHOWN_PLACES = 4
TITLES = {
    ERROR: "ERRORS: a run would stop, or its numbers would be worthless",
    WARNING: "WARNINGS: look at these before you trust a result",
    NOTE: "NOTES: normal in many data sets, and good to know",
}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """findings: errors first. ids: some, as they are read. splits: each CSV in numbers, with seconds at --fps.

    phase_counts: {split: frames of each phase}.

    scan, estimate: None where not done.
    """

    config: CheckConfig
    findings: list[Finding]
    ids: list[str]
    splits: list[dict[str, Any]]
    videos: list[VideoFacts]
    phase_counts: dict[str, list[int]]
    scan: ImageScan | None
    estimate: Estimate | None

    @property
    def phase_names(self) -> tuple[str, ...]:
        return self.config.phase_names or default_phase_names(self.config.num_classes)

    def of_level(self, level: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]

    @property
    def failed(self) -> bool:
        """Would a run break, or its numbers be worthless?"""
        return bool(self.of_level(ERROR))

    def as_json(self) -> dict[str, Any]:
        """The content of check.json: see docs/formats.md."""
        return {
            "schema": CHECK_SCHEMA,
            "ok": not self.failed,
            "counts": {level: len(self.of_level(level)) for level in LEVELS},
            "findings": [finding.as_dict() for finding in self.findings],
            "ids": self.ids,
            "splits": self.splits,
            "phases": {
                split: dict(zip(self.phase_names, frames, strict=True)) for split, frames in self.phase_counts.items()
            },
            "images": self.scan and self.scan.as_dict(),
            "videos": [asdict(video) for video in self.videos],
            "estimate": self.estimate and self.estimate.as_dict(),
        }


def render(report: CheckReport) -> str:
    """The report as lines of at most 100 columns, without a final newline."""
    blocks = [_data_lines(report)]
    if report.estimate is not None:
        blocks.append(_estimate_lines(report.estimate, report.config))
    # The worst last: a terminal shows the end.
    blocks += [_level_lines(level, report.of_level(level)) for level in reversed(LEVELS) if report.of_level(level)]
    blocks.append(_verdict(report))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _data_lines(report: CheckReport) -> list[str]:
    splits = [["split", "rows", "videos", "patients", "time", "CSV"]]
    for split in report.splits:
        counts = (str(split[name]) for name in ("num_rows", "num_videos", "num_patients"))
        splits.append([split["split"], *counts, clock_text(split["seconds"]), split["csv"]])
    lines = align(splits, left=(0, 5)) if report.splits else ["no CSV could be read"]
    if report.ids:
        lines += ["", "ids as they are read"]
        lines += [line for text in report.ids for line in wrap(text, "  ")]
    splits_frames = report.phase_counts.values()
    if any(map(sum, splits_frames)):
        columns = {split: share_cells(frames) for split, frames in report.phase_counts.items()}
        totals = [sum(frames) for frames in zip(*splits_frames, strict=True)]
        lines += ["", "frames per phase", *phase_lines(report.phase_names, columns, totals)]
    if report.scan is not None:
        scan = report.scan
        images = f"{count_text(len(scan.facts), 'image')}, {size_text(scan.num_bytes)}"
        if scan.readable:
            lines += ["", *wrap(f"{images}: {_short_counts(scan.sizes)}; {_short_counts(scan.kinds)}", "")]
        else:
            lines += ["", f"{count_text(len(scan.facts), 'image')}, none of which can be decoded"]
    return lines


def _short_counts(counts: dict[str, int]) -> str:
    return name_some((f"{name} ({count})" if len(counts) > 1 else name for name, count in counts.items()), 3)


def _estimate_lines(estimate: Estimate, config: CheckConfig) -> list[str]:
    machine, indent = estimate.machine, " " * 12
    processes = count_text(machine.workers, "decoding process", "decoding processes")
    batch = f"a batch of {count_text(estimate.speeds.probe_batch, 'frame')} took"
    memory = "GPU memory" if machine.gpu_bytes is not None else "memory"
    lines = [f"ESTIMATE for this machine as it is now: {machine.device}, {processes}"]
    if estimate.epoch_s is not None and estimate.first_stop_s is not None and estimate.most_s is not None:
        times = (
            f"finetune  {duration_text(estimate.epoch_s)} an epoch of train and val; "
            f"{duration_text(estimate.first_stop_s)} if it stops after {min(config.patience + 1, config.epochs)}, "
            f"{duration_text(estimate.most_s)} for {config.epochs} epochs"
        )
        lines += wrap(times, "  ", indent)
        peak = size_text(estimate.finetune_gpu_bytes or estimate.finetune_memory_bytes or 0)
        disk = size_text(estimate.finetune_disk_bytes or 0)
        lines.append(f"{indent}{disk} of disk; training on {batch} {peak} of {memory}")
    peak = size_text(estimate.extract_gpu_bytes or estimate.extract_memory_bytes or 0)
    lines += [
        f"  extract   {duration_text(estimate.extract_s)} for all frames",
        f"{indent}{size_text(estimate.extract_disk_bytes)} of disk; {batch} {peak} of {memory}",
    ]
    return lines + wrap(
        "Measured in a few seconds, while the files were in memory: expect it to be off by a third, and by more where "
        "a disk is slow or other programs run.",
        "  ",
    )


def _level_lines(level: str, findings: list[Finding]) -> list[str]:
    lines = [TITLES[level]]
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        lines += _finding_lines(finding)
        if following is None or following.remedy != finding.remedy:
            lines += wrap(finding.remedy, "    -> ")
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    many = f" ({count_text(finding.count, finding.unit)})" if finding.count > 1 else ""
    lines = [f"  {finding.code}{many}", *wrap(finding.message, "    ")]
    new = [place for place in finding.places if place not in finding.message]
    shown = new[: SHOWN_PLACES - 1] if finding.level != NOTE else []
    for place in shown:
        lines += wrap(place, "    ")
    left = finding.count - len(shown) - (len(finding.places) - len(new))
    if shown and left > 0:
        lines.append(f"    ... and {left} more, in check.json")
    return lines


def _verdict(report: CheckReport) -> list[str]:
    tally = ", ".join(count_text(len(report.of_level(level)), level) for level in LEVELS)
    if report.failed:
        codes = ", ".join(dict.fromkeys(finding.code for finding in report.of_level(ERROR)))
        return [f"NOT READY: {tally}", *wrap(f"fix {codes}, then check again", "  ")]
    if report.of_level(WARNING):
        return [f"READY, with doubts: {tally}", "  nothing here would stop a run; read the warnings first"]
    return [f"READY: {tally}"]
