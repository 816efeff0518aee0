"""`spatialfeat finetune`: the spatial study. Trains a ResNet-50, keeps the weights of the best validation accuracy."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from spatialfeat.checkpoint import (
    default_phase_names,
    description_path,
    initial_model,
    load_checkpoint,
    save_checkpoint,
)
from spatialfeat.config import PREDICTIONS_NAME, TEST_CSV, WEIGHTS_NAME, FinetuneConfig
from spatialfeat.dataset import EpochSampler, FrameDataset, make_loader
from spatialfeat.evaluationinput import evaluated_videos
from spatialfeat.files import prepare_output_dir, write_atomically
from spatialfeat.framecheck import require_images
from spatialfeat.frames import FrameTable, read_frames
from spatialfeat.model import PhaseResNet50, freeze
from spatialfeat.pictures import confusion_title
from spatialfeat.plots import save_confusion_matrix, save_curves
from spatialfeat.prediction import as_set, predict_frames, write_predictions_csv
from spatialfeat.runrecord import RunRecord
from spatialfeat.runtime import choose_workers, describe_device, seed_everything, select_device, use_true_float32
from spatialfeat.scorefiles import score, write_scores
from spatialfeat.scoretables import score_tables
from spatialfeat.training import EarlyStopping, train_one_epoch, validate
from spatialfeat.transforms import Preprocessing, evaluation_transform, training_transform
from spatialfeat.videos import shared_patients

logger = logging.getLogger(__name__)


class EpochRecord(NamedTuple):
    """One line of history.csv. Accuracies are fractions 0..1; lr is the rate the epoch was trained with."""

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class StudyData:
    """The tables of one study; `test` is None when there is no test CSV."""

    train: FrameTable
    val: FrameTable
    test: FrameTable | None

    @property
    def tables(self) -> list[FrameTable]:
        return [table for table in (self.train, self.val, self.test) if table is not None]


@dataclass(frozen=True)
class FinetuneResult:
    """What training leaves: the history, the epoch whose weights were kept, and the test metrics if there were any."""

    weights_path: Path
    history: tuple[EpochRecord, ...]
    best_epoch: int
    test_metrics: dict[str, Any] | None


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Run the whole study and write its files to `config.out_dir`.

    Raises:
        SpatialfeatError: anything that the user can mend, before training starts where possible.
    """
    data = read_study(config)
    prepare_output_dir(config.out_dir)
    device = select_device(config.device)
    use_true_float32()
    seed_everything(config.seed)
    model = initial_model(config.weights, config.num_classes, reset_classifier=config.reset_classifier)
    require_images(data.tables)  # Last of the checks: it takes seconds, the others do not.
    workers = choose_workers(config.workers, device)
    _announce(config, data, device, workers)
    record = RunRecord(
        config.out_dir,
        "finetune",
        config,
        [table.source for table in data.tables],
        device=describe_device(device),
        workers=workers,
    )

    study = _Study(config, data, model.to(device), device, workers)
    _set_earlier_weights_aside(study.weights_path)
    history, best_epoch = study.train()
    logger.info("kept the weights of epoch %d: %s", best_epoch, study.weights_path)
    test_metrics = study.test(data.test) if data.test is not None else None
    facts = {} if test_metrics is None else {"test": test_metrics["pooled"]}
    record.finish(best_epoch=best_epoch, best_val_acc=history[best_epoch - 1].val_acc, epochs=len(history), **facts)
    return FinetuneResult(study.weights_path, tuple(history), best_epoch, test_metrics)


def read_study(config: FinetuneConfig) -> StudyData:
    """Read the CSVs, and warn of patients that occur in more than one of them."""
    test_csv = config.test_csv
    if test_csv is None and not TEST_CSV.exists():
        logger.info("no %s here: training without a test at the end", TEST_CSV)
    elif test_csv is None:
        test_csv = TEST_CSV

    def read(path: Path, split: str) -> FrameTable:
        return read_frames(path, config.img_dir, split=split, num_classes=config.num_classes)

    data = StudyData(
        read(config.train_csv, "train"), read(config.val_csv, "val"), read(test_csv, "test") if test_csv else None
    )
    for patient, splits in shared_patients(data.tables).items():
        logger.warning("patient %s is in %s: scores on these frames will be too good", patient, " and ".join(splits))
    return data


