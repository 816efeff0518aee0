"""`evaluate` from predictions files and feature files: the same numbers whatever the source, comparisons, bad input."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from predictions_data import BETTER, PREDICTED, TRUTH, foreign_rows, write_predictions, write_rows, write_truth
from tinydata import PROVENANCE
from typer.testing import CliRunner

import spatialfeat.evaluate
from spatialfeat.cli import app
from spatialfeat.config import EvaluateConfig, ExtractConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import evaluate
from spatialfeat.extract import extract
from spatialfeat.features.schema import VideoHeader
from spatialfeat.features.writer import FeatureFileWriter

FEATURES_PROVENANCE = replace(PROVENANCE, phase_names=("a", "b", "c", "d"))


@pytest.fixture
def numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: pictures take longer than everything else together."""
    monkeypatch.setattr(spatialfeat.evaluate, "write_report", lambda *_, **__: None)


def write_features(
    folder: Path,
    *,
    truth: Sequence[tuple[str, int]] = TRUTH,
    predicted: Sequence[int] = PREDICTED,
    step: int = 1,
    fps: float = 1.0,
    split: str = "test",
) -> Path:
    """Feature files of TRUTH whose highest logit is PREDICTED, frame numbers multiplied by `step`."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for video in dict.fromkeys(frame_id.rpartition("_")[0] for frame_id, _ in truth):
        rows = [row for row, (frame_id, _) in enumerate(truth) if frame_id.rpartition("_")[0] == video]
        frames = np.array([int(truth[row][0].rpartition("_")[2]) * step for row in rows], dtype=np.int64)
        header = VideoHeader(
            video_id=video,
            patient_id=video.split("_")[0],
            split=split,
            frame_ids=np.array([f"{video}_{frame}" for frame in frames.tolist()]),
            labels=np.array([truth[row][1] for row in rows], dtype=np.int64),
            segments=np.full(len(rows), int(video.split("_")[1]), dtype=np.int64),
            frame_numbers=frames,
        )
        logits = rng.uniform(0, 1, (len(rows), 4)).astype(np.float32)
        logits[np.arange(len(rows)), [predicted[row] for row in rows]] += 1
        provenance = replace(FEATURES_PROVENANCE, fps=fps)
        with closing(FeatureFileWriter(folder / f"{video}.h5", header, provenance, {"spatialfeat": "0.1.0"})) as writer:
            writer.append(np.zeros((len(rows), 2048), np.float32), logits)
            writer.finish()
    return folder


def score(out: Path, **options: object) -> dict[str, object]:
    """Evaluate into `out` and return what metrics.json holds."""
    evaluate(EvaluateConfig(out_dir=out, **options))  # type: ignore[arg-type]
    content: dict[str, object] = json.loads((out / "metrics.json").read_text())
    return content


@pytest.mark.usefixtures("small_network")
def test_the_same_predictions_score_the_same_from_all_three_sources(
    demo_dir: Path, small_plain_weights: Path, tmp_path: Path, numbers_only: None
) -> None:
    frames = {"img_dir": demo_dir / "images", "weights": small_plain_weights, "workers": 0, "device": "cpu"}
    csv = demo_dir / "test_ResNet_DB.csv"
    from_weights = score(tmp_path / "weights", csv=csv, **frames)
    predictions = (str(tmp_path / "weights" / "predictions_resnet.csv"),)
    # A CSV of predictions has no phase_names.txt beside it, which gives the others their names.
    names = tuple((demo_dir / "phase_names.txt").read_text().split("\n")[:7])
    from_predictions = score(tmp_path / "predictions", predictions=predictions, phase_names=names)
    extract(ExtractConfig(csvs=(str(csv),), out_dir=tmp_path / "features", **frames))
    from_features = score(tmp_path / "scores", features=tmp_path / "features")
    curves = [metrics.pop("calibration", None) for metrics in (from_weights, from_predictions, from_features)]
    assert from_weights == from_predictions == from_features
    assert from_weights["num_frames"] == 14
    # A CSV holds no probabilities, and feature files those of other batches.
    assert curves[1] is None
    assert curves[0]["expected_calibration_error"] == pytest.approx(curves[2]["expected_calibration_error"], abs=1e-4)
    assert not (tmp_path / "predictions" / "predictions_resnet.csv").exists()
    assert not (tmp_path / "scores" / "predictions_resnet.csv").exists()


def test_known_numbers(tmp_path: Path, numbers_only: None) -> None:
    path = write_predictions(tmp_path / "resnet.csv")
    metrics = score(tmp_path / "out", predictions=(str(path),), num_classes=4)
    assert (metrics["num_videos"], metrics["num_frames"], metrics["num_phases"]) == (3, 9, 4)
    pooled = metrics["pooled"]
    assert isinstance(pooled, dict)
    assert pooled["accuracy"] == pytest.approx(7 / 9)
    # Phase 0: 2 of 3 found, none wrong: F1 4/5. Phase 1: 3 found, 2 wrong: 6/8. Phase 2: 2 of 3: 4/5. Phase 3: 0.
    assert pooled["macro_f1"] == pytest.approx((4 / 5 + 6 / 8 + 4 / 5 + 0) / 4)
    video_wise = metrics["video_wise"]
    assert isinstance(video_wise, dict)
    assert video_wise["accuracy"]["mean"] == pytest.approx((3 / 4 + 3 / 4 + 1) / 3)
    lines = (tmp_path / "out" / "per_video.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["1_1", "1", "4", "0.75"], ["2_1", "2", "4", "0.75"], ["2_2", "2", "1", "1.0"]
    ]  # fmt: skip
    header, *rows = (tmp_path / "out" / "per_phase.csv").read_text().splitlines()
    assert header.startswith("phase,name,support,precision,recall,jaccard,f1,precision_low,precision_high")
    assert rows[3].startswith("3,phase_3,0,,,,,")


def test_rows_in_another_order_change_nothing(tmp_path: Path, numbers_only: None) -> None:
    straight = score(tmp_path / "a", predictions=(str(write_predictions(tmp_path / "a.csv")),))
    rows = [(*row, value) for row, value in zip(TRUTH, PREDICTED, strict=True)]
    order = np.random.default_rng(3).permutation(len(rows))
    shuffled = write_rows(
        tmp_path / "b.csv", "img_id,true_label,predicted_label", [rows[index] for index in order.tolist()]
    )
    assert score(tmp_path / "b", predictions=(str(shuffled),)) == straight


def test_grouping_by_patient_joins_segments(tmp_path: Path, numbers_only: None) -> None:
    path = str(write_predictions(tmp_path / "a.csv"))
    by_video = score(tmp_path / "v", predictions=(path,))
    by_patient = score(tmp_path / "p", predictions=(path,), group_by="patient")
    assert (by_video["num_videos"], by_patient["num_videos"]) == (3, 2)
    assert (by_video["grouped_by"], by_patient["grouped_by"]) == ("video", "patient")
    assert by_video["pooled"] == by_patient["pooled"]
    assert by_patient["video_wise"]["accuracy"]["mean"] == pytest.approx((3 / 4 + 4 / 5) / 2)  # type: ignore[index]


def test_unlabelled_frames_are_left_out(tmp_path: Path, numbers_only: None) -> None:
    truth = [(frame_id, -100 if frame_id == "1_1_2" else label) for frame_id, label in TRUTH]
    metrics = score(tmp_path / "out", predictions=(str(write_predictions(tmp_path / "a.csv", truth=truth)),))
    assert metrics["num_frames"] == 8
    assert metrics["pooled"]["accuracy"] == pytest.approx(7 / 8)  # type: ignore[index]


def test_identical_sets_do_not_differ_and_better_ones_do(tmp_path: Path, numbers_only: None) -> None:
    paths = [write_predictions(tmp_path / f"{name}.csv") for name in ("resnet", "again")]
    better = write_rows(tmp_path / "tcn.csv", "frame_id,prediction", foreign_rows(BETTER))
    out = tmp_path / "out"
    result = evaluate(EvaluateConfig(predictions=(*map(str, paths), f"TCN={better}"), out_dir=out, bootstrap=200))
    content = json.loads((out / "comparison.json").read_text())
    assert content == {"schema": 1, "comparisons": list(result.comparisons)}
    same, improved = result.comparisons
    assert (same["first"], same["second"]) == ("resnet", "again")
    assert all(found == {"difference": 0.0, "interval": [0.0, 0.0]} for found in same["differences"].values())
    assert improved["differences"]["accuracy"]["difference"] == pytest.approx(1 / 9)
    # Only patient 1 gains, 1 frame of 4: drawn never, once or twice, and patient 2 has 5 frames.
    assert improved["differences"]["accuracy"]["interval"] == pytest.approx([0, 1 / 4])
    for name in ("resnet", "again", "TCN"):
        assert {path.name for path in (out / name).iterdir()} == {"metrics.json", "per_video.csv", "per_phase.csv"}
    assert not (out / "metrics.json").exists()


def test_relaxed_graph_from_a_file_equals_the_built_in_one(tmp_path: Path, numbers_only: None) -> None:
    rows = [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), ("six", "seven"), ("six", 6), (4, 6)]
    names = ("one", "two", "three", "four", "five", "six", "seven")
    graph = write_rows(tmp_path / "graph.csv", "from,to", rows)
    common = {"predictions": (str(write_predictions(tmp_path / "a.csv")),), "phase_names": names, "fps": 1.0}
    built_in = score(tmp_path / "a", relaxed="cholec80", **common)
    from_file = score(tmp_path / "b", relaxed=str(graph), **common)
    assert built_in == from_file
    relaxed = built_in["relaxed"]
    assert isinstance(relaxed, dict)
    # 1_1_2 is called 1 just before 1 begins, and 2_1_11 is called 1 within 10 frames after 1: both are forgiven.
    assert (relaxed["window_s"], relaxed["sampling_fps"], relaxed["accuracy"]) == (10.0, 1.0, 1.0)
    # One frame: 1_1_2 is the last of its phase, but 2_1_11 is the second.
    narrow = score(tmp_path / "c", relaxed="cholec80", relaxed_window=0.5, **common)["relaxed"]
    assert isinstance(narrow, dict)
    assert (narrow["window_frames"], narrow["accuracy"]) == (1, pytest.approx((1 + 3 / 4 + 1) / 3))


def test_feature_files_are_scored_without_images(tmp_path: Path, numbers_only: None) -> None:
    features = write_features(tmp_path / "features")
    predictions = str(write_predictions(tmp_path / "a.csv"))
    from_features = score(tmp_path / "a", features=features)
    assert from_features.pop("calibration")["num_frames"] == 9  # type: ignore[index]
    assert from_features == score(tmp_path / "b", predictions=(predictions,), phase_names=("a", "b", "c", "d"))
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["feature_files"] == ["1_1.h5", "2_1.h5", "2_2.h5"]
    assert record["options"]["split"] == "test"


def test_only_the_split_that_was_asked_for_is_scored(tmp_path: Path, numbers_only: None) -> None:
    folder = write_features(tmp_path / "features", truth=TRUTH[:4], predicted=PREDICTED[:4])
    write_features(folder, truth=TRUTH[4:], predicted=PREDICTED[4:], split="val")
    frames = {
        split: score(tmp_path / str(split), features=folder, split=split)["num_frames"]
        for split in (None, "test", "val", "all")
    }
    assert frames == {None: 4, "test": 4, "val": 5, "all": 9}
    with pytest.raises(SpatialfeatError, match="has no video of split train"):
        evaluate(EvaluateConfig(features=folder, split="train", out_dir=tmp_path / "none"))


def test_the_window_counts_scored_frames_not_frame_numbers(tmp_path: Path, numbers_only: None) -> None:
    """Every 25th frame of a 25 fps video: 1 scored frame per second."""
    graph = str(write_rows(tmp_path / "graph.csv", "from,to", [(0, 1), (1, 2)]))
    sparse = write_features(tmp_path / "sparse", step=25, fps=25.0)
    dense = write_features(tmp_path / "dense", step=1, fps=1.0)
    found = [
        score(tmp_path / folder.stem / "out", features=folder, relaxed=graph)["relaxed"] for folder in (sparse, dense)
    ]
    assert found[0] == found[1]
    assert found[0]["sampling_fps"] == 1.0  # type: ignore[index]
    told = score(tmp_path / "told", features=sparse, relaxed=graph, fps=2.0)["relaxed"]
    assert told["window_frames"] == 20  # type: ignore[index]


def test_a_feature_file_of_a_whole_patient_holds_several_videos(tmp_path: Path, numbers_only: None) -> None:
    by_video = score(tmp_path / "a", features=write_features(tmp_path / "videos"))
    whole = tmp_path / "patients"
    whole.mkdir()
    for patient, rows in (("1", slice(0, 4)), ("2", slice(4, 9))):
        ids = [frame_id for frame_id, _ in TRUTH[rows]]
        header = VideoHeader(
            video_id=patient,
            patient_id=patient,
            split="test",
            frame_ids=np.array(ids),
            labels=np.array([label for _, label in TRUTH[rows]], dtype=np.int64),
            segments=np.array([int(frame_id.split("_")[1]) for frame_id in ids], dtype=np.int64),
            frame_numbers=np.array([int(frame_id.split("_")[2]) for frame_id in ids], dtype=np.int64),
        )
        logits = np.eye(4, dtype=np.float32)[PREDICTED[rows]]
        provenance = replace(FEATURES_PROVENANCE, group_by="patient")
        with closing(
            FeatureFileWriter(whole / f"{patient}.h5", header, provenance, {"spatialfeat": "0.1.0"})
        ) as writer:
            writer.append(np.zeros((len(ids), 2048), np.float32), logits)
            writer.finish()
    by_patient = score(tmp_path / "b", features=whole)
    assert by_patient | {"calibration": None} == by_video | {"calibration": None}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("truth", "predicted", "pictures"),
    [
        (TRUTH[:4], PREDICTED[:4], "no_drawing"),
        (TRUTH[:1], [0], "no_drawing"),
        (TRUTH[:1], [1], "drawing"),
        (TRUTH[:4], [3, 3, 3, 3], "drawing"),
    ],
    ids=["one video", "one frame", "one wrong frame", "constant and absent"],
)
def test_small_inputs_are_defined_and_silent(
    truth: list[tuple[str, int]], predicted: list[int], pictures: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = str(write_predictions(tmp_path / "a.csv", predicted, truth))
        metrics = score(tmp_path / "out", predictions=(path,))
    intervals = metrics["intervals"]
    assert isinstance(intervals, dict)
    assert (intervals["accuracy"], intervals["samples"], intervals["num_patients"]) == (None, 0, 1)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.usefixtures("no_drawing")
def test_equal_runs_write_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal pictures: test_report.py."""
    monkeypatch.chdir(tmp_path)
    write_predictions(Path("resnet.csv"), truth=TRUTH[:4], predicted=PREDICTED[:4])
    write_predictions(Path("tcn.csv"), truth=TRUTH[:4], predicted=BETTER[:4])
    for out in ("a", "b"):
        evaluate(EvaluateConfig(predictions=("resnet.csv", "tcn.csv"), out_dir=Path(out), bootstrap=50))
    names = sorted(str(path.relative_to("a")) for path in Path("a").rglob("*") if path.is_file())
    assert {"report.html", "comparison.json", "resnet/metrics.json", "ribbons/1_1.png"} <= set(names)
    for name in names:
        if name != "run.json":
            assert (Path("a") / name).read_bytes() == (Path("b") / name).read_bytes(), name


