"""`spatialfeat finetune`: the spatial study. Trains a ResNet-50, keeps the weights of the best validation accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spatialfeat.config import PREDICTIONS_NAME, WEIGHTS_NAME, FinetuneConfig
from spatialfeat.console import count_text
from spatialfeat.data.cache import FrameCache, open_cache, total_use
from spatialfeat.data.dataset import require_images
from spatialfeat.data.frames import FrameTable
from spatialfeat.device import (
    choose_precision,
    choose_workers,
    describe_arithmetic,
    library_versions,
    prepare_processor,
    seed_everything,
    use_true_float32,
)
from spatialfeat.distributed import ProcessGroup, lost_contact_told, process_group
from spatialfeat.errors import SpatialfeatError, computing_faults_told
from spatialfeat.files import move_aside, prepare_output_dir, read_json_object, require_room
from spatialfeat.network.inference import as_set, predict_frames, write_predictions_csv
from spatialfeat.network.resnet import PhaseResNet50, num_bytes
from spatialfeat.network.weights import initial_model, load_checkpoint
from spatialfeat.reports.plots import save_confusion_matrix
from spatialfeat.reports.report import confusion_title
from spatialfeat.reports.tables import score_tables
from spatialfeat.runrecord import RECORD_NAME, RunRecord, earlier_sessions
from spatialfeat.scores.predictions import evaluated_videos
from spatialfeat.scores.summary import score, write_scores
from spatialfeat.signals import is_interruption
from spatialfeat.training.data import StudyData, cached_images, read_study, warn_of_shared_patients
from spatialfeat.training.files import (
    STATE_NAME,
    TRAINING_NAMES,
    Resumption,
    StudyFiles,
    TrainingState,
    is_trained,
    look_for_study,
    study_identity,
)
from spatialfeat.training.history import EpochRecord, epoch_line, read_history
from spatialfeat.training.trainer import EarlyStopping, Trainer

TEST_NAMES = (
    PREDICTIONS_NAME,
    "metrics.json",
    "per_video.csv",
    "per_phase.csv",
    "confusion_matrix.png",
    "confusion_matrix.svg",
)
"""What the test leaves in the study's folder."""

RESULT_NAMES = (STATE_NAME, RECORD_NAME, *(name for name in TRAINING_NAMES if name != STATE_NAME), *TEST_NAMES)
"""What a study leaves in its folder. Results of an earlier study there are moved aside as a whole."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneResult:
    """What training leaves: the history, the epoch whose weights were kept, and the test metrics if there were any."""

    weights_path: Path
    history: tuple[EpochRecord, ...]
    best_epoch: int
    test_metrics: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class _Setting:
    """One run of the command: what is computed on what."""

    config: FinetuneConfig
    data: StudyData
    group: ProcessGroup
    workers: int
    identity: dict[str, Any]
    environment: dict[str, str]
    cache: FrameCache | None


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Run the whole study, or with `config.resume` the rest of it, and write its files to `config.out_dir`.

    Processes that torchrun has started train together; the main one writes the files, and alone has test metrics.

    Raises:
        SpatialfeatError: anything that the user can mend, before training starts where possible.
    """
    use_true_float32()
    prepare_processor()
    with process_group(config.device) as group:
        with group.together():
            setting = _read_setting(config, group)
            found = _look_for_study(setting)
        config = setting.config
        group.require_same("--precision", config.precision, "pass the one that all devices have")
        if found.is_finished:
            return _finished_study(setting)
        seed_everything(config.seed)
        with group.together(), group.main_first():  # ImageNet weights are downloaded once.
            model = PhaseResNet50(config.num_classes) if found.state else _initial_model(config)
        with group.together():
            if group.is_main:
                _check_and_clear(setting, model, found.state)
        result = _run_study(setting, model, found.state)
        _remove_state(setting)
        return result


def _read_setting(config: FinetuneConfig, group: ProcessGroup) -> _Setting:
    if config.batch_size < group.size:
        raise SpatialfeatError(
            f"--batch-size {config.batch_size}: is the batch of all {group.size} processes together, and each needs a "
            f"frame; pass at least {group.size}, or start fewer processes"
        )
    data = read_study(config)
    if group.is_main:
        prepare_output_dir(config.out_dir)
    config = replace(
        config, precision=choose_precision(config.precision, group.device), cache_size_px=config.training_frames_px
    )
    return _Setting(
        config,
        data,
        group,
        choose_workers(config.workers, group.device, processes=group.local_size),
        study_identity(config, data),
        {"device": group.description, **library_versions()},
        open_cache(config.cache_dir, config.cache_limit_gb),
    )


