"""Evaluation: CSV order, numbers that agree with an independent computation, all phases always."""

from __future__ import annotations

import csv
import json
import re
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from spatialfeat.config import EvaluateConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.evaluate import evaluate
from spatialfeat.finetune import FinetuneResult


def read_predictions(path: Path) -> list[tuple[str, int, int]]:
    with path.open(newline="") as file:
        return [(r["img_id"], int(r["true_label"]), int(r["predicted_label"])) for r in csv.DictReader(file)]


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_scores_agree_with_scikit_learn_on_the_written_predictions(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path
) -> None:
    returned = evaluate(
        EvaluateConfig(
            csv=demo_dir / "train_ResNet_DB.csv",
            img_dir=demo_dir / "images",
            weights=small_study.weights_path,
            out_dir=tmp_path,
            workers=0,
        )
    ).metrics
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == returned
    _, truth, predicted = zip(*read_predictions(tmp_path / "predictions_resnet.csv"), strict=True)
    phases = list(range(7))
    assert metrics["pooled"]["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    expected_f1 = f1_score(truth, predicted, labels=phases, average="macro", zero_division=0)
    assert metrics["pooled"]["macro_f1"] == pytest.approx(expected_f1)
    np.testing.assert_array_equal(metrics["confusion_matrix"], confusion_matrix(truth, predicted, labels=phases))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=phases, zero_division=np.nan
    )
    for phase, row in enumerate(metrics["per_phase"]):
        assert row["name"] == "ABCDEFG"[phase]
        assert row["support"] == support[phase]
        for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            if row[name] is not None:
                assert row[name] == pytest.approx(values[phase])
            else:
                assert np.isnan(values[phase])
    with (tmp_path / "per_phase.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list("ABCDEFG")
    assert (tmp_path / "confusion_matrix.png").exists()
    assert json.loads((tmp_path / "run.json").read_text())["command"] == "evaluate"


@pytest.mark.usefixtures("small_network", "no_drawing")
@pytest.mark.parametrize("frames", [True, False])
def test_the_report_names_the_weights_and_shows_mistakes_unless_told(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, frames: bool
) -> None:
    config = EvaluateConfig(
        csv=demo_dir / "test_ResNet_DB.csv",
        img_dir=demo_dir / "images",
        weights=small_study.weights_path,
        out_dir=tmp_path,
        workers=0,
        frames=frames,
    )
    assert evaluate(config).metrics["pooled"]["accuracy"] < 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("data:image/jpeg" in page) == frames
    assert ("Most confident mistakes" in page) == frames
    description = json.loads(small_study.weights_path.with_suffix(".json").read_text())
    assert f"<dt>SHA-256 of the weights</dt><dd>{description['weights_sha256']}</dd>" in page
    assert f"<dt>weights of epoch</dt><dd>{description['epoch']}</dd>" in page
    # A date that is about now, whatever happens at midnight.
    (day,) = re.findall(r"<dt>date</dt><dd>(\d{4}-\d\d-\d\d)</dd>", page)
    assert abs(date.fromisoformat(day) - datetime.now(timezone.utc).date()) <= timedelta(days=1)


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_predictions_keep_the_order_of_the_csv(demo_dir: Path, small_study: FinetuneResult, tmp_path: Path) -> None:
    lines = (demo_dir / "test_ResNet_DB.csv").read_text().splitlines(keepends=True)
    order = np.random.default_rng(1).permutation(len(lines) - 1) + 1
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_text(lines[0] + "".join(lines[i] for i in order))
    common = {"img_dir": demo_dir / "images", "weights": small_study.weights_path, "workers": 0}
    straight = evaluate(EvaluateConfig(csv=demo_dir / "test_ResNet_DB.csv", out_dir=tmp_path / "a", **common)).metrics
    mixed = evaluate(EvaluateConfig(csv=shuffled, out_dir=tmp_path / "b", batch_size=3, **common)).metrics
    a = read_predictions(tmp_path / "a" / "predictions_resnet.csv")
    b = read_predictions(tmp_path / "b" / "predictions_resnet.csv")
    assert [row[0] for row in b] == [line.split(",")[0] for line in shuffled.read_text().splitlines()[1:]]
    assert sorted(a) == sorted(b)
    # Segments are found in time order, so the order of the rows changes no score either.
    assert mixed["segmental"] == straight["segmental"]


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_one_phase_only_still_reports_all_phases(demo_dir: Path, small_plain_weights: Path, tmp_path: Path) -> None:
    """Trap: a confusion matrix without `labels=` shrinks to the phases that occur. These weights have no JSON."""
    rows = [line for line in (demo_dir / "val_ResNet_DB.csv").read_text().splitlines()[1:] if line.endswith(",0")]
    (tmp_path / "one.csv").write_text("id,label\n" + "\n".join(rows) + "\n")
    metrics = evaluate(
        EvaluateConfig(
            csv=tmp_path / "one.csv",
            img_dir=demo_dir / "images",
            weights=small_plain_weights,
            out_dir=tmp_path,
            workers=0,
        )
    ).metrics
    assert np.shape(metrics["confusion_matrix"]) == (7, 7)
    assert np.sum(metrics["confusion_matrix"]) == len(rows)
    assert [row["name"] for row in metrics["per_phase"]] == [f"phase_{phase}" for phase in range(7)]


@pytest.mark.usefixtures("small_network")
def test_labels_beyond_the_weights_classes_are_refused(
    demo_dir: Path, small_plain_weights: Path, tmp_path: Path
) -> None:
    frame_id = (demo_dir / "val_ResNet_DB.csv").read_text().splitlines()[1].split(",")[0]
    (tmp_path / "bad.csv").write_text(f"id,label\n{frame_id},7\n")
    config = EvaluateConfig(
        csv=tmp_path / "bad.csv", img_dir=demo_dir / "images", weights=small_plain_weights, out_dir=tmp_path / "out"
    )
    with pytest.raises(SpatialfeatError, match=r"bad\.csv row 2: label 7 is outside 0\.\.6"):
        evaluate(config)
    assert not (tmp_path / "out").exists()
