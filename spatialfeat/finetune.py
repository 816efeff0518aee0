"""`spatialfeat finetune`: the spatial study. Trains a ResNet-50, keeps the weights of the best validation accuracy."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from spatialfeat.config import PREDICTIONS_NAME, WEIGHTS_NAME, FinetuneConfig, default_phase_names
from spatialfeat.data.dataset import EpochSampler, FrameDataset, make_loader
from spatialfeat.data.framecheck import require_images
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.studydata import StudyData, read_study
from spatialfeat.data.transforms import Preprocessing, evaluation_transform, training_transform
from spatialfeat.evaluating.evaluationinput import evaluated_videos
from spatialfeat.evaluating.scorefiles import score, write_scores
from spatialfeat.evaluating.scoretables import score_tables
from spatialfeat.files import move_aside, prepare_output_dir
from spatialfeat.network.checkpoint import (
    description_path,
    initial_model,
    load_checkpoint,
    save_checkpoint,
)
from spatialfeat.network.history import EpochRecord, epoch_line, write_history
from spatialfeat.network.model import PhaseResNet50, freeze
from spatialfeat.network.prediction import as_set, predict_frames, write_predictions_csv
from spatialfeat.network.training import EarlyStopping, train_one_epoch, validate
from spatialfeat.reporting.pictures import confusion_title
from spatialfeat.reporting.plots import save_confusion_matrix
from spatialfeat.runrecord import RunRecord
from spatialfeat.runtime import choose_workers, describe_device, seed_everything, select_device, use_true_float32
from spatialfeat.wording import count_text

RESULT_NAMES = (
    WEIGHTS_NAME,
    str(description_path(Path(WEIGHTS_NAME))),
    "history.csv",
    "loss_curves.png",
    "accuracy_curves.png",
    PREDICTIONS_NAME,
    "metrics.json",
    "per_video.csv",
    "per_phase.csv",
    "confusion_matrix.png",
    "confusion_matrix.svg",
    "run.json",
)
"""What a study leaves in its folder. Results of an earlier study there are moved aside as a whole."""

logger = logging.getLogger(__name__)


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
    move_aside(config.out_dir, RESULT_NAMES)
    with RunRecord(
        config.out_dir,
        "finetune",
        config,
        [table.source for table in data.tables],
        device=describe_device(device),
        workers=workers,
    ) as record:
        study = _Study(config, data, model.to(device), device, workers)
        history, best_epoch = study.train()
        logger.info("kept the weights of epoch %d: %s", best_epoch, study.weights_path)
        test_metrics = study.test(data.test) if data.test is not None else None
        facts = {} if test_metrics is None else {"test": test_metrics["pooled"]}
        record.finish(best_epoch=best_epoch, best_val_acc=history[best_epoch - 1].val_acc, epochs=len(history), **facts)
    return FinetuneResult(study.weights_path, tuple(history), best_epoch, test_metrics)


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
            try:
                record = self._run_epoch(epoch)
            except KeyboardInterrupt:
                if stopping.best_epoch:
                    logger.info("stopped in epoch %d; epoch %d's weights are kept", epoch, stopping.best_epoch)
                raise
            history.append(record)
            self._scheduler.step(record.val_acc)
            is_best = stopping.update(epoch, record.val_acc)
            if is_best:
                # Written to disk at once: a reference to the live weights would silently become the last epoch's.
                self._save(record)
            write_history(self._config.out_dir, history, stopping.best_epoch)
            logger.info("%s", epoch_line(record, self._config.epochs, is_best))
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
    logger.info("device: %s, %s, seed %d", describe_device(device), count_text(workers, "decoding worker"), config.seed)
    start = "ImageNet (IMAGENET1K_V1)" if config.weights == "imagenet" else config.weights
    logger.info("starting from %s weights, first %d children frozen", start, config.freeze_until)
    if config.weights == "random" and config.freeze_until:
        logger.warning(
            "random weights with %d frozen children: the frozen part stays random; pass --freeze-until 0 to train it",
            config.freeze_until,
        )
