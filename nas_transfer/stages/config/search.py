"""The keys of the two searches: of a trained supernet's archs, and with a short training of each."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from nas_transfer.ranges import Count, Positive, PositiveNumber, PositiveShare, Range, Several
from nas_transfer.runs.texts import counted
from nas_transfer.stages.config.base import DataRunConfig, StageConfig, TrainerConfig
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import key

if TYPE_CHECKING:
    from nas_transfer.search.front import TradeOff
    from nas_transfer.search.halving import Rungs
    from nas_transfer.search.loop import Budget, Schedule
    from nas_transfer.search.objectives.base import Objective
    from nas_transfer.search.problem import Limit
    from nas_transfer.search.samplers.base import ArchSampler
    from nas_transfer.search.shared_study import Patience

SCORE = "score"
LEAST_REPEATS, LEAST_VALIDATED = 2, 3


@dataclass(frozen=True, kw_only=True)
class SearchStageConfig(StageConfig):
    """``stage`` of a search.

    Attributes:
        prepares: the file that the first job writes for all others; None for none.
    """

    prepares: str | None = key()


@dataclass(frozen=True, kw_only=True)
class ProxyStageConfig(SearchStageConfig):
    """``stage`` of a proxy search, whose first job always writes a file for the others."""

    prepares: str = key()


@dataclass(frozen=True, kw_only=True)
class SearchKeys:
    """``search``: objectives, sampler, limits, and the division into batches and jobs.

    Attributes:
        trials: number of trials; None for as many as `minutes` allow.
        minutes: duration of a search without `trials`, from which a number of trials is planned.
        ask_batch: trials that are proposed together; None for a size that follows from the number of trials.
        workers: number of processes that ask, evaluate and tell by themselves; None to search in batches.
        folds: number of parts of train on which each trial is scored in turn; None for the search split.
        race: error rate at which trials that are clearly dominated after a part of the search split are dropped; None
            to score all trials on all of it.
        job: the file of the job that this process runs; None in the process that proposes trials.
    """

    objectives: Mapping[str, Factory["Objective"]] = key()
    sampler: Factory["Callable[..., ArchSampler]"] = key()
    score_key: str | None = key()
    trade_off: Factory["TradeOff"] | None = key(identity=False, target="nas_transfer.search.front.TradeOff")
    trials: Positive | None = key(identity=False)
    minutes: PositiveNumber | None = key(identity=False)
    ask_batch: Positive | None = key()
    variants: Count = key()
    trials_per_job: Positive = key(identity=False)
    constraints: Mapping[str, Factory["Limit"]] | None = key(target="nas_transfer.stages.common.limits.limit_between")
    frozen: Mapping[str, int] | None = key()
    repeats: Count = key(identity=False)
    max_failures: Positive = key(identity=False)
    workers: Positive | None = key(identity=False)
    retries: Count = key(identity=False)
    grace_seconds: Positive = key(identity=False)
    storage: str | None = key(identity=False)
    cache_mib: Count = key(identity=False)
    precision: Literal["32", "bf16", "16"] = key()
    folds: Several | None = key(counts_with=("folds",))
    race: Annotated[float, Range(above=0, maximum=0.5)] | None = key(counts_with=("race",))
    job: str | None = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Report unknown objectives, and a number of repeats that is too small."""
        names = ", ".join(self.objectives)
        listed = ",".join(self.objectives)
        for name in self.constraints or {}:
            if name not in self.objectives:
                yield (
                    f"search.constraints must name objectives of this search ({names}), got {name}: "
                    f"add it with objective=[{listed},{name}]"
                )
        if self.trade_off is not None:
            second = str(self.trade_off["second"]) if "second" in self.trade_off else SCORE
            for name in (SCORE, second):
                if name not in self.objectives:
                    yield (
                        f"search.trade_off must name objectives of this search ({names}), got {name}: "
                        f"use objective=[{SCORE},{second}]"
                    )
        if self.trials is None and self.minutes is None:
            yield "search.trials or search.minutes must say how long to search, got null for both: set one of them"
        if self.race is not None and self.folds is not None:
            yield (
                "search.race has no effect with search.folds, which scores the predictions of all folds at once: set "
                "one of them to null"
            )
        if self.repeats == 1:
            yield f"search.repeats must be 0 or at least {LEAST_REPEATS} seeds, got 1"

    def schedule(self, rungs: "Rungs", budget: "Budget") -> "Schedule":
        """How a search with a number of trials is divided into batches, jobs and rungs; ConfigError naming a value."""
        from nas_transfer.search.loop import Schedule

        assert self.trials is not None  # given or planned, as the batches are
        assert self.ask_batch is not None
        races = self.race is not None
        return Schedule(self.trials, self.ask_batch, self.trials_per_job, self.max_failures, rungs, budget, races)

    def patience(self) -> "Patience":
        """When a worker counts as dead, and how often its trial is asked again."""
        from nas_transfer.search.shared_study import Patience

        return Patience(self.grace_seconds, self.retries)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(DataRunConfig):
    """The keys of ``stage=search``."""

    stage: SearchStageConfig = key()
    arch: str = key(identity=False)
    weights: str | None = key()
    trainer: TrainerConfig = key(identity=False)
    pick: Literal["knee", "high_trade_off", "best", "trade_off"] | None = key(identity=False)
    pick_under: Mapping[str, float] | None = key(identity=False)
    search: SearchKeys = key()

    @property
    def starts_from_random_weights(self) -> bool:
        """Whether there are no weights to search, and each trial is trained from random ones."""
        return False

    @property
    def trains_trials(self) -> bool:
        """Whether each trial is trained before it is scored."""
        return False

    def faults(self) -> Iterator[str]:
        """Report missing weights, folds without training and more than one device."""
        if self.search.folds is not None and not self.trains_trials:
            yield (
                f"search.folds is for stage=proxy, which trains each trial once for each fold, got {self.search.folds} "
                "for weights that were trained before: remove it, and give the training of the weights and this search "
                "a larger data.split.search_fraction, such as 0.3"
            )
        if self.weights is None and not self.starts_from_random_weights:
            yield "weights must name a supernet to search, got null: add weights=<its finished run's folder>"
        if not self.trainer.single_device:
            yield (
                f"a search evaluates each trial on one device, got {counted(self.trainer.devices, 'device')} on "
                f"{counted(self.trainer.num_nodes, 'machine')}: set trainer.devices=1 trainer.num_nodes=1; "
                "hydra/launcher=slurm search.trials_per_job=N evaluates several trials at once"
            )

    def rungs(self) -> "Rungs":
        """The training steps after which trials are scored: none."""
        from nas_transfer.search.halving import Rungs

        return Rungs()

    def budget(self, images_per_step: int) -> "Budget":
        """The limits beside the number of trials: none."""
        from nas_transfer.search.loop import Budget

        return Budget()


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """``proxy.budget``: limits beside ``search.trials``."""

    images: Annotated[int, Range(above=0)] | None = key()
    device_minutes: PositiveNumber | None = key()


