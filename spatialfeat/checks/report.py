"""All that a check found: as check.json for programs, and what the text for people is made from.

A check as text of at most 100 columns: what there is, what is wrong and what to do about it, and a verdict.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from spatialfeat.checks.estimate import Estimate, Machine, Speeds
from spatialfeat.checks.findings import ERROR, LEVELS, NOTE, WARNING, Finding
from spatialfeat.checks.images import ImageScan, kind_counts, size_counts
from spatialfeat.checks.videos import VideoFacts
from spatialfeat.config import CheckConfig
from spatialfeat.console import align, clock_text, count_text, duration_text, size_text, wrap

CHECK_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One CSV in numbers: sound rows, videos, patients, and seconds at --fps."""

    split: str
    csv: str
    num_rows: int
    num_videos: int
    num_patients: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """findings: errors first. phase_counts: {split: frames of each phase}. scan, estimate: None where not done.

    speeds: what the estimate is made of.
    """

    config: CheckConfig
    phase_names: tuple[str, ...]
    findings: list[Finding]
    splits: list[SplitFacts] = field(default_factory=list)
    videos: list[VideoFacts] = field(default_factory=list)
    phase_counts: dict[str, list[int]] = field(default_factory=dict)
    scan: ImageScan | None = None
    machine: Machine | None = None
    speeds: Speeds | None = None
    estimate: Estimate | None = None

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
            "findings": [{"level": finding.level, **asdict(finding)} for finding in self.findings],
            "splits": [asdict(split) for split in self.splits],
            "phases": {
                split: dict(zip(self.phase_names, frames, strict=True)) for split, frames in self.phase_counts.items()
            },
            "images": self._images(),
            "videos": [asdict(video) for video in self.videos],
            "estimate": self._estimate(),
        }

    def _images(self) -> dict[str, Any] | None:
        scan = self.scan
        if scan is None:
            return None
        return {
            "checked": len(scan.ids),
            "decoded": scan.decoded,
            "unreadable": len(scan.reasons),
            "bytes": int(scan.sizes_bytes.sum()),
            "sizes": size_counts(scan),
            "kinds": kind_counts(scan),
            "seconds": round(scan.seconds, 3),
            "processes": scan.processes,
        }

    def _estimate(self) -> dict[str, Any] | None:
        if self.estimate is None or self.machine is None or self.speeds is None:
            return None
        return {**self.estimate.as_dict(), "machine": asdict(self.machine), "speeds": asdict(self.speeds)}


SHOWN_PLACES = 4
TITLES = {
    ERROR: "ERRORS: a run would stop, or its numbers would be worthless",
    WARNING: "WARNINGS: look at these before you trust a result",
    NOTE: "NOTES: normal in many data sets; know that it is so",
}


def render(report: CheckReport) -> str:
    """The report without a final newline."""
    blocks = [_data_lines(report)]
    if report.estimate is not None:
        blocks.append(_estimate_lines(report))
    # The worst last: a terminal shows the end.
    blocks += [_level_lines(report, level) for level in reversed(LEVELS) if report.of_level(level)]
    blocks.append(_verdict(report))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _data_lines(report: CheckReport) -> list[str]:
    rows = [("split", "rows", "videos", "patients", "time", "CSV")]
    rows += [
        (
            split.split,
            str(split.num_rows),
            str(split.num_videos),
            str(split.num_patients),
            clock_text(split.seconds),
            split.csv,
        )
        for split in report.splits
    ]
    lines = align(rows, left=(0, 5)) if report.splits else ["no CSV could be read"]
    if sum(map(sum, report.phase_counts.values())):
        lines += ["", *align(_phase_rows(report), left=(0,))]
    if report.scan is not None:
        sizes, kinds = size_counts(report.scan), kind_counts(report.scan)
        lines += [
            "",
            *wrap(
                f"{count_text(len(report.scan.ids), 'image')}, {size_text(int(report.scan.sizes_bytes.sum()))}: "
                f"{_short_counts(sizes)}; {_short_counts(kinds)}",
                "",
            ),
        ]
    return lines


