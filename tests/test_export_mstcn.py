from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import feature_folders
import numpy as np
import pytest
from feature_folders import PHASES, Made
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.export import export
from spatialfeat.exports import source
from spatialfeat.exports.verify_mstcn import verify_mstcn

MISSING = -100
NUM_CHANNELS = 64

make_study = partial(feature_folders.make_study, num_channels=NUM_CHANNELS)
make_video = partial(feature_folders.make_video, num_channels=NUM_CHANNELS)


def run(features_dir: Path, out: Path, **options: object) -> list[str]:
    """Export to ms-tcn; returns the notices."""
    config = ExportConfig(format="ms-tcn", features_dir=features_dir, out=out, **options)  # type: ignore[arg-type]
    return export(config).notices


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8").split("\n")[:-1]


def read_as_mstcn(tree: Path, bundle: str, sample_rate: int = 1) -> dict[str, tuple[np.ndarray, list[int]]]:
    """{video: (features, labels)} as MS-TCN's batch reader sees the tree: no strip, the last piece dropped."""
    numbers = {}
    with (tree / "mapping.txt").open() as file:
        for line in file.read().split("\n")[:-1]:
            numbers[line.split()[1]] = int(line.split()[0])
    with (tree / "splits" / bundle).open() as file:
        listed = file.read().split("\n")[:-1]
    seen = {}
    for name in listed:
        features = np.load(f"{tree}/features/" + name.split(".")[0] + ".npy")
        with open(f"{tree}/groundTruth/" + name) as file:  # noqa: PTH123 - names are glued to folders there
            content = file.read().split("\n")[:-1]
        labels = [numbers[content[index]] for index in range(min(features.shape[1], len(content)))]
        seen[name.split(".")[0]] = (features[:, ::sample_rate], labels[::sample_rate])
    return seen


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Made]:
    return make_study(tmp_path / "features")


@pytest.mark.parametrize("frames_per_block", [64, 4096])
def test_every_frame_arrives_with_its_label(
    tmp_path: Path, study: dict[str, Made], monkeypatch: pytest.MonkeyPatch, frames_per_block: int
) -> None:
    monkeypatch.setattr(source, "FRAMES_PER_BLOCK", frames_per_block)
    run(tmp_path / "features", tmp_path / "surgery")
    for video, made in study.items():
        array = np.load(tmp_path / f"surgery/features/{video}.npy")
        assert array.dtype.str == "<f4"
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, made.features.T)
        assert lines(tmp_path / f"surgery/groundTruth/{video}.txt") == [PHASES[label] for label in made.labels]
    assert (tmp_path / "surgery/mapping.txt").read_bytes() == b"0 access\n1 resection\n2 closure\n"


def test_bundles_follow_the_splits_in_numeric_order(tmp_path: Path, study: dict[str, Made]) -> None:
    notices = run(tmp_path / "features", tmp_path / "surgery")
    splits = tmp_path / "surgery/splits"
    assert (splits / "train.split1.bundle").read_bytes() == b"9_1.txt\n1050_1.txt\n1050_2.txt\n1051_1.txt\n"
    assert (splits / "test.split1.bundle").read_bytes() == b"1053_1.txt\n1100_1.txt\n"
    assert (splits / "val.split1.bundle").read_bytes() == b"1052_1.txt\n1054_1.txt\n"
    assert any("2 videos of split val" in notice and "--val-to own" in notice for notice in notices)


@pytest.fixture
def small_val(tmp_path: Path) -> Path:
    """Two videos in each split."""
    for number, split in enumerate(("train", "train", "val", "val", "test", "test"), start=1):
        make_video(tmp_path / "features", f"{number}_1", [0, 1, 2], split=split)
    return tmp_path / "features"


