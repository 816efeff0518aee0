r"""The tree that MS-TCN and its relatives read unmodified; `formats` shows it.

Every text ends in exactly one LF: the readers split at "\n" and drop what follows the last one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import ExportConfig
from spatialfeat.console import count_text, name_some
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.data.tables import read_rows
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.source import FLOAT32, Advance, ExportJob, ExportVideo, npy_header
from spatialfeat.exports.verify_mstcn import MIN_FRAMES, verify_mstcn
from spatialfeat.features.folder import seen_in_training
from spatialfeat.features.schema import CHANNEL_TIME
from spatialfeat.names import (
    ID_BREAKS,
    PHASE_BREAKS,
    breaks_in,
    file_name,
    name_problem,
    natural_key,
    same_name_key,
    without_breaks,
)

RESERVED_NAMES = ("gtea", "50salads", "breakfast")

IGNORED_PHASE = "background"
"""MS-TCN's own evaluation leaves runs of this name out of edit score and F1."""

USUAL_CHANNELS = 2048
"""What the temporal models take by default: ResNet-50's."""

Bundles = dict[str, list[ExportVideo]]
"""{bundle's name, e.g. "train.split1": its videos}."""


class MsTcnExport(ExportJob):
    """Settles names, splits and phases; refuses what the format cannot express and no option resolves."""

    def __init__(self, config: ExportConfig, videos: Sequence[ExportVideo], notices: Sequence[str]) -> None:
        super().__init__(config, videos, notices)
        _check_data_set_name(config.out)
        if config.folds is not None:
            bundles, about_bundles = _bundles_of_folds(videos, config.folds, joined=config.group_by == "patient")
        else:
            bundles, about_bundles = _bundles_of_splits(videos, config.val_to)
        # Not those of the base: a video without any labelled frame is a short video here.
        self.notices = [*notices, *about_bundles]
        listed = {video for bundle in bundles.values() for video in bundle}
        self.videos = self._long_enough([video for video in videos if video in listed])
        self.bundles = {name: [video for video in bundle if video in self.videos] for name, bundle in bundles.items()}
        if not self.bundles.get("val.split1", True):
            del self.bundles["val.split1"]  # All its videos were too short; nothing needs this bundle.
        self._refuse_small_bundles()
        ids = [file_name(video.video_id) for video in self.videos]
        places = [f"{video.files[0].path}: video id" for video in self.videos]
        names = _readable_names(ids, places, ID_BREAKS, config.id_replacement, "--id-replacement")
        self.names = dict(zip(self.videos, names, strict=True))
        self.phases = self._phases()
        self._warn_of_one_phase()

    def write(self, target: Path, advance: Advance) -> None:
        for folder in ("features", "groundTruth", "splits"):
            (target / folder).mkdir()
        for video in self.videos:
            name = self.names[video]
            shape = (self.num_channels, video.num_frames)
            _write_npy(target / f"features/{name}.npy", shape, video.feature_blocks(CHANNEL_TIME))
            # Only --unlabelled background leaves unlabelled frames here, and its phase is the last.
            phases = (self.phases[-1 if label == UNLABELLED else label] for label in video.labels().tolist())
            _write_lines(target / f"groundTruth/{name}.txt", phases)
            advance(video.num_frames)
        for bundle, videos in self.bundles.items():
            _write_lines(target / f"splits/{bundle}.bundle", (f"{self.names[video]}.txt" for video in videos))
        _write_lines(target / "mapping.txt", (f"{number} {name}" for number, name in enumerate(self.phases)))

    def verify(self, target: Path) -> list[str]:
        return verify_mstcn(target, self.num_channels, min_videos=1 if self.config.allow_small_bundles else 2)

    def tree(self) -> list[str]:
        files = count_text(len(self.videos), "file")
        return [
            f"features/     {files}, ({self.num_channels}, T) float32",
            f"groundTruth/  {files}, {count_text(self.num_frames, 'line')}",
            *(f"splits/{name}.bundle  {count_text(len(bundle), 'video')}" for name, bundle in self.bundles.items()),
            f"mapping.txt   {count_text(len(self.phases), 'phase')}",
        ]

    def next_step(self) -> str:
        name, out = shlex.quote(self.config.out.absolute().name), shlex.quote(str(self.config.out.absolute()))
        features = shlex.quote(str(self.config.features_dir.absolute()))
        num_splits = sum(bundle.startswith("test.") for bundle in self.bundles)
        others, results = "", f"--predictions MS-TCN=results/{name}/split_1"
        if num_splits > 1:
            others = ", also with --split=2" + (f" to --split={num_splits}" if num_splits > 2 else "")
            results = f"--predictions MS-TCN=results/{name}/all --split all"
        gather = f"  mkdir results/{name}/all; cp results/{name}/split_*/* results/{name}/all\n" if others else ""
        scoring = f"  spatialfeat evaluate {results} --features {features}"
        if self.config.pseudonymize is not None:
            scoring = (
                "  to score the results, export features that `spatialfeat extract --pseudonymize` has named alike"
            )
        dimension = ""
        if self.num_channels != USUAL_CHANNELS:
            dimension = (
                f"  features have {self.num_channels} channels: set features_dim in main.py of "
                "MS-TCN and ASFormer,\n"
                f"    pass --features_dim={self.num_channels} to MS-TCN++, and input_dim in DiffAct's JSON\n"
            )
        return (
            f"  in a checkout of MS-TCN, which needs Python 2, run{others}\n"
            "  mkdir -p data\n"
            f"  cp -r {out} data/{name}\n"
            f"  python main.py --action=train --dataset={name} --split=1\n"
            f"  python main.py --action=predict --dataset={name} --split=1\n"
            f"{dimension}"
            f"{gather}"
            f"{scoring}\n"
            "  MS-TCN++: its commit aef4e46 (the one after it does not start), and to both commands of main.py\n"
            "    --num_epochs=100 --num_layers_PG=11 --num_layers_R=10 --num_R=3\n"
            "  ASFormer: needs scipy, seaborn and NumPy before 1.24, whose old names it uses\n"
            '  DiffAct: reads datasets/ in place of data/, and a JSON of options with "sample_rate": 1\n'
            f"  LTContext, FACT: take class 0, here {self.phases[0]}, for background by default\n"
            "  every command in full: docs/temporal.md"
        )

    def _long_enough(self, videos: list[ExportVideo]) -> list[ExportVideo]:
        short = [video for video in videos if video.num_frames < MIN_FRAMES]
        if short:
            named = name_some(f"{video.video_id} ({video.num_frames})" for video in short)
            if not self.config.skip_short:
                raise SpatialfeatError(
                    f"{self.config.features_dir}: fewer than {MIN_FRAMES} frames to write of video {named}; "
                    "MS-TCN's loss compares neighbouring frames: pass --skip-short to leave such videos out"
                )
            self.notices.append(f"left out (--skip-short), fewer than {MIN_FRAMES} frames: {named}")
        return [video for video in videos if video not in short]

    def _refuse_small_bundles(self) -> None:
        for name, bundle in self.bundles.items():
            if not bundle:
                raise SpatialfeatError(f"splits/{name}.bundle would be empty; move videos into it")
            if len(bundle) == 1 and name.startswith("val."):
                self.warnings.append(
                    f"splits/{name}.bundle names one video only, {bundle[0].video_id}; MS-TCN does not read it, but a "
                    "program that does may not read a list of one: --val-to train puts the video to the others"
                )
            elif len(bundle) == 1 and not self.config.allow_small_bundles:
                raise SpatialfeatError(
                    f"splits/{name}.bundle would name one video only, {bundle[0].video_id}; some programs of the MS-TCN"
                    " family cannot read a list of one: pass --allow-small-bundles if yours can, or move videos into it"
                )

    def _warn_of_one_phase(self) -> None:
        """DiffAct looks for the first change of phase; the usual eval.py for a segment that is not background."""
        way_out = (
            "" if self.config.group_by == "patient" else "; --group-by patient joins it to the patient's other videos"
        )
        one_phase = [
            video.video_id for video in self.videos if video.num_labelled and len(np.unique(video.labels())) == 1
        ]
        if one_phase:
            self.warnings.append(
                f"one phase only in video {name_some(one_phase)}: DiffAct stops at a video without a change of phase"
                f"{way_out}"
            )
        tested = {video for name, bundle in self.bundles.items() if name.startswith("test.") for video in bundle}
        empty = [video.video_id for video in self.videos if video in tested and not video.num_labelled]
        if empty:
            self.warnings.append(
                f"no label at all in test video {name_some(empty)}: DiffAct and the usual eval.py stop at a video that "
                f"is all {self.phases[-1]}{way_out}"
            )

    def _phases(self) -> list[str]:
        stored = self.provenance.phase_names
        places = ["phase name"] * len(stored)
        phases = _readable_names(stored, places, PHASE_BREAKS, self.config.name_replacement, "--name-replacement")
        if IGNORED_PHASE in phases:
            self.notices.append(f"phase {IGNORED_PHASE}: MS-TCN's evaluation leaves it out of edit score and F1")
        if self.config.unlabelled == "background" and any(video.num_unlabelled for video in self.videos):
            name = self.config.background_name
            if name in phases or not name or breaks_in(name, PHASE_BREAKS):
                raise SpatialfeatError(
                    f"--background-name {name!r}: must be a new name without space or '#', beside {', '.join(phases)}"
                )
            phases.append(name)
        return phases


