"""Extraction: the right numbers, in the right order, in whole files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet50

from spatialfeat.config import ExtractConfig
from spatialfeat.device import choose_precision
from spatialfeat.errors import SpatialfeatError
from spatialfeat.extract import extract
from spatialfeat.features.folder import read_features
from spatialfeat.finetune import FinetuneResult


@pytest.fixture
def config(demo_dir: Path, small_study: FinetuneResult, small_network: None, tmp_path: Path) -> ExtractConfig:
    return ExtractConfig(
        csvs=tuple(str(demo_dir / f"{split}_ResNet_DB.csv") for split in ("train", "val", "test")),
        img_dir=demo_dir / "images",
        weights=small_study.weights_path,
        out_dir=tmp_path / "features",
        workers=0,
        device="cpu",
    )


def relative_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def contents(out_dir: Path) -> dict[str, NDArray[np.float32]]:
    found = {}
    for path in sorted(out_dir.glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = file["features"][()]
    return found


def test_features_equal_a_plain_torchvision_computation(demo_dir: Path, plain_weights: Path, tmp_path: Path) -> None:
    """Weights without our JSON get the specification's preprocessing: 256, 224, as anybody would write it."""
    csv = tmp_path / "frames.csv"
    csv.write_text("".join((demo_dir / "test_ResNet_DB.csv").read_text().splitlines(keepends=True)[:7]))
    extract(
        ExtractConfig(
            csvs=(f"test={csv}",), img_dir=demo_dir / "images", weights=plain_weights, out_dir=tmp_path, batch_size=4
        )
    )
    model = resnet50(num_classes=7)
    model.load_state_dict(torch.load(plain_weights, weights_only=True))
    model.eval()
    tapped: list[torch.Tensor] = []
    model.avgpool.register_forward_hook(lambda module, inputs, output: tapped.append(output.flatten(1)))
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    checked = 0
    # Not nearer: the resizing of older versions brings a fifth of the pixels to the next grey value.
    for path in sorted(tmp_path.glob("*.h5")):
        with h5py.File(path) as file:
            for column, frame_id in enumerate(file["frame_ids"].asstr()[()]):
                tapped.clear()
                image = Image.open(demo_dir / "images" / f"{frame_id}.png").convert("RGB")
                with torch.no_grad():
                    logits = model(transform(image).unsqueeze(0))
                assert relative_difference(file["features"][:, column], tapped[0][0].numpy()) < 2e-3
                assert relative_difference(file["logits"][:, column], logits[0].numpy()) < 2e-3
                checked += 1
    assert checked == 6


def test_features_do_not_depend_on_batch_size_or_workers(config: ExtractConfig, tmp_path: Path) -> None:
    extract(config)
    extract(replace(config, out_dir=tmp_path / "again", batch_size=5, workers=2))
    first, again = contents(config.out_dir), contents(tmp_path / "again")
    assert list(first) == list(again)
    for video in first:
        assert relative_difference(again[video], first[video]) < 1e-5


def test_files_hold_the_frames_of_the_csvs_in_time_order(config: ExtractConfig, demo_dir: Path) -> None:
    extract(config)
    expected: dict[str, tuple[str, list[tuple[int, str, int]]]] = {}
    for split in ("train", "val", "test"):
        for line in (demo_dir / f"{split}_ResNet_DB.csv").read_text().splitlines()[1:]:
            frame_id, label = line.split(",")
            video, frame = frame_id.rsplit("_", 1)
            expected.setdefault(video, (split, []))[1].append((int(frame), frame_id, int(label)))
    assert {path.stem for path in config.out_dir.glob("*.h5")} == set(expected)
    for video, (split, frames) in expected.items():
        with h5py.File(config.out_dir / f"{video}.h5") as file:
            rows = sorted(frames)
            assert file["features"].shape == (2048, len(rows))
            assert file["features"].dtype == np.float32
            assert file["logits"].shape == (7, len(rows))
            assert file["frame_ids"].asstr()[()].tolist() == [frame_id for _, frame_id, _ in rows]
            assert file["labels"][()].tolist() == [label for _, _, label in rows]
            assert file["frame"][()].tolist() == [frame for frame, _, _ in rows]
            assert set(file["segment"][()]) == {int(video.split("_")[1])}
            assert file.attrs["split"] == split
            assert file.attrs["patient_id"] == video.split("_")[0]
            assert file.attrs["phase_names"].tolist() == list("ABCDEFG")
            assert json.loads(file.attrs["preprocessing"])["crop_px"] == 64


