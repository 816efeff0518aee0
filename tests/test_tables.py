"""Terminal tables: every number says how it was averaged, and lines fit a terminal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_data import compared, small_video
from predictions_data import BETTER, PREDICTED, TRUTH

from spatialfeat.reports.tables import comparison_table, score_tables
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
        assert max(map(len, text.splitlines())) <= 92
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


def test_a_difference_is_second_minus_first() -> None:
    first, second = make_evaluation("resnet", PREDICTED), make_evaluation("TCN", BETTER)
    (comparison,) = compared([first, second])
    text = comparison_table(comparison, [first, second])
    assert text.startswith("TCN minus resnet, on the same frames; 100 bootstrap samples of 2 patients\n")
    # 1_1_2, where the two differ, is unlabelled.
    assert "0.8750  0.8750  +0.0000  +0.0000 to +0.0000" in text
    assert "excludes 0" not in text
    wrong = make_evaluation("wrong", [3] * 9)
    (better,) = compared([wrong, second])
    text = comparison_table(better, [wrong, second])
    assert "0.0000  0.8750  +0.8750" in text
    assert "* the interval excludes 0" in text
