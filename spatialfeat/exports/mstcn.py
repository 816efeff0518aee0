r"""Which videos stand in which bundle of an MS-TCN tree: from the splits in the feature files, or a CSV of folds.

The tree that MS-TCN and its relatives read unmodified: `exportformats.MS_TCN` shows it.

    OUT/
      features/{video}.npy         (2048, T) float32, little-endian, C order
      groundTruth/{video}.txt      T lines: the phase name of each frame
      splits/train.split1.bundle   one {video}.txt a line; test, and val with --val-to own, likewise
      mapping.txt                  C lines: number and phase name, 0 to C-1

Every text ends in exactly one LF: the readers split at "\n" and throw the last piece away.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from spatialfeat.config import ExportConfig
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.data.tables import read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.source import Advance, ExportJob, ExportSource, ExportVideo, name_some, write_channel_first_npy
from spatialfeat.exports.verify_mstcn import MIN_FRAMES, verify_mstcn
from spatialfeat.features.schema import CHANNEL_TIME
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


RESERVED_NAMES = ("gtea", "50salads", "breakfast")

IGNORED_PHASE = "background"
"""MS-TCN's own evaluation leaves segments of this name out of edit score and F1."""


class MsTcnExport(ExportJob):
    """Settles names, splits and phases; refuses what the format cannot express and no option resolves."""

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        super().__init__(source, config)
        self.notices.clear()  # A video without any labelled frame is a short video here.
        _check_data_set_name(config.out)
        if config.folds is not None:
            bundles, notices = bundles_of_folds(source.videos, config.folds, joined=config.group_by == "patient")
        else:
            bundles, notices = bundles_of_splits(source.videos, config.val_to)
        self.notices += notices
        listed = {video_id for ids in bundles.values() for video_id in ids}
        self.videos = self._long_enough([video for video in source.videos if video.video_id in listed])
        written = {video.video_id for video in self.videos}
        self.bundles = {name: [video for video in ids if video in written] for name, ids in bundles.items()}
        if not self.bundles.get("val.split1", True):
            del self.bundles["val.split1"]  # All its videos were too short; nothing needs this bundle.
        refuse_small_bundles(self.bundles, allow_single=config.allow_small_bundles)
        self.names = _file_names(self.videos, config.id_replacement)
        self.phases = self._phases()

    def write(self, target: Path, advance: Advance) -> None:
        for folder in ("features", "groundTruth", "splits"):
            (target / folder).mkdir()
        for video in self.videos:
            name = self.names[video.video_id]
            shape = (video.file.num_channels, video.num_frames)
            write_channel_first_npy(target / f"features/{name}.npy", shape, video.feature_blocks(CHANNEL_TIME))
            # Only --unlabelled background leaves unlabelled frames here, and its class is the last.
            phases = (self.phases[-1 if label == UNLABELLED else label] for label in video.labels().tolist())
            _write_lines(target / f"groundTruth/{name}.txt", phases)
            advance(video.num_frames)
        for bundle, ids in self.bundles.items():
            _write_lines(target / f"splits/{bundle}.bundle", (f"{self.names[video]}.txt" for video in ids))
        _write_lines(target / "mapping.txt", (f"{number} {name}" for number, name in enumerate(self.phases)))

    def verify(self, target: Path) -> list[str]:
        return verify_mstcn(target, min_videos=1 if self.config.allow_small_bundles else 2)

    def tree(self) -> list[str]:
        return [
            f"features/     {len(self.videos)} files, (2048, T) float32",
            f"groundTruth/  {len(self.videos)} files, {self.num_frames} lines",
            *(f"splits/{name}.bundle  {len(ids)} videos" for name, ids in self.bundles.items()),
            f"mapping.txt   {len(self.phases)} phases",
        ]

    def next_step(self) -> str:
        name = shlex.quote(self.config.out.absolute().name)
        num_splits = sum(bundle.startswith("test.") for bundle in self.bundles)
        others = f"\n  and the same with --split=2 to --split={num_splits}" if num_splits > 1 else ""
        return (
            f"  put {self.config.out} as data/{name} into a checkout of MS-TCN, and there run\n"
            f"  python main.py --action=train --dataset={name} --split=1\n"
            f"  python main.py --action=predict --dataset={name} --split=1\n"
            f"  python eval.py --dataset={name} --split=1{others}"
        )

    def _long_enough(self, videos: list[ExportVideo]) -> list[ExportVideo]:
        short = [video for video in videos if video.num_frames < MIN_FRAMES]
        if not short:
            return videos
        named = name_some(f"{video.video_id} ({video.num_frames})" for video in short)
        if not self.config.skip_short:
            raise SpatialfeatError(
                f"{self.source.features_dir}: fewer than {MIN_FRAMES} frames to write of video {named}; "
                "MS-TCN's loss compares neighbouring frames: pass --skip-short to leave such videos out"
            )
        self.notices.append(f"left out (--skip-short), fewer than {MIN_FRAMES} frames: {named}")
        return [video for video in videos if video not in short]

    def _phases(self) -> list[str]:
        phases = _phase_names(self.source.provenance.phase_names, self.config.name_replacement)
        if IGNORED_PHASE in phases:
            self.notices.append(f"phase {IGNORED_PHASE}: MS-TCN's evaluation leaves it out of edit score and F1")
        if self.source.unlabelled == "background" and any(video.num_unlabelled for video in self.videos):
            name = self.config.background_name
            if name in phases or _wrong_in_phase(name):
                raise SpatialfeatError(
                    f"--background-name {name!r}: must be a new name without space or '#', beside {', '.join(phases)}"
                )
            phases.append(name)
        return phases


