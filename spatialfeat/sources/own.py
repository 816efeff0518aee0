"""A person's own videos or frames, and their annotation tables: which column is what, and what positions mean.

What is ambiguous is refused.
"""

from __future__ import annotations

import glob
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from spatialfeat.config import PrepareConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import name_problem, natural_key, same_name_key
from spatialfeat.sources.annotations import FRAME, MILLISECOND, SECOND, Span, Table, Track, read_table, rows_track
from spatialfeat.sources.datasets import Files
from spatialfeat.sources.study import Pictures, Source
from spatialfeat.sources.video import header_length

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

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

VIDEO_SUFFIX = re.compile(
    r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|m2v|m?ts|m2ts|wmv|asf|flv|vob|3gp|ogv|mxf|h264|264)", re.IGNORECASE
)
"""How the names of videos end, also where a table names them so."""

FORM = (
    "write a header, e.g. `video,start,end,phase` (one table of intervals) or `second,phase` or `frame,phase` (a table "
    "per video)"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rows:
    """The rows of one video: (line, start, end, phase); dense ones have no end, those of one column no start either."""

    table: Table
    rows: list[tuple[int, str, str, str]]
    unit: str | None
    is_dense: bool


def find_own(config: PrepareConfig, files: Files) -> dict[str, Source]:
    """{video: where it is}. Raises SpatialfeatError where a file's name does not say its video, or two are one."""
    found = _find_pictures(config, files) if config.source == "frames" else _find_videos(config, files)
    for video, source in found.items():
        problem = name_problem(video)
        if problem is not None:
            raise SpatialfeatError(f"{source.path}: {video!r} cannot be the name of a video: it {problem}; rename it")
    return found


def _find_videos(config: PrepareConfig, files: Files) -> dict[str, Source]:
    """Named by the file; by the folder where several folders have a file of the same name."""
    paths = [path for path in files.values() if VIDEO_SUFFIX.fullmatch(path.suffix)]
    if not paths:
        raise SpatialfeatError(
            f"DIR {config.data_dir}: holds no video (such as .mp4, .avi, .mkv); pass the right folder"
        )
    for names in ([path.stem for path in paths], [path.parent.name for path in paths]):
        if len(set(map(same_name_key, names))) == len(paths):
            return {name: Source(path) for name, path in zip(names, paths, strict=True)}
    seen: dict[tuple[object, ...], Path] = {}
    other, path = next(
        (other, path) for path in paths if (other := seen.setdefault(same_name_key(path.stem), path)) != path
    )
    raise SpatialfeatError(f"{other} and {path}: would be one video, {path.stem}; rename one of them")


def _find_pictures(config: PrepareConfig, files: Files) -> dict[str, Source]:
    """Frames as VIDEO/NUMBER.png, VIDEO/anything_NUMBER.png or VIDEO_NUMBER.png, also .jpg."""
    numbers: dict[str, dict[int, Path]] = {}
    for name, path in files.items():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        match = re.fullmatch(r"(?P<before>.*?)_?(?P<number>[0-9]{1,18})", path.stem)
        if match is None:
            raise SpatialfeatError(f"{path}: its name does not end in a frame number; rename it, or take it away")
        video = path.parent.name if "/" in name else match["before"]
        if not video:
            raise SpatialfeatError(
                f"{path}: does not say its video; put frames into a folder per video, or name them VIDEO_NUMBER"
            )
        other = numbers.setdefault(video, {}).setdefault(int(match["number"]), path)
        if other != path:
            raise SpatialfeatError(f"{other} and {path}: are both frame {match['number']} of {video}; keep one of them")
    if not numbers:
        raise SpatialfeatError(f"DIR {config.data_dir}: holds no .png or .jpg file; pass the folder of the frames")
    source_fps = Fraction(str(config.source_fps or config.fps))
    if config.annotations is not None:
        lowest, where = min((min(own), str(own[min(own)])) for own in numbers.values())
        if config.first_frame is None and lowest > 0:
            raise SpatialfeatError(
                f"{where}: the lowest frame is {lowest}: are frames numbered from 0 or from 1? Pass --first-frame 1 "
                "(ffmpeg and most others) or --first-frame 0"
            )
        if config.source_fps is None:
            raise SpatialfeatError(
                f"DIR {config.data_dir}: how many of these frames make a second? Pass --source-fps, e.g. --source-fps 1"
            )
        if config.first_frame == 1 and config.taken_at == "start":
            logger.info(
                "note: frames are taken to lie at the start of each 1/%s s; if ffmpeg's filter fps made them, pass "
                "--taken-at middle",
                source_fps,
            )
    return {
        video: Source(
            next(iter(own.values())).parent,
            Pictures(
                files=tuple(sorted(own.items())),
                first=config.first_frame or 0,
                fps=str(source_fps),
                offset_s=str(1 / (2 * source_fps) if config.taken_at == "middle" else 0),
                annotation_fps=None if config.annotation_fps is None else str(Fraction(str(config.annotation_fps))),
            ),
        )
        for video, own in sorted(numbers.items(), key=lambda item: natural_key(item[0]))
    }


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
    config: PrepareConfig, text: str, sources: Mapping[str, Source]
) -> tuple[dict[str, Track], list[str]]:
    """({video: its track} of the videos that have rows, what else rows are about). text: --annotations.

    Raises:
        SpatialfeatError: tables that cannot be read or understood, or may be understood in two ways.
    """
    files = annotation_files(text, config.data_dir)
    found: dict[str, _Rows] = {}
    foreign: list[str] = []
    for path in files:
        of_video, others = _rows_of(path, text, list(sources), alone=len(files) == 1)
        foreign += others
        for video, rows in of_video.items():
            if video in found:
                raise SpatialfeatError(
                    f"video {video} has rows in {found[video].table.path} and {path}; keep those of one file"
                )
            found[video] = rows
    if not found:
        return {}, foreign
    unit = _unit(config, found, sources)
    is_dense = next(iter(found.values())).is_dense
    return (_dense_tracks if is_dense else _interval_tracks)(config, found, unit), foreign


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


