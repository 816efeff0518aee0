"""report.html in a real Chromium: it shows, scrolls only where it may, prints, and asks nobody for anything."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import NAMES, Page, chromium_page, find_chromium
from evaluation_data import compared, drawn_evaluations
from PIL import Image
from test_report import EVIL

from spatialfeat.reports.report import write_report

PHASE_NAMES = (
    "Preparation",
    "CalotTriangleDissection",
    EVIL,
    "a very long phase name, much longer than a phone is wide",
)


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("report")
    evaluations = drawn_evaluations(3, 300, PHASE_NAMES)
    facts = {"ground truth": "test_ResNet_DB.csv", "weights": "x" * 120}
    write_report(out_dir, evaluations, compared(evaluations), fps=25.0, title="A report to look at", facts=facts)
    return out_dir / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_chromium() is None:
        reason = f"no Chromium on PATH (looked for {', '.join(NAMES)}); install the package chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium_page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def complaints(page: Page) -> list[object]:
    """What the browser's console holds: errors, warnings, breaches of the page's policy, uncaught exceptions."""
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event["params"] for event in page.events if event["method"] in kinds]


def requests(page: Page) -> list[str]:
    return [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_shows_without_complaint_or_request(page: Page, report_path: Path, width: int, dark: bool) -> None:
    page.open(report_path, width=width, dark=dark)
    assert complaints(page) == []
    own = report_path.resolve().as_uri()
    assert own in requests(page)
    assert [url for url in requests(page) if url != own and not url.startswith("data:")] == []
    text = page.evaluate("document.body.innerText")
    for words in ("A report to look at", "Macro F1, pooled", "resnet", "tcn", EVIL, "CalotTriangleDissection"):
        assert words in text, words
    assert page.evaluate("document.scripts.length") == 0
    picture = pixels(page.screenshot())
    assert picture.shape[1] == width
    assert picture.std() > 10, "the page is blank"
    assert (picture.mean() < 100) == dark


@pytest.mark.parametrize("width", [1200, 390, 320])
def test_only_boxes_scroll_sideways(page: Page, report_path: Path, width: int) -> None:
    page.open(report_path, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What sticks out must lie in a box that scrolls.
    sticking_out = page.evaluate(
        "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert sticking_out == []


def test_every_picture_is_drawn(page: Page, report_path: Path) -> None:
    page.open(report_path)
    count, broken = page.evaluate(
        "[document.images.length, [...document.images].filter(i => !i.complete || i.naturalWidth < 100).length]"
    )
    assert (count, broken) == (9, 0)
    place = page.evaluate(
        "(() => { const r = document.querySelector('.ribbon img').getBoundingClientRect();"
        " scrollTo(0, r.top - 50); const s = document.querySelector('.ribbon img').getBoundingClientRect();"
        " return [s.left, s.top, s.width, s.height].map(Math.round) })()"
    )
    left, top, width, height = place
    ribbon = pixels(page.screenshot())[top : top + height, left : left + width].reshape(-1, 3)
    for colour in ((0xA0, 0x60, 0xF0), (0xE0, 0xE0, 0x1C), (0x54, 0x1C, 0x70)):
        assert (np.abs(ribbon.astype(int) - colour).max(axis=1) < 6).mean() > 0.02, colour


def test_it_prints(page: Page, report_path: Path) -> None:
    page.open(report_path)
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") <= 20


def test_a_breach_would_be_noticed(page: Page, report_path: Path, tmp_path: Path) -> None:
    """The checks above can fail: a page that runs a script and asks for a picture elsewhere is caught."""
    text = report_path.read_text(encoding="utf-8")
    bad_path = tmp_path / "bad.html"
    bad = '<script>console.log(1)</script><img src="https://example.org/x.png"><hr style="width:5000px"></body>'
    bad_path.write_text(text.replace("</body>", bad), encoding="utf-8")
    page.open(bad_path)
    assert len(complaints(page)) >= 2
    assert page.evaluate("document.documentElement.scrollWidth") > 1200
    policy = text.index("<meta http-equiv")
    bad_path.write_text(text[:policy] + text[text.index(">", policy) + 1 :].replace("</body>", bad), encoding="utf-8")
    page.open(bad_path)
    assert "https://example.org/x.png" in requests(page)


@pytest.mark.parametrize("width", [1200, 390])
def test_text_in_ribbons_is_large_enough_to_read(page: Page, report_path: Path, width: int) -> None:
    page.open(report_path, width=width)
    widths = page.evaluate("[...document.querySelectorAll('.ribbon img')].map(i => i.getBoundingClientRect().width)")
    # The figure is 10 inches wide, and its smallest text, in the legend, 8 points high.
    assert min(widths) * 8 / 72 / 10 >= 7
