"""How an id is read: which patient, which video, which segment, which frame. The one rule of a run.

`auto`, the usual rule, in three sentences. The last number is the frame; a word such as `frame` right before it belongs
to it. What stands before is the video. If that ends in a number of its own and what stands before this one holds a
digit, it is the segment of a patient.

    1050_1_000001           patient 1050, segment 1, frame 1
    video_01_000031         patient video_01, frame 31      (`video` holds no digit, so 01 is no segment of it)
    video01_frame000123     patient video01, frame 123
    case_269-000123         patient case_269, frame 123
    video01/000031          patient video01, frame 31

A rule is a small text, in the weights' JSON and in feature files: `auto`, `video-frame`, `patient-segment-frame` or
`pattern:REGEX`. Where it is missing, it is `auto`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from spatialfeat.config import ID_FORMS
from spatialfeat.errors import SpatialfeatError

AUTO, PATIENT_SEGMENT_FRAME, VIDEO_FRAME = ID_FORMS
PATTERN = "pattern"

_FRAME_WORD = r"(?:frame|frm|fr|f|image|img|im)"
_NUMBER = r"[0-9]{1,18}"
_FRAME = rf"(?:(?i:{_FRAME_WORD})[_-]?)?(?P<frame>{_NUMBER})"
# No `-` after another separator: `1_1_-5` is more likely a negative number than a frame 5.
_SEPARATOR = r"(?:[_/]|(?<![_/-])-)"
_ID = re.compile(rf"^(?P<video>.+?){_SEPARATOR}{_FRAME}$", re.ASCII)
_PATIENT_SEGMENT = re.compile(rf"(?P<patient>.+)[_/](?P<segment>{_NUMBER})", re.ASCII)
_ONLY_FRAME = re.compile(rf"{_FRAME}", re.ASCII)
_FRAME_FIELD = re.compile(rf"{_SEPARATOR}{_FRAME}", re.ASCII)
# `video01/video01_000031`, `1050/1050_1_000031`: what lies in the folder names it again. But `1/1` is segment 1 of 1.
_FOLDER_TWICE = re.compile(r"(?<![^/])(?P<folder>[^/]+)/(?=(?P=folder)_[^/]*$|(?![0-9]+$)(?P=folder)$)")
_UNREAD = (None, None, None, None)


ID_GROUPS = ({"patient", "segment", "frame"}, {"video", "frame"}, {"patient", "video", "frame"})
"""The named groups that a pattern of ids may have."""

MAX_PATTERN_CHARACTERS = 1000


def check_id_pattern(pattern: str) -> None:
    """Refuse what is no regular expression with the groups of an id."""
    try:
        groups = set(re.compile(pattern).groupindex) if len(pattern) <= MAX_PATTERN_CHARACTERS else set()
    except (re.error, RecursionError, OverflowError) as error:
        raise SpatialfeatError(f"--id-pattern {pattern[:80]}: is no regular expression ({error})") from error
    if groups not in ID_GROUPS:
        raise SpatialfeatError(
            f"--id-pattern {pattern[:80]}: must name the groups patient, segment and frame, or video and frame, e.g. "
            r"'(?P<video>.+)_(?P<frame>\d+)'"
        )


@dataclass(frozen=True)
class IdRule:
    """A rule. form: one of ID_FORMS, or PATTERN with a `pattern` that `check_id_pattern` takes."""

    form: str = AUTO
    pattern: str = ""

    @classmethod
    def given(
        cls, form: str | None, pattern: str | None, described: Callable[[], IdRule | None] = lambda: None
    ) -> IdRule:
        """The rule that `--id-form` or `--id-pattern` name, else the one that a file describes, else the usual one."""
        if pattern is not None:
            return cls(PATTERN, pattern)
        return cls(form) if form is not None else described() or USUAL_RULE

    @classmethod
    def parse(cls, text: object) -> IdRule:
        """The rule of a text from a file. Raises SpatialfeatError for a text that names none."""
        form, _, pattern = str(text).partition(":")
        if form == PATTERN:
            check_id_pattern(pattern)
            return cls(form, pattern)
        if text not in ID_FORMS:
            raise SpatialfeatError(
                f"{str(text)[:80]!r} is no rule for ids (one of {', '.join(ID_FORMS)}, {PATTERN}:REGEX)"
            )
        return cls(form)

    def __str__(self) -> str:
        return f"{PATTERN}:{self.pattern}" if self.form == PATTERN else self.form

    @property
    def problem(self) -> str:
        """What is wrong with an id that does not follow the rule, as a message about it goes on."""
        if self.form == PATTERN:
            return f"does not match --id-pattern {self.pattern} as a whole, with digits for frame and segment"
        return f"does not end in {'_SEGMENT_FRAME' if self.form == PATIENT_SEGMENT_FRAME else '_FRAME'}"

    @property
    def remedy(self) -> str:
        """What to do about such an id."""
        if self.form == PATTERN:
            return "fix the pattern or the id"
        forms = "PATIENT_SEGMENT_FRAME" + (" or VIDEO_FRAME" if self.form == AUTO else "")
        forms = "VIDEO_FRAME" if self.form == VIDEO_FRAME else forms
        examples = {AUTO: "1050_1_000001 or video01/000031", VIDEO_FRAME: "video01_000123"}
        example = examples.get(self.form, "1050_1_000001")
        return f"write {forms}, e.g. {example}, without .png or .jpg; or say with --id-pattern how ids are read"

    def read(self, ids: pd.Series[str]) -> pd.DataFrame:
        """The fields of N ids: text columns `video`, `patient`, `segment` and `frame`, the last two of digits.

        All four are None where an id does not follow the rule.
        """
        if self.form == PATTERN:
            pattern = re.compile(self.pattern)
            rows = [_groups(pattern.fullmatch(frame_id)) for frame_id in ids.tolist()]
        else:
            # A few hundred videos stand for hundreds of thousands of frames.
            split = lru_cache(maxsize=None)(self._split)
            rows = [
                _UNREAD if match is None or (parts := split(match["video"])) is None else (*parts, match["frame"])
                for match in map(_ID.match, ids.tolist())
            ]
        columns = ["video", "patient", "segment", "frame"]
        fields: pd.DataFrame = pd.DataFrame(rows, index=ids.index, columns=columns, dtype=object)
        return fields

    def _split(self, written: str) -> tuple[str, str, str] | None:
        """(video, patient, segment) of a video as its ids write it."""
        video = _FOLDER_TWICE.sub("", written)
        match = None if self.form == VIDEO_FRAME else _PATIENT_SEGMENT.fullmatch(video)
        # Of a patient in a folder its own name must hold the digit: that of `centre2/video_01` says nothing.
        if match and (self.form == PATIENT_SEGMENT_FRAME or re.search("[0-9]", match["patient"].rpartition("/")[2])):
            return video, match["patient"], match["segment"]
        return None if self.form == PATIENT_SEGMENT_FRAME else (video, video, "0")


USUAL_RULE = IdRule()


def _groups(match: re.Match[str] | None) -> tuple[str | None, str | None, str | None, str | None]:
    """(video, patient, segment, frame) of an id that a user's pattern matches."""
    if match is None:
        return _UNREAD
    found = {name: text or "" for name, text in match.groupdict().items()}
    segment, frame = found.get("segment", "0"), found["frame"]
    if not re.fullmatch(_NUMBER, segment) or not re.fullmatch(_NUMBER, frame):
        return _UNREAD
    video = found["video"] if "video" in found else f"{found['patient']}_{segment}"
    return video, found.get("patient", video), segment, frame


def is_only_a_frame(name: str) -> bool:
    """Whether a name is a frame number alone, as `000031` or `frame_000031`: then its folder is the video."""
    return _ONLY_FRAME.fullmatch(name) is not None


def frame_field(frame_id: str, video: str) -> str | None:
    """What follows the video in an id, `_000031`; None where the id is not written `VIDEO_FRAME`."""
    rest = frame_id.removeprefix(video)
    return rest if rest != frame_id and _FRAME_FIELD.fullmatch(rest) else None
