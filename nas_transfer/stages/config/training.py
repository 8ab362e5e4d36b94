"""The keys of stages that train one network, or score it."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, Several, ShareBelowOne
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
class TrainConfig(ScoredRunConfig):
    """The keys of ``stage=finetune`` and ``stage=pretrain``."""

    ema_decay: ShareBelowOne | None = key()
    checkpoint_every_n_steps: Positive = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataRunConfig):
    """The keys of ``stage=check``."""

    calibration_images: Positive = key(identity=False)
    repair_views: Several = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)
