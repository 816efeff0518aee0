"""The way back: result files of temporal models, matched with the feature files frame by frame, and scored."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import feature_folders
import numpy as np
import pytest
from feature_folders import PHASES
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions_data import write_rows
from typer.testing import CliRunner

import spatialfeat.evaluate
from spatialfeat.cli import app
from spatialfeat.config import EvaluateConfig, ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import EvaluationResult, evaluate
from spatialfeat.export import export

MISSING = -100

make_video = partial(feature_folders.make_video, num_channels=64)
LABELS = {"1_1": [0, 0, 1, 1, 2, 2], "1_2": [0, 1, 1, 1, 2], "2_1": [0, 0, 0, 1, 2, 2, 2]}
SAID = {"1_1": [0, 0, 0, 1, 2, 2], "1_2": [0, 0, 1, 1, 1], "2_1": [0, 0, 0, 1, 2, 2, 1]}
"""14 of 18 frames are right."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatialfeat.evaluate, "write_report", lambda *_, **__: None)


def make_features(folder: Path, labels: Mapping[str, list[int]] = LABELS, **options: object) -> Path:
    for video, values in labels.items():
        make_video(folder, video, values, split="test", **options)  # type: ignore[arg-type]
    return folder


def recognition(phases: Sequence[int], names: Sequence[str] = PHASES) -> str:
    """A result file as MS-TCN, MS-TCN++, ASFormer and DiffAct write it: no line end after the names."""
    return "### Frame level recognition: ###\n" + " ".join(names[phase] for phase in phases)


