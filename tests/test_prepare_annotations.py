"""Tracks and phases, against plain computations and cases by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialfeat.errors import SpatialfeatError
from spatialfeat.sources.annotations import FRAME, Span, Track, doubtful_phases, name_phases, parse_position, rows_track

QUARTERS = st.integers(0, 40).map(lambda number: Fraction(number, 4))
SPANS = st.lists(st.tuples(QUARTERS, QUARTERS).map(sorted), max_size=8)


@given(SPANS, st.lists(QUARTERS, max_size=12), st.booleans())
def test_the_last_span_that_holds_counts(ends: list[list[Fraction]], positions: list[Fraction], closed: bool) -> None:
    spans = tuple(Span(start, end, str(index), index) for index, (start, end) in enumerate(ends))
    track = Track(path=Path("a"), unit=FRAME, spans=spans, closed=closed)
    positions = sorted(positions)
    expected = []
    for position in positions:
        holding = [s for s in spans if s.start <= position < s.end or (closed and s.start <= position == s.end)]
        expected.append(holding[-1] if holding else None)
    assert [track.phase_at(position) for position in positions] == expected


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.sets(st.integers(0, 29)), st.integers(0, 1))
def test_a_row_holds_for_its_frame_alone(phases: list[str], left_out: set[int], first: int) -> None:
    kept = [(line, number) for line, number in enumerate(range(len(phases)), 1) if number not in left_out]
    steps = [b[1] - a[1] for a, b in pairwise(kept)]
    if not steps or (steps.count(1) < len(steps) and 2 * steps.count(1) <= len(steps)):
        return  # No step between rows is known.
    rows = [(line, Fraction(number + first), phases[number]) for line, number in kept]
    track = rows_track(Path("a"), FRAME, rows, first=first)
    found = [span.phase if span else None for span in map(track.phase_at, map(Fraction, range(len(phases))))]
    assert found == [None if number in left_out else phase for number, phase in enumerate(phases)]
    assert track.rows_end == kept[-1][1] + 1


def test_rounded_times_leave_no_holes() -> None:
    """Of 29.97 frames a second, to three decimals: rows are 0.033 or 0.034 s apart, and the frame at 1 s has one."""
    rows = [(line, round(Fraction(1001 * line, 30000), 3), str(line)) for line in range(100)]
    track = rows_track(Path("a"), "second", rows)
    assert track.gaps == 0
    found = [span.phase if span else None for span in map(track.phase_at, map(Fraction, range(4)))]
    assert found == ["0", "29", "59", "89"]  # The frames on display at 0, 1, 2 and 3 s.


def test_rows_that_only_say_where_a_phase_begins_are_refused() -> None:
    rows = [(line, Fraction(number), "abc"[line - 2]) for line, number in enumerate((0, 1500, 4000), 2)]
    with pytest.raises(SpatialfeatError, match=r"a.txt line 4: rows are 1500 to 2500 apart .* `start,end,phase`"):
        rows_track(Path("a.txt"), FRAME, rows)


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [("7", 7), ("7.25", Fraction(29, 4)), ("1:30", 90), ("0:01:30.5", Fraction(181, 2)), ("12:00:00", 43200),
     ("90:00", 5400), ("1:75", None), ("1:75:00", None), ("a", None), ("", None), ("1e3", None), ("-2", -2)],
)  # fmt: skip
def test_positions(cell: str, seconds: Fraction | None) -> None:
    assert parse_position(cell) == seconds


def track_of(*phases: str) -> Track:
    spans = (Span(Fraction(index), Fraction(index + 1), phase, index + 2) for index, phase in enumerate(phases))
    return Track(path=Path("a.csv"), unit=FRAME, spans=tuple(spans))


def test_labels_of_numbers() -> None:
    assert name_phases([track_of("2", "0", "-1")]).labels == {
        "": None, "-1": None, "-100": None, "nan": None, "NaN": None, "0": 0, "2": 2,
    }  # fmt: skip
    assert name_phases([track_of("2", "0")]).names == ("phase_0", "phase_1", "phase_2")
    assert name_phases([track_of("1", "3")], names=("a", "b", "c")).labels["3"] == 2  # 3 fits only when counted from 1.
    assert name_phases([track_of("1", "3")], first_phase=(1,)).names == ("phase_1", "phase_2", "phase_3")
    with pytest.raises(SpatialfeatError, match="counted from 1"):
        name_phases([track_of("1", "2")], names=("a", "b", "c"))
    with pytest.raises(SpatialfeatError, match=r"a.csv line 3: phase 4 is outside 0..2 or 1..3"):
        name_phases([track_of("0", "4")], names=("a", "b", "c"))


def test_tracks_without_any_phase_have_no_numbers() -> None:
    unlabelled = name_phases([track_of("-1")], names=("a", "b"), first_phase=(1,), unlabelled=("-1",))
    assert (unlabelled.names, unlabelled.labels) == (("a", "b"), {"-1": None})


def test_names_and_numbers_together_are_names() -> None:
    assert name_phases([track_of("cut", "2")]).names == ("cut", "2")
    with pytest.raises(SpatialfeatError, match=r"a.csv line 3: the phase 'cut' is no number"):
        name_phases([track_of("1", "cut")], first_phase=(0,))


def test_names_that_may_be_one() -> None:
    usual = ["clip artery", "clip vein", "step 1", "step 2", "Résection"]
    tracks = {f"v{number}": track_of(*usual) for number in range(5)}
    tracks["v5"] = track_of(*usual[:4], "Resection", "STEP_1", "clip artrey", "step 3")
    labels = name_phases(tracks.values()).labels
    *near, single = doubtful_phases(tracks, labels)
    pairs = [tuple(text.split("'")[1::2]) for text in near]
    assert sorted(pairs) == [("Resection", "Résection"), ("STEP_1", "step 1"), ("clip artrey", "clip artery")]
    assert single.split("'")[1::2] == ["step 3"]
    # One video shows nothing about names in others.
    assert list(doubtful_phases({"v": track_of("cut", "sew")}, {"cut": 0, "sew": 1})) == []
