"""Charts: phase colours that stay apart, what figures show, files as PNG and SVG."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_data import drawn_evaluations, drawn_ribbon, evaluation_of, small_video
from matplotlib.figure import Figure
from PIL import Image

from spatialfeat.console import count_text
from spatialfeat.reports.plots import (
    PHASE_COLOURS,
    confusion_figure,
    per_phase_figure,
    phase_style,
    plain_text,
    reliability_figure,
    save_curves,
    save_figure,
    svg_bytes,
)
from spatialfeat.reports.ribbons import overview_figures, timelines
from spatialfeat.reports.tables import score_tables
from spatialfeat.scores.summary import Evaluation, ScoreOptions, score, shown_of, unscored

NO_INTERVALS = ScoreOptions(num_samples=0)

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009:
# complete deficiency, on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def cielab(colours: list[str], sight: str = "normal") -> np.ndarray:
    """(N, 3) CIE L*a*b* of #rrggbb colours as somebody with this sight sees them."""
    values = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(SIGHTS[sight]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * cube[:, 1] - 16, 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_phase_colours_stay_apart(sight: str) -> None:
    seen = cielab([*PHASE_COLOURS, "#ffffff"], sight)
    distances = {
        (first, second): float(np.linalg.norm(seen[first] - seen[second]))
        for first, second in itertools.combinations(range(len(seen)), 2)
    }
    between = {pair: distance for pair, distance in distances.items() if pair[1] < len(PHASE_COLOURS)}
    assert min(between.values()) >= 25, min(between, key=lambda pair: between[pair])
    assert min(distances.values()) >= 20, "a colour looks like a gap"


def test_neighbouring_phases_differ_in_grey_print() -> None:
    lightness = cielab(list(PHASE_COLOURS))[:, 0]
    assert np.abs(np.diff(lightness)).min() >= 25


def test_sixty_phases_look_different_and_then_start_over() -> None:
    looks = [(phase_style(phase).colour, phase_style(phase).hatch) for phase in range(60)]
    assert len(set(looks)) == 60
    assert {hatch for _, hatch in looks[:12]} == {""}
    assert phase_style(60) == phase_style(0)


def test_ink_is_readable_on_every_colour() -> None:
    for phase in range(12):
        style = phase_style(phase)
        ink, colour = cielab([style.ink, style.colour])[:, 0]
        assert abs(ink - colour) > 40, phase


def texts(svg: bytes) -> list[str]:
    """Every text of an SVG; fails unless it is well-formed."""
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_absent_phases_are_said_not_drawn() -> None:
    video = small_video("v", [0, 0, 0], [0, 0, 0])
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


def test_a_bar_of_zero_is_a_line_and_the_word_0() -> None:
    videos = [small_video("1_1", [0, 1, 1], [0, 0, 0]), small_video("2_1", [0, 1, 1], [0, 0, 0])]
    axes = per_phase_figure([evaluation_of("x", videos, "ab", ScoreOptions(num_samples=50))]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0"]
    (zero,) = [line for line in axes.lines if list(line.get_xdata()) == [0, 0]]
    assert zero.get_linewidth() < 2
    # An interval from 0 to 0 would be a slab on the axis.
    intervals = [line for line in axes.lines if line.get_color() == "black"]
    assert [list(line.get_ydata()) for line in intervals] == [[0, 0]]


def test_curves_are_png_and_svg_and_no_mark_is_cut(tmp_path: Path) -> None:
    for quantity, values in (("accuracy", [0.0, 1.0]), ("loss", [0.0, 3.0])):
        path = tmp_path / f"{quantity}_curves.png"
        save_curves(path, quantity=quantity, train=values, val=values[::-1], best_epoch=1)
        with Image.open(path) as image:
            assert min(image.size) > 300
        root = ElementTree.fromstring(path.with_suffix(".svg").read_bytes())
        marks = [node for node in root.iter("{http://www.w3.org/2000/svg}g") if "line2d" in node.get("id", "")]
        used = [g for g in marks if g.find(".//{http://www.w3.org/2000/svg}use") is not None]
        curves = [g for g in used if len(g.findall(".//{http://www.w3.org/2000/svg}use")) == 2]
        assert len(curves) >= 2
        assert not any("clip-path" in node.attrib for curve in curves for node in curve.iter())


def test_confusion_matrix_shows_every_phase_and_count() -> None:
    video = small_video("v", [0, 0, 0, 0, 2, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2])
    shown = texts(svg_bytes(confusion_figure(evaluation_of("x", [video], "abc", NO_INTERVALS))))
    expected = {
        "0.7500",
        "3",
        "0.2500",
        "1",
        "0.5000",
        "2",
        "no frames of this phase",
        "0 a",
        "1 b",
        "2 c",
        "4 frames",
        "0 frames",
        "x: 8 frames of 1 video",
    }
    assert expected <= set(shown)


def test_reliability_names_error_and_counts() -> None:
    evaluation = drawn_evaluations(2, 200, names=("x",))[0]
    calibration = evaluation.metrics["calibration"]
    shown = texts(svg_bytes(reliability_figure(evaluation)))
    assert f"x: expected calibration error {calibration['expected_calibration_error']:.4f}" in " ".join(shown)
    assert {str(entry["num_frames"]) for entry in calibration["bins"]} <= set(shown)


@pytest.mark.parametrize("name", ["$x$", "_hidden", "a $ b", "<b>&\"'", "two\nlines", "ä…é"])
def test_any_phase_name_is_written_as_it_is(name: str) -> None:
    video = small_video("v", [0, 1], [0, 0])
    svg = svg_bytes(drawn_ribbon([evaluation_of("x", [video], [name, "b"], NO_INTERVALS)], 0, fps=1.0))
    assert f"0 {' '.join(name.split())}" in texts(svg)


def test_long_names_are_shortened_in_the_middle() -> None:
    shortened = plain_text("first" + "x" * 90 + "last")
    assert len(shortened) == 32
    assert shortened.startswith("first")
    assert shortened.endswith("last")


def all_figures(evaluations: list[Evaluation]) -> list[Figure]:
    figures = [per_phase_figure(evaluations), drawn_ribbon(evaluations, 0, fps=25.0)]
    figures += [reliability_figure(evaluations[0]), confusion_figure(evaluations[0])]
    return [*figures, *overview_figures(evaluations, timelines(evaluations[0].videos, 25.0))]


def test_no_text_leaves_the_picture() -> None:
    names = ["AVeryLongPhaseNameWithoutAnyBlank" + letter for letter in "abcdefghijklmn"]
    evaluations = drawn_evaluations(2, 120, names, names=("a" * 60, "b"))
    for figure in all_figures(evaluations):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert box.x0 >= 0, figure
        assert box.y0 >= 0, figure
        assert box.x1 <= width, figure
        assert box.y1 <= height, figure


def test_names_with_dots_keep_them(tmp_path: Path) -> None:
    save_figure(Figure(), tmp_path / "video.1.png")
    assert {path.name for path in tmp_path.iterdir()} == {"video.1.png", "video.1.svg"}


def test_a_thousand_classes_give_pictures_of_those_that_occur() -> None:
    """Weights of another task: 7 true phases, 100 predicted ones. A picture of all took 23 GB."""
    num_classes = 1000
    labels = np.repeat(np.arange(7), 30)
    predictions = labels.copy()
    wrong = np.arange(0, 200, 2)
    predictions[wrong] = 100 + 3 * np.arange(100)
    predictions[198:] = 100  # The one that is predicted most.
    video = small_video("1_1", labels.tolist(), predictions.tolist())
    names = [f"class {number}" for number in range(num_classes)]
    evaluations = [replace(score("network", [video], names, NO_INTERVALS), name=f"set {index}") for index in range(2)]
    shown = shown_of(evaluations)
    assert shown_of(evaluations[:1]) == shown
    assert len(shown) == 60
    assert shown[:8] == [*range(7), 100]
    assert {103, 997}.issuperset(set(shown) - set(range(7)) - set(100 + 3 * np.arange(100)))

    confusion = confusion_figure(evaluations[0])
    axes = confusion.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{phase} class {phase}\n{count_text(int((labels == phase).sum()), 'frame')}" for phase in shown
    ]
    assert "60 of 1000 phases are shown" in axes.get_title()
    # Fractions are those of all the phase's frames, whatever it was taken for.
    hits = int((predictions[labels == 2] == 2).sum())
    assert f"{hits / 30:.4f}" in {text.get_text() for text in axes.texts if text.get_position()[1] == 2.40}

    for chosen in (evaluations, evaluations[:1]):
        bars = per_phase_figure(chosen)
        assert "60 of 1000 phases are shown" in bars.get_suptitle()
    (ribbon,) = overview_figures(evaluations, timelines([video], 1.0))
    legend = [text.get_text() for text in ribbon.legends[0].get_texts()]
    assert len(legend) == 61
    assert "940 other phases" in legend
    for figure in (confusion, bars, ribbon, drawn_ribbon(evaluations, 0, fps=1)):
        assert max(figure.get_size_inches()) < 60
    text = score_tables(evaluations[0])
    assert len(text.splitlines()) < 100
    assert "60 of 1000 phases are shown" in text
    assert "per_phase.csv" in text


def test_of_a_thousand_classes_without_any_truth_those_that_are_predicted_are_shown() -> None:
    video = small_video("1_1", [-100] * 4, [999, 5, 5, -100])
    evaluation = unscored("network", [video], [f"class {number}" for number in range(1000)])
    assert shown_of([evaluation]) == [5, 999]
    legend = [text.get_text() for text in drawn_ribbon([evaluation], 0, fps=1).legends[0].get_texts()]
    assert legend == ["5 class 5", "999 class 999", "no label"]


def test_all_of_sixty_phases_are_shown_also_where_they_do_not_occur() -> None:
    evaluation = score("x", [small_video("1_1", [0, 1], [1, 1])], [f"p{n}" for n in range(60)], NO_INTERVALS)
    assert shown_of([evaluation]) == list(range(60))
    assert "shown" not in confusion_figure(evaluation).axes[0].get_title()