def _bundles_of_splits(videos: Sequence[ExportVideo], val_to: str) -> tuple[Bundles, list[str]]:
    """train.split1 and test.split1 (and val.split1) from the splits of the files; a notice on what became of val."""
    strange = sorted({video.split for video in videos} - {"train", "val", "test"})
    if strange:
        raise SpatialfeatError(
            f"split {', '.join(strange)}: ms-tcn knows train, val and test only; say with --folds CSV where its "
            "videos belong"
        )
    bundle_of_split = {"train": "train", "test": "test", "val": "val" if val_to == "own" else val_to}
    bundles: Bundles = {
        f"{name}.split1": [video for video in videos if bundle_of_split[video.split] == name]
        for name in ("train", "test", "val")
    }
    if not bundles["val.split1"]:
        del bundles["val.split1"]
    num_val = sum(video.split == "val" for video in videos)
    for name in ("train", "test"):
        if not bundles[f"{name}.split1"]:
            remedy = f"pass --val-to {name}" if num_val else "extract such videos too"
            raise SpatialfeatError(f"no video has split {name}, and MS-TCN needs some; {remedy}, or pass --folds CSV")
    if not num_val:
        return bundles, []
    fate = {
        "own": "listed in splits/val.split1.bundle, which MS-TCN itself does not read (--val-to own)",
        "drop": "left out (--val-to drop)",
    }.get(val_to, f"part of splits/{val_to}.split1.bundle (--val-to {val_to})")
    return bundles, [f"{count_text(num_val, 'video')} of split val {'is' if num_val == 1 else 'are'} {fate}"]


