"""What a user installs: the wheel and the sdist, and the command of the installed wheel.

The wheel goes into an environment of its own that reads the dependencies of this one: PyTorch takes minutes to install.
`scripts/check_package` does the same with an empty environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import h5py
import pytest
from tinydata import png_bytes

from spatialfeat import __version__

ROOT = Path(__file__).parent.parent
WHEEL_NAME = f"spatialfeat-{__version__}-py3-none-any.whl"
SDIST_NAME = f"spatialfeat-{__version__}.tar.gz"
FOLDERS = [name for name in ("spatialfeat", "scripts", "tests", "docs", "benchmarks") if (ROOT / name).is_dir()]


def call(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that sees nothing of this checkout: neither by its folder nor by PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    return subprocess.run([*map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def build(target: str, source: Path, out: Path) -> None:
    run = call(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    assert run.returncode == 0, run.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    """{path in its parent folder: content} of all files, without what Python and the tools leave there."""
    files = {path.relative_to(folder.parent): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in files.items()
        if not any(part == "__pycache__" or part.startswith(".") for part in name.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build("wheel", ROOT, out)
    return out / WHEEL_NAME


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    build("sdist", ROOT, out)
    with tarfile.open(out / SDIST_NAME) as archive:
        archive.extractall(out, filter="data")
    return out / SDIST_NAME.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands in an environment where the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run = call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert run.returncode == 0, run.stderr
    # A folder named by a .pth file is searched for modules, but its own .pth files are not read: the dependencies
    # can be imported, the editable installation of this checkout cannot.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    metadata_dir = f"spatialfeat-{__version__}.dist-info/"
    package = {name: data for name, data in content.items() if not name.startswith(metadata_dir)}
    assert package == files_of(ROOT / "spatialfeat")
    assert "spatialfeat/py.typed" in package
    metadata = Parser().parsestr(content[f"{metadata_dir}METADATA"].decode())
    assert (metadata["Name"], metadata["Version"]) == ("spatialfeat", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert content[f"{metadata_dir}licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.partition(">")[0] for line in needed} == {
        "torch", "torchvision", "numpy", "pandas", "pillow", "h5py", "safetensors", "matplotlib", "jinja2", "tqdm",
        "typer",
    }  # fmt: skip


def test_the_sdist_holds_what_a_checkout_holds(unpacked_sdist: Path) -> None:
    for folder in FOLDERS:
        assert files_of(unpacked_sdist / folder) == files_of(ROOT / folder)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", ".gitignore"):
        assert (unpacked_sdist / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list(unpacked_sdist.rglob("__pycache__"))
    assert {path.name for path in unpacked_sdist.iterdir() if path.is_dir()} == set(FOLDERS)
    assert os.access(unpacked_sdist / "scripts" / "demo", os.X_OK)


def test_the_sdist_builds_the_same_wheel(unpacked_sdist: Path, wheel: Path, tmp_path: Path) -> None:
    build("wheel", unpacked_sdist, tmp_path)
    assert (tmp_path / WHEEL_NAME).read_bytes() == wheel.read_bytes()


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    code = "import spatialfeat, spatialfeat.cli; print(spatialfeat.__file__, spatialfeat.cli.__file__)"
    run = call(installed / "python", "-c", code, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for path in run.stdout.split():
        assert Path(path).is_relative_to(installed.parent.resolve()), run.stdout


def test_the_installed_command_works(installed: Path, plain_weights: Path, tmp_path: Path) -> None:
    version = call(installed / "spatialfeat", "--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"spatialfeat {__version__}\n")
    page = call(installed / "spatialfeat", "--help", cwd=tmp_path)
    assert page.returncode == 0
    assert {"finetune", "evaluate", "extract", "info", "export"} <= set(page.stdout.split())

    (tmp_path / "images").mkdir()
    for frame in range(3):
        (tmp_path / "images" / f"1050_1_{frame}.png").write_bytes(png_bytes(seed=frame))
    options = ("--img-dir", "images", "--weights", plain_weights, "--workers", "0", "--device", "cpu")
    extract = call(installed / "spatialfeat", "extract", *options, cwd=tmp_path)
    assert extract.returncode == 0, extract.stderr
    with h5py.File(tmp_path / "features" / "1050_1.h5") as file:
        assert file["features"].shape == (2048, 3)
    mistake = call(installed / "spatialfeat", "finetune", "--batch-size", "0", cwd=tmp_path)
    assert mistake.returncode == 2
    assert mistake.stderr.startswith("error: --batch-size 0")
    assert "Traceback" not in mistake.stderr
