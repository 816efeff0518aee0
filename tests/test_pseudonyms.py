"""--pseudonymize: no real patient id in any output, the same pseudonyms in every run, and a map that is kept apart."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_folders import make_video
from networks import network
from tinydata import write_csv, write_images

from spatialfeat.config import ExportConfig, ExtractConfig
from spatialfeat.data.frames import read_frames
from spatialfeat.data.pseudonyms import open_pseudonyms
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.extract import extract
from spatialfeat.features.folder import read_features
from spatialfeat.network.resnet import PhaseResNet50
from spatialfeat.network.weights import save_weights, snapshot

PATIENTS = ("Zebra77", "Quokka4")


def read_map(path: Path) -> dict[str, str]:
    header, *rows = path.read_text().splitlines()
    assert header == "patient_id,pseudonym"
    return dict(row.split(",") for row in rows)


def open_map(path: Path, *patients: str) -> dict[str, str]:
    return dict(open_pseudonyms(path, list(patients), outputs=[path.parent / "out"]).of_patient)


def assert_no_patient_in(tree: Path) -> None:
    for path in tree.rglob("*"):
        for patient in PATIENTS:
            assert patient not in str(path.relative_to(tree))
            assert path.is_dir() or patient.encode() not in path.read_bytes(), path


def test_a_new_map_belongs_to_its_owner_alone_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    first = open_map(path, "1050", "9", "1051")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_map(path) == first
    assert all(len(name) == 7 and name[0] == "P" and name[1:].isdigit() for name in first.values())
    assert open_map(path, "9") == first
    path.chmod(0o640)
    second = open_map(path, "9", "2000")
    assert second == first | {"2000": second["2000"]} == read_map(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [found.name for found in tmp_path.iterdir()] == ["map.csv"]


def test_a_map_that_was_saved_with_semicolons_grows_with_commas(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_bytes(b"\xef\xbb\xbfpatient_id;pseudonym\r\n1050;P473920\r\n")
    found = open_map(path, "1050", "9")
    assert found == {"1050": "P473920", "9": found["9"]} == read_map(path)


def test_pseudonyms_say_nothing_of_the_order(tmp_path: Path) -> None:
    patients = [str(number) for number in range(30)]
    names = list(open_map(tmp_path / "map.csv", *patients).values())
    assert names != sorted(names)


def _add(path: Path, patients: list[str]) -> None:
    for patient in patients:
        open_map(path, patient)


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    path, context = tmp_path / "map.csv", multiprocessing.get_context("fork")
    shared = [f"s{number}" for number in range(15)]
    runs = [context.Process(target=_add, args=(path, [*shared, f"own{run}"])) for run in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    found = read_map(path)
    assert set(found) == {*shared, "own0", "own1", "own2"}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1050,A\n1051,A\n", "row 3: pseudonym A is there twice"),
        ("1050,P1\n1051,p01\n", "row 3: pseudonym p01 is there twice"),
        ("1050,A\n1050,B\n", "row 3: patient_id 1050 is there twice"),
        ("1050,A\n01050,B\n", "row 3: patient_id 01050 is there twice"),
        ("1050,A_1\n", "row 2: pseudonym 'A_1' cannot be part of an id"),
        ("1050,../A\n", r"row 2: pseudonym '\.\./A' cannot be part of an id"),
        ("1050,\n", "row 2: pseudonym '' cannot be part of an id"),
        ("../1050,A\n", r"row 2: patient_id '\.\./1050' cannot be part of an id"),
        ("=1050,A\n", "row 2: patient_id '=1050' cannot be part of an id"),
        ("1050,1051\n", "patient 1051 is also the pseudonym of 1050"),
        ("1050,1052\n1052,A\n", "patient 1052 is also the pseudonym of 1050"),
        ("01051,A\n", "patient 1051 is written 01051 there; use one spelling"),
    ],
)
def test_a_map_that_would_mix_patients_up_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "map.csv"
    path.write_text(f"patient_id,pseudonym\n{content}")
    with pytest.raises(SpatialfeatError, match=message):
        open_map(path, "1050", "1051")
    assert path.read_text() == f"patient_id,pseudonym\n{content}"


def test_other_files_and_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("patient_id,pseudonym,name\n1050,A,x\n")
    with pytest.raises(SpatialfeatError, match="has other columns than patient_id,pseudonym"):
        open_map(path, "1050")
    with pytest.raises(SpatialfeatError, match="cannot be read or written"):
        open_map(tmp_path / "gone" / "map.csv", "1050")
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link.csv").symlink_to(out / "map.csv")
    for inside in (out / "map.csv", out / "deep" / "map.csv", tmp_path / "link.csv"):
        with pytest.raises(SpatialfeatError, match="keep it in another folder"):
            open_pseudonyms(inside, ["1050"], outputs=[out])
    assert not list(out.iterdir())


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for frames of 64 px."""
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    size = Preprocessing.for_image_size(64)
    with network(small=True):
        save_weights(path, snapshot(PhaseResNet50(2)), phase_names=("a", "b"), preprocessing=size, training={})
    return path


