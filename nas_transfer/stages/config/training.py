"""The keys of stages that train one network, or score it."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, PositiveNumber, Several, ShareBelowOne
from nas_transfer.stages.config.base import NO_WEIGHTS, DataRunConfig, TrainerConfig
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import key

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def length_faults(trainer: TrainerConfig) -> Iterator[str]:
    """Report a missing training length."""
    try:
        trainer.steps(steps_per_epoch=1)
    except ConfigError as error:
        yield from error.faults


@dataclass(frozen=True, kw_only=True)
class ScoredRunConfig(DataRunConfig):
    """The keys of stages that score one network or train it.

    Attributes:
        logger: Lightning's loggers, by the name of their choice.
    """

    logger: Mapping[str, Factory["Logger"]] = key(identity=False, builds=False)
    sample_predictions: Count = key(identity=False)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoredRunConfig):
    """The keys of ``stage=evaluate``."""

    weights: str = key(null=NO_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """``scoring``: scores of a single arch while it trains, and what follows from them.

    Attributes:
        every: epochs between two scorings; None to score the end alone.
        patience: scorings without a better score after which a training ends; None to train to the end.
        use_best: end with the weights that scored best instead of the last ones.
    """

    every: Literal["auto"] | PositiveNumber | None = key(counts_with=("patience", "use_best"))
    patience: Positive | None = key(counts_with=("patience",))
    use_best: bool = key(counts_with=("use_best",))

    def faults(self) -> Iterator[str]:
        """Report a decision about scores that are not computed."""
        if self.every is None and (self.patience is not None or self.use_best):
            name = "patience" if self.patience is not None else "use_best"
            yield f"scoring.{name} needs scores while training, got scoring.every=null: set scoring.every=auto"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ScoredRunConfig):
    """The keys of ``stage=finetune`` and ``stage=pretrain``."""

    repair_views: Several | None = key()  # type: ignore[assignment]
    ema_decay: ShareBelowOne | None = key()
    scoring: ScoringConfig = key()
    checkpoint_every_n_steps: Positive = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataRunConfig):
    """The keys of ``stage=check``."""

    calibration_images: Positive = key(identity=False)
    repair_views: Several | None = key(identity=False)  # type: ignore[assignment]

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)
