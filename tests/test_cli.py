"""The command line as a person meets it: real processes, exit codes, messages."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from spatialfeat import __version__
from spatialfeat.cli import app, run_command
from spatialfeat.config import FinetuneConfig
from spatialfeat.finetune import FinetuneResult


def spatialfeat(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, with one thread so that tests do not fight over cores."""
    return subprocess.run(
        [sys.executable, "-m", "spatialfeat", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_the_three_commands_run_in_a_folder_laid_out_as_specified(
    demo_dir: Path, small_plain_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what makes it quick is given; names and places are the specification's."""
    for path in demo_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    quick = ("--workers", "0", "--device", "cpu")
    monkeypatch.chdir(tmp_path)
    options = ("--weights", "random", "--epochs", "1", "--image-size", "64")
    trained = CliRunner().invoke(app, ["finetune", *options, *quick])
    assert trained.exit_code == 0, trained.stderr
    assert "epoch 1/1  train loss" in trained.stdout
    assert "frames/s" in trained.stderr
    assert "all frames together" in trained.stdout
    for name in ("best_spatial_study_weights.pth", "predictions_resnet.csv", "history.csv", "run.json"):
        assert (tmp_path / name).is_file()

    evaluated = CliRunner().invoke(app, ["evaluate", *quick])
    assert evaluated.exit_code == 0, evaluated.stderr
    assert (tmp_path / "evaluation" / "metrics.json").is_file()
    same = [(tmp_path / folder / "predictions_resnet.csv").read_text() for folder in (".", "evaluation")]
    assert same[0] == same[1]

    extracted = CliRunner().invoke(app, ["extract", *quick])
    assert extracted.exit_code == 0, extracted.stderr
    splits = set()
    for path in (tmp_path / "features").glob("*.h5"):
        with h5py.File(path) as file:
            splits.add(file.attrs["split"])
    assert splits == {"train", "val", "test"}

    again = CliRunner().invoke(app, ["extract", *quick])
    assert again.exit_code == 0
    assert "10 already there" in again.output
    mixed = CliRunner().invoke(app, ["extract", *quick, "--weights", str(small_plain_weights)])
    assert mixed.exit_code == 2
    assert "other weights" in mixed.output


@pytest.mark.usefixtures("small_network")
def test_failed_videos_give_exit_code_1(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [line.split(",")[0] for line in (demo_dir / "test_ResNet_DB.csv").read_text().splitlines()[1:]]
    (tmp_path / "images").mkdir()
    for frame_id in ids[1:]:
        (tmp_path / "images" / f"{frame_id}.png").symlink_to(demo_dir / "images" / f"{frame_id}.png")
    monkeypatch.chdir(tmp_path)
    csv_path = demo_dir / "test_ResNet_DB.csv"
    run = CliRunner().invoke(
        app, ["extract", "--csv", str(csv_path), "--weights", str(small_study.weights_path), "--workers", "0"]
    )
    assert run.exit_code == 1
    assert f"error: video {ids[0].rsplit('_', 1)[0]} has no feature file" in run.output
    assert f"{ids[0]}.png: the file does not exist" in run.output
    assert list((tmp_path / "features").glob("*.h5"))


USER_MISTAKES = [
    (["finetune"], "train_ResNet_DB.csv: no such file"),
    (["evaluate"], "best_spatial_study_weights.pth: no such weights file"),
    (["extract", "--csv", "frames.csv"], "does not say which split it is"),
    (["finetune", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["finetune", "--freeze-until", "10"], "--freeze-until 10: must be 0 (train everything) to 9"),
    (["finetune", "--lr", "-1"], "--lr -1: must be a positive number"),
    (["finetune", "--phase-names", "a,b", "--num-classes", "7"], "2 names for 7 phases"),
    (["finetune", "--phase-names", "absent.txt"], "--phase-names absent.txt: cannot be read (No such file"),
    (["extract"], "--img-dir images: cannot be read"),
    (["finetune", "--precision", "fp8"], "--precision fp8: must be one of auto, fp32, bf16, fp16"),
    (["extract", "--layout", "sideways"], "--layout sideways: must be one of channel-first, time-first"),
    (["extract", "--fps", "0"], "--fps 0: must be a positive number"),
]


@pytest.mark.parametrize(("arguments", "message"), USER_MISTAKES)
def test_mistakes_end_with_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames.csv").write_text("id,label\n1_1_1,0\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "error: " in result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_unusable_device_named_by_the_user_is_an_error(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = ["--train-csv", quick_config.train_csv, "--val-csv", quick_config.val_csv, "--img-dir", quick_config.img_dir]
    run = CliRunner().invoke(app, ["finetune", *map(str, data), "--device", "cuda", "--out", str(tmp_path)])
    assert run.exit_code == 2
    assert "error: --device cuda: no CUDA device is visible; pass --device cpu" in run.stderr


def test_an_unwritable_output_is_found_before_work_starts(quick_config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    data = ["--train-csv", quick_config.train_csv, "--val-csv", quick_config.val_csv, "--img-dir", quick_config.img_dir]
    out = tmp_path / "file" / "out"
    run = CliRunner().invoke(app, ["finetune", *map(str, data), "--weights", "random", "--out", str(out)])
    assert run.exit_code == 2
    assert "cannot write there" in run.output
    assert "epoch" not in run.output


@pytest.mark.parametrize(
    ("arguments", "code", "output", "error"),
    [
        (["--version"], 0, f"spatialfeat {__version__}\n", ""),
        (["--help"], 0, "finetune", ""),
        (["finetune", "--help"], 0, "--train-csv", ""),
        (["finetune", "--batch-size", "0"], 2, "", "error: --batch-size 0: must be at least 1"),
        (["finetune", "--epochs", "many"], 2, "", "Invalid value for '--epochs'"),
        (["finetuen"], 2, "", "finetuen"),
    ],
)
def test_python_m_spatialfeat(arguments: list[str], code: int, output: str, error: str, tmp_path: Path) -> None:
    run = spatialfeat(*arguments, cwd=tmp_path)
    assert run.returncode == code
    assert output in run.stdout
    assert error in run.stderr
    assert "Traceback" not in run.stderr


def test_version_and_help_need_no_heavy_import() -> None:
    probe = (
        "import sys, spatialfeat.cli\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'h5py', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert CliRunner().invoke(app, ["--version"]).output == f"spatialfeat {__version__}\n"


def test_help_shows_the_defaults_of_the_config() -> None:
    text = " ".join(CliRunner().invoke(app, ["finetune", "--help"], terminal_width=300).output.split())
    for option, default in (("--lr", "0.0001"), ("--epochs", "50"), ("--backbone", "resnet50"), ("--batch-size", "32")):
        assert option in text
        assert f"[default: {default}]" in text
    for of_resnet50 in ("the encoder's usual one: 224 for resnet50", "6 of resnet50, half of another encoder's stages"):
        assert f"[default: {of_resnet50}]" in text


def test_faults_of_the_machine_are_messages_and_bugs_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    def full_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "features/1_1.h5")

    with pytest.raises(SystemExit) as caught:
        run_command(full_disk)
    assert caught.value.code == 2
    assert "error: features/1_1.h5: No space left on device" in capsys.readouterr().err

    def bug() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "forgotten.txt")

    with pytest.raises(FileNotFoundError):
        run_command(bug)


def test_an_uncaught_error_keeps_its_traceback(tmp_path: Path) -> None:
    code = "import spatialfeat.cli as cli\ndef app(): raise KeyError('x')\ncli.app = app\ncli.main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.rstrip().endswith("KeyError: 'x'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_the_output_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "spatialfeat", "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
            cwd=tmp_path,
        )  # fmt: skip
    assert run.returncode != 0
    assert "No space left" in run.stderr


@pytest.mark.parametrize(
    "command", ["check", "finetune", "evaluate", "predict", "extract", "export", "info", "prepare"]
)
def test_every_option_is_explained_under_a_heading(command: str) -> None:
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert parameters
    for parameter in parameters:
        assert parameter.help.strip().endswith((".", "]")), parameter.name
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert "Options:" not in text  # The heading of options that have none of their own.
    assert "--no-decode" in text or command != "check"
