"""Pictures: what ribbons are drawn from, what figures show, files as PNG and SVG."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_data import CHOLEC_NAMES, drawn_evaluations, drawn_video, evaluation_of
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from spatialfeat.errors import SpatialfeatError
from spatialfeat.reports.plots import (
    confusion_figure,
    per_phase_figure,
    phase_style,
    plain_text,
    reliability_figure,
    save_figure,
    svg_bytes,
)
from spatialfeat.reports.report import name_suffixes, save_pictures
from spatialfeat.reports.ribbons import (
    VIDEOS_PER_PAGE,
    duration_text,
    find_runs,
    overview_figures,
    ribbon_figure,
    time_unit,
    timeline,
    usual_step,
)
from spatialfeat.scores.predictions import EvaluatedVideo, Evaluation
from spatialfeat.scores.summary import SummaryOptions

NO_INTERVALS = SummaryOptions(bootstrap_samples=0)


def video_of(frames: list[int], labels: list[int], segments: list[int] | None = None) -> EvaluatedVideo:
    """A video with these frame numbers; every prediction is phase 0."""
    count = len(frames)
    return EvaluatedVideo(
        video_id="v",
        patient_id="p",
        frame_ids=np.array([f"v_{frame}" for frame in frames], dtype=str),
        segments=np.array(segments or [0] * count, dtype=np.int64),
        frame_numbers=np.array(frames, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        predictions=np.zeros(count, dtype=np.int64),
        probabilities=None,
    )


def texts(svg: bytes) -> list[str]:
    """Every text of an SVG; fails unless it is well-formed."""
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_runs_equal_brute_force(data: st.DataObject) -> None:
    """Paint every frame alone onto a fine grid, and the runs onto another: both show the same."""
    step = data.draw(st.sampled_from([1, 25]))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    labels = data.draw(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=sum(lengths), max_size=sum(lengths)))
    skips = data.draw(st.lists(st.sampled_from([1, 1, 1, 4]), min_size=sum(lengths), max_size=sum(lengths)))
    frames, segments = [], []
    for segment, length in enumerate(lengths):
        place = 7
        for _ in range(length):
            frames.append(place)
            segments.append(segment)
            place += step * skips[len(frames) - 1]
    line = timeline(video_of(frames, labels, segments), fps=5.0, step=step)
    runs = find_runs(np.array(labels), line)

    expected, offset = [], 0  # One cell per step: a label, or None in a gap.
    for index, (frame, segment) in enumerate(zip(frames, segments, strict=True)):
        if index and segment == segments[index - 1]:
            missing = (frame - frames[index - 1]) // step - 1
            expected += [None] * missing
            offset += missing
        expected.append(labels[index])
    painted: list[int | None] = [None] * len(expected)
    cell_s = step / 5.0
    for value, start, end in zip(runs.values, runs.starts, runs.ends, strict=True):
        for cell in range(round(start / cell_s), round(end / cell_s)):
            assert painted[cell] is None, "runs overlap"
            painted[cell] = int(value)
    assert painted == expected
    assert line.num_gaps == sum(
        frames[i] - frames[i - 1] > step and segments[i] == segments[i - 1] for i in range(1, len(frames))
    )
    assert line.duration_s == pytest.approx(len(expected) * cell_s)


def test_runs_worked_by_hand() -> None:
    # Frames 0 25 50 | gap | 150 175, 25 per second: one second each, seconds 3 to 6 are missing.
    line = timeline(video_of([0, 25, 50, 150, 175], [1, 1, 2, 2, 2]), fps=25, step=25)
    runs = find_runs(np.array([1, 1, 2, 2, 2]), line)
    assert list(zip(runs.values, runs.starts, runs.ends, strict=True)) == [(1, 0, 2), (2, 2, 3), (2, 6, 8)]
    assert (line.num_gaps, line.duration_s) == (1, 8.0)


def test_segments_follow_each_other() -> None:
    line = timeline(video_of([3, 4, 3, 4], [0, 0, 0, 0], [1, 1, 5, 5]), fps=2, step=1)
    assert line.segment_starts == ((1, 0.0), (5, 1.0))
    runs = find_runs(np.zeros(4, dtype=np.int64), line)
    assert list(zip(runs.starts, runs.ends, strict=True)) == [(0, 1), (1, 2)]  # A segment ends a run.


def test_jitter_of_the_sampling_is_no_gap() -> None:
    line = timeline(video_of([0, 24, 50, 75, 99], [0] * 5), fps=25, step=25)
    assert line.num_gaps == 0
    assert len(find_runs(np.zeros(5, dtype=np.int64), line).values) == 1


def test_usual_step_is_the_median_within_segments() -> None:
    one, two = video_of([0, 25, 50, 1000, 1025], [0] * 5), video_of([0, 9], [0, 0], [1, 2])
    assert usual_step([one, two]) == 25
    assert usual_step([two]) == 1.0
    assert usual_step([]) == 1.0


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_fps_is_named(fps: float) -> None:
    with pytest.raises(SpatialfeatError, match="give the frame numbers per second"):
        timeline(video_of([0], [0]), fps=fps, step=1)


def test_units_and_durations() -> None:
    assert [time_unit(seconds)[1] for seconds in (0, 179, 180, 7200)] == ["s", "s", "min", "min"]
    assert [duration_text(s) for s in (0.04, 42, 59.6, 185, 3725)] == [
        "0.04 s",
        "42 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 02 min",
    ]


def bars_of(figure: Figure) -> set[tuple[str, float, float]]:
    """(colour, start, end) of every bar of a ribbon figure, in the axis's unit."""
    found = set()
    for collection in figure.axes[0].collections:
        for path in collection.get_paths():
            box = path.get_extents()
            found.add((to_hex(collection.get_facecolor()[0]), round(box.x0, 3), round(box.x1, 3)))
    return found


