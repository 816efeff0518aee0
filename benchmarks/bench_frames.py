"""Draw frames to measure with: smooth colour under sensor noise, so that a PNG decodes as slowly as a photograph's.

Drawings compress well and decode fast; a benchmark on them flatters the network. These frames carry the noise of a
camera: about 1.3 MB and 20 ms of Pillow's time at 1280x720, 0.2 MB at 456x256. Nobody's operation is in them.

The colour leans towards the label, so a network can learn it, and differs enough from frame to frame that it needs
some epochs to do so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = 1
"""Raise when the drawing changes: a folder drawn by another version is then refused, not reused."""
MARKER = "frames.json"
NUM_PHASES = 7
FRAMES_PER_VIDEO = 400
MIN_VIDEOS = 5
TRAIN_SHARE = 0.8
PATIENTS_APART = 10_000
NOISE_LEVELS = 2.4
"""Standard deviation of the sensor noise, in 8-bit levels; with it the PNGs have a photograph's size."""

JPEG_QUALITY = 92

# Mean colour of each phase, 8-bit RGB. Reds close to each other, as tissue is.
COLOURS = (
    (176, 92, 84), (168, 76, 60), (188, 132, 104), (160, 84, 88), (148, 60, 64), (184, 108, 72), (172, 116, 120)
)  # fmt: skip
COLOUR_SPREAD = 14.0
"""Standard deviation of a frame's mean colour around its phase's, in 8-bit levels."""


@dataclass(frozen=True)
class FrameSet:
    """A folder made by `make_frames`: `images/{id}.png`, one CSV per split, and what was measured of the files."""

    folder: Path
    width: int
    height: int
    count: int
    num_train: int
    mean_png_bytes: int

    @property
    def img_dir(self) -> Path:
        return self.folder / "images"

    @property
    def train_csv(self) -> Path:
        return self.folder / "train_ResNet_DB.csv"

    @property
    def val_csv(self) -> Path:
        return self.folder / "val_ResNet_DB.csv"

    @property
    def csv_paths(self) -> list[Path]:
        """The CSVs that there are."""
        return [path for path in (self.train_csv, self.val_csv) if path.is_file()]

    @property
    def size_text(self) -> str:
        """`1280x720`."""
        return f"{self.width}x{self.height}"

    @property
    def num_val(self) -> int:
        return self.count - self.num_train

    @property
    def study_options(self) -> list[str | Path]:
        """Options by which a training is told to use these frames."""
        return ["--train-csv", self.train_csv, "--val-csv", self.val_csv, "--img-dir", self.img_dir]


class _Row(NamedTuple):
    frame_id: str
    split: str
    phase: int


