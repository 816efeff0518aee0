"""The files that training leaves. All of them are written here, so that of several processes one can do it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spatialfeat.config import WEIGHTS_NAME, FinetuneConfig, default_phase_names
from spatialfeat.data.transforms import Preprocessing
from spatialfeat.network.checkpoint import save_weights
from spatialfeat.network.history import EpochRecord, write_history
from spatialfeat.network.tensorboardlog import TENSORBOARD_NAME, TensorBoardLog
from spatialfeat.network.training import EarlyStopping
from spatialfeat.network.trainingstate import STATE_NAME, TrainingState, write_state
from spatialfeat.network.weightsdescription import description_path
from spatialfeat.signals import signals_held

TRAINING_NAMES = (
    STATE_NAME,
    WEIGHTS_NAME,
    str(description_path(Path(WEIGHTS_NAME))),
    "history.csv",
    "loss_curves.png",
    "accuracy_curves.png",
    TENSORBOARD_NAME,
)
"""What `StudyFiles` writes. The state comes first: moved aside, it takes with it the claim that a study is here."""


class StudyFiles:
    """Writes the files of a study, epoch by epoch. To be closed, for TensorBoard's sake."""

    def __init__(self, config: FinetuneConfig) -> None:
        self._config = config
        self.weights_path = config.out_dir / WEIGHTS_NAME
        self.epochs_saved = 0
        self._tensorboard = TensorBoardLog(config.out_dir) if config.tensorboard else None

    def save_epoch(self, state: TrainingState) -> None:
        """Write all files of the last epoch of `state`.

        The state goes first. A process that is killed anywhere in here has either not ended this epoch, or can make
        all that is missing from the state. A signal waits until all are written.
        """
        with signals_held():
            write_state(self._config.out_dir / STATE_NAME, state)
            self.epochs_saved = len(state.history)
            best = _best(state.history)
            if best.epoch == len(state.history):
                self._write_weights(state, best)
            write_history(self._config.out_dir, state.history, best.epoch)
            if self._tensorboard is not None:
                self._tensorboard.add(state.history[-1])

    def restore(self, state: TrainingState) -> None:
        """Make every file fit `state` again, whatever an interrupted run has left of them."""
        self.epochs_saved = len(state.history)
        best = _best(state.history)
        with signals_held():
            self._write_weights(state, best)
            write_history(self._config.out_dir, state.history, best.epoch)
            if self._tensorboard is not None:
                self._tensorboard.restart(state.history)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write_weights(self, state: TrainingState, best: EpochRecord) -> None:
        config = self._config
        training: dict[str, Any] = {
            "epoch": best.epoch,
            "val_accuracy": best.val_acc,
            "initial_weights": config.weights,
            "freeze_until": config.freeze_until,
            "class_weights": config.class_weights,
            "label_smoothing": config.label_smoothing,
            "clip_grad_norm": config.clip_grad_norm,
            "precision": config.precision,
            "seed": config.seed,
        }
        save_weights(
            self.weights_path,
            state.best_weights,
            phase_names=config.phase_names or default_phase_names(config.num_classes),
            preprocessing=Preprocessing.for_image_size(config.image_size_px),
            training=training,
        )


def _best(history: tuple[EpochRecord, ...]) -> EpochRecord:
    """The epoch whose weights are kept. It does not depend on the patience."""
    return history[EarlyStopping.after(history, patience=len(history)).best_epoch - 1]
