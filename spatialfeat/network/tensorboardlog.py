"""The history as TensorBoard scalars, where TensorBoard is installed (`pip install spatialfeat[tensorboard]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spatialfeat.network.history import EpochRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

TENSORBOARD_NAME = "tensorboard"


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed. Does not import it, which takes a second."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardLog:
    """Scalars per epoch in `out_dir/tensorboard/`: one chart for the losses, one for the accuracies, one for the rate.

    Does nothing where TensorBoard is not installed.
    """

    def __init__(self, out_dir: Path) -> None:
        self._folder = out_dir / TENSORBOARD_NAME
        self._writer: SummaryWriter | None = None

    def add(self, record: EpochRecord) -> None:
        """Log one epoch and flush it to the file."""
        if not has_tensorboard():
            return
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            # Tells a TensorBoard that is open on this folder to forget what it has read of epochs logged again.
            self._writer = SummaryWriter(str(self._folder), purge_step=record.epoch)
        for tag, value in (
            ("loss/train", record.train_loss),
            ("loss/validation", record.val_loss),
            ("accuracy/train", record.train_acc),
            ("accuracy/validation", record.val_acc),
            ("learning rate", record.lr),
        ):
            self._writer.add_scalar(tag, value, record.epoch)
        self._writer.flush()

    def restart(self, history: Sequence[EpochRecord]) -> None:
        """Log all epochs of a resumed study again: a kill can have come between an epoch and its log."""
        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        for record in history:
            self.add(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
