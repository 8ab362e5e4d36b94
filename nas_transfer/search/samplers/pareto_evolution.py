"""Evolution from the current front: any non-dominated arch may become a parent at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_transfer.errors import ConfigError
from nas_transfer.search.pareto import crowding, non_dominated
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.screen import QuadraticScreen
from nas_transfer.space import Arch

NEIGHBOURHOOD = 2
"""How far along the front a second parent may be: archs of similar cost make the better children."""
MUTATED_CHILDREN = 0.5


@dataclass(frozen=True)
class _Front:
    archs: list[Arch]
    values: np.ndarray
    room: np.ndarray


class ParetoEvolution(ArchSampler):
    """After a random start, each arch is a mutated member of the current front or a child of two neighbours on it.

    A steady-state relative of SEMO (Laumanns et al. 2004): no generations and no selection but dominance, so that what
    one evaluation finds is used in the next batch. The less crowded of two random members of the front is a parent. Of
    several such children the one that a cheap regression expects most of is asked for (`QuadraticScreen`).

    Args:
        problem, seed: see `ArchSampler`.
        num_random: archs that are drawn at random at the start.
        mutation: probability for each gene of a mutated arch; one gene changes in any case.
        crossover: probability of two parents; half of their children are mutated as well.
        screen: children among which is chosen; 1 for evolution alone.

    Raises:
        ConfigError: naming the value.
    """

    def __init__(
        self, problem: Problem, seed: int, num_random: int, mutation: float, crossover: float, screen: int
    ) -> None:
        super().__init__(problem, seed)
        if num_random < 1 or screen < 1 or not 0 <= mutation <= 1 or not 0 <= crossover <= 1:
            raise ConfigError(
                "expected sampler num_random and screen of at least 1, mutation and crossover in 0-1, "
                f"got {num_random}, {screen}, {mutation} and {crossover}"
            )
        self.num_random = num_random
        self.mutation = mutation
        self.crossover = crossover
        self.num_children = screen
        self._screen = QuadraticScreen(problem)
        self._front: tuple[int, _Front] | None = None

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """The most promising of some children of the front of all archs with values."""
        if number < self.num_random or len(history.archs) < 2:
            return self.problem.draw(rng)
        front = self._current_front(history)
        children = [self.problem.frozen_arch(self._child(front, rng)) for _ in range(self.num_children)]
        kept = self.problem.feasible(children)
        usable = [
            child for child, keep in zip(children, kept, strict=True) if keep and child.values not in history.seen
        ]
        return self._screen.best(usable, history, front.values) if usable else children[0]

    def _current_front(self, history: History) -> _Front:
        if self._front is None or self._front[0] != len(history.archs):
            values = history.values
            kept = np.flatnonzero(non_dominated(values))
            kept = kept[np.argsort(values[kept, 0], kind="stable")]
            front = _Front([history.archs[index] for index in kept], values[kept], crowding(values[kept]))
            self._front = (len(history.archs), front)
        return self._front[1]

    def _child(self, front: _Front, rng: np.random.Generator) -> Arch:
        first, second = rng.integers(0, len(front.archs), 2).tolist()
        place = first if front.room[first] >= front.room[second] else second
        arch = front.archs[place]
        crossed = rng.random() < self.crossover
        if crossed:
            near = place + int(rng.integers(-NEIGHBOURHOOD, NEIGHBOURHOOD + 1))
            arch = self.problem.space.crossover(arch, front.archs[min(max(near, 0), len(front.archs) - 1)], rng)
        if crossed and rng.random() >= MUTATED_CHILDREN:
            return arch
        return change_genes(self.problem, arch, self.mutation, rng)


def change_genes(problem: Problem, arch: Arch, probability: float, rng: np.random.Generator) -> Arch:
    """Redraw each free gene with this probability, and one of them to another choice in any case."""
    space = problem.space
    arch = space.mutate(arch, rng, probability, problem.frozen)
    free = [
        place
        for place, gene in enumerate(space.genes)
        if gene.name not in problem.frozen and len(gene.choices) > 1 and space.is_active(arch, gene)
    ]
    if not free:
        return arch
    place = int(rng.choice(free))
    others = [choice for choice in space.genes[place].choices if choice != arch.values[place]]
    values = list(arch.values)
    values[place] = int(rng.choice(others))
    return space.arch(values)