def write_results(folder: Path, said: Mapping[str, list[int]] = SAID, suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for video, phases in said.items():
        (folder / f"{video}{suffix}").write_text(recognition(phases))
    return folder


def scored(features: Path, results: Path, out: Path, **options: object) -> EvaluationResult:
    config = {"bootstrap": 50, **options}
    return evaluate(EvaluateConfig(predictions=(f"TCN={results}",), features=features, out_dir=out, **config))  # type: ignore[arg-type]


def said_of(result: EvaluationResult) -> dict[str, list[int]]:
    """What the temporal model says of each video, as it is scored."""
    return {video.video_id: video.predictions.tolist() for video in result.evaluations[1].videos}


@pytest.mark.parametrize("suffix", ["", ".txt"])
def test_what_mstcn_and_its_relatives_write_is_scored_beside_the_resnet(tmp_path: Path, suffix: str) -> None:
    features = make_features(tmp_path / "features")
    results = write_results(tmp_path / "results", suffix=suffix)
    (results / "1_1.txt_stage0.png").write_bytes(b"a picture of ASFormer's")
    os.mkfifo(results / "1_1.npy")  # Reading it would wait for ever.
    result = scored(features, results, tmp_path / "out")
    assert [evaluation.name for evaluation in result.evaluations] == ["ResNet-50", "TCN"]
    assert said_of(result) == SAID
    metrics = json.loads((tmp_path / "out/TCN/metrics.json").read_text())
    assert metrics["pooled"]["accuracy"] == pytest.approx(14 / 18)
    # The other set is what the stored logits alone give.
    alone = evaluate(EvaluateConfig(features=features, out_dir=tmp_path / "alone", bootstrap=50))
    assert json.loads((tmp_path / "out/ResNet-50/metrics.json").read_text()) == alone.metrics
    (difference,) = json.loads((tmp_path / "out/comparison.json").read_text())["comparisons"]
    assert (difference["first"], difference["second"], difference["samples"]) == ("ResNet-50", "TCN", 50)
    expected = 14 / 18 - alone.metrics["pooled"]["accuracy"]
    assert difference["differences"]["accuracy"]["difference"] == pytest.approx(expected)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert len(record["data_sha256"]) == 3
    assert record["options"]["split"] == "test"


def test_the_scores_are_those_of_the_same_predictions_as_a_csv(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features")
    rows = [
        (f"{video}_{1 + index + 5 * (index // 3):06d}", phase)
        for video in ("2_1", "1_2", "1_1")
        for index, phase in enumerate(SAID[video])
    ]
    csv = write_rows(tmp_path / "tcn.csv", "img_id,prediction", rows)
    from_files = scored(features, write_results(tmp_path / "results"), tmp_path / "a")
    from_csv = scored(features, csv, tmp_path / "b")
    assert from_files.evaluations[1].metrics == from_csv.evaluations[1].metrics
    assert from_files.comparisons == from_csv.comparisons
    write_rows(csv, "img_id,prediction", rows[:-1])
    with pytest.raises(SpatialfeatError, match=r"tcn.csv: lacks 1 frame \(1_1_000011\) of .*features"):
        scored(features, csv, tmp_path / "c")


def test_a_csv_needs_no_prediction_of_unlabelled_frames_and_may_name_phases(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = make_features(tmp_path / "features", {"1_1": [0, MISSING, 2], "2_1": [MISSING, MISSING]})
    rows = [("1_1_000001", "access"), ("1_1_000003", "2"), ("2_1_000002", "resection")]
    csv = write_rows(tmp_path / "tcn.csv", "img_id,prediction", rows)
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = scored(features, csv, tmp_path / "a")
    assert said_of(result) == {"1_1": [0, MISSING, 2], "2_1": [MISSING, 1]}
    assert result.evaluations[1].metrics["num_frames"] == 2
    assert result.evaluations[1].metrics["pooled"]["accuracy"] == 1.0
    assert f"note: TCN: {csv} has no prediction for 2 frames without a label" in caplog.text
    write_rows(csv, "img_id,prediction", [(frame, said.replace("access", "opening")) for frame, said in rows])
    with pytest.raises(SpatialfeatError, match=r"tcn.csv row 2: prediction 'opening' is no phase"):
        scored(features, csv, tmp_path / "b")
    rows[2] = ("2_1_000002", "1")
    write_rows(csv, "img_id,prediction", [(frame, said.replace("access", "opening")) for frame, said in rows])
    renamed = scored(features, csv, tmp_path / "b", phase_names=("opening", "middle", "end"))
    assert said_of(renamed) == said_of(result)


def test_features_without_logits_still_lead_back_to_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights without a classifier, for example of self-supervised training."""
    features = make_features(tmp_path / "features", has_logits=False)
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = scored(features, write_results(tmp_path / "results"), tmp_path / "out")
    assert [evaluation.name for evaluation in result.evaluations] == ["TCN"]
    assert result.metrics["pooled"]["accuracy"] == pytest.approx(14 / 18)
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == result.metrics
    assert f"note: the files in {features} have no logits" in caplog.text
    with pytest.raises(SpatialfeatError, match=r"1_1.h5: has no logits"):
        evaluate(EvaluateConfig(features=features, out_dir=tmp_path / "alone"))


def test_results_of_videos_in_folders_have_their_file_names(tmp_path: Path) -> None:
    labels = {"centre1/video01": [0, 1, 2], "centre2/video01": [0, 0, 2]}
    for video, values in labels.items():
        make_video(tmp_path / "features", video, values, split="test", file_name=video.replace("/", "+"))
    results = tmp_path / "results"
    write_results(results, {"centre1+video01": [0, 1, 1], "centre2+video01": [2, 0, 2]})
    expected = {"centre1/video01": [0, 1, 1], "centre2/video01": [2, 0, 2]}
    assert said_of(scored(tmp_path / "features", results, tmp_path / "a")) == expected
    (results / "centre2+video01").unlink()
    with pytest.raises(SpatialfeatError, match=r"has no result file of video centre2/video01"):
        scored(tmp_path / "features", results, tmp_path / "b")


def test_the_name_of_a_single_set_must_be_a_folder_too(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features")
    results = write_results(tmp_path / "results")
    with pytest.raises(SpatialfeatError, match=r"'\.\.' cannot be the name of an output folder"):
        evaluate(EvaluateConfig(predictions=(f"..={results}",), features=features, out_dir=tmp_path / "out"))


def scores_of(phases: Sequence[int]) -> np.ndarray:
    """(T, C) logits whose highest are these phases."""
    rng = np.random.default_rng(len(phases))
    values = rng.uniform(-1, 1, (len(phases), len(PHASES)))
    values[np.arange(len(phases)), list(phases)] += 3
    return values


FORMS: dict[str, Callable[[Path, list[int]], object]] = {
    "numbers.npy": lambda path, phases: np.save(f"{path}.npy", np.array(phases)),
    "whole floats.npy": lambda path, phases: np.save(f"{path}.npy", np.array(phases, dtype=np.float64)),
    "names.npy": lambda path, phases: np.save(f"{path}.npy", np.array([PHASES[phase] for phase in phases])),
    "(T, C).npy": lambda path, phases: np.save(f"{path}.npy", scores_of(phases)),
    "(C, T).npy": lambda path, phases: np.save(f"{path}.npy", np.ascontiguousarray(scores_of(phases).T)),
    "folder/pred.npy": lambda path, phases: (path.mkdir(), np.save(path / "pred.npy", np.array(phases))),
    "names, a line each.txt": lambda path, phases: Path(f"{path}.txt").write_text(
        "".join(f"{PHASES[phase]}\r\n" for phase in phases)
    ),
    "numbers in one line.txt": lambda path, phases: Path(f"{path}.txt").write_text(" ".join(map(str, phases))),
    "savetxt of phases.txt": lambda path, phases: np.savetxt(f"{path}.txt", np.array(phases)),
    "savetxt of scores.csv": lambda path, phases: np.savetxt(f"{path}.csv", scores_of(phases), delimiter=","),
    "savetxt of (C, T).txt": lambda path, phases: np.savetxt(f"{path}.txt", scores_of(phases).T),
    "with a header.csv": lambda path, phases: Path(f"{path}.csv").write_text(
        "frame,predicted\n" + "".join(f"{index},{phase}\n" for index, phase in enumerate(phases))
    ),
    "with ids, backwards.csv": lambda path, phases: Path(f"{path}.csv").write_text(
        "predicted_label,img_id\n"
        + "".join(
            f"{PHASES[phases[index]]},{path.name}_{1 + index + 5 * (index // 3):06d}\n"
            for index in reversed(range(len(phases)))
        )
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_phases(tmp_path: Path, form: str) -> None:
    features, results = make_features(tmp_path / "features"), tmp_path / "results"
    results.mkdir()
    for video, phases in SAID.items():
        FORMS[form](results / video, phases)
    result = scored(features, results, tmp_path / "out")
    assert said_of(result) == SAID
    with_scores = "C" in form or "scores" in form
    assert ("calibration" in result.evaluations[1].metrics) == with_scores
    if with_scores:
        powers = np.exp(scores_of(SAID["2_1"]).astype(np.float32))
        expected = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(result.evaluations[1].videos[2].probabilities, expected, rtol=1e-4)


def test_scores_that_are_probabilities_stay_as_they_are(tmp_path: Path) -> None:
    features, results = make_features(tmp_path / "features"), tmp_path / "results"
    results.mkdir()
    for video, phases in SAID.items():
        np.save(results / f"{video}.npy", 0.1 + 0.7 * np.eye(3)[phases])
    videos = scored(features, results, tmp_path / "out").evaluations[1].videos
    np.testing.assert_allclose(videos[0].probabilities[0], [0.8, 0.1, 0.1], rtol=1e-5)  # type: ignore[index]


def test_other_lengths_are_refused_with_both_lengths(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {**LABELS, "1_2": [0, MISSING, MISSING, 1, 2]})
    for phases, found in (([0] * 4, "4 frames"), ([0] * 6, "6 frames")):
        results = write_results(tmp_path / "results", {**SAID, "1_2": phases})
        message = f"results/1_2: has {found}, but 1_2 in .*features has 5 frames, 3 of them labelled"
        with pytest.raises(SpatialfeatError, match=message):
            scored(features, results, tmp_path / "out")
    write_results(tmp_path / "results", {"1_1": SAID["1_1"][:-1]})
    with pytest.raises(SpatialfeatError, match=r"results/1_1: has 5 frames, but 1_1 in .*features has 6 frames;"):
        scored(features, tmp_path / "results", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_videos_are_named(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features")
    results = write_results(tmp_path / "results", {"1_1": SAID["1_1"], "notes": [0]})
    with pytest.raises(SpatialfeatError, match=r"no result file of video 1_2, 2_1 \(found: 1_1, notes\)"):
        scored(features, results, tmp_path / "out")
    with pytest.raises(SpatialfeatError, match="it holds none at all"):
        scored(features, tmp_path / "features" / "..", tmp_path / "out2", split="test")
    write_results(tmp_path / "parent" / "split_1")
    with pytest.raises(SpatialfeatError, match=r"none at all; those in its folder split_1: pass .*parent/split_1\)"):
        scored(features, tmp_path / "parent", tmp_path / "out2")


def test_videos_of_other_splits_are_left_unread_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(tmp_path / "features")
    make_video(features, "9_1", [0, 1], split="train")
    results = write_results(tmp_path / "results", {**SAID, "9_1": [0, 1]})
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = scored(features, results, tmp_path / "out")
    assert said_of(result) == SAID
    assert f"TCN: 1 other file in {results} left unread: 9_1" in caplog.text
    assert said_of(scored(features, results, tmp_path / "all", split="all"))["9_1"] == [0, 1]


GAPPY = {"1_1": [0, MISSING, 1, 1, MISSING, 2], "1_2": [MISSING] * 4, "2_1": [0, 1, 2]}


@pytest.mark.parametrize("group_by", ["video", "patient"])
def test_an_export_without_unlabelled_frames_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, group_by: str
) -> None:
    """What is in the tree's ground truth is taken as the prediction: every labelled frame must then be right."""
    features = make_features(tmp_path / "features", GAPPY)
    make_video(features, "7_1", [0, 1])
    make_video(features, "8_1", [0, 1])
    tree = tmp_path / "surgery"
    export(
        ExportConfig(
            format="ms-tcn", features_dir=features, out=tree, unlabelled="drop", skip_short=True, group_by=group_by,
            allow_small_bundles=True,
        )
    )  # fmt: skip
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = scored(features, tree / "groundTruth", tmp_path / "out")
    assert result.evaluations[1].metrics["pooled"]["accuracy"] == 1.0
    assert said_of(result) == GAPPY
    assert "holds as many frames as have a label (export --unlabelled drop)" in caplog.text
    assert ("holds a result per patient" in caplog.text) == (group_by == "patient")


def test_a_mixture_of_dropped_and_whole_videos_is_refused(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {"1_1": [0, MISSING, 1], "2_1": [0, MISSING, 2]})
    results = write_results(tmp_path / "results", {"1_1": [0, 1], "2_1": [0, 0, 2]})
    with pytest.raises(SpatialfeatError, match="as many frames as have a label for 1_1, but all frames of 2_1"):
        scored(features, results, tmp_path / "out")


def test_background_may_be_predicted_where_there_is_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(tmp_path / "features", {"1_1": [0, MISSING, 1], "2_1": [0, 1, 2]})
    names = (*PHASES, "idle")
    results = tmp_path / "results"
    results.mkdir()
    (results / "2_1").write_text(recognition([0, 1, 2]))
    (results / "1_1").write_text(recognition([0, 3, 1], names))
    with caplog.at_level("INFO", logger="spatialfeat"):
        assert said_of(scored(features, results, tmp_path / "out"))["1_1"] == [0, MISSING, 1]
    assert "idle, which is no phase, is predicted for frames without a label only" in caplog.text
    (results / "1_1").write_text(recognition([0, 3, 3], names))
    with pytest.raises(SpatialfeatError, match=r"1_1: idle for frame 1_1_000003 is no phase \(1 such frame"):
        scored(features, results, tmp_path / "again")


@given(
    labels=st.lists(st.sampled_from([MISSING, 0, 1, 2]), min_size=2, max_size=12).filter(
        lambda labels: sum(label != MISSING for label in labels) >= 2
    ),
    unlabelled=st.sampled_from(["drop", "background"]),
    put=st.sampled_from(["_", "-", "__", "x"]),
)
@settings(max_examples=15, deadline=None)
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, labels: list[int], unlabelled: str, put: str) -> None:
    """Ids and phase names that the tree cannot hold, with any replacement: the truth comes back as itself."""
    phases = ("nasal access", "step#2", "closure")
    place = tmp_path_factory.mktemp("there")
    for number, split in enumerate(("test", "test", "train", "train")):
        values = labels if number == 0 else [0, 1, 2]
        make_video(place / "features", f"case.{number} a", values, split=split, phases=phases)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.fsync", lambda _: None)
        monkeypatch.setattr(spatialfeat.evaluate, "write_report", lambda *_, **__: None)
        export(
            ExportConfig(
                format="ms-tcn", features_dir=place / "features", out=place / "tree", unlabelled=unlabelled,
                id_replacement=put, name_replacement=put,
            )
        )  # fmt: skip
        results = place / "results"
        results.mkdir()
        for truth in (place / "tree/groundTruth").iterdir():
            (results / truth.stem).write_text(
                f"### Frame level recognition: ###\n{' '.join(truth.read_text().split())}"
            )
        result = scored(place / "features", results, place / "out")
    assert said_of(result) == {"case.0 a": labels, "case.1 a": [0, 1, 2]}


def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {"1_1": [0, 1, 2], "2_1": [0, 0]})
    results = tmp_path / "results"
    results.mkdir()
    np.save(results / "2_1.npy", np.array([0, 0]))
    cases: list[tuple[Callable[[Path], object], str]] = [
        (lambda path: np.save(path, np.eye(3)), r"1_1.npy: is an array of shape \(3, 3\), as many frames as phases"),
        (lambda path: np.save(path, np.zeros((4, 3, 2))), r"1_1.npy: is an array of shape \(4, 3, 2\); save one"),
        (lambda path: np.save(path, np.zeros((3, 4))), r"1_1.npy: has 4 frames, but 1_1 in .* has 3 frames"),
        (lambda path: np.save(path, np.full((2, 3), np.nan)), r"1_1.npy: holds a score that is not finite"),
        (lambda path: np.save(path, np.array([0.5, 1, 2])), "number per frame that is not whole is no phase"),
        (lambda path: np.save(path, np.array([0, 1, 3])), r"1_1.npy: 3 for frame 1_1_000003 is no phase"),
        (lambda path: np.save(path, np.array([None, 1, 2], dtype=object)), "1_1.npy: is no array that NumPy can load"),
        (lambda path: path.write_bytes(b"broken"), "1_1.npy: is no array that NumPy can load"),
        (
            lambda path: (np.savez(path.with_suffix(".npz"), a=[0]), path.with_suffix(".npz").rename(path)),
            "1_1.npy: is no array that NumPy can load .an archive of several",
        ),
        (lambda path: path.with_suffix("").write_text("### Score: ###\n3"), "1_1: has a line ### ... but none"),
        (lambda path: path.with_suffix("").write_text("0\n\n2"), "1_1: line 2 is empty"),
        (lambda path: path.with_suffix("").write_text(""), "1_1: holds no phase"),
        (lambda path: path.with_suffix("").write_bytes(b"\xff\xfe\x00"), "1_1: is not UTF-8"),
        (lambda path: path.with_suffix("").write_text("0\n1\nacess\n"), "1_1: .* for frame .* is no phase"),
        (lambda path: path.with_suffix(".csv").write_text("prediction,predicted\n0,1\n"), "both be the predicted"),
        (
            lambda path: path.with_suffix(".csv").write_text("id,predicted\n1_1_1,0\n1_1_2,0\n1_1_3,0\n"),
            "1_1.csv: frame 1_1_1 is not in .*features; predict exactly the same frames",
        ),
        (
            lambda path: path.with_suffix(".csv").write_text("id,predicted\n" + "1_1_000001,0\n" * 3),
            "1_1.csv: a frame is there twice",
        ),
        (lambda path: (np.save(path, [0, 1, 2]), path.with_suffix(".txt").write_text("0 1 2")),
         "1_1.npy and 1_1.txt are both the result of one video"),
    ]  # fmt: skip
    for write, message in cases:
        for old in results.glob("1_1*"):
            old.unlink()
        write(results / "1_1.npy")
        with pytest.raises(SpatialfeatError, match=message):
            scored(features, results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_are_numbers_are_refused_where_they_mean_something_else(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {"1_1": [0, 1, 2], "2_1": [0, 0]}, phases=("1", "2", "3"))
    results = write_results(tmp_path / "results", {"1_1": [0, 0, 1], "2_1": [1, 1]})
    for path in results.iterdir():
        path.write_text(path.read_text().replace("access", "1").replace("resection", "2"))
    with pytest.raises(SpatialfeatError, match="1 could be phase 1 or the phase with the name 1, which is 0"):
        scored(features, results, tmp_path / "out")


def test_two_replacements_at_once_are_refused(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {"a.1": [0, 1], "b.1": [0, 1]})
    results = write_results(tmp_path / "results", {name: [0, 1] for name in ("a-1", "b-1", "a_1", "b_1")})
    with pytest.raises(SpatialfeatError, match=r"not clear which stands for 'a.1': a-1 or a_1"):
        scored(features, results, tmp_path / "out")


def test_results_per_patient_follow_the_order_of_segments(tmp_path: Path) -> None:
    features = make_features(tmp_path / "features", {"1_10": [0, 1], "1_9": [2, 2, 2], "2_1": [0, 1]})
    results = write_results(tmp_path / "results", {"1": [2, 2, 1, 0, 1], "2": [0, 1]})
    assert said_of(scored(features, results, tmp_path / "out")) == {"1_9": [2, 2, 1], "1_10": [0, 1], "2_1": [0, 1]}
    by_patient = scored(features, results, tmp_path / "again", group_by="patient")
    assert said_of(by_patient) == {"1": [2, 2, 1, 0, 1], "2": [0, 1]}


def test_the_pituitary_studys_csv_names_frames_by_their_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PATIENT_idxN, sorted as text, so that idx10 is before idx2; the labels in it show a shift."""
    labels = {"1_9": [0, 0, 0, 0, 1, 1, MISSING], "1_10": [1, 2, 2, 2, 2], "2_1": [0, 1], "4_1": [MISSING]}
    features = make_features(tmp_path / "features", labels)
    truth = {"1": [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], "2": [0, 1]}
    said = {"1": [0, 0, 0, 1, 1, 1, 1, 2, 2, 1, 2], "2": [0, 0]}
    rows = sorted(
        (f"{patient}_idx{index}", true, said[patient][index])
        for patient, values in truth.items()
        for index, true in enumerate(values)
    )
    assert rows[2][0] == "1_idx10"
    csv = write_rows(tmp_path / "framewise.csv", "frame_id,true_label,predicted_label", rows)
    with caplog.at_level("INFO", logger="spatialfeat"):
        result = scored(features, csv, tmp_path / "out")
    assert said_of(result) == {
        "1_9": [0, 0, 0, 1, 1, 1, MISSING],
        "1_10": [1, 2, 2, 1, 2],
        "2_1": [0, 0],
        "4_1": [MISSING],
    }
    assert "as many frames as have a label" in caplog.text
    cases = [
        ([*rows, rows[0]], "a frame of patient 1 is there twice.*framewise.csv, which has every frame once"),
        (rows[:-2], "has 0 of 2 frames of patient 2; the study predicts no patient that is shorter"),
        ([row for row in rows if row[0] != "1_idx3"], "has 10 of 12 frames of patient 1"),
        ([*rows, ("3_idx0", 0, 0)], "patient 3 is not in .*features; check --split"),
        (
            [("1_idx0", 1, 0), *(row for row in rows if row[0] != "1_idx0")],
            "row 2: the true phase is 1, but 0 for 1_9_0",
        ),
    ]
    for wrong, message in cases:
        write_rows(csv, "frame_id,true_label,predicted_label", wrong)
        with pytest.raises(SpatialfeatError, match=message):
            scored(features, csv, tmp_path / "again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "results"], "results: is a folder; result files, one per video, are matched with feature"),
        (["--predictions", "ResNet-50=results", "--features", "features"], "choose another name"),
        (["--predictions", "results", "--features", "features", "--csv", "a.csv"], "--csv does nothing here: with"),
        (["--predictions", "results", "--features", "features", "--weights", "w"], "--weights does nothing here: with"),
        (["--predictions", "results", "--features", "features", "--split", "val"], "no video of split val"),
        (["--predictions", "results", "--features", "features", "--num-classes", "4"], "have 3 phases, not 4"),
    ],
)
def test_mistakes_in_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_features(tmp_path / "features")
    write_results(tmp_path / "results")
    run = CliRunner().invoke(app, ["evaluate", *arguments])
    assert run.exit_code == 2
    assert message in run.output
    assert "Traceback" not in run.output


def make_folds(place: Path, **options: object) -> list[Path]:
    """Two folds of a cross-validation, each with a network of its own: patients 1 and 2 are tested, 3 never is."""
    folders = [place / "fold1" / "features", place / "fold2" / "features"]
    for number, folder in enumerate(folders, start=1):
        for video, values in LABELS.items():
            split = "test" if video.startswith(f"{number}_") else "train"
            make_video(folder, video, values, split=split, weights=str(number) * 64)
        make_video(folder, "3_1", [0, 1, 2], split="val", weights=str(number) * 64)
    return folders


def test_the_folds_of_a_cross_validation_are_scored_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = make_folds(tmp_path)
    results = write_results(tmp_path / "results")
    monkeypatch.setattr("spatialfeat.cli.show_log_messages", lambda: None)
    arguments = [word for folder in folders for word in ("--features", str(folder))]
    with caplog.at_level("INFO", logger="spatialfeat"):
        run = CliRunner().invoke(
            app,
            ["evaluate", "--predictions", f"TCN={results}", *arguments, "--out", str(tmp_path / "out")],
            catch_exceptions=False,
        )
    assert run.exit_code == 0, run.output
    metrics = {name: json.loads((tmp_path / f"out/{name}/metrics.json").read_text()) for name in ("TCN", "ResNet-50")}
    assert metrics["TCN"]["pooled"]["accuracy"] == pytest.approx(14 / 18)
    # What is known of a frame is the logit of the network that was not trained on it: as each fold alone says.
    alone = [evaluate(EvaluateConfig(features=folder, out_dir=tmp_path / "alone")).metrics for folder in folders]
    matrix = np.sum([found["confusion_matrix"] for found in alone], axis=0)
    assert metrics["ResNet-50"]["confusion_matrix"] == matrix.tolist()
    assert metrics["ResNet-50"]["intervals"]["num_patients"] == 2
    folds = [
        {"features": str(folders[0]), "weights_sha256": "1" * 64, "videos": ["1_1", "1_2"]},
        {"features": str(folders[1]), "weights_sha256": "2" * 64, "videos": ["2_1"]},
    ]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["folds"] == metrics["TCN"]["folds"] == metrics["ResNet-50"]["folds"] == folds
    assert record["options"]["features"] == [str(folder) for folder in folders]
    assert "cross-validation: the videos of split test in 2 folders" in caplog.text
    assert "too good" not in caplog.text
    assert "folds" not in alone[0]


def test_the_logits_of_several_folds_are_scored_without_a_temporal_model_too(tmp_path: Path) -> None:
    folders = make_folds(tmp_path)
    result = evaluate(EvaluateConfig(features=tuple(folders), out_dir=tmp_path / "out", bootstrap=50))
    assert [video.video_id for video in result.evaluations[0].videos] == ["1_1", "1_2", "2_1"]


def test_a_fold_may_be_a_single_file(tmp_path: Path) -> None:
    """As wherever feature files are read."""
    first, second = make_folds(tmp_path)
    sources = (first, second / "2_1.h5")
    result = evaluate(EvaluateConfig(features=sources, out_dir=tmp_path / "out", bootstrap=50))
    folds = result.metrics["folds"]
    assert [fold["videos"] for fold in folds] == [["1_1", "1_2"], ["2_1"]]
    assert [fold["features"] for fold in folds] == [str(source) for source in sources]


def test_a_folder_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folder, _ = make_folds(tmp_path)
    with pytest.raises(
        SpatialfeatError, match=r"are the same video, of split test in both folders; .* each folder once"
    ):
        evaluate(EvaluateConfig(features=(folder, folder), out_dir=tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: make_video(folder, "1_1", LABELS["1_1"], split="test", weights="2" * 64),
            "fold2/features/1_1.h5 and .*fold1/features/1_1.h5: are the same video, of split test in both folders",
        ),
        (
            lambda folder: make_video(folder, "1_7", [0, 1], split="test", weights="2" * 64),
            "fold2/features/1_7.h5 and .*fold1/features/1_1.h5: are one patient, of split test in both folders",
        ),
        (
            lambda folder: [
                make_video(folder, video, [0, 1], split=split, fps=25.0)
                for video, split in (("1_1", "train"), ("1_2", "train"), ("2_1", "test"), ("3_1", "val"))
            ],
            r"fold2/features/2_1.h5 was made with other fps \(25.0 against 1.0\) than .*fold1/features/1_1.h5; folds",
        ),
        (
            lambda folder: [
                make_video(folder, video, [0, 1], split=split, weights="1" * 64)
                for video, split in (("1_1", "train"), ("1_2", "train"), ("2_1", "test"), ("3_1", "val"))
            ],
            r"1_1.h5: is of split test, but .*fold2/features/1_1.h5, made by the same weights, has the patient in "
            "split train",
        ),
        (
            lambda folder: [make_video(folder, video, [0, 1], weights="2" * 64) for video in ("2_1",)],
            r"fold2/features: has no video of split test \(there: train, val\)",
        ),
    ],
)
def test_folds_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folders = make_folds(tmp_path)
    change(folders[1])
    with pytest.raises(SpatialfeatError, match=message):
        evaluate(EvaluateConfig(features=tuple(folders), out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SpatialfeatError, match="--split all: with several --features only videos of one split"):
        EvaluateConfig(features=tuple(folders), split="all")


def test_scores_of_videos_that_the_network_was_trained_on_have_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = make_features(tmp_path / "features")
    make_video(features, "9_1", [0, 1], split="train")
    results = write_results(tmp_path / "results", {**SAID, "9_1": [0, 1]})
    warning = "1 video of split train or val is now tested on: if the network was trained on them, scores will be too"
    for split, is_warned in (("test", False), ("all", True)):
        caplog.clear()
        with caplog.at_level("WARNING", logger="spatialfeat"):
            scored(features, results, tmp_path / split, split=split)
        assert (warning in caplog.text) == is_warned


def test_the_commands_of_the_training_page_score_all_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From MS-TCN's results of five folds to one score. The program's command is noted by the shell and run here."""
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL) if "mstcn_results" in text]
    for number in range(1, 6):
        folder = tmp_path / f"cv/fold{number}/features"
        for patient in range(1, 6):
            split = "test" if patient == number else "train"
            make_video(folder, f"{patient}_1", [0, 1, 2], split=split, weights=str(number) * 64)
        write_results(tmp_path / f"MS-TCN/results/surgery_fold{number}/split_1", {f"{number}_1": [0, 1, 1]})
    shell = f'spatialfeat() {{ printf "%s\\n" "$@" > command; }}\n{block}'
    subprocess.run(["bash", "-euc", shell], check=True, cwd=tmp_path / "MS-TCN")
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, Path("command").read_text().splitlines(), catch_exceptions=False)
    assert run.exit_code == 0, run.output
    metrics = json.loads(Path("cv/temporal_evaluation/MS-TCN/metrics.json").read_text())
    assert (metrics["num_videos"], metrics["pooled"]["accuracy"]) == (5, pytest.approx(2 / 3))
    assert metrics["intervals"]["accuracy"] == pytest.approx([2 / 3, 2 / 3])
