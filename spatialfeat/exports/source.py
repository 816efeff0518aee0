"""What an export reads: the videos of a feature folder, checked once, then read one block of frames at a time.

What every export format provides.

Writing .npy files piece by piece.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.config import ExportConfig, Shard
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED, patients_in_several_splits
from spatialfeat.data.pseudonyms import Pseudonyms, open_pseudonyms
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.folder import FeatureReader, join_patients, open_feature_dir
from spatialfeat.features.schema import TIME_CHANNEL, Provenance
from spatialfeat.files import read_json_object
from spatialfeat.formats import FORMATS, ExportFormat
from spatialfeat.names import natural_key

FRAMES_PER_BLOCK = 4096
"""4096 frames of 2048 float32 are 32 MiB: all that is held of a video, where the format allows writing in blocks."""

NAMED = 5
"""A message names so many videos; more would bury the first."""

_UNSAFE_NAME = re.compile(r"^\.|[/\\\x00-\x1f\x7f]|^$")


@dataclass(frozen=True)
class ExportVideo:
    """One video as it is exported. No array is kept in memory: each is read from the file when asked for.

    Attributes:
        num_frames: T, the frames that are exported. num_unlabelled: those without a label in the feature file.
        pseudonyms: with --pseudonymize; all ids are then given under pseudonyms.
    """

    file: FeatureReader
    drop_unlabelled: bool
    num_frames: int
    num_unlabelled: int
    pseudonyms: Pseudonyms | None = None

    @property
    def video_id(self) -> str:
        return self._renamed(self.file.video_id)

    @property
    def patient_id(self) -> str:
        return self._renamed(self.file.patient_id)

    @property
    def split(self) -> str:
        return self.file.split

    def labels(self) -> NDArray[np.int64]:
        """(T,) int64, -100 where unlabelled."""
        labels = self.file.labels
        return labels[labels != UNLABELLED] if self.drop_unlabelled else labels

    def frame_ids(self) -> NDArray[np.str_]:
        """(T,) str."""
        return np.array([self._renamed(name) for name in self._kept(self.file.frame_ids).tolist()], dtype=np.str_)

    def source_names(self) -> list[str]:
        """Names of the feature files, unless these tell the patient."""
        return [] if self.pseudonyms else [path.name for path in self.file.paths]

    def segments(self) -> NDArray[np.int64]:
        """(T,) int64."""
        return self._kept(self.file.segments)

    def frame_numbers(self) -> NDArray[np.int64]:
        """(T,) int64, the frame numbers."""
        return self._kept(self.file.frames)

    def feature_blocks(self, axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first frame, features) until all T frames are read: (2048, n) or (n, 2048) float32, n > 0.

        Raises:
            SpatialfeatError: a feature is not finite, or the file cannot be read.
        """
        return self._blocks(self.file.features, axes)

    def logit_blocks(self, axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As `feature_blocks`: (C, n) or (n, C) float32."""
        return self._blocks(self.file.logits, axes)

    def _renamed(self, name: str) -> str:
        return name if self.pseudonyms is None else self.pseudonyms.rename(name, self.file.patient_id)

    def _kept(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self.file.labels != UNLABELLED] if self.drop_unlabelled else values

    def _blocks(self, read: Callable[..., NDArray[np.float32]], axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        keep = self.file.labels != UNLABELLED if self.drop_unlabelled else np.ones(self.file.num_frames, dtype=bool)
        time_axis = 0 if axes == TIME_CHANNEL else 1
        first = 0
        for start in range(0, self.file.num_frames, FRAMES_PER_BLOCK):
            stop = min(start + FRAMES_PER_BLOCK, self.file.num_frames)
            block = read(start, stop, axes=axes)
            self._refuse_non_finite(block, start, time_axis)
            if not keep[start:stop].all():
                block = np.compress(keep[start:stop], block, axis=time_axis)
            if block.shape[time_axis]:
                yield first, block
            first += block.shape[time_axis]
        # A folder of a thousand videos must not keep a thousand files and their chunk caches open.
        self.file.close()

    def _refuse_non_finite(self, block: NDArray[np.float32], start: int, time_axis: int) -> None:
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1 - time_axis))
        if len(wrong):
            frame = self.file.frame_ids[start + int(wrong[0])]
            raise SpatialfeatError(
                f"{self.file.path}: frame {frame} holds a value that is not finite; a temporal "
                "model would turn it into NaN everywhere: check the weights and extract the video again"
            )


@dataclass(frozen=True)
class ExportSource:
    """The videos to export, in numeric order of their ids. `notices` are what the user should know of them."""

    features_dir: Path
    form: ExportFormat
    unlabelled: str
    videos: list[ExportVideo]
    provenance: Provenance
    notices: list[str]


def open_source(config: ExportConfig) -> ExportSource:
    """Open all feature files, check that they belong together, and settle what becomes of unlabelled frames.

    Raises:
        SpatialfeatError: foreign or mixed files, labels without a phase name, no labels where the format needs them,
            unlabelled frames that are to be refused.
    """
    form = FORMATS[config.format]
    unlabelled = config.unlabelled or form.unlabelled[0]
    opened = open_feature_dir(config.features_dir)
    files: Sequence[FeatureReader] = join_patients(opened) if config.group_by == "patient" else opened
    videos = [_survey(file, drop_unlabelled=unlabelled == "drop") for file in files]
    if config.pseudonymize is not None:
        videos = _pseudonymized(videos, config, config.pseudonymize)
    notices = _notice_unfinished(config.features_dir)
    if any(video.num_unlabelled for video in videos):
        _check_unlabelled(config, form, videos, unlabelled)
        fate = _FATES[unlabelled].format(name=config.background_name)
        if unlabelled == "keep" and all(video.num_unlabelled == video.num_frames for video in videos):
            fate = "there is nothing to train on, but all to predict"
        notices.append(f"{_unlabelled_frames(videos)}: {fate}")
    if config.folds is None:
        notices += _notice_shared_patients(videos)
    return ExportSource(config.features_dir, form, unlabelled, videos, videos[0].file.provenance, notices)


_FATES = {
    "drop": "left out (--unlabelled drop), so that the frames before and after a hole become neighbours",
    "keep": f"written with label {UNLABELLED}, which PyTorch's cross-entropy ignores",
    "background": "written as phase {name} (--unlabelled background)",
}


def name_some(names: Iterable[str]) -> str:
    """`a, b, c, d, e and 7 more`."""
    all_names = list(names)
    more = f" and {len(all_names) - NAMED} more" if len(all_names) > NAMED else ""
    return ", ".join(all_names[:NAMED]) + more


def require_file_names(source: ExportSource) -> None:
    """Refuse video ids and splits that cannot be the name of a file. Only a file made elsewhere can have them."""
    for video in source.videos:
        for what, name in (("video id", video.video_id), ("split", video.split)):
            if _UNSAFE_NAME.search(name):
                raise SpatialfeatError(f"{video.file.path}: {what} {name!r} cannot be a file name; extract it again")


def _pseudonymized(videos: Sequence[ExportVideo], config: ExportConfig, map_path: Path) -> list[ExportVideo]:
    """The videos under pseudonyms and in their order: the order of real ids would tell something, too."""
    for video in videos:
        if video.file.is_pseudonymized:
            raise SpatialfeatError(
                f"--pseudonymize {map_path}: {video.file.path} is pseudonymized already; leave the option out"
            )
    patients = list(dict.fromkeys(video.patient_id for video in videos))
    pseudonyms = open_pseudonyms(map_path, patients, outputs=[config.out, config.features_dir])
    return sorted(
        (replace(video, pseudonyms=pseudonyms) for video in videos), key=lambda video: natural_key(video.video_id)
    )


def _survey(file: FeatureReader, *, drop_unlabelled: bool) -> ExportVideo:
    labels = file.labels
    num_unlabelled = int((labels == UNLABELLED).sum())
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= file.num_phases)))
    if len(wrong):
        raise SpatialfeatError(
            f"{file.path}: frame {file.frame_ids[wrong[0]]} has label {labels[wrong[0]]}, "
            f"but the file names {file.num_phases} phases; extract the video again"
        )
    file.close()
    num_frames = len(labels) - num_unlabelled if drop_unlabelled else len(labels)
    return ExportVideo(file, drop_unlabelled, num_frames, num_unlabelled)


def _check_unlabelled(config: ExportConfig, form: ExportFormat, videos: list[ExportVideo], unlabelled: str) -> None:
    none_at_all = all(video.num_unlabelled == video.file.num_frames for video in videos)
    if none_at_all and form.needs_labels:
        without = ", ".join(other.name for other in FORMATS.values() if not other.needs_labels)
        raise SpatialfeatError(
            f"{config.features_dir}: no frame has a label, and {form.name} needs them; extract from CSVs with a "
            f"column `label`, or choose a format that works without: {without}"
        )
    if none_at_all and unlabelled == "drop":
        raise SpatialfeatError(f"{config.features_dir}: no frame has a label: --unlabelled drop would leave nothing")
    if unlabelled == "refuse":
        others = " or ".join(f"--unlabelled {choice}" for choice in form.unlabelled if choice != "refuse")
        raise SpatialfeatError(
            f"{config.features_dir}: {_unlabelled_frames(videos)}, first {_first_unlabelled(videos)}; "
            f"label them, or pass {others}"
        )


def _unlabelled_frames(videos: list[ExportVideo]) -> str:
    found = [video for video in videos if video.num_unlabelled]
    where = name_some([f"{video.video_id} ({video.num_unlabelled})" for video in found])
    frames = count_text(sum(video.num_unlabelled for video in found), "frame")
    return f"{frames} without a label in {count_text(len(found), 'video')}: {where}"


def _first_unlabelled(videos: list[ExportVideo]) -> str:
    file = next(video.file for video in videos if video.num_unlabelled)
    return str(file.frame_ids[np.flatnonzero(file.labels == UNLABELLED)[0]])


def _notice_shared_patients(videos: list[ExportVideo]) -> list[str]:
    found = patients_in_several_splits((video.patient_id, video.split, video.num_frames) for video in videos)
    shared = [f"{patient} ({', '.join(splits)})" for patient, splits in found.items()]
    return [f"in more than one split, so that scores will be too good: patient {name_some(shared)}"] if shared else []


def _notice_unfinished(features_dir: Path) -> list[str]:
    """A run record that is not complete means that videos are missing, which the feature files cannot tell."""
    # The record is no part of the contract: folders put together by hand have none.
    notices = []
    for path in _latest_records(features_dir):
        status = read_json_object(path).get("status", "complete") if path.exists() else "not begun"
        if status != "complete":
            notices.append(f"{path} says that the extraction is {status}: videos may be missing here")
    return notices


def _latest_records(features_dir: Path) -> list[Path]:
    """The record of the last extraction: run.json, or one for each of the shards, also of those that never ran."""
    records = sorted(features_dir.glob("run*.json"), key=lambda path: path.stat().st_mtime_ns)
    matches = [match for path in records if (match := re.fullmatch(r"run(?:-\d+of(\d+))?\.json", path.name))]
    if not matches:
        return []
    count = int(matches[-1][1] or 1)
    return [features_dir / Shard(index, count).run_record_name for index in range(1, count + 1)]


Advance = Callable[[int], None]
"""Called with the number of frames written since the last call."""


class ExportJob(ABC):
    """One export: the constructor makes every check, `write` writes, `verify` reads back what was written.

    Attributes:
        videos: those that are written; a subclass may leave some out.
        notices: what the user should know, beyond the notices of the source.
    """

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        """Raises SpatialfeatError for anything that the format cannot express."""
        self.source = source
        self.config = config
        self.videos: list[ExportVideo] = [video for video in source.videos if video.num_frames]
        self.notices: list[str] = []
        if len(self.videos) < len(source.videos):
            empty = name_some(video.video_id for video in source.videos if not video.num_frames)
            self.notices.append(f"videos left out, because no frame of them has a label: {empty}")

    @property
    def num_frames(self) -> int:
        return sum(video.num_frames for video in self.videos)

    @property
    def bytes_per_frame(self) -> int:
        """About what a frame takes on disk: features, logits, and a little for ids and labels."""
        provenance, file = self.source.provenance, self.source.videos[0].file
        return 4 * (file.num_channels + len(provenance.phase_names)) + 128

    @abstractmethod
    def write(self, target: Path, advance: Advance) -> None:
        """Write everything to `target`, an empty folder or the name of a new file."""

    @abstractmethod
    def verify(self, target: Path) -> list[str]:
        """Read `target` back. Returns one sentence for each thing that is wrong."""

    @abstractmethod
    def tree(self) -> list[str]:
        """What was written, one line per file or group of files, with counts."""

    @abstractmethod
    def next_step(self) -> str:
        """What to do with it: the command of the temporal model, or the lines that read it."""

    def per_split(self) -> dict[str, list[ExportVideo]]:
        """The videos of each split: train, val and test first, in numeric order within each."""
        usual = [split for split in ("train", "val", "test") if any(video.split == split for video in self.videos)]
        others = sorted({video.split for video in self.videos} - set(usual))
        return {split: [v for v in self.videos if v.split == split] for split in usual + others}


def read_back(job: ExportJob, target: Path) -> None:
    """Raise SpatialfeatError if a finished export does not hold what it should: this program's fault, or the disk's."""
    try:
        problems = job.verify(target)
    except (OSError, ValueError, EOFError) as error:
        problems = [f"it cannot be read ({error})"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpatialfeatError(
            f"the export was written, but reading it back found: {problems[0]}{more}; nothing is kept: check the disk, "
            "try again, and report it if it stays"
        )


FLOAT32 = np.dtype("<f4")


def write_channel_first_npy(
    path: Path, shape: tuple[int, int], blocks: Iterable[tuple[int, NDArray[np.float32]]]
) -> None:
    """Write a (channels, T) little-endian float32 array in C order from blocks of frames.

    Args:
        blocks: (first frame, (channels, n) float32), together all T frames.
    """
    channels, num_frames = shape
    written = 0
    # Seeking instead of a memory map: on a full disk, writing to a map kills the process without an error.
    with path.open("wb") as file:
        file.write(npy_header(shape))
        data_start = file.tell()
        for first, block in blocks:
            rows = np.ascontiguousarray(block, dtype=FLOAT32)
            for channel in range(channels):
                file.seek(data_start + (channel * num_frames + first) * FLOAT32.itemsize)
                file.write(rows[channel].data)
            written += rows.shape[1]
    assert written == num_frames, f"{written} of {num_frames} frames were written"


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a little-endian float32 .npy file in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": FLOAT32.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
