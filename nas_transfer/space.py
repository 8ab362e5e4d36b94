"""Search spaces: the finite choices of archs, and the moves between archs.

A `SearchSpace` is an ordered list of `Gene`s with integer choices; an `Arch` holds one value for each gene. Every
random draw comes from a `numpy.random.Generator` that the caller passes in.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet, Gene, is_integer
from nas_transfer.errors import ArchError, ConfigError


@dataclass(frozen=True)
class SearchSpace:
    """An ordered list of genes with the moves that a search needs.

    Methods with the parameter `frozen` take gene names and the values that the result must have for them. Freezing a
    gene does not change how many random numbers are drawn, so the draws of the other genes stay the same.

    Args:
        name: name of the space, in arch files and error messages.
        genes: at least one, with unique names; the genes of a group must be adjacent.

    Raises:
        ConfigError: there are no genes, a name is repeated, a group's genes are not adjacent, a group is also a gene,
            a gene depends on a gene that does not exist or itself depends on another, or there are several branches.
    """

    name: str
    genes: tuple[Gene, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if not self.name or not self.genes:
            raise ConfigError(f"a space must have a name and at least one gene, got {self.name!r} and {self.genes!r}")
        names = [gene.name for gene in self.genes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"gene names must be unique in space '{self.name}', got {repeated} more than once")
        seen: list[str] = []
        for gene in self.genes:
            if seen and gene.group == seen[-1] and "." in gene.name and gene.group not in names:
                continue
            if gene.group in seen or gene.group == "space":
                raise ConfigError(
                    f"gene '{gene.name}' does not fit into space '{self.name}': the genes of a group must be adjacent, "
                    "and a group must not be a gene as well or be called 'space'"
                )
            seen.append(gene.group)
        free = {gene.name for gene in self.genes if gene.depends_on is None}
        for gene in self.genes:
            if gene.depends_on is not None and gene.depends_on not in free:
                raise ConfigError(
                    f"gene '{gene.name}' must need a gene of space '{self.name}' that needs no other, "
                    f"got '{gene.depends_on}'"
                )
        branches = sorted({gene.only_with[0] for gene in self.genes if gene.only_with is not None})
        if len(branches) > 1:
            raise ConfigError(f"space '{self.name}' must have at most one branch, got {', '.join(branches)}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The gene names in order."""
        return tuple(gene.name for gene in self.genes)

    @cached_property
    def size(self) -> int:
        """The number of archs, a Python integer, since it easily exceeds 64 bits."""
        return self.count({})

    def count(self, frozen: Mapping[str, int]) -> int:
        """The number of archs with these values of the `frozen` genes."""
        dependents: dict[str, list[Gene]] = {}
        for gene in self.genes:
            if gene.depends_on is not None and gene.name not in frozen:
                dependents.setdefault(gene.depends_on, []).append(gene)
        total = 1
        for gene in self.genes:
            if gene.depends_on is not None:
                continue
            values = (frozen[gene.name],) if gene.name in frozen else gene.choices
            dependent = dependents.get(gene.name, [])
            total *= sum(
                math.prod([len(other.choices) for other in dependent if other.is_active_at(value)]) for value in values
            )
        return total

    @cached_property
    def branch(self) -> Gene | None:
        """The gene to whose values other genes belong (`Gene.only_with`), such as the choice of a head."""
        name = next((gene.only_with[0] for gene in self.genes if gene.only_with is not None), None)
        return None if name is None else self.genes[self._positions[name]]

    def branches(self) -> tuple[dict[str, int], ...]:
        """For each value of `branch`, the largest first, the value by the gene's name; one without any if none is."""
        branch = self.branch
        return ({},) if branch is None else tuple({branch.name: value} for value in reversed(branch.choices))

    def branch_of(self, arch: Arch) -> int | None:
        """The value of `branch` in an arch; None without a branch."""
        return None if self.branch is None else arch[self.branch.name]

    def ends(self) -> tuple[Arch, ...]:
        """The smallest and the largest arch of each branch: the cheapest and the costliest arch are among them."""
        ends = (self.smallest, self.largest)
        return tuple(end(frozen) for frozen in reversed(self.branches()) for end in ends)

    @cached_property
    def _dependents(self) -> tuple[tuple[int, int, Gene], ...]:
        """(index, index of the gene on which it depends, gene) of the genes that may have no effect."""
        return tuple(
            (index, self._positions[gene.depends_on], gene)
            for index, gene in enumerate(self.genes)
            if gene.depends_on is not None
        )

    @cached_property
    def _choice_counts(self) -> npt.NDArray[np.int64]:
        return np.array([len(gene.choices) for gene in self.genes], dtype=np.int64)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def extended(self, genes: Sequence[Gene]) -> SearchSpace:
        """This space with further genes behind its own, under the same name; itself if there are none."""
        return SearchSpace(self.name, (*self.genes, *genes)) if genes else self

    def part_of(self, arch: Arch) -> Arch:
        """The part of an arch of an `extended` space that belongs to this space.

        Raises:
            ArchError: the arch does not begin with the genes of this space.
        """
        count = len(self.genes)
        if arch.space == self.name and len(arch.names) > count and arch.names[:count] == self.names:
            return Arch(self.name, self.names, arch.values[:count])
        self.validate(arch)
        return arch

    def smallest(self, frozen: Mapping[str, int] | None = None) -> Arch:
        """The arch with the first choice of every gene."""
        return self.arch(self._freeze([gene.choices[0] for gene in self.genes], frozen))

    def largest(self, frozen: Mapping[str, int] | None = None) -> Arch:
        """The arch with the last choice of every gene."""
        return self.arch(self._freeze([gene.choices[-1] for gene in self.genes], frozen))

    def arch_or_largest(self, arch: ArchOrSupernet) -> Arch:
        """The part of an arch in this space, or the largest arch for `SUPERNET`, whose layers have its sizes."""
        return self.largest() if arch is SUPERNET else self.part_of(arch)

    def sample(self, rng: np.random.Generator, frozen: Mapping[str, int] | None = None) -> Arch:
        """Draw every gene uniformly and independently; raises ArchError if `frozen` is not in the space."""
        return self.arch(self._freeze(self._draw(rng), frozen))

    def mutate(
        self, arch: Arch, rng: np.random.Generator, probability: float, frozen: Mapping[str, int] | None = None
    ) -> Arch:
        """Redraw each gene with the given probability, uniformly among all its choices (DetNAS, AttentiveNAS).

        A redrawn gene may keep its value, so the result may equal `arch`.

        Raises:
            ArchError: `arch` or `frozen` is not in the space.
            ConfigError: the probability is not in 0-1.
        """
        if not 0.0 <= probability <= 1.0:
            raise ConfigError(f"the mutation probability must be in 0-1, got {probability}")
        self.validate(arch)
        redraw = rng.random(len(self.genes)) < probability
        drawn = self._draw(rng)
        for index, needed, gene in self._dependents:  # a gene that had no effect has no value to keep
            redraw[index] = redraw[index] or not gene.is_active_at(arch.values[needed])
        values = [new if change else old for new, change, old in zip(drawn, redraw, arch.values, strict=True)]
        return self.arch(self._freeze(values, frozen))

    def crossover(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Take each gene from either parent with equal probability (uniform crossover).

        A gene of a branch comes from the parent that is in it, if only one is.

        Raises:
            ArchError: a parent is not in the space.
        """
        self.validate(first)
        self.validate(second)
        from_first = rng.random(len(self.genes)) < 0.5
        for index, needed, gene in self._dependents:
            if gene.only_with is not None and first.values[needed] != second.values[needed]:
                here, there = (gene.is_active_at(parent.values[needed]) for parent in (first, second))
                from_first[index] = here or (from_first[index] and not there)
        return self.arch([a if take else b for a, b, take in zip(first.values, second.values, from_first, strict=True)])

    def encode(self, arch: Arch) -> npt.NDArray[np.int64]:
        """The index of each gene's value among its choices, int64 (G,); raises ArchError outside the space."""
        self.validate(arch)
        indices = [gene.choices.index(value) for gene, value in zip(self.genes, arch.values, strict=True)]
        return np.array(indices, dtype=np.int64)

    def decode(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Arch:
        """The arch with these choice indices (G,), the inverse of `encode`; raises ArchError for invalid indices."""
        if len(indices) != len(self.genes):
            raise ArchError(f"space '{self.name}' must have {len(self.genes)} choice indices, got {len(indices)}")
        values: list[int] = []
        for gene, index in zip(self.genes, indices, strict=True):
            if int(index) != index or not 0 <= index < len(gene.choices):
                raise ArchError(
                    f"the index of gene '{gene.name}' of space '{self.name}' must be an integer in "
                    f"0-{len(gene.choices) - 1}, got {index}"
                )
            values.append(gene.choices[int(index)])
        return self.arch(values)

    def validate(self, arch: Arch) -> None:
        """Check that `arch` is a point of this space; raises ArchError naming the first gene that does not fit."""
        if arch.space != self.name:
            raise ArchError(f"the arch must be of space '{self.name}', got one of space '{arch.space}'")
        if arch.names is not self.names and arch.names != self.names:
            differing = sorted(set(arch.names) ^ set(self.names)) or "the same ones in another order"
            raise ArchError(f"the arch must have the genes of space '{self.name}', got a difference in {differing}")
        for gene, value in zip(self.genes, arch.values, strict=True):
            if value not in gene.choices:
                raise ArchError(self._value_message(gene, value))
        if self._dependents and self._canonical(arch.values) != arch.values:
            raise ArchError(
                f"genes without effect must have their first choice, or their last one in a branch that is not chosen, "
                f"got {arch.values}: use space.arch"
            )

    def arch(self, values: Sequence[int]) -> Arch:
        """The arch with these values, one for each gene; genes without effect are set to `Gene.idle_value`."""
        return Arch(self.name, self.names, self._canonical(values))

    def with_value(self, arch: Arch, name: str, value: int) -> Arch:
        """An arch with another value of one gene; genes that lose their effect are set to `Gene.idle_value`.

        Raises:
            ArchError: the space has no such gene, or the gene no such choice.
        """
        if name not in self._positions:
            raise ArchError(f"a gene must be one of space '{self.name}', got '{name}': try one of {self._near(name)}")
        values = list(arch.values)
        values[self._positions[name]] = self._checked_value(self.genes[self._positions[name]], value)
        return self.arch(values)

    def _near(self, name: str) -> list[str]:
        return difflib.get_close_matches(name, self.names, n=3) or list(self.names[:3])

    def is_active(self, arch: Arch, gene: Gene) -> bool:
        """Whether a gene of this space has an effect in `arch`."""
        return gene.depends_on is None or gene.is_active_at(arch[gene.depends_on])

    def from_dict(self, mapping: Mapping[str, object]) -> Arch:
        """The arch of a JSON or YAML mapping, the inverse of `Arch.to_dict`; its key ``space`` is optional.

        A missing gene that is `Gene.optional` has its last choice.

        Raises:
            ArchError: the arch is of another space, a group is missing, unknown or of the wrong length, or a value is
                not among the choices; the message names the gene, the value and the choices.
        """
        if not isinstance(mapping, Mapping):
            kind = type(mapping).__name__
            raise ArchError(f"an arch of space '{self.name}' must be a mapping of gene groups, got {kind}")
        stated = mapping.get("space", self.name)
        if stated != self.name:
            raise ArchError(
                f"the arch must be of space '{self.name}', got one of space '{stated}': "
                f"use supernet={stated} or another arch"
            )
        groups: dict[str, list[Gene]] = {}
        for gene in self.genes:
            groups.setdefault(gene.group, []).append(gene)
        missing = [
            name for name, genes in groups.items() if name not in mapping and not all(gene.optional for gene in genes)
        ]
        surplus = [str(key) for key in mapping if key not in groups and key != "space"]
        if missing or surplus:
            faults = ([f"unknown: {surplus}"] if surplus else []) + ([f"missing: {missing}"] if missing else [])
            remedy = ": is it of another task, or of this one with other task.build.genes?" if surplus else ""
            raise ArchError(f"arch of space '{self.name}': {', '.join(faults)}; the groups are {list(groups)}{remedy}")
        values: list[int] = []
        for group, genes in groups.items():
            if group in mapping:
                values.extend(self._group_values(group, genes, mapping[group]))
            else:
                values.extend(gene.choices[-1] for gene in genes)
        return self.arch(values)

    def _group_values(self, group: str, genes: list[Gene], given: object) -> list[int]:
        if "." not in genes[0].name:
            return [self._checked_value(genes[0], given)]
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(genes):
            where = [gene.name.partition(".")[2] for gene in genes]
            raise ArchError(
                f"'{group}' of space '{self.name}' must be a list of {len(genes)} values, one for each of {where}, "
                f"got {given!r}"
            )
        return [self._checked_value(gene, value) for gene, value in zip(genes, given, strict=True)]

    def _checked_value(self, gene: Gene, value: object) -> int:
        if not is_integer(value) or value not in gene.choices:
            raise ArchError(self._value_message(gene, value))
        return int(value)

    def _value_message(self, gene: Gene, value: object) -> str:
        return f"gene '{gene.name}' of space '{self.name}' must be one of {list(gene.choices)}, got {value!r}"

    def _draw(self, rng: np.random.Generator) -> list[int]:
        indices = rng.integers(0, self._choice_counts)
        return [gene.choices[index] for gene, index in zip(self.genes, indices.tolist(), strict=True)]

    def _freeze(self, values: list[int], frozen: Mapping[str, int] | None) -> list[int]:
        for name, value in (frozen or {}).items():
            position = self._positions.get(name)
            if position is None:
                near = self._near(name)
                raise ArchError(f"a frozen gene must be one of space '{self.name}', got '{name}': try one of {near}")
            values[position] = self._checked_value(self.genes[position], value)
        return values

    def _canonical(self, values: Sequence[int]) -> tuple[int, ...]:
        if not self._dependents:
            return tuple(values)
        fixed = list(values)
        for index, needed, gene in self._dependents:
            if not gene.is_active_at(values[needed]):
                fixed[index] = gene.idle_value
        return tuple(fixed)
