from __future__ import annotations

import pickle
import pickletools
import warnings
from pathlib import Path

import numpy as np
import pytest
from feature_folders import Made, make_study, make_video

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.exports.tecno import PortablePickler, PortableUnpickler

MISSING = -100


def run(features_dir: Path, out: Path, **options: object) -> list[str]:
    """Export to tecno; returns the notices."""
    config = ExportConfig(format="tecno", features_dir=features_dir, out=out, **options)  # type: ignore[arg-type]
    return export(config).notices


def load(path: Path) -> list[np.ndarray]:
    with path.open("rb") as file:
        return pickle.load(file)


def referenced_names(content: bytes) -> set[str]:
    """`module.name` of everything that a pickle of protocol 4 refers to: STACK_GLOBAL takes the last two strings."""
    strings: list[str] = []
    memo: list[object] = []
    names = set()
    last: object = None
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
            last = None
        elif opcode.name == "MEMOIZE":
            memo.append(last)
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            if isinstance(memo[argument], str):
                strings.append(memo[argument])
        elif "UNICODE" in opcode.name:
            strings.append(argument)
            last = argument
        else:
            last = None
    return names


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Made]:
    return make_study(tmp_path / "features")


def test_videos_are_numbered_train_val_test_in_numeric_order(tmp_path: Path, study: dict[str, Made]) -> None:
    notices = run(tmp_path / "features", tmp_path / "out")
    assert (tmp_path / "out/videos.csv").read_bytes().decode() == (
        "nn,video,split,frames\n01,9_1,train,130\n02,1050_1,train,5\n03,1050_2,train,4\n04,1051_1,train,128\n"
        "05,1052_1,val,3\n06,1054_1,val,7\n07,1053_1,test,6\n08,1100_1,test,2\n"
    )
    assert "train 1 to 4, val 5 to 6, test 7 to 8" in notices[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.0fps", "videos.csv"]
    assert len(list((tmp_path / "out/1.0fps").iterdir())) == len(study)


def test_every_frame_arrives(tmp_path: Path, study: dict[str, Made]) -> None:
    run(tmp_path / "features", tmp_path / "out")
    for row in (tmp_path / "out/videos.csv").read_text().splitlines()[1:]:
        number, video, _, _ = row.split(",")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stem, logits, labels = load(tmp_path / f"out/1.0fps/video_{number}_1.0fps.pkl")
        np.testing.assert_array_equal(stem, study[video].features)
        np.testing.assert_array_equal(logits, study[video].logits)
        np.testing.assert_array_equal(labels, study[video].labels)
        assert (stem.dtype, logits.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
        assert stem.flags.writeable  # torch.from_numpy warns of arrays that are not.
        assert stem.flags.c_contiguous


def test_pickles_refer_only_to_names_of_every_numpy(tmp_path: Path, study: dict[str, Made]) -> None:
    run(tmp_path / "features", tmp_path / "out")
    for path in (tmp_path / "out/1.0fps").iterdir():
        content = path.read_bytes()
        assert referenced_names(content) == {"numpy.ndarray", "numpy.dtype"}
        assert b"_core" not in content


def test_the_check_of_names_sees_what_numpy_itself_writes() -> None:
    content = pickle.dumps(np.zeros(3), protocol=4)
    assert any("core" in name for name in referenced_names(content))


def test_reading_back_refuses_names_that_are_not_portable(tmp_path: Path) -> None:
    path = tmp_path / "array.pkl"
    path.write_bytes(pickle.dumps(np.zeros(3), protocol=4))
    with (
        path.open("rb") as file,
        pytest.raises(pickle.UnpicklingError, match=r"multiarray._reconstruct is not portable"),
    ):
        PortableUnpickler(file).load()


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.eye(3)), np.zeros((0, 4)), np.ones(())],
)
def test_arrays_of_any_shape_survive(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "array.pkl"
    with path.open("wb") as file:
        PortablePickler(file, protocol=4).dump(array)
    loaded = load(path)
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype


def test_more_than_99_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    for number in range(1, 102):
        make_video(tmp_path / "features", f"{number}_1", [0], num_channels=8)
    run(tmp_path / "features", tmp_path / "out")
    assert (tmp_path / "out/1.0fps/video_101_1.0fps.pkl").exists()
    assert (tmp_path / "out/1.0fps/video_09_1.0fps.pkl").exists()


def test_other_splits_come_last_and_the_rate_is_named(tmp_path: Path) -> None:
    for video, split in (("1_1", "holdout"), ("2_1", "test"), ("3_1", "train")):
        make_video(tmp_path / "features", video, [0], split=split, fps=0.25)
    notices = run(tmp_path / "features", tmp_path / "out")
    assert "3_1" in (tmp_path / "out/videos.csv").read_text().splitlines()[1]
    assert "1_1" in (tmp_path / "out/videos.csv").read_text().splitlines()[3]
    assert (tmp_path / "out/0.2fps/video_01_0.2fps.pkl").exists()
    assert any("0.25 fps" in notice for notice in notices)


def test_unlabelled_frames_are_refused_dropped_or_kept(tmp_path: Path) -> None:
    made = make_video(tmp_path / "features", "1_1", [0, MISSING, 2])
    make_video(tmp_path / "features", "2_1", [MISSING])
    with pytest.raises(SpatialfeatError, match=r"2 frames without a label.*--unlabelled drop or --unlabelled keep"):
        run(tmp_path / "features", tmp_path / "out")
    with pytest.raises(
        SpatialfeatError, match="TeCNO's metrics stop at the label -100; pass --unlabelled drop, or --kee"
    ):
        run(tmp_path / "features", tmp_path / "kept", unlabelled="keep")
    notices = run(tmp_path / "features", tmp_path / "kept", unlabelled="keep", keep_anyway=True)
    assert "label -100" in notices[0]
    assert load(tmp_path / "kept/1.0fps/video_01_1.0fps.pkl")[2].tolist() == [0, MISSING, 2]
    notices = run(tmp_path / "features", tmp_path / "dropped", unlabelled="drop")
    assert any("no frame of them has a label: 2_1" in notice for notice in notices)
    stem, logits, labels = load(tmp_path / "dropped/1.0fps/video_01_1.0fps.pkl")
    np.testing.assert_array_equal(stem, made.features[[0, 2]])
    np.testing.assert_array_equal(logits, made.logits[[0, 2]])
    assert labels.tolist() == [0, 2]


def test_labels_are_needed(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [MISSING, MISSING])
    with pytest.raises(SpatialfeatError, match="no frame has a label, and tecno needs them"):
        run(tmp_path / "features", tmp_path / "out")


def lines_to_set(features_dir: Path, out: Path, caplog: pytest.LogCaptureFixture, **options: object) -> str:
    """What the command says comes next."""
    caplog.clear()
    with caplog.at_level("INFO", logger="spatialfeat"):
        run(features_dir, out, **options)
    return caplog.text.partition("Next:")[2]


def test_every_line_that_tecno_needs_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"1_1": [0] * 8 + [1] * 4, "2_1": [1] * 2 + [2] * 2 + [MISSING], "3_1": [2] * 50, "4_1": [0, 0]}
    splits = {"3_1": "val", "4_1": "test"}
    for video, values in labels.items():
        make_video(tmp_path / "features", video, values, split=splits.get(video, "train"))
    text = lines_to_set(tmp_path / "features", tmp_path / "out", caplog, unlabelled="drop")
    for line in (
        f"data_root: {tmp_path / 'out'}",
        "features_per_seconds: 1.0",
        "out_features: 3",
        "gpus: ['0']",
        'self.data_p["train"]: range(1, 3)',
        'self.data_p["val"]: range(3, 4)',
        'self.data_p["test"]: range(4, 5)',
        "self.class_labels = ['access', 'resection', 'closure']",
        # 8, 6 and 2 frames of split train, whose median is 6; the 50 of val do not count.
        'self.weights["train"] = [0.75, 1.0, 3.0]',
        "WANDB_MODE=offline python train.py -c modules/mstcn/config/config_tcn.yml",
        "Python 3.8, torch 1.7.1 and pytorch-lightning 1.1.8",
    ):
        assert line in text, line
    assert "PrecisionOverClasses" not in text  # The seven classes that stand there are enough.


def test_more_than_seven_phases_need_two_more_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    phases = tuple(f"p{number}" for number in range(8))
    make_video(tmp_path / "features", "1_1", [0, 1, 7], phases=phases)
    text = lines_to_set(tmp_path / "features", tmp_path / "out", caplog)
    assert "modules/mstcn/tecno.py, in PrecisionOverClasses(...) and RecallOverClasse(...), set" in text
    assert "num_classes=8" in text
    # Phases that no training frame has weigh 1.
    assert 'self.weights["train"] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]' in text


def test_splits_without_videos_are_not_left_to_cholec80s_ranges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for video in ("1_1", "2_1", "3_1"):
        make_video(tmp_path / "features", video, [0, 1, 2])
    text = lines_to_set(tmp_path / "features", tmp_path / "out", caplog)
    assert (
        "41 to 48 would stay in force; take some from train, for example train range(1, 3) and val range(3, 4)" in text
    )
    assert "49 to 80 would stay in force; give it the numbers of val" in text
    make_video(tmp_path / "tests", "1_1", [0, 1, 2], split="test")
    text = lines_to_set(tmp_path / "tests", tmp_path / "out2", caplog)
    assert 'self.data_p["train"]: no video has this split, and TeCNO cannot train without' in text