@pytest.mark.parametrize(
    ("val_to", "train", "test"),
    [
        ("own", ["1_1", "2_1"], ["5_1", "6_1"]),
        ("train", ["1_1", "2_1", "3_1", "4_1"], ["5_1", "6_1"]),
        ("test", ["1_1", "2_1"], ["3_1", "4_1", "5_1", "6_1"]),
        ("drop", ["1_1", "2_1"], ["5_1", "6_1"]),
    ],
)
def test_val_goes_where_it_is_sent(
    tmp_path: Path, small_val: Path, val_to: str, train: list[str], test: list[str]
) -> None:
    notices = run(small_val, tmp_path / "surgery", val_to=val_to)
    tree = tmp_path / "surgery"
    assert list(read_as_mstcn(tree, "train.split1.bundle")) == train
    assert list(read_as_mstcn(tree, "test.split1.bundle")) == test
    assert (tree / "splits/val.split1.bundle").exists() == (val_to == "own")
    assert (tree / "features/3_1.npy").exists() == (val_to != "drop")
    assert f"--val-to {val_to}" in notices[0]


@pytest.mark.parametrize("sample_rate", [1, 2])
def test_mstcn_reads_the_same_features_and_labels(tmp_path: Path, study: dict[str, Made], sample_rate: int) -> None:
    run(tmp_path / "features", tmp_path / "surgery", val_to="train")
    seen = read_as_mstcn(tmp_path / "surgery", "train.split1.bundle", sample_rate)
    seen |= read_as_mstcn(tmp_path / "surgery", "test.split1.bundle", sample_rate)
    assert seen.keys() == study.keys()
    for video, made in study.items():
        features, labels = seen[video]
        np.testing.assert_array_equal(features, made.features[::sample_rate].T)
        assert labels == made.labels[::sample_rate].tolist()


def make_unlabelled(folder: Path) -> dict[str, Made]:
    labels = {"1_1": [0, MISSING, 1, 2, MISSING], "2_1": [0, 1], "3_1": [2, 2, 2], "4_1": [MISSING, 0, 0]}
    return {
        video: make_video(folder, video, values, split="train" if video < "3" else "test")
        for video, values in labels.items()
    }


def test_unlabelled_frames_are_refused_by_default(tmp_path: Path) -> None:
    make_unlabelled(tmp_path / "features")
    with pytest.raises(SpatialfeatError, match=r"3 frames without a label in 2 videos: 1_1 \(2\), 4_1 \(1\), first "
                       r"1_1_000002; label them, or pass --unlabelled drop or --unlabelled background"):  # fmt: skip
        run(tmp_path / "features", tmp_path / "surgery")
    assert not list(tmp_path.glob("*surgery*"))


@pytest.mark.parametrize("frames_per_block", [2, 4096])
def test_dropped_frames_leave_features_and_labels_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames_per_block: int
) -> None:
    monkeypatch.setattr(source, "FRAMES_PER_BLOCK", frames_per_block)
    made = make_unlabelled(tmp_path / "features")
    notices = run(tmp_path / "features", tmp_path / "surgery", unlabelled="drop")
    assert "left out (--unlabelled drop)" in notices[0]
    for video, stored in made.items():
        keep = stored.labels != MISSING
        array = np.load(tmp_path / f"surgery/features/{video}.npy")
        np.testing.assert_array_equal(array, stored.features[keep].T)
        assert lines(tmp_path / f"surgery/groundTruth/{video}.txt") == [PHASES[i] for i in stored.labels[keep]]


def test_background_is_the_last_class(tmp_path: Path) -> None:
    made = make_unlabelled(tmp_path / "features")
    run(tmp_path / "features", tmp_path / "surgery", unlabelled="background", background_name="idle")
    assert lines(tmp_path / "surgery/mapping.txt") == ["0 access", "1 resection", "2 closure", "3 idle"]
    truth = lines(tmp_path / "surgery/groundTruth/1_1.txt")
    assert truth == ["access", "idle", "resection", "closure", "idle"]
    np.testing.assert_array_equal(np.load(tmp_path / "surgery/features/1_1.npy"), made["1_1"].features.T)


