"""Annotation files as phases along a video: a row per frame or second, intervals, or the starts of phases.

Imports nothing heavy, such as numpy or pandas, so that `spatialfeat prepare --help` answers at once.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher, get_close_matches
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from spatialfeat.console import name_some
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import read_text
from spatialfeat.phases import NO_PHASE

FRAME, SECOND, MILLISECOND = "frame", "second", "ms"
"""What positions along a video count: frames as they are decoded, or time since the first one."""

SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma", " ": "blank"}

NO_PHASE_IN_TABLES = (*NO_PHASE, "nan", "NaN")
"""As programs write it that made a table of numbers. In a CSV of frames nan is an error: a join that found nothing."""

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_CLOCK = re.compile(r"(?:(?P<h>[0-9]+):)?(?P<m>[0-9]{1,2}):(?P<s>[0-9]{1,2}(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Span:
    """A phase, as the file writes it, from `start` to `end`. line: of the file, where it begins."""

    start: Fraction
    end: Fraction
    phase: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Track:
    """The phases along one video.

    Attributes:
        path: the file that says so.
        unit: what positions count, from 0 at the video's first frame.
        spans: where several hold, the last of them counts. Half-open, unless `closed`.
        rows_end: behind the last row, where every frame or second has a row: that must be the video's end.
        gaps: rows that are missing between others.
    """

    path: Path
    unit: str
    spans: tuple[Span, ...]
    closed: bool = False
    rows_end: Fraction | None = None
    gaps: int = 0

    @property
    def end(self) -> Fraction:
        """Where the last phase ends."""
        return self.rows_end or max((span.end for span in self.spans), default=Fraction(0))

    def phase_at(self, position: Fraction) -> Span | None:
        """What holds at a position; None where nothing does."""
        for span in reversed(self.spans):
            if span.start <= position and (position < span.end or (self.closed and position == span.end)):
                return span
        return None


@dataclass(frozen=True)
class Table:
    """A file's rows that are not blank, as (line, cells). header: the cells of the first line, if it is one."""

    path: Path
    separator: str
    header: list[str] | None
    rows: list[tuple[int, list[str]]] = field(repr=False)

    def where(self, line: int) -> str:
        return f"{self.path} line {line}"

    def number(self, cell: str) -> Fraction | None:
        """`parse_position`, with decimal commas where commas do not separate."""
        return parse_position(cell if self.separator == "," else cell.replace(",", "."))

    def position(self, line: int, cell: str) -> Fraction:
        """The number or time in a cell, or a message with the line."""
        found = self.number(cell)
        if found is None:
            raise SpatialfeatError(f"{self.where(line)}: {cell[:80]!r} is no number and no time h:m:s; fix the line")
        return found

    def span(self, line: int, start: str, end: str, phase: str) -> Span:
        """What a line with these cells says."""
        return Span(self.position(line, start), self.position(line, end), phase, line)


