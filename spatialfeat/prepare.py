"""`spatialfeat prepare`: from videos or frames, and their annotations, to a folder for all other commands."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import PrepareConfig, csv_name
from spatialfeat.console import align, clock_text, count_text, frame_bar, name_some, show_results, wrap
from spatialfeat.data.frames import FrameTable, make_table
from spatialfeat.data.splits import part_of, parts_text, split_rows
from spatialfeat.data.tables import Origin, Rows
from spatialfeat.device import usable_cores
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import CsvTable, open_csv_text, read_json_object, write_atomically
from spatialfeat.names import name_problem, natural_key, same_name_key
from spatialfeat.phases import write_names
from spatialfeat.reports.plots import save_png
from spatialfeat.reports.ribbons import contact_sheet, crop_sheet
from spatialfeat.runrecord import RunRecord, recorded_options
from spatialfeat.sources.annotations import Phases, Track, doubtful_phases, name_phases, read_phase_map
from spatialfeat.sources.datasets import DATA_SETS, DataSet, matching, tracks_of
from spatialfeat.sources.own import VIDEO_SUFFIX, Reading, read_own_tracks
from spatialfeat.sources.study import (
    IMAGES,
    RECORD,
    RECORDS,
    Pictures,
    Settings,
    VideoJob,
    is_done,
    prepare_videos,
    read_rows,
    read_samples,
    remove_video,
    thumbnails_at,
)
from spatialfeat.sources.video import header_length, load_av

MANIFEST = "prepare.json"
SPLITS = ("train", "val", "test", "all")
SHARED_OUT = ("train", "all")
"""The splits whose patients --val and --test share out."""


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

FIXED = ("source", "fps", "short_side", "image_format", "crop_border", "unlabelled")
"""Options that are the same for all of a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done. splits: {video: split}, before --val and --test. phases: None without annotations.

    notes: what to report. doubts: about names of phases, to be told before hours of decoding and again after them.
    """

    jobs: list[VideoJob]
    splits: dict[str, str]
    phases: Phases | None
    notes: list[str]
    doubts: list[str]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A video that is there. pictures: its frames, where they are files already."""

    path: Path
    pictures: Pictures | None = None


def prepare(config: PrepareConfig) -> list[dict[str, Any]]:
    """Write images/, the CSVs, phase_names.txt and prepare.json to `config.out`. Returns the records of the videos.

    Videos that an earlier run has finished are kept.

    Raises:
        SpatialfeatError: options, annotations or videos at fault; nothing is written before the annotations are
            understood, and no CSV while a video is missing.
    """
    if config.source != "frames":
        load_av()
    plan = _plan(config)
    _check_place(config)
    for note in plan.notes:
        logger.info("note: %s", note)
    _warn(plan.doubts)
    (config.out / IMAGES).mkdir(parents=True, exist_ok=True)
    (config.out / RECORDS).mkdir(exist_ok=True)
    annotations = sorted({job.track.path for job in plan.jobs if job.track is not None})
    with RunRecord(config.out, "prepare", config, annotations, file_name=MANIFEST) as record:
        records = _prepare_all(config, plan)
        table, video_of_row = _read_table(config, plan)
        splits = _share_out(config, plan, table, video_of_row)
        _write_study(config, plan, splits)
        if config.crop_border:
            _write_crop_sheet(config.out, records)
        record.finish(
            phase_names=None if plan.phases is None else list(plan.phases.names),
            notes=[*plan.notes, *plan.doubts],
            videos=[
                {"split": splits[entry["video"]]} | {key: entry[key] for key in entry if key != "inputs"}
                for entry in records
            ],
        )
    split_of_row = np.array([splits[video] for video in video_of_row])
    _tell(config, plan, splits, records, table, split_of_row)
    return records


def _check_place(config: PrepareConfig) -> None:
    out = config.out
    if out.exists() and not out.is_dir():
        raise SpatialfeatError(f"OUT {out}: is a file; choose another name")
    data_dir, resolved = config.data_dir.resolve(), out.resolve()
    if resolved == data_dir or data_dir in resolved.parents:
        raise SpatialfeatError(f"OUT {out}: lies in DIR {config.data_dir}; choose a place outside of it")
    before = read_json_object(out / MANIFEST).get("options", {})
    if not before and out.exists() and any(out.iterdir()):
        raise SpatialfeatError(f"OUT {out}: is not empty, and not begun by prepare; choose another folder")
    now = recorded_options(config)
    for name in FIXED if before else ():
        if before.get(name) != now[name]:
            raise SpatialfeatError(
                f"OUT {out}: was begun with {name.replace('_', ' ')} {before.get(name)}, not {now[name]}; choose "
                "another folder, or pass the same options"
            )