def _check_data_set_name(out: Path) -> None:
    name = out.absolute().name
    if name.lower() in RESERVED_NAMES:
        raise SpatialfeatError(
            f"OUT {out}: readers of this format change their settings for data sets named "
            f"{', '.join(RESERVED_NAMES)}; choose another name"
        )
    if "." in name or any(character.isspace() for character in name):
        raise SpatialfeatError(
            f"OUT {out}: {name!r} is the data set's name in this format; choose one without dots and spaces"
        )


def _file_names(videos: Sequence[ExportVideo], replacement: str | None) -> dict[str, str]:
    """{video id: its name in the tree}."""
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for video in videos:
        name = _replaced(video.video_id, _wrong_in_id, replacement, "--id-replacement")
        if name is None:
            raise SpatialfeatError(
                f"{video.file.path}: video id {video.video_id!r} holds a dot, slash or space, at which readers of this "
                "format cut it; pass --id-replacement _ to replace such characters"
            )
        if owners.setdefault(name, video.video_id) != video.video_id:
            raise SpatialfeatError(
                f"--id-replacement {replacement}: videos {owners[name]!r} and {video.video_id!r} would both be {name}; "
                "choose another replacement"
            )
        names[video.video_id] = name
    return names


def _phase_names(phases: Sequence[str], replacement: str | None) -> list[str]:
    names = []
    for phase in phases:
        name = _replaced(phase, _wrong_in_phase, replacement, "--name-replacement")
        if not name:
            raise SpatialfeatError(
                f"phase name {phase!r} is empty or holds a space or '#', at which readers of this format cut it; "
                "pass --name-replacement _ to replace such characters"
            )
        if name in names:
            raise SpatialfeatError(
                f"two phases would be named {name!r}: {', '.join(phases)}; pass another --name-replacement"
            )
        names.append(name)
    return names


def _wrong_in_id(text: str) -> bool:
    # Bundles are split at the first dot, results are named by what follows the last slash.
    return any(character.isspace() or character in "./\\" or not character.isprintable() for character in text)


def _wrong_in_phase(text: str) -> bool:
    return not text or any(character.isspace() or character == "#" or not character.isprintable() for character in text)


def _replaced(text: str, is_wrong: Callable[[str], bool], replacement: str | None, option: str) -> str | None:
    """`text` with every wrong character replaced; None if it needs that and there is no replacement."""
    if replacement is not None and (not replacement or is_wrong(replacement)):
        raise SpatialfeatError(f"{option} {replacement!r}: must itself be allowed in a name, e.g. _ or -")
    if not is_wrong(text):
        return text
    if replacement is None:
        return None
    return "".join(replacement if is_wrong(character) else character for character in text)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
