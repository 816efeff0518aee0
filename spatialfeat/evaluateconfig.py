"""Options of `spatialfeat evaluate`: which predictions are scored, and how.

Like `config`, this module imports the standard library only, so that `spatialfeat --help` stays fast.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from spatialfeat.config import GROUPINGS, IMG_DIR, TEST_CSV, WEIGHTS_NAME, at_least, check_loading, one_of
from spatialfeat.errors import SpatialfeatError

CHOLEC80_GRAPH = "cholec80"
"""The word that stands for the built-in transition graph in `--relaxed`."""

DEFAULT_NUM_PHASES = 7
"""The specification's number of phases, where neither weights, feature files nor options tell it."""


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Frames that are predicted with a weights file, and the defaults of the options that only this source has."""

    weights: Path = Path(WEIGHTS_NAME)
    csv: Path = TEST_CSV
    img_dir: Path = IMG_DIR
    batch_size: int = 32
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_loading(self.batch_size, self.workers, self.precision)


@dataclass(frozen=True, kw_only=True)
class FeaturesSource:
    """Feature files, whose logits are the predictions. split "all": every file of the folder."""

    features: Path
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class PredictionsSource:
    """Predictions files, each `PATH` or `NAME=PATH`; csv holds the ground truth if the files do not."""

    predictions: tuple[str, ...]
    csv: Path | None = None


Source = WeightsSource | FeaturesSource | PredictionsSource


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and how.

    One source: `predictions`, or `features`, or weights (the default). An option that only some sources have is None
    unless given, so that one that would do nothing is refused; `source` fills in the defaults.

    num_classes, phase_names: None takes them from weights or feature files; predictions files have none, see
    `DEFAULT_NUM_PHASES`. relaxed: "cholec80" or the path of a transition graph. fps: scored frames per second.
    """

    predictions: tuple[str, ...] = ()
    features: Path | None = None
    split: str | None = None
    csv: Path | None = None
    img_dir: Path | None = None
    weights: Path | None = None
    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    workers: int | None = None
    out_dir: Path = Path("evaluation")
    num_classes: int | None = None
    phase_names: tuple[str, ...] | None = None
    group_by: str = "video"
    relaxed: str | None = None
    relaxed_window: float | None = None
    fps: float | None = None
    bootstrap: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        self._refuse_options_without_effect()
        _ = self.source  # Built once here, so that its values are checked at once.
        if self.num_classes is not None:
            at_least("--num-classes", self.num_classes, 2)
        at_least("--bootstrap", self.bootstrap, 0)
        at_least("--seed", self.seed, 0)
        one_of("--group-by", self.group_by, GROUPINGS)
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise SpatialfeatError(f"--fps {self.fps}: must be a positive number of scored frames per second, e.g. 1")
        if self.relaxed_window is not None and not 0 <= self.relaxed_window < float("inf"):
            raise SpatialfeatError(f"--relaxed-window {self.relaxed_window}: must be a number of seconds, 0 or more")
        if self.relaxed_window is not None and self.relaxed is None:
            raise SpatialfeatError(
                "--relaxed-window does nothing without --relaxed; pass --relaxed cholec80 or --relaxed GRAPH.csv"
            )
        if self.relaxed is not None and self.fps is None and self.features is None:
            raise SpatialfeatError(
                f"--relaxed {self.relaxed}: the window is given in seconds; pass --fps, the number of scored "
                "frames per second (only feature files know it themselves)"
            )

    @property
    def source(self) -> Source:
        """Where the predictions come from, with the defaults of its options."""
        if self.predictions:
            return PredictionsSource(predictions=self.predictions, csv=self.csv)
        kind: type[Any] = WeightsSource if self.features is None else FeaturesSource
        given = {name: getattr(self, name) for name in _option_names(kind)}
        found: Source = kind(**{name: value for name, value in given.items() if value is not None})
        return found

    def resolved(self) -> EvaluateConfig:
        """The same options with the source's defaults filled in, as `run.json` records them."""
        return replace(self, **asdict(self.source))

    def _refuse_options_without_effect(self) -> None:
        if self.predictions and self.features is not None:
            raise SpatialfeatError("--predictions and --features are two sources; score one of them at a time")
        if self.predictions:
            kind: type[Any] = PredictionsSource
            reason = "with --predictions nothing is computed from images or features"
        elif self.features is not None:
            kind, reason = FeaturesSource, "with --features labels and logits come from the feature files"
        else:
            kind, reason = WeightsSource, "it chooses among the feature files of --features"
        own = _option_names(kind)
        others = set().union(*map(_option_names, (WeightsSource, FeaturesSource, PredictionsSource))) - own
        surplus = [name for name in sorted(others) if getattr(self, name) not in (None, ())]
        if surplus:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in surplus)
            does, it = ("does", "it") if len(surplus) == 1 else ("do", "them")
            raise SpatialfeatError(f"{options} {does} nothing here: {reason}; leave {it} out")


def _option_names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}
