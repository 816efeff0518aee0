"""Predictions files: whose columns are read how, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from predictions_data import BETTER, PREDICTED, TRUTH, foreign_rows, write_predictions, write_rows, write_truth

from spatialfeat.config import PredictionsSource
from spatialfeat.errors import SpatialfeatError
from spatialfeat.scores.predictions import OpenedSource, read_prediction_files


def read(*predictions: Path | str, csv: Path | None = None, num_classes: int | None = None) -> OpenedSource:
    source = PredictionsSource(predictions=tuple(map(str, predictions)), csv=csv)
    return read_prediction_files(source, num_classes, None)


def refusal(*predictions: Path | str, csv: Path | None = None, num_classes: int | None = None) -> str:
    with pytest.raises(SpatialfeatError) as caught:
        read(*predictions, csv=csv, num_classes=num_classes)
    return str(caught.value)


def test_our_own_file(tmp_path: Path) -> None:
    opened = read(write_predictions(tmp_path / "resnet.csv"))
    ((name, (found,)),) = opened.predict().items()
    assert name == "resnet"
    assert found.predicted.tolist() == PREDICTED
    assert opened.tables[0].labels.tolist() == [label for _, label in TRUTH]
    assert opened.phase_names == tuple(f"phase_{phase}" for phase in range(7))
    assert found.probabilities is None


@pytest.mark.parametrize("id_column", ["img_id", "frame_id", "id"])
@pytest.mark.parametrize("predicted_column", ["predicted_label", "prediction", "predicted"])
@pytest.mark.parametrize("truth_column", ["true_label", "label", None])
def test_anybodys_columns_in_any_order(
    tmp_path: Path, id_column: str, predicted_column: str, truth_column: str | None
) -> None:
    rows = [(value, 0.5, frame_id, label) for (frame_id, label), value in zip(TRUTH, PREDICTED, strict=True)]
    header = f"{predicted_column},score,{id_column},{truth_column or 'something'}"
    path = write_rows(tmp_path / "tcn.csv", header, rows)
    opened = read(path, csv=None if truth_column else write_truth(tmp_path / "test.csv"))
    ((found,),) = opened.predict().values()
    assert found.predicted.tolist() == PREDICTED


def test_rows_in_any_order_are_brought_into_the_order_of_the_ground_truth(tmp_path: Path) -> None:
    rows = [foreign_rows()[index] for index in np.random.default_rng(2).permutation(len(TRUTH))]
    opened = read(write_rows(tmp_path / "a.csv", "frame_id,prediction", rows), csv=write_truth(tmp_path / "test.csv"))
    assert opened.tables[0].ids.tolist() == [frame_id for frame_id, _ in TRUTH]
    ((found,),) = opened.predict().values()
    assert found.predicted.tolist() == PREDICTED


def test_a_file_without_truth_takes_that_of_another(tmp_path: Path) -> None:
    without = write_rows(tmp_path / "tcn.csv", "frame_id,prediction", foreign_rows(BETTER))
    opened = read(without, write_predictions(tmp_path / "resnet.csv"))
    assert list(opened.predict()) == ["tcn", "resnet"]
    assert opened.tables[0].labels.tolist() == [label for _, label in TRUTH]


def test_unlabelled_frames_are_read(tmp_path: Path) -> None:
    truth = [*TRUTH[:-1], (TRUTH[-1][0], -100)]
    assert read(write_predictions(tmp_path / "a.csv", truth=truth)).tables[0].labels[-1] == -100


def test_phases_may_be_written_by_name_or_as_decimal_numbers(tmp_path: Path) -> None:
    names = ("access", "resection", "closure")
    rows = [(frame_id, names[value]) for frame_id, value in foreign_rows()]
    rows[0] = (rows[0][0], "0.0")
    path = write_rows(tmp_path / "tcn.csv", "frame_id,prediction", rows)
    truth = write_rows(tmp_path / "test.csv", "id,label", [(frame_id, names[label]) for frame_id, label in TRUTH])
    opened = read_prediction_files(PredictionsSource(predictions=(str(path),), csv=truth), None, names)
    ((found,),) = opened.predict().values()
    assert found.predicted.tolist() == PREDICTED
    assert opened.tables[0].labels.tolist() == [label for _, label in TRUTH]
    message = refusal(path)
    assert f"{path} row 3: prediction 'resection' is not an integer (8 such rows); write the phase's number" in message
    assert "or pass --phase-names" in message


def test_unlabelled_frames_need_no_prediction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that was trained on an export without unlabelled frames predicts none of them."""
    truth = [(frame_id, -1 if frame_id in ("1_1_2", "2_1_10") else label) for frame_id, label in TRUTH]
    csv = write_rows(tmp_path / "test.csv", "id,label", truth)
    every = write_rows(tmp_path / "a.csv", "id,prediction", foreign_rows())
    some = write_rows(tmp_path / "b.csv", "id,prediction", [row for row in foreign_rows() if row[0] != "1_1_2"])
    with caplog.at_level("INFO", logger="spatialfeat"):
        opened = read(every, some, csv=csv)
    kept = [row for row, (frame_id, _) in enumerate(TRUTH) if frame_id != "1_1_2"]
    assert opened.tables[0].ids.tolist() == [TRUTH[row][0] for row in kept]
    for ((found),) in opened.predict().values():
        assert found.predicted.tolist() == [PREDICTED[row] for row in kept]
    assert f"1 unlabelled frame of {csv} not predicted by all files: left out" in caplog.text
    lacking = write_rows(tmp_path / "c.csv", "id,prediction", foreign_rows()[:-1])
    assert "lacks 1 frame (2_2_1 in row 10)" in refusal(lacking, csv=csv)


