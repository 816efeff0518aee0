"""Draw a small demo data set of endoscope-like frames, so that the whole program can be run without data.

Nothing here comes from a person: every picture is drawn from noise and simple shapes. The folder holds
`images/{id}.png`, one `{split}_ResNet_DB.csv` (columns `id,label`) per split, `phase_names.txt`, and, written
last, `demo_data.json` with the parameters, by which a second run knows that the folder is complete.

An id is PATIENT_SEGMENT_FRAME. As in real exports, the width of each field differs between patients, frame
numbers have gaps (seconds without a label), and one patient in four has unpadded frame numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Found beside this file also when a test, or a worker process, loads it by its path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo_frames import LOOKS, NUM_PHASES, draw_frames

VERSION = 1  # Raise when the drawing changes: a folder drawn by another version is then refused, not reused.
SPLITS = ("train", "val", "test")


class Video(NamedTuple):
    """One operation: its rows in time order, and the second at which each frame was taken."""

    order: int
    split: str
    patient: str
    ids: list[str]
    labels: list[int]
    seconds: list[int]


def _labels(rng: np.random.Generator, num_frames: int, lacks: int | None, returns: bool) -> list[int]:
    """Return the phase of each frame, shape (num_frames,): 0 to 6 in order, with varying durations."""
    phases = [phase for phase in range(NUM_PHASES) if phase != lacks]
    shares = np.array([0.7, 0.9, 1.2, 1.5, 1.2, 0.8, 0.9])[phases] * rng.uniform(0.6, 1.4, len(phases))
    shortest = max(1, num_frames // 16)
    lengths = shortest + rng.multinomial(num_frames - shortest * len(phases), shares / shares.sum())
    labels: list[int] = np.repeat(phases, lengths).tolist()
    if returns:  # A short step back in the middle of phase 4, with frames of phase 4 on both sides.
        first, count = labels.index(4), labels.count(4)
        labels[first + count // 3 : first + 2 * count // 3] = [3] * (2 * count // 3 - count // 3)
    return labels


def plan_videos(counts: dict[str, int], frames_per_patient: int, seed: int) -> list[Video]:
    """Decide every id and label, without drawing anything. counts: patients per split."""
    rng = np.random.default_rng([seed, 0])
    videos: list[Video] = []
    used: set[int] = set()
    for split, place in [(name, place) for name in SPLITS for place in range(counts[name])]:
        index = len(videos)
        patient, digits = 0, (1, 2, 4, 3, 2)[index % 5]
        while patient == 0 or patient in used:
            patient = int(rng.integers(10 ** (digits - 1), 10**digits))
            digits += int(rng.random() < 0.1)  # Only nine patients can have one digit: go on to wider ones.
        used.add(patient)
        # Only a patient beside others of the same split may lack a phase: each split keeps all seven.
        lacks = 5 if split == "train" and place > 0 and place == counts[split] - 1 else None
        returns = split == "train" and place == 0 and frames_per_patient >= 40
        labels = _labels(rng, frames_per_patient, lacks, returns)
        segment_width, frame_width = 1 + index % 2, (4, 1, 6, 4)[index % 4]
        ids: list[str] = []
        seconds: list[int] = []
        for segment, part in enumerate(np.array_split(labels, 2 + index % 2), start=1):
            # A video starts at frame 0. Unpadded numbers start just below ten: as text, 10 comes before 8.
            start = int(rng.integers(7, 9)) if frame_width == 1 else int(rng.integers(0, 30))
            steps = np.where(rng.random(len(part)) < 0.1, rng.integers(2, 10, len(part)), 1)
            steps[len(part) // 2] += rng.integers(1, 5)  # At least one gap in each segment.
            frames = [start + int(total) for total in np.cumsum(steps) - steps[0]]
            ids += [f"{patient}_{segment:0{segment_width}d}_{frame:0{frame_width}d}" for frame in frames]
            begin = seconds[-1] + int(rng.integers(5, 20)) if seconds else 0
            seconds += [begin + frame for frame in frames]
        videos.append(Video(index, split, str(patient), ids, labels, seconds))
    every_id = [frame_id for video in videos for frame_id in video.ids]
    if len({int(video.patient) for video in videos}) != len(videos) or len(set(every_id)) != len(every_id):
        raise AssertionError("the plan repeats a patient or a frame id")
    return videos


def _draw_video(video: Video, folder: Path, size_px: tuple[int, int], seed: int) -> Video:
    # Seeded by its place in the plan, so that the number of processes cannot change a picture.
    rng = np.random.default_rng([seed, 1, video.order])
    frames = draw_frames(video.labels, video.seconds, size_px, rng)
    for frame_id, frame in zip(video.ids, frames, strict=True):
        # Run-length matching: on noisy pictures as small as zlib's usual search, at half its time.
        frame.save(folder / f"{frame_id}.png", compress_level=1, compress_type=3)
    return video


def make_demo_data(
    out_dir: Path,
    *,
    num_train: int = 8,
    num_val: int = 2,
    num_test: int = 3,
    frames_per_patient: int = 75,
    size_px: tuple[int, int] = (456, 256),
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write the demo data set to `out_dir`; do nothing if the same one is already there.

    size_px is (width, height). `workers` is the number of processes (default: one per processor; the files do
    not depend on it). Raises ValueError for impossible parameters and for a folder that holds anything else.
    """
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    if min(counts.values()) < 1 or frames_per_patient < NUM_PHASES or min(size_px) < 32 or seed < 0:
        raise ValueError("needs 1 patient per split, 7 frames per patient, 32 px and seed 0 at the least")
    parameters = {"version": VERSION, **counts, "frames_per_patient": frames_per_patient, "size_px": size_px}
    text = json.dumps({**parameters, "seed": seed}) + "\n"
    marker, images = out_dir / "demo_data.json", out_dir / "images"
    if marker.is_file() and marker.read_bytes() == text.encode():
        print(f"already there: {out_dir}")
        return
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(
            f"{out_dir} is not empty and is not this demo data set (other parameters, an unfinished run, "
            "or other files); choose a new folder, or delete this one"
        )
    videos = plan_videos(counts, frames_per_patient, seed)
    images.mkdir(parents=True)

    def report(done: int, video: Video) -> None:
        where = f"patient {video.patient} ({video.split})"
        print(f"[{done:2d}/{len(videos)}] {where}: {len(video.ids)} frames", flush=True)

    workers = min(workers or os.cpu_count() or 1, len(videos))
    # Starting processes costs more than it saves on a tiny set.
    if workers == 1 or len(videos) * frames_per_patient * math.prod(size_px) < 4_000_000:
        for done, video in enumerate(videos, start=1):
            report(done, _draw_video(video, images, size_px, seed))
    else:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_draw_video, video, images, size_px, seed) for video in videos]
            for done, job in enumerate(as_completed(jobs), start=1):
                report(done, job.result())
    files = {f"{split}_ResNet_DB.csv": "id,label\n" for split in SPLITS}
    for video in videos:
        rows = zip(video.ids, video.labels, strict=True)
        files[f"{video.split}_ResNet_DB.csv"] += "".join(f"{frame_id},{label}\n" for frame_id, label in rows)
    files["phase_names.txt"] = "".join(f"{look.name}\n" for look in LOOKS)
    files[marker.name] = text  # Last: only a complete folder has it.
    for name, content in files.items():
        (out_dir / name).write_text(content, encoding="utf-8", newline="\n")


def main() -> int:
    """Run from the command line; return the exit code (2 when the folder or a parameter is refused)."""
    parser = argparse.ArgumentParser(description="Draw a demo data set of endoscope-like frames.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    numbers = (("patients-train", 8), ("patients-val", 2), ("patients-test", 3), ("frames-per-patient", 75))
    for name, default in (*numbers, ("width", 456), ("height", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    args = parser.parse_args()
    try:
        make_demo_data(
            args.out,
            num_train=args.patients_train,
            num_val=args.patients_val,
            num_test=args.patients_test,
            frames_per_patient=args.frames_per_patient,
            size_px=(args.width, args.height),
            seed=args.seed,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
