"""split as a person meets it: the folders, what the terminal shows, mistakes, and the way to MS-TCN."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import h5py
import pytest
from feature_folders import make_video
from PIL import Image
from tinydata import write_csv
from typer.testing import CliRunner, Result

from spatialfeat.cli import app
from spatialfeat.config import ExportConfig, SplitConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.split import split

pytestmark = pytest.mark.usefixtures("no_drawing")

NAMES = ("train_ResNet_DB.csv", "val_ResNet_DB.csv", "test_ResNet_DB.csv")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with all.csv: ten patients of two videos, four frames each; and images/, which is empty."""
    rows = [
        (f"{patient}_{video}_{frame:03d}", frame % 3)
        for patient in range(1, 11)
        for video in (1, 2)
        for frame in range(4)
    ]
    write_csv(tmp_path / "all.csv", rows)
    (tmp_path / "images").mkdir()
    return tmp_path


def rows_of(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")[1:-1]


def patients_of(path: Path) -> set[str]:
    return {row.split("_")[0] for row in rows_of(path)}


def test_one_division(data: Path) -> None:
    result = run("split", data / "all.csv", data / "study", "--val", "0.2", "--test", "0.3")
    assert result.exit_code == 0, result.output
    study = data / "study"
    assert sorted(path.name for path in study.iterdir()) == sorted(
        [*NAMES, "images", "patients.csv", "run.json", "split.png", "split.svg"]
    )
    assert [len(patients_of(study / name)) for name in NAMES] == [5, 2, 3]
    assert sorted(row for name in NAMES for row in rows_of(study / name)) == sorted(rows_of(data / "all.csv"))
    assert (study / "images").readlink() == Path("../images")
    with (study / "patients.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [row["patient"] for row in listed] == [str(patient) for patient in range(1, 11)]
    for row in listed:
        assert row["patient"] in patients_of(study / f"{row['split']}_ResNet_DB.csv")
        assert row["frames"] == "8"
    assert "--img-dir" not in result.output.partition("Next:")[2]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["", "patients", "videos", "rows", "labelled", "share", "asked"][1:] in lines
    assert ["train", "5", "10", "40", "40", "50.0%", "50.0%"] in lines
    assert ["test", "3", "6", "24", "24", "30.0%", "30.0%"] in lines
    assert ["label", "phase", "videos", "frames", "train", "val", "test"] in lines
    frames = [word for count in (40, 20, 8, 12) for word in (str(count), "(50.0%)")]
    assert ["0", "phase_0", "20", *frames] in lines
    record = json.loads((study / "run.json").read_text())
    assert (record["status"], record["command"]) == ("complete", "split")
    assert [(part["split"], part["num_patients"]) for part in record["parts"]] == [
        ("train", 5),
        ("val", 2),
        ("test", 3),
    ]


def test_folds(data: Path) -> None:
    result = run("split", data / "all.csv", data / "cv", "--folds", "5", "--phase-names", "cut,sew,close it")
    assert result.exit_code == 0, result.output
    folds = [data / "cv" / f"fold{number}" for number in range(1, 6)]
    tested = [patients_of(fold / NAMES[2]) for fold in folds]
    assert sorted(patient for patients in tested for patient in patients) == sorted(map(str, range(1, 11)))
    for fold, own in zip(folds, tested, strict=True):
        others = [patients_of(fold / name) for name in NAMES[:2]]
        assert [len(others[0]), len(others[1]), len(own)] == [6, 2, 2]
        assert others[0] | others[1] | own == set(map(str, range(1, 11)))
        rows = [row for name in NAMES for row in rows_of(fold / name)]
        assert sorted(rows) == sorted(rows_of(data / "all.csv"))
        assert (fold / "images").readlink() == Path("../../images")
        assert (fold / "phase_names.txt").read_text() == "cut\nsew\nclose it\n"
    with (data / "cv" / "folds.csv").open() as file:
        fold_of = {row["patient"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert {patient: number for number, own in enumerate(tested, start=1) for patient in own} == fold_of
    assert f"cd {folds[0]} && spatialfeat check && spatialfeat finetune && " in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["fold3", "val", "2", "4", "16", "16", "20.0%", "20.0%"] in lines
    assert ["2", "close", "it", "20", "20", "(25.0%)", *["4", "(25.0%)"] * 5] in lines


def test_names_beside_the_csv_are_taken_and_handed_on(data: Path) -> None:
    (data / "phase_names.txt").write_text("0 cut\n1 sew\n2 close it\n")
    result = run("split", data / "all.csv", data / "study")
    assert f"phases: the 3 names in {data / 'phase_names.txt'}" in result.stdout
    assert (data / "study" / "phase_names.txt").read_text() == "cut\nsew\nclose it\n"


def test_many_folds_are_summed_up_on_the_terminal(data: Path) -> None:
    result = run("split", data / "all.csv", data / "cv", "--folds", "10", "--val", "0.1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["label", "phase", "videos", "frames", "lowest", "median", "highest", "of", "10", "folds"] in lines
    assert ["1", "phase_1", "20", "20", "(25.0%)", "25.0%", "25.0%", "25.0%"] in lines
    assert ["fold10", "test", "1", "2", "8", "8", "10.0%", "10.0%"] in lines


@pytest.mark.usefixtures("drawing")
def test_the_picture_shows_patients_and_phases(data: Path) -> None:
    run("split", data / "all.csv", data / "cv", "--folds", "5", "--phase-names", "cut,sew,close it")
    with Image.open(data / "cv" / "split.png") as image:
        image.load()
    root = ElementTree.parse(data / "cv" / "split.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for number in range(1, 6):
        assert f"fold{number}" in texts
        assert f"fold{number}: 16 frames" in texts
    assert texts.count("2 patients, 20.0%") == 5
    assert {"cut", "sew", "close it"} <= set(texts)
    assert texts.count("50.0%  8") == 5


@pytest.mark.usefixtures("drawing")
def test_the_same_seed_gives_the_same_files(data: Path) -> None:
    for name in ("a", "b"):
        run("split", data / "all.csv", data / name, "--folds", "3", "--seed", "7")
    files = {path.relative_to(data / "a"): path for path in (data / "a").rglob("*") if path.is_file()}
    assert len(files) == 13
    for name, path in files.items():
        if name.name != "run.json":
            assert path.read_bytes() == (data / "b" / name).read_bytes(), name


TEXTS = [
    'id,label,note,patient',
    '1_1_1, 0,"a, ""b""",x',
    "1_1_2,,plain,x",
    '2_1_1,-1,"two\nlines",y',
    "2_1_2,+1,=1+1,y",
    "",
    "3_1_01,-100,,z",
    " 3_1_2,1, blank ,z",
]  # fmt: skip


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_are_copied_as_they_stand(tmp_path: Path, line_end: str, mark: str) -> None:
    """Quotes, blanks, other columns, rows without a label: all as in the file; only the line ends become LF."""
    (tmp_path / "all.csv").write_bytes((mark + line_end.join(TEXTS)).encode())
    result = run("split", tmp_path / "all.csv", tmp_path / "study")
    assert result.exit_code == 0, result.output
    contents = [(tmp_path / "study" / name).read_bytes().decode() for name in NAMES]
    assert all(content.startswith(TEXTS[0] + "\n") and content.endswith("\n") for content in contents)
    pieces = sorted(content.removeprefix(TEXTS[0] + "\n") for content in contents)
    wanted = ["\n".join(TEXTS[first : first + 2]) + "\n" for first in (1, 3)] + ["\n".join(TEXTS[6:]) + "\n"]
    assert pieces == sorted(wanted)
    assert "3 rows without a label: kept" in result.output
    assert f"no folder {tmp_path / 'images'}: pass --img-dir" in result.output
    next_steps = " ".join(result.output.partition("Next:")[2].split())
    assert next_steps.count("--img-dir FOLDER") == 3  # check, finetune and extract.
    assert "with the whole path of the frames' folder for FOLDER" in next_steps


def test_no_test_set(data: Path) -> None:
    run("split", data / "all.csv", data / "study", "--test", "0", "--val", "0.3")
    assert not (data / "study" / NAMES[2]).exists()
    assert [len(patients_of(data / "study" / name)) for name in NAMES[:2]] == [7, 3]


def test_what_cannot_be_as_asked_is_said(tmp_path: Path) -> None:
    rows = [(f"1_1_{frame}", 0) for frame in range(50)] + [(f"{patient}_1_1", 1) for patient in (2, 3, 4)]
    write_csv(tmp_path / "all.csv", rows)
    result = run("split", tmp_path / "all.csv", tmp_path / "study")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "warning: val: no frame of phase 0 (phase_0): too few patients have it" in said
    assert "the longest, 1, has 94% of all labelled frames" in said
    assert "train 96% of the frames instead of 60%" in said


MISTAKES = [
    (["--val", "0"], "--val 0: must lie between 0 and 1"),
    (["--val", "0.5", "--test", "0.5"], "--val 0.5 and --test 0.5: leave nothing to train on"),
    (["--val", "0.5", "--folds", "2"], "--val 0.5 and --folds 2: leave nothing to train on"),
    (["--test", "-1"], "--test -1: must be at least 0"),
    (["--folds", "1"], "--folds 1: must be at least 2"),
    (["--folds", "5", "--test", "0.2"], "--test does nothing with --folds 5"),
    (["--folds", "11"], "has 10 patients with labelled frames, too few for 11 folds"),
    (["--img-dir", "nowhere"], "--img-dir nowhere: no such folder"),
    (["--phase-names", "a,b"], "all.csv row 4: label 2 is outside 0..1"),
    (["--seed", "-1"], "--seed -1: must be at least 0"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_leave_nothing(data: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    before = sorted(data.iterdir())
    result = run("split", "all.csv", "out", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert sorted(data.iterdir()) == before


def test_a_label_that_can_only_be_a_slip(tmp_path: Path) -> None:
    write_csv(tmp_path / "all.csv", [("1_1_1", 0), ("2_1_1", 3000000000000)])
    result = run("split", tmp_path / "all.csv", tmp_path / "study")
    assert result.exit_code == 2
    assert "all.csv row 3: label 3000000000000 is outside 0..999" in result.output


def test_nothing_is_overwritten(data: Path) -> None:
    (data / "out").mkdir()
    (data / "out" / "mine.txt").write_text("mine")
    for place, what in (("out", "is not empty"), ("all.csv", "is a file")):
        with pytest.raises(SpatialfeatError, match=f"OUT .*{place}: {what}; remove it or choose another folder"):
            split(SplitConfig(csv=data / "all.csv", out=data / place))
    assert [path.name for path in (data / "out").iterdir()] == ["mine.txt"]


def test_a_disk_without_links_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    result = run("split", data / "all.csv", data / "study")
    assert result.exit_code == 0
    assert "this disk has no links; pass --img-dir" in result.output
    # The commands go to the study's folder first.
    assert result.output.partition("Next:")[2].count(f"--img-dir {data.resolve() / 'images'}") == 3


def test_a_failure_leaves_no_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(data.iterdir())
    monkeypatch.setattr("spatialfeat.split.save_figure", fail)
    result = run("split", data / "all.csv", data / "study")
    assert result.exit_code == 2
    assert "study: No space left on device" in result.output
    assert sorted(data.iterdir()) == before


@pytest.mark.usefixtures("small_network")
def test_from_one_csv_to_the_bundles_of_a_fold(demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/training.md for one of three folds, with what makes them quick."""
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    block = page.partition("## Cross-validation")[2].partition("```bash\n")[2].partition("```")[0]
    commands = [found.split() for found in re.findall("spatialfeat ([^&)\n]+)", block.replace("$k", "3"))]
    assert [command[0] for command in commands] == ["split", "finetune", "extract", "export"]
    quick = ["--device", "cpu", "--workers", "0"]
    more = {
        "split": ["--folds", "3", "--img-dir", str(demo_dir / "images")],
        "finetune": [*quick, "--weights", "random", "--epochs", "1", "--image-size", "64", "--no-tensorboard"],
        "extract": quick,
        "export": ["--allow-small-bundles"],
    }
    rows = [row for name in NAMES for row in rows_of(demo_dir / name)]
    (tmp_path / "all_ResNet_DB.csv").write_text("id,label\n" + "".join(f"{row}\n" for row in rows))
    for command in commands:
        monkeypatch.chdir(tmp_path if command[0] == "split" else tmp_path / "cv" / "fold3")
        result = run(*command, *more[command[0]])
        assert result.exit_code == 0, result.output
    assert set(json.loads(Path("run.json").read_text())["data_sha256"]) == set(NAMES)
    own = json.loads(Path("best_spatial_study_weights.json").read_text())["weights_sha256"]
    for part, name in zip(("train", "val", "test"), NAMES, strict=True):
        bundle = Path(f"surgery_fold3/splits/{part}.split1.bundle").read_text().split()
        assert {video.split("_")[0] for video in bundle} == patients_of(Path(name))
        with h5py.File(Path("features") / bundle[0].replace(".txt", ".h5")) as file:
            assert (file.attrs["split"], file.attrs["weights_sha256"]) == (part, own)
    # The folds of the whole cross-validation fit these files, too, but of this backbone only one test set is honest.
    result = run("export", "ms-tcn", "features", "all_folds", "--folds", "../folds.csv", "--allow-small-bundles")
    assert result.exit_code == 0, result.output
    assert "if the network was trained on them, scores will be too good" in " ".join(result.output.split())
    tested = Path("all_folds/splits/test.split3.bundle").read_text()
    assert tested == Path("surgery_fold3/splits/test.split1.bundle").read_text()


def test_folds_of_features_that_nobody_trained_on_need_no_warning(tmp_path: Path) -> None:
    for video in ("1_1", "1_2", "2_1", "2_2"):
        make_video(tmp_path / "features", video, [0, 1], split="test")
    (tmp_path / "folds.csv").write_text("patient,fold,frames\n1,1,4\n2,2,4\n")
    config = ExportConfig(
        format="ms-tcn", features_dir=tmp_path / "features", out=tmp_path / "surgery", folds=tmp_path / "folds.csv"
    )
    assert not any("too good" in notice for notice in export(config).notices)
