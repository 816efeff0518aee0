"""Reading feature files: arrays in any layout, folders, files that must not be used, and many processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from feature_folders import make_video
from tinydata import PROVENANCE, TIME_FIRST_PROVENANCE, make_header, make_outputs, write_feature_file
from typer.testing import CliRunner

import spatialfeat
from spatialfeat import FeatureFile, read_features
from spatialfeat.cli import app
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features import file as featurefile
from spatialfeat.features.folder import list_feature_files, open_feature_dir
from spatialfeat.features.schema import Provenance

LAYOUTS = pytest.mark.parametrize(
    "provenance", [PROVENANCE, TIME_FIRST_PROVENANCE], ids=["channel-first", "time-first"]
)


def _write(
    folder: Path,
    video_id: str,
    *,
    num_frames: int = 10,
    split: str = "train",
    provenance: Provenance = PROVENANCE,
    name: str | None = None,
) -> Path:
    header = replace(make_header(num_frames, video_id), split=split)
    return write_feature_file(folder / f"{name or video_id}.h5", header, provenance)


@LAYOUTS
def test_a_file_says_everything(tmp_path: Path, provenance: Provenance) -> None:
    header = make_header(10)
    with FeatureFile(write_feature_file(tmp_path / "1050_1.h5", header, provenance)) as file:
        assert (file.path, file.video_id, file.patient_id) == (tmp_path / "1050_1.h5", "1050_1", "1050")
        assert (file.split, file.fps, file.provenance) == ("train", 1.0, provenance)
        assert file.recipe is file.provenance  # its name in the first release
        assert (file.num_frames, len(file), file.num_phases, file.num_channels) == (10, 10, 3, 2048)
        assert file.phase_names == ("nasal", "sphenoid", "sellar")
        for found, expected in (
            (file.labels, header.labels), (file.segments, header.segments), (file.frames, header.frame_numbers),
        ):  # fmt: skip
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, expected)
        assert file.frame_ids.dtype.kind == "U"
        assert file.frame_ids.tolist() == header.frame_ids.tolist()
        assert repr(file) == "FeatureFile('1050_1.h5', video 1050_1, split train, features (2048, 10), 3 phases)"


@LAYOUTS
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 10), (3, 7), (9, 10), (4, 4), (10, None)])
def test_both_axis_orders_from_both_layouts(
    tmp_path: Path, provenance: Provenance, start: int, stop: int | None
) -> None:
    features, logits = make_outputs(10)
    file = FeatureFile(write_feature_file(tmp_path / "1050_1.h5", make_header(10), provenance))
    for read, expected in ((file.features, features[start:stop]), (file.logits, logits[start:stop])):
        for found, wanted in ((read(start, stop), expected.T), (read(start, stop, axes="time,channel"), expected)):
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            assert found.flags.writeable
            np.testing.assert_array_equal(found, wanted)
            assert found.shape == wanted.shape


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 11), (5, 4), (11, None)])
def test_frames_that_are_not_there(tmp_path: Path, start: int, stop: int | None) -> None:
    file = FeatureFile(_write(tmp_path, "1050_1"))
    with pytest.raises(SpatialfeatError, match=r"1050_1\.h5: frames \[.*\) of 10 were asked for; use 0 <= start"):
        file.features(start, stop)


def test_unknown_axes(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match="axes 'time': must be one of 'channel,time', 'time,channel'"):
        FeatureFile(_write(tmp_path, "1050_1")).features(axes="time")


def test_a_closed_file_opens_again(tmp_path: Path) -> None:
    file = FeatureFile(_write(tmp_path, "1050_1"))
    first = file.features()
    file.close()
    file.close()
    np.testing.assert_array_equal(file.features(), first)


def test_a_pickled_file_reads(tmp_path: Path) -> None:
    file = FeatureFile(_write(tmp_path, "1050_1"))
    before = file.features()
    copy = pickle.loads(pickle.dumps(file))
    np.testing.assert_array_equal(copy.features(), before)
    assert len(pickle.dumps(file)) < 3000  # no array travels along


def test_a_file_that_was_replaced_is_not_read_as_the_old_one(tmp_path: Path) -> None:
    file = FeatureFile(_write(tmp_path, "1050_1"))
    _write(tmp_path, "1050_1", num_frames=12)
    with pytest.raises(SpatialfeatError, match="has changed since it was opened; open it again"):
        file.features()
    assert FeatureFile(file.path).features().shape == (2048, 12)


def test_an_open_file_outlives_its_replacement(tmp_path: Path) -> None:
    """A window read and the next one come from one extraction, or there is an error: never a mixture."""
    file = FeatureFile(_write(tmp_path, "1050_1"))
    file.features()
    _write(tmp_path, "1050_1", num_frames=12)
    assert file.features().shape == (2048, 10)
    assert FeatureFile(file.path).features().shape == (2048, 12)


def _read_in_child(file: FeatureFile | bytes, queue: multiprocessing.Queue[float]) -> None:
    file = pickle.loads(file) if isinstance(file, bytes) else file
    queue.put(float(file.features().sum()))


@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_open_file_reads_in_another_process(tmp_path: Path, is_pickled: bool) -> None:
    """Forked, or pickled as for one that is spawned; test_windows spawns some."""
    context = multiprocessing.get_context("fork")
    file = FeatureFile(_write(tmp_path, "1050_1"))
    expected = float(file.features().sum())
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(pickle.dumps(file) if is_pickled else file, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0
    assert float(file.features().sum()) == expected  # what the child did with its copy did not reach this process


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurefile, "MAX_OPEN_FILES", 3)
    for number in range(6):
        _write(tmp_path, f"{number}_1", num_frames=number + 1)
    files = open_feature_dir(tmp_path)
    for file in [*files, *reversed(files)]:
        assert file.features().shape == (2048, len(file))
        assert _open_descriptors(tmp_path) <= 3
    for file in files:
        file.close()
    assert _open_descriptors(tmp_path) == 0


def _open_descriptors(folder: Path) -> int:
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(str(folder) in str(path.readlink()) for path in links if path.is_symlink())


def test_threads_share_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurefile, "MAX_OPEN_FILES", 1)
    files = [FeatureFile(_write(tmp_path, f"{number}_1")) for number in range(3)]
    expected = make_outputs(10)[0].T
    wrong: list[object] = []

    def read(file: FeatureFile) -> None:
        wrong.extend(file for _ in range(20) if not np.array_equal(file.features(), expected))

    threads = [threading.Thread(target=read, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _external_link(file: h5py.File) -> None:
    _move_features(file)
    file["features"] = h5py.ExternalLink("elsewhere.h5", "features")


def _soft_link(file: h5py.File) -> None:
    file.move("features", "hidden")
    file["features"] = h5py.SoftLink("/hidden")


def _external_storage(file: h5py.File) -> None:
    folder = Path(file.filename).parent
    (folder / "secret.bin").write_bytes(bytes(80))
    del file["labels"]
    file.create_dataset("labels", (10,), "<i8", external=[(str(folder / "secret.bin"), 0, 80)])


def _virtual(file: h5py.File) -> None:
    _move_features(file)
    layout = h5py.VirtualLayout((2048, 10), "<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "features", (2048, 10))
    file.create_virtual_dataset("features", layout)
    file["features"].attrs["axes"] = "channel,time"


def _move_features(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).parent / "elsewhere.h5", "w") as other:
        file.copy("features", other)
    del file["features"]


def _group(file: h5py.File) -> None:
    del file["labels"]
    file.create_group("labels")


def _integer_features(file: h5py.File) -> None:
    values = file["features"][()].astype(np.int32)
    del file["features"]
    file["features"] = values


def _numeric_ids(file: h5py.File) -> None:
    del file["frame_ids"]
    file["frame_ids"] = np.arange(10)


def _other_axes(file: h5py.File) -> None:
    file["features"].attrs["axes"] = "time,channel"


def _fewer_names(file: h5py.File) -> None:
    file.attrs["phase_names"] = ["a", "b"]


def _numeric_split(file: h5py.File) -> None:
    file.attrs["split"] = 3


def _id_with_a_folder(file: h5py.File) -> None:
    file.attrs["video_id"] = "../1050_1"


def _no_layout(file: h5py.File) -> None:
    file.attrs["layout"] = "diagonal"


def _damage_ids(file: h5py.File) -> None:
    file.attrs.create("video_id", np.bytes_(b"\xff\xfe"), dtype=h5py.string_dtype("utf-8", 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external_link, "features is not a dataset of this file"),
        (_soft_link, "features is not a dataset of this file"),
        (_external_storage, "labels keeps its data in other files"),
        (_virtual, "features keeps its data in other files"),
        (_group, "labels is not a dataset of this file"),
        (_integer_features, r"features is int32 \(2048, 10\)"),
        (_numeric_ids, "frame_ids is int64"),
        (_other_axes, "features has axes 'time,channel', not 'channel,time'"),
        (_fewer_names, "logits has 3 channels for 2 phase names"),
        (_numeric_split, "attribute split is 3"),
        (_id_with_a_folder, "attribute video_id is '../1050_1'"),
        (_no_layout, "attribute layout is 'diagonal', not one of channel-first, time-first"),
        (_damage_ids, "video_id"),
    ],
)
def test_a_file_that_no_extraction_writes(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path = _write(tmp_path, "1050_1")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SpatialfeatError, match=rf"1050_1\.h5: .*{message}.*; extract the video again"):
        FeatureFile(path)


def test_damage_behind_the_header(tmp_path: Path) -> None:
    path = _write(tmp_path, "1050_1")
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    path.write_bytes(content[:heap] + b"XXXX" + content[heap + 4 :])
    with pytest.raises(SpatialfeatError, match=r"1050_1\.h5: is damaged \(.*\); extract the video again"):
        _ = FeatureFile(path).frame_ids


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"cannot be read .*; pass a readable feature file"):
        FeatureFile(tmp_path)


def test_a_folder_in_numeric_order(tmp_path: Path) -> None:
    for video_id in ("1050_10", "1050_9", "999_1"):
        _write(tmp_path, video_id)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / ".1051_1.h5.partial").write_text("unfinished")
    (tmp_path / ".hidden.h5").write_text("hidden")
    assert [path.stem for path in list_feature_files(tmp_path)] == ["999_1", "1050_9", "1050_10"]
    assert [file.video_id for file in read_features(tmp_path)] == ["999_1", "1050_9", "1050_10"]
    assert [file.video_id for file in read_features(str(tmp_path / "1050_9.h5"))] == ["1050_9"]


def test_a_split(tmp_path: Path) -> None:
    _write(tmp_path, "1_1", split="train")
    _write(tmp_path, "2_1", split="test")
    assert [file.video_id for file in read_features(tmp_path, split="test")] == ["2_1"]
    with pytest.raises(SpatialfeatError, match=r"has no video of split val \(there: test, train\); choose one of"):
        read_features(tmp_path, split="val")


def test_an_empty_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"holds no feature file \(\*\.h5\); make them with"):
        read_features(tmp_path)
    with pytest.raises(SpatialfeatError, match="no such folder; make it with"):
        list_feature_files(tmp_path / "gone")
    with pytest.raises(SpatialfeatError, match="no such feature file; make it with"):
        read_features(tmp_path / "gone")


def test_layouts_may_be_mixed(tmp_path: Path) -> None:
    _write(tmp_path, "1_1")
    _write(tmp_path, "2_1", provenance=TIME_FIRST_PROVENANCE)
    first, second = read_features(tmp_path)
    np.testing.assert_array_equal(first.features(), second.features())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "b" * 64}, r"other weights \(bbbbbbbb against aaaaaaaa\)"),
        ({"phase_names": ("nasal", "sellar", "sphenoid")}, r"other phase names \(nasal, sellar, sphenoid against"),
        ({"preprocessing": '{"image_size_px": 112}'}, r"other preprocessing \(image_size_px 112 against 224\)"),
        ({"precision": "bf16", "fps": 25.0}, r"other precision \(bf16 against fp32\), fps \(25.0 against 1.0\)"),
        ({"backbone": "resnet18"}, "other backbone"),
        ({"layer": "layer4"}, "other layer"),
        ({"group_by": "patient"}, "other grouping"),
    ],
)  # fmt: skip
def test_mixed_provenances(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """The odd one out is named, not the first: two of three files agree."""
    _write(tmp_path, "1_1", provenance=replace(PROVENANCE, **changes))
    _write(tmp_path, "2_1")
    _write(tmp_path, "3_1")
    with pytest.raises(SpatialfeatError, match=rf"1_1\.h5 was made with {message}.* than 2_1\.h5; extract them again"):
        open_feature_dir(tmp_path)
    assert len(open_feature_dir(tmp_path, allow_mixed=True)) == 3


def test_mixed_numbers_of_channels(tmp_path: Path) -> None:
    for video_id, num_channels in (("1_1", 5), ("2_1", 7), ("3_1", 7)):
        make_video(tmp_path, video_id, [0, 1], num_channels=num_channels)
    message = r"1_1\.h5 was made with other number of channels \(5 against 7\) than 2_1\.h5; extract them again"
    with pytest.raises(SpatialfeatError, match=message):
        open_feature_dir(tmp_path)


@pytest.mark.parametrize("other_id", ["1050_1", "1050_01"])
def test_a_video_that_is_there_twice(tmp_path: Path, other_id: str) -> None:
    _write(tmp_path, "1050_1")
    _write(tmp_path, other_id, name="copy")
    with pytest.raises(SpatialfeatError, match=r"1050_1\.h5 and copy\.h5 both hold video 1050_0?1"):
        open_feature_dir(tmp_path, allow_mixed=True)


def test_a_foreign_file_in_the_folder(tmp_path: Path) -> None:
    _write(tmp_path, "1_1")
    with h5py.File(tmp_path / "2_1.h5", "w") as file:
        file["features"] = np.zeros((2, 2))
    with pytest.raises(SpatialfeatError, match=r"2_1\.h5: is not a feature file of spatialfeat"):
        read_features(tmp_path)


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, spatialfeat; print(sorted({'torch', 'h5py', 'pandas', 'numpy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
    assert set(spatialfeat.__all__) <= set(dir(spatialfeat))
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = spatialfeat.unknown


def test_files_are_read_while_others_have_them_open_and_locked(tmp_path: Path) -> None:
    path = _write(tmp_path, "1050_1")
    writer = f"import h5py; file = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError):
            h5py.File(path, "r")  # As a drive without locks refuses it.
        with FeatureFile(path) as file:
            np.testing.assert_array_equal(file.features(axes="time,channel"), make_outputs(10)[0])
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("theirs", [{}, {"locking": False}], ids=["as usual", "without locks"])
def test_a_file_may_be_open_in_the_same_process_too(tmp_path: Path, theirs: dict[str, Any]) -> None:
    path = _write(tmp_path, "1050_1")
    with h5py.File(path, "r", **theirs) as plain, FeatureFile(path) as file:
        np.testing.assert_array_equal(file.labels, plain["labels"][()])
    with FeatureFile(path) as file:
        expected = file.labels
        with h5py.File(path, "r") as plain:
            np.testing.assert_array_equal(plain["labels"][()], expected)


def _text(path: Path) -> None:
    path.write_text("nothing")


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _truncated(path: Path) -> None:
    whole = make_video(path.parent, "9_1", [0, 1, 2]).path.rename(path)
    whole.write_bytes(whole.read_bytes()[:5000])


STRAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (_text, "is not a whole HDF5 file"),
    "empty": (Path.touch, "is not a whole HDF5 file"),
    "foreign": (_foreign, "is not a feature file of spatialfeat; keep other files elsewhere"),
    "truncated": (_truncated, "is not a whole HDF5 file (truncated file"),
    "folder": (Path.mkdir, "cannot be read (no plain file)"),
    "pipe": (os.mkfifo, "cannot be read (no plain file)"),  # Reading it would wait without an end.
    "dangling link": (lambda path: path.symlink_to("gone.h5"), "no such feature file"),
}


@pytest.mark.parametrize("kind", STRAY)
def test_a_stray_file_is_skipped_by_info_and_refused_by_name_elsewhere(tmp_path: Path, kind: str) -> None:
    make, message = STRAY[kind]
    folder = tmp_path / "features"
    for video in ("1_1", "2_1"):
        make_video(folder, video, [0, 0, 1, 2])
    make(folder / "stray.h5")
    shown = CliRunner().invoke(app, ["info", str(folder)])
    assert shown.exit_code == 1
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:4]] == ["1_1", "2_1"]
    assert f"problem: stray.h5: {message}" in " ".join(shown.stdout.split())
    for command in (["evaluate", "--features", str(folder), "--split", "train", "--out", str(tmp_path / "scores")],
                    ["export", "csv", str(folder), str(tmp_path / "csv")]):  # fmt: skip
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        assert f"error: {folder}/stray.h5: {message}" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features"]
