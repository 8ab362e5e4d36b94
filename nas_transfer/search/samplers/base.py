"""The base class of samplers: archs as Optuna parameters, reproducible draws, no infeasible or repeated archs."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_transfer.arch import Arch, Gene
from nas_transfer.runs import PredictorQuality
from nas_transfer.search.problem import Problem
from nas_transfer.space import SearchSpace

ORIGIN = "failed_trial"
"""Optuna's system attribute of a trial that is asked again after its worker has died: the first attempt's number."""
MAX_PROPOSALS = 100
"""Proposals that may be rejected for one trial before an arch is drawn at random."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """A distribution for each gene: integer if its choices are evenly spaced, and categorical otherwise.

    The choices of a branch, such as heads, have no order: it is always categorical.
    """
    return {gene.name: _distribution(gene, ordered=gene is not space.branch) for gene in space.genes}


def _distribution(gene: Gene, *, ordered: bool) -> BaseDistribution:
    steps = set(np.diff(gene.choices).tolist())
    if len(steps) == 1 and ordered:
        return IntDistribution(gene.choices[0], gene.choices[-1], step=steps.pop())
    return CategoricalDistribution(gene.choices)


def arch_of(space: SearchSpace, params: Mapping[str, int]) -> Arch:
    """The arch that Optuna's parameters of a trial describe."""
    return space.arch([int(params[name]) for name in space.names])


