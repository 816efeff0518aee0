"""Terminal tables: every number says how it was averaged, and lines fit a terminal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_data import compared, small_video
from predictions_data import BETTER, PREDICTED, TRUTH

from spatialfeat.console import WIDTH
from spatialfeat.reports.tables import comparison_table, latex_table, score_tables
from spatialfeat.scores.relaxed import CHOLEC80
from spatialfeat.scores.summary import Evaluation, ScoreOptions, score

NAMES = ("preparation", "a phase whose name is much too long for a table", "c", "d", "e", "f", "g")


def make_evaluation(
    name: str, predicted: list[int], *, group_by: str = "video", probabilities: bool = True, num_frames: int = 9
) -> Evaluation:
    videos = []
    for video in dict.fromkeys(frame_id.rpartition("_")[0] for frame_id, _ in TRUTH[:num_frames]):
        rows = [row for row in range(num_frames) if TRUTH[row][0].rpartition("_")[0] == video]
        labels = [TRUTH[row][1] if TRUTH[row][0] != "1_1_2" else -100 for row in rows]
        values = [predicted[row] for row in rows]
        table = np.eye(7, dtype=np.float32)[values] if probabilities else None
        videos.append(replace(small_video(video, labels, values), probabilities=table))
    options = ScoreOptions(relaxed=CHOLEC80, sampling_fps=1.0, num_samples=100, group_by=group_by)
    return score(name, videos, NAMES, options)


@pytest.mark.parametrize("group_by", ["video", "patient"])
def test_every_line_fits_the_terminal(group_by: str) -> None:
    first, second = (
        make_evaluation(name, values, group_by=group_by) for name, values in (("a", PREDICTED), ("b", BETTER))
    )
    (comparison,) = compared([first, second])
    for text in (score_tables(first), comparison_table(comparison, [first, second])):
        assert max(map(len, text.splitlines())) <= WIDTH
        assert all(line == line.rstrip() for line in text.splitlines())


def test_the_numbers_are_those_of_the_metrics() -> None:
    evaluation = make_evaluation("resnet", PREDICTED)
    lines = [" ".join(line.split()) for line in score_tables(evaluation).splitlines()]
    assert lines[0] == "resnet: 8 frames of 3 videos, 2 patients, 7 phases; 1 unlabelled frame left out"
    assert "intervals: 100 bootstrap samples of 2 patients" in lines
    low, high = evaluation.metrics["intervals"]["accuracy"]
    assert f"accuracy all frames together 0.8750 {low:.4f} to {high:.4f}" in lines
    assert any(line.startswith("accuracy mean over videos 0.9167") for line in lines)
    assert "relaxed boundaries: window 10 s = 10 frames at 1 fps" in lines
    assert "calibration err. all frames, 15 bins 0.1250" in lines
    assert any(line.startswith("a phase whose name is .. 3 ") for line in lines)
    assert any(line.startswith("d 0 - - - - -") for line in lines)


def test_one_patient_and_no_probabilities() -> None:
    text = score_tables(make_evaluation("resnet", PREDICTED, probabilities=False, num_frames=4))
    assert "intervals: none, because they need at least 2 patients" in text
    assert "calibration" not in text
    assert "3 frames of 1 video, 1 patient, 7 phases" in text
    assert "(sd -)" in text
    alone = [make_evaluation(name, PREDICTED, probabilities=False, num_frames=4) for name in ("resnet", "tcn")]
    (found,) = compared(alone)
    compared_text = comparison_table(found, alone)
    assert "on the same frames; intervals: none, because they need" in compared_text
    # Nobody needs a column of dashes.
    assert "interval" not in text.replace("intervals:", "") + compared_text.partition("\n")[2]
    assert any(line.split()[-3:] == ["first", "second", "differ."] for line in compared_text.splitlines())


def test_a_difference_is_second_minus_first() -> None:
    first, second = make_evaluation("resnet", PREDICTED), make_evaluation("TCN", BETTER)
    (comparison,) = compared([first, second])
    text = comparison_table(comparison, [first, second])
    assert text.startswith("TCN minus resnet, on the same frames; intervals: 100 bootstrap samples of 2 patients\n")
    # 1_1_2, where the two differ, is unlabelled.
    assert "0.8750  0.8750  +0.0000  +0.0000 to +0.0000" in text
    assert "excludes 0" not in text


@pytest.mark.parametrize(("num_patients", "is_marked"), [(4, False), (5, True)])
def test_only_enough_patients_carry_a_claim(num_patients: int, is_marked: bool) -> None:
    videos = [(f"{patient}_1", [0, 0, 1, 1], [0, 0, 0, 0]) for patient in range(num_patients)]
    first = score("wrong", [small_video(name, labels, wrong) for name, labels, wrong in videos], "ab")
    second = score("right", [small_video(name, labels, labels) for name, labels, _ in videos], "ab")
    (found,) = compared([first, second])
    text = comparison_table(found, [first, second])
    assert "0.5000  1.0000  +0.5000  +0.5000 to +0.5000" in text
    assert ("+0.5000 to +0.5000 *" in text) == is_marked
    assert ("* the interval excludes 0" in text) == is_marked
    assert ("4 patients, fewer than 5, are too few for an interval" in text) != is_marked


def test_phases_without_frames_are_said_beside_the_macro_scores() -> None:
    names = ["a", "b", "c", "d", "e", "f", "g"]
    labels = [0, 1, 2, 3, 4, 5]
    text = " ".join(score_tables(score("x", [small_video("1_1", labels, labels)], names)).split())
    assert "macro F1 pooled, mean over phases 0.8571 over the 6 phases that occur 1.0000" in text
    assert "1 phase of 7 without a labelled frame (g) counts as 0 in macro scores" in text
    text = " ".join(score_tables(score("x", [small_video("1_1", [0] * 9, [0] * 9)], names)).split())
    assert "6 phases of 7 without a labelled frame (b, c, d, ...) count as 0 in macro scores" in text
    text = score_tables(score("x", [small_video("1_1", labels, labels)], names[:6]))
    assert "occur" not in text
    assert "without a labelled frame" not in text


def test_equal_strategies_are_printed_once() -> None:
    same = score_tables(score("x", [small_video("1_1", [0, 1], [0, 0])], "ab"))
    assert "strategies A and B alike: no phase is predicted in a video without it" in same
    assert same.count("\n  Jaccard ") == 1
    differing = score_tables(score("x", [small_video("1_1", [0, 0], [0, 1])], "ab"))
    assert "strategy A: " in differing
    assert "strategy B: " in differing
    assert "alike" not in differing
    assert differing.count("\n  Jaccard ") == 2


def test_the_main_table_in_latex() -> None:
    first, second = make_evaluation("my_net & co", PREDICTED), make_evaluation(r"50 % \better^", BETTER)
    lines = latex_table([first, second]).splitlines()
    assert lines[0].startswith("%")
    assert "8 frames of 3 videos, 2 patients, 7 phases" in lines[0]
    assert lines[1:4] == [
        r"\begin{tabular}{lcc}",
        r"\toprule",
        r"Score & my\_net \& co & 50 \% \textbackslash{}better\textasciicircum{} \\",
    ]
    cells = []
    for evaluation in (first, second):
        value, (low, high) = evaluation.metrics["pooled"]["accuracy"], evaluation.metrics["intervals"]["accuracy"]
        cells.append(f"{value:.4f} [{low:.4f}, {high:.4f}]")
    assert f"Accuracy, pooled & {cells[0]} & {cells[1]} \\\\" in lines
    assert f"Relaxed Jaccard & {first.metrics['relaxed']['jaccard']:.4f} & " in "\n".join(lines)
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert all(line.endswith(r" \\") for line in lines[3:-2] if line != r"\midrule")
