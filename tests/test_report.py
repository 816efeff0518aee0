"""report.html as text: complete, inert, no reference to anything outside it. How it looks: test_report_browser.py."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_data import CHOLEC_NAMES, drawn_evaluations, drawn_video, evaluation_of, scored_videos

from spatialfeat.errors import SpatialfeatError
from spatialfeat.reports.plots import phase_style
from spatialfeat.reports.report import write_report
from spatialfeat.reports.ribbons import ROW, WIDTH, find_runs, ribbons, timeline, usual_step
from spatialfeat.reports.tables import interval_text, number, signed, spread
from spatialfeat.scores.predictions import EvaluatedVideo, Evaluation
from spatialfeat.scores.relaxed import CHOLEC80
from spatialfeat.scores.summary import SummaryOptions, compare

VOID = {"meta", "link", "img", "br", "rect", "path"}
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
        if tag not in VOID or (tag == "path" and not self.get_starttag_text().endswith("/>")):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

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
        return next(row[1:] for row in self.rows if row and row[0] == heading)


def comparisons_of(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """As the command makes them: the first against every other."""
    first = evaluations[0]
    num_phases = first.metrics["num_phases"]
    return [
        {"first": first.name, "second": other.name}
        | compare(scored_videos(first.videos), scored_videos(other.videos), num_phases, num_samples=100)
        for other in evaluations[1:]
    ]


def written(path: Path, evaluations: list[Evaluation], **changes: Any) -> str:
    facts = {"predictions": "resnet.csv"}
    options = {"fps": 25.0, "title": "Evaluation", "facts": facts} | changes
    write_report(path / "report.html", evaluations, comparisons_of(evaluations), **options)
    return (path / "report.html").read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def evaluations() -> list[Evaluation]:
    options = SummaryOptions(bootstrap_samples=100, relaxed=CHOLEC80, sampling_fps=1.0)
    return drawn_evaluations(3, 150, options=options)


@pytest.fixture(scope="module")
def page(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), evaluations)


def test_numbers_are_those_of_metrics_json(page: str, evaluations: list[Evaluation]) -> None:
    reader = read(page)
    for column, evaluation in enumerate(evaluations):
        metrics = evaluation.metrics
        low, high = metrics["intervals"]["macro_f1"]
        expected = f"{metrics['pooled']['macro_f1']:.3f} [{low:.3f}, {high:.3f}]"
        assert reader.row("Macro F1, pooled")[column] == expected
        assert reader.row("Relaxed Jaccard")[column] == f"{metrics['relaxed']['jaccard']:.3f}"
    assert "counted together" in reader.row("Macro F1, pooled")[-1]
    found = evaluations[0].metrics["video_wise"]["B"]["jaccard"]
    assert reader.row("Jaccard, strategy B") == [
        spread(found["video_macro"]),
        number(found["cell_mean"]),
        spread(found["phase_macro"]),
    ]
    phase = evaluations[0].metrics["per_phase"][2]
    assert reader.row("2 ClippingCutting")[0] == str(phase["support"])
    video = evaluations[0].per_video[1]
    assert reader.row(video["video_id"])[2] == f"{video['accuracy']:.3f}"


def test_comparison_is_second_minus_first(page: str, evaluations: list[Evaluation]) -> None:
    values = [evaluation.metrics["segmental"]["edit"] for evaluation in evaluations]
    rows = [row for row in read(page).rows if row[0] == "Edit score"]
    assert rows[1][1:4] == [f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[1] - values[0]:+.3f}"]


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
    assert len(pictures) == 5  # Bars, two confusion matrices, two reliability curves; the overview is a PNG.
    for picture in pictures:
        svg = base64.b64decode(picture).decode()
        assert "<script" not in svg
        assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)"', svg))


def test_every_text_of_the_user_is_inert(tmp_path: Path) -> None:
    names = [EVIL, '"><img src=x onerror=alert(1)>', "a & b", "'; c"]
    # Not a file name: reports must hold whatever the caller passes.
    video = replace(drawn_video(0, 40, 4), video_id=EVIL, patient_id=EVIL, frame_ids=np.array([EVIL] * 40))
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
    reader = read(page)
    assert reader.row("0 Preparation") == ["no frames", *["\u2013"] * 4]
    assert "nan" not in page.lower().replace("nano", "")
    assert "None" not in reader.text
    assert "1 labelled frame of 1 video of 1 patient" in reader.text
    assert "not computed, because no graph of allowed transitions was given" in reader.text
    assert "Comparison" not in reader.text


def test_predictions_without_probabilities_say_so(tmp_path: Path) -> None:
    videos = [replace(drawn_video(number, 30, 7), probabilities=None) for number in range(2)]
    page = written(tmp_path, [evaluation_of("csv", videos, CHOLEC_NAMES)])
    assert "csv: not computed, because these predictions have no probabilities" in read(page).text


def test_same_input_same_bytes(tmp_path: Path) -> None:
    pages = [written(tmp_path, drawn_evaluations(2, 60)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_wrong_fps_leaves_no_file(tmp_path: Path, evaluations: list[Evaluation]) -> None:
    with pytest.raises(SpatialfeatError, match="fps is -1"):
        written(tmp_path, evaluations, fps=-1.0)
    assert list(tmp_path.iterdir()) == []


def strokes_of(drawing: str, row: int) -> dict[str, list[tuple[int, int]]]:
    """{colour: [(start, length)]} of a row of the first ribbon figure."""
    first = drawing.split("</figure>")[0]
    found = {}
    for colour, path in re.findall(rf'<path stroke="([^"]*)" stroke-width="{ROW}" d="([^"]*)"', first):
        strokes = re.findall(r"M(\d+) ([\d.]+)h(\d+)", path)
        if float(strokes[0][1]) == row * 23 + ROW / 2:
            found[colour] = [(int(start), int(length)) for start, _, length in strokes]
    return found


def test_ribbons_draw_the_runs() -> None:
    evaluation = drawn_evaluations(2, 200, names=("x",))[0]
    video: EvaluatedVideo = evaluation.videos[1]  # With a gap and unlabelled frames.
    one = replace(evaluation, videos=(video,))
    drawing = ribbons([one], fps=25.0)
    line = timeline(video, fps=25.0, step=usual_step([video]))
    for row, values in enumerate((video.labels, video.predictions)):
        runs = find_runs(values, line)
        expected: dict[str, list[tuple[int, int]]] = {}
        for value, start, end in zip(runs.values.tolist(), runs.starts, runs.ends, strict=True):
            first, last = round(start / line.duration_s * WIDTH), round(end / line.duration_s * WIDTH)
            colour = "url(#no-label)" if value < 0 else phase_style(value).colour
            expected.setdefault(colour, []).append((first, last - first))
        assert strokes_of(drawing, row) == expected
    assert "1 gap (blank)" in drawing


def test_short_runs_stay_visible() -> None:
    video = replace(drawn_video(0, 20000, 7), labels=np.zeros(20000, dtype=np.int64))
    video.labels[777] = 3
    evaluation = evaluation_of("x", [video], CHOLEC_NAMES, SummaryOptions(bootstrap_samples=0))
    assert strokes_of(ribbons([evaluation], fps=1.0), 0)[phase_style(3).colour] == [(78, 1)]


def test_eighty_videos_stay_below_five_megabytes(tmp_path: Path) -> None:
    """Predictions that change all the time are the worst case."""
    rng = np.random.default_rng(0)
    videos = []
    for count in range(80):
        labels = np.sort(rng.integers(0, 7, size=2000))
        video = EvaluatedVideo(
            video_id=f"{count}_1",
            patient_id=str(count),
            frame_ids=np.array([f"{count}_1_{frame:06d}" for frame in range(2000)]),
            segments=np.ones(2000, dtype=np.int64),
            frame_numbers=np.arange(2000),
            labels=labels,
            predictions=np.where(rng.random(2000) < 0.7, labels, rng.integers(0, 7, size=2000)),
            probabilities=None,
        )
        videos.append(video)
    options = SummaryOptions(bootstrap_samples=20)
    page = written(tmp_path, [evaluation_of("noisy", videos, CHOLEC_NAMES, options)], fps=1.0)
    assert len(page.encode()) < 5_000_000
    assert page.count('<figure class="ribbon">') == 80


def test_numbers_as_text() -> None:
    assert [number(None), number(0.12345), signed(-0.0001), signed(0.25)] == ["\u2013", "0.123", "0.000", "+0.250"]
    assert interval_text([-0.1, 0.2], signed) == "[-0.100, +0.200]"
    assert spread({"mean": 0.5, "std_over_videos": None}) == "0.500"
