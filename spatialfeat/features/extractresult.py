"""What became of the videos of an extraction, in one process and in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExtractIntent:
    """Video ids: what is to be computed, what is there already, and what has broken images and why."""

    to_compute: list[str]
    skipped: list[str]
    failed: dict[str, str]


@dataclass
class ExtractResult:
    """Video ids by what became of them; `failed` maps an id to the reason."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def merge_results(intent: ExtractIntent, shares: Sequence[dict[str, Any]]) -> ExtractResult:
    """What became of all videos, in their order, from the results of the processes as `asdict` gives them."""
    written = {video_id for share in shares for video_id in share["written"]}
    failed = {video_id: reason for share in shares for video_id, reason in share["failed"].items()}
    return ExtractResult(
        [video_id for video_id in intent.to_compute if video_id in written],
        intent.skipped,
        intent.failed | {video_id: failed[video_id] for video_id in intent.to_compute if video_id in failed},
    )