def _unit(config: PrepareConfig, found: Mapping[str, _Rows], sources: Mapping[str, Source]) -> str:
    """What positions count."""
    kinds = {own.is_dense for own in found.values()}
    if len(kinds) > 1:
        raise SpatialfeatError("--annotations: some tables have intervals, others a row per frame; prepare them apart")
    units = {own.unit for own in found.values()}
    unit = config.unit or (units.pop() if len(units) == 1 else None)
    if unit is not None:
        _refuse_times(found, unit)
        return unit
    video, own = next(iter(found.items()))
    cells = [cell for rows in found.values() for _, start, end, _ in rows.rows for cell in (start, end) if cell]
    if any(_is_time(own.table, cell) for cell in cells):
        return SECOND
    numbers = [own.table.number(cell) for _, start, end, _ in own.rows for cell in (start, end)]
    last = max((number for number in numbers if number is not None), default=Fraction(len(own.rows)))
    pictures = sources[video].pictures
    frames, seconds = header_length(sources[video].path) if pictures is None else (len(pictures.files), None)
    of_frames = "" if frames is None else f" of {frames}"
    of_seconds = "" if seconds is None else f" of {seconds:.0f} s"
    raise SpatialfeatError(
        f"{own.table.path}: does not say whether its positions are frames or seconds: of {video}, the annotation ends "
        f"at frame {int(last)}{of_frames}, or at {int(last)} s{of_seconds}; pass --unit frame or --unit second"
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


def _first_given(config: PrepareConfig, unit: str) -> int | None:
    """The number of a video's first frame or second, as the options say."""
    if config.source != "frames":
        return config.first_frame
    counts_files = unit == FRAME and config.annotation_fps is None
    return config.first_frame if config.first_row is None and counts_files else config.first_row


def _first_flag(config: PrepareConfig) -> str:
    return "--first-row" if config.source == "frames" else "--first-frame"


def _dense_tracks(config: PrepareConfig, found: Mapping[str, _Rows], unit: str) -> dict[str, Track]:
    first = _first_given(config, unit)
    starts = [(own.table, *own.rows[0][:2]) for own in found.values() if own.rows[0][1]]
    if first is None and starts:
        lowest, where = min((table.position(line, start), table.where(line)) for table, line, start in starts)
        if lowest and (unit == FRAME or not any(_is_time(table, start) for table, _, start in starts)):
            flag = _first_flag(config)
            raise SpatialfeatError(
                f"{where}: the first row is {unit} {float(lowest):g}. Either they are counted from 1 (pass {flag} 1), "
                f"or from 0 and the first rows are missing (pass {flag} 0)"
            )
    first = first or 0
    return {
        video: rows_track(
            own.table.path,
            unit,
            (
                (line, own.table.position(line, start) if start else Fraction(index), phase)
                for index, (line, start, _, phase) in enumerate(own.rows, first)
            ),
            first=first,
        )
        for video, own in found.items()
    }


def _interval_tracks(config: PrepareConfig, found: Mapping[str, _Rows], unit: str) -> dict[str, Track]:
    spans: dict[str, list[Span]] = {}
    for video, rows in found.items():
        spans[video] = [rows.table.span(line, start, end, phase) for line, start, end, phase in rows.rows]
        for span in spans[video]:
            if span.end < span.start:
                raise SpatialfeatError(
                    f"{rows.table.where(span.line)}: ends at {float(span.end):g}, before its start "
                    f"{float(span.start):g}; fix the line"
                )
    after_end = 1 if _ends_are_inclusive(config, found, spans, unit) else 0
    first = 0
    if unit == FRAME:
        given, flag = _first_given(config, unit), _first_flag(config)
        lowest, video, line = min((span.start, video, span.line) for video, own in spans.items() for span in own)
        if given is None and lowest != 0:
            raise SpatialfeatError(
                f"{found[video].table.where(line)}: the lowest frame is {int(lowest)}: are a video's frames counted "
                f"from 0 or from 1? Pass {flag} 0 or {flag} 1"
            )
        first = given or 0
    tracks = {}
    for video, own in spans.items():
        table = found[video].table
        shifted = [replace(span, start=span.start - first, end=span.end - first + after_end) for span in own]
        by_start = sorted(shifted, key=lambda span: span.start)
        if by_start[0].start < 0:
            raise SpatialfeatError(f"{table.path}: {unit} 0 of {video}, but {_first_flag(config)} says {first}")
        for earlier, later in pairwise(by_start):
            if later.start < earlier.end and config.overlap is None:
                raise SpatialfeatError(
                    f"{table.where(later.line)}: {later.phase} of {video} begins before {earlier.phase} of line "
                    f"{earlier.line} has ended; fix it, or pass --overlap later (the one that starts later counts) or "
                    "--overlap earlier"
                )
        ordered = sorted(shifted, key=lambda span: span.start, reverse=config.overlap == "earlier")
        tracks[video] = Track(path=table.path, unit=unit, spans=tuple(ordered))
    return tracks


def _ends_are_inclusive(
    config: PrepareConfig, found: Mapping[str, _Rows], spans: Mapping[str, list[Span]], unit: str
) -> bool:
    """Whether `end` is the last frame of the phase, or the first one behind it."""
    if config.interval_end is not None:
        return config.interval_end == "inclusive"
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
