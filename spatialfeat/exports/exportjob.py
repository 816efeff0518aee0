"""What every export format provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from spatialfeat.config import ExportConfig
from spatialfeat.errors import SpatialfeatError
from spatialfeat.exports.exportsource import ExportSource, ExportVideo, name_some

Advance = Callable[[int], None]
"""Called with the number of frames written since the last call."""


class ExportJob(ABC):
    """One export: the constructor makes every check, `write` writes, `verify` reads back what was written.

    Attributes:
        videos: those that are written; a subclass may leave some out.
        notices: what the user should know, beyond the notices of the source.
    """

    def __init__(self, source: ExportSource, config: ExportConfig) -> None:
        """Raises SpatialfeatError for anything that the format cannot express."""
        self.source = source
        self.config = config
        self.videos: list[ExportVideo] = [video for video in source.videos if video.num_frames]
        self.notices: list[str] = []
        if len(self.videos) < len(source.videos):
            empty = name_some(video.video_id for video in source.videos if not video.num_frames)
            self.notices.append(f"videos left out, because no frame of them has a label: {empty}")

    @property
    def num_frames(self) -> int:
        return sum(video.num_frames for video in self.videos)

    @property
    def bytes_per_frame(self) -> int:
        """About what a frame takes on disk: features, logits, and a little for ids and labels."""
        recipe, file = self.source.recipe, self.source.videos[0].file
        return 4 * (file.num_channels + len(recipe.phase_names)) + 128

    @abstractmethod
    def write(self, target: Path, advance: Advance) -> None:
        """Write everything to `target`, an empty folder or the name of a new file."""

    @abstractmethod
    def verify(self, target: Path) -> list[str]:
        """Read `target` back. Returns one sentence for each thing that is wrong."""

    @abstractmethod
    def tree(self) -> list[str]:
        """What was written, one line per file or group of files, with counts."""

    @abstractmethod
    def next_step(self) -> str:
        """What to do with it: the command of the temporal model, or the lines that read it."""

    def per_split(self) -> dict[str, list[ExportVideo]]:
        """The videos of each split: train, val and test first, in numeric order within each."""
        usual = [split for split in ("train", "val", "test") if any(video.split == split for video in self.videos)]
        others = sorted({video.split for video in self.videos} - set(usual))
        return {split: [v for v in self.videos if v.split == split] for split in usual + others}


def read_back(job: ExportJob, target: Path) -> None:
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
