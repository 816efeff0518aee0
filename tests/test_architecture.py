"""Imports run one way, and docs/architecture.md says truly where things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

import spatialfeat
from spatialfeat.formats import FORMATS

ROOT = Path(__file__).parent.parent
PACKAGE = "spatialfeat"
COMMANDS = {"finetune", "evaluate", "predict", "extract", "export", "info", "check", "prepare", "split", "backbones"}
# A package may import those before it, and the modules beside the packages (`config`, `files`, ...).
PACKAGES = ["data", "network", "features", "scores", "reports", "training", "exports", "checks", "sources"]
# The library, and how the names of the modules begin that may import it, also inside functions.
GATEKEEPERS = {
    "typer": ("cli",),
    "h5py": ("schema", "file", "writer", "plain"),
    "matplotlib": ("plots", "ribbons"),
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
        assert node.level == 0, "relative imports are not followed here, and not used in this project"
        names += [f"{node.module}.{alias.name}" for alias in node.names]
    for child in ast.iter_child_nodes(node):
        names += _imported_names(child)
    return names


def _module_name(folder: Path, path: Path) -> str:
    """`data.frames` for data/frames.py; `` for the package's own __init__.py."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(folder: Path) -> dict[str, tuple[set[str], set[str]]]:
    """{module: (modules of this package, top-level names of other libraries)} that it imports."""
    modules = {_module_name(folder, path) for path in folder.rglob("*.py")} - {""}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in sorted(folder.rglob("*.py")):
        own: set[str] = set()
        others: set[str] = set()
        for name in _imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            first, *rest = name.split(".")
            if first != PACKAGE:
                others.add(first)
            # `spatialfeat.data.frames.FrameTable` names the module data.frames, and not the package data.
            prefixes = [".".join(rest[:length]) for length in range(len(rest), 0, -1)]
            own |= set(next(([prefix] for prefix in prefixes if first == PACKAGE and prefix in modules), []))
        found[_module_name(folder, path)] = (own, others)
    return found


# Where a module finds a function of a higher level by its text: when an option needs it, so that --help stays quick.
FOUND_BY_TEXT = {
    "config": {"data.ids", "features.plan", "network.backbone", "training.files"},
    "phases": {"features.folder"},
    "formats": {"exports.mstcn", "exports.plain", "exports.tecno"},
}


def test_what_is_found_by_text_is_listed() -> None:
    found: dict[str, set[str]] = {}
    folder = Path(spatialfeat.__file__).parent
    for path in folder.rglob("*.py"):
        texts = re.findall(r'"spatialfeat\.([\w.]+):\w+"', path.read_text(encoding="utf-8"))
        if texts:
            found[_module_name(folder, path)] = set(texts)
    assert found == FOUND_BY_TEXT


def _is_command_line(module: str) -> bool:
    return module.startswith("cli") or module == "__main__"


def _level(module: str) -> int:
    """0 for modules beside the packages, then the packages in order, then the commands, then the command line."""
    if _is_command_line(module):
        return len(PACKAGES) + 2
    if module in COMMANDS:
        return len(PACKAGES) + 1
    package = module.partition(".")[0]
    return PACKAGES.index(package) + 1 if package in PACKAGES else 0


