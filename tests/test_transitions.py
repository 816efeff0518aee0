"""Transition graphs: the built-in one, CSVs with names or numbers, and rows that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from predictions_data import Rows, write_rows

from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.relaxed import CHOLEC80, read_transitions, relaxed_graph

NAMES = ("prepare", "cut", "close")


def test_cholec80_is_built_in() -> None:
    assert relaxed_graph("cholec80", tuple("abcdefg")) is CHOLEC80
    with pytest.raises(SpatialfeatError, match="its graph has 7 phases, these data have 3; write your own"):
        relaxed_graph("cholec80", NAMES)


def test_names_and_numbers_may_be_mixed_and_repeated(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "graph.csv", "to,from,note", [(1, "prepare", "x"), ("close", 1, ""), ("cut", 0, "")])
    assert relaxed_graph(str(path), NAMES).pairs == {(0, 1), (1, 2)}
    assert read_transitions(path, NAMES).num_phases == 3


def test_a_name_that_is_a_number_goes_before_the_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "graph.csv", "from,to", [("1", "2")])
    assert read_transitions(path, ("1", "2", "3")).pairs == {(0, 1)}


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("from,to", [("prepare", "cut"), ("cut", "sew")], r" row 3: column to: 'sew' is no phase; write 0\.\.2 or one"),
        ("from,to", [("3", "cut")], r" row 2: column from: '3' is no phase"),
        ("from,to", [("", "cut")], r" row 2: column from: '' is no phase"),
        ("from,to", [("cut", "1")], r" row 2: cut follows itself; remove it"),
        ("from,to", [], r": has no rows; add one row `from,to` per allowed transition"),
        ("before,after", [("0", "1")], r": no column from and to \(found: before, after\)"),
        ("from,to,to", [("0", "1", "1")], r": column to is there twice"),
    ],
)
def test_wrong_rows_are_named(header: str, rows: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"graph\.csv" + message):
        read_transitions(write_rows(tmp_path / "graph.csv", header, rows), NAMES)