def test_background_needs_a_new_name(tmp_path: Path) -> None:
    make_unlabelled(tmp_path / "features")
    for name in ("access", "no phase", ""):
        with pytest.raises(SpatialfeatError, match=f"--background-name '{name}': must be a new name"):
            run(tmp_path / "features", tmp_path / "surgery", unlabelled="background", background_name=name)


def test_without_any_label_the_remedy_names_other_formats(tmp_path: Path) -> None:
    make_video(tmp_path / "features", "1_1", [MISSING, MISSING])
    for unlabelled in (None, "drop", "background"):
        with pytest.raises(SpatialfeatError, match=r"no frame has a label, and ms-tcn needs them.*npy, hdf5, csv"):
            run(tmp_path / "features", tmp_path / "surgery", unlabelled=unlabelled)


@pytest.mark.parametrize("name", ["gtea", "50salads", "Breakfast", "my.data", "my data"])
def test_names_that_readers_take_amiss_are_refused(tmp_path: Path, study: dict[str, Made], name: str) -> None:
    with pytest.raises(SpatialfeatError, match="choose"):
        run(tmp_path / "features", tmp_path / name)
    assert not list(tmp_path.glob(f"*{name}*"))


def test_ids_with_dots_need_a_replacement(tmp_path: Path) -> None:
    for video in ("a.1", "a.2", "b 1", "b 2"):
        make_video(tmp_path / "features", video, [0, 1], split="train" if video[0] == "a" else "test")
    with pytest.raises(SpatialfeatError, match=r"a\.1\.h5: video id 'a\.1' holds .*--id-replacement _"):
        run(tmp_path / "features", tmp_path / "surgery")
    for wrong in ("", ".", " ", "a/b"):
        with pytest.raises(SpatialfeatError, match=r"--id-replacement .* must itself be allowed"):
            run(tmp_path / "features", tmp_path / "surgery", id_replacement=wrong)
    run(tmp_path / "features", tmp_path / "surgery", id_replacement="-")
    assert list(read_as_mstcn(tmp_path / "surgery", "train.split1.bundle")) == ["a-1", "a-2"]
    assert list(read_as_mstcn(tmp_path / "surgery", "test.split1.bundle")) == ["b-1", "b-2"]


def test_replaced_ids_may_not_collide(tmp_path: Path) -> None:
    for video in ("a.1", "a-1", "b1", "b2"):
        make_video(tmp_path / "features", video, [0, 1], split="train" if video[0] == "a" else "test")
    with pytest.raises(SpatialfeatError, match=r"'a.1' would both be a-1; pass another --id-replacement"):
        run(tmp_path / "features", tmp_path / "surgery", id_replacement="-")


def test_phase_names_with_spaces_need_a_replacement(tmp_path: Path) -> None:
    phases = ("nasal access", "step#2", "no\u00a0break")
    for video in ("1_1", "2_1", "3_1", "4_1"):
        make_video(tmp_path / "features", video, [0, 1, 2], split="train" if video < "3" else "test", phases=phases)
    with pytest.raises(SpatialfeatError, match=r"phase name 'nasal access'.*--name-replacement _"):
        run(tmp_path / "features", tmp_path / "surgery")
    run(tmp_path / "features", tmp_path / "surgery", name_replacement="_")
    assert lines(tmp_path / "surgery/mapping.txt") == ["0 nasal_access", "1 step_2", "2 no_break"]
    assert read_as_mstcn(tmp_path / "surgery", "test.split1.bundle")["3_1"][1] == [0, 1, 2]


def test_replaced_phase_names_may_not_collide(tmp_path: Path) -> None:
    for video in ("1_1", "2_1", "3_1", "4_1"):
        split = "train" if video < "3" else "test"
        make_video(tmp_path / "features", video, [0, 1], split=split, phases=("a b", "a_b"))
    with pytest.raises(SpatialfeatError, match="phase names 'a b' and 'a_b' would both be a_b"):
        run(tmp_path / "features", tmp_path / "surgery", name_replacement="_")


