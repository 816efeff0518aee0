"""A person's own annotation tables: which column is what, and what positions mean. What is ambiguous is refused.

Only the standard library.
"""

from __future__ import annotations

import glob
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key, same_name_key
from spatialfeat.sources.annotations import (
    FRAME,
    MILLISECOND,
    SECOND,
    Span,
    Table,
    Track,
    overlapping,
    position,
    read_table,
    rows_track,
)

VIDEO, START, END, POSITION, PHASE = "video", "start", "end", "position", "phase"

_WORDS = {
    VIDEO: "video videos videoid vid case caseid file filename name operation surgery",
    START: "start begin from onset starttime startframe startsec startseconds starts startms beginframe",
    END: "end stop to offset endtime endframe endsec endseconds ends endms stopframe",
    POSITION: "frame frames frameid frameno framenumber frameindex index second seconds sec secs time times t "
    "timestamp ms milliseconds",
    PHASE: "phase phases phasename phaseid label labels step steps class annotation gesture action",
}
_COLUMNS = {word: column for column, words in _WORDS.items() for word in words.split()}

_UNITS = (("frame", FRAME), ("ms", MILLISECOND), ("milli", MILLISECOND), ("sec", SECOND))
"""What in a header names the unit."""

_PLURALS = {FRAME: "frames", MILLISECOND: "milliseconds"}

_EXTENSIONS = (".csv", ".tsv", ".txt")

VIDEO_SUFFIX = re.compile(
    r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|m2v|m?ts|m2ts|wmv|asf|flv|vob|3gp|ogv|mxf|h264|264)", re.IGNORECASE
)
"""How the names of videos end, also where a table names them so."""

FORM = (
    "write a header, e.g. `video,start,end,phase` (one table of intervals) or `second,phase` or `frame,phase` (a table "
    "per video)"
)

Length = Callable[[str], tuple[int | None, float | None]]
"""From a video to (frames, seconds) as its header says: for messages."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the options say of annotation tables; None: as the tables do.

    unit: of positions. first: the number of the video's first frame (or second). first_file: that of the first existing
    frame, where rows count these. first_flag: what `first` is called. interval_end: inclusive or exclusive. overlap:
    which of two phases counts, earlier or later.
    """

    unit: str | None = None
    first: int | None = None
    first_file: int | None = None
    first_flag: str = "--first-frame"
    interval_end: str | None = None
    overlap: str | None = None

    def first_of(self, unit: str) -> int | None:
        return self.first_file if self.first is None and unit == FRAME else self.first


@dataclass(frozen=True)
class _Rows:
    """The rows of one video: (line, start, end, phase); dense ones have no end, those of one column no start either."""

    table: Table
    rows: list[tuple[int, str, str, str]]
    unit: str | None
    is_dense: bool


def annotation_files(text: str, data_dir: Path) -> list[Path]:
    """The files that --annotations names: a file, a folder, or a pattern with * or {video}, here or in `data_dir`.

    Raises:
        SpatialfeatError: there is none.
    """
    for base in (Path(), data_dir):
        path = base / Path(text).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix.lower() in _EXTENSIONS]
        else:
            pattern = str(path).replace("{video}", "*")
            if path.suffix.lower() in _EXTENSIONS:  # `.csv` also finds `.CSV`.
                letters = "".join(f"[{letter}{letter.upper()}]" for letter in path.suffix[1:].lower())
                pattern = f"{pattern.removesuffix(path.suffix)}.{letters}"
            found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        files = [file for file in found if file.is_file() and not file.name.startswith(".")]
        if files:
            return sorted(files, key=lambda file: natural_key(str(file)))
    raise SpatialfeatError(
        f"--annotations {text}: no such file, folder or pattern, neither here nor in {data_dir}; pass a file, or a "
        "pattern such as 'annotations/{video}.csv'"
    )


