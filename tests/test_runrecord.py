"""run.json tells how an output folder came to be, also when the run was cut off."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from spatialfeat.config import ExtractConfig, FinetuneConfig
from spatialfeat.runrecord import RunRecord, library_versions


def _load(out_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out_dir / "run.json").read_text(encoding="utf-8"))
    return content


def test_the_record_of_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv_path = tmp_path / "train.csv"
    csv_path.write_text("id,label\n")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/spatialfeat", "finetune", "--phase-names", "in, out"])
    config = FinetuneConfig(train_csv=csv_path, num_classes=2, phase_names=("in", "out"), seed=3)
    record = RunRecord(tmp_path, "finetune", config, [csv_path], device="cpu (2 cores)")

    # Before `finish` it is what a run that was cut off leaves behind.
    content = _load(tmp_path)
    assert content["status"] == "running"
    assert "seconds" not in content

    record.finish(best_epoch=4)
    content = _load(tmp_path)
    assert content["schema"] == 1
    assert content["status"] == "complete"
    assert content["command"] == "finetune"
    assert content["command_line"] == "spatialfeat finetune --phase-names 'in, out'"
    assert content["device"] == "cpu (2 cores)"
    assert content["best_epoch"] == 4
    assert content["versions"] == library_versions()
    assert content["data_sha256"] == {str(csv_path): hashlib.sha256(b"id,label\n").hexdigest()}
    assert 0 <= content["seconds"] < 60
    assert content["started"].endswith("+00:00")


def test_every_option_is_recorded(tmp_path: Path) -> None:
    RunRecord(tmp_path, "finetune", FinetuneConfig(num_classes=2, phase_names=("in", "out")), [])
    options = _load(tmp_path)["options"]
    assert set(options) == set(FinetuneConfig.__dataclass_fields__)
    assert options["train_csv"] == "train_ResNet_DB.csv"
    assert options["phase_names"] == ["in", "out"]
    assert options["test_csv"] is None
    assert options["lr"] == 1e-4
    assert options["seed"] == 0


def test_another_status(tmp_path: Path) -> None:
    RunRecord(tmp_path, "extract", ExtractConfig(csvs=("a=b.csv",)), []).finish("incomplete", failed={"1_1": "gone"})
    content = _load(tmp_path)
    assert (content["status"], content["failed"]) == ("incomplete", {"1_1": "gone"})
    assert content["options"]["csvs"] == ["a=b.csv"]


def test_a_new_run_replaces_the_old_record(tmp_path: Path) -> None:
    RunRecord(tmp_path, "extract", ExtractConfig(), []).finish(written=["1_1"])
    RunRecord(tmp_path, "extract", ExtractConfig(), [])
    content = _load(tmp_path)
    assert content["status"] == "running"
    assert "written" not in content


def test_library_versions() -> None:
    versions = library_versions()
    assert versions["torch"] == torch.__version__
    assert versions["h5py"] == h5py.__version__
    assert set(versions) == {"spatialfeat", "python", "torch", "torchvision", "numpy", "pillow", "h5py"}
    assert json.loads(json.dumps(versions)) == versions