def read_table(path: Path, separator: str = "", header: Sequence[str] | bool | None = None) -> Table:
    """Read a table of at least one row.

    Args:
        separator: "" finds it: the first of SEPARATORS that cuts every line into equally many cells.
        header: what the first line must say, letter case aside; True: whatever it says; False: there is none; None: it
            is a header where none of its cells is a number.

    Raises:
        SpatialfeatError: an empty file, another header, or lines of different length.
    """
    text = read_text(path)
    separator = separator or _separator_of(text)
    if separator == " ":
        cells = [line.split() for line in text.splitlines()]
    else:
        cells = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=separator)]
    table = Table(path, separator, None, [(line, row) for line, row in enumerate(cells, 1) if any(row)])
    rows = table.rows
    first: list[str] | None = None
    if rows:
        line, head = rows[0]
        if isinstance(header, Sequence) and list(map(str.casefold, head)) != list(map(str.casefold, header)):
            raise SpatialfeatError(
                f"{path} line {line}: {separator.join(head)[:80]!r} is not the header {separator.join(header)!r} of "
                "these files; get the file again, or fix it"
            )
        if header or (header is None and not any(table.number(cell) is not None for cell in head)):
            first, rows = head, rows[1:]
    if not rows:
        raise SpatialfeatError(f"{path}: has no rows; get the file again, or leave its video out with --leave-out")
    width = len(first or rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise SpatialfeatError(
                f"{path} line {line}: has {len(row)} cells, the first line {width} (the separator is a "
                f"{SEPARATORS.get(separator, separator)}); fix the line"
            )
    return replace(table, header=first, rows=rows)


def _separator_of(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()][:50]
    for separator in SEPARATORS:
        if separator == " ":
            counts = {len(line.split()) for line in lines}
        else:
            counts = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(counts) == 1 and counts != {1}:
            return separator
    return ","


def parse_position(cell: str) -> Fraction | None:
    """A number, or a time `h:m:s` or `m:s` in seconds; None for anything else."""
    if _NUMBER.fullmatch(cell):
        return Fraction(cell)
    match = _CLOCK.fullmatch(cell)
    if match is None or Fraction(match["s"]) >= 60 or (match["h"] and int(match["m"]) >= 60):
        return None
    return int(match["h"] or 0) * 3600 + int(match["m"]) * 60 + Fraction(match["s"])


def rows_track(
    path: Path, unit: str, rows: Iterable[tuple[int, Fraction, str]], *, first: int | Fraction = 0, step: int = 0
) -> Track:
    """A track of a row per frame or second, or per `step` of them (0: the usual one). first: the number of the first.

    A row holds until the next one, or for a step where others are missing.

    Raises:
        SpatialfeatError: rows that do not ascend, begin before `first`, or are mostly missing.
    """
    numbered = list(rows)
    where = f"{path} line {numbered[0][0]}"
    if numbered[0][1] < first:
        raise SpatialfeatError(f"{where}: {unit} {float(numbered[0][1]):g}, but they are counted from {first} here")
    differences = [later[1] - earlier[1] for earlier, later in pairwise(numbered)]
    for (line, number, _), difference in zip(numbered[1:], differences, strict=True):
        if difference <= 0:
            raise SpatialfeatError(
                f"{path} line {line}: {unit} {float(number):g} is not after the one of the line before; sort the rows, "
                "and keep one row of each"
            )
    usual = Fraction(step) or min(differences, default=Fraction(1))
    # Times are rounded: of 30 frames a second, one lasts 0.033 s, the next one 0.034 s.
    is_missing = [difference > usual * Fraction(3, 2) for difference in differences]
    gaps = sum(is_missing)
    if gaps and 2 * gaps >= len(differences):
        raise SpatialfeatError(
            f"{path} line {numbered[1 + is_missing.index(True)][0]}: rows are {float(usual):g} to "
            f"{float(max(differences)):g} apart (unit: {unit}), so most are missing; if they only say where phases "
            "begin, write a table of intervals instead: `start,end,phase`"
        )
    spans: list[Span] = []
    for index, (line, number, phase) in enumerate(numbered):
        is_gap = index < len(differences) and is_missing[index]
        end = number + (differences[index] if index < len(differences) and not is_gap else usual) - first
        if spans and spans[-1].phase == phase and spans[-1].end == number - first:
            spans[-1] = Span(spans[-1].start, end, phase, spans[-1].line)
        else:
            spans.append(Span(number - first, end, phase, line))
    return Track(path=path, unit=unit, spans=tuple(spans), rows_end=spans[-1].end, gaps=gaps)


MOST_PHASES = 200
"""More names than this are whole lines, whose columns were not recognized."""


@dataclass(frozen=True)
class Phases:
    """names: in the order of the labels. labels: what the files write -> label, None where that is no phase."""

    names: tuple[str, ...]
    labels: dict[str, int | None]


def name_phases(
    tracks: Iterable[Track],
    *,
    names: tuple[str, ...] | None = None,
    first_phase: Sequence[int] | None = None,
    spelling: Callable[[str], str] = str,
    unlabelled: Sequence[str] = NO_PHASE_IN_TABLES,
    phase_map: Mapping[str, str] | None = None,
) -> Phases:
    """Give every phase that the tracks write a label.

    Args:
        names: all phases in order; None: as they are found, in order of appearance or number.
        first_phase: where the files write numbers, that of the first phase; the numbers decide between several. (): the
            files write names. None: the files show which.
        spelling: makes one of several spellings of a name.
        phase_map: {name or number: new name, "" for no phase}; then the new names, in its order, are the phases.

    Raises:
        SpatialfeatError: a phase that is not among the names or in the map, or numbers with two readings.
    """
    places: dict[str, str] = {}
    for track in tracks:
        for span in track.spans:
            if span.phase not in unlabelled:
                places.setdefault(span.phase, f"{track.path} line {span.line}")
    numbers = {text: _whole_number(text) for text in places}
    is_numbered = first_phase is None and bool(places) and None not in numbers.values()
    if first_phase or is_numbered:
        labels, names = _number_labels(numbers, places, names, first_phase, has_map=phase_map is not None)
    else:
        names = names or tuple(dict.fromkeys(places))
        if len(names) > MOST_PHASES:
            raise SpatialfeatError(
                f"{places[names[-1]]}: {len(names)} different phases, such as {names[0][:40]!r} and "
                f"{names[-1][:40]!r}; give the table a header, and separate its columns by commas or tabs"
            )
        known = {spelling(name): label for label, name in enumerate(names)}
        for text, where in places.items():
            if spelling(text) not in known:
                nearest = get_close_matches(text, names, 1)
                raise SpatialfeatError(
                    f"{where}: the phase {text[:80]!r} is none of {', '.join(names)}"
                    f"{f' (nearest: {nearest[0]})' if nearest else ''}; fix the file, or say what it means with "
                    "--phase-map"
                )
        labels = {text: known[spelling(text)] for text in places}
    found: dict[str, int | None] = dict.fromkeys(unlabelled) | labels
    return Phases(names, found) if phase_map is None else _mapped(phase_map, names, labels, places, found)


NEAR = 0.85
"""Names of two phases that are as alike as this (difflib's ratio) may be one phase, written in two ways."""


def doubtful_phases(tracks: Mapping[str, Track], labels: Mapping[str, int | None]) -> Iterator[str]:
    """What is odd about the names that {video: its track} write: each may be a slip that became a phase of its own.

    labels: of `name_phases`. A name that is nearly another one's is doubtful where it is rare: names that are alike and
    recur in many videos, such as `clip artery` and `clip vein`, are phases.
    """
    places: dict[str, dict[str, str]] = {}
    for video, track in tracks.items():
        for span in track.spans:
            if labels[span.phase] is not None:
                places.setdefault(span.phase, {}).setdefault(video, f"{track.path} line {span.line} (video {video})")
    told = set()
    ordered = sorted(places, key=lambda name: len(places[name]), reverse=True)
    for index, rare in enumerate(ordered):
        for usual in ordered[:index]:
            here, there = len(places[rare]), len(places[usual])
            if usual not in told and _are_alike(usual, rare, is_rare=here == 1 or 2 * here < there):
                told.add(rare)
                yield (
                    f"{next(iter(places[rare].values()))}: the phase {rare!r}, in {here} of {len(tracks)} videos, is "
                    f"nearly {usual!r}, in {there}; if they are one phase, correct the table, or join them with "
                    "--phase-map; --phase-names FILE, the right names, refuses all others"
                )
                break
    single = [name for name in ordered if len(places[name]) == 1 < len(tracks) and name not in told]
    if single:
        where = name_some((f"{name!r} ({next(iter(places[name].values()))})" for name in single), 10)
        yield (
            f"in one video only, of {len(tracks)}: {where}; what is in one video cannot be both "
            "learned and tested. If it is another name for a phase, correct the table, or pass --phase-map"
        )


def _are_alike(one: str, other: str, *, is_rare: bool) -> bool:
    """Whether two names may be one: always where only letter case and signs differ, never where numbers differ."""
    if re.findall("[0-9]+", one) != re.findall("[0-9]+", other):
        return False
    one, other = (re.sub(r"[\W_]", "", name.casefold()) for name in (one, other))
    return one == other or (is_rare and SequenceMatcher(None, one, other, autojunk=False).ratio() >= NEAR)


def _whole_number(text: str) -> int | None:
    number = parse_position(text)
    return int(number) if number is not None and number.denominator == 1 else None


def _number_labels(
    numbers: Mapping[str, int | None],
    places: Mapping[str, str],
    names: tuple[str, ...] | None,
    first_phase: Sequence[int] | None,
    *,
    has_map: bool,
) -> tuple[dict[str, int], tuple[str, ...]]:
    values = {text: number for text, number in numbers.items() if number is not None}
    for text, where in places.items():
        if text not in values:
            raise SpatialfeatError(f"{where}: the phase {text[:80]!r} is no number, as all others are; fix the line")
    ordered = sorted(values, key=values.__getitem__)
    if has_map and not first_phase:
        # The map says what each number means.
        return {text: index for index, text in enumerate(ordered)}, tuple(ordered)
    if not ordered:
        return {}, names or ()
    low, high = values[ordered[0]], values[ordered[-1]]
    readings = [0, 1] if first_phase is None else list(first_phase)
    fitting = [first for first in sorted(readings) if low >= first and (names is None or high < first + len(names))]
    if low == 0 and 0 in fitting:
        fitting = [0]
    if not fitting:
        bad = ordered[-1] if low >= min(readings) else ordered[0]
        allowed = " or ".join(f"{first}..{first + len(names or ()) - 1 if names else ''}" for first in readings)
        raise SpatialfeatError(
            f"{places[bad]}: phase {bad} is outside {allowed} (the phases run from {low} to {high}); fix the file, or "
            "say what it means with --phase-map"
        )
    if len(fitting) > 1:
        raise SpatialfeatError(
            f"{places[ordered[0]]}: the phases run from {low} to {high}. Either they are counted from 1 (pass "
            "--first-phase 1), or from 0 and phase 0 does not occur (pass --first-phase 0)"
        )
    first = fitting[0]
    names = names or tuple(f"phase_{number}" for number in range(first, high + 1))
    return {text: number - first for text, number in values.items()}, names


def _mapped(
    phase_map: Mapping[str, str],
    names: tuple[str, ...],
    labels: Mapping[str, int],
    places: Mapping[str, str],
    found: dict[str, int | None],
) -> Phases:
    folded = {key.casefold(): new for key, new in phase_map.items()}
    new_names = tuple(dict.fromkeys(new for new in phase_map.values() if new))
    missing = []
    for text, label in labels.items():
        new = folded.get(text.casefold(), folded.get(names[label].casefold()))
        if new is None:
            missing.append(text)
        else:
            found[text] = new_names.index(new) if new else None
    if missing:
        raise SpatialfeatError(
            f"--phase-map: has no line for {', '.join(missing)} ({places[missing[0]]}); add a line FROM,TO for each "
            "(TO empty: no phase)"
        )
    return Phases(new_names, found)


def read_phase_map(path: Path) -> dict[str, str]:
    """`FROM,TO` lines, in order; a header `from,to` is skipped."""
    table = read_table(path, header=False)
    rows = [(line, row) for line, row in table.rows if [cell.casefold() for cell in row] != ["from", "to"]]
    for line, row in rows:
        if len(row) != 2 or not row[0]:
            raise SpatialfeatError(f"--phase-map {table.where(line)}: must be FROM,TO: a phase, and its new name")
    return {row[0]: row[1] for _, row in rows}
