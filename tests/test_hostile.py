"""Files and names from strangers, by attack: nothing is run, nothing is written elsewhere, no memory is filled."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from feature_folders import make_video
from tinydata import make_header, write_csv, write_feature_file
from typer.testing import CliRunner

import spatialfeat
from spatialfeat.cli import app
from spatialfeat.config import ExportConfig
from spatialfeat.console import BarSafeHandler
from spatialfeat.data.frames import read_frames
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.features.file import FeatureFile
from spatialfeat.files import read_json_object
from spatialfeat.files import write_csv as write_csv_frame
from spatialfeat.names import for_terminal, name_problem, spreadsheet_cell
from spatialfeat.network.tensorfiles import convert_exactly
from spatialfeat.network.weights import description_path, load_checkpoint, read_description
from spatialfeat.phases import check_phase_names

PACKAGE = Path(spatialfeat.__file__).parent

# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame_id", "reason"),
    [
        ("../../x_1", "starts with a dot"),
        ("a\\..\\x_1", "holds a slash"),
        ("..", "starts with a dot"),
        (".hidden_1", "starts with a dot"),
        ("=HYPERLINK(1)_1_1", "takes it for a formula"),
        ("+1_1_1", "takes it for a formula"),
        ("-rf_1", "takes it for a formula"),
        ("@SUM_1_1", "takes it for a formula"),
        ("\uff1d1_1_1", "takes it for a formula"),
        ("a;=1+1_1", "takes it for a formula"),
        ("a\tb_1", "cannot be seen"),
        ("a\x1b[2J_1", "cannot be seen"),
        ("a\x9b31m_1", "cannot be seen"),
        ("a\u202eb_1", "cannot be seen"),
        ("a\u200bb_1", "cannot be seen"),
        ("a\u2028b_1", "cannot be seen"),
        ("é" * 120 + "_1", "is longer than 200 bytes"),
        ("a _1", "has a blank at one of its ends"),
        ("a1 _1_1", "has a blank at one of its ends"),
        ("a/../x_1", "starts with a dot"),
        ("a/=1_1", "takes it for a formula"),
        ("a//x_1", "is empty"),
        ("a/" * 120 + "x_1", "is longer than 200 bytes"),
    ],
)
def test_ids(tmp_path: Path, frame_id: str, reason: str) -> None:
    path = write_csv(tmp_path / "train.csv", [("1_1_1", 0)])
    path.write_text(path.read_text() + f'"{frame_id}",1\n', encoding="utf-8")
    with pytest.raises(SpatialfeatError, match=rf"row 3: .*cannot be a file name: it .*{reason}") as caught:
        read_frames(path, tmp_path, split="train")
    assert len(str(caught.value)) < 400


def test_ids_that_are_fine(tmp_path: Path) -> None:
    ids = ["1050_1_000001", "case-A_b_1", "Fall 3 (links)_2", "ärztin.7_1_3", "患者_1_4"]
    table = read_frames(write_csv(tmp_path / "train.csv", [(name, 0) for name in ids]), tmp_path, split="train")
    assert table.ids.tolist() == ids


@pytest.mark.parametrize("other", ["VIDEO1_2", "vIdeo1_2", "video\uff11_2", "\uff56ideo1_2"])
def test_two_ids_that_one_disk_may_take_for_one(tmp_path: Path, other: str) -> None:
    path = write_csv(tmp_path / "train.csv", [("video1_1", 0), (other, 0)])
    with pytest.raises(SpatialfeatError, match="written differently"):
        read_frames(path, tmp_path, split="train")


def test_phase_names() -> None:
    for name in ("a\x1b]0;x\x07", "a\nb", "a\u202eb", "x" * 300, "a\x9bb"):
        with pytest.raises(SpatialfeatError, match="every name must be present and unique") as caught:
            check_phase_names(("nasal", name), 2)
        assert str(caught.value).isprintable()
    check_phase_names(("Tränen", "a\u200cb"), 2)


# --- CSV, terminal -------------------------------------------------------------------------------------------------


def test_cells_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    texts = [
        "=1+1",
        "+x",
        "-x",
        "@x",
        "\t=1",
        "\r=1",
        " =1",
        "a;=1",
        "=cmd|' /C calc'!A0",
        '"=1',
        "-0.5",
        "+3e-4",
        "a-b",
    ]
    frame = pd.DataFrame({"name": texts, "score": np.linspace(-0.5, 1, len(texts)), "=head": range(len(texts))})
    write_csv_frame(tmp_path / "x.csv", frame)
    header, *rows = csv.reader(io.StringIO((tmp_path / "x.csv").read_bytes().decode("utf-8"), newline=""))
    assert header == ["name", "score", "'=head"]
    cells = [row[0] for row in rows]
    assert cells[:4] == ["'=1+1", "'+x", "'-x", "'@x"]
    assert cells[7:9] == ["a;'=1", "'=cmd|' /C calc'!A0"]
    assert cells[-3:] == ["-0.5", "+3e-4", "a-b"]
    assert not any(cell.lstrip().lstrip('"').startswith(("=", "@")) for cell in cells)
    assert rows[0][1] == "-0.5"
    assert spreadsheet_cell(-0.5) == -0.5


def test_a_phase_name_that_is_a_formula(tmp_path: Path) -> None:
    rows = "".join(f"1_1_{number},{number % 2},{number % 2}\n" for number in range(1, 9))
    (tmp_path / "p.csv").write_text(f"img_id,true_label,predicted_label\n{rows}")
    names = "=2+5,@SUM(A1)"
    arguments = ["evaluate", "--predictions", str(tmp_path / "p.csv"), "--phase-names", names, "--bootstrap", "0"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    table = list(csv.DictReader((tmp_path / "out/per_phase.csv").open(encoding="utf-8")))
    assert [row["name"] for row in table] == ["'=2+5", "'@SUM(A1)"]


def test_terminals_get_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord(
        "spatialfeat", logging.INFO, "", 0, "video %s\nnext\tline", ("\x1b[2J\x9b1m\r\u202e",), None
    )
    BarSafeHandler().emit(record)
    assert capsys.readouterr().out == "video \\x1b[2J\\x9b1m\\r\\u202e\nnext\tline\n"
    result = CliRunner().invoke(app, ["info", "no\x1b[31mfolder"])
    assert (result.exit_code, "\x1b" in result.output) == (2, False)
    assert for_terminal("\udc80") == "\\udc80"


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase_names": ["a", "b\x1b[2J"]}, "holds a character that cannot be seen"),
        ({"phase_names": "ab"}, "phase_names is no list of texts"),
        ({"phase_names": [1, 2]}, "phase_names is no list of texts"),
        ({"phase_names": ["a"]}, "1 names for 2 phases"),
        ({"preprocessing": 3}, "unknown preprocessing"),
        ({"preprocessing": {"resize_px": 10**9}}, "are not 1 to 10000 pixels"),
        ({"preprocessing": {"crop_px": "224"}}, "are not 1 to 10000 pixels"),
        ({"preprocessing": {"interpolation": ["x"]}}, "is unknown"),
        ({"preprocessing": {"mean": [0, float("nan"), 0]}}, "is not three finite numbers"),
        ({"preprocessing": {"std": [0, 0, 0]}}, "is not three finite numbers"),
        ({"preprocessing": {"x" * 10: 1}}, "unknown preprocessing"),
    ],
)
def test_descriptions(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "w.pth"
    good = {"schema": 1, "num_classes": 2, "phase_names": ["a", "b"], "weights_sha256": "a" * 64,
            "preprocessing": Preprocessing().as_dict()}  # fmt: skip
    description_path(path).write_text(json.dumps(good | change))
    with pytest.raises(SpatialfeatError, match=message) as caught:
        read_description(path, "a" * 64, 2)
    assert str(caught.value).startswith(str(description_path(path)))


def test_deep_and_odd_json(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a": ' + "9" * 5000 + "}", "[]"):
        path.write_text(text)
        assert read_json_object(path) == {}


# --- weights -------------------------------------------------------------------------------------------------------


def test_a_zip_bomb(tmp_path: Path) -> None:
    """Small files that unpack to much more: packed records, and records that all lie on the same bytes."""
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(SpatialfeatError, match="would unpack to 50000000 bytes and is not loaded for safety"):
        load_checkpoint(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/data.pkl", b"x" * 20_000)
        archive.filelist *= 50
    path.write_bytes(buffer.getvalue())
    with pytest.raises(SpatialfeatError, match="would unpack to 1000000 bytes"):
        load_checkpoint(path)


def test_a_record_that_is_shorter_than_its_tensor(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "w.pth"
    torch.save({"fc.weight": torch.zeros(1 << 20)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"1234" if name.endswith("data/0") else source.read(name))
    with pytest.raises(SpatialfeatError, match="is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.zeros(1).expand(2**40, 2048)}, "is declared as .* but the file holds less"),
        ({"fc.weight": torch.zeros(2, dtype=torch.complex64)}, "is of type torch.complex64"),
        ({"fc.weight": torch.zeros(2, dtype=torch.bool)}, "is of type torch.bool"),
        ({"fc.weight": torch.zeros(2).to_sparse()}, "is sparse"),
        ({"fc.weight": torch.zeros(2, device="meta")}, "is on the device meta, without its numbers"),
        ({7: torch.zeros(2)}, "a tensor's name is '7', not a text"),
        ({"x" * 5000: torch.zeros(2).to_sparse()}, "x' is sparse"),
        ({"fc.weight": torch.zeros(0, 2048), "fc.bias": torch.zeros(0)}, "its classifier has 0 rows"),
        ({"fc.weight": {"a": [{}]}}, "is not a plain state dict"),
    ],
)
def test_odd_tensors(tmp_path: Path, content: dict[Any, Any], message: str, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SpatialfeatError, match=message) as caught:
        load_checkpoint(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), "fc.bias is torch.int64, expected torch.float32"),
        (torch.tensor([0.1, 0.2], dtype=torch.float64), "would be rounded to torch.float32"),
        (torch.tensor([1e300, 0], dtype=torch.float64), "NaN or infinity"),
        (torch.tensor([0, torch.nan]), "NaN or infinity"),
        (torch.zeros(3), r"fc.bias is \(3,\), expected \(2,\)"),
    ],
)
def test_numbers_that_do_not_fit(stored: torch.Tensor, message: str) -> None:
    with pytest.raises(SpatialfeatError, match=message):
        convert_exactly(Path("w.pth"), "fc.bias", stored, torch.zeros(2), "a network")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_precisions_are_taken_where_no_number_changes(dtype: torch.dtype) -> None:
    stored = torch.tensor([0.5, -3], dtype=dtype)
    found = convert_exactly(Path("w.pth"), "fc.bias", stored, torch.zeros(2), "a network")
    assert found.dtype == torch.float32
    assert found.tolist() == [0.5, -3]


# --- HDF5 ----------------------------------------------------------------------------------------------------------


def _replace(file: h5py.File, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def _no_data(file: h5py.File) -> None:
    _replace(file, "features", shape=(2048, 2**40), dtype="<f4", chunks=(64, 64))
    file["features"].attrs["axes"] = "channel,time"


def _no_contiguous_data(file: h5py.File) -> None:
    _replace(file, "labels", shape=(2**50,), dtype="<i8")


def _huge_chunks(file: h5py.File) -> None:
    _replace(file, "labels", shape=(3,), maxshape=(None,), dtype="<i8", chunks=(1 << 26,))


def _plug_in(file: h5py.File) -> None:
    del file["labels"]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3,))
    creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((3,))
    dataset = h5py.h5d.create(file.id, b"labels", h5py.h5t.STD_I64LE, space, creation)
    dataset.write_direct_chunk((0,), struct.pack("<3q", 0, 1, 2), 0)


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def _reference(file: h5py.File) -> None:
    file.attrs["link"] = file["labels"].ref


def _many_values(file: h5py.File) -> None:
    file.attrs["list"] = np.zeros(2000)


def _compound(file: h5py.File) -> None:
    file.attrs["record"] = np.zeros(1, dtype=[("a", "i4")])[0]


def _no_frame(file: h5py.File) -> None:
    for name in ("labels", "segment", "frame"):
        _replace(file, name, shape=(0,), dtype="<i8")
    _replace(file, "frame_ids", shape=(0,), dtype=h5py.string_dtype("utf-8"))
    for name, rows in (("features", 2048), ("logits", 3)):
        _replace(file, name, shape=(rows, 0), dtype="<f4")
        file[name].attrs["axes"] = "channel,time"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_data, r"features is declared as \(2048, 1099511627776\), but the file does not hold so much"),
        (_no_contiguous_data, "labels is declared as .* but the file does not hold so much"),
        (_huge_chunks, "labels has chunks of .* too large"),
        (_plug_in, "labels is packed with HDF5 filter 32015, for which a plug-in would be loaded"),
        (_attribute("video_id", h5py.Empty("S1")), "attribute 'video_id' is neither number nor text"),
        (_attribute("video_id", ["a", "b"]), "attribute video_id is"),
        (_attribute("video_id", "a\x1b[2J"), "attribute video_id is"),
        (_attribute("video_id", "=1+1"), "attribute video_id is"),
        (_attribute("patient_id", "-rf"), "attribute patient_id is"),
        (_attribute("split", "a/../../b"), "attribute split is"),
        (_attribute("phase_names", ["a", "b", "c\x1b]0;x\x07"]), "attribute phase_names is"),
        (_attribute("note", "x" * 50_000 * 3), "attribute 'note' is too large"),
        (_reference, "attribute 'link' is neither number nor text"),
        (_compound, "attribute 'record' is neither number nor text"),
        (_many_values, "attribute 'list' is too large"),
        (_no_frame, "holds no frame"),
    ],
)
def test_feature_files(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(3))
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SpatialfeatError, match=rf"1050_1\.h5: .*{message}.*; extract the video again") as caught:
        FeatureFile(path)
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "packing", [{"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]
)
def test_files_that_were_packed_with_built_in_filters_are_read(tmp_path: Path, packing: dict[str, Any]) -> None:
    path = write_feature_file(tmp_path / "1050_1.h5", make_header(3))
    with h5py.File(path, "r+") as file:
        values = file["labels"][()]
        _replace(file, "labels", data=values, chunks=(2,), **packing)
    assert FeatureFile(path).labels.tolist() == values.tolist()


@pytest.mark.parametrize("frame_id", ["../../escaped_1", "/tmp/escaped_1", "=1+1_1", "a\x1b_1", "x" * 5000])
def test_frame_ids_in_feature_files(tmp_path: Path, frame_id: str) -> None:
    """`export npy` names a file by each."""
    path = make_video(tmp_path / "features", "1050_1", [0, 1, 2]).path
    with h5py.File(path, "r+") as file:
        file["frame_ids"][1] = frame_id
    with pytest.raises(SpatialfeatError, match=r"1050_1\.h5: frame id .*; extract the video again") as caught:
        export(ExportConfig(format="npy", features_dir=tmp_path / "features", out=tmp_path / "a" / "b" / "out"))
    assert len(str(caught.value)) < 400
    assert not [found for found in tmp_path.rglob("*") if "escaped" in found.name]


def test_no_plug_in_folder_is_searched(tmp_path: Path) -> None:
    """A file that wants one, opened by this process's own h5py after the command line's start."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["labels"] = [0]
        _plug_in(file)
    code = (
        "import sys, spatialfeat.cli as cli\ncli.app = lambda: None\ncli.main()\n"
        f"import h5py\ntry:\n    h5py.File({str(path)!r})['labels'][()]\nexcept OSError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HDF5_PLUGIN_PATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "filter plugins disabled" in shown.stdout


def test_names_are_judged_alike() -> None:
    assert name_problem("1050_1_000001") is None
    assert name_problem("") == "is empty"
    assert name_problem("a" * 200) is None
    assert name_problem("a" * 201) == "is longer than 200 bytes"
