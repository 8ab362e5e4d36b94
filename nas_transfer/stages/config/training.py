"""The keys of stages that train one network, or score it."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Iterator
from dataclasses import dataclass

from nas_transfer.errors import ConfigError
from nas_transfer.stages.config.base import NO_WEIGHTS, DataRunConfig, TrainerConfig
from nas_transfer.stages.config.field import key


def length_faults(trainer: TrainerConfig) -> Iterator[str]:
    """Report a missing training length."""
    try:
        trainer.steps(steps_per_epoch=1)
    except ConfigError as error:
        yield from error.faults


@dataclass(frozen=True, kw_only=True)
class ScoredRunConfig(DataRunConfig):
    """The keys of stages that score one network or train it."""

    tensorboard: bool = key(identity=False)
    sample_predictions: int = key(identity=False, minimum=0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoredRunConfig):
    """The keys of ``stage=evaluate``."""

    weights: str = key(null=NO_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ScoredRunConfig):
    """The keys of ``stage=finetune`` and ``stage=pretrain``."""

    ema_decay: float | None = key(minimum=0, maximum=1)
    checkpoint_every_n_steps: int = key(identity=False, minimum=1)

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataRunConfig):
    """The keys of ``stage=check``."""

    calibration_images: int = key(identity=False, minimum=1)
    repair_views: int = key(identity=False, minimum=2)

    def faults(self) -> Iterator[str]:
        """Report a missing training length."""
        yield from length_faults(self.trainer)
