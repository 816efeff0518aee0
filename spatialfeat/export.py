"""`spatialfeat export`: feature files in the layout that a temporal model reads."""

from __future__ import annotations

import logging
import os
import pkgutil
from pathlib import Path

from spatialfeat.config import ExportConfig
from spatialfeat.console import count_text, frame_bar, show_results
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.source import ExportJob, open_videos
from spatialfeat.files import atomic_folder, atomic_path, require_new_folder, require_room
from spatialfeat.formats import FORMATS, ExportFormat

logger = logging.getLogger(__name__)


def export(config: ExportConfig) -> ExportJob:
    """Write `config.out` from the feature files of `config.features_dir`, whole or not at all.

    Videos are read one after the other, so memory does not grow with their number.

    Raises:
        SpatialfeatError: anything that the user can fix, before the first feature is read where possible.
    """
    form = FORMATS[config.format]
    try:
        out = _check_place(config, form)
        job = job_class(form)(config, *open_videos(config))
        for notice in job.notices:
            logger.info("note: %s", notice)
        for warning in job.warnings:
            logger.warning(warning)
        # HDF5 moreover crashes at exit after writing to a full disk.
        require_room(config.out, job.num_frames * job.bytes_per_frame, "the export takes", "OUT")
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) if form.suffixes else atomic_folder(out) as target:
            with frame_bar(job.num_frames, f"export {form.name}") as advance:
                job.write(target, advance)
            _read_back(job, target)
    except OSError as error:
        # h5py puts a whole report into the text of the error; its number says the same in a few words.
        reason = os.strerror(error.errno) if error.errno else str(error)
        where = "" if error.filename is None else f": {error.filename}"
        raise SpatialfeatError(
            f"OUT {config.out}: cannot be written ({reason}{where}); nothing is kept: "
            "choose a place that you may write to, with enough room"
        ) from error
    logger.info("%s, %s:", count_text(len(job.videos), "video"), count_text(job.num_frames, "frame"))
    show_results(config.out, job.tree(), [job.next_step()])
    return job


def job_class(form: ExportFormat) -> type[ExportJob]:
    """The class that writes the format, imported when it is needed."""
    found: type[ExportJob] = pkgutil.resolve_name(form.job)
    return found


def _check_place(config: ExportConfig, form: ExportFormat) -> Path:
    """OUT as an absolute path, once it is sure that nothing there would be harmed."""
    out, features_dir = config.out.resolve(), config.features_dir.resolve()
    if out == features_dir or features_dir in out.parents:
        raise SpatialfeatError(
            f"OUT {config.out}: lies in the folder of the feature files, {config.features_dir}; "
            "choose a place outside, so that exports and features stay apart"
        )
    if form.suffixes and out.suffix not in form.suffixes:
        raise SpatialfeatError(
            f"OUT {config.out}: {form.name} writes one file; name it with {' or '.join(form.suffixes)}, "
            f"e.g. {config.out / ('features' + form.suffixes[0])}"
        )
    if form.suffixes and out.exists():
        raise SpatialfeatError(f"OUT {config.out}: exists already; remove it or choose another name")
    if not form.suffixes:
        require_new_folder(config.out)
    return out


def _read_back(job: ExportJob, target: Path) -> None:
    """Raise SpatialfeatError if a finished export does not hold what it should: this program's fault, or the disk's."""
    try:
        problems = job.verify(target)
    except (OSError, ValueError, EOFError) as error:
        problems = [f"it cannot be read ({error})"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpatialfeatError(
            f"the export was written, but reading it back found: {problems[0]}{more}; nothing is kept: check the disk, "
            "try again, and report it if it stays"
        )
