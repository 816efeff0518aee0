"""One video after the other into a study folder: whole or not at all, and each only once.

A video's frames are first written into `prepare/{video}/`, which appears when it is whole, and then moved to `images/`:
whatever a kill leaves undone is done by the next run.

    images/{video}_{k}.png
    prepare/{video}/rows.csv      every sample: id, label, phase, k, and which source frame it is
    prepare/{video}/video.json    what the video is, and what was left out
"""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from spatialfeat.console import clock_text, count_text
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import CsvTable, atomic_folder, file_sha256, open_csv_text, read_json_object, write_json
from spatialfeat.signals import leave_signals_to_main_process
from spatialfeat.sources.annotations import FRAME, MILLISECOND, SECOND, Track
from spatialfeat.sources.video import Facts, Sample, find_box, sample_video

RECORDS, IMAGES = "prepare", "images"
ROWS, RECORD = "rows.csv", "video.json"
COLUMNS = ("id", "label", "phase", "k", "time_s", "source_frame", "source_time_s", "source_file")

UNLABELLED = -100
"""As in `data.frames`, which is slow to import for a decoding process."""

ID_DIGITS = 6
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
SAVING: dict[str, dict[str, Any]] = {
    # Runs of equal bytes only (Z_RLE, 3): after PNG's own prediction a photograph repeats nothing else. A sixth of the
    # time of zlib's default, and files of the same size.
    "png": {"compress_level": 1, "compress_type": 3},
    "jpeg": {"quality": 95, "subsampling": 0},
}
THREADS_PER_CORE = 3
"""While a frame is converted, decoding goes on only as far ahead as there are threads: with one a core it waits."""

MAX_UNWRITTEN = 4
"""So many converted frames wait, at most, for the thread that encodes and writes them."""

TINY_PART = 20
"""Intervals that end within this part of the video are asked about: minutes may have been read as seconds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all videos of a study folder have in common. short_side: pixels, None keeps the size."""

    fps: str
    short_side: int | None
    format: str
    crop_border: bool
    keep_unlabelled: bool
    allow_cut: bool
    allow_length_difference: bool


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Frames of a video that are files already: number -> file. The first one is taken at `offset_s` seconds."""

    files: tuple[tuple[int, Path], ...]
    first: int
    fps: str
    offset_s: str
    annotation_fps: str | None


@dataclass(frozen=True)
class Source:
    """Where a video is. pictures: its frames, where they are files already, in the folder `path`."""

    path: Path
    pictures: Pictures | None = None


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """One video to prepare. track: None without annotations. labels: what the annotation writes -> label.

    may_end_early: whether annotations that are shorter than the video are usual here.
    """

    video: str
    patient: str
    source: Source
    track: Track | None
    labels: dict[str, int | None]
    may_end_early: bool
    settings: Settings

    def frame_id(self, k: int) -> str:
        return f"{self.video}_{k:0{ID_DIGITS}d}"

    def inputs(self) -> dict[str, Any]:
        """All that the video's frames and labels depend on, to find out whether they are as a run before made them."""
        path, pictures, track = self.source.path, self.source.pictures, self.track
        files = [path] if pictures is None else [file for _, file in pictures.files]
        status = [file.stat() for file in files]
        read_as = track and [track.unit, track.closed, *(f"{s.start} {s.end} {s.phase}" for s in track.spans[:2])]
        return {
            "source": str(path),
            "bytes": sum(entry.st_size for entry in status),
            "modified_ns": max(entry.st_mtime_ns for entry in status),
            "pictures": pictures and asdict(pictures) | {"files": len(files)},
            "annotation": track and str(track.path),
            "annotation_sha256": track and file_sha256(track.path),
            "annotation_read_as": read_as,
            "labels": dict(sorted(self.labels.items())),
            "settings": asdict(self.settings),
        }


def is_done(out: Path, job: VideoJob) -> bool:
    """Whether the video's frames are there as this job would make them; finishes what a kill left undone."""
    if read_record(out, job.video).get("inputs") != job.inputs():
        return False
    place_images(out, job.video)
    return all(image.exists() for _, image in images_of(out, job.video))


def read_record(out: Path, video: str) -> dict[str, Any]:
    """What `prepare_video` has recorded of a video; nothing where it is not finished."""
    return read_json_object(out / RECORDS / video / RECORD)


