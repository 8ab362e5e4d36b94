"""Evolution from the current front: every non-dominated arch may become a parent at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Count, Positive, Share
from nas_transfer.search.pareto import crowding, non_dominated
from nas_transfer.search.planning import MOST_START
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.screen import QuadraticScreen

NEIGHBOURHOOD = 2
"""Largest distance of two parents along the front, since parents of similar cost have better children."""
MUTATED_CHILDREN = 0.5
"""Probability that a child of two parents is mutated."""


@dataclass(frozen=True)
class _Front:
    archs: list[Arch]
    values: np.ndarray
    crowding: np.ndarray


class ParetoEvolution(ArchSampler):
    """Sampler that mutates archs of the current front, or crosses two neighbours on it.

    The algorithm is a steady-state relative of SEMO (Laumanns et al. 2004). It has no generations and selects by
    dominance alone, so each batch builds on all outcomes so far. A parent is the less crowded of two random archs of
    the front. For each trial the sampler breeds several children, and proposes the one for which a cheap regression
    predicts most (`QuadraticScreen`).

    Args:
        problem: the space and its limits.
        seed: seed of all draws.
        num_random: number of archs at the start, which are drawn at random but for the ends of the space. The other
            archs of `Problem.first` come on top. None for `MOST_START`.
        mutation: probability that a mutation redraws a gene. A mutation changes one gene in any case.
        crossover: probability that a child has two parents. Half of these children are mutated too.
        screen: number of children from which the regression chooses; 1 for evolution alone.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self, problem: Problem, seed: int, num_random: Count | None, mutation: Share, crossover: Share, screen: Positive
    ) -> None:
        super().__init__(problem, seed)
        num_random = MOST_START if num_random is None else num_random
        if num_random < 1 or screen < 1 or not 0 <= mutation <= 1 or not 0 <= crossover <= 1:
            raise ConfigError(
                "search.sampler.num_random and screen must be at least 1, and mutation and crossover in 0-1, "
                f"got {num_random=} {screen=} {mutation=} {crossover=}"
            )
        self.num_random = num_random
        self.mutation = mutation
        self.crossover = crossover
        self.num_children = screen
        self._screen = QuadraticScreen(problem)
        self._front: tuple[int, _Front] | None = None

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose the most promising of several children of the current front."""
        if number < self.num_random + self.problem.num_more or len(history.archs) < 2:
            return self.problem.draw(rng)
        front = self._current_front(history)
        children = [self.problem.frozen_arch(self._child(front, rng)) for _ in range(self.num_children)]
        feasible = self.problem.feasible(children)
        usable = [
            child for child, allowed in zip(children, feasible, strict=True)
            if allowed and child.values not in history.seen
        ]  # fmt: skip
        return self._screen.best(usable, history, front.values) if usable else children[0]

    def _current_front(self, history: History) -> _Front:
        if self._front is None or self._front[0] != len(history.archs):
            values = history.values
            indices = np.flatnonzero(non_dominated(values))
            indices = indices[np.argsort(values[indices, 0], kind="stable")]
            front = _Front([history.archs[index] for index in indices], values[indices], crowding(values[indices]))
            self._front = (len(history.archs), front)
        return self._front[1]

    def _child(self, front: _Front, rng: np.random.Generator) -> Arch:
        first, second = rng.integers(0, len(front.archs), 2).tolist()
        parent = first if front.crowding[first] >= front.crowding[second] else second
        arch = front.archs[parent]
        crossed = rng.random() < self.crossover
        if crossed:
            neighbour = parent + int(rng.integers(-NEIGHBOURHOOD, NEIGHBOURHOOD + 1))
            neighbour = min(max(neighbour, 0), len(front.archs) - 1)
            arch = self.problem.space.crossover(arch, front.archs[neighbour], rng)
        if crossed and rng.random() >= MUTATED_CHILDREN:
            return arch
        return change_genes(self.problem, arch, self.mutation, rng)


def change_genes(problem: Problem, arch: Arch, probability: float, rng: np.random.Generator) -> Arch:
    """Redraw each free gene with this probability, and change one free gene to another choice in any case."""
    space = problem.space
    arch = space.mutate(arch, rng, probability, problem.frozen)
    free = [
        index
        for index, gene in enumerate(space.genes)
        if gene.name not in problem.frozen and len(gene.choices) > 1 and space.is_active(arch, gene)
    ]
    if not free:
        return arch
    changed = int(rng.choice(free))
    other_choices = [choice for choice in space.genes[changed].choices if choice != arch.values[changed]]
    values = list(arch.values)
    values[changed] = int(rng.choice(other_choices))
    return space.arch(values)
