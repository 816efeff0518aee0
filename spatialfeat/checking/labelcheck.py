"""Labels against phases: which phases are there, in which split, and how many frames of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialfeat.checking.findings import Finding
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED, FrameTable

RARE = 0.01
"""A phase with a smaller share of the training frames is told."""


def phase_counts(tables: Sequence[FrameTable], num_classes: int) -> dict[str, list[int]]:
    """{split: frames of each phase 0..num_classes-1}; unlabelled frames and faulty labels are left out."""
    counts: dict[str, list[int]] = {}
    for table in tables:
        found = np.bincount(table.labels[table.labels != UNLABELLED], minlength=num_classes)
        before = counts.get(table.split, [0] * num_classes)
        counts[table.split] = [old + new for old, new in zip(before, found.tolist(), strict=True)]
    return counts


def check_labels(
    counts: dict[str, list[int]], phase_names: Sequence[str] | None, findings: Sequence[Finding]
) -> list[Finding]:
    """Phases that are absent or rare, and labels that look counted from 1.

    Args:
        counts: of `phase_counts`. phase_names: None if nobody named them.
        findings: what is known already; a label outside the range makes a guess about counting from 1 superfluous.
    """
    counts = {split: frames for split, frames in counts.items() if sum(frames)}
    if not counts:
        return []
    found = _absent(counts, phase_names) + _rare(counts, phase_names)
    if not any(frames[0] for frames in counts.values()):
        highest = max(phase for frames in counts.values() for phase, count in enumerate(frames) if count)
        outside = next((finding for finding in findings if finding.code == "label-out-of-range"), None)
        also = f", and {outside.message}" if outside else ""
        found.append(
            Finding(
                code="no-label-zero",
                message=f"no frame of any CSV has label 0; the labels found run from 1 to {highest}{also}",
                remedy="if the phases are counted from 1, subtract 1 from every label",
                unit="data set",
            )
        )
    return found


def _name(phase: int, phase_names: Sequence[str] | None) -> str:
    return f"{phase} ({phase_names[phase]})" if phase_names else str(phase)


def _absent(counts: dict[str, list[int]], phase_names: Sequence[str] | None) -> list[Finding]:
    num_classes = len(next(iter(counts.values())))
    found = []
    train = counts.get("train")
    absent = [phase for phase in range(num_classes) if train is not None and not train[phase]]
    if absent:
        texts = []
        for phase in absent:
            elsewhere = [
                f"{count_text(frames[phase], 'frame')} in {split}" for split, frames in counts.items() if frames[phase]
            ]
            texts.append(f"phase {_name(phase, phase_names)}: {', '.join(elsewhere) or 'no frame anywhere'}")
        found.append(
            Finding(
                code="phase-not-in-train",
                message=f"the network cannot learn to predict phases without training frames; {texts[0]}",
                remedy="move a video that has the phase to train, or lower --num-classes if there is no such phase",
                count=len(absent),
                unit="phase",
                places=tuple(texts),
            )
        )
    missing = [
        f"phase {_name(phase, phase_names)}: no frame in {split}"
        for split, frames in counts.items()
        if split in ("val", "test")
        for phase in range(num_classes)
        if not frames[phase] and (train is None or train[phase])
    ]
    if missing:
        found.append(
            Finding(
                code="phase-not-evaluated",
                message=f"{missing[0]}; scores of that split say nothing about it",
                remedy="quote the scores with that limit",
                count=len(missing),
                unit="phase",
                places=tuple(missing),
            )
        )
    return found


def _rare(counts: dict[str, list[int]], phase_names: Sequence[str] | None) -> list[Finding]:
    train = counts.get("train", [])
    rare = [phase for phase, count in enumerate(train) if 0 < count < RARE * sum(train)]
    texts = [
        f"phase {_name(phase, phase_names)}: {count_text(train[phase], 'frame')} of {sum(train)} in train"
        for phase in rare
    ]
    if not texts:
        return []
    return [
        Finding(
            code="rare-phase",
            message=f"{texts[0]}; accuracy hardly notices such phases",
            remedy="look at macro F1 and per_phase.csv, not at accuracy alone",
            count=len(texts),
            unit="phase",
            places=tuple(texts),
        )
    ]
