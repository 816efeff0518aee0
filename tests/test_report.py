"""report.html as text: complete, inert, no reference to anything outside it; the pictures beside it.

How it looks: test_report_browser.py.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_data import CHOLEC_NAMES, compared, drawn_evaluations, drawn_video, evaluation_of, small_video
from PIL import Image
from tinydata import write_csv

from spatialfeat.data.frames import FrameTable, read_frames
from spatialfeat.reports.report import confident_mistakes, name_suffixes, write_report
from spatialfeat.reports.tables import REPORT
from spatialfeat.scores.predictions import EvaluatedVideo
from spatialfeat.scores.relaxed import CHOLEC80
from spatialfeat.scores.summary import Evaluation, ScoreOptions

pytestmark = pytest.mark.usefixtures("no_drawing")

VOID = {"meta", "link", "img", "br"}
EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Collects elements, attributes and the rows of tables; fails where elements are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> in the wrong place, line {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] += data

    def close(self) -> None:
        super().close()
        assert self._open == []

    def row(self, heading: str) -> list[str]:
        """Cells of the first row with this heading, without it."""
        return next([cell.strip() for cell in row[1:]] for row in self.rows if row and row[0].strip() == heading)


def written(out_dir: Path, evaluations: list[Evaluation], **changes: Any) -> str:
    options = {"fps": 25.0, "title": "Evaluation", "facts": {"predictions": "resnet.csv"}} | changes
    write_report(out_dir, evaluations, compared(evaluations), **options)
    return (out_dir / "report.html").read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def evaluations() -> list[Evaluation]:
    options = ScoreOptions(num_samples=100, relaxed=CHOLEC80, sampling_fps=1.0)
    return drawn_evaluations(3, 150, options=options)


@pytest.fixture(scope="module")
def page(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), evaluations)


def test_numbers_are_those_of_metrics_json(page: str, evaluations: list[Evaluation]) -> None:
    reader = read(page)
    for column, evaluation in enumerate(evaluations):
        metrics = evaluation.metrics
        low, high = metrics["intervals"]["macro_f1"]
        expected = f"{metrics['pooled']['macro_f1']:.4f} [{low:.4f}, {high:.4f}]"
        assert reader.row("Macro F1, pooled")[column] == expected
        assert reader.row("Relaxed Jaccard")[column] == f"{metrics['relaxed']['jaccard']:.4f}"
    assert "counted together" in reader.row("Macro F1, pooled")[-1]
    strategies = evaluations[0].metrics["video_wise"]
    assert strategies["A"] == strategies["B"]
    found = strategies["B"]["jaccard"]
    assert reader.row("Jaccard, strategies A and B") == [
        "{mean:.4f} ± {std_over_videos:.4f}".format(**found["video_macro"]),
        f"{found['cell_mean']:.4f}",
        "{mean:.4f} ± {std_over_phases:.4f}".format(**found["phase_macro"]),
    ]
    phase = evaluations[0].metrics["per_phase"][2]
    assert reader.row("2 ClippingCutting")[0] == str(phase["support"])
    video = evaluations[0].per_video[1]
    assert reader.row(video["video_id"])[2] == f"{video['accuracy']:.4f}"


def test_comparison_is_second_minus_first(page: str, evaluations: list[Evaluation]) -> None:
    values = [evaluation.metrics["segmental"]["edit"] for evaluation in evaluations]
    rows = [row for row in read(page).rows if row[0] == "Edit score"]
    assert rows[1][1:4] == [f"{values[0]:.4f}", f"{values[1]:.4f}", f"{values[1] - values[0]:+.4f}"]


def test_a_headline_number_has_one_card_for_all_sets(page: str, evaluations: list[Evaluation], tmp_path: Path) -> None:
    for shown, sets in ((page, evaluations), (written(tmp_path, evaluations[:1]), evaluations[:1])):
        cards = [" ".join(re.sub("<.*?>", " ", card).split()) for card in shown.split('<div class="card">')[1:]]
        assert len(cards) == 8
        for heading, section, key in (("Accuracy, pooled", "pooled", "accuracy"), ("Edit score", "segmental", "edit")):
            (card,) = [card for card in cards if card.startswith(heading)]
            for evaluation in sets:
                low, high = evaluation.metrics["intervals"][key]
                name = f" {evaluation.name}" if len(sets) > 1 else ""
                value = f"{evaluation.metrics[section][key]:.4f}"
                assert f"{value}{name} 95% interval [{low:.4f}, {high:.4f}]" in card


def test_without_resamples_no_card_blames_the_patients(tmp_path: Path) -> None:
    options = ScoreOptions(num_samples=0)
    text = read(written(tmp_path, drawn_evaluations(3, 40, names=("one",), options=options))).text
    assert text.count("no interval") == 5
    assert "fewer than two patients" not in text


def test_every_section_is_there_and_linked(page: str) -> None:
    reader = read(page)
    ids = {value for _, name, value in reader.attributes if name == "id"}
    links = [value for tag, name, value in reader.attributes if (tag, name) == ("a", "href")]
    assert links
    assert {link.removeprefix("#") for link in links} <= ids
    for words in ("How these numbers are defined", "arXiv 2305.13961", "Farha", "strategy A", "10 s (10 frames"):
        assert words in reader.text, words


def test_ids_are_unique(page: str) -> None:
    ids = [value for _, name, value in read(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_nothing_outside_is_referred_to(page: str) -> None:
    reader = read(page)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "://" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    policy = next(value for tag, name, value in reader.attributes if (tag, name) == ("meta", "content"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_pictures_refer_to_nothing_outside(page: str) -> None:
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)
    assert len(pictures) == 5  # Bars, two confusion matrices, two reliability curves.
    assert page.count("data:image/png;base64,") == 4  # Three videos and the overview.
    for picture in pictures:
        svg = base64.b64decode(picture).decode()
        assert "<script" not in svg
        assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)"', svg))


def test_every_text_of_the_user_is_inert(tmp_path: Path) -> None:
    names = [EVIL, '"><img src=x onerror=alert(1)>', "a & b", "'; c"]
    # The id of a video is the name of a file, so it has no slash.
    video_id = EVIL.replace("/", "")
    video = replace(drawn_video(0, 40, 4), video_id=video_id, patient_id=EVIL, frame_ids=np.array([EVIL] * 40))
    evaluations = [evaluation_of(name, [video], names) for name in (EVIL, '" onload="alert(2)')]
    page = written(tmp_path, evaluations, title=f"</title>{EVIL}", facts={EVIL: f"</dl>{EVIL}"})
    reader = read(page)
    assert "script" not in reader.tags
    assert "<script" not in page
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert len(reader.row(f"0 {EVIL}")) == 5
    assert f"</title>{EVIL}" in reader.text


def test_undefined_numbers_are_dashes(tmp_path: Path) -> None:
    page = written(tmp_path, [evaluation_of("one", [drawn_video(3, 1, 7)], CHOLEC_NAMES)])
    page = re.sub(r"base64,[^\"]*", "", page)
    reader = read(page)
    assert reader.row("0 Preparation") == ["no frames", *["\u2013"] * 4]
    assert "nan" not in page.lower().replace("nano", "")
    assert "None" not in reader.text
    assert "1 labelled frame of 1 video of 1 patient" in " ".join(reader.text.split())
    assert "not computed" not in reader.text
    assert "Relaxed" not in reader.text
    assert "Comparison" not in reader.text


def test_predictions_without_probabilities_have_no_calibration(tmp_path: Path) -> None:
    videos = [replace(drawn_video(number, 30, 7), probabilities=None) for number in range(2)]
    page = written(tmp_path, [evaluation_of("csv", videos, CHOLEC_NAMES)])
    text = read(page).text.lower()
    assert "per video" in text
    assert "calibration" not in text
    assert "not computed" not in text


def test_few_patients_carry_no_claim(page: str, tmp_path: Path) -> None:
    reader = read(page)
    assert "3 patients, fewer than 5, are too few for an interval to carry the claim" in " ".join(reader.text.split())
    assert "0 outside?" not in reader.text
    many = read(written(tmp_path, drawn_evaluations(5, 40)))
    assert "too few" not in many.text
    assert many.text.count("0 outside?") == 1
    assert {"yes", "no"} >= {row[-1] for row in many.rows if row[0] == "Edit score" and len(row) == 6} != set()


def test_a_phase_without_frames_is_said_at_the_number(tmp_path: Path) -> None:
    labels = list(range(6))
    page = written(tmp_path, [evaluation_of("perfect", [small_video("1_1", labels, labels)], CHOLEC_NAMES)])
    reader = read(page)
    assert reader.row("Macro F1, pooled")[0] == "0.8571"
    assert reader.row("Macro F1, pooled, occurring") == ["1.0000", "the mean over the 6 phases that occur"]
    text = " ".join(reader.text.split())
    assert "1 phase of 7 without a labelled frame (GallbladderRetraction) counts as 0" in text
    assert "1.0000 over the phases that occur" in text
    assert reader.row("F1, strategies A and B")[0] == "1.0000"
    assert "F1, strategy" not in text
    page = written(tmp_path, [evaluation_of("x", [small_video("1_1", [0, 0], [0, 1])], CHOLEC_NAMES)])
    assert [read(page).row(f"F1, strategy {name}")[1] for name in "AB"] == ["0.3333", "0.6667"]


def drawn_frames(folder: Path, video: EvaluatedVideo) -> FrameTable:
    """JPEG images of a video's frames, each of its own colour, with a patient's name in the file."""
    rows = list(zip(video.frame_ids.tolist(), video.labels.tolist(), strict=True))
    (folder / "images").mkdir(parents=True)
    for number, (frame_id, _) in enumerate(rows):
        image = Image.new("RGB", (600, 300), (20 * number, 100, 200))
        image.save(folder / "images" / f"{frame_id}.jpg", quality=95, comment=b"Jane Doe")
    return read_frames(write_csv(folder / "test.csv", rows), folder / "images", split="test")


def test_the_most_confident_mistakes_are_shown_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = small_video("1_1", [0, 0, 0, 1, 1, -100], [1, 1, 2, 1, 0, 0])
    confidence = [0.60, 0.90, 0.95, 0.99, 0.70, 0.97]
    others = (1 - np.array(confidence)) / 2
    probabilities = np.tile(others[:, None], 3)
    probabilities[np.arange(6), video.predictions] = confidence
    video = replace(video, probabilities=probabilities.astype(np.float32))
    frames = drawn_frames(tmp_path / "data", video)
    evaluations = [evaluation_of("x", [video], ["first", "second", "third"])]
    # Surest first, of each confusion one; neither right frames nor unlabelled ones.
    expected = [("1_1_2", 0, 2, 0.95), ("1_1_1", 0, 1, 0.90), ("1_1_4", 1, 0, 0.70)]
    found = confident_mistakes(evaluations[0])
    assert [mistake[:3] for mistake in found] == [row[:3] for row in expected]
    assert [mistake.confidence for mistake in found] == pytest.approx([row[3] for row in expected])

    for name in ("with", "without", "lost"):
        (tmp_path / name).mkdir()
    page = written(tmp_path / "with", evaluations, frames=frames)
    pictures = [base64.b64decode(text) for text in re.findall(r"data:image/jpeg;base64,([^\"]*)", page)]
    assert len(pictures) == 3
    for picture, number in zip(pictures, (2, 1, 4), strict=True):
        assert b"Jane" not in picture
        with Image.open(io.BytesIO(picture)) as image:
            assert image.size == (256, 128)
            assert np.asarray(image.convert("RGB"))[64, 64] == pytest.approx([20 * number, 100, 200], abs=4)
    text = " ".join(read(page).text.split())
    assert "0.9500 third" in text
    assert "truth: first" in text
    assert "--no-frames" in text
    without = written(tmp_path / "without", evaluations)
    assert "data:image/jpeg" not in without
    assert "confident mistakes" not in without

    (tmp_path / "data" / "images" / "1_1_1.jpg").unlink()
    page = written(tmp_path / "lost", evaluations, frames=frames)
    assert page.count("data:image/jpeg") == 2
    assert "cannot be read any more" in page
    assert "1_1_1.jpg: cannot be shown in the report" in caplog.text


@pytest.fixture(scope="module")
def drawn_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("drawn")
    written(out_dir, drawn_evaluations(2, 60))
    return out_dir


@pytest.mark.usefixtures("drawing")
def test_same_input_same_bytes(drawn_dir: Path, tmp_path: Path) -> None:
    written(tmp_path, drawn_evaluations(2, 60))
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")]
    assert len(files) > 15
    for path in files:
        assert (drawn_dir / path).read_bytes() == (tmp_path / path).read_bytes(), path
        assert path.suffix != ".svg" or b"<dc:date>" not in (tmp_path / path).read_bytes(), path


def test_every_video_has_a_ribbon_and_is_described(page: str, evaluations: list[Evaluation]) -> None:
    captions = re.findall(r"<figcaption><b>(.*?)</b>: (.*?)</figcaption>", page)
    assert [video_id for video_id, _ in captions] == [video.video_id for video in evaluations[0].videos]
    assert "segments (dashed lines): 1 from 0 s, 2 from " in captions[0][1]
    ids = evaluations[0].videos[1].frame_ids
    assert captions[1][1].startswith(f"157 frames; 2 min 56 s; from {ids[0]} to {ids[-1]}; 1 gap (blank)")


@pytest.mark.usefixtures("drawing")
def test_eighty_videos_stay_below_five_megabytes(tmp_path: Path) -> None:
    """Predictions that change all the time are the worst case. What a video takes is measured on two more."""
    rng = np.random.default_rng(0)
    videos = []
    for count in range(3):
        labels = np.sort(rng.integers(0, 7, size=2000))
        wrong = rng.random(2000) >= 0.7
        videos.append(small_video(f"{count}_1", labels, np.where(wrong, rng.integers(0, 7, size=2000), labels)))
    sizes = []
    for chosen in (videos[:1], videos):
        evaluation = evaluation_of("noisy", chosen, CHOLEC_NAMES, ScoreOptions(num_samples=20))
        page = written(tmp_path, [evaluation], fps=1.0)
        assert page.count('alt="Ribbons of video') == len(chosen)
        sizes.append(len(page.encode()))
    assert sizes[0] + 79 * (sizes[1] - sizes[0]) / 2 < 5_000_000


def test_every_picture_is_written_twice(drawn_dir: Path) -> None:
    stems = ["per_phase", "ribbons_overview", "ribbons/1000", "ribbons/1001_1"]
    stems += [f"{kind}_{name}" for kind in ("confusion_matrix", "reliability") for name in ("resnet", "tcn")]
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert {str(path.relative_to(drawn_dir)) for path in drawn_dir.rglob("*.*")} == expected | {"report.html"}
    for name in expected:
        if name.endswith(".png"):
            with Image.open(drawn_dir / name) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 10, name
        else:
            assert "<text" in (drawn_dir / name).read_text(encoding="utf-8"), name


@pytest.mark.usefixtures("drawing")
def test_one_frame_and_no_probabilities(tmp_path: Path) -> None:
    shown = written(tmp_path, [evaluation_of("one", [small_video("v", [1], [1])], CHOLEC_NAMES)])
    assert read(shown).text.count("no interval: fewer than two patients") == 5
    names = {path.name for path in tmp_path.iterdir()}
    assert "confusion_matrix.svg" in names
    assert not any(name.startswith("reliability") for name in names)


def test_file_names_of_evaluations_are_safe_and_different() -> None:
    options, video = ScoreOptions(num_samples=0), small_video("v", [0], [0])
    evaluations = [evaluation_of(name, [video], "ab", options) for name in ("a/b", "a b", "A-b", "é.1")]
    assert name_suffixes(evaluations) == ["_a-b", "_a-b-2", "_A-b-2-2", "_é.1"]


def test_numbers_as_text() -> None:
    assert [REPORT.number(value) for value in (None, 0.12346, -0.00001)] == ["\u2013", "0.1235", "0.0000"]
    assert [REPORT.number(value, "+") for value in (-0.00001, 0.25)] == ["+0.0000", "+0.2500"]
    assert REPORT.ends([-0.1, 0.2], "+") == "[-0.1000, +0.2000]"
    assert REPORT.ends(None) == "\u2013"
