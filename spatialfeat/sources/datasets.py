"""Public data sets: where their files are, what their annotations mean, which splits were published.

A new data set is an entry here. Imports nothing heavy (numpy, pandas), as `spatialfeat prepare --help` lists them.

Sources: the data sets' own pages and descriptions; docs/data.md names what is known of each, and what is not.
"""

from __future__ import annotations

import json
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from textwrap import indent, wrap

from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import read_text
from spatialfeat.names import natural_key, same_name_key
from spatialfeat.phases import CHOLEC80_PHASES
from spatialfeat.sources.annotations import FRAME, MILLISECOND, SECOND, Span, Table, Track, read_table, rows_track

Files = Mapping[str, Path]
"""{path below the data set's folder, with slashes: path}."""


def files_in(folder: Path) -> Files:
    """The files below a folder, hidden ones aside, in natural order."""
    inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: inside[name] for name in sorted(inside, key=natural_key) if not re.search(r"(^|/)\.", name)}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A public data set.

    Attributes:
        layout: what is expected where, for people.
        videos: pattern of the end of a video's path; its group is the video's id.
        annotations: the same for annotation files; its group is the video's id where each video has its own.
        read: from {group: file} to {video: its track}.
        phases: names in the order of the labels; () where the files only have numbers.
        first_phase: the number of the first phase in the files; of several readings the numbers decide. (): the files
            have names.
        spelling: makes one of several spellings of a name.
        unlabelled: what the files write where there is no phase.
        splits: {name: which split a video is in}, the first one is the default.
        patient: of a video.
        may_end_early: whether annotations that are shorter than the video are usual.
        note: what its user should know.
        assumed: what is taken to be so, though it is not published, or only one source says so.
    """

    title: str
    layout: str
    videos: str
    annotations: str
    read: Callable[[Files], dict[str, Track]]
    phases: tuple[str, ...] = ()
    first_phase: tuple[int, ...] = ()
    spelling: Callable[[str], str] = str
    unlabelled: tuple[str, ...] = ()
    splits: Mapping[str, Callable[[Files, str], str | None]] = field(default_factory=dict)
    patient: Callable[[str], str] = str
    may_end_early: bool = False
    note: str = ""
    assumed: str = ""

    @property
    def remarks(self) -> list[str]:
        """What its user should know, and what is only assumed."""
        assumed = f"assumed, not published: {self.assumed}; look at the pictures in prepare/" if self.assumed else ""
        return [text for text in (self.note, assumed) if text]


def matching(files: Files, pattern: str) -> dict[str, Path]:
    """{group of the pattern: file} of the files whose path ends so. Raises SpatialfeatError for two of one video."""
    found: dict[str, Path] = {}
    for name, path in files.items():
        match = re.fullmatch(f"(?:.*/)?{pattern}", name, re.IGNORECASE)
        if match and found.setdefault(match[1], path) != path:
            raise SpatialfeatError(f"{found[match[1]]} and {path} both belong to {match[1]}; keep one of them")
    return found


def _names(text: str) -> tuple[str, ...]:
    """Of phases, in the order of the labels."""
    return tuple(text.split(", "))


def _each(read: Callable[[Path], Track]) -> Callable[[Files], dict[str, Track]]:
    """Of data sets with a file per video."""
    return lambda files: {video: read(path) for video, path in files.items()}


def _dense(
    unit: str, separator: str, header: Sequence[str] | bool, columns: tuple[int, int] = (0, 1), **more: int
) -> Callable[[Files], dict[str, Track]]:
    """A row per frame or second. columns: those of the number and the phase. more: see `rows_track`."""

    def read(path: Path) -> Track:
        table = read_table(path, separator, header)
        number, phase = columns
        return rows_track(
            path, unit, ((line, table.position(line, row[number]), row[phase]) for line, row in table.rows), **more
        )

    return _each(read)


def _by_number(**ranges: Iterable[int]) -> Callable[[Files, str], str | None]:
    """A split by the last number of the video's id."""
    splits = {number: split for split, numbers in ranges.items() for number in numbers}
    return lambda _, video: splits.get(int(re.findall("[0-9]+", video)[-1]))