def _look_for_study(setting: _Setting) -> Resumption:
    if not setting.config.resume:
        return Resumption()
    return look_for_study(setting.config, setting.data, setting.identity, setting.environment)


def _check_and_clear(setting: _Setting, model: PhaseResNet50, state: TrainingState | None) -> None:
    """The last checks, which one process makes for all, and the way cleared for the results."""
    config, data = setting.config, setting.data
    # While state and weights are written, those of the epoch before are still there.
    require_room(config.out_dir, 4 * num_bytes(model), "state and weights take")
    # Last of the checks: it takes seconds, the others do not.
    require_images(data.tables, cached_images(config, data, setting.cache))
    _announce(setting, state)
    _move_aside(config, state)


def _run_study(setting: _Setting, model: PhaseResNet50, state: TrainingState | None) -> FinetuneResult:
    """Train and test; of several processes, the main one keeps the record."""
    config, data = setting.config, setting.data
    faults_told = computing_faults_told(
        batch_size=config.batch_size, workers=setting.workers, image_size_px=config.image_size_px
    )
    if not setting.group.is_main:
        with faults_told:
            return _train_and_test(setting, model, None, state)[0]
    resumed = {} if state is None else {"resumed_after_epoch": len(state.history)} | earlier_sessions(config.out_dir)
    with (
        RunRecord(
            config.out_dir,
            "finetune",
            config,
            [table.source for table in data.tables],
            device=setting.environment["device"],
            workers=setting.workers,
            **resumed,
        ) as record,
        lost_contact_told(),
        faults_told,
        closing(StudyFiles(config)) as files,
        _advice_after_interruption(files),
    ):
        result, facts = _train_and_test(setting, model, files, state)
        history, best_epoch = result.history, result.best_epoch
        warn_of_shared_patients(data)  # Again: hours of progress lie between the first time and the scores.
        record.finish(best_epoch=best_epoch, best_val_acc=history[best_epoch - 1].val_acc, epochs=len(history), **facts)
    return result


def _train_and_test(
    setting: _Setting, model: PhaseResNet50, files: StudyFiles | None, state: TrainingState | None
) -> tuple[FinetuneResult, dict[str, Any]]:
    """The result, and facts for the record. `files` are those of the main process."""
    config, group, test = setting.config, setting.group, setting.data.test
    history = _train(setting, model.to(group.device), files, state)
    best_epoch = EarlyStopping.after(history, config.patience).best_epoch
    weights_path = config.out_dir / WEIGHTS_NAME
    logger.info("kept the weights of epoch %d: %s", best_epoch, weights_path)
    group.wait()  # Until the main process has written them.
    test_metrics = None if test is None else run_test_stage(config, test, group, setting.workers, setting.cache)
    facts = {} if test_metrics is None else {"test": test_metrics["pooled"]}
    if setting.cache is not None:
        facts["cache"] = total_use(group.gather(setting.cache.close()))
    return FinetuneResult(weights_path, history, best_epoch, test_metrics), facts


@contextmanager
def _advice_after_interruption(files: StudyFiles) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if is_interruption(error) and files.epochs_saved:
            epochs = count_text(files.epochs_saved, "epoch")
            rest = "for what was left to do: further epochs, or the test"
            logger.info("interrupted; %s saved: run the same command with --resume %s", epochs, rest)
        elif is_interruption(error):
            logger.info("interrupted before the first epoch was saved: run the same command again to start over")
        raise


def _train(
    setting: _Setting, model: PhaseResNet50, files: StudyFiles | None, state: TrainingState | None
) -> tuple[EpochRecord, ...]:
    """Train until the last epoch or until validation accuracy stops improving, from `state` on if there is one.

    Every process decides for itself when to stop and what is best: they have the same numbers to decide by.
    """
    config = setting.config
    trainer = Trainer(config, setting.data, model, setting.group, setting.workers, setting.cache)
    if state is not None:
        trainer.load_state_dict(state.training)
        if files:
            files.restore(state)
    history = () if state is None else state.history
    stopping = EarlyStopping.after(history, config.patience)
    best_weights = {} if state is None else state.best_weights
    while not is_trained(history, config):
        record = trainer.run_epoch(len(history) + 1)
        history = (*history, record)
        is_best = stopping.update(record.epoch, record.val_acc)
        if files:
            training = trainer.state_dict()
            if is_best:
                best_weights = training["model"]
            files.save_epoch(
                TrainingState(
                    history=history,
                    training=training,
                    best_weights=best_weights,
                    identity=setting.identity,
                    environment=setting.environment,
                )
            )
        logger.info("%s", epoch_line(record, config.epochs, is_best))
    if stopping.should_stop:
        logger.info("stopping early: no better validation accuracy for %d epochs", config.patience)
    return history


