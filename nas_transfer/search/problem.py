"""The problem of a search: a space of archs with frozen genes and limits on costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.space import SearchSpace

MAX_DRAWS = 20_000
DRAWS_AT_ONCE = 500
CLIMB_STEPS = 200

Costs = dict[str, npt.NDArray[np.float64]]
CostFunction = Callable[[Sequence[Arch]], Costs]
Known = dict[int, npt.NDArray[np.float64]]
DamageFunction = Callable[[Sequence[Arch]], npt.NDArray[np.float64]]
KnownFunction = Callable[[Sequence[Arch]], Known]


@dataclass(frozen=True)
class Limit:
    """The closed range in which an objective must lie, in the unit of the objective.

    Args:
        low: lower bound, None for no bound.
        high: upper bound, None for no bound.

    Raises:
        ConfigError: there is no bound, or `low` is above `high`.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ConfigError("a constraint needs min or max, got neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError(f"a constraint's min must be below its max, got min {self.low:g} and max {self.high:g}")

    def allows(self, value: float) -> bool:
        """Whether a value is in the range."""
        return bool(self.excess(np.array([value]))[0] == 0)

    def excess(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far each value (N,) is outside the range: (N,), 0 inside."""
        above = np.zeros_like(values) if self.high is None else np.maximum(values - self.high, 0)
        below = np.zeros_like(values) if self.low is None else np.maximum(self.low - values, 0)
        return above + below


@dataclass
class Problem:
    """A search space with frozen genes and with limits on costs that follow from the arch.

    Args:
        space: the space of all archs.
        frozen: genes that keep one value, for instance genes that have no effect in a task.
        limits: limits by the name of a cost.
        costs: maps N archs to the values (N,) of each cost, by name.
        known: maps N archs to the minimised values (N,) of each objective that needs no evaluation, by the index of
            the objective.
        input_gene: the gene that chooses the input size; None without one.
        weightless_genes: the genes that change no weight, such as the input size.
        num_variants: how many trials with other choices of these genes follow each proposed arch.
        damage: maps N archs to their damages (N,) (`nas_transfer.search.damage`), for predictors; None if not known.
        width_genes: the widths of neck and head that one would reduce by hand; empty to begin without these archs.
    """

    space: SearchSpace
    frozen: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    costs: CostFunction = field(default=lambda archs: {})
    known: KnownFunction = field(default=lambda archs: {})
    input_gene: str | None = None
    weightless_genes: Sequence[str] = ()
    num_variants: int = 0
    damage: DamageFunction | None = None
    width_genes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The number of archs, ignoring the limits."""
        return self.space.count(self.frozen)

    @cached_property
    def ends(self) -> tuple[Arch, ...]:
        """The smallest and the largest arch of each branch, such as a head, from the smallest branch to the largest.

        Without branches, these are the smallest and the largest arch.
        """
        if self.space.branch is None:
            return tuple(self.frozen_arch(end) for end in self.space.ends())
        branches = [branch for branch in self.space.branches() if branch.items() <= {**branch, **self.frozen}.items()]
        ends = (self.space.smallest, self.space.largest)
        return tuple(end({**branch, **self.frozen}) for branch in reversed(branches) for end in ends)

    @cached_property
    def resized(self) -> tuple[Arch, ...]:
        """The largest arch at each input size within the limits, largest size first.

        These are what resizing the images of the whole network offers without a search. There is one size if the input
        gene is frozen or missing.
        """
        archs = [self.ends[-1]]
        if self.input_gene in self.space.names and self.input_gene not in self.frozen:
            place = self.space.names.index(self.input_gene)
            for choice in self.space.genes[place].choices[-2::-1]:
                values = list(archs[0].values)
                values[place] = choice
                archs.append(self.space.arch(values))
        return tuple(arch for arch, allowed in zip(archs, self.feasible(archs), strict=True) if allowed)

    @cached_property
    def narrowed(self) -> tuple[Arch, ...]:
        """The largest arch with narrower neck and head within the limits, the widest first.

        In each arch, all `width_genes` are one choice smaller than in the one before, as far as they have smaller ones.
        These are what one would try by hand beside smaller images.
        """
        whole = self.ends[-1]
        places = [
            place
            for place, gene in enumerate(self.space.genes)
            if gene.name in self.width_genes and gene.name not in self.frozen and self.space.is_active(whole, gene)
        ]
        archs = []
        for step in range(1, max((len(self.space.genes[place].choices) for place in places), default=1)):
            values = list(whole.values)
            for place in places:
                choices = self.space.genes[place].choices
                values[place] = choices[max(0, len(choices) - 1 - step)]
            archs.append(self.space.arch(values))
        return tuple(arch for arch, allowed in zip(archs, self.feasible(archs), strict=True) if allowed)

    @property
    def baselines(self) -> tuple[Arch, ...]:
        """The archs that a search is compared with: `resized` and `narrowed`."""
        return (*self.resized, *self.narrowed)

    @cached_property
    def first(self) -> tuple[Arch, ...]:
        """The archs of the first trials: the smallest, the largest, and the largest at each smaller input size.

        The largest with narrower neck and head, and the smallest and the largest arch of every other branch, such as
        another head, follow. The first two may be outside the limits.
        """
        first, *others, last = self.ends
        more = (*self.baselines, *others)
        return (first, last, *dict.fromkeys(arch for arch in more if arch not in (first, last)))

    @property
    def num_more(self) -> int:
        """How many of the first archs come on top of the smallest and the largest one."""
        return len(self.first) - 2

    def variants(self, arch: Arch) -> list[Arch]:
        """The other archs within the limits that have the same weights."""
        genes = [
            gene for gene in self.space.genes if gene.name in self.weightless_genes and gene.name not in self.frozen
        ]
        content = arch.to_dict()
        archs = dict.fromkeys(
            self.space.from_dict({**content, **dict(zip([gene.name for gene in genes], choices, strict=True))})
            for choices in itertools.product(*(gene.choices for gene in genes))
        )
        others = [other for other in archs if other != arch]
        return [other for other, allowed in zip(others, self.feasible(others), strict=True) if allowed]

    def frozen_arch(self, arch: Arch) -> Arch:
        """Set the frozen genes of an arch to their values."""
        return self.space.mutate(arch, np.random.default_rng(0), 0.0, self.frozen)

    def feasible(self, archs: Sequence[Arch]) -> npt.NDArray[np.bool_]:
        """Which archs are within all limits: bool (N,)."""
        if not self.limits or not archs:
            return np.ones(len(archs), dtype=bool)
        return self._excess(archs) == 0

    def _excess(self, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The sum of the relative violations of all limits: (N,), 0 for a feasible arch."""
        costs = self.costs(archs)
        total = np.zeros(len(archs))
        for name, limit in self.limits.items():
            total += limit.excess(costs[name]) / max(abs(limit.high or limit.low or 1.0), 1e-12)
        return total

    def draw(self, rng: np.random.Generator) -> Arch:
        """Draw a feasible arch.

        The arch is uniform among feasible ones if these are not rare. Otherwise it is reached by changing single genes
        of the draw that is nearest to the limits.

        Raises:
            ConfigError: `MAX_DRAWS` draws contain no feasible arch; the message states the nearest costs.
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
            climbed = self._climb(nearest[1], rng)
            if climbed is not None:
                return climbed
        raise self._infeasible(nearest[1] if nearest is not None else self.space.smallest())

    def _climb(self, arch: Arch, rng: np.random.Generator) -> Arch | None:
        """Change single genes until the arch is within the limits; None if no change brings it nearer."""
        for _ in range(CLIMB_STEPS):
            neighbours = self.neighbours(arch)
            excess = self._excess([arch, *neighbours])
            best = excess[1:].min()
            if best >= excess[0]:
                return None
            choices = np.flatnonzero(excess[1:] == best)
            arch = neighbours[int(rng.choice(choices))]
            if best == 0:
                return arch
        return None

    def neighbours(self, arch: Arch) -> list[Arch]:
        """The archs that differ from `arch` by one step of one gene that is not frozen, within the limits or not.

        Any other choice of a branch is one step away.
        """
        neighbours = []
        for index, gene in enumerate(self.space.genes):
            if gene.name in self.frozen:
                continue
            position = gene.choices.index(arch.values[index])
            near = range(len(gene.choices)) if gene is self.space.branch else (position - 1, position + 1)
            for neighbour in near:
                if 0 <= neighbour < len(gene.choices) and neighbour != position:
                    values = list(arch.values)
                    values[index] = gene.choices[neighbour]
                    neighbours.append(self.space.arch(values))
        return neighbours

    def _infeasible(self, nearest: Arch) -> ConfigError:
        tried = [*self.ends, nearest]
        arch = tried[int(self._excess(tried).argmin())]
        costs = self.costs([arch])
        parts = []
        for name, limit in self.limits.items():
            bounds = " and ".join(
                f"{key} {bound:g}" for key, bound in (("min", limit.low), ("max", limit.high)) if bound is not None
            )
            parts.append(f"{name} with {bounds} (nearest found: {costs[name][0]:g})")
        return ConfigError(
            f"no arch of space '{self.space.name}' is within search.constraints after {MAX_DRAWS} draws: "
            f"{', '.join(parts)}; widen the constraints"
        )
