from __future__ import annotations

import gc
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import make_study, make_video
from typer.testing import CliRunner

from spatialfeat.cli import app
from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export, job_class
from spatialfeat.exports.source import ExportJob
from spatialfeat.features.file import FeatureFile
from spatialfeat.formats import FORMATS

NUM_CHANNELS = 64
OUT_NAMES = {name: "out.h5" if form.suffixes else "out" for name, form in FORMATS.items()}


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.output


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def no_flush_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need not survive a power cut, and are much faster so."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def features_dir(tmp_path: Path) -> Path:
    make_study(tmp_path / "features", longest=20, num_channels=NUM_CHANNELS)
    return tmp_path / "features"


@pytest.mark.parametrize("form", FORMATS)
def test_every_registered_format_has_a_job(form: str) -> None:
    assert issubclass(job_class(FORMATS[form]), ExportJob)


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_prints_tree_and_next_step(features_dir: Path, form: str) -> None:
    code, output = invoke(form, features_dir, features_dir.parent / OUT_NAMES[form])
    assert code == 0, output
    assert "8 videos, 65 frames" in output
    assert "Next:" in output
    assert sorted(path.name for path in features_dir.parent.iterdir()) == sorted(["features", OUT_NAMES[form]])


@pytest.mark.parametrize("form", FORMATS)
def test_help_shows_the_tree_of(form: str) -> None:
    _, output = invoke("--help")
    for line in FORMATS[form].tree.splitlines():
        assert line in output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom spatialfeat import cli\n"
        "try:\n    cli.app(['export', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'torch', 'h5py', 'pandas'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("form", FORMATS)
def test_two_exports_are_equal_to_the_byte(features_dir: Path, form: str) -> None:
    contents = []
    for parent in ("one", "two"):
        out = features_dir.parent / parent / OUT_NAMES[form]
        export(ExportConfig(format=form, features_dir=features_dir, out=out))
        contents.append(snapshot(out.parent))
    assert contents[0] == contents[1]


def test_an_empty_folder_may_be_filled(features_dir: Path) -> None:
    out = features_dir.parent / "out"
    out.mkdir()
    export(ExportConfig(format="ms-tcn", features_dir=features_dir, out=out))
    assert (out / "mapping.txt").exists()


