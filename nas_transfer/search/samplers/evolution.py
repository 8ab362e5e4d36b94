"""The evolution of DetNAS: generations bred from the best archs by score alone."""

from __future__ import annotations

import numpy as np

from nas_transfer.errors import ConfigError
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.space import Arch


class Evolution(ArchSampler):
    """Mutations and crossovers of the top archs (Chen et al. 2019, DetNAS, section 3.4), under limits on their costs.

    A trial's place in its generation says how it is made: mutations first, then crossovers, then random archs. The top
    archs are those of the first objective, over all trials told so far, as in DetNAS.

    Args:
        problem, seed: see `ArchSampler`.
        population: archs of a generation; ask as many at a time (search.ask_batch) to have generations as published.
        parents: how many of the best archs breed.
        mutations: archs of a generation that are mutations.
        crossovers: archs of a generation that are crossovers.
        mutation: probability for each gene.

    Raises:
        ConfigError: naming the value.
    """

    def __init__(
        self, problem: Problem, seed: int, population: int, parents: int, mutations: int, crossovers: int,
        mutation: float,
    ) -> None:  # fmt: skip
        super().__init__(problem, seed)
        if parents < 1 or min(mutations, crossovers) < 0 or mutations + crossovers > population:
            raise ConfigError(
                "expected sampler parents of at least 1, and mutations and crossovers that fit into the population, "
                f"got {parents}, {mutations} and {crossovers} of {population}"
            )
        if not 0 < mutation <= 1:
            raise ConfigError(f"expected sampler mutation in 0-1, got {mutation}")
        self.population = population
        self.parents = parents
        self.mutations = mutations
        self.crossovers = crossovers
        self.mutation = mutation

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """A mutation, a crossover or a random arch, by the trial's place in its generation."""
        generation, place = divmod(number, self.population)
        if generation == 0 or not history.archs or place >= self.mutations + self.crossovers:
            return self.problem.draw(rng)
        best = np.argsort(history.values[:, 0], kind="stable")[: self.parents]
        first, second = (history.archs[int(index)] for index in rng.choice(best, 2))
        if place < self.mutations:
            return self.problem.space.mutate(first, rng, self.mutation, self.problem.frozen)
        return self.problem.space.crossover(first, second, rng)
