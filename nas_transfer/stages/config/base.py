"""The keys that several stages share."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, PositiveShare, Several
from nas_transfer.stages.config.factory import Factory, ForAuto
from nas_transfer.stages.config.field import key
from nas_transfer.stages.config.reader import sha256_of
from nas_transfer.stages.config.values import faults_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from nas_transfer.data.module import DownstreamData
    from nas_transfer.supernet.protocol import SupernetTable
    from nas_transfer.tasks.recipe import ArchSampling, Recipe
    from nas_transfer.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """``stage``: the step that runs.

    Attributes:
        name: first folder of a run.
        run: dotted name of its function.
        config: the record that its configuration is read into, a subclass of `RunConfig`.
    """

    name: str = key(folder=True)
    run: str = key()
    config: str = key(identity=False)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys of every stage.

    Attributes:
        trust: modules whose classes a run folder may name.
        identity: the keys that change the result, flat; the reader sets it.
    """

    stage: StageConfig = key()
    runs: str = key(identity=False)
    name: str = key(identity=False, folder=True)
    run_dir: str = key(identity=False)
    resume: Literal["auto", "never"] = key(identity=False)
    trust: str | tuple[str, ...] = key(identity=False)
    identity: Mapping[str, object] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.run_dir)

    @property
    def config_sha256(self) -> str:
        """The hash of the run's identity."""
        return sha256_of(self.identity)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """``task``: a network for a kind of prediction, and how it is trained.

    Attributes:
        name: second folder of a run.
        cost_classes: number of classes of the costs if no dataset is read.
        build: makes the task from its settings.
        recipe: optimiser and schedule.
        sampling: which archs a step of supernet training runs.
    """

    name: str = key(folder=True)
    cost_classes: Positive = key()
    build: Factory["Callable[..., Task]"] = key()
    recipe: Factory["Recipe"] = key(target="nas_transfer.tasks.recipe.Recipe")
    sampling: Factory["ArchSampling"] = key(target="nas_transfer.tasks.recipe.ArchSampling")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """``trainer``: Lightning's Trainer, and the length of a run.

    Attributes:
        max_steps, max_epochs: the length; the first limit that is reached ends the run.
        limit_train_batches: number or share of the batches that make an epoch.
        lightning: the Trainer's class and all other arguments.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = key()
    devices: int | str | tuple[int, ...] = key()
    num_nodes: Positive = key()
    strategy: object = key()
    sync_batchnorm: bool = key()
    max_steps: int | None = key()
    max_epochs: int | float | None = key()
    limit_train_batches: Positive | PositiveShare | None = key()
    log_every_n_steps: Positive = key(identity=False)
    enable_progress_bar: bool = key(identity=False)
    lightning: Factory["pl.Trainer"] = key(rest=True, builds=False)

    def faults(self) -> Iterator[str]:
        """Report a length, devices and batches of a validation that Lightning would refuse, or take for others."""
        for name, value in (("max_steps", self.max_steps), ("max_epochs", self.max_epochs)):
            if value is not None and not value > 0:
                yield (
                    f"trainer.{name} must be above 0 or null, got {value}: set trainer.max_steps or trainer.max_epochs"
                )
        if not _are_devices(self.devices):
            yield f"trainer.devices must be a number of devices, a list of their numbers or auto, got {self.devices}"
        if "limit_val_batches" in self.lightning:
            batches = self.lightning["limit_val_batches"]
            yield from faults_of(Positive | PositiveShare | None, batches, "trainer.limit_val_batches")

    def parts(self) -> Iterator[Callable[[], object]]:
        """A check of the strategy, which Lightning knows."""
        yield lambda: _require_strategy(self.strategy)

    @property
    def single_device(self) -> bool:
        """Whether the run uses one device of one machine."""
        return self.devices in (1, "1") and self.num_nodes == 1

    def steps(self, steps_per_epoch: int) -> int:
        """The optimiser steps of a run; ConfigError if the length is missing."""
        bounds = []
        if self.max_steps is not None and self.max_steps > 0:
            bounds.append(self.max_steps)
        if self.max_epochs is not None and self.max_epochs > 0:
            bounds.append(max(1, round(self.max_epochs * steps_per_epoch)))
        if not bounds:
            raise ConfigError(
                "trainer.max_steps or trainer.max_epochs must be above 0 to say how long to train, "
                f"got {self.max_steps} and {self.max_epochs}"
            )
        return min(bounds)

    def arguments(self) -> dict[str, object]:
        """The arguments for Lightning's Trainer."""
        return {
            "accelerator": self.accelerator,
            "devices": list(self.devices) if isinstance(self.devices, tuple) else self.devices,
            "num_nodes": self.num_nodes,
            "strategy": self.strategy,
            "sync_batchnorm": self.sync_batchnorm,
            "log_every_n_steps": self.log_every_n_steps,
        }


def _are_devices(value: int | str | tuple[int, ...]) -> bool:
    """Whether Lightning takes this for devices."""
    if isinstance(value, tuple):
        return bool(value) and min(value) >= 0 and len(set(value)) == len(value)
    return re.fullmatch(r"auto|-1|0*[1-9]\d*|\d+(,\d+)+,?", str(value)) is not None


def _require_strategy(strategy: object) -> None:
    """Raise ConfigError for a word that names no strategy of Lightning."""
    from pytorch_lightning.strategies import StrategyRegistry

    known = ["auto", *StrategyRegistry.available_strategies()]
    if not isinstance(strategy, Mapping) and strategy not in known:
        raise ConfigError(f"trainer.strategy must be one of {', '.join(known)}, got {strategy!r}")


def _require_format(weights_format: str) -> None:
    """Raise ConfigError for a word that names no format of weights."""
    from nas_transfer.supernet.importing import IMPORTERS

    known = ["auto", "native", *IMPORTERS]
    if weights_format not in known:
        raise ConfigError(f"weights_format must be one of {', '.join(known)}, got {weights_format!r}")


@dataclass(frozen=True, kw_only=True)
class TaskRunConfig(RunConfig):
    """The keys of stages that build a task's network."""

    arch: str = key()
    supernet: Factory["SupernetTable"] = key()
    task: TaskConfig = key()
    seed: Count = key()
    num_threads: Positive = key()


DATA_FILLS: Mapping[str, object] = {
    "split.hold_out_search": False, "interpolation": "bilinear", "batch_size": ForAuto(1),
}  # fmt: skip
"""What a stage sets in ``data`` where it is null, or ``auto``."""


@dataclass(frozen=True, kw_only=True)
class DataRunConfig(TaskRunConfig):
    """The keys of stages that read a dataset and start from weights."""

    data: Factory["DownstreamData"] = key(uncounted=("num_workers", "cache_mib"), fills=DATA_FILLS)
    weights: str | None = key()
    weights_format: str = key()
    calibration_images: Positive = key()
    repair_views: Several = key()
    num_workers: Count = key(identity=False)
    trainer: TrainerConfig = key()

    def parts(self) -> Iterator[Callable[[], object]]:
        """A check of the format of the weights."""
        yield lambda: _require_format(self.weights_format)


NO_WEIGHTS = "weights must name a trained network, got null: add weights=<a finished run's folder, or a file>"
