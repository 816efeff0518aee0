"""What the machine does to a run ends in one message that says what to lower or where to make room."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks
from torch.utils.data import _utils as loader_settings
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from typer.testing import CliRunner, Result

import spatialfeat.data.dataset as dataset_module
from spatialfeat import signals
from spatialfeat.cli import app, main
from spatialfeat.config import ExtractConfig
from spatialfeat.console import LastingStream
from spatialfeat.errors import REMEDIES, SpatialfeatError, describe_os_error, translate_computing_faults
from spatialfeat.extract import extract
from spatialfeat.files import read_json_object
from spatialfeat.finetune import FinetuneResult
from spatialfeat.network.classifier import InferenceNetwork
from spatialfeat.training.trainer import TrainingStep

GPU_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.75 GiB of which 1.06 GiB is free."
    " Process 4242 has 13.69 GiB memory in use. Of the allocated memory 12.50 GiB is allocated by PyTorch."
)
WORKER_TRACEBACK = (
    "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n{}"
)
CPU_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError(GPU_MEMORY),
            "the GPU's memory ran out (2.00 GiB more were asked for; 1.06 GiB of 14.75 GiB are free); lower "
            "--batch-size (now 32) or --image-size (now 224), or end other programs on the GPU",
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "the GPU's memory ran out; lower --batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU's memory ran out; lower"),
        (
            MemoryError(),
            "the machine's memory ran out; lower --batch-size (now 32) or --image-size (now 224), or --wor",
        ),
        (RuntimeError(CPU_MEMORY), "the machine's memory ran out; lower --batch-size (now 32)"),
        (RuntimeError(WORKER_TRACEBACK.format("RuntimeError", CPU_MEMORY)), "the machine's memory ran out; lower"),
        (
            _caused(
                RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            ),
            "a decoding process was killed (Killed), most likely because the machine's memory ran out; lower --workers "
            "(now 4) or --batch-size (now 32)",
        ),
        (EOFError(), "a decoding process was killed, most likely"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a decoding process was killed, most"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
            "the decoding processes ran out of shared memory",
        ),
        (
            RuntimeError(
                WORKER_TRACEBACK.format(
                    "RuntimeError", "RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space"
                )
            ),
            "the decoding processes ran out of shared memory",
        ),
        (
            OSError(WORKER_TRACEBACK.format("OSError", "OSError: [Errno 24] Too many open files")),
            "a decoding process: Too many open files; raise the limit",
        ),
    ],
)
def test_faults_of_computing_say_what_to_lower(error: Exception, message: str) -> None:
    with (
        pytest.raises(SpatialfeatError) as told,
        translate_computing_faults(batch_size=32, workers=4, image_size_px=224),
    ):
        raise error
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_shared_memory_advice_names_both_ways_out() -> None:
    with (
        pytest.raises(SpatialfeatError, match=r"pass --workers 0.*--shm-size"),
        translate_computing_faults(batch_size=1, workers=2),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError("encoder error -2"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"),
        RuntimeError(
            WORKER_TRACEBACK.format("RuntimeError", "RuntimeError: stack expects each tensor to be equal size")
        ),
    ],
)
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as kept, translate_computing_faults(batch_size=32, workers=4):
        raise error
    assert kept.value is error


def test_an_end_of_file_without_workers_is_no_lost_worker() -> None:
    with pytest.raises(EOFError), translate_computing_faults(batch_size=32, workers=0):
        raise EOFError


@pytest.mark.parametrize("number", sorted(REMEDIES))
def test_os_errors_name_place_reason_and_remedy(number: int) -> None:
    message = describe_os_error(OSError(number, "text of the library"), "out/history.csv")
    assert message == f"out/history.csv: {os.strerror(number)}; {REMEDIES[number]}"
    assert describe_os_error(OSError(errno.ENOENT, "")) is None


# From here on: commands as a user runs them.


def _extraction(demo_dir: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [
        *("extract", "--csv", str(demo_dir / "test_ResNet_DB.csv"), "--img-dir", str(demo_dir / "images")),
        *("--weights", str(weights), "--out", str(out), "--device", "cpu", "--batch-size", "4", "--workers", "0"),
        *more,
    ]


def _extract(demo_dir: Path, weights: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, _extraction(demo_dir, weights, out, *more))


def _evaluate(demo_dir: Path, weights: Path, out: Path) -> Result:
    return CliRunner().invoke(
        app,
        [
            *("evaluate", "--csv", str(demo_dir / "test_ResNet_DB.csv"), "--img-dir", str(demo_dir / "images")),
            *("--weights", str(weights), "--out", str(out), "--device", "cpu", "--batch-size", "4", "--workers", "0"),
            *("--bootstrap", "0"),
        ],
    )


def _finetune(demo_dir: Path, weights: Path, out: Path) -> Result:
    return CliRunner().invoke(
        app,
        [
            *("finetune", "--train-csv", str(demo_dir / "train_ResNet_DB.csv"), "--out", str(out), "--epochs", "1"),
            *("--val-csv", str(demo_dir / "val_ResNet_DB.csv"), "--img-dir", str(demo_dir / "images")),
            *("--weights", str(weights), "--image-size", "64", "--device", "cpu", "--workers", "0"),
        ],
    )


@pytest.fixture
def small_weights(small_study: FinetuneResult, small_network: None, no_drawing: None) -> Path:
    """Of a small network, trained at 64 pixels, so that tests are quick."""
    return small_study.weights_path


def _given_outputs(network: InferenceNetwork, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for the network: 2048 features and 7 logits per image."""
    features = images.float().mean(dim=(1, 2, 3))[:, None].repeat(1, 2048)
    return features, features[:, :7]