@pytest.fixture
def config(tmp_path: Path, small_weights: Path, small_network: None) -> ExtractConfig:
    """Two segments of Zebra77, one of Quokka4, two frames each; one CSV per split."""
    ids = {
        "train": ["Zebra77_1_1", "Zebra77_1_2", "Zebra77_2_1", "Zebra77_2_2"],
        "test": ["Quokka4_1_1", "Quokka4_1_2"],
    }
    for split, names in ids.items():
        path = write_csv(tmp_path / f"{split}.csv", [(name, number % 2) for number, name in enumerate(names)])
        write_images(read_frames(path, tmp_path / "images", split=split))
    return ExtractConfig(
        csvs=(f"{tmp_path}/train.csv", f"{tmp_path}/test.csv"),
        img_dir=tmp_path / "images",
        weights=small_weights,
        out_dir=tmp_path / "features",
        workers=0,
        device="cpu",
        pseudonymize=tmp_path / "map.csv",
    )


def test_extract(config: ExtractConfig, tmp_path: Path) -> None:
    result = extract(config)
    names = read_map(tmp_path / "map.csv")
    zebra, quokka = (names[patient] for patient in PATIENTS)
    assert sorted(result.written) == sorted([f"{zebra}_1", f"{zebra}_2", f"{quokka}_1"])
    assert_no_patient_in(config.out_dir)
    plain = replace(config, pseudonymize=None, out_dir=tmp_path / "plain")
    extract(plain)
    for real, hidden in ((f"{PATIENTS[0]}_2", f"{zebra}_2"), (f"{PATIENTS[1]}_1", f"{quokka}_1")):
        with h5py.File(plain.out_dir / f"{real}.h5") as one, h5py.File(config.out_dir / f"{hidden}.h5") as other:
            for name in ("features", "logits", "labels", "segment", "frame"):
                np.testing.assert_array_equal(one[name][()], other[name][()])
            assert other["frame_ids"].asstr()[()].tolist() == [f"{hidden}_1", f"{hidden}_2"]
            assert (other.attrs["video_id"], other.attrs["patient_id"]) == (hidden, hidden[:-2])
            assert other.attrs["split"] == one.attrs["split"]
            assert other.attrs["pseudonymized"] == "yes"
            assert "pseudonymized" not in one.attrs
    # A second run finds the pseudonymized files, and computes nothing again.
    assert extract(config).written == []
    # Plain and pseudonymized files are not mixed, nor those of two maps.
    for other_config, message in (
        (replace(plain, out_dir=config.out_dir), "was made with --pseudonymize, and this run is without"),
        (replace(config, out_dir=plain.out_dir), "is no pseudonym of"),
        (replace(config, pseudonymize=tmp_path / "map2.csv"), "is no pseudonym of"),
    ):
        with pytest.raises(SpatialfeatError, match=message):
            extract(other_config)
    (plain.out_dir / f"{zebra}_1.h5").write_bytes((config.out_dir / f"{zebra}_1.h5").read_bytes())
    with pytest.raises(SpatialfeatError, match=r"was made with --pseudonymize, \w+\.h5 without"):
        read_features(plain.out_dir)