def test_shuffled_rows_give_the_same_files(config: ExtractConfig, tmp_path: Path) -> None:
    """The CSV's order is its author's business; a feature file is always in time order."""
    lines = Path(config.csvs[2]).read_text().splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(len(lines) - 1) + 1
    shuffled = tmp_path / "test_shuffled.csv"
    shuffled.write_text(lines[0] + "".join(lines[i] for i in order))
    extract(replace(config, csvs=config.csvs[2:]))
    extract(replace(config, csvs=(str(shuffled),), out_dir=tmp_path / "shuffled"))
    first, again = contents(config.out_dir), contents(tmp_path / "shuffled")
    assert list(first) == list(again)
    for video in first:
        assert relative_difference(again[video], first[video]) < 1e-5


def test_patients_are_one_file_with_their_segments_in_order(config: ExtractConfig) -> None:
    extract(replace(config, csvs=config.csvs[2:], group_by="patient"))
    (path,) = config.out_dir.glob("*.h5")
    with h5py.File(path) as file:
        keys = list(zip(file["segment"][()].tolist(), file["frame"][()].tolist(), strict=True))
        assert keys == sorted(keys)
        assert len({segment for segment, _ in keys}) > 1
        assert file.attrs["video_id"] == file.attrs["patient_id"] == path.stem


def test_time_first_is_the_transpose(config: ExtractConfig, tmp_path: Path) -> None:
    extract(replace(config, csvs=config.csvs[2:]))
    extract(replace(config, csvs=config.csvs[2:], out_dir=tmp_path / "time", layout="time-first"))
    channel, time = contents(config.out_dir), contents(tmp_path / "time")
    for video in channel:
        np.testing.assert_array_equal(time[video], channel[video].T)


def test_a_second_run_computes_nothing(config: ExtractConfig) -> None:
    first = extract(config)
    before = {path: path.stat().st_mtime_ns for path in config.out_dir.glob("*.h5")}
    second = extract(config)
    assert (second.written, second.skipped) == ([], first.written)
    assert {path: path.stat().st_mtime_ns for path in config.out_dir.glob("*.h5")} == before


def test_other_weights_are_refused_until_overwrite(config: ExtractConfig, small_plain_weights: Path) -> None:
    extract(replace(config, csvs=config.csvs[2:]))
    before = contents(config.out_dir)
    other = replace(config, csvs=config.csvs[2:], weights=small_plain_weights)
    with pytest.raises(SpatialfeatError, match=r"other weights.*--overwrite"):
        extract(other)
    assert list(contents(config.out_dir)) == list(before)
    extract(replace(other, overwrite=True))
    after = contents(config.out_dir)
    assert list(after) == list(before)
    assert all(relative_difference(after[video], before[video]) > 1e-2 for video in after)
    # A second split made by the first weights would mix: nothing is overwritten there, so it is refused.
    with pytest.raises(SpatialfeatError, match="not part of this run"):
        extract(replace(config, csvs=config.csvs[1:2], overwrite=True))


def test_precision_is_recorded_and_never_mixed_unasked(config: ExtractConfig, tmp_path: Path) -> None:
    fastest = choose_precision("auto", torch.device("cpu"))
    if fastest == "fp32":
        pytest.skip("this processor computes nothing faster than fp32")
    extract(replace(config, precision="auto"))
    assert {file.provenance.precision for file in read_features(config.out_dir)} == {fastest}
    with pytest.raises(SpatialfeatError, match="was made with other precision"):
        extract(config)

    exact_dir = tmp_path / "exact"
    extract(replace(config, out_dir=exact_dir))
    exact, fast = contents(exact_dir), contents(config.out_dir)
    for name, features in exact.items():
        assert 1e-5 < relative_difference(fast[name], features) < 0.1  # These weights are hardly trained.


