"""`run.json`: how an output folder came to be."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from spatialfeat.errors import SpatialfeatError, translate_os_errors
from spatialfeat.files import (
    file_sha256,
    move_into,
    prepare_output_dir,
    read_json_object,
    working_folder,
    write_json,
)
from spatialfeat.signals import is_interruption

RUN_SCHEMA = 1
RECORD_NAME = "run.json"
LEFT_OUT = "left out (--pseudonymize)"

logger = logging.getLogger(__name__)


class RunRecord:
    """Collects facts during a run and writes them to `out_dir/run.json`, at the start and again at the end.

    Used as a context: leaving it by an exception records "interrupted" (by a signal) or "failed". A record whose
    `status` still says "running" belongs to a run that is going on, or was killed.
    """

    def __init__(
        self,
        out_dir: Path,
        command: str,
        config: Any,
        data: Iterable[Path],
        *,
        private: bool = False,
        file_name: str = RECORD_NAME,
        **facts: Any,
    ) -> None:
        """private: leave out what could reveal a patient's real id: paths, hashes of CSVs, reasons of failure.

        file_name: another one than run.json for runs that share a folder.
        """
        self._private = private
        options = recorded_options(config)
        if private:
            options = {name: LEFT_OUT if isinstance(value, str | list) else value for name, value in options.items()}
        self._path = out_dir / file_name
        self._start = time.monotonic()
        self._content: dict[str, Any] = {
            "schema": RUN_SCHEMA,
            "status": "running",
            "command": command,
            "command_line": LEFT_OUT if private else shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "options": options,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": library_versions(),
            "data_sha256": {} if private else {str(path): file_sha256(path) for path in data},
            **facts,
        }
        write_json(self._path, self._content)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            if is_interruption(error):
                self.finish("interrupted")
            else:
                self.finish("failed", error=LEFT_OUT if self._private else str(error))
        except (OSError, SpatialfeatError) as second:
            # On a full disk the record cannot be written either; the first failure is the one to report.
            logger.warning("%s; the record of this run still says that it is running", second)

    def finish(self, status: str = "complete", **facts: Any) -> None:
        """Add the last facts and the run's seconds, and write the record again."""
        self._content |= {"status": status, "seconds": round(time.monotonic() - self._start, 3), **facts}
        write_json(self._path, self._content)


@contextmanager
def results_folder(out_dir: Path, command: str, patterns: Iterable[str]) -> Iterator[Path]:
    """A hidden folder for the results; they move to `out_dir` when all are there, so a failure leaves earlier ones.

    Of a failed run only the record moves, and only where there is none of a complete run.

    Args:
        command: as in its record. patterns: what it leaves in `out_dir`; what an earlier run left is removed.
    """
    prepare_output_dir(out_dir)
    with working_folder(out_dir / f".{command}.partial", out_dir) as results_dir, translate_os_errors(out_dir):
        earlier = read_json_object(out_dir / RECORD_NAME)
        try:
            yield results_dir
        except BaseException:
            if (results_dir / RECORD_NAME).exists() and earlier.get("status") != "complete":
                (results_dir / RECORD_NAME).replace(out_dir / RECORD_NAME)
            raise
        if earlier.get("command") == command:
            # Pictures of other videos or sets would look like those of this run.
            for path in (path for pattern in patterns for path in out_dir.glob(pattern)):
                path.unlink()
        move_into(results_dir, out_dir, last=RECORD_NAME)


def earlier_sessions(out_dir: Path) -> dict[str, Any]:
    """For the record of a resumed run: when and how the runs before it went, as the present record says.

    A session whose status is "running" was killed; it has no seconds.
    """
    record = read_json_object(out_dir / RECORD_NAME)
    if not record:
        return {}
    session = {name: record[name] for name in ("started", "status", "seconds", "device", "workers") if name in record}
    return {"earlier_sessions": [*record.get("earlier_sessions", []), session]}


def library_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    import numpy as np
    import PIL
    import torch
    import torchvision

    from spatialfeat import __version__

    return {
        "spatialfeat": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # A subclass of str, which `training_state.pt` would refuse.
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "h5py": metadata.version("h5py"),
    }


def recorded_options(config: Any) -> dict[str, Any]:
    """Every option of a command's config dataclass as JSON holds it."""
    assert is_dataclass(config)
    return {name: _json_ready(value) for name, value in asdict(config).items()}  # type: ignore[arg-type]


def _json_ready(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_json_ready(item) for item in value] if isinstance(value, tuple) else value
