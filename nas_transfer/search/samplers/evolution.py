"""The evolution of DetNAS: generations of mutations and crossovers of the archs with the best scores."""

from __future__ import annotations

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, Share
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History


class Evolution(ArchSampler):
    """Sampler that mutates and crosses the best archs (Chen et al. 2019, DetNAS, section 3.4).

    Each generation consists of mutations, then crossovers, then random archs. The parents are the best archs by the
    first objective over all trials so far, as in DetNAS. Costs only enter through the limits of the problem.

    Args:
        problem: the space and its limits.
        seed: seed of all draws.
        population: archs in a generation. Set search.ask_batch to the same number for generations as published.
        parents: number of the best archs that become parents.
        mutations: number of mutations in a generation.
        crossovers: number of crossovers in a generation.
        mutation: probability that a mutation redraws a gene.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self, problem: Problem, seed: int, population: Positive, parents: Positive, mutations: Count,
        crossovers: Count, mutation: Share,
    ) -> None:  # fmt: skip
        super().__init__(problem, seed)
        if parents < 1 or min(mutations, crossovers) < 0 or mutations + crossovers > population:
            raise ConfigError(
                "search.sampler needs at least 1 parent, and mutations and crossovers of at least 0 that fit into the "
                f"population, got {parents=} {mutations=} {crossovers=} {population=}"
            )
        if not 0 < mutation <= 1:
            raise ConfigError(f"search.sampler.mutation must be above 0 and at most 1, got {mutation}")
        self.population = population
        self.parents = parents
        self.mutations = mutations
        self.crossovers = crossovers
        self.mutation = mutation

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose a mutation, a crossover or a random arch, by the position of the trial in its generation."""
        generation, position = divmod(number, self.population)
        if generation == 0 or not history.archs or position >= self.mutations + self.crossovers:
            return self.problem.draw(rng)
        best = np.argsort(history.values[:, 0], kind="stable")[: self.parents]
        first, second = (history.archs[int(index)] for index in rng.choice(best, 2))
        if position < self.mutations:
            return self.problem.space.mutate(first, rng, self.mutation, self.problem.frozen)
        return self.problem.space.crossover(first, second, rng)
