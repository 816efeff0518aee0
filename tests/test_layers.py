"""Imports run one way: lower modules, then the commands, then the command line. See docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spatialfeat

PACKAGE = "spatialfeat"
COMMANDS = {"finetune", "evaluate", "extract", "export", "check", "info"}
# Modules that know neither weights files nor batches of frames, and the modules that add these.
FOUNDATION = {
    "errors",
    "config",
    "files",
    "frames",
    "images",
    "transforms",
    "runtime",
    "metrics",
    "featurefile",
    "plots",
    "model",
}
ABOVE_FOUNDATION = {"dataset", "checkpoint", "inference"}
# The library, and how the names of the modules begin that may import it, also inside functions.
GATEKEEPERS = {
    "typer": ("cli",),
    "h5py": ("featurefile", "featurewriter", "featurehandles", "aggregate"),
    "matplotlib": ("plots",),
}
HEAVY = ("torch", "torchvision", "numpy", "pandas", "h5py", "matplotlib", "sklearn", "PIL")


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _imported_names(node: ast.AST) -> list[str]:
    """Dotted names of everything that this part of a module imports when it runs, lazily or not."""
    if _is_type_checking(node):
        return []
    names: list[str] = []
    if isinstance(node, ast.Import):
        names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        # The package is flat: every relative import starts at the package.
        origin = ".".join(filter(None, [PACKAGE if node.level else "", node.module or ""]))
        names += [f"{origin}.{alias.name}" for alias in node.names]
    for child in ast.iter_child_nodes(node):
        names += _imported_names(child)
    return names


def _imports(folder: Path) -> dict[str, tuple[set[str], set[str]]]:
    """{module: (modules of this package, top-level names of other libraries)} that it imports."""
    modules = {path.stem for path in folder.glob("*.py")}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in sorted(folder.glob("*.py")):
        names = [name.split(".") for name in _imported_names(ast.parse(path.read_text(encoding="utf-8")))]
        own = {name[1] for name in names if name[0] == PACKAGE and len(name) > 1 and name[1] in modules}
        found[path.stem] = (own, {name[0] for name in names} - {PACKAGE})
    return found


def _is_command_line(module: str) -> bool:
    return module.startswith("cli") or module == "__main__"


def broken_rules(folder: Path) -> list[str]:
    """Every import in this package folder that breaks the layering, as `module imports module`."""
    broken: list[str] = []
    imports = _imports(folder)
    for module, (own, others) in imports.items():
        forbidden = (
            set() if _is_command_line(module) else COMMANDS | {name for name in imports if _is_command_line(name)}
        )
        if module in FOUNDATION:
            forbidden |= ABOVE_FOUNDATION
        broken += [f"{module} imports {name}" for name in sorted((own - {module}) & forbidden)]
        broken += [
            f"{module} imports {library}"
            for library, prefixes in GATEKEEPERS.items()
            if library in others and not module.startswith(prefixes)
        ]
    try:
        tuple(TopologicalSorter({module: own for module, (own, _) in imports.items()}).static_order())
    except CycleError as error:
        broken.append(f"cycle: {' '.join(error.args[1])}")
    return broken


def test_the_package_keeps_its_layers() -> None:
    folder = Path(spatialfeat.__file__).parent
    assert broken_rules(folder) == []
    # Were the names above outdated, the rules would hold for nothing.
    modules = {path.stem for path in folder.glob("*.py")}
    assert (FOUNDATION | ABOVE_FOUNDATION | {"finetune", "evaluate", "extract", "cli"}) <= modules


def test_the_package_is_flat() -> None:
    folder = Path(spatialfeat.__file__).parent
    assert [path.name for path in folder.glob("*/*.py")] == []
    assert not (folder / "utils.py").exists()


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("evaluate", "from spatialfeat.finetune import run", "evaluate imports finetune"),
        ("evaluate", "from spatialfeat import finetune", "evaluate imports finetune"),
        ("evaluate", "from . import finetune", "evaluate imports finetune"),
        ("evaluate", "import spatialfeat.finetune as study", "evaluate imports finetune"),
        ("frames", "def later():\n    from spatialfeat.finetune import run", "frames imports finetune"),
        ("frames", "from spatialfeat import cli_options", "frames imports cli_options"),
        ("frames", "from spatialfeat.dataset import rows", "frames imports dataset"),
        ("dataset", "import typer", "dataset imports typer"),
        ("dataset", "def later():\n    import h5py", "dataset imports h5py"),
        ("dataset", "import matplotlib.pyplot as plt", "dataset imports matplotlib"),
        ("dataset", "from matplotlib import pyplot", "dataset imports matplotlib"),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, module: str, source: str, message: str) -> None:
    for name in ("__init__", "cli_options", "dataset", "evaluate", "finetune", "frames"):
        (tmp_path / f"{name}.py").write_text("import numpy as np\n")
    assert broken_rules(tmp_path) == []
    (tmp_path / f"{module}.py").write_text(source)
    assert broken_rules(tmp_path) == [message]


def test_a_cycle_is_found(tmp_path: Path) -> None:
    (tmp_path / "frames.py").write_text("from spatialfeat import videos\n")
    (tmp_path / "videos.py").write_text("def later():\n    from spatialfeat.frames import read_frames\n")
    (message,) = broken_rules(tmp_path)
    assert message.startswith("cycle: ")
    assert {"frames", "videos"} <= set(message.split())


def test_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "cli_study.py").write_text("import typer\ndef run():\n    from spatialfeat.finetune import finetune\n")
    (tmp_path / "finetune.py").write_text("from spatialfeat.frames import read_frames\n")
    (tmp_path / "frames.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spatialfeat.finetune import finetune\n"
    )
    (tmp_path / "plots_ribbons.py").write_text("from matplotlib.figure import Figure\n")
    (tmp_path / "featurefile.py").write_text("import h5py\n")
    assert broken_rules(tmp_path) == []


def _modules_after(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `statement`."""
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["spatialfeat", "spatialfeat.cli", "spatialfeat.config"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    loaded = _modules_after(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    code = "from spatialfeat.cli import app\ntry:\n    app(['finetune', '--help'])\nexcept SystemExit:\n    pass"
    loaded = _modules_after(code)
    assert "spatialfeat.cli_study" in loaded
    assert loaded.isdisjoint(HEAVY)