def _plan(config: PrepareConfig) -> Plan:
    """Find the videos and understand their annotations."""
    if not config.data_dir.is_dir():
        raise SpatialfeatError(f"DIR {config.data_dir}: no such folder; pass the folder of the videos or frames")
    tracks: dict[str, Track] | None
    if config.source in DATA_SETS:
        found, tracks, notes = _data_set(config, DATA_SETS[config.source])
    elif config.source == "videos":
        found, tracks, notes = _own(config, _find_videos(config))
    elif config.source == "frames":
        found, tracks, notes = _own(config, _find_pictures(config))
    else:
        known = ", ".join(("videos", "frames", *DATA_SETS))
        raise SpatialfeatError(f"SOURCE {config.source}: is none of {known}; spatialfeat prepare --help describes them")
    data_set = DATA_SETS.get(config.source)
    phases = None
    if tracks is not None:
        phases = _name_phases(config, data_set, tracks.values())
    settings = Settings(
        fps=str(Fraction(str(config.fps))),
        short_side=config.short_side_px,
        format=config.image_format,
        crop_border=config.crop_border,
        keep_unlabelled=config.unlabelled == "keep",
        allow_cut=config.allow_cut,
        allow_length_difference=config.allow_length_difference,
    )

    def job(video: str, own: _Found) -> VideoJob:
        track = None if tracks is None else tracks[video]
        return VideoJob(
            video=video,
            patient=_patient(video) if data_set is None else data_set.patient(video),
            source=own.path,
            pictures=own.pictures,
            track=track,
            labels=_own_labels(phases, track),
            # The unit of data sets is known; of intervals, any number may be missing.
            may_end_early=data_set is not None and (data_set.may_end_early or track is None or track.rows_end is None),
            settings=settings,
        )

    jobs = [job(video, own) for video, own in found.items()]
    doubts: list[str] = []
    if phases is not None and data_set is None and config.phase_names is None and config.phase_map is None:
        # Of names that were given, nothing is doubtful: all others are refused.
        own = {job.video: job.track for job in jobs if job.track is not None}
        doubts = list(doubtful_phases(own, phases.labels))
    splits = _splits(config, data_set, jobs, notes)
    return Plan(jobs=jobs, splits=splits, phases=phases, notes=notes, doubts=doubts)


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        logger.warning("%s", "\n".join(wrap(doubt)))


def _own_labels(phases: Phases | None, track: Track | None) -> dict[str, int | None]:
    """Of the phases that a track has."""
    if phases is None or track is None:
        return {}
    return {text: phases.labels[text] for text in sorted({span.phase for span in track.spans})}


def _name_phases(config: PrepareConfig, data_set: DataSet | None, tracks: Any) -> Phases:
    phase_map = None if config.phase_map is None else read_phase_map(config.phase_map)
    first = None if config.first_phase is None else (config.first_phase,)
    if data_set is None:
        return name_phases(tracks, names=config.phase_names, first_phase=first, phase_map=phase_map)
    return name_phases(
        tracks,
        names=data_set.phases or None,
        first_phase=first or data_set.first_phase,
        spelling=data_set.spelling,
        unlabelled=data_set.unlabelled,
        phase_map=phase_map,
    )


def _files(config: PrepareConfig) -> dict[str, Path]:
    """{path below DIR: path} of its files, hidden ones aside, in natural order."""
    paths = [path for path in config.data_dir.rglob("*") if path.is_file()]
    inside = {path.relative_to(config.data_dir).as_posix(): path for path in paths}
    shown = [name for name in inside if not any(part.startswith(".") for part in name.split("/"))]
    return {name: inside[name] for name in sorted(shown, key=natural_key)}