def _initial_model(config: FinetuneConfig) -> PhaseResNet50:
    return initial_model(config.weights, config.num_classes, reset_classifier=config.reset_classifier)


def _move_aside(config: FinetuneConfig, state: TrainingState | None) -> None:
    """Keep results of an earlier study away from those to come."""
    if state is not None:
        if not is_trained(state.history, config):
            # More epochs for a study that was tested: its test results are not those of the weights to come.
            move_aside(config.out_dir, TEST_NAMES)
        return
    if not any((config.out_dir / name).exists() for name in RESULT_NAMES if name != RECORD_NAME):
        return  # A run that was stopped in its first epoch leaves a record only, which is not worth a folder.
    is_complete = read_json_object(config.out_dir / RECORD_NAME).get("status") == "complete"
    if (config.out_dir / STATE_NAME).exists() and not is_complete:
        logger.warning(
            "%s holds an unfinished study, which is moved aside; --resume would have gone on with it", config.out_dir
        )
    move_aside(config.out_dir, RESULT_NAMES)


def _remove_state(setting: _Setting) -> None:
    """A finished study needs no state, which takes three to four times the space of the weights."""
    config = setting.config
    if setting.group.is_main and not config.keep_state:
        (config.out_dir / STATE_NAME).unlink(missing_ok=True)


def _finished_study(setting: _Setting) -> FinetuneResult:
    """What a finished study has left; nothing is computed."""
    config = setting.config
    logger.info("the study in %s is finished: nothing to do", config.out_dir)
    _remove_state(setting)
    history = read_history(config.out_dir)
    best_epoch = EarlyStopping.after(history, config.patience).best_epoch
    metrics = read_json_object(config.out_dir / "metrics.json") or None
    return FinetuneResult(config.out_dir / WEIGHTS_NAME, history, best_epoch, metrics)


def _announce(setting: _Setting, state: TrainingState | None) -> None:
    config = setting.config
    frames = ", ".join(f"{len(table)} {table.split}" for table in setting.data.tables)
    logger.info("fine-tuning a ResNet-50 on %s frames, %d phases", frames, config.num_classes)
    workers = count_text(setting.workers, "decoding worker")
    arithmetic = describe_arithmetic(setting.group.device, config.precision)
    logger.info("computing on %s%s", arithmetic, setting.group.processes_text)
    logger.info("%s, seed %d", workers, config.seed)
    if state is not None:
        logger.info("resuming after epoch %d of at most %d", len(state.history), config.epochs)
        return
    start = "ImageNet (IMAGENET1K_V1)" if config.weights == "imagenet" else config.weights
    logger.info("starting from %s weights, first %d children frozen", start, config.freeze_until)
    if config.weights == "random" and config.freeze_until:
        logger.warning(
            "random weights with %d frozen children: the frozen part stays random; pass --freeze-until 0 to train it",
            config.freeze_until,
        )


def run_test_stage(
    config: FinetuneConfig, table: FrameTable, group: ProcessGroup, workers: int, cache: FrameCache | None
) -> dict[str, Any] | None:
    """Score the saved weights, read back from their file. None in all processes but the main one, which writes."""
    out_dir = config.out_dir
    checkpoint = load_checkpoint(out_dir / WEIGHTS_NAME)
    predictions = predict_frames(
        checkpoint.model,
        table,
        checkpoint.preprocessing,
        device=group.device,
        precision=config.precision,
        batch_size=group.share(config.batch_size),
        workers=workers,
        title="test",
        cache=cache,
        group=group,
    )
    if not group.is_main:
        return None
    write_predictions_csv(out_dir / PREDICTIONS_NAME, predictions)
    evaluation = score("test", evaluated_videos(as_set(table, predictions), "video"), checkpoint.phase_names)
    write_scores(out_dir, evaluation)
    counts = np.asarray(evaluation.metrics["confusion_matrix"], dtype=np.int64)
    title = confusion_title(evaluation)
    save_confusion_matrix(out_dir / "confusion_matrix.png", counts, checkpoint.phase_names, title)
    logger.info("\n%s\n", score_tables(evaluation))
    return evaluation.metrics
