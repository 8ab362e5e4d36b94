"""Evolution from the current front: any non-dominated arch may become a parent at once."""

from __future__ import annotations

import numpy as np

from nas_transfer.errors import ConfigError
from nas_transfer.search.pareto import crowding, non_dominated
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.space import Arch


class ParetoEvolution(ArchSampler):
    """After a random start, each arch is a mutated one, or a mutated child of two, of the current front.

    A steady-state relative of SEMO (Laumanns et al. 2004): no generations and no selection but dominance, so that what
    one evaluation finds is used in the next batch. The less crowded of two random members of the front is a parent.

    Args:
        problem, seed: see `ArchSampler`.
        num_random: archs that are drawn at random at the start.
        mutation: probability for each gene, also after a crossover; at least one gene always changes.
        crossover: probability that an arch has two parents.

    Raises:
        ConfigError: naming the value.
    """

    def __init__(self, problem: Problem, seed: int, num_random: int, mutation: float, crossover: float) -> None:
        super().__init__(problem, seed)
        if num_random < 1 or not 0 < mutation <= 1 or not 0 <= crossover <= 1:
            raise ConfigError(
                "expected sampler num_random of at least 1, mutation in 0-1 and crossover in 0-1, "
                f"got {num_random}, {mutation} and {crossover}"
            )
        self.num_random = num_random
        self.mutation = mutation
        self.crossover = crossover
        self._front: tuple[int, list[Arch], np.ndarray] = (0, [], np.empty((0,)))

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """A child of the front of all archs with values."""
        if number < self.num_random or len(history.archs) < 2:
            return self.problem.draw(rng)
        archs, room = self._current_front(history)
        arch = self._parent(archs, room, rng)
        if rng.random() < self.crossover:
            arch = self.problem.space.crossover(arch, self._parent(archs, room, rng), rng)
        return change_genes(self.problem, arch, self.mutation, rng)

    def _current_front(self, history: History) -> tuple[list[Arch], np.ndarray]:
        if self._front[0] != len(history.archs):
            values = history.values
            kept = np.flatnonzero(non_dominated(values))
            self._front = (len(history.archs), [history.archs[index] for index in kept], crowding(values[kept]))
        return self._front[1], self._front[2]

    @staticmethod
    def _parent(archs: list[Arch], room: np.ndarray, rng: np.random.Generator) -> Arch:
        first, second = rng.integers(0, len(archs), 2).tolist()
        return archs[first if room[first] >= room[second] else second]


def change_genes(problem: Problem, arch: Arch, probability: float, rng: np.random.Generator) -> Arch:
    """Redraw each free gene with this probability, and one of them to another choice in any case."""
    space = problem.space
    arch = space.mutate(arch, rng, probability, problem.frozen)
    free = [k for k, gene in enumerate(space.genes) if gene.name not in problem.frozen and len(gene.choices) > 1]
    if not free:
        return arch
    place = int(rng.choice(free))
    others = [choice for choice in space.genes[place].choices if choice != arch.values[place]]
    values = list(arch.values)
    values[place] = int(rng.choice(others))
    return Arch(arch.space, arch.names, tuple(values))