def _by_folder(files: Files, video: str) -> str | None:
    """A split by a folder's name that begins with it."""
    for name in files:
        folders = name.lower().split("/")[:-1]
        if video.lower() in folders:
            return next((split for split in ("train", "test") if any(part.startswith(split) for part in folders)), None)
    return None


def _cells(table: Table, wanted: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(line, these columns) of every row."""
    header = [cell.casefold() for cell in table.header or []]
    missing = [name for name in wanted if name.casefold() not in header]
    if missing:
        raise SpatialfeatError(f"{table.path}: no column {', '.join(missing)}; get the file again")
    places = [header.index(name.casefold()) for name in wanted]
    return [(line, [row[place] for place in places]) for line, row in table.rows]


def _read_cataract101(files: Files) -> dict[str, Track]:
    """annotations.csv has the starts of phases; videos.csv how many frames a video has, where the last phase ends."""
    by_name = {path.name.lower(): path for path in files.values()}
    if set(by_name) != {"annotations.csv", "videos.csv"}:
        raise SpatialfeatError("annotations.csv and videos.csv of Cataract-101 are both needed; put them into DIR")
    lengths = read_table(by_name["videos.csv"], ";", True)
    num_frames = {row[0]: lengths.position(line, row[1]) for line, row in _cells(lengths, ("VideoID", "Frames"))}
    starts = read_table(by_name["annotations.csv"], ";", ("VideoID", "FrameNo", "Phase"))
    rows: dict[str, list[tuple[Fraction, str, int]]] = {}
    for line, (case, frame, phase) in starts.rows:
        rows.setdefault(case, []).append((starts.position(line, frame), phase, line))
    tracks = {}
    for case, own in rows.items():
        ends = [start for start, _, _ in own[1:]]
        # A last row that repeats the phase before it marks where that phase ends.
        is_end_mark = len(own) > 1 and own[-1][1] == own[-2][1]
        last, _, last_line = own[-1]
        if case not in num_frames:
            raise SpatialfeatError(f"{lengths.path}: has no line for video {case}; get the file again")
        if last > num_frames[case] or (last == num_frames[case] and not is_end_mark):
            raise SpatialfeatError(
                f"{starts.where(last_line)}: frame {int(last)} of video {case}, which has "
                f"{int(num_frames[case])} frames by {lengths.path.name}, counted from 0 here; get both files again"
            )
        ends.append(min(last + 1, num_frames[case]) if is_end_mark else num_frames[case])
        for (start, _, line), end in zip(own, ends, strict=True):
            if end < start:
                raise SpatialfeatError(f"{starts.where(line)}: the next phase of video {case} begins before this one")
        spans = [Span(start, end, phase, line) for (start, phase, line), end in zip(own, ends, strict=True)]
        tracks[f"case_{case}"] = Track(path=starts.path, unit=FRAME, spans=tuple(spans))
    return tracks


def _read_cataract1k(path: Path) -> Track:
    # The frame rates behind the columns frame and endFrame are wrong for some cases.
    table = read_table(path, ",", True)
    spans = [table.span(line, *cells) for line, cells in _cells(table, ("sec", "endSec", "comment"))]
    return Track(path=path, unit=SECOND, spans=_by_start(spans))


def _by_start(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Where two overlap, the one that starts later counts."""
    return tuple(sorted(spans, key=lambda span: span.start))


def _read_ophnet(files: Files) -> dict[str, Track]:
    (path,) = files.values()
    table = read_table(path, ",", True)
    spans: dict[str, list[Span]] = {}
    for line, (video, *cells) in _cells(table, ("video_id", "start", "end", "phase_id")):
        spans.setdefault(video, []).append(table.span(line, *cells))
    return {video: Track(path=path, unit=SECOND, spans=_by_start(own)) for video, own in spans.items()}


@lru_cache(maxsize=1)
def _ophnet_splits(path: Path) -> dict[str, str]:
    names = {"validation": "val", "valid": "val"}
    rows = _cells(read_table(path, ",", True), ("video_id", "split"))
    return {video: names.get(split, split) for _, (video, split) in rows}


def _ophnet_split(files: Files, video: str) -> str | None:
    (path,) = matching(files, DATA_SETS["ophnet"].annotations).values()
    return _ophnet_splits(path).get(video) or None


def _read_multibypass140(path: Path) -> Track:
    """Both ends of an interval belong to it, and of two the later start counts. 12 and 13 lie over the phases."""
    try:
        spans = [
            Span(Fraction(entry["start"]), Fraction(entry["end"]), str(entry["label_id"]), 1)
            for entry in json.loads(read_text(path))["phases"]
            if entry["label_id"] not in (12, 13)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise SpatialfeatError(f"{path}: is no JSON with a list 'phases'; get the file again") from error
    return Track(path=path, unit=MILLISECOND, spans=_by_start(spans), closed=True)


def _multibypass140_fold(fold: int) -> Callable[[Files, str], str | None]:
    """As the pickled lists of the data set's repository say, whose texts are read without unpickling them."""

    def split_of(files: Files, video: str) -> str | None:
        for split in ("train", "val", "test"):
            lists = [
                path for name, path in files.items() if re.fullmatch(rf".*/{split}/1fps(_100)?_{fold}\.pickle", name)
            ]
            if not lists:
                raise SpatialfeatError(
                    f"--split fold{fold}: no file {split}/1fps_{fold}.pickle; put the folder labels/ of the "
                    "MultiBypass140 repository into DIR, or leave --split out"
                )
            if any(video in _pickled_names(path) for path in lists):
                return split
        return None

    return split_of


@lru_cache(maxsize=8)
def _pickled_names(path: Path) -> frozenset[str]:
    texts = (argument for _, argument, _ in pickletools.genops(path.read_bytes()) if isinstance(argument, str))
    return frozenset(match[0] for text in texts if (match := re.search(r"\b[BS]BP[0-9]+", text)))


def _read_ydgpzm(files: Files) -> dict[str, Track]:
    """A patient's JSON: per video its `tricks`, in seconds. Of two that overlap, the first in the file counts."""
    tracks = {}
    for path in files.values():
        try:
            content = json.loads(read_text(path))
            for task in content if isinstance(content, list) else [content]:
                texts = [text for text in task.values() if isinstance(text, str)]
                names = [match[1] for text in texts if (match := re.search(r"([0-9]{4}_[0-9]+)\.mp4$", text))]
                (video,) = set(names)
                spans = [
                    # From the whole second of the start to that of the end, both included; the first is skipped.
                    Span(
                        max(Fraction(int(trick["start"])), Fraction(1, 1000)),
                        Fraction(int(trick["end"])),
                        trick["labels"][0],
                        1,
                    )
                    for trick in task.get("tricks", [])
                ]
                tracks[video] = Track(path=path, unit=SECOND, spans=tuple(reversed(spans)), closed=True)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise SpatialfeatError(
                f"{path}: is not of the form [{{video: .../1050_1.mp4, tricks: [{{start, end, labels}}]}}]; "
                "get the file again"
            ) from error
    return tracks


def _read_jigsaws(path: Path) -> Track:
    """`1 80 G1`: frames counted from 1, the end belongs to the gesture."""
    table = read_table(path, " ", False)
    spans = [table.span(line, *cells) for line, cells in table.rows]
    return Track(path=path, unit=FRAME, spans=tuple(replace(span, start=span.start - 1) for span in spans))


_VIDEO = r"\.(?:mp4|avi|mkv|mov)"

DATA_SETS = {
    "cholec80": DataSet(
        title="Cholec80, 80 cholecystectomies",
        layout="videos/video01.mp4 ...\nphase_annotations/video01-phase.txt ...",
        videos=rf"(video\d+){_VIDEO}",
        annotations=r"(video\d+)-phase\.txt",
        read=_dense(FRAME, "\t", ("Frame", "Phase")),
        phases=CHOLEC80_PHASES,
        splits={
            "40/8/32": _by_number(train=range(1, 41), val=range(41, 49), test=range(49, 81)),
            "32/8/40": _by_number(train=range(1, 33), val=range(33, 41), test=range(41, 81)),
            "40/40": _by_number(train=range(1, 41), test=range(41, 81)),
        },
        note="CholecT50 and Endoscapes show videos of Cholec80: a model trained on those has seen test videos of this",
    ),
    "m2cai16": DataSet(
        title="M2CAI16-workflow, 41 cholecystectomies",
        layout="workflow_video_01.mp4 ... test_workflow_video_01.mp4 ...\nworkflow_video_01.txt ...",
        videos=rf"((?:test_)?workflow_video_\d+){_VIDEO}",
        annotations=r"((?:test_)?workflow_video_\d+)\.txt",
        read=_dense(FRAME, "\t", ("Frame", "Phase")),
        phases=("TrocarPlacement", *CHOLEC80_PHASES),
        splits={"27/14": lambda _, video: "test" if video.lower().startswith("test") else "train"},
        may_end_early=True,
        assumed="the annotations of test videos are named like these: test_workflow_video_01.txt",
    ),
    "heichole": DataSet(
        title="HeiChole, 24 public cholecystectomies",
        layout="Hei-Chole1.mp4 ...\nHei-Chole1_Annotation_Phase.csv ...",
        videos=rf"(hei-chole\d+){_VIDEO}",
        annotations=r"(hei-chole\d+)_annotation_phase\.csv",
        read=_dense(FRAME, ",", False),
        phases=CHOLEC80_PHASES,
        first_phase=(0,),
        note="white frames are censored ones, and keep their labels; its test labels are not public",
    ),
    "autolaparo": DataSet(
        title="AutoLaparo, 21 hysterectomies",
        layout="videos/01.mp4 ...\nlabels/label_01.txt ...",
        videos=rf"(\d{{2}}){_VIDEO}",
        annotations=r"label_(\d{2})\.txt",
        read=_dense(SECOND, "\t", True, first=1),
        phases=_names(
            "Preparation, Dividing Ligament and Peritoneum, Dividing Uterine Vessels and Ligament, "
            "Transecting the Vagina, Specimen Removal, Suturing, Washing"
        ),
        first_phase=(1, 0),
        splits={"10/4/7": _by_number(train=range(1, 11), val=range(11, 15), test=range(15, 22))},
    ),
    "pitvis": DataSet(
        title="PitVis-2023, 25 pituitary operations",
        layout="video_01.mp4 ...\nannotations_01.csv ...",
        videos=rf"(video_\d+){_VIDEO}",
        annotations=r"(annotations_\d+)\.csv",
        read=lambda files: _dense(
            SECOND,
            ",",
            ("int_video", "int_time", "int_step", "int_instrument1", "int_instrument2"),
            columns=(1, 2),
        )({name.replace("annotations", "video"): path for name, path in files.items()}),
        phases=_names(
            "nasal_corridor_creation, anterior_sphenoidotomy, septum_displacement, sphenoid_sinus_clearance, "
            "sellotomy, durotomy, tumour_excision, haemostasis, synthetic_graft_placement, fat_graft_placement, "
            "gasket_seal_construct, dural_sealant, nasal_packing, debris_clearance"
        ),
        first_phase=(1,),
        unlabelled=("-1",),
        splits={
            "20/5": lambda _, video: "val" if int(video.rpartition("_")[2]) in (1, 12, 21, 24, 25) else "train",
        },
    ),
    "cataracts": DataSet(
        title="CATARACTS (steps of 2020), 50 cataract operations",
        layout="train01.mp4 ... test01.mp4 ...\nground_truth/CATARACTS_2020/{train,dev,test}_gt/train01.csv ...",
        videos=rf"((?:train|test)\d+){_VIDEO}",
        annotations=r"(?:train|dev|test)_gt/((?:train|test)\d+)\.csv",
        read=_dense(FRAME, ",", ("Frame", "Steps"), first=1),
        phases=_names(
            "Idle, Toric Marking, Implant Ejection, Incision, Viscodilatation, Capsulorhexis, Hydrodissection, "
            "Nucleus Breaking, Phacoemulsification, Vitrectomy, Irrigation and Aspiration, Preparing Implant, "
            "Manual Aspiration, Implantation, Positioning, OVD Aspiration, Suturing, Sealing Control, "
            "Wound Hydratation"
        ),
        first_phase=(0,),
        splits={
            "25/5/20": lambda _, video: (
                "train"
                if video.lower().startswith("train")
                else ("val" if int(video[4:]) in (1, 7, 14, 16, 19) else "test")
            ),
        },
    ),
    "cataract101": DataSet(
        title="Cataract-101, 101 cataract operations",
        layout="videos/case_269.mp4 ...\nannotations.csv\nvideos.csv",
        videos=rf"(case_\d+){_VIDEO}",
        annotations=r"((?:annotations|videos)\.csv)",
        read=_read_cataract101,
        phases=_names(
            "Incision, Viscous Agent Injection, Rhexis, Hydrodissection, Phacoemulsification, "
            "Irrigation and Aspiration, Capsule Polishing, Lens Implant Setting-Up, Viscous Agent Removal, "
            "Tonifying and Antibiotics"
        ),
        first_phase=(1,),
        assumed="its frames are counted from 0, and the part before the first phase has none",
    ),
    "cataract1k": DataSet(
        title="Cataract-1K, 56 cataract operations with phases",
        layout="videos/case_5013.mp4 ...\nannotations/case_5013/case_5013_annotations_phases.csv ...",
        videos=rf"(case_\d+){_VIDEO}",
        annotations=r"(case_\d+)_annotations_phases\.csv",
        read=_each(_read_cataract1k),
        phases=_names(
            "Incision, Viscoelastic, Capsulorhexis, Hydrodissection, Phacoemulsification, Irrigation/Aspiration, "
            "Capsule Polishing, Lens Implantation, Lens Positioning, Viscoelastic Suction, "
            "Anterior Chamber Flushing, Tonifying/Antibiotics"
        ),
        spelling=lambda name: re.sub("[^a-z]", "", name.lower()).replace("pulishing", "polishing"),
    ),
    "ophnet": DataSet(
        title="OphNet2024, eye operations",
        layout="videos/{video_id}.mp4 ...\nOphNet2024_loca_all.csv",
        videos=rf"([^/]+){_VIDEO}",
        annotations=r"(OphNet2024_loca_all\.csv)",
        read=_read_ophnet,
        first_phase=(0,),
        splits={"as the file says": _ophnet_split},
        assumed="videos are named by video_id, phases count from 0, and of two that overlap the later start counts",
    ),
    "multibypass140": DataSet(
        title="MultiBypass140, 140 gastric bypasses of two centres",
        layout="BBP01.mp4 ... SBP01.mp4 ...\nlabels_by70/BBP01.mp4.json ...",
        videos=rf"([BS]BP\d+){_VIDEO}",
        annotations=r"([BS]BP\d+)\.mp4\.json",
        read=_each(_read_multibypass140),
        phases=_names(
            "preparation, gastric_pouch_creation, omentum_division, gastrojejunal_anastomosis, anastomosis_test, "
            "jejunal_separation, petersen_space_closure, jejunojejunal_anastomosis, mesenteric_defect_closure, "
            "cleaning_coagulation, disassembling, other_intervention"
        ),
        first_phase=(0,),
        splits={"all": lambda *_: None} | {f"fold{fold}": _multibypass140_fold(fold) for fold in range(5)},
    ),
    "ydgpzm": DataSet(
        title="YDGPZM, pituitary operations of 44 patients",
        layout="1050/1050_1.mp4 ...\n1050/*.json, one per patient",
        videos=rf"(\d{{4}}_\d+){_VIDEO}",
        annotations=r"(\d{4}/[^/]+)\.json",
        read=_read_ydgpzm,
        phases=("No step", *(f"Fase {number}" for number in range(1, 9))),
        patient=lambda video: video.partition("_")[0],
        note="the 7 phases of the spatial study are a mapping of that project: pass it with --phase-map",
        assumed="the JSON names each video by a text that ends in 1050_1.mp4",
    ),
    "jigsaws": DataSet(
        title="JIGSAWS, gestures of a surgical robot",
        layout="Suturing/video/Suturing_B001_capture1.avi ...\nSuturing/transcriptions/Suturing_B001.txt ...",
        videos=r"(\w+_[A-Z]\d+)_capture1\.avi",
        annotations=r"transcriptions/(\w+_[A-Z]\d+)\.txt",
        read=_each(_read_jigsaws),
        phases=tuple(f"G{number}" for number in range(1, 16)),
        patient=lambda video: video.rpartition("_")[2].rstrip("0123456789"),
        note="its patients are surgeons, as in its leave-one-user-out splits",
    ),
    "sarrarp50": DataSet(
        title="SAR-RARP50, gestures in prostatectomies",
        layout="{train,test}*/video_1/video_left.avi ...\n{train,test}*/video_1/action_discrete.txt ...",
        videos=r"(video_\w+)/video_left\.avi",
        annotations=r"(video_\w+)/action_discrete\.txt",
        read=_dense(FRAME, ",", False, step=6),
        phases=_names(
            "Other, Picking-up the needle, Positioning the needle tip, Pushing the needle through the tissue, "
            "Pulling the needle out of the tissue, Tying a knot, Cutting the suture, Returning or dropping the needle"
        ),
        first_phase=(0,),
        splits={"by folder": _by_folder},
        assumed="folders of its parts begin with train and test, and video_17_1 is a part of operation video_17",
        patient=lambda video: "_".join(video.split("_")[:2]),
    ),
}


def tracks_of(data_set: DataSet, files: Files) -> dict[tuple[object, ...], Track]:
    """{same_name_key(video): its track}, of all annotation files that are there."""
    found = matching(files, data_set.annotations)
    if not found:
        raise SpatialfeatError(f"no annotation of {data_set.title} found; expected:\n{indent(data_set.layout, '  ')}")
    return {same_name_key(video): track for video, track in data_set.read(found).items()}


def prepare_help() -> str:
    """The text of `spatialfeat prepare --help`. The mark \\b keeps Typer from wrapping the lines below it."""
    entries = []
    for name, data_set in DATA_SETS.items():
        splits = [split for split in data_set.splits if split != "all"]
        known = f"\n--split {', '.join(splits)}" if len(splits) > 1 else ""
        remarks = "".join(f"\n{line}" for text in data_set.remarks for line in wrap(text, 74))
        entries.append(f"\b\n{name}: {data_set.title}\n{indent(data_set.layout + known + remarks, '  ')}")
    return (
        "From videos or frames, and their annotations, to a folder for all other commands.\n\nSOURCE is the name of a "
        "data set (below), videos or frames. DIR holds its files; folders may lie otherwise, the ends of the paths "
        "count. OUT gets images/, {train,val,test}_ResNet_DB.csv (or all_ResNet_DB.csv), phase_names.txt, prepare.json "
        "and prepare/ with a picture of every video. Stopped, it goes on with the same command.\n\n"
        "Sample k of a video is the frame on display k / fps seconds after its first one, and its label is the "
        "annotation at that instant.\n\n" + "\n\n".join(entries)
    )
