"""What every export reads, and what every export format provides.

`open_videos` checks a feature folder and gives the videos to export. Their features are read in blocks, so that memory
grows neither with the length of a video nor with the number of videos. The class of a format, which `formats` names,
is derived from `ExportJob`.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import ExportConfig
from spatialfeat.console import count_text, name_some
from spatialfeat.data.frames import UNLABELLED
from spatialfeat.data.ids import IdRule
from spatialfeat.data.patients import patients_in_several_splits
from spatialfeat.data.pseudonyms import Pseudonyms, names_to_hide, open_pseudonyms
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import open_feature_dir, ordered_splits, patients_of
from spatialfeat.features.plan import Shard
from spatialfeat.features.schema import WEIGHTS_ORIGIN
from spatialfeat.files import read_json_object
from spatialfeat.formats import FORMATS
from spatialfeat.names import natural_key

FRAMES_PER_BLOCK = 4096
"""4096 frames of 2048 float32 are 32 MiB: all that is held of a video, where the format allows writing in blocks."""


class ExportVideo:
    """One video as it is exported: the frames of a feature file, or of all files of a patient one after the other.

    Every array is read from the files when it is asked for. All that stays in memory is which frames are exported.

    Attributes:
        files: where the frames come from, in order.
        video_id, patient_id: as they are written: after `rename`, no longer those of the files.
        num_frames: T, the frames that are exported. num_labelled, num_unlabelled: those in the files.

    Raises SpatialfeatError for a label that is no phase of the file.
    """

    def __init__(self, files: Sequence[FeatureFile], video_id: str, *, drop_unlabelled: bool) -> None:
        self.files = files
        self.video_id, self.patient_id, self.split = video_id, files[0].patient_id, files[0].split
        self.pseudonyms: Pseudonyms | None = None
        self.num_labelled = self.num_unlabelled = 0
        self._kept: list[NDArray[np.bool_] | slice] = []
        for file in files:
            labelled = file.phases() != UNLABELLED
            self.num_labelled += int(labelled.sum())
            self.num_unlabelled += int((~labelled).sum())
            self._kept.append(labelled if drop_unlabelled and not labelled.all() else slice(None))
            file.close()
        self.num_frames = self.num_labelled + (0 if drop_unlabelled else self.num_unlabelled)

    def rename(self, pseudonyms: Pseudonyms) -> None:
        """Write pseudonyms instead of the patient's id."""
        self.video_id = pseudonyms.video(self.video_id, self.patient_id)
        self.patient_id = pseudonyms.of_patient[self.patient_id]
        self.pseudonyms = pseudonyms

    def labels(self) -> NDArray[np.int64]:
        """(T,) int64, -100 where unlabelled."""
        return self._joined([file.labels for file in self.files])

    def ids(self) -> list[str]:
        """T frame ids."""
        if self.pseudonyms is None:
            ids: list[str] = self._joined([file.frame_ids for file in self.files]).tolist()
            return ids
        hidden = [map(self.pseudonyms.frame, *_ids_and_fields(file)) for file in self.files]
        renamed: list[str] = self._joined([np.array(list(names)) for names in hidden]).tolist()
        return renamed

    def segments(self) -> NDArray[np.int64]:
        """(T,) int64; 1, 2, ... for the files of a patient where their own numbers are not distinct."""
        parts = [file.segments for file in self.files]
        if len({int(part[0]) for part in parts}) < len(parts):
            parts = [np.full_like(part, place) for place, part in enumerate(parts, start=1)]
        return self._joined(parts)

    def frame_numbers(self) -> NDArray[np.int64]:
        """(T,) int64."""
        return self._joined([file.frames for file in self.files])

    def feature_blocks(self, axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first frame, features) until all T frames are read: (channels, n) or (n, channels) float32, n > 0.

        Raises SpatialfeatError for a value that is not finite, or a file that cannot be read.
        """
        return self._blocks(FeatureFile.features, axes)

    def logit_blocks(self, axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As `feature_blocks`: (C, n) or (n, C) float32."""
        return self._blocks(FeatureFile.logits, axes)

    def _joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([part[kept] for part, kept in zip(parts, self._kept, strict=True)])

    def _blocks(self, read: Callable[..., NDArray[np.float32]], axes: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        time_axis = axes.split(",").index("time")
        first = 0
        for file, kept in zip(self.files, self._kept, strict=True):
            for start in range(0, file.num_frames, FRAMES_PER_BLOCK):
                stop = min(start + FRAMES_PER_BLOCK, file.num_frames)
                block = read(file, start, stop, axes=axes)
                wrong = np.flatnonzero(~np.isfinite(block).all(axis=1 - time_axis))
                if len(wrong):
                    raise SpatialfeatError(
                        f"{file.path}: frame {file.frame_ids[start + wrong[0]]} holds a value that is not finite; a "
                        "temporal model would turn it into NaN everywhere: check the weights and extract it again"
                    )
                if not isinstance(kept, slice):
                    block = np.compress(kept[start:stop], block, axis=time_axis)
                if block.shape[time_axis]:
                    yield first, block
                first += block.shape[time_axis]
            # A folder of a thousand videos must not keep a thousand files and their chunk caches open.
            file.close()


def open_videos(config: ExportConfig) -> tuple[list[ExportVideo], list[str]]:
    """The videos to export, in numeric order of their ids, and what the user should know about them.

    Raises:
        SpatialfeatError: foreign or mixed files, patients that cannot be joined, labels without a phase name, no labels
            where the format needs them, unlabelled frames that are to be refused.
    """
    unlabelled = config.unlabelled or FORMATS[config.format].unlabelled[0]
    drop = unlabelled == "drop"
    files = open_feature_dir(config.features_dir)
    if config.group_by == "patient":
        videos = [ExportVideo(group, group[0].patient_id, drop_unlabelled=drop) for group in patients_of(files)]
    else:
        videos = [ExportVideo([file], file.video_id, drop_unlabelled=drop) for file in files]
    if config.pseudonymize is not None:
        _pseudonymize(videos, config.pseudonymize, outputs=[config.out, config.features_dir])
    notices = _notice_unfinished(config.features_dir)
    if any(video.num_unlabelled for video in videos):
        notices.append(_settle_unlabelled(config, videos, unlabelled))
    if config.folds is None:
        shared = patients_in_several_splits((video.patient_id, video.split, video.num_frames) for video in videos)
        if shared:
            named = name_some(f"{patient} ({', '.join(splits)})" for patient, splits in shared.items())
            notices.append(f"in more than one split, so that scores will be too good: patient {named}")
    return videos, notices


def _pseudonymize(videos: list[ExportVideo], map_path: Path, outputs: Sequence[Path]) -> None:
    for video in videos:
        if video.files[0].is_pseudonymized:
            raise SpatialfeatError(
                f"--pseudonymize {map_path}: {video.files[0].path} is pseudonymized already; leave the option out"
            )
    pairs = [(video.video_id, video.patient_id) for video in videos if len(video.files) == 1]
    for file in (file for video in videos for file in video.files):
        _, _, of_frames, patients = _ids_and_fields(file)
        pairs += dict.fromkeys(zip(of_frames, patients, strict=True))
    # First the patients that are shown, then the videos that the ids of their frames name.
    pseudonyms = open_pseudonyms(map_path, names_to_hide(pairs), outputs=outputs)
    for video in videos:
        video.rename(pseudonyms)
    # The order of the real ids would give something away, too.
    videos.sort(key=lambda video: natural_key(video.video_id))


def _ids_and_fields(file: FeatureFile) -> tuple[list[str], list[int], list[str], list[str]]:
    """Of every frame of a file: its id, its number, its video, its patient."""
    with file:
        ids, numbers = file.frame_ids.tolist(), file.frames.tolist()
    videos = IdRule.parse(file.provenance.id_rule).read(pd.Series(ids, dtype=object))["video"].tolist()
    if None in videos:
        raise SpatialfeatError(
            f"{file.path}: frame id {ids[videos.index(None)]} is none of {file.provenance.id_rule}, so --pseudonymize "
            "cannot hide the patient; extract the video again"
        )
    return ids, numbers, videos, [file.patient_id] * len(ids)


def _settle_unlabelled(config: ExportConfig, videos: Sequence[ExportVideo], unlabelled: str) -> str:
    """What happens to the unlabelled frames, as a notice. Raises SpatialfeatError where they cannot be exported."""
    form = FORMATS[config.format]
    no_label = not any(video.num_labelled for video in videos)
    if no_label and form.needs_labels:
        without = ", ".join(other.name for other in FORMATS.values() if not other.needs_labels)
        raise SpatialfeatError(
            f"{config.features_dir}: no frame has a label, and {form.name} needs them; extract from CSVs with a "
            f"column `label`, or choose a format that works without: {without}"
        )
    if no_label and unlabelled == "drop":
        raise SpatialfeatError(f"{config.features_dir}: no frame has a label: --unlabelled drop would leave nothing")
    found = [video for video in videos if video.num_unlabelled]
    count = count_text(sum(video.num_unlabelled for video in found), "frame")
    where = name_some(f"{video.video_id} ({video.num_unlabelled})" for video in found)
    frames = f"{count} without a label in {count_text(len(found), 'video')}: {where}"
    if unlabelled == "refuse":
        file = next(file for file in found[0].files if UNLABELLED in file.labels)
        first = file.frame_ids[np.flatnonzero(file.labels == UNLABELLED)[0]]
        others = " or ".join(f"--unlabelled {choice}" for choice in form.unlabelled if choice != "refuse")
        raise SpatialfeatError(f"{config.features_dir}: {frames}, first {first}; label them, or pass {others}")
    if no_label:
        return f"{frames}: there is nothing to train on, but all to predict"
    fates = {
        "drop": "left out (--unlabelled drop), so that the frames before and after a hole become neighbours",
        "keep": f"written with label {UNLABELLED}, which PyTorch's cross-entropy ignores",
        "background": f"written as phase {config.background_name} (--unlabelled background)",
    }
    return f"{frames}: {fates[unlabelled]}"


def _notice_unfinished(features_dir: Path) -> list[str]:
    """A run record that is not complete means that videos are missing, which the feature files cannot say.

    The last extraction left run.json, or one record for each of its shards, if these ran at all. The records are no
    part of the contract: folders put together by hand have none.
    """
    records = sorted(features_dir.glob("run*.json"), key=lambda path: path.stat().st_mtime_ns)
    matches = [match for path in records if (match := re.fullmatch(r"run(?:-\d+of(\d+))?\.json", path.name))]
    count = int(matches[-1][1] or 1) if matches else 0
    notices = []
    for index in range(1, count + 1):
        path = features_dir / Shard(index, count).run_record_name
        status = read_json_object(path).get("status", "complete") if path.exists() else "not begun"
        if status != "complete":
            notices.append(f"{path} says that the extraction is {status}: videos may be missing here")
    return notices


Advance = Callable[[int], None]
"""Called with the number of frames written since the last call."""


class ExportJob(ABC):
    """One export: the constructor makes every check, `write` writes, `verify` reads back what was written.

    Attributes:
        videos: those that are written; a subclass may leave some out.
        notices: what the user should know. warnings: where a program that reads this format would stop.
        provenance, num_channels, num_phases, has_logits, weights_origin: those of all videos.
    """

    def __init__(self, config: ExportConfig, videos: Sequence[ExportVideo], notices: Sequence[str]) -> None:
        """Raises SpatialfeatError for anything that the format cannot express."""
        self.config = config
        self.videos = [video for video in videos if video.num_frames]
        self.notices = list(notices)
        self.warnings: list[str] = []
        self.provenance = videos[0].files[0].provenance
        self.num_channels = videos[0].files[0].num_channels
        self.num_phases = videos[0].files[0].num_phases
        self.has_logits = videos[0].files[0].has_logits
        self.weights_origin: str = videos[0].files[0].attributes.get(WEIGHTS_ORIGIN, "")
        if self.weights_origin:
            self.notices.append(f"the weights are {self.weights_origin}")
        if len(self.videos) < len(videos):
            empty = name_some(video.video_id for video in videos if not video.num_frames)
            self.notices.append(f"videos left out, because no frame of them has a label: {empty}")

    @property
    def num_frames(self) -> int:
        return sum(video.num_frames for video in self.videos)

    @property
    def bytes_per_frame(self) -> int:
        """About what a frame takes on disk: features, logits, and a little for ids and labels."""
        return 4 * (self.num_channels + self.num_phases) + 128

    def per_split(self) -> dict[str, list[ExportVideo]]:
        """The videos of each split: train, val and test first, in numeric order within each."""
        splits = ordered_splits(video.split for video in self.videos)
        return {split: [video for video in self.videos if video.split == split] for split in splits}

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


FLOAT32 = np.dtype("<f4")


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a little-endian float32 .npy file in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": FLOAT32.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