BAD_OPTIONS = [
    (
        ["--predictions", "a.csv", "--features", "f", "--img-dir", "i"],
        "--img-dir does nothing here: with --features frames",
    ),
    (["--predictions", "a.csv", "--weights", "w.pth"], "--weights does nothing here: with --predictions nothing"),
    (["--predictions", "a.csv", "--device", "auto", "--batch-size", "32"], "--batch-size, --device do nothing here"),
    (["--predictions", "a.csv", "--split", "test"], "--split does nothing here"),
    (["--features", "f", "--csv", "test.csv"], "--csv does nothing here: with --features labels and logits"),
    (["--features", "f", "--img-dir", "images", "--workers", "0"], "--img-dir, --workers do nothing here"),
    (["--split", "val"], "--split does nothing here: it chooses among the feature files of --features"),
    (["--predictions", "a.csv", "--relaxed", "cholec80"], "pass --fps, the number of scored frames per second"),
    (["--relaxed", "cholec80"], "pass --fps, the number of scored frames per second"),
    (["--predictions", "a.csv", "--relaxed-window", "5"], "--relaxed-window does nothing without --relaxed"),
    (["--predictions", "a.csv", "--fps", "0"], "--fps 0: must be a positive number"),
    (["--predictions", "a.csv", "--fps", "nan"], "--fps nan: must be a positive number"),
    (["--predictions", "a.csv", "--relaxed", "cholec80", "--fps", "1", "--relaxed-window", "-1"], "must be a positive"),
    (["--predictions", "a.csv", "--relaxed", "cholec80", "--fps", "1", "--relaxed-window", "0"], "must be a positive"),
    (["--predictions", "a.csv", "--relaxed", "cholec80", "--fps", "0.04"], "a window of 10 s holds no frame at 0.04"),
    (["--predictions", "a.csv", "--bootstrap", "-1"], "--bootstrap -1: must be at least 0"),
    (["--predictions", "a.csv", "--seed", "-1"], "--seed -1: must be at least 0"),
    (["--predictions", "a.csv", "--num-classes", "1"], "--num-classes 1: must be at least 2"),
    (["--predictions", "a.csv", "--group-by", "frame"], "--group-by frame: must be one of video, patient"),
    (["--predictions", "a.csv", "--phase-names", "x,y", "--num-classes", "3"], "2 names for 3 phases"),
    (["--predictions", "a.csv", "--phase-names", "x,y"], "row 8: predicted_label 2 is outside 0..1"),
    (["--predictions", "a.csv", "--num-classes", "4", "--relaxed", "cholec80", "--fps", "1"], "its graph has 7 phases"),
    (["--predictions", "a.csv", "--relaxed", "graph.csv", "--fps", "1"], "graph.csv row 3: column to: '7' is no phase"),
    (["--predictions", "a.csv", "--relaxed", "none.csv", "--fps", "1"], "none.csv: no such file"),
    (["--predictions", "a.csv", "--csv", "short.csv"], "a.csv: has 8 frames (1_1_2 in row 3, "),
    (["--predictions", "a.csv", "--predictions", "short-b.csv"], "short-b.csv: lacks 8 frames"),
    (["--predictions", "a.csv", "--predictions", "a.csv"], "a.csv is called a already"),
    (["--predictions", "unlabelled.csv"], "unlabelled.csv: has no labelled frame"),
    (["--features", "f"], "f: no such feature file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS)
def test_mistakes_are_told_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_predictions(Path("a.csv"))
    write_truth(Path("test.csv"))
    write_rows(Path("short.csv"), "id,label", TRUTH[:1])
    write_rows(Path("short-b.csv"), "id,prediction", foreign_rows()[:1])
    write_rows(Path("unlabelled.csv"), "id,label,prediction", [("1_1_1", -100, 0)])
    write_rows(Path("graph.csv"), "from,to", [(0, 1), (1, 7)])
    before = set(tmp_path.iterdir())
    run = CliRunner().invoke(app, ["evaluate", *arguments])
    assert run.exit_code == 2
    assert "error: " in run.output
    assert message in run.output
    assert "Traceback" not in run.output
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", "1_1.h5: frame 1_1_2 has label 9, which is outside 0..3; extract the video again"),
        ("logits", "1_1.h5: 1_1_3: its logits are not finite; extract the video again"),
        ("classes", "its files have 4 phases, not 7"),
    ],
)
def test_feature_files_that_cannot_be_scored(change: str, message: str, tmp_path: Path) -> None:
    import h5py

    folder = write_features(tmp_path / "features")
    with h5py.File(folder / "1_1.h5", "r+") as file:
        if change == "label":
            file["labels"][1] = 9
        if change == "logits":
            file["logits"][0, 2] = np.nan
    num_classes = 7 if change == "classes" else None
    with pytest.raises(SpatialfeatError, match=message.replace("(", r"\(")):
        evaluate(EvaluateConfig(features=folder, num_classes=num_classes, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_feature_files_of_videos_are_joined_by_patient(tmp_path: Path, numbers_only: None) -> None:
    """Files were extracted per video; scores per operation need no second extraction."""
    features = write_features(tmp_path / "features")
    predictions = str(write_predictions(tmp_path / "a.csv"))
    from_features = score(tmp_path / "f", features=features, group_by="patient")
    from_features.pop("calibration")
    from_csv = score(tmp_path / "p", predictions=(predictions,), phase_names=("a", "b", "c", "d"), group_by="patient")
    assert from_features == from_csv
    assert from_features["num_videos"] == 2


def test_what_a_reader_should_know_is_said(
    tmp_path: Path, numbers_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_predictions(tmp_path / "a.csv"))
    with caplog.at_level("INFO", logger="spatialfeat"):
        score(tmp_path / "v", predictions=(path,))
    assert "3 videos of 2 patients: numbers per video are per part of an operation" in caplog.text
    assert "2 patients are too few for intervals to be trusted" in caplog.text
    assert f"the true phases are those in {path}" in caplog.text
    caplog.clear()
    names = ("a", "b", "c", "d", "e", "f", "g")
    with caplog.at_level("INFO", logger="spatialfeat"):
        score(tmp_path / "p", predictions=(path,), group_by="patient", relaxed="cholec80", fps=1.0, phase_names=names)
    assert "per part of an operation" not in caplog.text
    assert "relaxed scores mean little unless they are the same phases" in caplog.text


def test_a_rate_that_is_doubtful_is_said_and_a_window_without_frames_is_refused(
    tmp_path: Path, numbers_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Every 25th frame of a 25 fps video, extracted with the default --fps 1."""
    graph = str(write_rows(tmp_path / "graph.csv", "from,to", [(0, 1), (1, 2)]))
    features = write_features(tmp_path / "features", step=25, fps=1.0)
    doubt = (
        "frame numbers advance by 25, so at --fps 1 frames are 25 s apart; if that is one frame a second, pass --fps 25"
    )
    with caplog.at_level("INFO", logger="spatialfeat"):
        score(tmp_path / "a", features=features)
    assert f"note: {doubt} to extract and check, or --fps 1 to evaluate" in caplog.text
    with pytest.raises(SpatialfeatError, match=r"a window of 10 s holds no frame at 0\.04 scored frames per second"):
        evaluate(EvaluateConfig(features=features, relaxed=graph, out_dir=tmp_path / "b"))
    assert not (tmp_path / "b" / "metrics.json").exists()
    caplog.clear()
    with caplog.at_level("INFO", logger="spatialfeat"):
        relaxed = score(tmp_path / "c", features=features, relaxed=graph, fps=1.0)["relaxed"]
        score(tmp_path / "d", features=write_features(tmp_path / "right", step=25, fps=25.0))
    assert isinstance(relaxed, dict)
    assert relaxed["window_frames"] == 10
    assert "advance by" not in caplog.text
    for folder, is_said in ((features, True), (tmp_path / "right", False)):
        for path in (folder, folder / "1_1.h5"):
            shown = CliRunner().invoke(app, ["info", str(path)])
            assert shown.exit_code == 0
            assert (f"note: {doubt}" in " ".join(shown.stdout.split())) == is_said


def test_unlabelled_frames_count_in_no_score_and_are_counted(
    tmp_path: Path, numbers_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_predictions(tmp_path / "a.csv")
    truth = write_rows(
        tmp_path / "test.csv", "id,label", [(row[0], "" if row[0] == "2_2_1" else row[1]) for row in TRUTH]
    )
    bare = write_rows(tmp_path / "b.csv", "id,prediction", foreign_rows())
    whole = score(tmp_path / "all", predictions=(str(path),))
    with caplog.at_level("INFO", logger="spatialfeat"):
        part = score(tmp_path / "part", predictions=(str(bare),), csv=truth)
    assert (whole["num_frames"], part["num_frames"]) == (9, 8)
    assert f"note: 1 of 9 evaluation frames in {truth} without a label: in no score" in caplog.text