def _data_set(config: PrepareConfig, data_set: DataSet) -> tuple[dict[str, _Found], dict[str, Track], list[str]]:
    files = _files(config)
    videos = _without_left_out(
        config, {name: _Found(path=path) for name, path in matching(files, data_set.videos).items()}
    )
    try:
        tracks = tracks_of(data_set, files)
    except SpatialfeatError as error:
        raise SpatialfeatError(f"DIR {config.data_dir}: {error}") from error
    notes = data_set.remarks
    without = [video for video in videos if same_name_key(video) not in tracks]
    if without:
        notes.append(f"left out, there is no annotation: {', '.join(without)}")
    missing = {same_name_key(video) for video in videos}
    lacking = [track.path.name for key, track in tracks.items() if key not in missing]
    if lacking:
        notes.append(f"{count_text(len(lacking), 'annotation')} without a video, e.g. {lacking[0]}")
    kept = {video: own for video, own in videos.items() if video not in without}
    if not kept:
        raise SpatialfeatError(
            f"DIR {config.data_dir}: no video of {data_set.title} with an annotation found; expected:\n"
            f"{data_set.layout}"
        )
    found = {video: tracks[same_name_key(video)] for video in kept}
    if len(data_set.first_phase) > 1:
        # All files together show from where phases count, also those whose videos are not here.
        found = {str(track.path): track for track in tracks.values()} | found
    return kept, found, notes


def _without_left_out(config: PrepareConfig, found: dict[str, _Found]) -> dict[str, _Found]:
    keys = {same_name_key(video): video for video in found}
    out = set()
    for name in config.leave_out:
        if same_name_key(name) not in keys:
            raise SpatialfeatError(
                f"--leave-out {name}: is none of the videos, which are {', '.join(list(found)[:20])}"
            )
        out.add(keys[same_name_key(name)])
    return {video: own for video, own in found.items() if video not in out}


def _own(
    config: PrepareConfig, found: dict[str, _Found]
) -> tuple[dict[str, _Found], dict[str, Track] | None, list[str]]:
    for video in found:
        problem = name_problem(video)
        if problem is not None:
            raise SpatialfeatError(
                f"{found[video].path}: {video!r} cannot be the name of a video: it {problem}; rename it"
            )
    found = _without_left_out(config, found)
    if config.annotations is None:
        return found, None, ["no --annotations: frames without labels, for `spatialfeat extract`"]

    def length(video: str) -> tuple[int | None, float | None]:
        pictures = found[video].pictures
        return header_length(found[video].path) if pictures is None else (len(pictures.files), None)

    reading = Reading(
        unit=config.unit,
        first=config.first_row if config.source == "frames" else config.first_frame,
        first_file=config.first_frame if config.source == "frames" and config.annotation_fps is None else None,
        first_flag="--first-row" if config.source == "frames" else "--first-frame",
        interval_end=config.interval_end,
        overlap=config.overlap,
    )
    tracks, foreign = read_own_tracks(config.annotations, config.data_dir, list(found), reading, length)
    without = [video for video in found if same_name_key(video) not in tracks]
    if without:
        raise SpatialfeatError(
            f"--annotations {config.annotations}: nothing about {name_some(without, 10)}; tables belong to a "
            "video by a column `video` or by their file's name; add them, or leave the videos out with --leave-out"
        )
    notes = []
    if foreign:
        about = count_text(len(foreign), "video that is", "videos that are")
        notes.append(f"annotations of {about} not here, or left out: {name_some(foreign, 10)}")
    return found, {video: tracks[same_name_key(video)] for video in found}, notes


def _find_videos(config: PrepareConfig) -> dict[str, _Found]:
    """Named by the file; by the folder where several folders have a file of the same name."""
    paths = [path for path in _files(config).values() if VIDEO_SUFFIX.fullmatch(path.suffix)]
    if not paths:
        raise SpatialfeatError(
            f"DIR {config.data_dir}: holds no video (such as .mp4, .avi, .mkv); pass the right folder"
        )
    for names in ([path.stem for path in paths], [path.parent.name for path in paths]):
        if len({same_name_key(name) for name in names}) == len(paths):
            return {name: _Found(path=path) for name, path in zip(names, paths, strict=True)}
    seen: dict[tuple[object, ...], Path] = {}
    for path in paths:
        other = seen.setdefault(same_name_key(path.stem), path)
        if other != path:
            raise SpatialfeatError(f"{other} and {path}: would be one video, {path.stem}; rename one of them")
    raise AssertionError("two of them are the same")


