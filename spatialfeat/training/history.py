"""What happened in each epoch: the record, and what follows from it (the best epoch, the end of training).

It is written as history.csv, as curves, and for TensorBoard where that is installed (`pip install
spatialfeat[tensorboard]`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from spatialfeat.config import FinetuneConfig
from spatialfeat.console import count_text
from spatialfeat.errors import SpatialfeatError
from spatialfeat.files import write_csv
from spatialfeat.reports.plots import save_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


EXPLODED = 100
"""A validation loss of so many times that of chance is no matter of bad luck."""


class EpochRecord(NamedTuple):
    """One line of history.csv. Accuracies are fractions 0..1; lr is the rate the epoch was trained with."""

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    lr: float
    seconds: float


def best_epoch(history: Sequence[EpochRecord]) -> int:
    """The epoch with the best validation accuracy, whose weights are kept: of equal ones the earliest."""
    return max(history, key=lambda record: record.val_acc).epoch


def stopped_early(history: Sequence[EpochRecord], patience: int) -> bool:
    """Whether training has gone on for `patience` epochs without a better validation accuracy."""
    return bool(history) and len(history) - best_epoch(history) >= patience


def is_trained(history: Sequence[EpochRecord], config: FinetuneConfig) -> bool:
    """Whether training has come to its end: the last epoch, or early stopping."""
    return len(history) >= config.epochs or stopped_early(history, config.patience)


def write_history(out_dir: Path, history: Sequence[EpochRecord]) -> None:
    """Write history.csv and the curves of loss and accuracy, as PNG and SVG, replacing those of the epoch before."""
    frame = pd.DataFrame(list(history))
    write_csv(out_dir / "history.csv", frame)
    for quantity, train, val in (("loss", "train_loss", "val_loss"), ("accuracy", "train_acc", "val_acc")):
        save_curves(
            out_dir / f"{quantity}_curves.png",
            quantity=quantity,
            train=frame[train].tolist(),
            val=frame[val].tolist(),
            best_epoch=best_epoch(history),
        )


def read_history(out_dir: Path) -> tuple[EpochRecord, ...]:
    """The records that `write_history` wrote, digit for digit."""
    path = out_dir / "history.csv"
    try:
        frame = pd.read_csv(path, usecols=list(EpochRecord._fields), float_precision="round_trip")
    except (OSError, ValueError) as error:
        raise SpatialfeatError(f"{path}: cannot be read ({error}); restore it, or train again") from error
    return tuple(EpochRecord(*row) for row in frame[list(EpochRecord._fields)].itertuples(index=False))


def explosion(history: Sequence[EpochRecord], num_phases: int) -> str | None:
    """A warning, if a validation loss is far above log C, that of a network that knows nothing: training diverged."""
    chance = math.log(num_phases)
    wild = [record for record in history if record.val_loss > EXPLODED * chance]
    if not wild:
        return None
    worst = max(wild, key=lambda record: record.val_loss)
    return (
        f"the validation loss rose to {worst.val_loss:.4g} in epoch {worst.epoch} (in {count_text(len(wild), 'epoch')} "
        f"of {len(history)} above {EXPLODED} times {chance:.2f}, that of chance): training exploded, and the scores "
        "say little about the data; see loss_curves.png, and train again with a lower --lr or with --clip-grad-norm 1"
    )


def epoch_line(history: Sequence[EpochRecord], epochs: int) -> str:
    """The line that a person sees after the last epoch of `history`."""
    record = history[-1]
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {record.train_loss:.4f} acc {record.train_acc:.4f}  "
        f"val loss {record.val_loss:.4f} acc {record.val_acc:.4f}  "
        f"lr {record.lr:.2g}  {record.seconds:.1f} s{'  best so far' if best_epoch(history) == record.epoch else ''}"
    )


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

            # A TensorBoard that is open on this folder then forgets what it has read of epochs logged again.
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
