"""The CSVs of a data set: read to the end whatever is wrong in them, compared with each other, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from spatialfeat.checks.findings import Finding, finding_of_error, finding_of_problem
from spatialfeat.config import TEST_CSV, CheckConfig
from spatialfeat.console import count_text
from spatialfeat.data.frames import (
    NO_LABELLED_FRAME,
    UNLABELLED,
    FrameTable,
    named_csvs,
    two_spellings,
    unlabelled_text,
    unlabelled_videos,
)
from spatialfeat.data.patients import id_questions, shared_patients
from spatialfeat.data.tables import RowProblem
from spatialfeat.errors import SpatialfeatError
from spatialfeat.training.data import read_split, study_csvs

RARE = 0.01
"""A phase with a smaller share of the training frames is reported."""


def read_tables(config: CheckConfig) -> tuple[list[FrameTable], list[Finding]]:
    """Read the CSVs as finetune does, or as extract does where `config.csvs` names them.

    Returns the sound rows of each CSV that has some, and what is wrong with the others.

    Raises:
        SpatialfeatError: `--csv` in a form that extract would refuse.
    """
    tables: list[FrameTable] = []
    findings: list[Finding] = []
    csvs = named_csvs(config.csvs) if config.csvs else list(study_csvs(config).items())
    if not config.csvs and "test" not in dict(csvs):
        message = f"no {TEST_CSV} here: finetune ends without test results"
        findings.append(Finding("no-test-csv", message, "pass --test-csv if there is one"))
    for split, path in csvs:
        problems: list[RowProblem] = []
        try:
            table = read_split(config, split, path, labels_required=not config.csvs, on_problem=problems.append)
        except SpatialfeatError as error:
            findings.append(finding_of_error("unreadable-csv", error, "fix the file, or pass another one"))
            continue
        # Spellings are compared over all tables below.
        findings += [finding_of_problem(problem) for problem in problems if problem.kind != "two-spellings"]
        if len(table):
            tables.append(table)
            findings += _unlabelled(table, problems, trains=not config.csvs)
    findings += [Finding(asked.code, asked.message, asked.remedy, asked.places) for asked in id_questions(tables)]
    spellings = [finding_of_problem(problem) for problem in two_spellings(tables)]
    if spellings:
        places = [finding.message for finding in spellings]
        findings.append(Finding("two-spellings", places[0], spellings[0].remedy, places))
    findings += _shared_frames(tables)
    places = [f"patient {patient}: {_frames_text(frames)}" for patient, frames in shared_patients(tables).items()]
    if places:
        message = f"{places[0]}; scores on patients that were trained on are too good"
        findings.append(
            Finding("patient-in-two-splits", message, "give each patient to one split, with all segments", places)
        )
    return tables, findings


def _unlabelled(table: FrameTable, problems: Sequence[RowProblem], *, trains: bool) -> Iterator[Finding]:
    """Frames without a label. trains: whether the CSV is for finetune, which needs labels; extract does not."""
    # A faulty label has its own finding.
    faulty = sum(len(problem.rows) for problem in problems if problem.kind.startswith("label-"))
    unlabelled = int((table.labels == UNLABELLED).sum())
    if trains and unlabelled == len(table) and not faulty:
        yield finding_of_error("no-labels", SpatialfeatError(f"{table.source}: {NO_LABELLED_FRAME}"))
    elif faulty < unlabelled < len(table):
        message = f"{unlabelled_text(table, faulty)} (-100, -1 or nothing)"
        remedy = "nothing, if these frames belong to no phase: training and scores leave them out, extract keeps them"
        yield Finding("unlabelled", message, remedy, total=unlabelled - faulty)
    # A video whose labels are all faulty looks like one whose labels are missing.
    places = [] if faulty else [f"video {video} has no label at all" for video in unlabelled_videos(table)]
    if places:
        remedy = "nothing, if it was never annotated; else add its labels: its annotation may have been left out"
        yield Finding("unlabelled-video", f"{table.source}: {places[0]}", remedy, places)


def _shared_frames(tables: Sequence[FrameTable]) -> Iterator[Finding]:
    """Frames that are in two CSVs: extract refuses them, and scores on them are worthless."""
    # However many zeros a number is written with, the frame is the same.
    frames = [list(zip(table.videos.tolist(), table.frame_numbers.tolist(), strict=True)) for table in tables]
    for (other, known), (table, own) in combinations(zip(tables, frames, strict=True), 2):
        row_of = {frame: row for row, frame in enumerate(known)}
        places = [
            f"{table.where(row)}: id {table.ids[row]} is also in {other.where(row_of[frame])}"
            for row, frame in enumerate(own)
            if frame in row_of
        ]
        if places:
            remedy = f"remove these rows from {table.source} or {other.source}"
            yield Finding("frame-in-two-splits", places[0], remedy, places)


def _frames_text(frames: Mapping[str, int]) -> str:
    """`9 frames in train, 1 frame in val`. frames: {split: number of them}."""
    return ", ".join(f"{count_text(count, 'frame')} in {split}" for split, count in frames.items())


def phase_counts(tables: Sequence[FrameTable], num_classes: int) -> dict[str, list[int]]:
    """{split: frames of each phase 0..num_classes-1}; unlabelled frames and faulty labels are left out."""
    counts: dict[str, list[int]] = {}
    for table in tables:
        found = np.bincount(table.labels[table.labels != UNLABELLED], minlength=num_classes)
        before = counts.get(table.split, [0] * num_classes)
        counts[table.split] = [old + new for old, new in zip(before, found.tolist(), strict=True)]
    return counts


def check_labels(
    counts: Mapping[str, Sequence[int]], phase_names: Sequence[str] | None, findings: Sequence[Finding]
) -> Iterator[Finding]:
    """Phases that are absent or rare, and labels that look counted from 1.

    Args:
        counts: of `phase_counts`. phase_names: None if the user named none.
        findings: what reading the CSVs has found: a label that is too high supports the guess of counting from 1.
    """
    counts = {split: frames for split, frames in counts.items() if sum(frames)}
    if not counts:
        return
    of_phase = [dict(zip(counts, frames, strict=True)) for frames in zip(*counts.values(), strict=True)]
    phases = [
        f"phase {phase} ({phase_names[phase]})" if phase_names else f"phase {phase}" for phase in range(len(of_phase))
    ]
    train = counts.get("train", [])

    absent = [
        f"{phases[phase]}: "
        + (_frames_text({split: count for split, count in of_phase[phase].items() if count}) or "no frame anywhere")
        for phase, count in enumerate(train)
        if not count
    ]
    if absent:
        message = f"the network cannot learn to predict phases without training frames; {absent[0]}"
        remedy = "move a video that has the phase to train, or lower --num-classes if there is no such phase"
        yield Finding("phase-not-in-train", message, remedy, absent)

    unevaluated = [
        f"{phases[phase]}: no frame in {split}"
        for split, frames in counts.items()
        for phase, count in enumerate(frames)
        if split in ("val", "test") and not count and (not train or train[phase])
    ]
    if unevaluated:
        message = f"{unevaluated[0]}; scores of that split say nothing about it"
        yield Finding("phase-not-evaluated", message, "quote the scores with that limit", unevaluated)

    rare = [
        f"{phases[phase]}: {count_text(count, 'frame')} of {sum(train)} in train"
        for phase, count in enumerate(train)
        if 0 < count < RARE * sum(train)
    ]
    if rare:
        message = f"{rare[0]}; such phases hardly change the accuracy"
        yield Finding("rare-phase", message, "look at macro F1 and per_phase.csv, not at accuracy alone", rare)

    labels = [phase for phase, frames in enumerate(of_phase) if any(frames.values())]
    if labels[0] > 0:
        message = f"no frame of any CSV has label 0; the labels found run from {labels[0]} to {labels[-1]}"
        message += "".join(f", and {finding.message}" for finding in findings if finding.code == "label-out-of-range")
        yield Finding("no-label-zero", message, "if the phases are counted from 1, subtract 1 from every label")
