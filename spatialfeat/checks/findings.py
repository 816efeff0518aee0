"""What a check has to say: findings with a level, a stable code, places and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from spatialfeat.data.tables import RowProblem

MAX_PLACES = 10_000
"""So many places of one finding are kept; its count is always that of all."""

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)

CODES = {
    "unreadable-csv": (ERROR, "a CSV is missing or cannot be read"),
    "bad-id": (ERROR, "an id cannot be a file name, or does not end in a frame number"),
    "repeated-id": (ERROR, "a frame has two rows in one CSV"),
    "two-spellings": (ERROR, "one video is written in two ways, such as 1050_1 and 1050_01"),
    "frame-in-two-splits": (ERROR, "a frame is in two CSVs"),
    "patient-in-two-splits": (ERROR, "a patient is in two splits: scores would be too good"),
    "label-not-a-number": (ERROR, "a label is no whole number"),
    "label-out-of-range": (ERROR, "a label is negative, or not below the number of phases"),
    "no-image-folder": (ERROR, "the image folder cannot be read"),
    "missing-image": (ERROR, "a row has no image"),
    "unreadable-image": (ERROR, "an image cannot be decoded"),
    "leaked-images": (ERROR, "1 % or more of a split's pictures are also in another split"),
    "disk-too-small": (ERROR, "the results of finetune or extract do not fit on the disk"),
    "gpu-memory-too-small": (ERROR, "one training batch does not fit into the GPU's memory"),
    "repeated-images": (WARNING, "videos share pictures"),
    "no-label-zero": (WARNING, "no frame has label 0: phases may be counted from 1"),
    "phase-not-in-train": (WARNING, "a phase has no training frame"),
    "frame-step": (WARNING, "frame numbers do not advance by --fps, or not equally in all videos"),
    "label-flicker": (WARNING, "labels change for one or two frames and back"),
    "mixed-sizes": (WARNING, "images of one video differ in size"),
    "small-images": (WARNING, "images are smaller than what they are resized to"),
    "clipped-images": (WARNING, "16-bit grey images: all but the darkest values become white"),
    "id-looks-like-date": (WARNING, "an id holds what looks like a date"),
    "id-looks-like-number": (WARNING, "an id holds a number of six or more digits, as records have"),
    "id-looks-like-name": (WARNING, "an id holds a word that only some patients have, as names are"),
    "memory-too-small": (WARNING, "finetune may need more memory than is free"),
    "phase-not-evaluated": (NOTE, "a phase has no frame in val or test"),
    "rare-phase": (NOTE, "a phase has less than 1 % of the training frames"),
    "gaps": (NOTE, "frame numbers are missing within videos"),
    "short-video": (NOTE, "a video of one frame"),
    "unused-images": (NOTE, "images that no row names"),
    "several-sizes": (NOTE, "images of different videos differ in size"),
    "image-modes": (NOTE, "images that are not plain RGB"),
    "one-colour-images": (NOTE, "images of a single colour, such as black frames"),
    "still-images": (NOTE, "equal pictures within a video"),
    "no-test-csv": (NOTE, "there is no test CSV"),
}
"""Every code with its level and meaning, errors first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say, of `count` rows, images, videos, ... (`unit`, in the singular).

    message: the first place, the value found there, and what is wrong with it; or all places in short. places: where it
    was found, at most MAX_PLACES of them; empty where the message says all.
    """

    code: str
    message: str
    remedy: str
    count: int = 1
    unit: str = "row"
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    @property
    def level(self) -> str:
        return CODES[self.code][0]


def first_places(places: Iterable[str]) -> tuple[str, ...]:
    """At most MAX_PLACES of them, without making the others."""
    return tuple(islice(places, MAX_PLACES))


def finding_of(problem: RowProblem) -> Finding:
    """What the reader of CSVs complains of, as a finding."""
    rows = problem.rows
    return Finding(
        code=problem.kind,
        message=problem.describe(int(rows[0])),
        remedy=problem.remedy,
        count=len(rows),
        places=first_places(problem.describe(int(row)) for row in rows),
    )


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; among equals as CODES lists them."""
    order = list(CODES)
    return sorted(findings, key=lambda finding: order.index(finding.code))