def read_samples(out: Path, video: str) -> list[dict[str, str]]:
    """All samples of a finished video, also those that are left out, which have no id."""
    with (out / RECORDS / video / ROWS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def images_of(out: Path, video: str) -> list[tuple[dict[str, str], Path]]:
    """(row, image) of the samples of a finished video that belong into a CSV."""
    suffix = read_record(out, video).get("suffix", "")
    return [(row, out / IMAGES / f"{row['id']}{suffix}") for row in read_samples(out, video) if row["id"]]


def prepare_video(out: Path, job: VideoJob, *, threads: int, advance: Callable[[float], None]) -> None:
    """Write one video's frames, rows and record.

    Raises:
        SpatialfeatError: the video or its annotation is at fault; what an earlier run has made of it stays.
    """
    inputs = job.inputs()
    with atomic_folder(out / RECORDS / job.video) as folder:
        (folder / IMAGES).mkdir()
        rows: list[tuple[object, ...]] = []
        box = None
        pictures = job.source.pictures
        if pictures is None:
            if job.settings.crop_border:
                box = find_box(job.source.path, folder / "border.png")
            facts, suffix = _decode(job, folder / IMAGES, rows, box, threads, advance)
        else:
            facts, suffix = _look_at_pictures(job, pictures, rows, advance)
        surplus, notes = None, facts.notes
        if job.track is not None:
            surplus = _annotated_s(job.track, _frame_rate(job, facts)) - facts.end
            notes = [*notes, *_check_length(job, job.track, facts, surplus)]
        with open_csv_text(folder / ROWS) as text:
            CsvTable(text, COLUMNS).add(rows)
        record = {
            "video": job.video,
            "patient": job.patient,
            "source": str(job.source.path),
            "annotation": job.track and str(job.track.path),
            "source_frames": facts.num_frames,
            "annotation_length": _length_text(job.track) if job.track else "",
            "difference_s": None if surplus is None else round(float(surplus), 3),
            "seconds": round(float(facts.end), 6),
            "size": facts.size,
            "size_written": facts.size_written,
            "crop_box": box and asdict(box),
            "samples": len(rows),
            "rows": sum(bool(row[0]) for row in rows),
            "unlabelled": sum(row[1] == UNLABELLED for row in rows) if job.track else 0,
            "notes": notes,
            "suffix": suffix,
            "inputs": inputs,
        }
        write_json(folder / RECORD, record)
        remove_video(out, job.video)  # Only now: what an earlier run has made is better than nothing.
    place_images(out, job.video)


def prepare_videos(
    out: Path, jobs: Sequence[VideoJob], *, workers: int, cores: int, advance: Callable[[float], None]
) -> Iterator[tuple[VideoJob, SpatialfeatError | None]]:
    """Prepare videos, `workers` at a time, each decoded by its share of the cores.

    Yields each as it is finished, with the reason where it could not be prepared. advance: gets seconds of video.

    Raises:
        SpatialfeatError: a process was killed.
    """
    threads = THREADS_PER_CORE * max(1, cores // workers)
    if workers == 1:
        for job in jobs:
            yield job, _work(out, job, threads, advance)
        return
    # A forked process could inherit locks of threads that it does not have; a new one takes half a second.
    context = get_context("spawn")
    seconds = context.Value("d", 0.0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(seconds, os.getpid()))
    try:
        waiting = {pool.submit(_work, out, job, threads): job for job in jobs}
        reported = 0.0
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            now = seconds.value
            advance(now - reported)
            reported = now
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise SpatialfeatError(
            f"a decoding process was killed, most likely because the machine's memory ran out; lower --workers (now "
            f"{workers}) and run again: finished videos are kept"
        ) from error
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
            process.join()


_seconds: Any = None
"""Of a decoding process: the seconds of video that all of them have decoded."""


def _begin_worker(seconds: Any, main_process: int) -> None:
    global _seconds  # noqa: PLW0603  # A pool's initializer has no other place.
    _seconds = seconds
    leave_signals_to_main_process()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(main_process,), daemon=True).start()


def _end_with(main_process: int) -> None:
    """A killed main process cannot end its workers, which would go on writing beside the next run."""
    while os.getppid() == main_process:
        time.sleep(0.5)
    os._exit(1)


def _add_seconds(seconds: float) -> None:
    with _seconds.get_lock():
        _seconds.value += seconds


def _work(
    out: Path, job: VideoJob, threads: int, advance: Callable[[float], None] = _add_seconds
) -> SpatialfeatError | None:
    try:
        prepare_video(out, job, threads=threads, advance=advance)
    except SpatialfeatError as error:
        return error
    return None


def remove_video(out: Path, video: str) -> None:
    """Remove what an earlier run has made of a video; its rows say which images are its own."""
    record_dir = out / RECORDS / video
    if not record_dir.exists():
        return
    for _, image in images_of(out, video):
        image.unlink(missing_ok=True)
    shutil.rmtree(record_dir)


def place_images(out: Path, video: str) -> None:
    """Move a finished video's frames to images/, or link those that exist elsewhere; done again, it does nothing."""
    own_dir = out / RECORDS / video / IMAGES
    if own_dir.exists():
        for path in sorted(own_dir.iterdir()):
            path.replace(out / IMAGES / path.name)
        own_dir.rmdir()
    for row, image in images_of(out, video):
        if row["source_file"] and not image.exists():
            _link(Path(row["source_file"]), image)


def _link(source: Path, target: Path) -> None:
    """A hard link; else a symbolic one; else a copy."""
    target.unlink(missing_ok=True)
    refusals = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS)
    for make in (os.link, os.symlink):
        try:
            make(source.resolve(), target)
            return
        except OSError as error:
            if error.errno not in refusals:
                raise
    temporary = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def _decode(
    job: VideoJob,
    images_dir: Path,
    rows: list[tuple[object, ...]],
    box: Any,
    threads: int,
    advance: Callable[[float], None],
) -> tuple[Facts, str]:
    """Write the video's frames; appends a row per sample."""
    settings = job.settings
    fps, suffix = Fraction(settings.fps), SUFFIXES[settings.format]

    def wanted(sample: Sample) -> bool:
        time = Fraction(sample.k) / fps
        named = labelled_sample(job, sample.k, time, sample.frame)
        rows.append((*named, sample.k, float(time), sample.frame, round(float(sample.time), 6), ""))
        return bool(named[0])

    # Encoding lets go of Python's lock, so that decoding goes on beside it.
    unwritten: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as writer:

        def write(sample: Sample, picture: Image.Image) -> None:
            path = images_dir / f"{job.frame_id(sample.k)}{suffix}"
            unwritten.append(writer.submit(picture.save, path, **SAVING[settings.format]))
            if len(unwritten) > MAX_UNWRITTEN:
                unwritten.popleft().result()

        facts = sample_video(
            job.source.path,
            fps=fps,
            short_side=settings.short_side,
            box=box,
            threads=threads,
            wanted=wanted,
            write=write,
            advance=advance,
        )
        for written in unwritten:
            written.result()
    if facts.cut and not settings.allow_cut:
        raise SpatialfeatError(
            f"{job.source.path}: ends too early, or is damaged: {facts.cut}; "
            f"{count_text(facts.num_frames, 'frame')} until {clock_text(float(facts.end))} can be read. Get the file "
            "again, pass --allow-cut to take what is there, or leave it out with --leave-out"
        )
    if facts.cut:
        facts.notes.append(f"cut: {facts.cut}")
    return facts, suffix


