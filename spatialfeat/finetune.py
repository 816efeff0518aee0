"""`spatialfeat finetune`: the spatial study. Trains an encoder, keeps the weights of the best validation accuracy."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spatialfeat.config import (
    CHILDREN,
    IMAGENET,
    PREDICTIONS_NAME,
    TEST_CSV,
    TRAIN_CSV,
    VAL_CSV,
    WEIGHTS_NAME,
    ExtractConfig,
    FinetuneConfig,
)
from spatialfeat.console import align, count_text, show_results
from spatialfeat.data.cache import open_cache, total_use
from spatialfeat.data.dataset import require_images
from spatialfeat.data.frames import FrameTable
from spatialfeat.data.images import decoder_name
from spatialfeat.data.staging import require_jpeg_decoder
from spatialfeat.data.transforms import evaluation_transform, training_transform
from spatialfeat.device import (
    augments_on_device,
    choose_precision,
    choose_workers,
    describe_arithmetic,
    describe_device,
    prepare_processor,
    records_graphs,
    seed_everything,
    use_true_float32,
)
from spatialfeat.distributed import ProcessGroup, process_group, translate_lost_contact
from spatialfeat.errors import SpatialfeatError, translate_computing_faults
from spatialfeat.files import move_aside, output_dir, read_json_object, require_room
from spatialfeat.network.backbone import find_backbone
from spatialfeat.network.classifier import InferenceNetwork, PhaseClassifier
from spatialfeat.network.inference import predict_logits
from spatialfeat.network.weights import description_path, initial_model, load_checkpoint, pretrained_text
from spatialfeat.reports.plots import confusion_figure, save_figure
from spatialfeat.reports.tables import score_tables
from spatialfeat.runrecord import RECORD_NAME, RunRecord, earlier_sessions, library_versions
from spatialfeat.scores.predictions import FramePredictions, evaluated_videos
from spatialfeat.scores.summary import score, write_scores
from spatialfeat.signals import is_interruption
from spatialfeat.training.data import read_study, warn_of_shared_patients
from spatialfeat.training.files import (
    STATE_NAME,
    TRAINING_NAMES,
    StudyFiles,
    TrainingState,
    find_study,
    holds_unfinished_study,
    resume_options,
    study_bytes,
    study_identity,
)
from spatialfeat.training.history import (
    EpochRecord,
    best_epoch,
    epoch_line,
    explosion,
    is_trained,
    read_history,
    stopped_early,
)
from spatialfeat.training.methods import METHODS_NAME, write_methods
from spatialfeat.training.trainer import Trainer

TEST_NAMES = (
    PREDICTIONS_NAME, "metrics.json", "per_video.csv", "per_phase.csv", "confusion_matrix.png", "confusion_matrix.svg",
)  # fmt: skip
"""What the test leaves in the study's folder."""

