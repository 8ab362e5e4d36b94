"""The range of each cost that a search can attain within its frozen genes and limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_transfer.search.problem import CLIMB_STEPS, CostFunction, Problem
from nas_transfer.space import Arch

NUM_DRAWS = 4
"""Random archs from which the extremes are sought, beside the ends of the space."""


@dataclass(frozen=True)
class CostRange:
    """The smallest and the largest value of a cost, in its unit.

    Attributes:
        low, high: values of archs within the limits.
    """

    low: float
    high: float

    @property
    def ratio(self) -> float:
        """How many times the largest is the smallest; infinite above a smallest of 0."""
        return self.high / self.low if self.low > 0 else float("inf")

    def __str__(self) -> str:
        return f"{_short(self.low)} to {_short(self.high)} (x{self.ratio:.3g})"


def _short(value: float) -> str:
    """In millions, with three significant digits, and all digits before the point."""
    millions = value / 1e6
    return f"{millions:.0f} M" if millions >= 100 else f"{millions:.3g} M"


def attainable(problem: Problem, costs: CostFunction) -> dict[str, CostRange]:
    """The range of each cost over the archs within the frozen genes and limits of a problem.

    The ends of the space and a few random archs are moved towards less and towards more of each cost, one gene at a
    time, as long as that changes the cost and stays within the limits. Where no end is outside the limits and more of
    each gene costs more, the range is exact. Otherwise it is that of archs that were reached, so the true one may be a
    little wider.

    Args:
        problem: the archs.
        costs: maps N archs to the values (N,) of each cost, by name.

    Raises:
        ConfigError: no arch is within the limits.
    """
    rng = np.random.default_rng(0)
    starts = list(problem.resized) + [problem.draw(rng) for _ in range(NUM_DRAWS)]
    smallest = problem.first[0]
    if problem.feasible([smallest])[0]:
        starts.append(smallest)
    values = costs(starts)
    return {
        name: CostRange(*(sign * _lowest(problem, costs, name, sign, starts) for sign in (1.0, -1.0)))
        for name in values
    }  # fmt: skip


def _lowest(problem: Problem, costs: CostFunction, name: str, sign: float, starts: list[Arch]) -> float:
    """The lowest value of a cost times `sign` that is reached from the best of some archs."""
    values = sign * costs(starts)[name]
    arch, lowest = starts[int(values.argmin())], float(values.min())
    for _ in range(CLIMB_STEPS):
        around = problem.neighbours(arch)
        around = [one for one, allowed in zip(around, problem.feasible(around), strict=True) if allowed]
        if not around:
            break
        values = sign * costs(around)[name]
        if values.min() >= lowest:
            break
        arch, lowest = around[int(values.argmin())], float(values.min())
    return lowest
