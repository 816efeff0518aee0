"""The tree that MS-TCN and its relatives read unmodified: `exportformats.MS_TCN` shows it.

    OUT/
      features/{video}.npy         (2048, T) float32, little-endian, C order
      groundTruth/{video}.txt      T lines: the phase name of each frame
      splits/train.split1.bundle   one {video}.txt a line; test, and val with --val-to own, likewise
      mapping.txt                  C lines: number and phase name, 0 to C-1

Every text ends in exactly one LF: the readers split at "\\n" and throw the last piece away.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from spatialfeat.config import ExportConfig
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.exportjob import Advance, ExportJob
from spatialfeat.exports.exportsource import ExportSource, ExportVideo, name_some
from spatialfeat.exports.mstcnsplits import bundles_of_folds, bundles_of_splits, refuse_small_bundles
from spatialfeat.exports.npyfile import write_channel_first_npy
from spatialfeat.exports.verify_mstcn import MIN_FRAMES, verify_mstcn
from spatialfeat.features.schema import CHANNEL_TIME

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
        phases = _phase_names(self.source.recipe.phase_names, self.config.name_replacement)
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
