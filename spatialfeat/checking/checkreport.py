"""All that a check found: as check.json for programs, and what the text for people is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from spatialfeat.checking.estimate import Estimate, Machine
from spatialfeat.checking.findings import ERROR, LEVELS, Finding
from spatialfeat.checking.imagecheck import kind_counts, size_counts
from spatialfeat.checking.imagescan import ImageScan
from spatialfeat.checking.probe import Speeds
from spatialfeat.checking.videocheck import VideoFacts
from spatialfeat.config import CheckConfig

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
