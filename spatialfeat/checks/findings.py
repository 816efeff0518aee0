"""The findings of a check: each has a stable code, a message, a remedy, and the places where it was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spatialfeat.data.tables import RowProblem
from spatialfeat.errors import SpatialfeatError

MAX_PLACES = 10_000
"""So many places of one finding are kept; its count is always that of all."""

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)

CODES = {
    "unreadable-csv": (ERROR, "file", "a CSV is missing or cannot be read"),
    "bad-id": (ERROR, "row", "an id cannot be a file name, or does not end in a frame number"),
    "repeated-id": (ERROR, "row", "a frame has two rows in one CSV"),
    "two-spellings": (ERROR, "video", "one video is written in two ways, such as 1050_1 and 1050_01"),
    "two-patients": (ERROR, "row", "a column patient names two patients for one video"),
    "frame-in-two-splits": (ERROR, "row", "a frame is in two CSVs"),
    "patient-in-two-splits": (ERROR, "patient", "a patient is in two splits: scores would be too good"),
    "label-not-a-number": (ERROR, "row", "a label is neither a whole number nor the name of a phase"),
    "label-out-of-range": (ERROR, "row", "a label is negative, or not below the number of phases"),
    "no-labels": (ERROR, "file", "a CSV of finetune has no labelled frame"),
    "no-image-folder": (ERROR, "folder", "the image folder cannot be read"),
    "missing-image": (ERROR, "row", "a row has no image"),
    "unreadable-image": (ERROR, "row", "an image cannot be decoded"),
    "leaked-images": (ERROR, "picture", "1 % or more of a split's pictures are also in another split"),
    "disk-too-small": (ERROR, "disk", "the results of finetune or extract do not fit on the disk"),
    "gpu-memory-too-small": (ERROR, "GPU", "one training batch does not fit into the GPU's memory"),
    "repeated-images": (WARNING, "picture", "videos share pictures"),
    "many-videos": (WARNING, "patient", "a patient has ten videos or more: ids may be read wrongly"),
    "one-frame-videos": (WARNING, "video", "most videos have a single frame: ids may be read wrongly"),
    "unlabelled-video": (WARNING, "video", "a video has no label at all, though others have"),
    "no-label-zero": (WARNING, "data set", "no frame has label 0: phases may be counted from 1"),
    "phase-not-in-train": (WARNING, "phase", "a phase has no training frame"),
    "frame-step": (WARNING, "video", "frame numbers do not advance by --fps, or not equally in all videos"),
    "label-flicker": (WARNING, "video", "labels change for one or two frames and back"),
    "mixed-sizes": (WARNING, "video", "images of one video differ in size"),
    "small-images": (WARNING, "image", "images are smaller than what they are resized to"),
    "clipped-images": (WARNING, "image", "16-bit grey images: all but the darkest values become white"),
    "id-looks-like-date": (WARNING, "video", "an id holds what looks like a date"),
    "id-looks-like-number": (WARNING, "video", "an id holds a number of six or more digits, as records have"),
    "id-looks-like-name": (WARNING, "video", "an id holds a word that only some patients have, as names are"),
    "memory-too-small": (WARNING, "machine", "finetune may need more memory than is free"),
    "unlabelled": (NOTE, "row", "frames have no label: training and scores leave them out"),
    "phase-not-evaluated": (NOTE, "phase", "a phase has no frame in val or test"),
    "rare-phase": (NOTE, "phase", "a phase has less than 1 % of the training frames"),
    "gaps": (NOTE, "video", "frame numbers are missing within videos"),
    "short-video": (NOTE, "video", "a video of one frame"),
    "unused-images": (NOTE, "image", "images that no row names"),
    "several-sizes": (NOTE, "size", "images of different videos differ in size"),
    "image-modes": (NOTE, "image", "images that are not plain RGB"),
    "one-colour-images": (NOTE, "image", "images of a single colour, such as black frames"),
    "still-images": (NOTE, "picture", "equal pictures within a video"),
    "no-test-csv": (NOTE, "file", "there is no test CSV"),
}
"""{code: (level, what its count counts, meaning)}, errors first. docs/formats.md has the same table."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check reports.

    code: one of CODES. message: the first place, the value found there, and what is wrong with it; or all places in
    short. places: where it was found; empty where the message says all. total: of what was found, where `places` does
    not list it all.
    """

    code: str
    message: str
    remedy: str
    places: Sequence[str] = ()
    total: int | None = None

    @property
    def level(self) -> str:
        return CODES[self.code][0]

    @property
    def unit(self) -> str:
        return CODES[self.code][1]

    @property
    def count(self) -> int:
        return self.total or len(self.places) or 1

    def as_dict(self) -> dict[str, Any]:
        """As check.json has it."""
        return {
            "level": self.level,
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "count": self.count,
            "unit": self.unit,
            "places": list(self.places[:MAX_PLACES]),
        }


def finding_of_problem(problem: RowProblem) -> Finding:
    """A fault of rows that a reader of CSVs has found. Only the places that are kept are written out."""
    places = [problem.describe(int(row)) for row in problem.rows[:MAX_PLACES]]
    return Finding(problem.kind, places[0], problem.remedy, places, len(problem.rows))


def finding_of_error(code: str, error: SpatialfeatError, remedy: str = "") -> Finding:
    """What another command would end with. remedy: where the error names none."""
    message, _, own_remedy = str(error).partition("; ")
    return Finding(code, message, own_remedy or remedy)