def _bundles_of_folds(videos: Sequence[ExportVideo], folds_csv: Path, *, joined: bool) -> tuple[Bundles, list[str]]:
    """train.split<k> and test.split<k> for each fold: the test videos are those of fold k, all others train.

    Folds are numbered from 1 in numeric order of their names; a notice lists them if these are other numbers.
    """
    column, fold_of = _read_folds(folds_csv, joined=joined)
    # With --pseudonymize the CSV still holds the ids that the feature files have.
    stored = {video: getattr(video.files[0], f"{column}_id") for video in videos}
    known = sorted(set(stored.values()), key=natural_key)
    for name, (row, _) in fold_of.items():
        if name not in known:
            raise SpatialfeatError(
                f"{folds_csv} row {row}: {column} {name!r} has no feature file "
                f"(there are {name_some(known)}); fix the row or extract that {column}"
            )
    missing = [name for name in known if name not in fold_of]
    if missing:
        raise SpatialfeatError(
            f"{folds_csv}: lacks {len(missing)} of {len(known)} {column}s: {name_some(missing)}; add a row for each"
        )
    first_of_patient: dict[tuple[object, ...], ExportVideo] = {}
    video_folds = {video: fold_of[name][1] for video, name in stored.items()}
    for video, fold in video_folds.items():
        other = first_of_patient.setdefault(same_name_key(video.patient_id), video)
        if video_folds[other] != fold:
            raise SpatialfeatError(
                f"{folds_csv}: patient {video.patient_id} is in two folds, video {other.video_id} in "
                f"{video_folds[other]} and {video.video_id} in {fold}; keep a patient in one fold, or its test scores "
                "will be too good"
            )
    folds = sorted(set(video_folds.values()), key=natural_key)
    if len(folds) < 2:
        raise SpatialfeatError(f"{folds_csv}: names one fold only, {folds[0]}; at least two are needed")
    bundles: Bundles = {}
    for index, fold in enumerate(folds, start=1):
        bundles[f"train.split{index}"] = [video for video in videos if video_folds[video] != fold]
        bundles[f"test.split{index}"] = [video for video in videos if video_folds[video] == fold]
    notices = ["the folds of the CSV replace the splits stored in the feature files"]
    seen = seen_in_training(file for video in videos for file in video.files)
    if seen:
        notices.append(f"{seen}; extract once per fold (docs/training.md)")
    if folds != [str(index) for index in range(1, len(folds) + 1)]:
        renamed = ", ".join(f"fold {fold} is split {index}" for index, fold in enumerate(folds, start=1))
        notices.append(f"splits are numbered from 1: {renamed}")
    return bundles, notices