@dataclass(frozen=True, kw_only=True)
class ProxyKeys:
    """``proxy``: the short training of each trial."""

    rungs: tuple[int, ...] = key()
    keep: PositiveShare = key()
    warmup_steps: Count = key()
    budget: BudgetConfig = key(identity=False)
    validate: Count = key(identity=False)
    validate_times: Several = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Report a number of validated archs that is too small, and validation without training."""
        if 0 < self.validate < LEAST_VALIDATED:
            yield f"proxy.validate must be 0 or at least {LEAST_VALIDATED} archs, got {self.validate}"
        if self.validate and self.rungs and not self.rungs[-1]:
            yield (
                "proxy.validate compares with longer training, so the last of proxy.rungs must be at least 1, "
                f"got {list(self.rungs)}"
            )

    def schedule_of_steps(self) -> "Rungs":
        """The training steps after which trials are scored."""
        from nas_transfer.search.halving import Rungs

        return Rungs(self.rungs, self.keep)

    def budget_of(self, images_per_step: int) -> "Budget":
        """The limits beside the number of trials."""
        from nas_transfer.search.loop import Budget

        rungs = self.schedule_of_steps()
        images = (rungs.steps_per_trial * images_per_step, rungs.steps[-1] * images_per_step)
        return Budget(self.budget.images, self.budget.device_minutes, *images)

    def parts(self) -> Iterator[Callable[[], object]]:
        """Makers of the rungs and of the budget, which check their values."""
        yield self.schedule_of_steps
        yield lambda: self.budget_of(images_per_step=1)


@dataclass(frozen=True, kw_only=True)
class ProxyConfig(SearchConfig):
    """The keys of ``stage=proxy``."""

    stage: ProxyStageConfig = key()
    trainer: TrainerConfig = key()
    proxy: ProxyKeys = key()

    @property
    def trains_trials(self) -> bool:
        """True: `proxy.rungs` says for how long."""
        return True

    @property
    def starts_from_random_weights(self) -> bool:
        """Whether `weights` is null."""
        return self.weights is None

    def rungs(self) -> "Rungs":
        """The training steps after which trials are scored."""
        return self.proxy.schedule_of_steps()

    def budget(self, images_per_step: int) -> "Budget":
        """The limits beside the number of trials."""
        return self.proxy.budget_of(images_per_step)