def _look_at_pictures(
    job: VideoJob, pictures: Pictures, rows: list[tuple[object, ...]], advance: Callable[[float], None]
) -> tuple[Facts, str]:
    """Choose among frames that exist; appends a row per sample. A frame is on display until the next number is due."""
    fps, source_fps = Fraction(job.settings.fps), Fraction(pictures.fps)
    files = {number - pictures.first: path for number, path in pictures.files}
    suffixes = {path.suffix for path in files.values()}
    if len(suffixes) > 1:
        raise SpatialfeatError(
            f"{job.source.path}: holds {' and '.join(sorted(suffixes))} files; keep frames of one kind"
        )
    if min(files) < 0:
        raise SpatialfeatError(
            f"{files[min(files)]}: is frame {min(files) + pictures.first}, but --first-frame says that they count from "
            f"{pictures.first}"
        )
    last = max(files)
    with Image.open(files[last]) as image:
        size = image.size
    missing = 0
    for k in range(int(Fraction(last) / source_fps * fps) + 1):
        frame = int(Fraction(k) / fps * source_fps)
        if frame not in files:
            missing += 1
            continue
        time = Fraction(frame) / source_fps + Fraction(pictures.offset_s)
        native = frame if pictures.annotation_fps is None else int(time * Fraction(pictures.annotation_fps))
        named, number = labelled_sample(job, k, time, native), frame + pictures.first
        rows.append((*named, k, float(Fraction(k) / fps), number, float(time), str(files[frame])))
    end = Fraction(last + 1) / source_fps
    advance(float(end))
    facts = Facts(num_frames=len(files), end=end, size=size, size_written=size)
    if missing:
        facts.notes.append(f"{count_text(missing, 'sample')} without a file between the others")
    return facts, suffixes.pop()


