"""Which videos stand in which bundle of an MS-TCN tree: from the splits in the feature files, or a CSV of folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spatialfeat.data.tables import read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.exportsource import ExportVideo, name_some
from spatialfeat.names import name_problem, natural_key, same_name_key

Bundles = dict[str, list[str]]
"""{bundle's name, e.g. "train.split1": ids of its videos}, the ids as in the feature files."""


def bundles_of_splits(videos: Sequence[ExportVideo], val_to: str) -> tuple[Bundles, list[str]]:
    """train.split1 and test.split1 (and val.split1) from the splits of the files, and notices on what became of val.

    Raises:
        SpatialfeatError: a split that is none of train, val, test, or no video to train or to test on.
    """
    strange = sorted({video.split for video in videos} - {"train", "val", "test"})
    if strange:
        raise SpatialfeatError(
            f"split {', '.join(strange)}: ms-tcn knows train, val and test only; say with --folds CSV where its "
            "videos belong"
        )
    val = [video.video_id for video in videos if video.split == "val"]
    target = {"own": "val", "train": "train", "test": "test", "drop": None}[val_to]
    bundles: Bundles = {}
    for name in ("train", "test", "val"):
        ids = [v.video_id for v in videos if (v.split if v.split != "val" else target) == name]
        if ids or name != "val":
            bundles[f"{name}.split1"] = ids
    for name in ("train", "test"):
        if not bundles[f"{name}.split1"]:
            remedy = f"pass --val-to {name} or --folds CSV" if val else "extract such videos too, or pass --folds CSV"
            raise SpatialfeatError(f"no video has split {name}, and MS-TCN needs some; {remedy}")
    if not val:
        return bundles, []
    fate = {
        "own": "listed in splits/val.split1.bundle, which MS-TCN itself does not read (--val-to own)",
        "drop": "left out (--val-to drop)",
    }.get(val_to, f"part of splits/{val_to}.split1.bundle (--val-to {val_to})")
    return bundles, [f"{len(val)} videos of split val are {fate}"]


def bundles_of_folds(videos: Sequence[ExportVideo], folds_csv: Path, *, joined: bool) -> tuple[Bundles, list[str]]:
    """train.split<k> and test.split<k> for each fold: the test videos are those of fold k, all others train.

    The CSV has the columns `video,fold`, or `patient,fold` for all videos of a patient; only the latter where a
    patient's videos are `joined`. Folds are numbered from 1 in numeric order of their names; a notice tells how.

    Raises:
        SpatialfeatError: with the row, for a video that is unknown, missing or listed twice, a patient in two folds,
            fewer than two folds, or a file that cannot be read.
    """
    column, rows = _read_folds(folds_csv, joined=joined)
    # With --pseudonymize the CSV still holds the ids that the feature files have.
    known = {video.file.video_id if column == "video" else video.file.patient_id for video in videos}
    fold_of: dict[str, str] = {}
    for number, name, fold in rows:
        if name not in known:
            raise SpatialfeatError(
                f"{folds_csv} row {number}: {column} {name!r} has no feature file "
                f"(there are {name_some(_sorted(known))}); mend the row or extract that {column}"
            )
        if name in fold_of:
            raise SpatialfeatError(f"{folds_csv} row {number}: {column} {name} is listed before; keep one row of it")
        fold_of[name] = fold
    missing = known - set(fold_of)
    if missing:
        raise SpatialfeatError(
            f"{folds_csv}: lacks {len(missing)} of {len(known)} {column}s: {name_some(_sorted(missing))}; "
            "add a row for each"
        )
    video_folds = {v.video_id: fold_of[v.file.video_id if column == "video" else v.file.patient_id] for v in videos}
    _refuse_split_patients(folds_csv, videos, video_folds)
    folds = _sorted(set(video_folds.values()))
    if len(folds) < 2:
        raise SpatialfeatError(f"{folds_csv}: names one fold only, {folds[0]}; at least two are needed")
    bundles: Bundles = {}
    for index, fold in enumerate(folds, start=1):
        bundles[f"train.split{index}"] = [video for video, mine in video_folds.items() if mine != fold]
        bundles[f"test.split{index}"] = [video for video, mine in video_folds.items() if mine == fold]
    notices = ["the folds of the CSV replace the splits stored in the feature files"]
    if folds != [str(index) for index in range(1, len(folds) + 1)]:
        renamed = ", ".join(f"fold {fold} is split {index}" for index, fold in enumerate(folds, start=1))
        notices.append(f"splits are numbered from 1: {renamed}")
    return bundles, notices


def refuse_small_bundles(bundles: Bundles, *, allow_single: bool) -> None:
    """Refuse bundles of no video, and of one video unless allowed."""
    for name, ids in bundles.items():
        if not ids:
            raise SpatialfeatError(f"splits/{name}.bundle would be empty; move videos into it")
        if len(ids) == 1 and not allow_single:
            elsewhere = "--val-to train, " if name.startswith("val.") else ""
            raise SpatialfeatError(
                f"splits/{name}.bundle would name one video only, {ids[0]}; some programs of the MS-TCN family cannot "
                f"read a list of one: move videos into it, or pass {elsewhere}--allow-small-bundles"
            )


def _read_folds(path: Path, *, joined: bool) -> tuple[str, list[tuple[int, str, str]]]:
    """The name of the first column, and (row number, its value, fold) of each row."""
    rows = read_rows(path, "video,fold", ["fold"], unit="video")
    columns = [name for name in ("video", "patient") if name in rows.columns]
    if len(columns) != 1:
        raise SpatialfeatError(
            f"{path}: needs the column video or the column patient; write `video,fold` or `patient,fold`"
        )
    if joined and columns == ["video"]:
        raise SpatialfeatError(
            f"{path}: names videos, but --group-by patient joins them; use the columns `patient,fold`"
        )
    names, folds = (rows.columns[column].str.strip() for column in (columns[0], "fold"))
    rows.refuse(columns[0], (names == "").to_numpy(), f"has no {columns[0]}", "mend the row")
    rows.refuse("fold", (folds == "").to_numpy(), "has no fold", "mend the row")
    odd = [name_problem(fold) is not None for fold in folds]
    rows.refuse(
        "fold", np.array(odd, dtype=bool), "fold {value!r} is no name", "use a number, or letters, digits, -, _"
    )
    # Folds may have names, but one name among numbers is a slip.
    named = ~folds.str.fullmatch("[0-9]+").to_numpy(dtype=bool)
    if not named.all():
        rows.refuse("fold", named, "fold {value!r} is not a whole number, as the others are", "mend the row")
    assert rows.origin.row_numbers is not None
    numbers = rows.origin.row_numbers.tolist()
    return columns[0], list(zip(numbers, names.tolist(), folds.tolist(), strict=True))


def _refuse_split_patients(folds_csv: Path, videos: Sequence[ExportVideo], video_folds: dict[str, str]) -> None:
    first: dict[tuple[object, ...], str] = {}
    for video in videos:
        other = first.setdefault(same_name_key(video.patient_id), video.video_id)
        if video_folds[other] != video_folds[video.video_id]:
            raise SpatialfeatError(
                f"{folds_csv}: patient {video.patient_id} is in two folds, video {other} in {video_folds[other]} and "
                f"{video.video_id} in {video_folds[video.video_id]}; keep a patient in one fold, or its test scores "
                "will be too good"
            )


def _sorted(names: set[str]) -> list[str]:
    return sorted(names, key=natural_key)
