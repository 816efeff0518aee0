"""check as a person meets it: exit codes, the report on the terminal, the files it leaves."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from check_data import DataSet, make_clean
from PIL import Image
from typer.testing import CliRunner, Result

from spatialfeat.checks.findings import CODES
from spatialfeat.cli import app
from spatialfeat.console import WIDTH, size_text
from spatialfeat.reports.plots import balance_figure, set_colour

ROOT = Path(__file__).parent.parent


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return make_clean(tmp_path / "data")


def run(data: DataSet, *arguments: str) -> Result:
    data.write_csvs()
    options = {
        "--train-csv": data.csv("train"),
        "--val-csv": data.csv("val"),
        "--test-csv": data.csv("test"),
        "--img-dir": data.img_dir,
        "--out": data.folder / "check",
        "--num-classes": 3,
        "--image-size": 64,
        "--workers": 0,
        "--device": "cpu",
    }
    named = [str(text) for option in options.items() for text in option]
    return CliRunner().invoke(app, ["check", *named, *arguments])


def test_a_clean_data_set_is_ready(data: DataSet) -> None:
    result = run(data, "--no-estimate")
    assert result.exit_code == 0
    assert "READY: 0 errors, 0 warnings, 0 notes" in result.stdout
    out_dir = data.folder / "check"
    names = {"check.json", "check.txt", "class_balance.png", "class_balance.svg", "run.json"}
    assert {path.name for path in out_dir.iterdir()} == names
    content = json.loads((out_dir / "check.json").read_text())
    assert content["ok"] is True
    assert content["findings"] == []
    assert content["counts"] == {"error": 0, "warning": 0, "note": 0}
    assert content["phases"]["train"] == {"phase_0": 6, "phase_1": 6, "phase_2": 6}
    assert content["images"]["sizes"] == {"90x80": 54}
    assert content["images"]["kinds"] == {"RGB": 54}
    assert [split["num_videos"] for split in content["splits"]] == [2, 2, 2]
    assert len(content["videos"]) == 6
    assert content["estimate"] is None
    assert json.loads((out_dir / "run.json").read_text())["status"] == "complete"
    assert (out_dir / "check.txt").read_text() in result.stdout


def test_an_error_gives_exit_code_1_and_every_line_fits(data: DataSet) -> None:
    for row in range(6):
        data.image("train", row).unlink()
    data.rows["train"][8][1] = "x"
    result = run(data, "--no-estimate")
    assert result.exit_code == 1
    assert "missing-image (6 rows)" in result.stdout
    assert "... and 2 more, in check.json" in result.stdout
    assert "fix label-not-a-number, missing-image, then check again" in result.stdout
    report = [line for line in result.stdout.splitlines() if str(data.folder) not in line]
    assert max(map(len, report)) <= WIDTH
    content = json.loads((data.folder / "check" / "check.json").read_text())
    (missing,) = [finding for finding in content["findings"] if finding["code"] == "missing-image"]
    assert missing["level"] == "error"
    assert missing["count"] == len(missing["places"]) == 6
    assert content["ok"] is False


def test_an_estimate_is_told_and_written(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.checks.estimate.SECONDS", 0.0)
    result = run(data, "--batch-size", "2", "--epochs", "5")
    assert "ESTIMATE for this machine as it is now: cpu" in result.stdout
    assert "for 5 epochs" in result.stdout
    estimate = json.loads((data.folder / "check" / "check.json").read_text())["estimate"]
    assert estimate["most_s"] >= estimate["epoch_s"] > 0
    assert estimate["extract_disk_bytes"] > 54 * 2048 * 4
    assert estimate["speeds"]["probe_batch"] == 2
    assert estimate["finetune_memory_bytes"] == estimate["speeds"]["train_bytes"] > 0
    assert estimate["extract_memory_bytes"] == estimate["speeds"]["inference_bytes"] > 0
    assert estimate["finetune_gpu_bytes"] is estimate["extract_gpu_bytes"] is None
    assert f"a batch of 2 frames took {size_text(estimate['extract_memory_bytes'])} of memory" in result.stdout


def test_the_csvs_of_extract_may_be_unlabelled(data: DataSet) -> None:
    csv = data.folder / "frames.csv"
    csv.write_text("id\n" + "".join(f"{row[0]}\n" for row in data.rows["train"]))
    arguments = ["check", "--csv", f"new={csv}", "--img-dir", str(data.img_dir), "--out", str(data.folder / "check"),
                 "--image-size", "64", "--workers", "0", "--device", "cpu", "--no-estimate"]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "unused-images (36 images)" in result.stdout
    assert not (data.folder / "check" / "class_balance.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps", "0"], "--fps 0: must be a positive number"),
        (["--phase-names", "a,b"], "--phase-names: 2 names for 3 phases"),
        (["--csv", "frames.csv"], "--csv and --train-csv: name the CSVs in one way"),
    ],
)
def test_mistakes_in_options_end_with_exit_code_2(data: DataSet, arguments: list[str], message: str) -> None:
    result = run(data, *arguments)
    assert result.exit_code == 2
    assert f"error: {message}" in result.output
    assert not (data.folder / "check").exists()


@pytest.mark.parametrize("num_phases", [2, 20])
def test_the_picture_shows_every_phase_of_every_split(num_phases: int, tmp_path: Path) -> None:
    counts = {split: [phase * 10 + more for phase in range(num_phases)] for split, more in (("train", 0), ("val", 1))}
    figure = balance_figure(counts, [f"a phase with a long name {phase}" for phase in range(num_phases)])
    figure.savefig(tmp_path / "balance.png")
    (axes,) = figure.axes
    assert len(axes.patches) == 2 * num_phases
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["none", f"{10 / sum(counts['train']):.1%}  10"]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not above.overlaps(below) for above, below in pairwise(boxes))
    with Image.open(tmp_path / "balance.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert tuple(int(set_colour(0)[place : place + 2], 16) for place in (1, 3, 5)) in colours


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for code, (level, _, meaning) in CODES.items():
        assert f"| `{code}` | {level} | {meaning} |" in text