def test_ribbon_draws_runs_gaps_and_unlabelled_frames() -> None:
    video = video_of([0, 1, 2, 3, 8, 9], [1, 1, -100, 2, 2, 2])
    figure = ribbon_figure([evaluation_of("x", [video], "abc", NO_INTERVALS)], 0, fps=1.0)
    colours = [phase_style(phase).colour for phase in range(3)]
    truth = {(colours[1], 0, 2), ("#ffffff", 2, 3), (colours[2], 3, 4), (colours[2], 8, 10)}
    assert bars_of(figure) == truth | {(colours[0], 0, 4), (colours[0], 8, 10)}  # Nothing between 4 and 8.
    assert figure.axes[0].get_xlim() == (0, 10)
    assert figure.axes[0].get_xlabel().endswith("(s)")
    unlabelled = [c for c in figure.axes[0].collections if to_hex(c.get_facecolor()[0]) == "#ffffff"]
    assert unlabelled[0].get_hatch()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["0 a", "1 b", "2 c", "no label"]


def test_ribbon_rows_and_accuracy() -> None:
    evaluations = drawn_evaluations(2, 100)
    figure = ribbon_figure(evaluations, 1, fps=25.0)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    expected = [f"{e.name} ({e.per_video[1]['accuracy']:.3f})" for e in evaluations]
    assert labels == ["ground truth", *expected]


def test_a_phase_has_one_colour_whichever_phases_occur() -> None:
    only_two = ribbon_figure([evaluation_of("x", [video_of([0, 1], [2, 2])], "abc", NO_INTERVALS)], 0, fps=1.0)
    assert (phase_style(2).colour, 0.0, 2.0) in bars_of(only_two)


def test_many_videos_take_several_pages() -> None:
    videos = [replace(drawn_video(0, 5, 7), video_id=f"v{number}") for number in range(VIDEOS_PER_PAGE + 1)]
    pages = overview_figures([evaluation_of("x", videos, CHOLEC_NAMES, NO_INTERVALS)], fps=25.0)
    shown = [[text.get_text() for text in page.axes[0].get_yticklabels()] for page in pages]
    assert [len(ids) for ids in shown] == [11, 10]  # Evenly filled.
    assert list(itertools.chain(*shown)) == [video.video_id for video in videos]


def test_absent_phases_are_said_not_drawn() -> None:
    video = video_of([0, 1, 2], [0, 0, 0])
    figure = per_phase_figure([evaluation_of("x", [video], ["here", "absent"], NO_INTERVALS)])
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["no frames"]
        assert len(axes.patches) == 1
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0 here", "1 absent"]


def test_bars_show_the_scores_and_their_intervals() -> None:
    evaluations = drawn_evaluations(4, 200)
    axes = per_phase_figure(evaluations).axes[0]
    expected = [[row["f1"] for row in e.metrics["per_phase"]] for e in evaluations]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(itertools.chain(*expected)))
    drawn = [tuple(line.get_xdata()) for line in axes.lines if line.get_color() == "black"]
    intervals = [tuple(row["f1"]) for e in evaluations for row in e.metrics["intervals"]["per_phase"] if row["f1"]]
    assert drawn == intervals