def read_own_tracks(
    text: str, data_dir: Path, videos: Sequence[str], reading: Reading, length: Length
) -> tuple[dict[tuple[object, ...], Track], list[str]]:
    """({same_name_key(video): its track} of the videos that have rows, what else rows are about).

    Raises:
        SpatialfeatError: tables that cannot be read or understood, or may be understood in two ways.
    """
    files = annotation_files(text, data_dir)
    found: dict[str, _Rows] = {}
    foreign: list[str] = []
    for path in files:
        of_video, others = _rows_of(path, text, videos, alone=len(files) == 1)
        foreign += others
        for video, rows in of_video.items():
            if video in found:
                raise SpatialfeatError(
                    f"video {video} has rows in {found[video].table.path} and {path}; keep those of one file"
                )
            found[video] = rows
    if not found:
        return {}, foreign
    unit = _unit(found, reading, length)
    if next(iter(found.values())).is_dense:
        first = _first_row(found, unit, reading)
        tracks = {video: _dense_track(own, unit, first) for video, own in found.items()}
    else:
        tracks = _interval_tracks(found, unit, reading)
    return {same_name_key(video): track for video, track in tracks.items()}, foreign


def _rows_of(path: Path, text: str, videos: Sequence[str], *, alone: bool) -> tuple[dict[str, _Rows], list[str]]:
    """({video: its rows} of one file, names of videos that are not here).

    Of a column `video`, or of the video that the file is named after.
    """
    table = read_table(path)
    if table.header is not None and len(table.header) == 1 and _word(table.header[0]) not in _COLUMNS:
        table = read_table(path, header=False)  # Phases alone: the first line is one, too.
    places, unit = _columns(table)
    is_dense = START not in places

    def cell(row: list[str], column: str) -> str:
        return row[places[column]] if column in places else ""

    of_video: dict[str, list[tuple[int, str, str, str]]] = {}
    foreign: dict[str, None] = {}
    names = {same_name_key(video): video for video in videos}
    own = None if VIDEO in places else _named_after(path, text, videos, alone=alone)
    for line, row in table.rows:
        name = re.split(r"[/\\]", cell(row, VIDEO))[-1] if own is None else own
        if VIDEO in places and not name:
            raise SpatialfeatError(f"{table.where(line)}: names no video; write its name into every line")
        stem, suffix = Path(name).stem, Path(name).suffix
        video = names.get(same_name_key(stem if VIDEO_SUFFIX.fullmatch(suffix) else name))
        if video is None:
            foreign.setdefault(name or path.name)
            continue
        start = cell(row, POSITION if is_dense else START)
        of_video.setdefault(video, []).append((line, start, cell(row, END), cell(row, PHASE)))
    if alone and foreign and not of_video and table.header is None and VIDEO in places:
        raise SpatialfeatError(
            f"{table.where(table.rows[0][0])}: there is no header, so the first column is taken for the video, but "
            f"{next(iter(foreign))[:80]!r} is none of those here ({', '.join(videos[:5])}); {FORM}"
        )
    return {video: _Rows(table, rows, unit, is_dense) for video, rows in of_video.items()}, list(foreign)


def _word(title: str) -> str:
    """`Start_Frame (s)` -> `startframes`."""
    return re.sub("[^a-z]", "", title.lower())


def _columns(table: Table) -> tuple[dict[str, int], str | None]:
    """({column: its place}, the unit if the header names it)."""
    places: dict[str, int] = {}
    unit = None
    if table.header is not None:
        for place, title in enumerate(table.header):
            word = _word(title)
            column = _COLUMNS.get(word) or (PHASE if word.startswith("phase") else None)
            if column is not None and column not in places:
                places[column] = place
                if column in (START, POSITION):
                    unit = next((unit for sign, unit in _UNITS if sign in word), None)
                    unit = SECOND if unit is None and re.search(r"(_|\()s\)?$", title.lower()) else unit
    else:
        row = table.rows[0][1]
        forms = {1: (PHASE,), 2: (POSITION, PHASE), 4: (VIDEO, START, END, PHASE)}
        forms[3] = (
            (START, END, PHASE) if all(table.number(cell) is not None for cell in row[:2]) else (VIDEO, POSITION, PHASE)
        )
        places = {column: place for place, column in enumerate(forms.get(len(row), ()))}
    is_interval = START in places
    is_whole = PHASE in places and is_interval == (END in places) and not (is_interval and POSITION in places)
    has_position = is_interval or POSITION in places or len(table.rows[0][1]) == 1
    if not is_whole or not has_position:
        shown = table.separator.join(table.header or table.rows[0][1])
        raise SpatialfeatError(f"{table.path} line 1: {shown[:80]!r} does not say which column is what; {FORM}")
    return places, unit