class History:
    """The archs of all trials so far, and their minimised values.

    Attributes:
        seen: gene values of the archs of all trials, whatever their outcome.
        pending: archs of the open trials by their gene values, in the order in which they were asked.
        archs: archs of the trials with values, in trial order.
        asked: archs of all trials by their position.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()
        self.pending: dict[tuple[int, ...], Arch] = {}
        self.archs: list[Arch] = []
        self.asked: dict[int, Arch] = {}
        self._values: list[Sequence[float]] = []
        self._open: set[int] = set()
        self._again: list[int] = []
        self._next = 0

    @property
    def values(self) -> np.ndarray:
        """The values of `archs`: (N, M), with every objective minimised."""
        return np.asarray(self._values, dtype=np.float64)

    def ask(self, arch: Arch) -> None:
        """Add the arch of an open trial."""
        self.seen.add(arch.values)
        self.pending[arch.values] = arch

    def add(self, arch: Arch, values: Sequence[float] | None) -> None:
        """Add the arch of a finished trial with its minimised values, None for a trial without values."""
        self.seen.add(arch.values)
        self.pending.pop(arch.values, None)
        if values is not None:
            self.archs.append(arch)
            self._values.append(values)

    def position(self, number: int) -> int:
        """The position of a trial among all trials that were not asked before; its number if no worker has died."""
        return number - bisect_left(self._again, number)

    def update(
        self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], space: SearchSpace, before: int
    ) -> None:
        """Update from those of all trials with numbers below `before` that are new or have finished."""
        signs = [1.0 if direction == StudyDirection.MINIMIZE else -1.0 for direction in directions]
        new = range(self._next, min(before, len(trials)))
        changed = sorted(self._open | set(new))
        self._again += [number for number in new if ORIGIN in trials[number].system_attrs]
        self._next = max(self._next, min(before, len(trials)))
        for number in changed:
            trial = trials[number]
            if set(trial.params) != set(space.names):
                if not trial.state.is_finished():  # another worker chooses its arch
                    self._open.add(number)
                continue
            arch = arch_of(space, trial.params)
            if ORIGIN not in trial.system_attrs:
                self.asked[self.position(number)] = arch
            if not trial.state.is_finished():
                self._open.add(number)
                self.ask(arch)
                continue
            self._open.discard(number)
            has_values = trial.state == TrialState.COMPLETE and trial.values is not None
            self.add(arch, [s * v for s, v in zip(signs, trial.values, strict=True)] if has_values else None)


class ArchSampler(BaseSampler):
    """Base class of samplers; a subclass implements `propose`.

    The first trials are those of `Problem.first`, if they are feasible: the smallest arch, the largest one, the
    largest at each smaller input size, and the ends of other branches. `propose` suggests the archs of later trials. A
    suggestion that breaks a limit or repeats an earlier arch is replaced by another one. After `MAX_PROPOSALS`
    suggestions, a feasible arch is drawn at random. An arch is repeated only if no new one is found. Each suggestion is
    followed by `Problem.num_variants` archs that have the same weights, drawn at random.

    Every draw is a function of the seed and the trial number, so a resumed search asks for the same archs as an
    uninterrupted one.

    Args:
        problem: the space and its limits.
        seed: seed of all draws.

    Attributes:
        predictor: the predictor that chose the latest trials, and its quality; None for samplers without a predictor.
        history: the trials that the sampler has seen.
        keeps_plan: whether proposals use what `prepare` has fitted, even if more trials have finished since.
        known_trials: all trials so far, so that the study need not be read again; None to read it.
    """

    keeps_plan = False
    known_trials: Sequence[FrozenTrial] | None = None

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.seed = seed
        self.predictor: PredictorQuality | None = None
        self.history = History()

    @abstractmethod
    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose an arch for trial `number`. It may be infeasible or repeat an earlier arch."""

    def prepare(self, study: Study) -> None:
        """Do what takes long before a trial is asked, so that other workers need not wait for it."""
        self.keeps_plan = True
        trials = study.get_trials(deepcopy=False)
        self.history.update(trials, study.directions, self.problem.space, len(trials))
        self.plan(self.history)

    def plan(self, history: History) -> None:
        """Fit what the next proposals are chosen by."""

    def next_arch(self, history: History, number: int) -> Arch:
        """Choose the arch of the trial at position `number`.

        Raises:
            ConfigError: no arch is within the limits.
        """
        rng = np.random.default_rng([self.seed, number])
        if number < len(self.problem.first) and self._acceptable(self.problem.first[number], history):
            return self.problem.first[number]
        variant = self._variant(history, number, rng)
        if variant is not None:
            return variant
        for _ in range(MAX_PROPOSALS):
            arch = self.problem.frozen_arch(self.propose(history, number, rng))
            if self._acceptable(arch, history):
                return arch
        for _ in range(MAX_PROPOSALS):
            arch = self.problem.draw(rng)
            if arch.values not in history.seen:
                return arch
        return arch

    def _variant(self, history: History, number: int, rng: np.random.Generator) -> Arch | None:
        """A new arch with the weights of an earlier trial, None if it is the turn of another network."""
        since = (number - len(self.problem.first)) % (1 + self.problem.num_variants)
        earlier = history.asked.get(number - since) if since else None
        if number < len(self.problem.first) or earlier is None:
            return None
        new = [arch for arch in self.problem.variants(earlier) if arch.values not in history.seen]
        return new[int(rng.integers(len(new)))] if new else None

    def _acceptable(self, arch: Arch, history: History) -> bool:
        return arch.values not in history.seen and bool(self.problem.feasible([arch])[0])

    def position(self, study: Study, trial: FrozenTrial) -> int:
        """The position of a trial, see `History.position`, after an update from all trials before it."""
        trials = study.get_trials(deepcopy=False) if self.known_trials is None else self.known_trials
        self.history.update(trials, study.directions, self.problem.space, trial.number)
        return self.history.position(trial.number)

    # The methods below implement Optuna's interface.

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of all genes."""
        return distributions(self.problem.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        """Return the arch of the trial as parameters."""
        arch = self.next_arch(self.history, self.position(study, trial))
        return dict(zip(arch.names, arch.values, strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> NoReturn:
        """Refuse to sample a single gene, since `sample_relative` samples all genes together."""
        raise RuntimeError(f"all genes must be sampled together, got a request for {param_name} alone")


def ask(study: optuna.Study, space: SearchSpace) -> optuna.trial.Trial:
    """Ask a study for a trial with all genes."""
    trial = study.ask(fixed_distributions=distributions(space))
    _ = trial.relative_params  # reading them makes NSGA-II assign the trial to a generation
    return trial
