"""Optuna's samplers behind this project's rules: reseeded for each trial, without infeasible or repeated archs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History, arch_of
from nas_transfer.space import Arch

MAX_SEED = 2**31 - 1


class FromOptuna(ArchSampler):
    """A sampler of Optuna, whose proposals are drawn again until they are feasible and new.

    A stock sampler goes on with its own random stream, so that a resumed study repeats candidates; here a new one is
    made for each proposal, seeded by (seed, trial number, attempt). All that it knows is in the study.

    Args:
        problem, seed: see `ArchSampler`.
        build: makes Optuna's sampler from a seed.
        attempts: proposals that may be refused before a random arch is taken; each costs one call of the sampler.
    """

    def __init__(self, problem: Problem, seed: int, build: Callable[..., BaseSampler], attempts: int) -> None:
        super().__init__(problem, seed)
        self.build = build
        self.attempts = attempts
        self._call: tuple[Study, FrozenTrial] | None = None
        self._attempt = 0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """What Optuna's sampler does first."""
        self._sampler(trial.number, 0).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: Any, values: Any) -> None:
        """What Optuna's sampler keeps of a told trial, its generation for instance."""
        self._sampler(trial.number, 0).after_trial(study, trial, state, values)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the first proposal that is feasible and new."""
        self._call, self._attempt = (study, trial), 0
        if trial.number < 2:  # not proposed, but a genetic sampler has to give them a generation to become parents
            self._sampler(trial.number, 0).sample_relative(study, trial, search_space)
        return super().sample_relative(study, trial, search_space)

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """The stock sampler's proposal; a random arch once the attempts are used up."""
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
            warnings.simplefilter("ignore")  # experimental samplers say so each time they are built
            return self.build(seed=seed)