def _find_pictures(config: PrepareConfig) -> dict[str, _Found]:
    """Frames as VIDEO/NUMBER.png, VIDEO/anything_NUMBER.png or VIDEO_NUMBER.png, also .jpg."""
    numbers: dict[str, dict[int, Path]] = {}
    for name, path in _files(config).items():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        match = re.fullmatch(r"(?P<before>.*?)_?(?P<number>[0-9]{1,18})", path.stem)
        if match is None:
            raise SpatialfeatError(f"{path}: its name does not end in a frame number; rename it, or take it away")
        video = path.parent.name if "/" in name else match["before"]
        if not video:
            raise SpatialfeatError(
                f"{path}: does not say its video; put frames into a folder per video, or name them VIDEO_NUMBER"
            )
        other = numbers.setdefault(video, {}).setdefault(int(match["number"]), path)
        if other != path:
            raise SpatialfeatError(f"{other} and {path}: are both frame {match['number']} of {video}; keep one of them")
    if not numbers:
        raise SpatialfeatError(f"DIR {config.data_dir}: holds no .png or .jpg file; pass the folder of the frames")
    lowest, where = min((min(own), str(own[min(own)])) for own in numbers.values())
    first = config.first_frame
    if first is None and lowest > 0 and config.annotations is not None:
        raise SpatialfeatError(
            f"{where}: the lowest frame is {lowest}: are frames numbered from 0 or from 1? Pass --first-frame 1 "
            "(ffmpeg and most others) or --first-frame 0"
        )
    if config.source_fps is None and config.annotations is not None:
        raise SpatialfeatError(
            f"DIR {config.data_dir}: how many of these frames make a second? Pass --source-fps, e.g. --source-fps 1"
        )
    source_fps = Fraction(str(config.source_fps or config.fps))
    if first == 1 and config.taken_at == "start" and config.annotations is not None:
        logger.info(
            "note: frames are taken to lie at the start of each 1/%s s; if ffmpeg's filter fps made them, pass "
            "--taken-at middle",
            source_fps,
        )
    middle = config.taken_at == "middle"
    return {
        video: _Found(
            path=next(iter(own.values())).parent,
            pictures=Pictures(
                files=tuple(sorted(own.items())),
                first=first or 0,
                fps=str(source_fps),
                offset_s=str(1 / (2 * source_fps) if middle else Fraction(0)),
                annotation_fps=None if config.annotation_fps is None else str(Fraction(str(config.annotation_fps))),
            ),
        )
        for video, own in sorted(numbers.items(), key=lambda item: natural_key(item[0]))
    }


def _patient(video: str) -> str:
    """As the rule for ids has it: one place knows it."""
    rows = Rows(Origin(Path("video"), None), pd.DataFrame({"id": [f"{video}_0"]}, dtype=str))
    return str(make_table(rows, Path(), "all", None).patients[0])


def _splits(
    config: PrepareConfig, data_set: DataSet | None, jobs: Sequence[VideoJob], notes: list[str]
) -> dict[str, str]:
    """{video: train, val, test or all}, as published."""
    splits = {job.video: "all" for job in jobs}
    if data_set is not None and data_set.splits:
        name = config.split or next(iter(data_set.splits))
        if name not in data_set.splits:
            raise SpatialfeatError(f"--split {name}: {data_set.title} has {', '.join(data_set.splits)}")
        files = _files(config)
        published = {job.video: data_set.splits[name](files, job.video) for job in jobs}
        unknown = [video for video, split in published.items() if split is None]
        if unknown and len(unknown) < len(jobs):
            raise SpatialfeatError(
                f"--split {name}: does not say where {', '.join(unknown)} belongs; leave it out with --leave-out"
            )
        splits = {video: split or "all" for video, split in published.items()}
    elif config.split is not None:
        raise SpatialfeatError(f"--split {config.split}: {config.source} has no published split; pass --val and --test")
    for split in config.shares:
        if split != "train" and split in splits.values():
            raise SpatialfeatError(f"--{split}: {config.source} has videos for it already; leave it out")
    if config.shares:
        patients = {same_name_key(job.patient) for job in jobs if splits[job.video] in SHARED_OUT}
        if len(patients) < len(config.shares):
            raise SpatialfeatError(
                f"DIR {config.data_dir}: has {count_text(len(patients), 'patient')}, but {', '.join(config.shares)} "
                "need one each; add videos, or leave --val or --test out"
            )
    elif "train" in splits.values() and "val" not in splits.values():
        notes.append("no videos are published for validation: pass --val, e.g. --val 0.2, to take patients of train")
    return splits


def _read_table(config: PrepareConfig, plan: Plan) -> tuple[FrameTable, list[str]]:
    """The rows that the CSVs get, as later commands will read them, and the video of each."""
    frames = [(row["id"], job, row["label"]) for job in plan.jobs for row in read_rows(config.out, job.video)]
    ids, jobs, labels = zip(*frames, strict=True)
    columns = pd.DataFrame({"id": ids, "patient": [job.patient for job in jobs]}, dtype=str)
    rows = Rows(Origin(config.out / RECORDS, None), columns)
    table = make_table(rows, config.out / IMAGES, "all", np.array(labels).astype(np.int64))
    return table, [job.video for job in jobs]


