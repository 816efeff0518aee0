"""Phase colours stay apart for the colour-blind, in grey print, and from a gap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from spatialfeat.reports.plots import PHASE_COLOURS, phase_style

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009:
# complete deficiency, on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def cielab(colours: list[str], sight: str = "normal") -> np.ndarray:
    """(N, 3) CIE L*a*b* of #rrggbb colours as somebody with this sight sees them."""
    values = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(SIGHTS[sight]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * cube[:, 1] - 16, 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_phase_colours_stay_apart(sight: str) -> None:
    seen = cielab([*PHASE_COLOURS, "#ffffff"], sight)
    distances = {
        (first, second): float(np.linalg.norm(seen[first] - seen[second]))
        for first, second in itertools.combinations(range(len(seen)), 2)
    }
    between = {pair: distance for pair, distance in distances.items() if pair[1] < len(PHASE_COLOURS)}
    assert min(between.values()) >= 25, min(between, key=lambda pair: between[pair])
    assert min(distances.values()) >= 20, "a colour looks like a gap"


def test_neighbouring_phases_differ_in_grey_print() -> None:
    lightness = cielab(list(PHASE_COLOURS))[:, 0]
    assert np.abs(np.diff(lightness)).min() >= 25


def test_sixty_phases_look_different_and_then_start_over() -> None:
    looks = [(phase_style(phase).colour, phase_style(phase).hatch) for phase in range(60)]
    assert len(set(looks)) == 60
    assert {hatch for _, hatch in looks[:12]} == {""}
    assert phase_style(60) == phase_style(0)


def test_ink_is_readable_on_every_colour() -> None:
    for phase in range(12):
        style = phase_style(phase)
        ink, colour = cielab([style.ink, style.colour])[:, 0]
        assert abs(ink - colour) > 40, phase