class _Study:
    """The moving parts of one training: loaders, optimizer, schedule."""

    def __init__(
        self, config: FinetuneConfig, data: StudyData, model: PhaseResNet50, device: torch.device, workers: int
    ) -> None:
        self._config, self._model, self._device, self._workers = config, model, device, workers
        self.weights_path = config.out_dir / WEIGHTS_NAME
        self._phase_names = config.phase_names or default_phase_names(config.num_classes)
        self._preprocessing = Preprocessing.for_image_size(config.image_size_px)
        self._sampler = EpochSampler(len(data.train), config.seed)
        self._train_loader = self._loader(
            FrameDataset.from_table(data.train, training_transform(self._preprocessing)), self._sampler
        )
        self._val_loader = self._loader(FrameDataset.from_table(data.val, evaluation_transform(self._preprocessing)))
        freeze(model, config.freeze_until)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=config.lr)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="max", factor=config.lr_factor, patience=config.lr_patience
        )

    def train(self) -> tuple[list[EpochRecord], int]:
        """Train until the last epoch or until validation accuracy stops improving. Returns history and best epoch."""
        stopping = EarlyStopping(self._config.patience)
        history: list[EpochRecord] = []
        for epoch in range(1, self._config.epochs + 1):
            record = self._run_epoch(epoch)
            history.append(record)
            self._scheduler.step(record.val_acc)
            is_best = stopping.update(epoch, record.val_acc)
            if is_best:
                # Written to disk at once: a reference to the live weights would silently become the last epoch's.
                self._save(record)
            _write_history(self._config.out_dir, history, stopping.best_epoch)
            logger.info("%s", _epoch_line(record, self._config.epochs, is_best))
            if stopping.should_stop:
                logger.info("stopping early: no better validation accuracy for %d epochs", self._config.patience)
                break
        return history, stopping.best_epoch

    def test(self, table: FrameTable) -> dict[str, Any]:
        """Score the saved weights, read back from their file, on the test frames."""
        checkpoint = load_checkpoint(self.weights_path)
        predictions = predict_frames(
            checkpoint.model,
            table,
            checkpoint.preprocessing,
            device=self._device,
            batch_size=self._config.batch_size,
            workers=self._workers,
            title="test",
        )
        out_dir = self._config.out_dir
        write_predictions_csv(out_dir / PREDICTIONS_NAME, predictions)
        evaluation = score("test", evaluated_videos(as_set(table, predictions), "video"), checkpoint.phase_names)
        write_scores(out_dir, evaluation)
        counts = np.asarray(evaluation.metrics["confusion_matrix"], dtype=np.int64)
        title = confusion_title(evaluation)
        save_confusion_matrix(out_dir / "confusion_matrix.png", counts, checkpoint.phase_names, title)
        logger.info("\n%s\n", score_tables(evaluation))
        return evaluation.metrics

    def _run_epoch(self, epoch: int) -> EpochRecord:
        start = time.monotonic()
        lr = float(self._optimizer.param_groups[0]["lr"])
        self._sampler.epoch = epoch
        title = f"epoch {epoch}/{self._config.epochs}"
        train = train_one_epoch(
            self._model,
            self._train_loader,
            self._optimizer,
            freeze_until=self._config.freeze_until,
            title=f"{title} train",
            device=self._device,
            preprocessing=self._preprocessing,
        )
        val = validate(
            self._model,
            self._val_loader,
            device=self._device,
            preprocessing=self._preprocessing,
            title=f"{title} val",
        )
        seconds = round(time.monotonic() - start, 3)
        return EpochRecord(epoch, train.loss, train.accuracy, val.loss, val.accuracy, lr, seconds)

    def _save(self, record: EpochRecord) -> None:
        save_checkpoint(
            self.weights_path,
            self._model,
            phase_names=self._phase_names,
            preprocessing=self._preprocessing,
            training={
                "epoch": record.epoch,
                "val_accuracy": record.val_acc,
                "initial_weights": self._config.weights,
                "freeze_until": self._config.freeze_until,
                "seed": self._config.seed,
            },
        )

    def _loader(self, dataset: FrameDataset, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        return make_loader(
            dataset,
            batch_size=self._config.batch_size,
            workers=self._workers,
            device=self._device,
            sampler=sampler,
        )


def _announce(config: FinetuneConfig, data: StudyData, device: torch.device, workers: int) -> None:
    frames = ", ".join(f"{len(table)} {table.split}" for table in data.tables)
    logger.info("fine-tuning a ResNet-50 on %s frames, %d phases", frames, config.num_classes)
    logger.info("device: %s, %d decoding workers, seed %d", describe_device(device), workers, config.seed)
    start = "ImageNet (IMAGENET1K_V1)" if config.weights == "imagenet" else config.weights
    logger.info("starting from %s weights, first %d children frozen", start, config.freeze_until)
    if config.weights == "random" and config.freeze_until:
        logger.warning(
            "random weights with %d frozen children: the frozen part stays random; pass --freeze-until 0 to train it",
            config.freeze_until,
        )


def _set_earlier_weights_aside(weights_path: Path) -> None:
    """Rename weights of an earlier run: a night of training is not overwritten by the first epoch of another."""
    if not weights_path.exists():
        return
    number = 1
    while (aside_path := weights_path.with_name(f"{weights_path.stem}.previous{number}{weights_path.suffix}")).exists():
        number += 1
    weights_path.replace(aside_path)
    if description_path(weights_path).exists():
        description_path(weights_path).replace(description_path(aside_path))
    logger.info("weights of an earlier run are now %s", aside_path)


def _write_history(out_dir: Path, history: list[EpochRecord], best_epoch: int) -> None:
    frame = pd.DataFrame(history)
    write_atomically(out_dir / "history.csv", lambda path: frame.to_csv(path, index=False, lineterminator="\n"))
    for quantity, train, val in (("loss", "train_loss", "val_loss"), ("accuracy", "train_acc", "val_acc")):
        save_curves(
            out_dir / f"{quantity}_curves.png",
            quantity=quantity,
            train=frame[train].tolist(),
            val=frame[val].tolist(),
            best_epoch=best_epoch,
        )


def _epoch_line(record: EpochRecord, epochs: int, is_best: bool) -> str:
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {record.train_loss:.4f} acc {record.train_acc:.4f}  "
        f"val loss {record.val_loss:.4f} acc {record.val_acc:.4f}  "
        f"lr {record.lr:.2g}  {record.seconds:.1f} s{'  best so far' if is_best else ''}"
    )