def _share_out(config: PrepareConfig, plan: Plan, table: FrameTable, video_of_row: Sequence[str]) -> dict[str, str]:
    """{video: split}: the plan's, but for the patients whom --val and --test share out by their frames."""
    if not config.shares:
        return plan.splits
    jobs = [job for job in plan.jobs if plan.splits[job.video] in SHARED_OUT]
    table = table.take(np.array([plan.splits[video] in SHARED_OUT for video in video_of_row]))
    split_of_row = split_rows(table, config.shares, seed=config.seed)
    patients, first_rows = np.unique(table.patients, return_index=True)
    split_of = dict(zip(map(same_name_key, patients.tolist()), split_of_row[first_rows].tolist(), strict=True))
    # Patients without any row are in no CSV.
    return plan.splits | {job.video: split_of.get(same_name_key(job.patient), "train") for job in jobs}


def _prepare_all(config: PrepareConfig, plan: Plan) -> list[dict[str, Any]]:
    """Prepare what is not there yet. Returns the records in the order of the plan."""
    out = config.out
    kept = {job.video for job in plan.jobs}
    for path in (out / RECORDS).iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in kept:
            remove_video(out, path.name)
            path.with_name(f"{path.name}.png").unlink(missing_ok=True)
    todo = [job for job in plan.jobs if not is_done(out, job)]
    if len(todo) < len(plan.jobs):
        logger.info("%s already there", count_text(len(plan.jobs) - len(todo), "video"))
    cores = usable_cores()
    workers = max(1, min(config.workers or cores, len(todo)))
    seconds = {job.video: (_seconds(job) or 0.0) for job in todo}
    errors: dict[str, SpatialfeatError] = {}
    with frame_bar(round(sum(seconds.values())), "prepare", unit=" s of video") as show:
        done = 0.0

        def advance(seconds: float) -> None:
            nonlocal done
            show(int(done + seconds) - int(done))
            done += seconds

        for job, outcome in prepare_videos(out, todo, workers=workers, cores=cores, advance=advance):
            if isinstance(outcome, SpatialfeatError):
                errors[job.video] = outcome
                logger.error("%s", outcome)
            else:
                _write_picture(out, job, plan)
    if errors:
        if len(errors) == 1 == len(plan.jobs):
            raise next(iter(errors.values()))
        raise SpatialfeatError(
            f"{count_text(len(errors), 'video')} of {len(plan.jobs)} could not be prepared (see above): "
            f"{', '.join(errors)}. The others are kept; fix these, or leave them out with --leave-out, and run again"
        )
    for job in plan.jobs:
        if not (out / RECORDS / f"{job.video}.png").exists():
            _write_picture(out, job, plan)
    records = [read_json_object(out / RECORDS / job.video / RECORD) for job in plan.jobs]
    if not any(record["rows"] for record in records):
        raise SpatialfeatError(
            f"{config.source}: no frame has a phase; look into {out / RECORDS} for what was read, or pass "
            "--unlabelled keep"
        )
    return records


def _seconds(job: VideoJob) -> float | None:
    if job.pictures is not None:
        return len(job.pictures.files) / float(Fraction(job.pictures.fps))
    try:
        return header_length(job.source)[1]
    except SpatialfeatError:
        return None  # Told in its turn.


def _write_picture(out: Path, job: VideoJob, plan: Plan) -> None:
    samples = read_samples(out, job.video)
    rows = [row for row in samples if row["id"]]
    if not rows:
        return
    suffix = read_json_object(out / RECORDS / job.video / RECORD)["suffix"]
    pictures = [
        (label, float(row["time_s"]), out / IMAGES / f"{row['id']}{suffix}") for label, row in thumbnails_at(rows)
    ]
    figure = contact_sheet(
        job.video,
        [int(row["k"]) for row in samples],
        [int(row["label"]) for row in samples],
        float(Fraction(job.settings.fps)),
        () if plan.phases is None else plan.phases.names,
        pictures,
    )
    save_png(figure, out / RECORDS / f"{job.video}.png")


def _write_crop_sheet(out: Path, records: Sequence[dict[str, Any]]) -> None:
    pictures = [
        (record["video"], record["crop_box"] is not None, out / RECORDS / record["video"] / "border.png")
        for record in records
    ]
    save_png(crop_sheet(pictures), out / RECORDS / "crop_boxes.png")