RESULT_NAMES = (
    STATE_NAME,
    RECORD_NAME,
    *(name for name in TRAINING_NAMES if name != STATE_NAME),
    METHODS_NAME,
    *TEST_NAMES,
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
    """Run the whole study, or with `config.resume` the rest of it, and write its files to `config.out_dir`.

    Processes that torchrun has started train together; the main one writes the files, and alone has test metrics.

    Raises:
        SpatialfeatError: anything that the user can fix, before training starts where possible.
    """
    use_true_float32()
    prepare_processor()
    with process_group(config.device) as group, ExitStack() as stack:
        with group.together():
            if group.is_main:
                stack.enter_context(output_dir(config.out_dir))
            study = _Study(config, group)
            state, is_finished = None, False
            if config.resume:
                state, is_finished = find_study(study.config, study.data, study.identity, study.environment)
        group.require_same("--precision", study.config.precision, "pass the one that all devices have")
        if is_finished:
            return study.finished()
        seed_everything(config.seed)
        with group.together(), group.main_first():  # ImageNet weights are downloaded once.
            if state is not None:
                model = study.backbone.build(config.num_classes)
            else:
                model = initial_model(
                    config.weights,
                    config.num_classes,
                    reset_classifier=config.reset_classifier,
                    backbone=study.backbone,
                )
        with group.together():
            if group.is_main:
                study.prepare(model, state)
        result = study.run(model, state)
        study.remove_state()
        if group.is_main:
            study.tell(result)
        return result


class _Study:
    """One run of the command: what is computed on what, by this process of `group`."""

    def __init__(self, config: FinetuneConfig, group: ProcessGroup) -> None:
        if config.batch_size < group.size:
            raise SpatialfeatError(
                f"--batch-size {config.batch_size}: is the batch of all {group.size} processes together, and each "
                f"needs a frame; pass at least {group.size}, or start fewer processes"
            )
        if config.jpeg_on_device:
            require_jpeg_decoder(group.device)
        self.group, self.data = group, read_study(config)
        self.backbone = find_backbone(config.backbone)
        precision = choose_precision(config.precision, group.device)
        self.config = config = replace(
            config,
            precision=precision,
            cache_size_px=config.training_frames_px,
            test_csv=self.data.test.source if self.data.test else None,
        )
        self.workers = choose_workers(config.workers, group.device, processes=group.local_size)
        self.identity = study_identity(config, self.data)
        self.environment = {"device": describe_device(group.device) + group.processes_text, **library_versions()}
        self.cache = open_cache(config.cache_dir, config.cache_limit_gb)

    def prepare(self, model: PhaseClassifier, state: TrainingState | None) -> None:
        """The last checks, which one process makes for all; then the way is cleared for the results."""
        config = self.config
        require_room(config.out_dir, study_bytes(model, config.freeze_until), "state and weights take")
        self._require_images()  # Last of the checks: it takes seconds, the others do not.
        self._announce(state)
        self._move_aside(state)

    def _require_images(self) -> None:
        """The quick look at every image that is not in the cache as training or evaluation wants it."""
        preprocessing = self.backbone.preprocessing(self.config.image_size_px)
        training = training_transform(preprocessing, self.config.training_frames_px).fixed_steps
        evaluation = evaluation_transform(preprocessing).fixed_steps
        cache, train = self.cache, self.data.train

        def is_kept(table: FrameTable, name: str) -> bool:
            return cache is not None and cache.holds(table.images, name, training if table is train else evaluation)

        require_images(self.data.tables, is_kept=None if cache is None else is_kept)

    def run(self, model: PhaseClassifier, state: TrainingState | None) -> FinetuneResult:
        """Train and test; of several processes, the main one keeps the record."""
        config = self.config
        translating = translate_computing_faults(
            batch_size=config.batch_size, workers=self.workers, image_size_px=config.image_size_px
        )
        if not self.group.is_main:
            with translating:
                return self._train_and_test(model, None, state)[0]
        resumed = (
            {} if state is None else {"resumed_after_epoch": len(state.history), **earlier_sessions(config.out_dir)}
        )
        with (
            RunRecord(
                config.out_dir,
                "finetune",
                config,
                [table.source for table in self.data.tables],
                device=self.environment["device"],
                workers=self.workers,
                augmentation="device" if augments_on_device(self.group.device) else "workers",
                cuda_graphs=records_graphs(self.group.device),
                **resumed,
            ) as record,
            translate_lost_contact(),
            translating,
            closing(StudyFiles(config)) as files,
            _advice_after_interruption(files),
        ):
            result, facts = self._train_and_test(model, files, state)
            history, best = result.history, result.best_epoch
            warn_of_shared_patients(self.data)  # Again: hours of progress lie between the first time and the scores.
            record.finish(best_epoch=best, best_val_acc=history[best - 1].val_acc, epochs=len(history), **facts)
        return result

    def finished(self) -> FinetuneResult:
        """What a finished study has left; nothing is computed."""
        out_dir = self.config.out_dir
        logger.info("the study in %s is finished: nothing to do", out_dir)
        self.remove_state()
        history = read_history(out_dir)
        metrics = read_json_object(out_dir / "metrics.json") or None
        return FinetuneResult(out_dir / WEIGHTS_NAME, history, best_epoch(history), metrics)

    def remove_state(self) -> None:
        """A finished study needs no state, which takes three to four times the space of the weights."""
        if self.group.is_main and not self.config.keep_state:
            (self.config.out_dir / STATE_NAME).unlink(missing_ok=True)

    def tell(self, result: FinetuneResult) -> None:
        """What lies where, and the commands that go on with it."""
        out_dir, img_dir = self.config.out_dir, self.config.img_dir
        weights_names = (WEIGHTS_NAME, str(description_path(Path(WEIGHTS_NAME))))
        groups: dict[str, Sequence[str]] = {
            f"weights of epoch {result.best_epoch}": weights_names,
            "training": [name for name in RESULT_NAMES if name not in (*weights_names, METHODS_NAME, *TEST_NAMES)],
            "study in words": [METHODS_NAME],
            "test": TEST_NAMES,
        }
        rows = []
        for title, names in groups.items():
            there = [name for name in names if not name.endswith(".svg") and (out_dir / name).exists()]
            rows += [(title, ", ".join(there))] if there else []
        where = [] if out_dir == Path() else ["--weights", str(out_dir / WEIGHTS_NAME)]
        images = [] if img_dir == ExtractConfig.img_dir else ["--img-dir", str(img_dir)]
        tables = [(table.split, table.source) for table in self.data.tables]
        usual = [pair for pair in (("train", TRAIN_CSV), ("val", VAL_CSV), ("test", TEST_CSV)) if pair[1].exists()]
        csvs = [] if tables == usual else [word for split, path in tables for word in ("--csv", f"{split}={path}")]
        into = [] if out_dir == Path() else ["--out", str(out_dir / "features")]
        steps = ["  " + shlex.join(["spatialfeat", "extract", *where, *csvs, *images, *into])]
        if self.data.test is not None:
            csv = [] if self.data.test.source == TEST_CSV else ["--csv", str(self.data.test.source)]
            into = [] if out_dir == Path() else ["--out", str(out_dir / "evaluation")]
            steps.insert(0, "  " + shlex.join(["spatialfeat", "evaluate", *where, *csv, *images, *into]))
        show_results(out_dir, align(rows, left=(0, 1)), steps)

    def _train_and_test(
        self, model: PhaseClassifier, files: StudyFiles | None, state: TrainingState | None
    ) -> tuple[FinetuneResult, dict[str, Any]]:
        """The result, and facts for the record. `files` are those of the main process."""
        history = self._train(model.to(self.group.device), files, state)
        weights_path = self.config.out_dir / WEIGHTS_NAME
        logger.info("kept the weights of epoch %d: %s", best_epoch(history), weights_path)
        problem = explosion(history, self.config.num_classes)
        if problem and self.group.is_main:
            logger.warning("%s", problem)
        if self.group.is_main:
            write_methods(self.config, self.data, history, self.environment)
        self.group.wait()  # Until the main process has written them.
        metrics = None if self.data.test is None else self._test(self.data.test)
        facts = {} if metrics is None else {"test": metrics["pooled"]}
        if self.cache is not None:
            facts["cache"] = total_use(self.group.gather(self.cache.close()))
        return FinetuneResult(weights_path, history, best_epoch(history), metrics), facts

    def _train(
        self, model: PhaseClassifier, files: StudyFiles | None, state: TrainingState | None
    ) -> tuple[EpochRecord, ...]:
        """Train until the last epoch or until validation accuracy stops improving, from `state` on if there is one.

        Every process decides for itself when to stop and what is best: they have the same history to decide by.
        """
        config = self.config
        trainer = Trainer(config, self.data, model, self.group, self.workers, self.cache)
        history: tuple[EpochRecord, ...] = ()
        best_weights = trainer.weights() if state is None else state.best_weights
        if state is not None:
            history = state.history
            trainer.load_state_dict(state.training)
            if files:
                files.restore(state)
        while not is_trained(history, config):
            history = (*history, trainer.run_epoch(len(history) + 1))
            if files:
                training = trainer.state_dict()
                if best_epoch(history) == len(history):
                    best_weights = training["model"]
                files.save_epoch(TrainingState(history, training, best_weights, self.identity, self.environment))
            logger.info("%s", epoch_line(history, config.epochs))
        if stopped_early(history, config.patience):
            logger.info("stopping early: no better validation accuracy for %d epochs", config.patience)
        return history

    def _test(self, table: FrameTable) -> dict[str, Any] | None:
        """Score the saved weights, read back from their file. None in all processes but the main one, which writes."""
        config, group = self.config, self.group
        checkpoint = load_checkpoint(config.out_dir / WEIGHTS_NAME)
        model, batch_size = checkpoint.model.to(group.device), group.share(config.batch_size)
        network = InferenceNetwork(model, checkpoint.preprocessing, config.precision, batch_size)
        logits = predict_logits(
            network,
            table,
            workers=self.workers,
            title="test",
            cache=self.cache,
            jpeg_on_device=config.jpeg_on_device,
            group=group,
        )
        if not group.is_main:
            return None
        predictions = FramePredictions.of_logits(table, logits)
        predictions.write_csv(config.out_dir / PREDICTIONS_NAME)
        evaluation = score("test", evaluated_videos([predictions]), checkpoint.phase_names)
        write_scores(config.out_dir, evaluation)
        save_figure(confusion_figure(evaluation), config.out_dir / "confusion_matrix.png")
        logger.info("\n%s\n", score_tables(evaluation))
        return evaluation.metrics

    def _announce(self, state: TrainingState | None) -> None:
        config = self.config
        frames = ", ".join(f"{table.split}: {len(table)}" for table in self.data.tables)
        article = "a " if self.backbone.kind == "ResNet-50" else ""
        logger.info(
            "fine-tuning %s%s for %d phases; frames of %s", article, self.backbone.kind, config.num_classes, frames
        )
        arithmetic = describe_arithmetic(self.group.device, config.precision)
        logger.info("computing on %s%s", arithmetic, self.group.processes_text)
        workers = count_text(self.workers, "decoding process", "decoding processes") if self.workers else "this process"
        jpeg = ", JPEG by the GPU" if config.jpeg_on_device else ""
        png = f"plain PNG with {decoder_name()}"
        logger.info("frames are decoded by %s (%s)%s; seed %d", workers, png, jpeg, config.seed)
        if state is not None:
            logger.info("resuming after epoch %d of at most %d", len(state.history), config.epochs)
            return
        start = pretrained_text(self.backbone) if config.weights == IMAGENET else f"{config.weights} weights"
        parts = "children" if self.backbone.stages == CHILDREN else "stages"
        logger.info("starting from %s, first %d %s frozen", start, config.freeze_until, parts)
        if config.weights == "random" and config.freeze_until:
            logger.warning(
                "random weights with %d frozen %s: the frozen part stays random; pass --freeze-until 0 to train it",
                config.freeze_until,
                parts,
            )

    def _move_aside(self, state: TrainingState | None) -> None:
        """Keep results of an earlier study away from those to come."""
        out_dir = self.config.out_dir
        if state is not None:
            if not is_trained(state.history, self.config):
                # More epochs for a study that was tested: its test results are not those of the weights to come.
                move_aside(out_dir, (METHODS_NAME, *TEST_NAMES))
            return
        if not any((out_dir / name).exists() for name in RESULT_NAMES if name != RECORD_NAME):
            return  # A run that was stopped in its first epoch leaves a record only, which is not worth a folder.
        is_unfinished = holds_unfinished_study(out_dir)
        aside_dir = move_aside(out_dir, RESULT_NAMES)
        if is_unfinished and aside_dir is not None:
            logger.warning(
                "%s holds an unfinished study, which is moved aside; --resume would have gone on with it, and still "
                "does with %s",
                out_dir,
                resume_options(aside_dir),
            )


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
