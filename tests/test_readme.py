"""The README's code runs as it stands, on features made by a real extraction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spatialfeat.config import ExtractConfig
from spatialfeat.extract import extract
from spatialfeat.finetune import FinetuneResult

ROOT = Path(__file__).parent.parent


def code_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readmes_example_reads_a_feature_file_and_learns_from_it(
    demo_dir: Path, study: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(
        ExtractConfig(
            csvs=(str(demo_dir / "test_ResNet_DB.csv"),),
            img_dir=demo_dir / "images",
            weights=study.weights_path,
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


def test_every_linked_page_and_picture_exists() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
