"""Rules of the code base that no linter knows: how long things get, and that each dependency is accounted for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_MODULE_LINES = 300
MAX_BODY_LINES = 50


def _num_body_lines(function: ast.FunctionDef) -> int:
    """Lines after signature and docstring: the options of a command are many, but no code."""
    body = function.body
    is_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    first = body[1] if is_docstring and len(body) > 1 else body[0]
    assert function.end_lineno is not None
    return function.end_lineno - first.lineno + 1


def too_long(source: str) -> list[str]:
    """What of a module is too long, as `name: lines`."""
    found = [f"module: {num_lines}"] if (num_lines := len(source.splitlines())) > MAX_MODULE_LINES else []
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return found + [
        f"{function.name}: {num_lines}"
        for function in functions
        if (num_lines := _num_body_lines(function)) > MAX_BODY_LINES
    ]


def test_modules_and_functions_stay_short() -> None:
    paths = [*(ROOT / "spatialfeat").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert paths
    long = {str(path.relative_to(ROOT)): too_long(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: found for path, found in long.items() if found} == {}


def test_what_is_too_long_is_found() -> None:
    body = "    x = 1\n" * MAX_BODY_LINES
    assert too_long(f'def short(\n    a,\n    b,\n):\n    """Say\n\n    much."""\n{body}') == []
    assert too_long(f"def long():\n    x = 1\n{body}") == [f"long: {MAX_BODY_LINES + 1}"]
    assert too_long("x = 1\n" * (MAX_MODULE_LINES + 1)) == [f"module: {MAX_MODULE_LINES + 1}"]


def test_the_architecture_page_says_why_each_dependency_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    needed = re.findall(r'^    "([\w-]+)(?:[><=~!]=?[\w.]+)?",$', project, flags=re.MULTILINE)
    assert {"torch", "typer", "pytest"} <= set(needed)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    assert [name for name in needed if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)] == []
