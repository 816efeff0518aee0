"""The README's code runs as it stands, on features made by a real extraction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spatialfeat.config import ExtractConfig
from spatialfeat.data.frames import named_csvs
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult

ROOT = Path(__file__).parent.parent


def code_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.usefixtures("small_network")
def test_the_readmes_example_reads_a_feature_file_and_learns_from_it(
    demo_dir: Path, small_study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(
        ExtractConfig(
            csvs=(str(demo_dir / "test_ResNet_DB.csv"),),
            img_dir=demo_dir / "images",
            weights=small_study.weights_path,
            out_dir=tmp_path / "features",
            workers=0,
        )
    )
    monkeypatch.chdir(tmp_path)
    (block,) = code_blocks(ROOT / "README.md")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    features, labels, loss = names["features"], names["labels"], names["loss"]
    assert features.shape == (2048, len(labels))  # type: ignore[attr-defined, arg-type]
    # It starts near log(7) = 1.95, and 20 steps on one video bring it down.
    assert loss.item() < 1.9  # type: ignore[attr-defined]


def test_the_formats_page_loads_the_weights_with_plain_torchvision(
    study: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.weights_path.parent)
    (block,) = code_blocks(ROOT / "docs" / "formats.md")
    exec(compile(block, "formats.md", "exec"), {})


def anchors(document: Path) -> set[str]:
    """What `#...` may name in a page, as code hosts make it of headings: lower case, without signs, blanks as `-`."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*?) *$", text, flags=re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {slug if slug not in slugs[:at] else f"{slug}-{slugs[:at].count(slug)}" for at, slug in enumerate(slugs)}


def test_every_link_leads_to_a_page_a_picture_or_a_heading() -> None:
    assert "frames-csv-and-images" in anchors(ROOT / "docs" / "formats.md")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
    dead = []
    for document in pages:
        for link in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", document.read_text(encoding="utf-8")):
            page, _, anchor = link.partition("#")
            target = document.parent / page if page else document
            if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
                dead.append(f"{document.name}: {link}")
    assert not dead


def test_the_readmes_csvs_name_their_splits() -> None:
    examples = re.findall(r"`extract((?: --csv \S+?)+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert examples
    for example in examples:
        assert [split for split, _ in named_csvs(example.replace("--csv", "").split())] == ["train", "test"]
