"""Reads a finished MS-TCN tree back and checks every rule of the format.

Shares no code with the export, so that a mistake there is not repeated here: plain bytes and plain NumPy.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

MIN_FRAMES = 2
NUM_CHANNELS = 2048
CHANNELS_PER_READ = 64

_BUNDLE = re.compile(r"(train|test|val)\.split([1-9][0-9]*)\.bundle")


def verify_mstcn(tree: Path, *, min_videos: int = 2) -> list[str]:
    """Check the tree below `tree`, whatever the folder itself is called now.

    Args:
        min_videos: the least number of videos in a bundle.

    Returns:
        One sentence for each broken rule, with the file; empty if the tree is sound.
    """
    problems = _check_names(tree)
    if problems:
        return problems
    phases = _check_mapping(tree / "mapping.txt", problems)
    videos = {path.stem for path in (tree / "features").iterdir()}
    for name in sorted(videos):
        num_frames = _check_features(tree / f"features/{name}.npy", problems)
        lines = _check_lines(tree / f"groundTruth/{name}.txt", problems)
        if len(lines) != num_frames:
            problems.append(f"groundTruth/{name}.txt: {len(lines)} lines for {num_frames} frames of features")
        unknown = set(lines) - set(phases)
        if unknown:
            problems.append(f"groundTruth/{name}.txt: {min(unknown)!r} is not in mapping.txt")
    _check_splits(tree / "splits", videos, min_videos, problems)
    return problems


def _check_names(tree: Path) -> list[str]:
    """The tree holds the four things, each video twice, and nothing else."""
    expected = {"features", "groundTruth", "splits", "mapping.txt"}
    found = {path.name for path in tree.iterdir()}
    if found != expected:
        return [f"holds {', '.join(sorted(found))} instead of {', '.join(sorted(expected))}"]
    features = {path.name for path in (tree / "features").iterdir()}
    labels = {path.name for path in (tree / "groundTruth").iterdir()}
    problems = [f"features/{name}: is no .npy file" for name in sorted(features) if not name.endswith(".npy")]
    problems += [f"groundTruth/{name}: is no .txt file" for name in sorted(labels) if not name.endswith(".txt")]
    names, label_names = {name[:-4] for name in features}, {name[:-4] for name in labels}
    problems += [f"{name}: has features or labels only" for name in sorted(names ^ label_names)]
    problems += [
        f"features/{name}.npy: a dot or space in a video's name" for name in sorted(names) if re.search(r"[.\s]", name)
    ]
    return problems


def _check_lines(path: Path, problems: list[str]) -> list[str]:
    """The lines of a text file: UTF-8, LF, exactly one at the end, none blank, no blanks at the ends of a line."""
    place = f"{path.parent.name}/{path.name}" if path.name != "mapping.txt" else path.name
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        problems.append(f"{place}: is not UTF-8")
        return []
    if b"\r" in content:
        problems.append(f"{place}: has CR line ends")
    if lines[-1] != "":
        problems.append(f"{place}: does not end in a newline, so the last line would be lost")
    else:
        lines = lines[:-1]
    if not lines:
        problems.append(f"{place}: is empty")
    if any(line.strip() != line or not line for line in lines):
        problems.append(f"{place}: has a blank line, or blanks at an end of a line")
    return lines


def _check_mapping(path: Path, problems: list[str]) -> list[str]:
    """The phase names. Readers split each line at white space and take two fields."""
    fields = [line.split() for line in _check_lines(path, problems)]
    if any(len(pair) != 2 for pair in fields):
        problems.append("mapping.txt: a line is not `<number> <name>`; a name may not hold spaces")
        return []
    if [number for number, _ in fields] != [str(index) for index in range(len(fields))]:
        problems.append(f"mapping.txt: the numbers are not 0 to {len(fields) - 1} in order")
    names = [name for _, name in fields]
    if len(set(names)) != len(names):
        problems.append("mapping.txt: a phase name is there twice")
    problems += [f"mapping.txt: phase name {name!r} holds '#'" for name in names if "#" in name]
    return names


def _check_features(path: Path, problems: list[str]) -> int:
    """The number of frames, 0 if the file is not what it should be. Reads a few channels at a time."""
    place = f"features/{path.name}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        problems.append(f"{place}: cannot be read ({error})")
        return 0
    if array.dtype != np.dtype("<f4") or array.ndim != 2 or len(array) != NUM_CHANNELS or not array.flags.c_contiguous:
        order = "C" if array.flags.c_contiguous else "Fortran"
        problems.append(
            f"{place}: is {array.dtype.str} {array.shape} in {order} order, not <f4 ({NUM_CHANNELS}, T) in C"
        )
        return 0
    if array.shape[1] < MIN_FRAMES:
        problems.append(f"{place}: has {array.shape[1]} frames; at least {MIN_FRAMES} are needed")
    for start in range(0, NUM_CHANNELS, CHANNELS_PER_READ):
        if not np.isfinite(array[start : start + CHANNELS_PER_READ]).all():
            problems.append(f"{place}: holds a value that is not finite")
            break
    return int(array.shape[1])


def _check_splits(folder: Path, videos: set[str], min_videos: int, problems: list[str]) -> None:
    bundles: dict[tuple[str, int], set[str]] = {}
    for path in sorted(folder.iterdir()):
        match = _BUNDLE.fullmatch(path.name)
        if match is None:
            problems.append(f"splits/{path.name}: is not named like train.split1.bundle")
            continue
        lines = _check_lines(path, problems)
        if any(not line.endswith(".txt") for line in lines):
            problems.append(f"splits/{path.name}: a line does not end in .txt")
        listed = [line[:-4] for line in lines]
        bundles[match[1], int(match[2])] = set(listed)
        if len(set(listed)) != len(listed):
            problems.append(f"splits/{path.name}: lists a video twice")
        if len(listed) < min_videos:
            problems.append(f"splits/{path.name}: lists {len(listed)} videos; at least {min_videos} are needed")
        problems += [f"splits/{path.name}: {name} has no features" for name in sorted(set(listed) - videos)]
    numbers = sorted({number for _, number in bundles})
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"splits: are numbered {numbers}, not from 1")
    for number in numbers:
        parts = {part: bundles.get((part, number)) for part in ("train", "test", "val")}
        problems += [f"splits/{part}.split{number}.bundle: is missing" for part in ("train", "test") if not parts[part]]
        for one, other in (("train", "test"), ("train", "val"), ("test", "val")):
            for name in sorted((parts[one] or set()) & (parts[other] or set())):
                problems.append(f"split {number}: {name} is in both {one} and {other}")
    unlisted = videos - set().union(*bundles.values())
    problems += [f"features/{name}.npy: is in no bundle" for name in sorted(unlisted)]
