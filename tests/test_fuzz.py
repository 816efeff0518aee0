"""Readers under random input: what comes out is valid, or one SpatialfeatError; nothing else, and nothing elsewhere."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinydata import make_header, write_feature_file

from spatialfeat.config import PredictionsSource
from spatialfeat.data.frames import read_frames
from spatialfeat.data.pseudonyms import open_pseudonyms
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.names import MAX_NAME_BYTES, for_terminal, name_problem, spreadsheet_cell
from spatialfeat.network.tensorfiles import read_content, refuse_odd_tensors, tensors_by_keys
from spatialfeat.network.weights import read_description
from spatialfeat.phases import check_phase_names, read_phase_names
from spatialfeat.scores.predictions import read_prediction_files

EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Pieces of which the near-misses are made, and the whole of Unicode.
PIECES = ["1050", "_", "1", "_1_000001", "id", "label", ",", "\n", "\r\n", '"', "../", "/", "\\", "..", "\x00", "=1+1",
          "-", "\x1b[2J", "\u202e", " ", "\t", "\ufeff", "é", "e\u0301", "9" * 20, "-100", "3", "x" * 300]  # fmt: skip
NEAR_TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)
CONTENT = st.one_of(st.binary(max_size=80), NEAR_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))


def attempt(read: Callable[[], Any]) -> Any:
    """What `read` gives, None if it refuses. Any other exception fails the test."""
    try:
        return read()
    except SpatialfeatError:
        return None


def assert_safe_name(name: str) -> None:
    assert name
    assert not set(name) & set("/\\\0\r\n\t\x1b\u202e")
    assert name[0] not in ".=+-@"
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert Path("folder", name).parent == Path("folder")
    assert spreadsheet_cell(name) == name
    assert for_terminal(name) == name


@EXAMPLES
@given(content=CONTENT, ids=st.lists(NEAR_TEXT, min_size=1, max_size=4))
def test_frames(tmp_path: Path, content: bytes, ids: list[str]) -> None:
    quoted = "".join('"' + name.replace('"', '""') + '",3\n' for name in ids).encode("utf-8", "surrogatepass")
    for data in (content, b"id,label\n" + content, b"id,label\n" + quoted):
        (tmp_path / "train.csv").write_bytes(data)
        table = attempt(lambda: read_frames(tmp_path / "train.csv", tmp_path, split="train", num_classes=7))
        if table is None:
            continue
        assert len(table) > 0
        assert set(table.labels.tolist()) <= {-100, *range(7)}
        for row in range(len(table)):
            assert table.image_path(row).parent == tmp_path
            for name in (table.ids[row], table.videos[row], table.patients[row]):
                assert_safe_name(str(name))
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


@EXAMPLES
@given(text=st.one_of(NEAR_TEXT, st.text(max_size=20)))
def test_names(text: str) -> None:
    if name_problem(text) is None:
        assert_safe_name(text)
    shown = for_terminal(text)
    assert not set(shown) & set("\x00\x07\x1b\x7f\x9b\r\u202e")
    shown.encode("utf-8")


@EXAMPLES
@given(content=CONTENT)
def test_phase_names(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "phases.txt"
    path.write_bytes(content)
    names = attempt(lambda: read_phase_names(str(path)))
    if names and attempt(lambda: check_phase_names(names, len(names)) or True):
        assert len(set(names)) == len(names)
        assert all(for_terminal(name) == name for name in names)


@EXAMPLES
@given(content=CONTENT)
def test_predictions_and_maps(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"img_id,true_label,predicted_label\n" + content)
    source = PredictionsSource(predictions=(str(path),))
    attempt(lambda: read_prediction_files(source, None, None))
    path.write_bytes(b"patient_id,pseudonym\n" + content)
    found = attempt(lambda: open_pseudonyms(path, ["1050"], outputs=[tmp_path / "out"]))
    if found is not None:
        assert "1050" in found.of_patient
        assert len(set(found.of_patient.values())) == len(found.of_patient)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["schema", "num_classes", "phase_names", "preprocessing", "weights_sha256"]


@EXAMPLES
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1), raw=CONTENT)
def test_description_of_weights(tmp_path: Path, changes: dict[str, Any], raw: bytes) -> None:
    good = {"schema": 1, "num_classes": 2, "phase_names": ["a", "b"], "weights_sha256": "a" * 64,
            "preprocessing": Preprocessing().as_dict()}  # fmt: skip
    weights, path = tmp_path / "w.pth", tmp_path / "w.json"
    for data in (json.dumps(good | changes).encode(), raw, b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000):
        path.write_bytes(data)
        found = attempt(lambda: read_description(weights, "a" * 64, 2))
        assert found is None or found[0] is None or len(found[0]) == 2


def _saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.arange(12.0).reshape(3, 4), "fc.bias": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


ZIPPED, LEGACY = _saved(), _saved(_use_new_zipfile_serialization=False)


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _flipped(content: bytes, flips: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for place, value in flips:
        changed[place % len(changed)] = value
    return bytes(changed)


FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)


@EXAMPLES
@given(flips=FLIPS, cut=st.integers(0, 3000), raw=st.binary(max_size=60))
def test_weights(tmp_path: Path, flips: list[tuple[int, int]], cut: int, raw: bytes) -> None:
    entries = _entries(ZIPPED)
    pickle_name = next(name for name in entries if name.endswith("data.pkl"))
    repacked = io.BytesIO()
    with zipfile.ZipFile(repacked, "w") as archive:  # Sums are right again, so that the damage reaches the unpickler.
        for name, data in entries.items():
            archive.writestr(name, _flipped(data, flips) if name == pickle_name else data)
    path = tmp_path / "w.pth"
    for data in (_flipped(ZIPPED, flips), _flipped(LEGACY, flips), ZIPPED[:cut], raw, b"\x80\x02" + raw,
                 repacked.getvalue()):  # fmt: skip
        path.write_bytes(data)
        for name, tensor in (attempt(lambda: read_tensors(path)) or {}).items():
            assert isinstance(name, str)
            assert tensor.device.type == "cpu"
            float(tensor.double().sum())  # Every number of it can be read.
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    content = read_content(path)
    for tensors in tensors_by_keys(content).values() if isinstance(content, dict) else ():
        refuse_odd_tensors(path, tensors)
        found |= tensors
    return found


@pytest.fixture(scope="module")
def feature_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_feature_file(tmp_path_factory.mktemp("good") / "1050_1.h5", make_header(3)).read_bytes()


@EXAMPLES
@given(flips=FLIPS, cut=st.integers(0, 40_000), raw=st.binary(max_size=60))
def test_feature_files(
    tmp_path: Path, feature_bytes: bytes, flips: list[tuple[int, int]], cut: int, raw: bytes
) -> None:
    path = tmp_path / "1050_1.h5"
    for data in (_flipped(feature_bytes, flips), feature_bytes[:cut], raw, b"\x89HDF\r\n\x1a\n" + raw):
        path.write_bytes(data)
        attempt(lambda: read_everything(path))


def read_everything(path: Path) -> None:
    with FeatureFile(path) as file:
        assert_safe_name(file.video_id)
        assert file.num_frames == len(file.labels) == len(file.frames) == len(file.segments) > 0
        for frame_id in file.frame_ids.tolist():
            assert_safe_name(frame_id)
        assert file.features().shape == (file.num_channels, file.num_frames)
        assert file.logits().dtype == np.float32
