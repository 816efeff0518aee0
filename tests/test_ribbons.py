"""Ribbons: where frames lie in time, and what is drawn from that."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import CHOLEC_NAMES, drawn_evaluations, drawn_ribbon, drawn_video, evaluation_of, small_video
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from spatialfeat.reports.plots import phase_style
from spatialfeat.reports.ribbons import (
    SHORTEST_FRACTION,
    VIDEOS_PER_PAGE,
    Timeline,
    contact_sheet,
    describe_video,
    overview_figures,
    time_unit,
    timelines,
)
from spatialfeat.scores.predictions import EvaluatedVideo, usual_step
from spatialfeat.scores.summary import ScoreOptions, unscored

NO_INTERVALS = ScoreOptions(num_samples=0)


def video_of(frames: list[int], labels: list[int], segments: list[int] | None = None) -> EvaluatedVideo:
    """A video with these frame numbers; every prediction is phase 0."""
    video = small_video("v", labels, [0] * len(frames))
    numbers, of_segments = (np.array(values, dtype=np.int64) for values in (frames, segments or [0] * len(frames)))
    return replace(video, frame_numbers=numbers, segments=of_segments)


def line_of(video: EvaluatedVideo, *, fps: float, step: float) -> Timeline:
    return Timeline.of(video.segments, video.frame_numbers, fps=fps, step=step)


def runs_of(line: Timeline, values: list[int]) -> list[tuple[int, float, float]]:
    """(value, start, end) of every run."""
    return [
        (int(value), float(start), float(end)) for value, start, end in zip(*line.runs(np.array(values)), strict=True)
    ]


@settings(max_examples=75, deadline=None)
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
    line = line_of(video_of(frames, labels, segments), fps=5.0, step=step)

    expected, offset = [], 0  # One cell per step: a label, or None in a gap.
    for index, (frame, segment) in enumerate(zip(frames, segments, strict=True)):
        if index and segment == segments[index - 1]:
            missing = (frame - frames[index - 1]) // step - 1
            expected += [None] * missing
            offset += missing
        expected.append(labels[index])
    painted: list[int | None] = [None] * len(expected)
    cell_s = step / 5.0
    for value, start, end in runs_of(line, labels):
        for cell in range(round(start / cell_s), round(end / cell_s)):
            assert painted[cell] is None, "runs overlap"
            painted[cell] = value
    assert painted == expected
    assert line.num_gaps == sum(
        frames[i] - frames[i - 1] > step and segments[i] == segments[i - 1] for i in range(1, len(frames))
    )
    assert line.duration_s == pytest.approx(len(expected) * cell_s)


def test_runs_worked_by_hand() -> None:
    # Frames 0 25 50 | gap | 150 175, 25 per second: one second each, seconds 3 to 6 are missing.
    labels = [1, 1, 2, 2, 2]
    line = line_of(video_of([0, 25, 50, 150, 175], labels), fps=25, step=25)
    assert runs_of(line, labels) == [(1, 0, 2), (2, 2, 3), (2, 6, 8)]
    assert (line.num_gaps, line.duration_s) == (1, 8.0)


def test_segments_follow_each_other() -> None:
    line = line_of(video_of([3, 4, 3, 4], [0, 0, 0, 0], [1, 1, 5, 5]), fps=2, step=1)
    assert line.segment_starts == ((1, 0.0), (5, 1.0))
    assert runs_of(line, [0, 0, 0, 0]) == [(0, 0, 1), (0, 1, 2)]  # A segment ends a run.


def test_jitter_of_the_sampling_is_no_gap() -> None:
    line = line_of(video_of([0, 24, 50, 75, 99], [0] * 5), fps=25, step=25)
    assert line.num_gaps == 0
    assert len(runs_of(line, [0] * 5)) == 1


def test_usual_step_is_the_median_within_segments() -> None:
    one, two = video_of([0, 25, 50, 1000, 1025], [0] * 5), video_of([0, 9], [0, 0], [1, 2])
    assert usual_step([one, two]) == 25
    assert usual_step([two]) == 1.0
    assert usual_step([]) == 1.0


def test_time_units() -> None:
    assert [time_unit(seconds)[1] for seconds in (0, 179, 180, 7200)] == ["s", "s", "min", "min"]


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
    figure = drawn_ribbon([evaluation_of("x", [video], "abc", NO_INTERVALS)], 0, fps=1.0)
    colours = [phase_style(phase).colour for phase in range(3)]
    truth = {(colours[1], 0, 2), ("#ffffff", 2, 3), (colours[2], 3, 4), (colours[2], 8, 10)}
    assert bars_of(figure) == truth | {(colours[0], 0, 4), (colours[0], 8, 10)}  # Nothing between 4 and 8.
    assert figure.axes[0].get_xlim() == (0, 10)
    assert figure.axes[0].get_xlabel().endswith("(s)")
    unlabelled = [c for c in figure.axes[0].collections if to_hex(c.get_facecolor()[0]) == "#ffffff"]
    assert unlabelled[0].get_hatch()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["0 a", "1 b", "2 c", "no label"]


def test_a_contact_sheet_has_one_time_for_ribbon_and_pictures(tmp_path: Path) -> None:
    """Of a video whose first two files are missing, and whose head and tail have no phase."""
    for name in ("a", "b"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    pictures = [(1, 5.0, tmp_path / "a.png"), (0, 3.5, tmp_path / "b.png")]
    labels = [-100, 1, 1, 0, -100]
    figure = contact_sheet("v", [4, 5, 6, 7, 8], labels, 2.0, ("cut", "sew"), pictures)
    colours = [phase_style(phase).colour for phase in range(2)]
    assert bars_of(figure) == {("#ffffff", 2, 2.5), (colours[1], 2.5, 3.5), (colours[0], 3.5, 4), ("#ffffff", 4, 4.5)}
    assert figure.axes[0].get_xlim() == (0, 4.5)
    assert "2 without a phase" in figure.axes[0].get_title()
    assert [axes.get_title() for axes in figure.axes[1:]] == ["1 sew\n0:00:05", "0 cut\n0:00:04"]
    assert [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes[1:]] == colours[::-1]


def test_ribbon_rows_and_accuracy() -> None:
    evaluations = drawn_evaluations(2, 100)
    figure = drawn_ribbon(evaluations, 1, fps=25.0)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    expected = [f"{e.name} ({e.per_video[1]['accuracy']:.4f})" for e in evaluations]
    assert labels == ["ground truth", *expected]


def test_without_truth_the_legend_lists_the_phases_that_are_drawn_and_confidence_has_a_scale() -> None:
    videos = []
    for predictions in ([1, 1, 3, 3], [2, 2, 2, 2]):
        video = replace(video_of([0, 1, 2, 3], [-100] * 4), predictions=np.array(predictions))
        videos.append(replace(video, probabilities=np.array([[0.1, 0.7, 0.1, 0.1]] * 4, dtype=np.float32)))
    network = unscored("network", videos, "abcd")
    figure = drawn_ribbon([network], 0, fps=1.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 b", "3 d"]
    (overview,) = overview_figures([network], timelines(videos, 1.0))
    assert [text.get_text() for text in overview.legends[0].get_texts()] == ["1 b", "2 c", "3 d"]
    axes = figure.axes[0]
    (scale,) = axes.child_axes
    assert [text.get_text() for text in scale.get_yticklabels()] == ["0", "0.5", "1"]
    none, _, full = scale.get_yticks()
    (area,) = axes.collections[-1].get_paths()
    confidences = (area.vertices[:, 1] - none) / (full - none)
    assert (confidences.min(), confidences.max()) == pytest.approx((0, 0.7))


def test_a_phase_has_one_colour_whichever_phases_occur() -> None:
    only_two = drawn_ribbon([evaluation_of("x", [video_of([0, 1], [2, 2])], "abc", NO_INTERVALS)], 0, fps=1.0)
    assert (phase_style(2).colour, 0.0, 2.0) in bars_of(only_two)


def test_short_runs_stay_visible() -> None:
    """One frame of 20,000 is a tenth of a pixel; it is drawn longer, and over the neighbours."""
    labels = [5] * 777 + [3] + [5] * 19222
    evaluation = evaluation_of("x", [small_video("v", labels, labels)], CHOLEC_NAMES, NO_INTERVALS)
    figure = drawn_ribbon([evaluation], 0, fps=1.0)
    drawn = [to_hex(collection.get_facecolor()[0]) for collection in figure.axes[0].collections]
    assert drawn == [phase_style(phase).colour for phase in (5, 3)] * 2
    (short,) = [(start, end) for colour, start, end in bars_of(figure) if colour == drawn[1]]
    assert short == pytest.approx((777 / 60, 777 / 60 + SHORTEST_FRACTION * 20000 / 60), abs=2e-3)


def test_a_video_in_words() -> None:
    video = replace(video_of([3, 4, 9, 3, 4], [0] * 5, [1, 1, 1, 5, 5]), frame_ids=np.array(list("abcde")))
    shown = describe_video(video, line_of(video, fps=1.0, step=1))
    assert shown == "5 frames; 9 s; from a to e; 1 gap (blank); segments (dashed lines): 1 from 0 s, 5 from 7 s"


def test_many_videos_take_several_pages() -> None:
    videos = [replace(drawn_video(0, 5, 7), video_id=f"v{number}") for number in range(VIDEOS_PER_PAGE + 1)]
    evaluation = evaluation_of("x", videos, CHOLEC_NAMES, NO_INTERVALS)
    pages = overview_figures([evaluation], timelines(videos, 25.0))
    shown = [[text.get_text() for text in page.axes[0].get_yticklabels()] for page in pages]
    assert [len(ids) for ids in shown] == [11, 10]  # Evenly filled.
    assert list(itertools.chain(*shown)) == [video.video_id for video in videos]
