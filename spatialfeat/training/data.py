"""The frames of one study: training, validation and perhaps test, and what should be known of them beforehand."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatialfeat.config import TEST_CSV, FinetuneConfig, StudyOptions
from spatialfeat.data.frames import FrameTable, labelled_frames, read_frames
from spatialfeat.data.ids import IdRule
from spatialfeat.data.patients import shared_patients, show_reading

SHOWN_PATIENTS = 5
RULE = "!" * 80

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyData:
    """The tables of one study: labelled frames to train and validate on, and all test frames, None without a test CSV.

    Unlabelled test frames are predicted as `evaluate` does, and count in no score.
    """

    train: FrameTable
    val: FrameTable
    test: FrameTable | None

    @property
    def tables(self) -> list[FrameTable]:
        return [table for table in (self.train, self.val, self.test) if table is not None]


def study_csvs(config: StudyOptions) -> dict[str, Path]:
    """{split: its CSV}; without a test where none is named and the specification's is not here."""
    test_csv = config.test_csv or (TEST_CSV if TEST_CSV.exists() else None)
    return {"train": config.train_csv, "val": config.val_csv} | ({"test": test_csv} if test_csv else {})


def read_split(config: StudyOptions, split: str, path: Path, **more: Any) -> FrameTable:
    """One CSV of a study. more: see `read_frames`."""
    return read_frames(
        path,
        config.img_dir,
        split=split,
        id_rule=IdRule.given(config.id_form, config.id_pattern),
        num_classes=config.num_classes,
        phase_names=config.phase_names,
        **more,
    )


def read_study(config: FinetuneConfig) -> StudyData:
    """Read the CSVs, and warn of what makes scores worthless: patients in two splits, phases never trained on."""
    csvs = study_csvs(config)
    if "test" not in csvs:
        logger.info("no %s here: training without a test at the end", TEST_CSV)
    train, val = (labelled_frames(read_split(config, split, csvs[split])) for split in ("train", "val"))
    data = StudyData(train, val, read_split(config, "test", csvs["test"]) if "test" in csvs else None)
    if data.test is not None:
        labelled_frames(data.test, "predicted, but counted in no score")
    show_reading(data.tables)
    _warn_of_absent_phases(data.train, config)
    warn_of_shared_patients(data)
    return data


def warn_of_shared_patients(data: StudyData) -> None:
    """One warning that cannot be overlooked, if a patient is in two splits."""
    shared = shared_patients(data.tables)
    if not shared:
        return
    shown = [f"patient {patient} is in {' and '.join(splits)}" for patient, splits in shared.items()]
    more = [f"... and {len(shown) - SHOWN_PATIENTS} more; `spatialfeat check` lists them"]
    lines = shown[:SHOWN_PATIENTS] + (more if len(shown) > SHOWN_PATIENTS else [])
    logger.warning(
        "\n%s\n%s IN MORE THAN ONE SPLIT: the scores of this study will be too good to publish\n%s\n"
        "give each patient to one CSV, with all segments\n%s",
        RULE,
        "1 PATIENT" if len(shared) == 1 else f"{len(shared)} PATIENTS",
        "\n".join(f"  {line}" for line in lines),
        RULE,
    )


def _warn_of_absent_phases(train: FrameTable, config: FinetuneConfig) -> None:
    absent = sorted(set(range(config.num_classes)) - set(np.unique(train.labels).tolist()))
    if absent:
        names = ", ".join(
            f"{phase} ({config.phase_names[phase]})" if config.phase_names else str(phase) for phase in absent
        )
        logger.warning("%s has no frame of phase %s: the network cannot learn to predict it", train.source, names)