def test_a_failure_does_not_tell_the_patient(config: ExtractConfig) -> None:
    (config.img_dir / "Zebra77_1_2.png").write_bytes(b"no image")
    result = extract(config)
    (reason,) = result.failed.values()
    assert "Zebra77_1_2.png" in reason  # On the terminal; whoever runs this has the images.
    assert_no_patient_in(config.out_dir)
    record = json.loads((config.out_dir / "run.json").read_text())
    assert record["status"] == "incomplete"
    assert record["options"]["batch_size"] == 32


@pytest.fixture
def features_dir(tmp_path: Path) -> Path:
    for video, split in (("Zebra77_1", "train"), ("Zebra77_2", "train"), ("Quokka4_1", "test"), ("Quokka4_2", "test")):
        make_video(tmp_path / "features", video, [0, 1, 2, 2], split=split, num_channels=64)
    return tmp_path / "features"


@pytest.mark.parametrize("group_by", ["video", "patient"])
@pytest.mark.parametrize("form", ["ms-tcn", "tecno", "npy", "hdf5", "csv"])
def test_export(features_dir: Path, tmp_path: Path, form: str, group_by: str) -> None:
    out = tmp_path / "tree" / ("all.h5" if form == "hdf5" else "surgery")
    small = {"allow_small_bundles": True} if form == "ms-tcn" else {}
    config = ExportConfig(format=form, features_dir=features_dir, out=out, group_by=group_by, **small)
    export(replace(config, pseudonymize=tmp_path / "map.csv"))
    assert_no_patient_in(tmp_path / "tree")
    found = b"".join(path.read_bytes() + path.name.encode() for path in (tmp_path / "tree").rglob("*.[a-z]*"))
    for pseudonym in read_map(tmp_path / "map.csv").values():
        assert pseudonym.encode() in found


def test_folds_hold_the_ids_of_the_feature_files(features_dir: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds.csv"
    folds.write_text("patient,fold\nZebra77,1\nQuokka4,2\n")
    out = tmp_path / "tree" / "surgery"
    export(
        ExportConfig(
            format="ms-tcn", features_dir=features_dir, out=out, folds=folds, pseudonymize=tmp_path / "map.csv"
        )
    )
    assert_no_patient_in(out)
    zebra = read_map(tmp_path / "map.csv")["Zebra77"]
    assert sorted((out / "splits/test.split1.bundle").read_text().split()) == [f"{zebra}_1.txt", f"{zebra}_2.txt"]


def test_export_refuses_a_map_among_the_features_and_a_second_pseudonym(
    features_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(format="npy", features_dir=features_dir, out=tmp_path / "out")
    with pytest.raises(SpatialfeatError, match="keep it in another folder"):
        export(replace(config, pseudonymize=features_dir / "map.csv"))
    (tmp_path / "map.csv").write_text("patient_id,pseudonym\n1050,Zebra77\n")
    with pytest.raises(SpatialfeatError, match=r"or leave --pseudonymize out if the ids are pseudonyms already"):
        export(replace(config, pseudonymize=tmp_path / "map.csv"))
    # Also with a map that has never seen the pseudonyms.
    copied = shutil.copytree(features_dir, tmp_path / "pseudonymized")
    for path in copied.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["pseudonymized"] = "yes"
    read: list[str] = []
    whole = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *values: (read.append(values[0].name), whole(*values))[1])
    with pytest.raises(SpatialfeatError, match="is pseudonymized already; leave the option out"):
        export(replace(config, features_dir=copied, pseudonymize=tmp_path / "new.csv"))
    assert set(read) == {"/labels"}  # An attribute says it: neither ids nor features are read for that.
    assert not (tmp_path / "new.csv").exists()
