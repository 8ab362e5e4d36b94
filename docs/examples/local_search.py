"""A sampler: changes a few genes of a network on the front."""

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.search.pareto import non_dominated
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History


class LocalSearch(ArchSampler):
    """Proposes neighbours of the trials on the front so far.

    Args:
        problem: the space and its limits.
        seed: of all draws.
        mutation: probability that a gene is drawn anew.
    """

    def __init__(self, problem: Problem, seed: int, mutation: float) -> None:
        super().__init__(problem, seed)
        self.mutation = mutation

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """A mutation of a random trial on the front; a random arch while no trial has a score."""
        if not history.archs:
            return self.problem.draw(rng)
        front = np.flatnonzero(non_dominated(history.values))
        arch = history.archs[int(rng.choice(front))]
        return self.problem.space.mutate(arch, rng, self.mutation, self.problem.frozen)