def test_short_videos_are_refused_or_skipped(tmp_path: Path) -> None:
    for video in ("1_1", "2_1", "3_1", "4_1"):
        make_video(tmp_path / "features", video, [0, 1], split="train" if video < "3" else "test")
    make_video(tmp_path / "features", "5_1", [0])
    make_video(tmp_path / "features", "6_1", [MISSING, 1], split="test")
    with pytest.raises(
        SpatialfeatError, match=r"fewer than 2 frames to write of video 5_1 \(1\), 6_1 \(1\).*skip-short"
    ):
        run(tmp_path / "features", tmp_path / "surgery", unlabelled="drop")
    notices = run(tmp_path / "features", tmp_path / "surgery", unlabelled="drop", skip_short=True)
    assert any("left out (--skip-short)" in notice for notice in notices)
    assert not (tmp_path / "surgery/features/5_1.npy").exists()
    assert list(read_as_mstcn(tmp_path / "surgery", "test.split1.bundle")) == ["3_1", "4_1"]


def test_a_bundle_of_one_video_needs_permission(tmp_path: Path) -> None:
    for video, split in (("1_1", "train"), ("2_1", "train"), ("3_1", "test")):
        make_video(tmp_path / "features", video, [0, 1], split=split)
    with pytest.raises(
        SpatialfeatError, match=r"test.split1.bundle would name one video only, 3_1.*--allow-small-bund"
    ):
        run(tmp_path / "features", tmp_path / "surgery")
    run(tmp_path / "features", tmp_path / "surgery", allow_small_bundles=True)
    assert lines(tmp_path / "surgery/splits/test.split1.bundle") == ["3_1.txt"]
    assert verify_mstcn(tmp_path / "surgery", NUM_CHANNELS, min_videos=1) == []
    assert verify_mstcn(tmp_path / "surgery", NUM_CHANNELS) != []


def test_a_phase_called_background_is_pointed_out(tmp_path: Path) -> None:
    for video in ("1_1", "2_1", "3_1", "4_1"):
        split = "train" if video < "3" else "test"
        make_video(tmp_path / "features", video, [0, 1], split=split, phases=("background", "work"))
    assert any("phase background" in notice for notice in run(tmp_path / "features", tmp_path / "surgery"))


def test_non_finite_features_are_refused(tmp_path: Path) -> None:
    for video in ("1_1", "2_1", "3_1"):
        make_video(tmp_path / "features", video, [0, 1], split="train" if video < "3" else "test")
    made = make_video(tmp_path / "features", "4_1", [0, 1], split="test", spoil=(1, float("nan")))
    with pytest.raises(SpatialfeatError, match=f"{made.path.name}: frame 4_1_000002 holds a value that is not finite"):
        run(tmp_path / "features", tmp_path / "surgery")
    assert not list(tmp_path.glob("*surgery*"))


def test_a_patient_in_two_splits_is_pointed_out(tmp_path: Path) -> None:
    for video, split in (("1_1", "train"), ("2_1", "train"), ("1_2", "test"), ("3_1", "test")):
        make_video(tmp_path / "features", video, [0, 1], split=split)
    assert any("patient 1 (train, test)" in notice for notice in run(tmp_path / "features", tmp_path / "surgery"))