def test_confusion_matrix_shows_every_phase_and_count() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    shown = texts(svg_bytes(confusion_figure(counts, ["a", "b", "c"], "t")))
    assert {"0.75", "3", "0.25", "1", "0.50", "2", "no frames of this phase", "a", "b", "c"} <= set(shown)


def test_reliability_names_error_and_counts() -> None:
    evaluation = drawn_evaluations(2, 200, names=("x",))[0]
    calibration = evaluation.metrics["calibration"]
    shown = texts(svg_bytes(reliability_figure(evaluation)))
    assert f"x: expected calibration error {calibration['expected_calibration_error']:.4f}" in " ".join(shown)
    assert {str(entry["num_frames"]) for entry in calibration["bins"]} <= set(shown)


@pytest.mark.parametrize("name", ["$x$", "_hidden", "a $ b", "<b>&\"'", "two\nlines", "ä…é"])
def test_any_phase_name_is_written_as_it_is(name: str) -> None:
    video = video_of([0, 1], [0, 1])
    svg = svg_bytes(ribbon_figure([evaluation_of("x", [video], [name, "b"], NO_INTERVALS)], 0, fps=1.0))
    assert f"0 {' '.join(name.split())}" in texts(svg)


def test_long_names_are_shortened_in_the_middle() -> None:
    shortened = plain_text("first" + "x" * 90 + "last")
    assert len(shortened) == 32
    assert shortened.startswith("first")
    assert shortened.endswith("last")


def all_figures(evaluations: list[Evaluation]) -> list[Figure]:
    figures = [per_phase_figure(evaluations), ribbon_figure(evaluations, 0, fps=25.0)]
    return [*figures, reliability_figure(evaluations[0]), *overview_figures(evaluations, fps=25.0)]


def test_same_input_same_svg() -> None:
    first, second = (
        [svg_bytes(figure) for figure in all_figures(drawn_evaluations(2, 60, names=("x",)))] for _ in range(2)
    )
    assert first == second
    assert not any(b"<dc:date>" in svg for svg in first)


def test_no_text_leaves_the_picture() -> None:
    names = ["AVeryLongPhaseNameWithoutAnyBlank" + letter for letter in "abcdefghijklmn"]
    evaluations = drawn_evaluations(2, 120, names)
    counts = np.array(evaluations[0].metrics["confusion_matrix"])
    for figure in [*all_figures(evaluations), confusion_figure(counts, names, "t" * 60)]:
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0, figure
        assert box.y0 >= 0, figure
        assert box.x1 <= width, figure
        assert box.y1 <= height, figure


def test_every_picture_is_written_twice(tmp_path: Path) -> None:
    evaluations = drawn_evaluations(2, 60)
    written = save_pictures(tmp_path, evaluations, fps=25.0)
    stems = ["per_phase", "ribbons_overview", "ribbons/1000", "ribbons/1001_1"]
    stems += [f"{kind}_{name}" for kind in ("confusion_matrix", "reliability") for name in ("resnet", "tcn")]
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert {str(path.relative_to(tmp_path)) for path in written} == expected
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == expected
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 10, path
        else:
            assert texts(path.read_bytes()), path


def test_wrong_fps_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match="fps is 0"):
        save_pictures(tmp_path, drawn_evaluations(1, 20), fps=0)
    assert list(tmp_path.iterdir()) == []


def test_one_frame_and_no_probabilities(tmp_path: Path) -> None:
    evaluation = evaluation_of("one", [video_of([5], [1])], CHOLEC_NAMES)
    written = {path.name for path in save_pictures(tmp_path, [evaluation], fps=25.0)}
    assert "confusion_matrix.svg" in written
    assert not any(name.startswith("reliability") for name in written)


def test_names_with_dots_keep_them(tmp_path: Path) -> None:
    png, svg = save_figure(Figure(), tmp_path / "video.1.png")
    assert (png.name, svg.name) == ("video.1.png", "video.1.svg")


def test_file_names_of_evaluations_are_safe_and_different() -> None:
    video = video_of([0], [0])
    evaluations = [evaluation_of(name, [video], "ab", NO_INTERVALS) for name in ("a/b", "a b", "A-b", "é.1")]
    assert name_suffixes(evaluations) == ["_a-b", "_a-b-2", "_A-b-2-2", "_é.1"]
