"""`spatialfeat prepare`: from videos or frames, and their annotations, to a folder for all other commands."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spatialfeat.config import OWN_SOURCES, PrepareConfig, csv_name
from spatialfeat.console import align, clock_text, count_text, frame_bar, name_some, show_results, wrap
from spatialfeat.data.frames import FrameTable, make_table
from spatialfeat.data.ids import USUAL_RULE
from spatialfeat.data.splits import part_of, parts_text, split_rows
from spatialfeat.data.tables import Origin, Rows
from spatialfeat.device import usable_cores
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import read_json_object, write_csv
from spatialfeat.names import same_name_key
from spatialfeat.phases import write_names
from spatialfeat.reports.plots import save_png
from spatialfeat.reports.ribbons import contact_sheet, crop_sheet
from spatialfeat.runrecord import RunRecord, recorded_options
from spatialfeat.sources.annotations import Track, doubtful_phases, name_phases, read_phase_map
from spatialfeat.sources.datasets import DATA_SETS, DataSet, Files, files_in, matching, tracks_of
from spatialfeat.sources.own import find_own, read_own_tracks
from spatialfeat.sources.study import (
    IMAGES,
    RECORDS,
    Settings,
    Source,
    VideoJob,
    images_of,
    is_done,
    prepare_videos,
    read_record,
    read_samples,
    remove_video,
)
from spatialfeat.sources.video import header_length, load_av

MANIFEST = "prepare.json"
SPLITS = ("train", "val", "test", "all")
SHARED_OUT = ("train", "all")
"""The splits whose patients --val and --test share out."""

FIXED = ("source", "fps", "short_side", "image_format", "crop_border", "unlabelled")
"""Options that are the same for all of a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done. splits: {video: split}, before --val and --test. phase_names: None without annotations.

    notes: what to report. doubts: about names of phases, to be told before hours of decoding and again after them.
    """

    jobs: list[VideoJob]
    splits: dict[str, str]
    phase_names: tuple[str, ...] | None
    notes: list[str]
    doubts: list[str]


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
        frames = _read_rows(config, plan)
        # As later commands will read them.
        rows = Rows(Origin(config.out / RECORDS, None), frames)
        table = make_table(rows, config.out / IMAGES, "all", frames["label"].astype(np.int64).to_numpy())
        splits = _share_out(config, plan, table, frames)
        split_of_row = frames["video"].map(splits).to_numpy(dtype=str)
        _write_study(config, plan, frames, split_of_row, set(splits.values()))
        if config.crop_border:
            _write_crop_sheet(config.out, records)
        record.finish(
            phase_names=plan.phase_names,
            notes=[*plan.notes, *plan.doubts],
            videos=[
                {"split": splits[entry["video"]]} | {key: entry[key] for key in entry if key != "inputs"}
                for entry in records
            ],
        )
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
    data_set = DATA_SETS.get(config.source)
    if data_set is None and config.source not in OWN_SOURCES:
        known = ", ".join((*OWN_SOURCES, *DATA_SETS))
        raise SpatialfeatError(f"SOURCE {config.source}: is none of {known}; spatialfeat prepare --help describes them")
    files = files_in(config.data_dir)
    if data_set is None:
        found, tracks, notes = _own(config, files)
        more: dict[str, Any] = {"names": config.phase_names, "first_phase": None}
    else:
        found, tracks, notes = _data_set(config, data_set, files)
        names = ("first_phase", "spelling", "unlabelled")
        more = {name: getattr(data_set, name) for name in names} | {"names": data_set.phases or None}
    labels: dict[str, int | None] = {}
    phase_names = None
    if tracks is not None:
        if config.phase_map is not None:
            more["phase_map"] = read_phase_map(config.phase_map)
        if config.first_phase is not None:
            more["first_phase"] = (config.first_phase,)
        phases = name_phases(tracks.values(), **more)
        labels, phase_names = phases.labels, phases.names
    settings = Settings(
        fps=str(Fraction(str(config.fps))),
        short_side=config.short_side_px,
        format=config.image_format,
        crop_border=config.crop_border,
        keep_unlabelled=config.unlabelled == "keep",
        allow_cut=config.allow_cut,
        allow_length_difference=config.allow_length_difference,
    )
    jobs = []
    for video, source in found.items():
        track = tracks[video] if tracks else None
        # The unit of data sets is known; of intervals, any number may be missing.
        is_open = track is None or track.rows_end is None
        job = VideoJob(
            video=video,
            patient=data_set.patient(video) if data_set else _patient(video),
            source=source,
            track=track,
            labels={span.phase: labels[span.phase] for span in track.spans} if track else {},
            may_end_early=data_set is not None and (data_set.may_end_early or is_open),
            settings=settings,
        )
        jobs.append(job)
    doubts: list[str] = []
    if tracks is not None and data_set is None and config.phase_names is None and config.phase_map is None:
        # Of names that were given, nothing is doubtful: all others are refused.
        doubts = list(doubtful_phases(tracks, labels))
    splits = _splits(config, data_set, jobs, notes, files)
    return Plan(jobs=jobs, splits=splits, phase_names=phase_names, notes=notes, doubts=doubts)


def _warn(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        logger.warning("%s", "\n".join(wrap(doubt)))


def _data_set(
    config: PrepareConfig, data_set: DataSet, files: Files
) -> tuple[dict[str, Source], dict[str, Track], list[str]]:
    videos = _without_left_out(config, {name: Source(path) for name, path in matching(files, data_set.videos).items()})
    try:
        tracks = tracks_of(data_set, files)
    except SpatialfeatError as error:
        raise SpatialfeatError(f"DIR {config.data_dir}: {error}") from error
    notes = data_set.remarks
    without = [video for video in videos if same_name_key(video) not in tracks]
    if without:
        notes.append(f"left out, there is no annotation: {', '.join(without)}")
    there = set(map(same_name_key, videos))
    lacking = [track.path.name for key, track in tracks.items() if key not in there]
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


def _without_left_out(config: PrepareConfig, found: dict[str, Source]) -> dict[str, Source]:
    left_out = {same_name_key(name): name for name in config.leave_out}
    unknown = [name for key, name in left_out.items() if key not in map(same_name_key, found)]
    if unknown:
        raise SpatialfeatError(
            f"--leave-out {unknown[0]}: is none of the videos, which are {', '.join(list(found)[:20])}"
        )
    return {video: source for video, source in found.items() if same_name_key(video) not in left_out}


def _own(config: PrepareConfig, files: Files) -> tuple[dict[str, Source], dict[str, Track] | None, list[str]]:
    found = _without_left_out(config, find_own(config, files))
    if config.annotations is None:
        return found, None, ["no --annotations: frames without labels, for `spatialfeat extract`"]
    tracks, foreign = read_own_tracks(config, config.annotations, found)
    without = [video for video in found if video not in tracks]
    if without:
        raise SpatialfeatError(
            f"--annotations {config.annotations}: nothing about {name_some(without, 10)}; tables belong to a "
            "video by a column `video` or by their file's name; add them, or leave the videos out with --leave-out"
        )
    notes = []
    if foreign:
        about = count_text(len(foreign), "video that is", "videos that are")
        notes.append(f"annotations of {about} not here, or left out: {name_some(foreign, 10)}")
    return found, {video: tracks[video] for video in found}, notes


def _patient(video: str) -> str:
    """As the rule for ids has it: one place knows it."""
    return str(USUAL_RULE.read(pd.Series([f"{video}_0"]))["patient"][0])


def _splits(
    config: PrepareConfig, data_set: DataSet | None, jobs: Sequence[VideoJob], notes: list[str], files: Files
) -> dict[str, str]:
    """{video: train, val, test or all}, as published."""
    splits = {job.video: "all" for job in jobs}
    if data_set is not None and data_set.splits:
        name = config.split or next(iter(data_set.splits))
        if name not in data_set.splits:
            raise SpatialfeatError(f"--split {name}: {data_set.title} has {', '.join(data_set.splits)}")
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


def _read_rows(config: PrepareConfig, plan: Plan) -> pd.DataFrame:
    """The rows that the CSVs get, as text: id, label, patient and video."""
    rows = [
        (row["id"], row["label"], job.patient, job.video)
        for job in plan.jobs
        for row in read_samples(config.out, job.video)
        if row["id"]
    ]
    frames: pd.DataFrame = pd.DataFrame(rows, columns=["id", "label", "patient", "video"], dtype=str)
    return frames


def _share_out(config: PrepareConfig, plan: Plan, table: FrameTable, frames: pd.DataFrame) -> dict[str, str]:
    """{video: split}: the plan's, but for the patients whom --val and --test share out by their frames.

    table, frames: all rows, the same in both.
    """
    if not config.shares:
        return plan.splits
    jobs = [job for job in plan.jobs if plan.splits[job.video] in SHARED_OUT]
    table = table.take(frames["video"].map(plan.splits).isin(SHARED_OUT).to_numpy())
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
    total = sum(map(_seconds, todo))
    errors: dict[str, SpatialfeatError] = {}
    with frame_bar(round(total), "prepare", unit=" s of video") as show:
        done = 0.0

        def advance(seconds: float) -> None:
            nonlocal done
            show(int(done + seconds) - int(done))
            done += seconds

        for job, error in prepare_videos(out, todo, workers=workers, cores=cores, advance=advance):
            if error is None:
                _write_picture(out, job, plan)
            else:
                errors[job.video] = error
                logger.error("%s", error)
    if errors:
        if len(errors) == 1 == len(plan.jobs):
            raise next(iter(errors.values()))
        others = "The others are kept; fix" if len(errors) < len(plan.jobs) else "Fix"
        old = ", ".join(path.name for path in _csvs_there(out, SPLITS))
        stale = f". Of an earlier run, and perhaps no longer true: {old}" if old else ""
        raise SpatialfeatError(
            f"{count_text(len(errors), 'video')} of {len(plan.jobs)} could not be prepared (see above): "
            f"{', '.join(errors)}. {others} these, or leave them out with --leave-out, and run again{stale}"
        )
    for job in plan.jobs:
        if not (out / RECORDS / f"{job.video}.png").exists():
            _write_picture(out, job, plan)
    records = [read_record(out, job.video) for job in plan.jobs]
    if not any(record["rows"] for record in records):
        raise SpatialfeatError(
            f"{config.source}: no frame has a phase; look into {out / RECORDS} for what was read, or pass "
            "--unlabelled keep"
        )
    return records


def _seconds(job: VideoJob) -> float:
    """How long a video is, 0 where its header does not say."""
    pictures = job.source.pictures
    if pictures is not None:
        return len(pictures.files) / float(Fraction(pictures.fps))
    try:
        return header_length(job.source.path)[1] or 0.0
    except SpatialfeatError:
        return 0.0  # Told in its turn.


def _write_picture(out: Path, job: VideoJob, plan: Plan) -> None:
    images = images_of(out, job.video)
    if not images:
        return
    samples = read_samples(out, job.video)
    shown = [images[index] for index in _middles_of_runs([row["label"] for row, _ in images])]
    pictures = [(int(row["label"]), float(row["time_s"]), image) for row, image in shown]
    figure = contact_sheet(
        job.video,
        [int(row["k"]) for row in samples],
        [int(row["label"]) for row in samples],
        float(Fraction(job.settings.fps)),
        plan.phase_names or (),
        pictures,
    )
    save_png(figure, out / RECORDS / f"{job.video}.png")


def _middles_of_runs(labels: Sequence[str]) -> list[int]:
    """The index of one frame per phase, the middle of its longest run, in order of time."""
    longest: dict[str, tuple[int, int]] = {}
    start = 0
    for label, run in groupby(labels):
        length = len(list(run))
        if length > longest.get(label, (0, 0))[0]:
            longest[label] = length, start + length // 2
        start += length
    return sorted(middle for _, middle in longest.values())


def _write_crop_sheet(out: Path, records: Sequence[dict[str, Any]]) -> None:
    pictures = [
        (record["video"], record["crop_box"] is not None, out / RECORDS / record["video"] / "border.png")
        for record in records
    ]
    save_png(crop_sheet(pictures), out / RECORDS / "crop_boxes.png")


def _write_study(
    config: PrepareConfig, plan: Plan, frames: pd.DataFrame, split_of_row: NDArray[Any], splits: Collection[str]
) -> None:
    """The CSVs and phase_names.txt; those of an earlier run with other splits are removed. frames: all rows."""
    out = config.out
    old = _csvs_there(out, [split for split in SPLITS if split not in splits])
    if old:
        logger.info(
            "removed, as an earlier run had shared out the patients otherwise: %s; now: %s",
            ", ".join(path.name for path in old),
            ", ".join(csv_name(split) for split in SPLITS if split in splits),
        )
    for path in old:
        path.unlink()
    has_patients = any(job.patient != _patient(job.video) for job in plan.jobs)
    header = ["id", *(["label"] if plan.phase_names is not None else []), *(["patient"] if has_patients else [])]
    for split in splits:
        write_csv(out / csv_name(split), frames.loc[split_of_row == split, header])
    if plan.phase_names is not None:
        write_names(out, plan.phase_names)


def _csvs_there(out: Path, splits: Sequence[str]) -> list[Path]:
    return [path for path in (out / csv_name(split) for split in splits) if path.exists()]


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
    phase_names = plan.phase_names or ()
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
    if plan.phase_names is None:
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