def _write_study(config: PrepareConfig, plan: Plan, splits: Mapping[str, str]) -> None:
    """The CSVs and phase_names.txt; those of an earlier run with other splits are removed."""
    out = config.out
    by_split: dict[str, list[VideoJob]] = {}
    for job in plan.jobs:
        by_split.setdefault(splits[job.video], []).append(job)
    has_patients = any(job.patient != _patient(job.video) for job in plan.jobs)
    old = [path for split in SPLITS if split not in by_split and (path := out / csv_name(split)).exists()]
    if old:
        logger.info(
            "removed, as an earlier run had shared out the patients otherwise: %s; now: %s",
            ", ".join(path.name for path in old),
            ", ".join(csv_name(split) for split in SPLITS if split in by_split),
        )
    for path in old:
        path.unlink()
    for split in (split for split in SPLITS if split in by_split):
        path = out / csv_name(split)
        header = ["id", *(["label"] if plan.phases is not None else []), *(["patient"] if has_patients else [])]

        def write(temporary: Path, jobs: list[VideoJob] = by_split[split], header: list[str] = header) -> None:
            with open_csv_text(temporary) as text:
                table = CsvTable(text, header)
                for job in jobs:
                    rows = [{**row, "patient": job.patient} for row in read_rows(out, job.video)]
                    table.add([row[column] for column in header] for row in rows)

        write_atomically(path, write)
    if plan.phases is not None:
        write_names(out, plan.phases.names)


def _tell(
    config: PrepareConfig,
    plan: Plan,
    splits: Mapping[str, str],
    records: Sequence[dict[str, Any]],
    table: FrameTable,
    split_of_row: NDArray[Any],
) -> None:
    """The report per video, what lies where, and what to do next. table, split_of_row: all rows, (N,) str."""
    header = ("video", "split", "duration", "frames", "annotation", "difference", "samples", "rows", "left out", "")
    rows = [header]
    rows += [
        (
            record["video"],
            splits[record["video"]],
            clock_text(record["seconds"]),
            str(record["source_frames"]),
            record["annotation_length"],
            "" if record["difference_s"] is None else f"{record['difference_s']:+.2f} s",
            str(record["samples"]),
            str(record["rows"]),
            str(record["samples"] - record["rows"]),
            "; ".join(record["notes"]),
        )
        for record in records
    ]
    for line in align(rows, left=(0, 1, 9)):
        logger.info("%s", line)
    phase_names = () if plan.phases is None else plan.phases.names
    names = [name for name in SPLITS if name in splits.values()]
    parts = [
        part_of(table, split_of_row == name, len(phase_names), split=name, asked=config.shares.get(name))
        for name in names
    ]
    logger.info("\n%s", parts_text(table, parts, phase_names))
    _warn(plan.doubts)
    frames = count_text(len(table), "frame")
    tree = [f"{frames} in {IMAGES}/, a picture per video in {RECORDS}/"]
    show_results(config.out, tree, _next_steps(config, plan, names))


def _next_steps(config: PrepareConfig, plan: Plan, splits: Sequence[str]) -> list[str]:
    cd = f"  cd {config.out}"
    fps = "" if config.fps == 1 else f" --fps {config.fps:g}"
    if plan.phases is None:
        return [cd, f"  spatialfeat extract --csv all=all_ResNet_DB.csv --weights WEIGHTS{fps}"]
    if "all" in splits:
        num_patients = len({same_name_key(job.patient) for job in plan.jobs})
        if num_patients < 3:  # Each of train, val and test needs one.
            return [
                f"  {count_text(num_patients, 'patient')} cannot be divided into training, validation and test: add "
                "videos and run the same command again"
            ]
        return [
            "  the same command with --val 0.2 --test 0.2 shares out the patients; or, for a cross-validation:",
            f"{cd} && spatialfeat split all_ResNet_DB.csv folds --folds {min(5, num_patients)}",
        ]
    if "train" not in splits:
        csvs = " ".join(f"--csv {csv_name(name)}" for name in splits)
        return [cd, f"  spatialfeat extract {csvs} --weights WEIGHTS{fps}"]
    if "val" not in splits:
        return ["  the same command with --val 0.2: finetune needs patients to validate on"]
    test = " --test-csv test_ResNet_DB.csv" if "test" in splits else ""
    return [
        cd,
        f"  spatialfeat check{fps}{test}",
        f"  spatialfeat finetune{test}",
        f"  spatialfeat extract{fps}",
    ]
