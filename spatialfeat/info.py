"""`spatialfeat info`: what feature files hold, and whether they can be used together. `infotext` writes it out."""

from __future__ import annotations

from pathlib import Path

from spatialfeat.data.frames import patients_in_several_splits
from spatialfeat.errors import SpatialfeatError
from spatialfeat.features.featurefile import FeatureFile
from spatialfeat.features.featurefolder import list_feature_files, mixed_recipes, repeated_videos
from spatialfeat.features.featuresummary import (
    DatasetSummary,
    FileSummary,
    FolderSummary,
    VideoSummary,
    summarize_video,
)
from spatialfeat.names import natural_key


def describe(path: Path) -> FolderSummary | FileSummary:
    """Summarize a folder of feature files or a single file, without reading features.

    Raises:
        SpatialfeatError: no such path, a folder without feature files, or a single file that cannot be read. Files of
            a folder that cannot be read are its problems instead.
    """
    if not path.exists():
        raise SpatialfeatError(f"{path}: no such file or folder; pass a folder of feature files, or one of them")
    if path.is_dir():
        return _describe_folder(path)
    with FeatureFile(path) as file:
        datasets = [DatasetSummary(**description) for description in file.describe_datasets()]
        return FileSummary(video=summarize_video(file), datasets=datasets, attributes=file.attributes)


def _describe_folder(features_dir: Path) -> FolderSummary:
    files: list[FeatureFile] = []
    videos: list[VideoSummary] = []
    problems: list[str] = []
    for path in list_feature_files(features_dir):
        try:
            with FeatureFile(path) as file:
                videos.append(summarize_video(file))
                files.append(file)
        except SpatialfeatError as error:
            problems.append(str(error).removeprefix(f"{features_dir}/"))
    conflicts = [*mixed_recipes(files), *repeated_videos(files)]
    problems += [f"{conflict.sentence}; extract it again, or move it away" for conflict in conflicts]
    videos.sort(key=lambda video: natural_key(video.video_id))
    return FolderSummary(
        path=features_dir,
        videos=videos,
        problems=problems,
        flagged={conflict.path for conflict in conflicts},
        notes=_notes(features_dir, videos),
    )


def _notes(features_dir: Path, videos: list[VideoSummary]) -> list[str]:
    shared = patients_in_several_splits((video.patient_id, video.split, video.num_frames) for video in videos)
    notes = [
        f"patient {patient} is in the splits {' and '.join(sorted(splits))}: scores on them are too good"
        for patient, splits in shared.items()
    ]
    unfinished = sorted(path.name for path in features_dir.glob(".*.partial"))
    return notes + [f"{name} is unfinished: an extraction is running, or was cut off" for name in unfinished]