def _read_folds(path: Path, *, joined: bool) -> tuple[str, dict[str, tuple[int, str]]]:
    """The column of names, video or patient, and {name: (row number, fold)}.

    The CSV has the columns `video,fold`, or `patient,fold` for all videos of a patient; only the latter where a
    patient's videos are `joined`.
    """
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
    rows.refuse(columns[0], (names == "").to_numpy(), f"has no {columns[0]}", "fix the row")
    rows.refuse("fold", (folds == "").to_numpy(), "has no fold", "fix the row")
    odd = np.array([name_problem(fold) is not None for fold in folds])
    rows.refuse("fold", odd, "fold {value!r} is no name", "use a number, or letters, digits, -, _")
    # Folds may have names, but one name among numbers is a slip.
    named = ~folds.str.fullmatch("[0-9]+").to_numpy(dtype=bool)
    if not named.all():
        rows.refuse("fold", named, "fold {value!r} is not a whole number, as the others are", "fix the row")
    twice = names.duplicated().to_numpy()
    rows.refuse(columns[0], twice, f"{columns[0]} {{value}} is listed before", "keep one row of it")
    assert rows.origin.row_numbers is not None
    return columns[0], dict(zip(names, zip(rows.origin.row_numbers.tolist(), folds, strict=True), strict=True))


def _check_data_set_name(out: Path) -> None:
    name = out.absolute().name
    if name.lower() in RESERVED_NAMES or "." in name or any(character.isspace() for character in name):
        raise SpatialfeatError(
            f"OUT {out}: {name!r} would be the data set's name. This format allows no dot and no space in it, and its "
            f"readers change their settings for {', '.join(RESERVED_NAMES)}; choose another name"
        )


def _readable_names(
    names: Sequence[str], places: Sequence[str], breaks: str, replacement: str | None, option: str
) -> list[str]:
    """The names with every character at which readers cut them replaced.

    Raises SpatialfeatError, naming the place, if there is no replacement for it, or two names would become one.
    """
    if replacement is not None and (not replacement or breaks_in(replacement, breaks)):
        raise SpatialfeatError(f"{option} {replacement!r}: must itself be allowed in a name, e.g. _ or -")
    readable: list[str] = []
    for place, name in zip(places, names, strict=True):
        cut = breaks_in(name, breaks)
        if cut and replacement is None:
            raise SpatialfeatError(
                f"{place} {name!r} holds a space or one of {breaks}, at which readers of this format cut it; "
                f"pass {option} _ to replace such characters"
            )
        result = without_breaks(name, breaks, replacement or "")
        if result in readable:
            other = names[readable.index(result)]
            raise SpatialfeatError(f"{place}s {other!r} and {name!r} would both be {result}; pass another {option}")
        readable.append(result)
    return readable


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def _write_npy(path: Path, shape: tuple[int, int], blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
    """Write a (channels, T) little-endian float32 array in C order from (first frame, (channels, n)) blocks."""
    num_channels, num_frames = shape
    written = 0
    # Seeking instead of a memory map: on a full disk, writing to a map kills the process without an error.
    with path.open("wb") as file:
        file.write(npy_header(shape))
        data_start = file.tell()
        for first, block in blocks:
            rows = np.ascontiguousarray(block, dtype=FLOAT32)
            for channel in range(num_channels):
                file.seek(data_start + (channel * num_frames + first) * FLOAT32.itemsize)
                file.write(rows[channel].data)
            written += rows.shape[1]
    assert written == num_frames, f"{written} of {num_frames} frames were written"
