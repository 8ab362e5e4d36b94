"""The keys of the two searches: of a trained supernet's archs, and with a short training of each."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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

SCORE = "score"
LEAST_REPEATS, LEAST_VALIDATED = 2, 3


@dataclass(frozen=True, kw_only=True)
class SearchStageConfig(StageConfig):
    """``stage`` of a search.

    Attributes:
        prepares: a file that a first job writes for all others.
    """

    prepares: str | None = key()


@dataclass(frozen=True, kw_only=True)
class ProxyStageConfig(SearchStageConfig):
    """``stage`` of a search with a short training of each candidate, for which something has to be prepared."""

    prepares: str = key()


@dataclass(frozen=True, kw_only=True)
class SearchKeys:
    """``search``: what is asked, how it is measured and how it is cut into jobs.

    Attributes:
        job: the file of the job that this process does, None in the process that asks.
    """

    objectives: Mapping[str, Factory["Objective"]] = key()
    sampler: Factory["Callable[..., ArchSampler]"] = key()
    score_key: str | None = key()
    trade_off: Factory["TradeOff"] | None = key(identity=False, target="nas_transfer.search.front.TradeOff")
    trials: int = key(identity=False, minimum=1)
    ask_batch: int = key(minimum=1)
    trials_per_job: int = key(identity=False, minimum=1)
    constraints: Mapping[str, Factory["Limit"]] | None = key(target="nas_transfer.stages.common.limits.limit_between")
    frozen: Mapping[str, int] | None = key()
    repeats: int = key(identity=False, minimum=0)
    max_failures: int = key(identity=False, minimum=1)
    storage: str | None = key(identity=False)
    cache_mib: int = key(identity=False, minimum=0)
    precision: Literal["32", "bf16", "16"] = key()
    job: str | None = key(identity=False)

    def faults(self) -> Iterator[str]:
        """Names of objectives that the search does not have, and numbers from which nothing can be said."""
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
        if self.repeats == 1:
            yield f"search.repeats must be 0 or at least {LEAST_REPEATS} seeds, got 1"

    def schedule(self, rungs: "Rungs", budget: "Budget") -> "Schedule":
        """How the search is cut into batches, jobs and rungs; ConfigError naming a value."""
        from nas_transfer.search.loop import Schedule

        return Schedule(self.trials, self.ask_batch, self.trials_per_job, self.max_failures, rungs, budget)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(DataRunConfig):
    """The keys of ``stage=search``."""

    stage: SearchStageConfig = key()
    arch: str = key(identity=False)
    weights: str = key(null="weights must name a supernet to search, got null: add weights=<its finished run's folder>")
    trainer: TrainerConfig = key(identity=False)
    pick: Literal["knee", "high_trade_off", "best", "trade_off"] | None = key(identity=False)
    pick_under: Mapping[str, float] | None = key(identity=False)
    search: SearchKeys = key()

    def faults(self) -> Iterator[str]:
        """A search runs on one device."""
        if not self.trainer.single_device:
            yield (
                f"trainer.devices must be 1 for a search, got {self.trainer.devices} on {self.trainer.num_nodes} "
                "machines: a candidate is evaluated on one device; "
                "hydra/launcher=slurm search.trials_per_job=N evaluates several at once"
            )

    def rungs(self) -> "Rungs":
        """How long candidates are trained before they are scored: not at all."""
        from nas_transfer.search.halving import Rungs

        return Rungs()

    def budget(self, images_per_step: int) -> "Budget":
        """What ends the search before its trials do: nothing."""
        from nas_transfer.search.loop import Budget

        return Budget()


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """``proxy.budget``: what ends a search before ``search.trials`` does."""

    images: int | None = key()
    device_minutes: float | None = key()


@dataclass(frozen=True, kw_only=True)
class ProxyKeys:
    """``proxy``: the short training of each candidate."""

    rungs: tuple[int, ...] = key()
    keep: float = key()
    warmup_steps: int = key(minimum=0)
    budget: BudgetConfig = key(identity=False)
    validate: int = key(identity=False, minimum=0)
    validate_times: int = key(identity=False, minimum=2)

    def faults(self) -> Iterator[str]:
        """Numbers from which nothing can be said."""
        if 0 < self.validate < LEAST_VALIDATED:
            yield f"proxy.validate must be 0 or at least {LEAST_VALIDATED} archs, got {self.validate}"
        if self.validate and self.rungs and not self.rungs[-1]:
            yield "proxy.validate needs a last rung of at least 1 step to be longer than, got proxy.rungs of no step"

    def schedule_of_steps(self) -> "Rungs":
        """The training steps after which candidates are scored."""
        from nas_transfer.search.halving import Rungs

        return Rungs(self.rungs, self.keep)

    def budget_of(self, images_per_step: int) -> "Budget":
        """What ends the search before its trials do."""
        from nas_transfer.search.loop import Budget

        per_trial = self.schedule_of_steps().steps_per_trial * images_per_step
        return Budget(self.budget.images, self.budget.device_minutes, per_trial)

    def parts(self) -> Iterator[Callable[[], object]]:
        """Rungs, and a budget of them."""
        yield self.schedule_of_steps
        yield lambda: self.budget_of(images_per_step=1)


@dataclass(frozen=True, kw_only=True)
class ProxyConfig(SearchConfig):
    """The keys of ``stage=proxy``."""

    stage: ProxyStageConfig = key()
    trainer: TrainerConfig = key()
    proxy: ProxyKeys = key()

    def rungs(self) -> "Rungs":
        """How long candidates are trained before they are scored."""
        return self.proxy.schedule_of_steps()

    def budget(self, images_per_step: int) -> "Budget":
        """What ends the search before its trials do."""
        return self.proxy.budget_of(images_per_step)
