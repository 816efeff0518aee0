from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spatialfeat.exports.verify_mstcn import verify_mstcn

CHANNELS = 70
"""More than are read at a time."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A sound tree, written by hand: videos a and b to train, c and d to test."""
    for folder in ("features", "groundTruth", "splits"):
        (tmp_path / folder).mkdir()
    for video in "abcd":
        np.save(tmp_path / f"features/{video}.npy", np.ones((CHANNELS, 3), dtype="<f4"))
        (tmp_path / f"groundTruth/{video}.txt").write_bytes(b"cut\ncut\nsew\n")
    (tmp_path / "splits/train.split1.bundle").write_bytes(b"a.txt\nb.txt\n")
    (tmp_path / "splits/test.split1.bundle").write_bytes(b"c.txt\nd.txt\n")
    (tmp_path / "mapping.txt").write_bytes(b"0 cut\n1 sew\n")
    return tmp_path


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_bytes(content)


def save(array: np.ndarray) -> Callable[[Path], object]:
    return lambda tree: np.save(tree / "features/a.npy", array)


def with_nan() -> np.ndarray:
    array = np.ones((CHANNELS, 3), dtype="<f4")
    array[CHANNELS - 1, 2] = np.nan
    return array


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "carriage return": (put("groundTruth/a.txt", b"cut\r\ncut\r\nsew\r\n"), "groundTruth/a.txt: has CR"),
    "no last newline": (put("groundTruth/a.txt", b"cut\ncut\nsew"), "groundTruth/a.txt: does not end in a newline"),
    "two last newlines": (put("groundTruth/a.txt", b"cut\ncut\nsew\n\n"), "groundTruth/a.txt: has a blank line"),
    "blank line": (put("groundTruth/a.txt", b"cut\n\nsew\n"), "groundTruth/a.txt: has a blank line"),
    "blank at the end": (put("groundTruth/a.txt", b"cut\ncut \nsew\n"), "blanks at an end"),
    "one label short": (put("groundTruth/a.txt", b"cut\nsew\n"), "2 lines for 3 frames"),
    "one label over": (put("groundTruth/a.txt", b"cut\ncut\nsew\nsew\n"), "4 lines for 3 frames"),
    "unknown phase": (put("groundTruth/a.txt", b"cut\ncut\nrest\n"), "'rest' is not in mapping.txt"),
    "empty labels": (put("groundTruth/a.txt", b""), "groundTruth/a.txt: is empty"),
    "not UTF-8": (put("groundTruth/a.txt", b"cut\n\xff\nsew\n"), "groundTruth/a.txt: is not UTF-8"),
    "labels without features": (put("groundTruth/e.txt", b"cut\n"), "e: has features or labels only"),
    "features without labels": (put("features/e.npy", b""), "e: has features or labels only"),
    "stray file": (put("notes.txt", b"x"), "holds features, groundTruth, mapping.txt, notes.txt"),
    "stray feature file": (put("features/a.npz", b"x"), "features/a.npz: is no .npy file"),
    "mapping from one": (put("mapping.txt", b"1 cut\n2 sew\n"), "the numbers are not 0 to 1"),
    "mapping out of order": (put("mapping.txt", b"1 sew\n0 cut\n"), "the numbers are not 0 to 1"),
    "mapping without newline": (put("mapping.txt", b"0 cut\n1 sew"), "mapping.txt: does not end in a newline"),
    "mapping with a space": (put("mapping.txt", b"0 cut\n1 sew it\n"), "a name may not hold spaces"),
    "mapping twice": (put("mapping.txt", b"0 cut\n1 sew\n2 sew\n"), "a phase name is there twice"),
    "mapping with #": (put("mapping.txt", b"0 cut\n1 sew\n2 #x\n"), "'#x' holds '#'"),
    "float64": (save(np.ones((CHANNELS, 3))), "is <f8"),
    "big-endian": (save(np.ones((CHANNELS, 3), dtype=">f4")), "is >f4"),
    "one channel short": (
        save(np.ones((CHANNELS - 1, 3), dtype="<f4")),
        r"is <f4 \(69, 3\) .* not <f4 \(70, T\)",
    ),
    "time first": (save(np.ones((3, CHANNELS), dtype="<f4")), r"\(3, 70\)"),
    "Fortran order": (save(np.asfortranarray(np.ones((CHANNELS, 3), dtype="<f4"))), "in Fortran order"),
    "one frame": (save(np.ones((CHANNELS, 1), dtype="<f4")), "has 1 frames; at least 2"),
    "no frame": (save(np.ones((CHANNELS, 0), dtype="<f4")), "features/a.npy"),
    "not finite": (save(with_nan()), "not finite"),
    "truncated features": (put("features/a.npy", b"\x93NUMPY"), "features/a.npy: cannot be read"),
    "pickled features": (save(np.array([None, "x"], dtype=object)), "features/a.npy: cannot be read"),
    "bundle without newline": (put("splits/test.split1.bundle", b"c.txt\nd.txt"), "does not end in a newline"),
    "bundle with unknown video": (put("splits/test.split1.bundle", b"c.txt\nd.txt\nz.txt\n"), "z has no features"),
    "bundle without suffix": (put("splits/test.split1.bundle", b"c\nd.txt\n"), "a line does not end in .txt"),
    "bundle lists twice": (put("splits/test.split1.bundle", b"c.txt\nc.txt\nd.txt\n"), "lists a video twice"),
    "bundle of one": (put("splits/test.split1.bundle", b"c.txt\n"), "lists 1 videos"),
    "empty bundle": (put("splits/test.split1.bundle", b"\n"), "test.split1.bundle: has a blank line"),
    "train and test": (put("splits/test.split1.bundle", b"b.txt\nc.txt\nd.txt\n"), "b is in both train and test"),
    "test and val": (put("splits/val.split1.bundle", b"c.txt\nd.txt\n"), "c is in both test and val"),
    "unlisted video": (put("splits/train.split1.bundle", b"a.txt\na.txt\n"), "features/b.npy: is in no bundle"),
    "strange bundle": (put("splits/train.bundle", b"a.txt\nb.txt\n"), "is not named like"),
    "no test bundle": (lambda tree: (tree / "splits/test.split1.bundle").unlink(), "test.split1.bundle: is missing"),
    "split 2 only": (
        lambda tree: [p.rename(str(p).replace("split1", "split2")) for p in (tree / "splits").iterdir()],
        "not from 1",
    ),
}


def test_a_sound_tree_has_no_problems(tree: Path) -> None:
    assert verify_mstcn(tree, CHANNELS) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_tree_is_reported_by_its_fault(tree: Path, fault: str) -> None:
    break_it, message = FAULTS[fault]
    break_it(tree)
    problems = verify_mstcn(tree, CHANNELS)
    assert any(re.search(message, problem) for problem in problems), problems


def test_every_video_must_have_the_channels_that_were_written(tree: Path) -> None:
    problems = verify_mstcn(tree, CHANNELS - 1)
    assert len([problem for problem in problems if ".npy: is <f4" in problem]) == 4


def test_a_dot_in_a_name_is_reported(tree: Path) -> None:
    (tree / "features/a.npy").rename(tree / "features/a.b.npy")
    (tree / "groundTruth/a.txt").rename(tree / "groundTruth/a.b.txt")
    assert any("a dot or space" in problem for problem in verify_mstcn(tree, CHANNELS))