def labelled_sample(job: VideoJob, k: int, time: Fraction, frame: int) -> tuple[str, int, str]:
    """(id, "" where it is left out; label; what the annotation writes) of sample k, when this source frame is shown."""
    if job.track is None:
        return job.frame_id(k), UNLABELLED, ""
    position = {FRAME: Fraction(frame), MILLISECOND: time * 1000}.get(job.track.unit, time)
    span = job.track.phase_at(position)
    phase, label = (span.phase, job.labels[span.phase]) if span else ("", None)
    if label is None:
        return job.frame_id(k) if job.settings.keep_unlabelled else "", UNLABELLED, phase
    return job.frame_id(k), label, phase


def _check_length(job: VideoJob, track: Track, facts: Facts, surplus: Fraction) -> Iterator[str]:
    """Notes about annotation and video of different length; more than a sample is refused, where it may not be.

    surplus: seconds by which the annotation ends after the video.
    """
    rate = _frame_rate(job, facts)
    sample = 1 / Fraction(job.settings.fps)
    is_short = surplus < 0 and (track.rows_end is not None or 0 < TINY_PART * (facts.end + surplus) < facts.end)
    own = f"{round(facts.end * rate)}" if track.unit == FRAME else f"{float(facts.end):.2f} s"
    lengths = f"the annotation has {_length_text(track)}, the video {own}"
    # Rows of frames that the video has lost shift all that are behind them.
    is_shifted = facts.lost > 0 and track.unit == FRAME and track.rows_end is not None and surplus > 0
    if surplus > sample or (is_short and -surplus > sample) or is_shifted:
        allowed = job.settings.allow_length_difference or (is_short and job.may_end_early)
        if not allowed:
            last = max(track.spans, key=lambda span: span.end, default=None)
            where = f" line {last.line}" if last is not None and track.rows_end is None and surplus > 0 else ""
            raise SpatialfeatError(
                f"{track.path}{where}: {lengths} ({job.source.path}), {float(abs(surplus)):.1f} s "
                f"{'more' if surplus > 0 else 'less'}; most likely {_cause(job, track, facts, rate)}. "
                "Fix it, pass --allow-length-difference if the annotation is right as far as it goes, or leave the "
                "video out with --leave-out"
            )
        yield lengths
    elif surplus > 0 or (is_short and surplus != 0):
        yield f"{lengths}: within one sample"
    if facts.lost and track.unit == FRAME and track.rows_end is None:
        yield "its intervals are taken to count the frames that are left"
    if track.gaps:
        yield f"the annotation lacks rows in {count_text(track.gaps, 'place')}"


def _length_text(track: Track) -> str:
    """How far an annotation goes, in its unit."""
    if track.unit == FRAME:
        return count_text(int(track.end), "frame")
    return f"{float(_annotated_s(track, Fraction(1))):.2f} s"


def _annotated_s(track: Track, rate: Fraction) -> Fraction:
    """How far an annotation goes, at `rate` frames a second."""
    unit_s = {FRAME: 1 / rate, MILLISECOND: Fraction(1, 1000)}.get(track.unit, Fraction(1))
    return track.end * unit_s


def _frame_rate(job: VideoJob, facts: Facts) -> Fraction:
    """Positions of unit frame per second."""
    if job.source.pictures is None:
        return facts.num_frames / facts.end
    return Fraction(job.source.pictures.annotation_fps or job.source.pictures.fps)


def _cause(job: VideoJob, track: Track, facts: Facts, rate: Fraction) -> str:
    if facts.lost:
        return f"{count_text(facts.lost, 'frame')} of the video got lost, which the annotation still counts"
    ratio = float(_annotated_s(track, rate) / facts.end)
    for other in (24, 25, 30, 50, 60):
        if track.unit == FRAME and abs(ratio * float(rate) - other) < 0.2 and abs(other - float(rate)) > 0.3:
            return f"it counts frames of a copy with {other} frames a second (this one has {float(rate):.2f})"
    others = {FRAME: ((1 / rate, "seconds"),), MILLISECOND: ((Fraction(1, 1000), "seconds"),)}
    for factor, unit in others.get(track.unit, ((rate, "frames"), (Fraction(1000), "milliseconds"))):
        if abs(ratio / float(factor) - 1) < 0.02:
            also = ", or --source-fps is another" if job.source.pictures else ""
            return f"its positions are {unit} (--unit){also}"
    if track.unit == SECOND and 50 < 1 / ratio < 70:
        return "its positions are minutes, or hours and minutes; write h:m:s"
    return (
        "the video is cut, or the annotation that of another video"
        if ratio > 1
        else ("the annotation is cut, or that of another video")
    )
