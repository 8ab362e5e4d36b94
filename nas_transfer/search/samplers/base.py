"""What all samplers share: archs as Optuna's parameters, reproducible draws, no infeasible or repeated arch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_transfer.runs import PredictorQuality
from nas_transfer.search.problem import Problem
from nas_transfer.space import Arch, Gene, SearchSpace

MAX_PROPOSALS = 100
"""Proposals of a sampler's own rule that are refused before an arch is drawn at random."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """A distribution for each gene: integers where the choices are evenly spaced, else categories."""
    return {gene.name: _distribution(gene) for gene in space.genes}


def _distribution(gene: Gene) -> BaseDistribution:
    steps = set(np.diff(gene.choices).tolist())
    if len(steps) == 1:
        return IntDistribution(gene.choices[0], gene.choices[-1], step=steps.pop())
    return CategoricalDistribution(gene.choices)


def arch_of(space: SearchSpace, params: Mapping[str, Any]) -> Arch:
    """The arch of a trial's parameters."""
    return space.arch([int(params[name]) for name in space.names])


class History:
    """All archs that were asked, and the values of those that were told, minimised.

    Attributes:
        seen: values of every arch that was asked, whatever became of it.
        pending: those of the archs that were asked and not told yet, in the order in which they were asked.
        archs: those with values, in trial order.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()
        self.pending: dict[tuple[int, ...], Arch] = {}
        self.archs: list[Arch] = []
        self._values: list[Sequence[float]] = []
        self._open: set[int] = set()
        self._next = 0

    @property
    def values(self) -> np.ndarray:
        """(N, M), every objective minimised."""
        return np.asarray(self._values, dtype=np.float64)

    def ask(self, arch: Arch) -> None:
        """Remember that an arch was asked."""
        self.seen.add(arch.values)
        self.pending[arch.values] = arch

    def add(self, arch: Arch, values: Sequence[float] | None) -> None:
        """Remember what became of an arch: its minimised values, None if it got none."""
        self.seen.add(arch.values)
        self.pending.pop(arch.values, None)
        if values is not None:
            self.archs.append(arch)
            self._values.append(values)

    def update(self, study: Study, space: SearchSpace, before: int) -> None:
        """Take over what has changed in the study since the last call, in trials before number `before`."""
        signs = [1.0 if direction == StudyDirection.MINIMIZE else -1.0 for direction in study.directions]
        trials = study.get_trials(deepcopy=False)
        changed = sorted(self._open | set(range(self._next, min(before, len(trials)))))
        self._next = max(self._next, min(before, len(trials)))
        for number in changed:
            trial = trials[number]
            if set(trial.params) != set(space.names):
                continue
            arch = arch_of(space, trial.params)
            if not trial.state.is_finished():
                self._open.add(number)
                self.ask(arch)
                continue
            self._open.discard(number)
            done = trial.state == TrialState.COMPLETE and trial.values is not None
            self.add(arch, [s * v for s, v in zip(signs, trial.values, strict=True)] if done else None)


class ArchSampler(BaseSampler):
    """The common part: trials 0 and 1 are the smallest and the largest arch, and each later one is drawn by `propose`.

    Every draw comes from (seed, trial number), so that a resumed search asks what an undisturbed one asks. A proposal
    that breaks a limit or was asked before is drawn again, at most `MAX_PROPOSALS` times; then a random feasible arch
    is taken. In a space whose archs were all asked, an arch is repeated.

    Args:
        problem: the space and its limits.
        seed: of all draws.

    Attributes:
        predictor: that chose the last trials and how well it ranks, None for samplers without one.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.seed = seed
        self.predictor: PredictorQuality | None = None
        self.history = History()

    @abstractmethod
    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """The sampler's own rule; the result may be infeasible or known."""

    def next_arch(self, history: History, number: int) -> Arch:
        """The arch of trial `number`.

        Raises:
            ConfigError: no arch keeps the limits.
        """
        rng = np.random.default_rng([self.seed, number])
        space = self.problem.space
        if number < 2:
            end = self.problem.frozen_arch(space.smallest() if number == 0 else space.largest())
            if self._acceptable(end, history):
                return end
        for _ in range(MAX_PROPOSALS):
            arch = self.problem.frozen_arch(self.propose(history, number, rng))
            if self._acceptable(arch, history):
                return arch
        for _ in range(MAX_PROPOSALS):
            arch = self.problem.draw(rng)
            if arch.values not in history.seen:
                return arch
        return arch

    def _acceptable(self, arch: Arch, history: History) -> bool:
        return arch.values not in history.seen and bool(self.problem.feasible([arch])[0])

    # Optuna's side

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All genes at once."""
        return distributions(self.problem.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of `next_arch`."""
        self.history.update(study, self.problem.space, trial.number)
        arch = self.next_arch(self.history, trial.number)
        return dict(zip(arch.names, arch.values, strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never asked for: all genes come from `sample_relative`."""
        raise RuntimeError(f"expected every gene to be sampled at once, was asked for {param_name} alone")


def ask(study: optuna.Study, space: SearchSpace) -> optuna.trial.Trial:
    """The study's next trial, with all genes set."""
    trial = study.ask(fixed_distributions=distributions(space))
    _ = trial.relative_params  # without it, NSGA-II would give the trial no generation
    return trial
