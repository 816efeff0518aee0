"""`run.json`: how an output folder came to be."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from spatialfeat.files import file_sha256, write_json
from spatialfeat.runtime import library_versions

RUN_SCHEMA = 1
LEFT_OUT = "left out (--pseudonymize)"


class RunRecord:
    """Collects facts during a run and writes them to `out_dir/run.json`, at the start and again at the end.

    Used as a context: leaving it by an exception records "interrupted" (Ctrl-C) or "failed". A record whose `status`
    still says "running" belongs to a run that is going on, or was killed.
    """

    def __init__(
        self, out_dir: Path, command: str, config: Any, data: Iterable[Path], *, private: bool = False, **facts: Any
    ) -> None:
        """private: leave out what could tell a patient's real id: paths, hashes of CSVs, reasons of failure."""
        assert is_dataclass(config)
        self._private = private
        options = {name: _json_ready(value) for name, value in asdict(config).items()}  # type: ignore[arg-type]
        if private:
            options = {name: LEFT_OUT if isinstance(value, str | list) else value for name, value in options.items()}
        self._path = out_dir / "run.json"
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
        if isinstance(error, KeyboardInterrupt):
            self.finish("interrupted")
        elif error is not None:
            self.finish("failed", error=LEFT_OUT if self._private else str(error))

    def finish(self, status: str = "complete", **facts: Any) -> None:
        """Add the last facts and the run's seconds, and write the record again."""
        self._content |= {"status": status, "seconds": round(time.monotonic() - self._start, 3), **facts}
        write_json(self._path, self._content)


def _json_ready(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