def broken_rules(folder: Path) -> list[str]:
    """Every import in this package folder that breaks the layering, as `module imports module`."""
    broken: list[str] = []
    imports = _imports(folder)
    for module, (own, others) in imports.items():
        for name in sorted(own - {module}):
            upward = _level(name) > _level(module)
            if module and (upward or (module in COMMANDS and name in COMMANDS)):
                broken.append(f"{module} imports {name}")
        broken += [
            f"{module} imports {library}"
            for library, prefixes in GATEKEEPERS.items()
            if library in others and not module.rpartition(".")[2].startswith(prefixes)
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
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(PACKAGES)
    assert {*COMMANDS, "cli"} <= {path.stem for path in folder.glob("*.py")}


def architecture_page(title: str) -> str:
    """The section of docs/architecture.md under this title."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_map_shows_every_module_in_its_folder() -> None:
    shown, package = set(), ""
    for line in architecture_page("Map").partition("spatialfeat/\n")[2].splitlines():
        if folder := re.match(r"  (\w+)/", line):
            package = f"{folder[1]}/"
        names = re.findall(r"(?<= )\w+\.py(?= |$)", line)
        shown |= {name if re.match(r"  \w", line) else package + name for name in names}
    folder = Path(spatialfeat.__file__).parent
    modules = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    assert shown == {name for name in modules if not name.endswith("__init__.py")}


def rows_of_table(title: str) -> list[list[str]]:
    lines = [line for line in architecture_page(title).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(rows) >= 5
    return rows


@pytest.mark.parametrize("row", rows_of_table("Where is it?"), ids=lambda row: row[0])
def test_what_the_page_names_is_there(row: list[str]) -> None:
    _, paths, names = row
    modules = [import_module(f"spatialfeat.{path[:-3].replace('/', '.')}") for path in re.findall("`(.+?)`", paths)]
    assert modules
    for name in re.findall("`(.+?)`", names):
        places = [module for module in modules if hasattr(module, name.partition(".")[0])]
        assert places, name
        assert attrgetter(name)(places[0]) is not None


def test_places_for_new_things_exist() -> None:
    for _, place in rows_of_table("Where does a new thing go?"):
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", place):
            assert (ROOT / "spatialfeat" / path).exists() or (ROOT / path).exists(), path


# What other code imports, and what is a part of one command, format or page, but a whole idea of its own.
ALONE = {
    "checks.rows", "features.windows", "exports.verify_mstcn", "network.resnet", "scores.results", "sources.own",
    "training.methods",
}  # fmt: skip


def test_no_module_serves_only_one_other() -> None:
    """Unless it is a command, a format or a page: else the two are one idea in two files."""
    imports = _imports(Path(spatialfeat.__file__).parent)
    users = {name: {user for user, (own, _) in imports.items() if name in own - {user}} for name in imports}
    formats = {form.job.partition(":")[0].removeprefix("spatialfeat.") for form in FORMATS.values()}
    free = COMMANDS | formats | ALONE | set(PACKAGES) | {"", "__main__", "cli"}
    assert {name: names for name, names in users.items() if len(names) < 2 and name not in free} == {}
    assert all(len(users[name]) < 2 for name in ALONE), "no exception any more"


def test_the_architecture_page_says_why_each_dependency_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    needed = re.findall(r'^    "([\w-]+)(?:[><=~!]=?[\w.]+)?",$', project, flags=re.MULTILINE)
    assert {"torch", "typer", "pytest"} <= set(needed)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    assert [name for name in needed if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)] == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("evaluate", "from spatialfeat.finetune import run", "evaluate imports finetune"),
        ("evaluate", "from spatialfeat import finetune", "evaluate imports finetune"),
        ("evaluate", "import spatialfeat.finetune as study", "evaluate imports finetune"),
        ("data/frames", "def later():\n    from spatialfeat.finetune import run", "data.frames imports finetune"),
        ("data/frames", "from spatialfeat import cli", "data.frames imports cli"),
        ("data/frames", "from spatialfeat.network.resnet import rows", "data.frames imports network.resnet"),
        ("files", "from spatialfeat.data import frames", "files imports data.frames"),
        ("network/resnet", "import typer", "network.resnet imports typer"),
        ("network/resnet", "def later():\n    import h5py", "network.resnet imports h5py"),
        ("network/resnet", "import matplotlib.pyplot as plt", "network.resnet imports matplotlib"),
        ("network/resnet", "from matplotlib import pyplot", "network.resnet imports matplotlib"),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, module: str, source: str, message: str) -> None:
    for name in ("__init__", "cli", "files", "evaluate", "finetune", "data/__init__", "data/frames",
                 "network/__init__", "network/resnet"):  # fmt: skip
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("import numpy as np\n")
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
    for folder in ("data", "features", "reports"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cli.py").write_text("import typer\ndef run():\n    from spatialfeat.finetune import finetune\n")
    (tmp_path / "finetune.py").write_text("from spatialfeat.data.frames import read_frames\n")
    (tmp_path / "data" / "frames.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spatialfeat.finetune import finetune\n"
    )
    (tmp_path / "reports" / "ribbons.py").write_text("from matplotlib.figure import Figure\n")
    (tmp_path / "features" / "writer.py").write_text("import h5py\nfrom spatialfeat.data.frames import x\n")
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
    return set(run.stdout.splitlines()[-1].split())  # Above it stands what the statement itself has printed.


@pytest.mark.parametrize("module", ["spatialfeat", "spatialfeat.cli", "spatialfeat.config"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    loaded = _modules_after(f"import {module}")
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    code = "from spatialfeat.cli import app\ntry:\n    app(['finetune', '--help'])\nexcept SystemExit:\n    pass"
    loaded = _modules_after(code)
    assert loaded.isdisjoint(HEAVY)
