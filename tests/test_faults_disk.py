"""A disk that fills up or is read-only: one message with the file, whole files only, earlier results as they were."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from drawing import draw_nothing
from feature_folders import make_video
from predictions_data import BETTER, write_predictions
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import FinetuneConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import read_json_object
from spatialfeat.finetune import FinetuneResult, finetune
from spatialfeat.network.weights import load_checkpoint
from spatialfeat.training.files import STATE_NAME, StudyFiles, TrainingState, read_state


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """Writes beyond `num_bytes` of a file fail, as on a full disk: it works for every user on every machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of this size; yields its folder. Skips where the machine does not let us mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs; files_up_to stands in for it in the other tests")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def extraction(demo_dir: Path, weights: Path, out: Path) -> list[object]:
    return [
        *("extract", "--csv", demo_dir / "test_ResNet_DB.csv", "--img-dir", demo_dir / "images", "--weights", weights),
        *("--out", out, "--device", "cpu", "--batch-size", 5, "--workers", 0),
    ]


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_extract_on_a_full_disk_keeps_earlier_files(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path
) -> None:
    command = extraction(demo_dir, small_study.weights_path, tmp_path / "out")
    assert run(*command)[0] == 0
    whole = contents(tmp_path / "out")
    for name in ("114_02.h5", "114_03.h5"):
        (tmp_path / "out" / name).unlink()
    with files_up_to(30_000):
        code, _, errors = run(*command)
    assert code == 2
    assert (
        f"error: {tmp_path / 'out' / '114_02.h5'}: File too large; make room there, or choose another place" in errors
    )
    left = contents(tmp_path / "out")
    assert left.keys() == {"114_01.h5", "run.json"}
    assert left["114_01.h5"] == whole["114_01.h5"]
    assert read_json_object(tmp_path / "out" / "run.json")["status"] == "failed"
    assert run(*command)[0] == 0
    again = contents(tmp_path / "out")
    assert {name: again[name] for name in again if name != "run.json"} == {
        name: whole[name] for name in whole if name != "run.json"
    }


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_extract_on_a_small_disk(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        code, _, errors = run(*extraction(demo_dir, small_study.weights_path, disk / "out"))
        assert code == 2
        assert "out: the feature files take about 0.1 MB, but 0.1 MB are free there; make room" in errors
        # Other programs may fill it later.
        monkeypatch.setattr("spatialfeat.extract.require_room", lambda *arguments: None)
        code, output, errors = run(*extraction(demo_dir, small_study.weights_path, disk / "out"))
        assert code == 2
        assert f"error: {disk / 'out' / '114_02.h5'}: No space left on device; make room" in errors
        assert "1 of 3 videos are finished and kept: 114_01; run" in output
        assert {path.name for path in (disk / "out").iterdir()} == {"114_01.h5", "run.json"}


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_finetune_on_a_full_disk_keeps_the_best_weights_so_far(
    quick_config: FinetuneConfig, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch is saved; the second no longer fits."""
    save, saved = StudyFiles.save_epoch, []

    def save_until_full(files: StudyFiles, state: TrainingState) -> None:
        saved.append(state)
        with files_up_to(1_000_000_000 if len(saved) == 1 else 1_000_000):
            save(files, state)

    monkeypatch.setattr(StudyFiles, "save_epoch", save_until_full)
    with pytest.raises(SpatialfeatError, match=rf"{STATE_NAME}: File too large; make room there"):
        finetune(replace(quick_config, weights=str(small_study.weights_path), out_dir=tmp_path, freeze_until=9))
    assert len(saved) == 2
    assert load_checkpoint(tmp_path / "best_spatial_study_weights.pth").num_classes == 7
    assert read_json_object(tmp_path / "best_spatial_study_weights.json")["epoch"] == 1
    assert len(read_state(tmp_path / STATE_NAME).history) == 1
    assert read_json_object(tmp_path / "run.json")["status"] == "failed"
    assert not list(tmp_path.glob(".*"))


def test_finetune_refuses_a_disk_that_is_too_small_before_it_trains(
    quick_config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=150_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SpatialfeatError, match=r"state and weights take about 919.* MB, but 150.0 MB are free"):
        finetune(replace(quick_config, out_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_evaluation_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, better = write_predictions(tmp_path / "a.csv"), write_predictions(tmp_path / "b.csv", BETTER)
    out = tmp_path / "scores"
    with monkeypatch.context() as quick:
        draw_nothing(quick.setattr)
        assert run("evaluate", "--predictions", first, "--bootstrap", 0, "--out", out)[0] == 0
    before = contents(out)
    assert {"metrics.json", "report.html", "run.json", "ribbons/1_1.png"} <= before.keys()
    with files_up_to(20_000):  # enough for the numbers, too little for the pictures
        code, _, errors = run("evaluate", "--predictions", better, "--bootstrap", 0, "--out", out)
    assert code == 2
    assert "per_phase.png: File too large; make room there" in errors
    assert contents(out) == before
    draw_nothing(monkeypatch.setattr)
    assert run("evaluate", "--predictions", better, "--bootstrap", 0, "--out", out)[0] == 0
    after = contents(out)
    assert after.keys() == before.keys()
    assert after["metrics.json"] != before["metrics.json"]


def test_a_failed_first_evaluation_leaves_its_record(tmp_path: Path) -> None:
    predictions = write_predictions(tmp_path / "a.csv")
    with files_up_to(20_000):
        assert run("evaluate", "--predictions", predictions, "--bootstrap", 0, "--out", tmp_path / "scores")[0] == 2
    assert contents(tmp_path / "scores").keys() == {"run.json"}
    assert read_json_object(tmp_path / "scores" / "run.json")["status"] == "failed"


@pytest.mark.parametrize("form", ["ms-tcn", "tecno", "npy", "csv"])
def test_export_on_a_full_disk_leaves_nothing(form: str, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "test", "test"), start=1):
        make_video(tmp_path / "features", f"{number}_1", [0, 1, 2], split=split)
    # One file of one frame has 8 kB, of a video 24 kB.
    with files_up_to(5_000):
        code, _, errors = run("export", form, tmp_path / "features", tmp_path / "out")
    assert code == 2
    assert "File too large" in errors
    assert "make room" in errors or "enough room" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


@contextmanager
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing can be written to `folder`: by its rights, by a read-only mount, or, for a confined root, by pretence."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount = shutil.which("mount") is not None and not any(
        subprocess.run(command, capture_output=True).returncode
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder])
    )
    if mount:
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_text", "mkdir"):
            patch.setattr(Path, name, refuse)
        yield


@pytest.mark.usefixtures("small_network", "no_drawing")
def test_a_read_only_folder_is_told_at_once(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier.txt").write_text("earlier")
    make_video(tmp_path / "features", "1_1", [0, 1, 2])
    predictions = write_predictions(tmp_path / "a.csv")
    with read_only(out, monkeypatch):
        for command in (
            extraction(demo_dir, small_study.weights_path, out),
            ["evaluate", "--predictions", predictions, "--out", out],
            [
                *("finetune", "--train-csv", demo_dir / "train_ResNet_DB.csv", "--img-dir", demo_dir / "images"),
                *("--val-csv", demo_dir / "val_ResNet_DB.csv", "--out", out),
            ],
        ):
            code, _, errors = run(*command)
            assert code == 2
            assert f"error: --out {out}: cannot write there (" in errors
            assert "choose a folder that you may write to" in errors
        code, _, errors = run("export", "npy", tmp_path / "features", out / "npy")
        assert code == 2
        assert f"error: OUT {out / 'npy'}: cannot be written (" in errors
    assert contents(out) == {"earlier.txt": b"earlier"}
