"""`spatialfeat export`: feature files in the layout that a temporal model reads."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from spatialfeat.config import ExportConfig
from spatialfeat.console import frame_bar
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.mstcn import MsTcnExport
from spatialfeat.exports.plain import CsvExport, Hdf5Export, NpyExport
from spatialfeat.exports.source import ExportJob, open_source, read_back
from spatialfeat.exports.tecno import TecnoExport
from spatialfeat.files import atomic_folder, atomic_path, require_room
from spatialfeat.formats import FORMATS, ExportFormat

logger = logging.getLogger(__name__)

# A new format: describe it in `exportformats`, write its ExportJob in a module of its own, name it here.
EXPORTERS: dict[str, type[ExportJob]] = {
    "ms-tcn": MsTcnExport,
    "tecno": TecnoExport,
    "npy": NpyExport,
    "hdf5": Hdf5Export,
    "csv": CsvExport,
}


@dataclass(frozen=True)
class ExportResult:
    """What was written to `out`: `tree` and `notices` are lines of text, `next_step` is what to do with it."""

    out: Path
    num_videos: int
    num_frames: int
    tree: list[str]
    notices: list[str]
    next_step: str


def export(config: ExportConfig) -> ExportResult:
    """Write `config.out` from the feature files of `config.features_dir`, whole or not at all.

    Videos are read one after the other, so memory does not grow with their number.

    Raises:
        SpatialfeatError: anything that the user can mend, before the first feature is read where possible.
    """
    try:
        result = _export(config, FORMATS[config.format])
    except OSError as error:
        raise SpatialfeatError(
            f"OUT {config.out}: cannot be written ({_reason(error)}); nothing is kept: "
            "choose a place that you may write to, with enough room"
        ) from error
    _report(result)
    return result


def _export(config: ExportConfig, form: ExportFormat) -> ExportResult:
    out = _check_place(config, form)
    source = open_source(config)
    job = EXPORTERS[form.name](source, config)
    notices = [*source.notices, *job.notices]
    for notice in notices:
        logger.info("note: %s", notice)
    # HDF5 moreover crashes at exit after writing to a full disk.
    require_room(config.out, job.num_frames * job.bytes_per_frame, "the export takes", "OUT")
    with _place(out, form) as target:
        with frame_bar(job.num_frames, f"export {form.name}") as bar:
            job.write(target, bar.advance)
        read_back(job, target)
    return ExportResult(config.out, len(job.videos), job.num_frames, job.tree(), notices, job.next_step())


def _check_place(config: ExportConfig, form: ExportFormat) -> Path:
    """OUT as an absolute path, once it is sure that nothing there would be harmed."""
    out, features_dir = config.out.resolve(), config.features_dir.resolve()
    if out == features_dir or features_dir in out.parents:
        raise SpatialfeatError(
            f"OUT {config.out}: lies in the folder of the feature files, {config.features_dir}; "
            "choose a place outside, so that exports and features stay apart"
        )
    if form.suffixes:
        if out.suffix not in form.suffixes:
            raise SpatialfeatError(
                f"OUT {config.out}: {form.name} writes one file; name it with {' or '.join(form.suffixes)}, "
                f"e.g. {config.out / ('features' + form.suffixes[0])}"
            )
        if out.exists():
            raise SpatialfeatError(f"OUT {config.out}: exists already; remove it or choose another name")
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise SpatialfeatError(f"OUT {config.out}: {what}; remove it or choose another folder")
    return out


def _place(out: Path, form: ExportFormat) -> AbstractContextManager[Path]:
    if not form.suffixes:
        return atomic_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return atomic_path(out)


def _reason(error: OSError) -> str:
    # h5py puts a whole report into the text of the error; its number tells the same in a few words.
    reason = os.strerror(error.errno) if error.errno else str(error)
    return reason if error.filename is None else f"{reason}: {error.filename}"


def _report(result: ExportResult) -> None:
    logger.info("%d videos, %d frames:", result.num_videos, result.num_frames)
    logger.info("%s", result.out)
    for line in result.tree:
        logger.info("  %s", line)
    logger.info("Next:\n%s", result.next_step)
