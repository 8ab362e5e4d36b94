"""The range of each cost that a search can attain within its frozen genes and limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.search.problem import CLIMB_STEPS, CostFunction, Problem

NUM_DRAWS = 3
"""Random archs from which the extremes are sought under limits, beside the ends of the space."""


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
        unit, suffix = (1e6, " M") if self.high >= 1e5 else (1.0, "")
        low, high = (_short(value / unit) + suffix for value in (self.low, self.high))
        return f"{low} to {high} (x{self.ratio:.3g})"


def _short(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def attainable(problem: Problem, costs: CostFunction) -> dict[str, CostRange]:
    """The range of each cost over the archs within the frozen genes and limits of a problem.

    The ends of the space, and a few random archs under limits, are moved towards less and towards more of each cost,
    one gene at a time, as long as that changes the cost and stays within the limits. Where both ends are within the
    limits and more of each gene costs more, the range is exact. Otherwise it is that of archs that were reached, and
    the true one may be wider.

    Args:
        problem: the archs.
        costs: maps N archs to the values (N,) of each cost, by name.

    Raises:
        ConfigError: no arch is within the limits.
    """
    rng = np.random.default_rng(0)
    ends = [problem.ends[0], *problem.resized, *problem.ends[1:-1]]
    starts = [arch for arch, allowed in zip(ends, problem.feasible(ends), strict=True) if allowed]
    drawn = [problem.draw(rng) for _ in range(NUM_DRAWS)] if problem.limits else []
    names = costs(drawn or starts)

    def lowest(name: str, sign: float) -> float:
        from_ends = [min(starts, key=lambda arch: sign * costs([arch])[name][0])] if starts else []
        return sign * min(_lowest(problem, costs, name, sign, arch) for arch in (*from_ends, *drawn))

    return {name: CostRange(lowest(name, 1.0), lowest(name, -1.0)) for name in names}


def _lowest(problem: Problem, costs: CostFunction, name: str, sign: float, arch: Arch) -> float:
    """The lowest value of a cost times `sign` that is reached from an arch."""
    lowest = float(sign * costs([arch])[name][0])
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
