"""The CSVs of a data set, read to the end whatever is wrong in them, and rows that do not go together.

Labels against phases: which phases are there, in which split, and how many frames of each.

Ids that may tell who a patient is: dates, record numbers, names. Frame numbers are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialfeat.checks.findings import Finding, finding_of, first_places
from spatialfeat.config import TEST_CSV, CheckConfig
from spatialfeat.console import count_text
from spatialfeat.data.frames import UNLABELLED, FrameTable, named_csvs, read_frames, shared_patients, two_spellings
from spatialfeat.data.tables import RowProblem
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key


@dataclass
class CheckedTables:
    """The sound rows of every CSV that could be read, and what was wrong with the others."""

    tables: list[FrameTable] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.tables))


def read_tables(config: CheckConfig) -> CheckedTables:
    """Read the CSVs as finetune does, or as extract does where `config.csvs` names them.

    Raises:
        SpatialfeatError: `--csv` in a form that extract would refuse.
    """
    checked = CheckedTables()
    for split, path in _csvs(config, checked.findings):
        problems: list[RowProblem] = []
        try:
            table = read_frames(
                path,
                config.img_dir,
                split=split,
                num_classes=config.num_classes,
                labels_required=not config.csvs,
                on_problem=problems.append,
            )
        except SpatialfeatError as error:
            message, _, remedy = str(error).partition("; ")
            remedy = remedy or "mend the file, or pass another one"
            checked.findings.append(Finding(code="unreadable-csv", message=message, remedy=remedy, unit="file"))
            continue
        checked.findings += [finding_of(problem) for problem in problems if problem.kind != "two-spellings"]
        if len(table):
            checked.tables.append(table)
    checked.findings += _two_spellings(checked.tables)
    checked.findings += _shared_frames(checked.tables)
    checked.findings += _shared_patients(checked.tables)
    return checked


def _csvs(config: CheckConfig, findings: list[Finding]) -> list[tuple[str, Path]]:
    if config.csvs:
        return named_csvs(config.csvs)
    csvs = [("train", config.train_csv), ("val", config.val_csv)]
    test_csv = config.test_csv or TEST_CSV
    if config.test_csv is not None or test_csv.exists():
        return [*csvs, ("test", test_csv)]
    findings.append(
        Finding(
            code="no-test-csv",
            message=f"no {TEST_CSV} here: finetune ends without test results",
            remedy="pass --test-csv if there is one",
            unit="file",
        )
    )
    return csvs


def _two_spellings(tables: Sequence[FrameTable]) -> list[Finding]:
    problems = list(two_spellings(tables))
    if not problems:
        return []
    first = finding_of(problems[0])
    places = first_places(problem.describe(int(problem.rows[0])) for problem in problems)
    return [replace(first, count=len(problems), unit="video", places=places)]


def _shared_frames(tables: Sequence[FrameTable]) -> list[Finding]:
    """Frames that are in two CSVs; extract refuses them, and scores on them are worthless."""
    findings = []
    for index, table in enumerate(tables):
        for other in tables[:index]:
            keys, other_keys = _frame_keys(table), _frame_keys(other)
            rows = np.flatnonzero(np.isin(keys, other_keys))
            if len(rows):
                row_of = dict(zip(other_keys.tolist(), range(len(other)), strict=True))
                places = first_places(
                    f"{table.where(row)}: id {table.ids[row]} is also in {other.where(row_of[str(keys[row])])}"
                    for row in rows.tolist()
                )
                findings.append(
                    Finding(
                        code="frame-in-two-splits",
                        message=places[0],
                        remedy=f"remove these rows from {table.source} or {other.source}",
                        count=len(rows),
                        places=places,
                    )
                )
    return findings


def _frame_keys(table: FrameTable) -> NDArray[Any]:
    """(N,) str, equal for rows of the same frame, however wide its number is written."""
    return np.char.add(np.char.add(table.videos, "_"), table.frame_numbers.astype(str))


def _shared_patients(tables: Sequence[FrameTable]) -> list[Finding]:
    shared = shared_patients(tables)
    if not shared:
        return []
    texts = [
        f"patient {patient}: "
        + ", ".join(f"{count_text(count, 'frame')} in {split}" for split, count in frames.items())
        for patient, frames in shared.items()
    ]
    return [
        Finding(
            code="patient-in-two-splits",
            message=f"{texts[0]}; scores on patients that were trained on are too good",
            remedy="give each patient to one split, with all segments",
            count=len(shared),
            unit="patient",
            places=first_places(texts),
        )
    ]


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


REMEDY = "if it tells who somebody is, give out made-up ids only: `--pseudonymize MAP.csv` of extract and export"

_DATE = re.compile(
    r"""(?<![0-9])(?:
        (?:19|20)[0-9]{2}(?P<a>[-_.]?)(?:0[1-9]|1[0-2])(?P=a)(?:0[1-9]|[12][0-9]|3[01])      # 20190531, 2019-05-31
      | (?:0[1-9]|[12][0-9]|3[01])(?P<b>[-_.]?)(?:0[1-9]|1[0-2])(?P=b)(?:19|20)[0-9]{2}      # 31052019, 31.05.2019
      | (?:0[1-9]|1[0-2])(?P<c>[-_.]?)(?:0[1-9]|[12][0-9]|3[01])(?P=c)(?:19|20)[0-9]{2}      # 05-31-2019
      | (?:0[1-9]|[12][0-9]|3[01])(?P<d>[-.])(?:0[1-9]|1[0-2])(?P=d)[0-9]{2}                 # 31.05.19
    )(?![0-9])""",
    re.VERBOSE,
)
_RECORD_NUMBER = re.compile(r"[0-9]{6,}")
# A word with at most digits around it; letters and digits mixed further are a hash or a code.
_WORD_FIELD = re.compile(r"[0-9]*([^\W\d_]{3,})[0-9]*")
_USUAL = """
anon anonymous camera case cases cataract cholec clip control data dataset demo endo endoscopy eye fold frame hernia
hospital image images laparo left movie operation part patient patients phantom pituitary procedure proc pseudo record
recording rec right robot run sample segment seg sequence seq session simulation site study subject subj surgery surg
synthetic test train training trial val valid validation vid video videos
"""
_USUAL_WORDS = frozenset(_USUAL.split())


def check_ids(tables: Sequence[FrameTable]) -> list[Finding]:
    """Warnings about videos whose names look as if they told something about a person."""
    patient_of: dict[str, str] = {}
    for table in tables:
        patient_of.update(zip(table.videos.tolist(), table.patients.tolist(), strict=True))
    videos = sorted(patient_of, key=natural_key)
    dates = [video for video in videos if _DATE.search(video)]
    # What is a date is not called a record number as well.
    numbers = [video for video in videos if _RECORD_NUMBER.search(_DATE.sub("", video))]
    return [
        *_finding("id-looks-like-date", dates, "holds what looks like a date"),
        *_finding("id-looks-like-number", numbers, "holds six or more digits in a row, as record numbers do"),
        *_finding(
            "id-looks-like-name", _named(patient_of, videos), "holds a word that few patients share, as names do"
        ),
    ]


def _named(patient_of: dict[str, str], videos: Sequence[str]) -> list[str]:
    """Videos with a word that is neither a usual one nor shared by most patients, as the name of a data set is."""
    words_of = {video: _words(video) for video in videos}
    owners: dict[str, set[str]] = {}
    for video, words in words_of.items():
        for word in words:
            owners.setdefault(word, set()).add(patient_of[video])
    num_patients = len(set(patient_of.values()))
    personal = {word for word, patients in owners.items() if num_patients == 1 or 2 * len(patients) <= num_patients}
    return [video for video in videos if words_of[video] & personal]


def _words(video: str) -> set[str]:
    found = set()
    for part in re.split(r"[\W_]+", video):
        match = _WORD_FIELD.fullmatch(part)
        if match and match[1].lower() not in _USUAL_WORDS:
            found.add(match[1].lower())
    return found


def _finding(code: str, videos: Sequence[str], what: str) -> list[Finding]:
    if not videos:
        return []
    return [
        Finding(
            code=code,
            message=f"video {videos[0]} {what}",
            remedy=REMEDY,
            count=len(videos),
            unit="video",
            places=first_places(f"video {video}" for video in videos),
        )
    ]