def _phase_rows(report: CheckReport) -> list[tuple[str, ...]]:
    rows = [("frames per phase", *report.phase_counts)]
    totals = [sum(frames) for frames in report.phase_counts.values()]
    for phase, name in enumerate(report.phase_names):
        counts = [frames[phase] for frames in report.phase_counts.values()]
        cells = [
            f"{count} ({count / total:.1%})" if total else "0" for count, total in zip(counts, totals, strict=True)
        ]
        rows.append((f"{phase} {textwrap.shorten(name, 32, placeholder='...')}", *cells))
    return rows


def _short_counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" if len(counts) > 1 else name for name, count in list(counts.items())[:3]]
    return ", ".join(shown) + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")


def _level_lines(report: CheckReport, level: str) -> list[str]:
    lines = [TITLES[level]]
    findings = report.of_level(level)
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        lines += _finding_lines(finding)
        if following is None or following.remedy != finding.remedy:
            lines += wrap(finding.remedy, "    -> ")
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    many = f" ({count_text(finding.count, finding.unit)})" if finding.count > 1 else ""
    lines = [f"  {finding.code}{many}", *wrap(finding.message, "    ")]
    told = [place for place in finding.places if place not in finding.message]
    others = told[: SHOWN_PLACES - 1] if finding.level != NOTE else []
    lines += [line for place in others for line in wrap(place, "    ")]
    left = finding.count - len(others) - (len(finding.places) - len(told))
    if others and left > 0:
        lines.append(f"    ... and {left} more, in check.json")
    return lines


def _estimate_lines(report: CheckReport) -> list[str]:
    estimate, machine, config = report.estimate, report.machine, report.config
    assert estimate is not None
    assert machine is not None
    where = f"{machine.device}, {count_text(machine.workers, 'decoding process')}".replace("processs", "processes")
    lines = [f"ESTIMATE for this machine as it is now: {where}"]
    if estimate.epoch_s is not None and estimate.first_stop_s is not None and estimate.most_s is not None:
        least = min(config.patience + 1, config.epochs)
        lines += wrap(
            f"finetune  {duration_text(estimate.epoch_s)} an epoch of train and val; "
            f"{duration_text(estimate.first_stop_s)} if it stops after {least}, "
            f"{duration_text(estimate.most_s)} for {config.epochs} epochs",
            "  ",
            " " * 12,
        )
        lines.append(
            "            "
            + _needs(estimate.finetune_memory_bytes, estimate.finetune_gpu_bytes, estimate.finetune_disk_bytes)
        )
    lines.append(f"  extract   {duration_text(estimate.extract_s)} for all frames")
    lines.append(
        "            " + _needs(estimate.extract_memory_bytes, estimate.extract_gpu_bytes, estimate.extract_disk_bytes)
    )
    return lines + wrap(
        "Measured in a few seconds, while the files were in memory: expect it to be off by a third, and by more where "
        "a disk is slow or other programs run.",
        "  ",
    )


def _needs(memory: int | None, gpu: int | None, disk: int | None) -> str:
    parts = [
        f"{size_text(size)} of {what}"
        for size, what in ((memory, "memory"), (gpu, "GPU memory"), (disk, "disk"))
        if size
    ]
    return ", ".join(parts)


def _verdict(report: CheckReport) -> list[str]:
    counts = {level: len(report.of_level(level)) for level in LEVELS}
    tally = f"{count_text(counts[ERROR], 'error')}, {count_text(counts[WARNING], 'warning')}, " + count_text(
        counts[NOTE], "note"
    )
    if report.failed:
        codes = ", ".join(dict.fromkeys(finding.code for finding in report.of_level(ERROR)))
        return [f"NOT READY: {tally}", *wrap(f"mend {codes}, then check again", "  ")]
    if counts[WARNING]:
        return [f"READY, with doubts: {tally}", "  nothing here would stop a run; read the warnings first"]
    return [f"READY: {tally}"]
