"""Samplers of Optuna, reseeded for each trial and without infeasible or repeated archs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas_transfer.arch import Arch
from nas_transfer.ranges import Positive
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History, arch_of

MAX_SEED = 2**31 - 1


class FromOptuna(ArchSampler):
    """Sampler that takes its proposals from a sampler of Optuna.

    An Optuna sampler starts new random numbers in each process, so a resumed study would repeat archs. This class
    builds a new one for each proposal instead, seeded by the seed, the trial number and the attempt. The state of
    Optuna's sampler is in the study, so nothing is lost.

    Args:
        problem: the space and its limits.
        seed: seed of all draws.
        build: builds Optuna's sampler; called with ``seed=``.
        attempts: proposals that may be rejected for one trial before an arch is drawn at random. Each one costs a call
            of Optuna's sampler.
    """

    def __init__(self, problem: Problem, seed: int, build: Callable[..., BaseSampler], attempts: Positive) -> None:
        super().__init__(problem, seed)
        self.build = build
        self.attempts = attempts
        self._call: tuple[Study, FrozenTrial] | None = None
        self._attempt = 0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call Optuna's sampler."""
        self._sampler(trial.number, 0).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Call Optuna's sampler, which may store attributes of the trial, for instance its generation."""
        self._sampler(trial.number, 0).after_trial(study, trial, state, values)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        """Return the first proposal that is feasible and new."""
        self._call, self._attempt = (study, trial), 0
        if self.position(study, trial) < len(self.problem.first):
            # Their archs are fixed, but genetic samplers need to assign them to a generation.
            self._sampler(trial.number, 0).sample_relative(study, trial, search_space)
        return super().sample_relative(study, trial, search_space)

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose the arch of Optuna's sampler, or a random arch once all attempts are used up."""
        if self._call is None or self._attempt >= self.attempts:
            return self.problem.draw(rng)
        study, trial = self._call
        sampler = self._sampler(number, self._attempt)
        self._attempt += 1
        space = sampler.infer_relative_search_space(study, trial)
        params = sampler.sample_relative(study, trial, space)
        for name, distribution in self.infer_relative_search_space(study, trial).items():
            if name not in params:
                params[name] = sampler.sample_independent(study, trial, name, distribution)
        return arch_of(self.problem.space, params)

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        seed = int(np.random.default_rng([self.seed, number, attempt]).integers(MAX_SEED))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental samplers warn each time they are built
            return self.build(seed=seed)
