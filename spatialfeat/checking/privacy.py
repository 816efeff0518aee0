"""Ids that may tell who a patient is: dates, record numbers, names. Frame numbers are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spatialfeat.checking.findings import Finding, first_places
from spatialfeat.data.frames import FrameTable
from spatialfeat.names import natural_key

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
