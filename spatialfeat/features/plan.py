"""What an extraction has to compute: which videos are done, what must not be mixed, and whose share is which video."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from spatialfeat.data.frames import Video
from spatialfeat.data.images import content_digest
from spatialfeat.data.pseudonyms import Pseudonyms
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.file import FeatureFile
from spatialfeat.features.folder import describe_differences
from spatialfeat.features.schema import DATA_SET, IMAGES_CONTENT, IMAGES_STAT, SUFFIX, Provenance, VideoHeader
from spatialfeat.names import file_name

THERE_AND_NOW = "{} there, {} now"


@dataclass(frozen=True)
class Shard:
    """The share `index` of `count` of an extraction, counted from 1 as job arrays are."""

    index: int = 1
    count: int = 1

    @property
    def run_record_name(self) -> str:
        """`run.json` of a whole extraction, `run-2of4.json` of a share, so that shares do not overwrite each other."""
        return "run.json" if self.count == 1 else f"run-{self.index}of{self.count}.json"


def parse_shard(text: str | None) -> Shard:
    """`2/4` as the second of four, and None, a whole extraction, as 1 of 1."""
    if text is None:
        return Shard()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or int(match[2]) == 0:
        raise SpatialfeatError(f"--shard {text}: must be I/N, the I-th of N shares, e.g. 1/4")
    shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.index <= shard.count:
        raise SpatialfeatError(
            f"--shard {text}: shares count from 1, so pass 1/{shard.count} to {shard.count}/{shard.count} "
            f"(Slurm: --array=1-{shard.count})"
        )
    return shard


def feature_path(out_dir: Path, video: Video) -> Path:
    """Where the feature file of `video` lies, or will."""
    return out_dir / f"{file_name(video.video_id)}{SUFFIX}"


def video_header(video: Video) -> VideoHeader:
    """What the feature file of `video` says of its frames."""
    table, rows = video.table, video.rows
    return VideoHeader(
        video_id=video.video_id,
        patient_id=video.patient_id,
        split=table.split,
        frame_ids=table.ids[rows],
        labels=table.labels[rows],
        segments=video.segments,
        frame_numbers=table.frame_numbers[rows],
    )


def plan_extraction(
    videos: Sequence[Video],
    out_dir: Path,
    provenance: Provenance,
    *,
    overwrite: bool,
    data_set: str | None = None,
    pseudonyms: Pseudonyms | None = None,
    elsewhere: Collection[Path] = (),
) -> tuple[list[Video], list[Video]]:
    """Compare the videos with the feature files that are in `out_dir`.

    Returns (videos to compute, videos that are done), each in the order of `videos`.

    A file made by the same weights, options and frames is done. Any other file would mix features that do not belong
    together: it is an error, unless it belongs to one of `videos` and `overwrite` is set.

    Args:
        data_set: what the files must say that the frames are from; None is anything.
        pseudonyms: those that the ids of `videos` are of, None if they are real ids.
        elsewhere: the files of other shares of the same extraction, which see to them: with `overwrite` they may be
            anything yet.

    Raises:
        SpatialfeatError: with the file and what differs.
    """
    by_path = {feature_path(out_dir, video): video for video in videos}
    done: set[str] = set()
    for path in sorted(out_dir.glob(f"*{SUFFIX}")):
        video = by_path.get(path)
        if video is None:
            if not (overwrite and path in elsewhere):
                _refuse_stranger(path, provenance, pseudonyms)
            continue
        problem = _why_not_reusable(path, video, provenance, data_set)
        if problem is None:
            done.add(video.video_id)
        elif not overwrite:
            raise SpatialfeatError(
                f"{path}: {problem}; pass --overwrite to replace such files, or choose another --out"
            )
    to_compute = [video for video in videos if video.video_id not in done]
    return to_compute, [video for video in videos if video.video_id in done]


def fingerprints_digest(video: Video) -> str:
    """A digest of the sizes and modification times of the images: cheap, and equal only if no file was touched.

    Raises:
        FileNotFoundError: an image is not there.
    """
    digest = hashlib.sha256()
    for name in video.table.image_names[video.rows].tolist():
        size_bytes, modified_ns = video.table.images.fingerprint(name)
        digest.update(f"{size_bytes},{modified_ns};".encode())
    return digest.hexdigest()


def _refuse_stranger(path: Path, provenance: Provenance, pseudonyms: Pseudonyms | None) -> None:
    """A file of a video that is not part of this run may stay only if its features belong with the new ones."""
    with FeatureFile(path) as file:
        pass  # Its attributes say all: nothing else of it is read.
    apart = "a patient may be here under two names: move it away, or choose another --out"
    if pseudonyms is None and file.is_pseudonymized:
        raise SpatialfeatError(f"{path}: was made with --pseudonymize, and this run is without; {apart}")
    if pseudonyms is not None and file.patient_id not in pseudonyms.of_patient.values():
        raise SpatialfeatError(f"{path}: its patient {file.patient_id} is no pseudonym of {pseudonyms.path}; {apart}")
    differing = describe_differences(file.provenance, provenance, THERE_AND_NOW)
    if differing:
        raise SpatialfeatError(
            f"{path}: was made with other {', '.join(differing)} and is not part of this run; move it away, or choose "
            "another --out"
        )


def _why_not_reusable(path: Path, video: Video, provenance: Provenance, data_set: str | None) -> str | None:
    try:
        with FeatureFile(path) as file:
            # All but features and logits is read, so that damage there is seen.
            ids, labels, _, _ = file.frame_ids, file.labels, file.segments, file.frames
    except SpatialfeatError as error:
        return f"cannot be reused ({str(error).removeprefix(f'{path}: ')})"
    differing = describe_differences(file.provenance, provenance, THERE_AND_NOW)
    if differing:
        return f"was made with other {', '.join(differing)}"
    there = file.attributes.get(DATA_SET, "")
    if data_set not in (None, there):
        return f"was made {f'with --data-set {there}' if there else 'without --data-set'}, now {data_set}"
    expected = video_header(video)
    if expected.split != file.split:
        return f"was made for split {file.split}, now {expected.split}"
    if expected.patient_id != file.patient_id:
        return f"was made for patient {file.patient_id}, now {expected.patient_id}"
    if expected.frame_ids.tolist() != ids.tolist():
        return f"holds other frames ({len(ids)} there, {len(expected.frame_ids)} now)"
    if expected.labels.tolist() != labels.tolist():
        return "holds other labels"
    if not _same_images(file, video):
        return "was made from images that have changed since"
    return None


def _same_images(file: FeatureFile, video: Video) -> bool:
    if file.attributes.get(IMAGES_STAT) == fingerprints_digest(video):
        return True
    # Copied files have new times but the same content; reading them is far cheaper than extracting them.
    digest = hashlib.sha256()
    for name in video.table.image_names[video.rows].tolist():
        digest.update(content_digest(video.table.images.read(name)))
    return file.attributes.get(IMAGES_CONTENT) == digest.hexdigest()


def share_out(videos: Sequence[Video], shares: int) -> list[list[Video]]:
    """Deal the videos out, longest first, each to the share that has the fewest frames by then.

    Depends on the videos alone, so processes agree without any exchange. No share has more than 4/3 of the
    frames of the best possible largest share (Graham's bound).

    Returns:
        `shares` lists, some of them empty if there are fewer videos; each in the order of `videos`.
    """
    loads = [0] * shares
    share_of = {}
    for index in sorted(range(len(videos)), key=lambda index: (-len(videos[index]), index)):
        share = loads.index(min(loads))
        loads[share] += len(videos[index])
        share_of[index] = share
    return [[videos[index] for index in range(len(videos)) if share_of[index] == share] for share in range(shares)]