def test_a_broken_frame_stops_its_video_only(config: ExtractConfig, demo_dir: Path, tmp_path: Path) -> None:
    img_dir = tmp_path / "images"
    shutil.copytree(demo_dir / "images", img_dir)
    ids = [line.split(",")[0] for line in Path(config.csvs[2]).read_text().splitlines()[1:]]
    videos = sorted({frame_id.rsplit("_", 1)[0] for frame_id in ids})
    missing, damaged = next(i for i in ids if i.startswith(videos[0])), next(i for i in ids if i.startswith(videos[1]))
    (img_dir / f"{missing}.png").unlink()
    # Damage in the middle passes the quick look at both ends and shows only when the frame is decoded.
    content = bytearray((img_dir / f"{damaged}.png").read_bytes())
    content[60:-20] = bytes(len(content) - 80)
    (img_dir / f"{damaged}.png").write_bytes(content)
    result = extract(replace(config, csvs=config.csvs[2:], img_dir=img_dir))
    assert set(result.failed) == set(videos[:2])
    assert f"{missing}.png: the file does not exist" in result.failed[videos[0]]
    assert "row" in result.failed[videos[1]]
    assert f"{damaged}.png" in result.failed[videos[1]]
    assert sorted(path.name for path in config.out_dir.iterdir()) == sorted(
        ["run.json", *(f"{video}.h5" for video in videos[2:])]
    )
    assert json.loads((config.out_dir / "run.json").read_text())["status"] == "incomplete"
    whole = contents(config.out_dir)
    extract(replace(config, csvs=config.csvs[2:], out_dir=tmp_path / "whole"))
    for video in whole:
        assert relative_difference(whole[video], contents(tmp_path / "whole")[video]) < 1e-5


def test_a_run_without_any_whole_video_leaves_no_folder(config: ExtractConfig, tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match="no video is left to extract"):
        extract(replace(config, img_dir=tmp_path))
    assert not config.out_dir.exists()


def test_frames_without_labels_are_extracted(config: ExtractConfig, tmp_path: Path) -> None:
    csv = tmp_path / "unlabelled_test.csv"
    ids = [line.split(",")[0] for line in Path(config.csvs[2]).read_text().splitlines()]
    csv.write_text("\n".join(ids) + "\n")
    extract(replace(config, csvs=(str(csv),)))
    for path in config.out_dir.glob("*.h5"):
        with h5py.File(path) as file:
            assert set(file["labels"][()]) == {-100}


def test_a_video_in_two_splits_is_refused_with_both_rows(config: ExtractConfig, tmp_path: Path) -> None:
    copy = tmp_path / "train_copy.csv"
    shutil.copy(config.csvs[2], copy)
    with pytest.raises(SpatialfeatError, match=r"test_ResNet_DB\.csv row \d+: video .*train_copy\.csv row \d+"):
        extract(replace(config, csvs=(str(copy), config.csvs[2])))


def test_a_folder_alone_is_extracted_without_labels(
    config: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No --csv, and none of the specification's CSVs in the current folder."""
    monkeypatch.chdir(tmp_path)
    extract(config)
    extract(replace(config, csvs=(), out_dir=tmp_path / "all"))
    labelled, unlabelled = contents(config.out_dir), contents(tmp_path / "all")
    assert list(labelled) == list(unlabelled)
    for video in labelled:
        assert relative_difference(unlabelled[video], labelled[video]) < 1e-5
        with h5py.File(tmp_path / "all" / f"{video}.h5") as file:
            assert set(file["labels"][()]) == {-100}
            assert file.attrs["split"] == "all"