def _named_after(path: Path, text: str, videos: Sequence[str], *, alone: bool) -> str:
    """The video that a file without a column `video` belongs to, "" if that is none of those here."""
    if alone and len(videos) == 1 and "{video}" not in text and not glob.has_magic(text):
        return videos[0]
    keys = {same_name_key(video): video for video in videos}
    if "{video}" in text:
        before, after = Path(text).name.split("{video}", 1) if "{video}" in Path(text).name else ("", "")
        before, after = (re.escape(part).replace(r"\*", ".*") for part in (before, after.split("{video}")[0]))
        match = re.fullmatch(f"{before}(.+?){after}", path.name, re.IGNORECASE)
        return keys.get(same_name_key(match[1] if match else path.parent.name), "")
    # The longest of those that are a part of the name: video1 is no part of video10.
    stem = _folded(path.stem)
    parts = [video for video in videos if re.search(rf"(?<![^\W_]){re.escape(_folded(video))}(?![^\W_])", stem)]
    exact = keys.get(same_name_key(path.stem))
    if exact is None and len(parts) > 1:
        longest = max(parts, key=len)
        parts = [longest] if all(part in longest for part in parts) else parts
    if exact is None and len(parts) > 1:
        raise SpatialfeatError(
            f"{path}: its name holds those of several videos ({', '.join(parts)}); name it with a pattern, e.g. "
            "--annotations 'annotations/{video}.csv'"
        )
    return exact or (parts[0] if parts else "")


def _folded(name: str) -> str:
    """Letter case aside, and with one form of umlauts: some systems write them as two characters."""
    return unicodedata.normalize("NFKC", name).casefold()


def _unit(found: Mapping[str, _Rows], reading: Reading, length: Length) -> str:
    """What positions count."""
    kinds = {own.is_dense for own in found.values()}
    if len(kinds) > 1:
        raise SpatialfeatError("--annotations: some tables have intervals, others a row per frame; prepare them apart")
    units = {own.unit for own in found.values()}
    unit = reading.unit or (units.pop() if len(units) == 1 else None)
    if unit is not None:
        _refuse_times(found, unit)
        return unit
    video, own = next(iter(found.items()))
    cells = [cell for rows in found.values() for _, start, end, _ in rows.rows for cell in (start, end) if cell]
    if any(_is_time(own.table, cell) for cell in cells):
        return SECOND
    numbers = [own.table.number(cell) for _, start, end, _ in own.rows for cell in (start, end)]
    last = max((number for number in numbers if number is not None), default=Fraction(len(own.rows)))
    frames, seconds = length(video)
    as_frames = f"the annotation ends at frame {int(last)}"
    if frames is not None:
        as_frames += f" of {frames}"
    as_seconds = f"at {int(last)} s"
    if seconds is not None:
        as_seconds += f" of {seconds:.0f} s"
    raise SpatialfeatError(
        f"{own.table.path}: does not say whether its positions are frames or seconds: of {video}, {as_frames}, or "
        f"{as_seconds}; pass --unit frame or --unit second"
    )


def _refuse_times(found: Mapping[str, _Rows], unit: str) -> None:
    """Refuse `0:01:30`, or half a frame, where frames are counted; and clock times in milliseconds."""
    for own in found.values() if unit != SECOND else ():
        for line, start, end, _ in own.rows:
            for cell in (start, end):
                number = own.table.number(cell)
                if number is not None and (":" in cell or (unit == FRAME and number.denominator != 1)):
                    raise SpatialfeatError(
                        f"{own.table.where(line)}: {cell} is a time, but positions are {_PLURALS[unit]} by the header "
                        "or by --unit; pass --unit second if all of them are times, or fix the line"
                    )


def _is_time(table: Table, cell: str) -> bool:
    """Whether this can only be a time: frames have no colons and no decimals."""
    return ":" in cell or "." in cell or (table.separator != "," and "," in cell)


