"""What TensorBoard reads from the log of a study, resumed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import Forks

from spatialfeat.training import history as tensorboardlog
from spatialfeat.training.history import EpochRecord, TensorBoardLog

HISTORY = [EpochRecord(epoch, 2 / epoch, 0.1 * epoch, 3 / epoch, 0.2 * epoch, 1e-4, 1.0) for epoch in (1, 2, 3)]


def scalars(out_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} as TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out_dir / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_epoch_is_a_point_of_five_curves(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    for record in HISTORY:
        log.add(record)
    # Flushed after each epoch, not at the end only.
    found = scalars(tmp_path)
    log.close()
    assert set(found) == {"loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "learning rate"}
    for tag, field in (("loss/validation", "val_loss"), ("accuracy/train", "train_acc"), ("learning rate", "lr")):
        expected = [(record.epoch, pytest.approx(getattr(record, field))) for record in HISTORY]
        assert found[tag] == expected


def test_a_resumed_study_goes_on_with_the_same_curves(tmp_path: Path) -> None:
    killed = TensorBoardLog(tmp_path)
    killed.add(HISTORY[0])
    killed.add(HISTORY[1]._replace(train_loss=99))  # Of an epoch whose state did not get saved.
    resumed = TensorBoardLog(tmp_path)
    resumed.restart(HISTORY[:1])
    for record in HISTORY[1:]:
        resumed.add(record)
    resumed.close()
    killed.close()
    assert scalars(tmp_path)["loss/train"] == [(1, 2), (2, 1), (3, pytest.approx(2 / 3))]


def test_without_tensorboard_nothing_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboardlog, "has_tensorboard", lambda: False)
    log = TensorBoardLog(tmp_path)
    log.add(HISTORY[0])
    log.restart(HISTORY)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_finetune_does_not_import_tensorboard_before_it_logs(forks: Forks, tmp_path: Path) -> None:
    code = "import sys\nassert 'spatialfeat.finetune' in sys.modules\nassert 'tensorboard' not in sys.modules"
    run = forks.run(tmp_path / "log", call=["builtins", "exec", code])
    assert run["code"] == 0, run["log"]
