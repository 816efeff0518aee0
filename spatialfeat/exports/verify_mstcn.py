"""Reads a finished MS-TCN tree back and checks every rule of the format.

Shares no code with the export, so that a mistake there is not repeated here: plain bytes and plain NumPy.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

MIN_FRAMES = 2
CHANNELS_PER_READ = 64

_BUNDLE = re.compile(r"(train|test|val)\.split([1-9][0-9]*)\.bundle")


def verify_mstcn(tree: Path, num_channels: int, *, min_videos: int = 2) -> list[str]:
    """Check the tree below `tree`, whatever the folder itself is called now.

    Args:
        num_channels: how many features every frame of every video has.
        min_videos: the least number of videos in a bundle of train or test; val is not read by MS-TCN itself.

    Returns one sentence for each broken rule, with the file; none if the tree is sound.
    """
    problems = _check_names(tree)
    if problems:
        return problems
    phases = _check_mapping(tree / "mapping.txt", problems)
    videos = {path.stem for path in (tree / "features").iterdir()}
    for name in sorted(videos):
        num_frames = _check_features(tree / f"features/{name}.npy", num_channels, problems)
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
    problems, names = [], []
    for folder, suffix in (("features", ".npy"), ("groundTruth", ".txt")):
        files = sorted((tree / folder).iterdir())
        names.append({path.stem for path in files})
        problems += [f"{folder}/{path.name}: is no {suffix} file" for path in files if path.suffix != suffix]
    problems += [f"{name}: has features or labels only" for name in sorted(names[0] ^ names[1])]
    odd = sorted(name for name in names[0] if re.search(r"[.\s]", name))
    return problems + [f"features/{name}.npy: a dot or space in a video's name" for name in odd]


def _check_lines(path: Path, problems: list[str]) -> list[str]:
    """The lines of a text file: UTF-8, LF, exactly one at the end, none blank, no blanks at the ends of a line."""
    place = f"{path.parent.name}/{path.name}" if path.name != "mapping.txt" else path.name
    content = path.read_bytes()
    try:
        *lines, rest = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        problems.append(f"{place}: is not UTF-8")
        return []
    if b"\r" in content:
        problems.append(f"{place}: has CR line ends")
    if rest:
        problems.append(f"{place}: does not end in a newline, so the last line would be lost")
        lines.append(rest)
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


def _check_features(path: Path, num_channels: int, problems: list[str]) -> int:
    """The number of frames, 0 if the file is not what it should be. Reads a few channels at a time."""
    place = f"features/{path.name}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        problems.append(f"{place}: cannot be read ({error})")
        return 0
    order = "C" if array.flags.c_contiguous else "Fortran"
    if (array.dtype.str, array.ndim, array.shape[:1], order) != ("<f4", 2, (num_channels,), "C"):
        found = f"{array.dtype.str} {array.shape} in {order} order"
        problems.append(f"{place}: is {found}, not <f4 ({num_channels}, T) in C")
        return 0
    if array.shape[1] < MIN_FRAMES:
        problems.append(f"{place}: has {array.shape[1]} frames; at least {MIN_FRAMES} are needed")
    parts = (array[start : start + CHANNELS_PER_READ] for start in range(0, num_channels, CHANNELS_PER_READ))
    if not all(np.isfinite(part).all() for part in parts):
        problems.append(f"{place}: holds a value that is not finite")
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
        if len(listed) < min_videos and (match[1] != "val" or not listed):
            problems.append(f"splits/{path.name}: lists {len(listed)} videos; at least {min_videos} are needed")
        problems += [f"splits/{path.name}: {name} has no features" for name in sorted(set(listed) - videos)]
    numbers = sorted({number for _, number in bundles})
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"splits: are numbered {numbers}, not from 1")
    for number in numbers:
        train, test, val = (bundles.get((part, number), set()) for part in ("train", "test", "val"))
        missing = [part for part, names in (("train", train), ("test", test)) if not names]
        problems += [f"splits/{part}.split{number}.bundle: is missing" for part in missing]
        shared = {"train and test": train & test, "train and val": train & val, "test and val": test & val}
        problems += [f"split {number}: {name} is in both {two}" for two in shared for name in sorted(shared[two])]
    unlisted = videos - set().union(*bundles.values())
    problems += [f"features/{name}.npy: is in no bundle" for name in sorted(unlisted)]