@pytest.fixture
def gpu_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fourth batch on, the network needs more memory than there is; training does at once."""
    batches = 0

    def fail_late(network: InferenceNetwork, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal batches
        batches += 1
        if batches > 3:
            raise torch.OutOfMemoryError(GPU_MEMORY)
        return _given_outputs(network, images)

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError(GPU_MEMORY)

    monkeypatch.setattr(InferenceNetwork, "__call__", fail_late)
    monkeypatch.setattr(TrainingStep, "__call__", fail)


@pytest.mark.usefixtures("gpu_without_memory")
@pytest.mark.parametrize("command", [_extract, _evaluate, _finetune])
def test_out_of_gpu_memory(command: Any, demo_dir: Path, small_weights: Path, tmp_path: Path) -> None:
    done = command(demo_dir, small_weights, tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "error: the GPU's memory ran out (2.00 GiB more were asked for; 1.06 GiB of 14.75 GiB" in done.stderr
    assert "lower --batch-size (now" in done.stderr
    assert ("--image-size (now 64)" in done.stderr) == (command is _finetune)
    record = read_json_object(tmp_path / "out" / "run.json")
    assert record["status"] == "failed"
    assert "memory ran out" in record["error"]
    finished = sorted(path.name for path in (tmp_path / "out").iterdir())
    if command is _extract:
        # Eight frames or more were computed: the first video is whole, the second was under way.
        assert finished == ["114_01.h5", "run.json"]
        assert "1 of 3 videos are finished and kept: 114_01; run the same command again" in done.stdout
    else:
        assert finished == ["run.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_never_written(
    value: float, demo_dir: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = 0

    def spoil_sixth(network: InferenceNetwork, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal frames
        features, logits = _given_outputs(network, images)
        if frames <= 5 < frames + len(images):
            features[5 - frames, 99] = value
        frames += len(images)
        return features, logits

    monkeypatch.setattr(InferenceNetwork, "__call__", spoil_sixth)
    done = _extract(demo_dir, small_weights, tmp_path)
    assert done.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["114_01.h5", "114_03.h5", "run.json"]
    assert "video 114_02 has no feature file: " in done.stderr
    assert "test_ResNet_DB.csv row 7: the network's output is NaN or infinite" in done.stderr
    frames = 0
    done = _evaluate(demo_dir, small_weights, tmp_path / "scores")
    assert done.exit_code == 2
    assert "114_02_0024.png: the network's output is NaN or infinite" in done.stderr
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["run.json"]


@pytest.fixture
def handler_of_dead_children(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # PyTorch looks every five seconds whether its decoding processes still live; here five times a second.
    monkeypatch.setattr(loader_settings, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


@pytest.mark.usefixtures("handler_of_dead_children")
@pytest.mark.parametrize(("number", "message"), [(signal.SIGKILL, "was killed"), (signal.SIGBUS, "--shm-size")])
def test_a_killed_decoding_process_ends_the_run(
    number: signal.Signals,
    message: str,
    demo_dir: Path,
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode, main_process, frames = dataset_module.decode_pixels, os.getpid(), 0

    def die_at_the_tenth(content: bytes) -> Any:
        nonlocal frames
        frames += 1
        if frames == 10 and os.getpid() != main_process:
            os.kill(os.getpid(), number)
        return decode(content)

    monkeypatch.setattr(dataset_module, "decode_pixels", die_at_the_tenth)
    monkeypatch.setattr(InferenceNetwork, "__call__", _given_outputs)
    done = _extract(demo_dir, small_weights, tmp_path, "--workers", "1")
    assert done.exit_code == 2, done.output
    assert "error: " in done.stderr
    assert "--workers (now 1)" in done.stderr
    # A worker that dies while the main process reads from it does not tell by what.
    assert message in done.stderr or "was killed, most likely" in done.stderr
    assert not list(tmp_path.glob(".*"))
    assert read_json_object(tmp_path / "run.json")["status"] == "failed"
    frames = -1000
    assert _extract(demo_dir, small_weights, tmp_path).exit_code == 0
    assert len(list(tmp_path.glob("*.h5"))) == 3


def extract_without_shared_memory(way: str, *command: str) -> None:
    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)")

    signals.SECONDS_TO_LIVE = 1
    torch.Tensor.share_memory_ = refuse  # type: ignore[method-assign, assignment]
    dataset_module.SLOT_BYTES_PER_FRAME = 1  # Too small for any batch.
    if way == "as a library":
        csv, images, weights, out = map(Path, command[2:10:2])
        extract(ExtractConfig(csvs=(str(csv),), img_dir=images, weights=weights, out_dir=out, device="cpu", workers=2))
    sys.argv[1:] = command
    main()


@pytest.mark.parametrize("way", ["as a command", "as a library"])
def test_shared_memory_that_runs_out_ends_the_process(
    way: str, demo_dir: Path, small_weights: Path, forks: Forks, tmp_path: Path
) -> None:
    """As in a container with the usual 64 MB of it. Workers that still wait for work must not be waited for."""
    command = _extraction(demo_dir, small_weights, tmp_path / "out", "--workers", "2")
    call = [__name__, "extract_without_shared_memory", way, *command]
    done = forks.run(tmp_path / "log", call=call, to_the_end=True)
    told = "the decoding processes ran out of shared memory"
    assert f"rror: {told}" in done["log"]
    assert "pass --workers 0" in done["log"]
    assert (done["code"], "Traceback" in done["log"]) == ((2, False) if way == "as a command" else (1, True))
    assert not done["workers_left"]


class _Unsendable:
    def __reduce__(self) -> tuple[Any, ...]:
        raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.usefixtures("handler_of_dead_children")
def test_a_batch_that_cannot_be_sent_ends_the_run(
    demo_dir: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "content_digest", lambda content: _Unsendable())
    monkeypatch.setattr(InferenceNetwork, "__call__", _given_outputs)
    done = _extract(demo_dir, small_weights, tmp_path, "--workers", "1")
    assert done.exit_code == 2
    assert "error: a decoding process was killed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_stream_without_reader_falls_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as file:
        stream = LastingStream(file)
        for _ in range(3):
            assert stream.write("line\n") == 5
        stream.flush()
    kept = StringIO()
    assert LastingStream(kept).write("text") == 4
    assert kept.getvalue() == "text"


def test_the_end_of_a_run_on_a_broken_disk_tells_the_first_failure(
    demo_dir: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json cannot be written any more either: that must not bury the message."""

    def fail(*arguments: object) -> None:
        def refuse(path: Path, *args: object, **options: object) -> int:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(Path, "write_text", refuse)
        raise MemoryError

    monkeypatch.setattr(InferenceNetwork, "__call__", fail)
    done = _extract(demo_dir, small_weights, tmp_path)
    assert done.exit_code == 2
    assert "error: the machine's memory ran out; lower --batch-size (now 4)" in done.stderr
    assert f"warning: {tmp_path / 'run.json'}: Read-only file system; " in done.stderr
    assert "the record of this run still says that it is running" in done.stderr
    assert read_json_object(tmp_path / "run.json")["status"] == "running"
    assert not list(tmp_path.glob(".*"))