def make_frames(
    folder: Path,
    *,
    width: int,
    height: int,
    count: int,
    seed: int,
    max_drawn: int | None = None,
    workers: int | None = None,
) -> FrameSet:
    """Fill `folder` with `count` frames of several videos, four fifths of them for training.

    A folder that is complete already and was made with the same parameters is left as it is.

    Args:
        max_drawn: about so many different frames; the others are hard links to one of the same split and phase, which
            cost no time to make and as much time to decode. Default: every frame is drawn.
        workers: drawing processes; default one per core.

    Raises:
        ValueError: `count` is too small, or the folder holds something else.
    """
    if count < MIN_VIDEOS * NUM_PHASES:
        raise ValueError(f"count {count}: must be at least {MIN_VIDEOS * NUM_PHASES}, every phase in every video")
    parameters = {"version": VERSION, "width": width, "height": height, "count": count, "seed": seed,
                  "max_drawn": max_drawn}  # fmt: skip
    marker = folder / MARKER
    if marker.is_file():
        stored = json.loads(marker.read_text(encoding="utf-8"))
        if stored["parameters"] != parameters:
            raise ValueError(f"{folder}: holds frames made with {stored['parameters']}; delete it or choose another")
        return FrameSet(folder=folder, **stored["set"])
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty and holds no whole set of frames; delete it or choose another")

    rows = _plan(count)
    drawn, links = _sources(rows, max_drawn)
    img_dir = folder / "images"
    img_dir.mkdir(parents=True)
    jobs = [(img_dir / f"{rows[i].frame_id}.png", rows[i].phase, width, height, (seed, i)) for i in drawn]
    processes = workers or len(os.sched_getaffinity(0))
    if processes == 1:
        sizes = [_draw_file(job) for job in jobs]
    else:
        with ProcessPoolExecutor(processes) as pool:
            sizes = list(pool.map(_draw_file, jobs, chunksize=4))
    for link, source in links:
        os.link(img_dir / f"{rows[source].frame_id}.png", img_dir / f"{rows[link].frame_id}.png")
    num_train = sum(row.split == "train" for row in rows)
    frames = FrameSet(folder, width, height, count, num_train, round(float(np.mean(sizes))))
    for split, path in (("train", frames.train_csv), ("val", frames.val_csv)):
        lines = ["id,label", *(f"{row.frame_id},{row.phase}" for row in rows if row.split == split)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {name: value for name, value in asdict(frames).items() if name != "folder"}
    # Last: only a whole folder has it.
    marker.write_text(json.dumps({"parameters": parameters, "set": facts}, indent=1) + "\n", encoding="utf-8")
    return frames


def as_jpeg(frames: FrameSet, folder: Path, quality: int = JPEG_QUALITY) -> FrameSet:
    """The same frames as JPEG files, of which as many are hard links; made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    made = replace(frames, folder=folder)
    made.img_dir.mkdir(parents=True)
    for path in frames.csv_paths:
        shutil.copy(path, folder)
    files: dict[int, Path] = {}
    for path in sorted(frames.img_dir.iterdir()):
        target, number = made.img_dir / f"{path.stem}.jpg", path.stat().st_ino
        if number in files:
            os.link(files[number], target)
        else:
            Image.open(path).convert("RGB").save(target, quality=quality)
            files[number] = target
    return made


def link_frames(frames: FrameSet, folder: Path, count: int) -> FrameSet:
    """Make a set of another length from the same pictures, all in the training CSV: hard links, which cost nothing.

    Beyond its end the set starts again, as other patients.
    """
    rows = [line.split(",") for path in frames.csv_paths for line in path.read_text("utf-8").splitlines()[1:]]
    shutil.rmtree(folder, ignore_errors=True)
    linked = FrameSet(folder, frames.width, frames.height, count, count, frames.mean_png_bytes)
    linked.img_dir.mkdir(parents=True)
    lines = ["id,label"]
    for index in range(count):
        frame_id, label = rows[index % len(rows)]
        patient, _, rest = frame_id.partition("_")
        new_id = f"{int(patient) + index // len(rows) * PATIENTS_APART}_{rest}"
        os.link(frames.img_dir / f"{frame_id}.png", linked.img_dir / f"{new_id}.png")
        lines.append(f"{new_id},{label}")
    linked.train_csv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return linked


def draw_frame(rng: np.random.Generator, phase: int, width: int, height: int) -> NDArray[np.uint8]:
    """One frame of a phase, (height, width, 3) uint8."""
    colour = np.array(COLOURS[phase], np.float32) + rng.normal(0, COLOUR_SPREAD, 3).astype(np.float32)
    pixels = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        coarse = _smooth(rng, width, height, cells=5) * 18
        fine = _smooth(rng, width, height, cells=40) * 7
        pixels[..., channel] = colour[channel] + coarse + fine
    pixels += rng.standard_normal(pixels.shape, np.float32) * NOISE_LEVELS
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _smooth(rng: np.random.Generator, width: int, height: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise of about unit deviation, (height, width): random values on a coarse grid, scaled up."""
    grid = Image.fromarray(rng.standard_normal((cells, max(2, cells * width // height)), np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _draw_file(job: tuple[Path, int, int, int, tuple[int, int]]) -> int:
    """Draw one PNG file. Returns its size in bytes."""
    path, phase, width, height, seed = job
    Image.fromarray(draw_frame(np.random.default_rng(seed), phase, width, height)).save(path)
    return path.stat().st_size


def _plan(count: int) -> list[_Row]:
    """Ids and phases of all frames: in every video the phases follow each other once, as in an operation."""
    num_videos = max(MIN_VIDEOS, round(count / FRAMES_PER_VIDEO))
    num_train_videos = round(num_videos * TRAIN_SHARE)
    rows: list[_Row] = []
    for video, indices in enumerate(np.array_split(np.arange(count), num_videos)):
        split = "train" if video < num_train_videos else "val"
        # Two segments per patient; the validation videos begin with a patient of their own.
        within = video if split == "train" else video - num_train_videos
        patient = (1001 if split == "train" else 2001) + within // 2
        for frame in range(len(indices)):
            phase = frame * NUM_PHASES // len(indices)
            rows.append(_Row(f"{patient}_{within % 2 + 1}_{frame + 1:06d}", split, phase))
    return rows


def _sources(rows: list[_Row], max_drawn: int | None) -> tuple[list[int], list[tuple[int, int]]]:
    """Which rows are drawn, and (row, row that it is a link to) for the others."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.split, row.phase].append(index)
    share = 1.0 if max_drawn is None else min(1.0, max_drawn / len(rows))
    drawn: list[int] = []
    links: list[tuple[int, int]] = []
    for members in groups.values():
        originals = members[: max(1, round(share * len(members)))]
        drawn += originals
        links += [(row, originals[i % len(originals)]) for i, row in enumerate(members[len(originals) :])]
    return drawn, links