@given(
    labels=st.lists(st.sampled_from([MISSING, 0, 1, 2]), min_size=2, max_size=12).filter(
        lambda labels: sum(label != MISSING for label in labels) >= 2
    ),
    layout=st.sampled_from(["channel-first", "time-first"]),
    frames_per_block=st.integers(1, 13),
    unlabelled=st.sampled_from(["drop", "background"]),
)
@settings(max_examples=20, deadline=None)
def test_any_video_comes_back_frame_by_frame(
    labels: list[int], layout: str, frames_per_block: int, unlabelled: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(source, "FRAMES_PER_BLOCK", frames_per_block)
        monkeypatch.setattr("os.fsync", lambda _: None)
        place = Path(folder)
        made = make_video(place / "features", "1_1", labels, layout=layout)
        for video, split in (("2_1", "train"), ("3_1", "test"), ("4_1", "test")):
            make_video(place / "features", video, [0, 1], split=split)
        run(place / "features", place / "surgery", unlabelled=unlabelled)
        features, seen = read_as_mstcn(place / "surgery", "train.split1.bundle")["1_1"]
        kept = [index for index, label in enumerate(labels) if label != MISSING or unlabelled == "background"]
        np.testing.assert_array_equal(features, made.features[kept].T)
        assert seen == [3 if labels[index] == MISSING else labels[index] for index in kept]


def said(caplog: pytest.LogCaptureFixture, level: str) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelname == level)


def test_a_val_bundle_of_one_video_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MS-TCN does not read it, and the README's line must work for a study with one validation video."""
    for number, split in enumerate(("train", "train", "val", "test", "test"), start=1):
        make_video(tmp_path / "features", f"{number}_1", [0, 1, 2], split=split)
    run(tmp_path / "features", tmp_path / "surgery")
    assert "splits/val.split1.bundle names one video only, 3_1" in said(caplog, "WARNING")
    assert "--val-to train" in said(caplog, "WARNING")
    assert lines(tmp_path / "surgery/splits/val.split1.bundle") == ["3_1.txt"]
    assert verify_mstcn(tmp_path / "surgery", NUM_CHANNELS) == []
    caplog.clear()
    run(tmp_path / "features", tmp_path / "again", val_to="train")
    assert said(caplog, "WARNING") == ""


def test_videos_at_which_programs_stop_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One phase only: DiffAct looks for the first change. All background: the usual eval.py looks for a segment."""
    labels = {"1_1": [0, 1], "1_2": [2, 2, 2], "2_1": [0, 1], "3_1": [0, 1], "3_2": [MISSING, MISSING], "4_1": [0, 1]}
    for video, values in labels.items():
        make_video(tmp_path / "features", video, values, split="train" if video < "3" else "test")
    run(tmp_path / "features", tmp_path / "surgery", unlabelled="background")
    warned = said(caplog, "WARNING")
    assert "one phase only in video 1_2: DiffAct stops" in warned
    assert (
        "no label at all in test video 3_2: DiffAct and the usual eval.py stop at a video that is all backgr" in warned
    )
    assert warned.count("--group-by patient joins it") == 2
    caplog.clear()
    run(tmp_path / "features", tmp_path / "joined", unlabelled="background", group_by="patient")
    assert said(caplog, "WARNING") == ""


def test_the_next_step_has_every_command(
    tmp_path: Path, study: dict[str, Made], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="spatialfeat"):
        run(tmp_path / "features", tmp_path / "surgery")
    text = caplog.text.partition("Next:")[2]
    for line in (
        "mkdir -p data",
        f"cp -r {tmp_path}/surgery data/surgery",
        "python main.py --action=predict --dataset=surgery --split=1",
        f"spatialfeat evaluate --predictions MS-TCN=results/surgery/split_1 --features {tmp_path}/features",
        "Python 2",
        "aef4e46",
        "--num_epochs=100 --num_layers_PG=11 --num_layers_R=10 --num_R=3",
        "scipy, seaborn and NumPy before 1.24",
        'datasets/ in place of data/, and a JSON of options with "sample_rate": 1',
        "LTContext, FACT: take class 0, here access, for background by default",
    ):
        assert line in text, line
    with caplog.at_level("INFO", logger="spatialfeat"):
        run(tmp_path / "features", tmp_path / "hidden", pseudonymize=tmp_path / "map.csv")
    # The names in the tree are not those of the feature files.
    assert "export features that `spatialfeat extract --pseudonymize` has named alike" in caplog.text