def _first_row(found: Mapping[str, _Rows], unit: str, reading: Reading) -> int:
    """The number of a video's first frame or second in dense tables."""
    given = reading.first_of(unit)
    if given is not None:
        return given
    starts = [(own.table, own.rows[0][0], own.rows[0][1]) for own in found.values() if own.rows[0][1]]
    if not starts:
        return 0
    numbers = [(position(*start), start[0].where(start[1])) for start in starts]
    lowest, where = min(numbers)
    if lowest == 0 or (unit != FRAME and any(_is_time(table, text) for table, _, text in starts)):
        return 0
    raise SpatialfeatError(
        f"{where}: the first row is {unit} {float(lowest):g}. Either they are counted from 1 (pass "
        f"{reading.first_flag} 1), or from 0 and the first rows are missing (pass {reading.first_flag} 0)"
    )


def _dense_track(own: _Rows, unit: str, first: int) -> Track:
    table = own.table
    return rows_track(
        table.path,
        unit,
        (
            (line, position(table, line, start) if start else Fraction(index + first), phase)
            for index, (line, start, _, phase) in enumerate(own.rows)
        ),
        first=first,
    )


def _interval_tracks(found: Mapping[str, _Rows], unit: str, reading: Reading) -> dict[str, Track]:
    spans = {video: _spans(own) for video, own in found.items()}
    inclusive = _ends_are_inclusive(found, spans, unit, reading)
    first = 0
    if unit == FRAME:
        given = reading.first_of(unit)
        first = _first_of_intervals(found, spans, reading) if given is None else given
    tracks = {}
    for video, own in spans.items():
        table = found[video].table
        shifted = [
            Span(span.start - first, span.end - first + (1 if inclusive else 0), span.phase, span.line) for span in own
        ]
        if any(span.start < 0 for span in shifted):
            raise SpatialfeatError(f"{table.path}: {unit} 0 of {video}, but {reading.first_flag} says {first}")
        for earlier, later in overlapping(shifted):
            if reading.overlap is None:
                raise SpatialfeatError(
                    f"{table.where(later.line)}: {later.phase} of {video} begins before {earlier.phase} of line "
                    f"{earlier.line} has ended; fix it, or pass --overlap later (the one that starts later counts) or "
                    "--overlap earlier"
                )
        ordered = sorted(shifted, key=lambda span: span.start, reverse=reading.overlap == "earlier")
        tracks[video] = Track(path=table.path, unit=unit, spans=tuple(ordered))
    return tracks


def _spans(own: _Rows) -> list[Span]:
    spans = [
        Span(position(own.table, line, start), position(own.table, line, end), phase, line)
        for line, start, end, phase in own.rows
    ]
    for span in spans:
        if span.end < span.start:
            raise SpatialfeatError(
                f"{own.table.where(span.line)}: ends at {float(span.end):g}, before its start {float(span.start):g}; "
                "fix the line"
            )
    return spans


def _ends_are_inclusive(
    found: Mapping[str, _Rows], spans: Mapping[str, list[Span]], unit: str, reading: Reading
) -> bool:
    """Whether `end` is the last frame of the phase, or the first one behind it."""
    if reading.interval_end is not None:
        return reading.interval_end == "inclusive"
    steps = set()
    for own in spans.values():
        ordered = sorted(own, key=lambda span: span.start)
        steps |= {later.start - earlier.end for earlier, later in pairwise(ordered)}
        steps |= {Fraction(1) for span in own if unit == FRAME and span.start == span.end}
    touching, next_to = 0 in steps, 1 in steps
    is_whole = all(span.start.denominator == span.end.denominator == 1 for own in spans.values() for span in own)
    if unit != FRAME and not (next_to and not touching and is_whole):
        return False
    if unit == FRAME and touching != next_to:
        return next_to
    video, own = next(iter(spans.items()))
    last = own[0].end
    raise SpatialfeatError(
        f"{found[video].table.where(own[0].line)}: does {own[0].phase} include {unit} {float(last):g}, its end, or "
        "stop before it? The rows do not say; pass --interval-end inclusive or --interval-end exclusive"
    )


def _first_of_intervals(found: Mapping[str, _Rows], spans: Mapping[str, list[Span]], reading: Reading) -> int:
    lowest, video, line = min((span.start, video, span.line) for video, own in spans.items() for span in own)
    if lowest == 0:
        return 0
    raise SpatialfeatError(
        f"{found[video].table.where(line)}: the lowest frame is {int(lowest)}: are a video's frames counted from 0 or "
        f"from 1? Pass {reading.first_flag} 0 or {reading.first_flag} 1"
    )