def test_names_are_given_or_the_stem(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "a.csv")
    write_predictions(tmp_path / "b.csv")
    opened = read(f"ResNet-50 v1.2={path}", tmp_path / "b.csv")
    assert list(opened.predict()) == ["ResNet-50 v1.2", "b"]


def test_a_path_that_holds_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_predictions(tmp_path / "run=3.csv")
    assert list(read("run=3.csv").predict()) == ["run=3"]
    assert list(read("third=run=3.csv").predict()) == ["third"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{dir}/a.csv", "{dir}/sub/a.csv"], "is called a already"),
        (["{dir}/a.csv", "A={dir}/sub/a.csv"], "is called a already"),
        (["{dir}/a.csv", "{dir}/a.csv"], "is called a already"),
        (["..={dir}/a.csv", "{dir}/sub/a.csv"], "'..' cannot be the name of an output folder"),
        (["{dir}/sub/a.csv", "run.json={dir}/a.csv"], "'run.json' cannot be the name of an output folder"),
        (["Ribbons={dir}/a.csv", "{dir}/sub/a.csv"], "'Ribbons' cannot be the name of an output folder"),
        ([" ={dir}/a.csv", "{dir}/sub/a.csv"], "' ' cannot be the name of an output folder"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "sub").mkdir()
    write_predictions(tmp_path / "a.csv")
    write_predictions(tmp_path / "sub" / "a.csv")
    assert message in refusal(*(text.format(dir=tmp_path) for text in arguments))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("name,true_label,predicted_label", "has no column of ids (found: name, true_label, predicted_label)"),
        ("img_id,true_label,guess", "has no column of predicted phases"),
        ("img_id,id,predicted_label", "columns img_id and id could both be the ids; keep one"),
        ("img_id,prediction,predicted_label", "columns predicted_label and prediction could both be the predicted"),
        ("img_id,truth,predicted_label", "has no column of true phases (true_label or label) and no other file has"),
    ],
)
def test_columns_that_are_missing_or_ambiguous(tmp_path: Path, header: str, message: str) -> None:
    rows = [(frame_id, value, value) for frame_id, value in foreign_rows()]
    path = write_rows(tmp_path / "a.csv", header, rows)
    assert f"{path}: {message}" in refusal(path)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", "img_id,label,predicted,predicted", [("1_1_1", 0, 0, 1)])
    assert "column predicted is there twice" in refusal(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1_1_1", 7, 0), "row 11: label 7 is outside 0..6; fix the row or pass --num-classes"),
        (("1_1_1", -2, 0), "row 11: label -2 is outside 0..6; fix the row: phases count from 0; a frame without"),
        (("1_1_99", 0, -1), "row 11: predicted_label -1 is outside 0..6; fix the row: phases count from 0"),
        (("1_1_99", 0, 7), "row 11: predicted_label 7 is outside 0..6"),
        (("1_1_99", 0, -100), "row 11: predicted_label -100 is outside 0..6"),
        (("1_1_99", 0, "3.5"), "row 11: predicted_label '3.5' is not an integer"),
        (("1_1_99", 0, ""), "row 11: predicted_label '' is not an integer"),
        (("1_1_2", 0, 0), "row 11: id 1_1_2 repeats 1_1_2 of "),
        (("1_1_02", 0, 0), "row 11: id 1_1_02 repeats 1_1_2 of "),
        (("frame", 0, 0), "row 11: id 'frame' does not end in _FRAME"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    path = write_predictions(tmp_path / "a.csv")
    with path.open("a") as file:
        file.write(",".join(map(str, row)) + "\n")
    assert f"{path} {message}" in refusal(path)


def test_labels_must_fit_the_number_of_phases_that_was_given(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "a.csv")
    assert "row 8: predicted_label 2 is outside 0..1" in refusal(path, num_classes=2)


def test_missing_and_surplus_frames(tmp_path: Path) -> None:
    csv = write_truth(tmp_path / "test.csv")
    rows = [*foreign_rows()[:-2], ("9_1_1", 0)]
    path = write_rows(tmp_path / "tcn.csv", "frame_id,prediction", rows)
    assert refusal(path, csv=csv) == (
        f"{path}: lacks 2 frames (2_1_11 in row 9, 2_2_1 in row 10) of {csv} and has 1 frame (9_1_1 in row 9) that "
        f"{csv} has not; predict exactly the same frames"
    )


def test_only_the_first_few_of_many_missing_frames_are_named(tmp_path: Path) -> None:
    csv = write_truth(tmp_path / "test.csv")
    path = write_rows(tmp_path / "tcn.csv", "frame_id,prediction", foreign_rows()[:1])
    message = refusal(path, csv=csv)
    assert "lacks 8 frames (1_1_2 in row 3, " in message
    assert "2_1_9 in row 7 and 3 more)" in message


def test_two_files_with_different_frames(tmp_path: Path) -> None:
    first = write_predictions(tmp_path / "a.csv")
    second = write_predictions(tmp_path / "b.csv", PREDICTED[:-1], TRUTH[:-1])
    assert f"{second}: lacks 1 frame (2_2_1 in row 10) of {first}" in refusal(first, second)


def test_two_ground_truths(tmp_path: Path) -> None:
    first = write_predictions(tmp_path / "a.csv")
    other = [*TRUTH[:3], ("1_1_4", 0), *TRUTH[4:]]
    second = write_predictions(tmp_path / "b.csv", truth=other)
    assert refusal(first, second) == (
        f"{second} row 5: the true phase of 1_1_4 is 0, but 1 in {first} row 5; 1 of 9 frames differ (1_1_4); "
        "use one ground truth"
    )
    assert "row 5: the true phase of 1_1_4 is 0, but 1 in" in refusal(second, csv=write_truth(tmp_path / "test.csv"))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert "nowhere.csv: no such file" in refusal(tmp_path / "nowhere.csv")
    assert "nowhere.csv: no such file" in refusal(f"tcn={tmp_path}/nowhere.csv")
    empty = write_rows(tmp_path / "empty.csv", "img_id,true_label,predicted_label", [])
    assert "empty.csv: has no rows" in refusal(empty)
