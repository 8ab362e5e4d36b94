"""What a search may ask for: the archs of a space within the limits of their costs, drawn without endless loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch, SearchSpace

MAX_DRAWS = 20_000
DRAWS_AT_ONCE = 500
CLIMB_STEPS = 200

Costs = dict[str, npt.NDArray[np.float64]]
CostFunction = Callable[[Sequence[Arch]], Costs]
Known = dict[int, npt.NDArray[np.float64]]
KnownFunction = Callable[[Sequence[Arch]], Known]


@dataclass(frozen=True)
class Limit:
    """The closed range that a cost must lie in, in the objective's own unit.

    Raises:
        ConfigError: neither bound, or `low` above `high`.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ConfigError("expected min or max of a constraint, got neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError(f"expected a constraint's min below its max, got {self.low:g} and {self.high:g}")

    def allows(self, value: float) -> bool:
        """Whether a value is inside."""
        return bool(self.excess(np.array([value]))[0] == 0)

    def excess(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far each value is outside, 0 inside."""
        above = np.zeros_like(values) if self.high is None else np.maximum(values - self.high, 0)
        below = np.zeros_like(values) if self.low is None else np.maximum(self.low - values, 0)
        return above + below


@dataclass
class Problem:
    """A search space with frozen genes and limits on costs that are known from the arch alone.

    Args:
        space: all archs.
        frozen: genes that keep one value, for instance those that a task never looks at.
        limits: by the name of a cost.
        costs: maps archs to arrays (N,) of each cost.
        known: maps archs to the minimised values (N,) of those objectives, by their place, that need no evaluation.
    """

    space: SearchSpace
    frozen: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    costs: CostFunction = field(default=lambda archs: {})
    known: KnownFunction = field(default=lambda archs: {})

    @property
    def size(self) -> int:
        """How many archs there are, limits aside."""
        return self.space.count(self.frozen)

    def frozen_arch(self, arch: Arch) -> Arch:
        """`arch` with the frozen genes at their values."""
        return self.space.mutate(arch, np.random.default_rng(0), 0.0, self.frozen)

    def feasible(self, archs: Sequence[Arch]) -> npt.NDArray[np.bool_]:
        """Which archs keep all limits: bool (N,)."""
        if not self.limits or not archs:
            return np.ones(len(archs), dtype=bool)
        return self._excess(archs) == 0

    def _excess(self, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The sum of all relative violations, 0 for a feasible arch: (N,)."""
        costs = self.costs(archs)
        total = np.zeros(len(archs))
        for name, limit in self.limits.items():
            total += limit.excess(costs[name]) / max(abs(limit.high or limit.low or 1.0), 1e-12)
        return total

    def draw(self, rng: np.random.Generator) -> Arch:
        """A feasible arch: uniform among the feasible ones where they are not rare, else one reached by local steps.

        Raises:
            ConfigError: none was found in a bounded number of draws; says the nearest value that was.
        """
        drawn = 0
        nearest: tuple[float, Arch] | None = None
        count = 1 if not self.limits else DRAWS_AT_ONCE
        while drawn < MAX_DRAWS:
            archs = [self.space.sample(rng, self.frozen) for _ in range(count)]
            drawn += count
            if not self.limits:
                return archs[0]
            excess = self._excess(archs)
            best = int(excess.argmin())
            if excess[best] == 0:
                return archs[int(np.flatnonzero(excess == 0)[0])]
            if nearest is None or excess[best] < nearest[0]:
                nearest = (float(excess[best]), archs[best])
            found = self._climb(nearest[1], rng)
            if found is not None:
                return found
        raise self._infeasible(nearest[1] if nearest is not None else self.space.smallest())

    def _climb(self, arch: Arch, rng: np.random.Generator) -> Arch | None:
        """Steps of single genes towards the limits; None if that ends outside."""
        for _ in range(CLIMB_STEPS):
            neighbours = self._neighbours(arch)
            excess = self._excess([arch, *neighbours])
            best = excess[1:].min()
            if best >= excess[0]:
                return None
            choices = np.flatnonzero(excess[1:] == best)
            arch = neighbours[int(rng.choice(choices))]
            if best == 0:
                return arch
        return None

    def _neighbours(self, arch: Arch) -> list[Arch]:
        found = []
        for place, gene in enumerate(self.space.genes):
            if gene.name in self.frozen:
                continue
            at = gene.choices.index(arch.values[place])
            for other in (at - 1, at + 1):
                if 0 <= other < len(gene.choices):
                    values = list(arch.values)
                    values[place] = gene.choices[other]
                    found.append(self.space.arch(values))
        return found

    def _infeasible(self, nearest: Arch) -> ConfigError:
        ends = [self.frozen_arch(end) for end in (self.space.smallest(), self.space.largest())]
        tried = [*ends, nearest]
        arch = tried[int(self._excess(tried).argmin())]
        costs = self.costs([arch])
        parts = []
        for name, limit in self.limits.items():
            bounds = " and ".join(
                f"{word} {bound:g}" for word, bound in (("min", limit.low), ("max", limit.high)) if bound is not None
            )
            parts.append(f"{name} with {bounds} (nearest found: {costs[name][0]:g})")
        return ConfigError(
            f"expected archs of space '{self.space.name}' within search.constraints, got none in {MAX_DRAWS} draws for "
            f"{', '.join(parts)}: widen the constraints"
        )
