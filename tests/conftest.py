"""Shared fixtures: a tiny drawn data set, and one study trained on it per test session.

What is slow to import is imported by the fixtures: the process that shares out the tests needs none of it.
"""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As the command line does; before torch is imported.

from spatialfeat.config import FinetuneConfig

if TYPE_CHECKING:
    from forks import Forks

    from spatialfeat.finetune import FinetuneResult

# In these files the tests run next to nothing of the package that others do not run too (0.5 % of its branches), in
# networks, pictures and trainings that tracing makes half as slow again.
UNTRACED = {
    f"test_{name}"
    for name in ("benchmarks", "encoders", "evaluate", "extract", "fastnetwork", "metrics", "plots", "readme", "report",
                 "report_browser", "ribbons", "temporal", "trainingstep", "transforms")
}  # fmt: skip


@contextmanager
def untraced() -> Iterator[None]:
    """Without coverage, which follows every line of Python, also of libraries."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with untraced() if item.path.stem in UNTRACED else nullcontext():
        return (yield)


if "PYTEST_XDIST_WORKER" in os.environ:  # Every test process imports these sooner or later.
    with untraced():
        for library in ("torchvision.transforms.v2", "pandas", "h5py", "matplotlib.pyplot", "timm"):
            importlib.import_module(library)

# A script that starts the tests with `&` or nohup has these ignored, and so would every command that a test sends one.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

SCRIPTS_DIR = Path(__file__).parent.parent / "scripts"

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the collector of garbage need not look at its half million objects, nor
    so often as it does by default."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run tests marked `gpu` where there is a CUDA device; elsewhere skip them, or fail them where one is required."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if torch.cuda.is_available():
        return
    if os.environ.get("SPATIALFEAT_REQUIRE_GPU") == "1":
        pytest.fail("SPATIALFEAT_REQUIRE_GPU=1, and torch sees no CUDA device", pytrace=False)
    pytest.skip("torch sees no CUDA device; scripts/gpu_check runs this where there is one")


def load_script(name: str) -> ModuleType:
    """Import a file of scripts/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS_DIR / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Made = TypeVar("Made")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` returns for a new folder of this name: the first of the test processes makes it, the others read it.

    Nobody may change anything in the folder.
    """
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    kept = root / f"{name}.pickle"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            (root / name).mkdir()
            made = make(root / name)
            kept.write_bytes(pickle.dumps(made))
    found: Made = pickle.loads(kept.read_bytes())
    return found


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set laid out as the specification's: images/, three CSVs, phase_names.txt; 14 frames per patient."""

    def make(path: Path) -> Path:
        load_script("make_demo_data").make_demo_data(
            path, num_train=2, num_val=1, num_test=1, frames_per_patient=14, size_px=(96, 64), workers=1
        )
        return path

    return made_once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def quick_config(demo_dir: Path) -> FinetuneConfig:
    """The study on the tiny data set, small enough for a test. `out_dir` must be replaced."""
    return FinetuneConfig(
        train_csv=demo_dir / "train_ResNet_DB.csv",
        val_csv=demo_dir / "val_ResNet_DB.csv",
        test_csv=demo_dir / "test_ResNet_DB.csv",
        img_dir=demo_dir / "images",
        weights="random",
        image_size_px=64,
        batch_size=10,
        epochs=2,
        workers=0,
        device="cpu",
        tensorboard=False,
    )


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs commands in processes that need no time to start."""
    from forks import Forks

    program = Forks()
    yield program
    program.close()


@pytest.fixture
def small_network() -> Iterator[None]:
    """A small network in place of ResNet-50, where files and processes are looked at and not what is computed."""
    from networks import network

    with network(small=True):
        yield


@pytest.fixture
def drawing() -> None:
    """For a test that looks at pictures, in a file whose others have `no_drawing`."""


@pytest.fixture
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files of a few bytes, where nobody looks at them."""
    from drawing import draw_nothing

    if "drawing" not in request.fixturenames:
        draw_nothing(monkeypatch.setattr)


@pytest.fixture
def no_contact_sheets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` makes empty figures of its videos; to make the real ones takes most of the time of so small videos."""
    from matplotlib.figure import Figure

    if "drawing" not in request.fixturenames:
        monkeypatch.setattr("spatialfeat.prepare.contact_sheet", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="session")
def study(quick_config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """One finished study of one epoch; its files lie beside `study.weights_path`."""

    return _study("study", replace(quick_config, epochs=1), tmp_path_factory, small=False)


@pytest.fixture(scope="session")
def small_study(quick_config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A study of two epochs of the small network, without pictures: for tests with `small_network`."""

    return _study("small_study", quick_config, tmp_path_factory, small=True)


def _study(name: str, config: FinetuneConfig, factory: pytest.TempPathFactory, *, small: bool) -> FinetuneResult:
    from drawing import draw_nothing
    from networks import network

    from spatialfeat.finetune import finetune

    def make(out_dir: Path) -> FinetuneResult:
        with network(small=small), pytest.MonkeyPatch.context() as monkeypatch:
            if small:
                draw_nothing(monkeypatch.setattr)
            return finetune(replace(config, out_dir=out_dir, phase_names=tuple("ABCDEFG")))

    return made_once(factory, name, make)


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file made elsewhere: a bare torchvision ResNet-50 with 7 classes, no JSON beside it."""

    import torch
    from torchvision.models import resnet50

    def make(folder: Path) -> Path:
        torch.manual_seed(7)
        torch.save(resnet50(num_classes=7).state_dict(), folder / "elsewhere.pth")
        return folder / "elsewhere.pth"

    return made_once(tmp_path_factory, "weights", make)


@pytest.fixture(scope="session")
def small_plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the small network: for tests with `small_network`."""

    import torch
    from networks import network

    from spatialfeat.network.resnet import PhaseResNet50

    def make(folder: Path) -> Path:
        torch.manual_seed(7)
        with network(small=True):
            torch.save(PhaseResNet50(7).state_dict(), folder / "elsewhere.pth")
        return folder / "elsewhere.pth"

    return made_once(tmp_path_factory, "small_weights", make)