def test_a_link_to_an_empty_folder_is_followed(features_dir: Path) -> None:
    (features_dir.parent / "real").mkdir()
    (features_dir.parent / "link").symlink_to(features_dir.parent / "real")
    export(ExportConfig(format="ms-tcn", features_dir=features_dir, out=features_dir.parent / "link"))
    assert (features_dir.parent / "real/mapping.txt").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_failure_while_writing_leaves_nothing(features_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(features_dir.parent)
    read = FeatureFile.features

    def fail_at_last_video(file: FeatureFile, *arguments: object, **options: object) -> object:
        if file.video_id == "1100_1":
            raise OSError(28, "No space left on device")
        return read(file, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureFile, "features", fail_at_last_video)
    code, output = invoke(form, features_dir, features_dir.parent / OUT_NAMES[form])
    assert code == 2
    assert "No space left on device" in output
    assert snapshot(features_dir.parent) == before
    assert [path.name for path in features_dir.parent.iterdir()] == ["features"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupt_leaves_nothing(features_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_class(FORMATS[form]), "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(ExportConfig(format=form, features_dir=features_dir, out=features_dir.parent / OUT_NAMES[form]))
    assert [path.name for path in features_dir.parent.iterdir()] == ["features"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_does_not_read_back_is_not_kept(features_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = job_class(FORMATS[form]).write

    def write_all_but_one_byte(job: object, target: Path, advance: object) -> None:
        write(job, target, advance)  # type: ignore[arg-type]
        files = sorted(path for path in target.rglob("*") if path.is_file()) if target.is_dir() else [target]
        victim = next((path for path in files if path.suffix in (".npy", ".pkl", ".csv")), files[0])
        victim.write_bytes(victim.read_bytes()[: -1 if victim.suffix != ".csv" else -1_000])

    monkeypatch.setattr(job_class(FORMATS[form]), "write", write_all_but_one_byte)
    with pytest.raises(SpatialfeatError, match="reading it back found"):
        export(ExportConfig(format=form, features_dir=features_dir, out=features_dir.parent / OUT_NAMES[form]))
    assert [path.name for path in features_dir.parent.iterdir()] == ["features"]


def refuse(features_dir: Path, out: Path, message: str, form: str = "ms-tcn", *options: object) -> None:
    """The command exits with 2, says `message`, and changes nothing on disk."""
    before = snapshot(features_dir.parent)
    code, output = invoke(form, features_dir, out, *options)
    assert code == 2, output
    assert message in " ".join(output.split())
    assert "Traceback" not in output
    assert snapshot(features_dir.parent) == before
    assert not list(features_dir.parent.glob(".*partial*"))


def test_a_full_folder_is_refused(features_dir: Path) -> None:
    out = features_dir.parent / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refuse(features_dir, out, "is not empty; remove it or choose another folder")
    refuse(features_dir, out / "notes.txt", "is a file; remove it")


def test_out_may_not_lie_among_the_features(features_dir: Path) -> None:
    refuse(features_dir, features_dir / "out", "lies in the folder of the feature files")
    refuse(features_dir, features_dir, "lies in the folder of the feature files")


def test_an_unwritable_place_is_reported(features_dir: Path) -> None:
    (features_dir.parent / "file").write_text("x")
    refuse(features_dir, features_dir.parent / "file/out", "cannot be written (File exists: ")


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_reported_before_work(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features_dir = tmp_path / "features"
    make_study(features_dir, longest=20)
    usage = shutil.disk_usage(features_dir)._replace(free=400_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refuse(features_dir, features_dir.parent / f"deep/{OUT_NAMES[form]}", "MB, but 0.4 MB are free there", form)


def test_foreign_files_are_refused(features_dir: Path) -> None:
    (features_dir / "other.h5").write_bytes(b"not HDF5")
    refuse(features_dir, features_dir.parent / "out", "other.h5: is not a whole HDF5 file")


def test_mixed_weights_are_refused(features_dir: Path) -> None:
    make_video(features_dir, "2000_1", [0, 1], weights="b" * 64, num_channels=NUM_CHANNELS)
    refuse(features_dir, features_dir.parent / "out", "2000_1.h5 was made with other weights")


def test_other_phase_names_are_refused(features_dir: Path) -> None:
    make_video(features_dir, "2000_1", [0, 1], phases=("access", "resection", "end"), num_channels=NUM_CHANNELS)
    refuse(features_dir, features_dir.parent / "out", "2000_1.h5 was made with other phase names")


def test_labels_beyond_the_phases_are_refused(features_dir: Path) -> None:
    make_video(features_dir, "2000_1", [0, 3], num_channels=NUM_CHANNELS)
    refuse(features_dir, features_dir.parent / "out", "frame 2000_1_000002 has label 3, which is outside 0..2")


def test_a_missing_or_empty_feature_folder_is_reported(features_dir: Path) -> None:
    out = features_dir.parent / "out"
    refuse(features_dir.parent / "none", out, "no such folder")
    (features_dir.parent / "empty").mkdir()
    refuse(features_dir.parent / "empty", out, "holds no feature file")


def test_unknown_formats_and_values_list_the_known(features_dir: Path) -> None:
    out = features_dir.parent / "out"
    refuse(features_dir, out, "FORMAT nope: must be one of ms-tcn, tecno, npy, hdf5, csv", "nope")
    refuse(features_dir, out, "--unlabelled keep: must be one of refuse, drop, background", "ms-tcn",
           "--unlabelled", "keep")  # fmt: skip
    refuse(features_dir, out, "--val-to x: must be one of own, train, test, drop", "ms-tcn", "--val-to", "x")


def test_options_without_effect_are_refused(features_dir: Path) -> None:
    out = features_dir.parent / "out"
    refuse(features_dir, out, "--folds does nothing for npy, only for ms-tcn", "npy", "--folds", "f.csv")
    refuse(features_dir, out, "--skip-short does nothing for tecno", "tecno", "--skip-short")
    refuse(features_dir, out, "--val-to does nothing with --folds", "ms-tcn", "--folds", "f.csv", "--val-to", "test")
    refuse(features_dir, out, "does nothing without --unlabelled background", "ms-tcn", "--background-name", "idle")


def test_folds_come_from_the_command_line(features_dir: Path) -> None:
    folds = features_dir.parent / "folds.csv"
    folds.write_text("patient,fold\n9,1\n1050,1\n1051,2\n1052,2\n1053,3\n1054,3\n1100,3\n")
    code, output = invoke("ms-tcn", features_dir, features_dir.parent / "out", "--folds", folds)
    assert code == 0, output
    assert "splits/test.split3.bundle  3 videos" in output


def test_an_unfinished_extraction_is_pointed_out(features_dir: Path) -> None:
    (features_dir / "run.json").write_text('{"status": "incomplete"}')
    result = export(ExportConfig(format="ms-tcn", features_dir=features_dir, out=features_dir.parent / "out"))
    assert any("says that the extraction is incomplete" in notice for notice in result.notices)


def test_shards_that_are_missing_are_pointed_out(features_dir: Path) -> None:
    """Of the last extraction only: what an earlier one says is out of date."""
    for age, (name, status) in enumerate(
        [
            ("run.json", "failed"),
            ("run-1of2.json", "failed"),
            ("run-1of3.json", "complete"),
            ("run-3of3.json", "running"),
        ]
    ):
        (features_dir / name).write_text(f'{{"status": "{status}"}}')
        os.utime(features_dir / name, (age, age))
    config = ExportConfig(format="ms-tcn", features_dir=features_dir, out=features_dir.parent / "out")
    notices = [notice for notice in export(config).notices if "says that the extraction is" in notice]
    assert [notice.split("/")[-1].split(":")[0] for notice in notices] == [
        "run-2of3.json says that the extraction is not begun",
        "run-3of3.json says that the extraction is running",
    ]


def peak_bytes(form: str, features_dir: Path, out: Path) -> int:
    gc.collect()
    # Cyclic garbage waits for a collection, and that for as many objects as earlier tests have left; here it is
    # collected at once. Frozen objects, here all that there are by now, are not looked at: many collections stay cheap.
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(200, 1, 1)
    tracemalloc.start()
    try:
        export(ExportConfig(format=form, features_dir=features_dir, out=out))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.set_threshold(*thresholds)


@pytest.mark.parametrize("form", ["ms-tcn", "tecno", "npy", "hdf5"])
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path: Path, form: str) -> None:
    for count in (4, 16):
        for number in range(count):
            split = "train" if number % 2 else "test"
            make_video(tmp_path / f"features{count}", f"{number}_1", [0, 1, 2] * 7, split=split)
    export(ExportConfig(format=form, features_dir=tmp_path / "features4", out=tmp_path / f"warm{OUT_NAMES[form]}"))
    few = peak_bytes(form, tmp_path / "features4", tmp_path / f"few{OUT_NAMES[form]}")
    many = peak_bytes(form, tmp_path / "features16", tmp_path / f"many{OUT_NAMES[form]}")
    # One video is a sixth of a megabyte; what grows is the list of videos.
    assert many < 1.5 * few + 100_000


@pytest.mark.parametrize("form", FORMATS)
def test_the_number_of_channels_is_that_of_the_files(tmp_path: Path, form: str) -> None:
    for video, split in (("1_1", "train"), ("2_1", "train"), ("3_1", "test"), ("4_1", "test")):
        make_video(tmp_path / "features", video, [0, 1, 2], split=split, num_channels=5)
    code, output = invoke(form, tmp_path / "features", tmp_path / OUT_NAMES[form])
    assert code == 0, output
    assert "2048" not in output
    assert re.search(r"\b5\b|\bf4\b", output)
    shapes = {
        "ms-tcn": lambda out: np.load(out / "features/1_1.npy").shape[0],
        "tecno": lambda out: pickle.loads((out / "1.0fps/video_01_1.0fps.pkl").read_bytes())[0].shape[1],
        "npy": lambda out: np.load(out / "features_train/1_1_000001.npy").shape[0],
        "hdf5": lambda out: h5py.File(out)["1_1/features"].shape[1],
        "csv": lambda out: len((out / "1_1.csv").read_text().splitlines()[0].split(",")) - 2,
    }
    assert shapes[form](tmp_path / OUT_NAMES[form]) == 5


@pytest.mark.parametrize("form", ["ms-tcn", "npy", "hdf5", "csv"])
def test_long_videos_are_read_in_blocks(features_dir: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatialfeat.exports.source.FRAMES_PER_BLOCK", 16)
    read, longest = FeatureFile.features, 0

    def count(file: FeatureFile, start: int = 0, stop: int | None = None, *, axes: str) -> object:
        nonlocal longest
        longest = max(longest, (file.num_frames if stop is None else stop) - start)
        return read(file, start, stop, axes=axes)

    monkeypatch.setattr(FeatureFile, "features", count)
    export(ExportConfig(format=form, features_dir=features_dir, out=features_dir.parent / OUT_NAMES[form]))
    assert longest == 16


def test_every_array_is_read_once_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "features", "1_1", [0, -100, 2])
    read: list[str] = []
    whole = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *values: (read.append(values[0].name), whole(*values))[1])
    config = ExportConfig(format="hdf5", features_dir=tmp_path / "features", out=tmp_path / "out.h5", unlabelled="drop")
    export(config)
    counts = {name: read.count(f"/{name}") for name in ("labels", "segment", "frame", "logits", "features")}
    # Labels are also read before anything is written, to check them.
    assert counts == {"labels": 2, "segment": 1, "frame": 1, "logits": 1, "features": 1}
