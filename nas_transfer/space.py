"""Search spaces and archs: the finite choices, one point among them, and the moves between points.

A `SearchSpace` is an ordered list of `Gene`s with integer choices; an `Arch` holds one value per gene. Both are frozen,
hashable and free of torch, so that an arch can be drawn, costed, stored and compared without building a network.
Every random draw comes from a `numpy.random.Generator` that the caller passes in.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nas_transfer.errors import ArchError, ConfigError


@dataclass(frozen=True)
class Gene:
    """One finite integer choice, such as the depth of a stage.

    Args:
        name: ``"<group>"`` for a gene that stands alone (``"resolution"``) or ``"<group>.<where>"`` (``"width.mb1"``).
        choices: the allowed values, ascending and without repetition.
        needs: (name, least value) of another gene below which this one means nothing, such as the kernel size of a
            block that the depth drops; it then has its first choice.

    Raises:
        ConfigError: the name is empty, or the choices are not ascending positive or zero integers.
    """

    name: str
    choices: tuple[int, ...]
    needs: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.name or self.name.startswith(".") or self.name.endswith("."):
            raise ConfigError(f"expected a gene name like 'resolution' or 'width.mb1', got {self.name!r}")
        if not self.choices or not all(_is_integer(choice) and choice >= 0 for choice in self.choices):
            raise ConfigError(
                f"expected one or more integers >= 0 as the choices of gene '{self.name}', got {list(self.choices)}"
            )
        if any(left >= right for left, right in zip(self.choices, self.choices[1:], strict=False)):
            raise ConfigError(
                f"expected ascending choices without repetition for gene '{self.name}', got {list(self.choices)}"
            )

    @property
    def group(self) -> str:
        """The part of the name before the first dot."""
        return self.name.partition(".")[0]


class Supernet(Enum):
    """The type of `SUPERNET`."""

    SUPERNET = "supernet"


SUPERNET: Final = Supernet.SUPERNET
"""Stands where an arch could stand and means all archs at once, which share their weights."""


@dataclass(frozen=True)
class Arch:
    """One point of a search space: a value for every gene, in the order of the space's genes.

    It is built by a `SearchSpace`, which checks the values; the constructor only checks that names and values pair up.

    Raises:
        ArchError: names and values differ in length.
    """

    space: str
    names: tuple[str, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ArchError(
                f"expected one value per gene for an arch of space '{self.space}', "
                f"got {len(self.values)} values for {len(self.names)} genes"
            )

    def __getitem__(self, name: str) -> int:
        """The value of one gene; an unknown name raises KeyError."""
        try:
            return self.values[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def group(self, group: str) -> tuple[int, ...]:
        """The values of a group's genes in order, e.g. all widths; an unknown group raises KeyError."""
        prefix = group + "."
        values = tuple(
            value
            for name, value in zip(self.names, self.values, strict=True)
            if name == group or name.startswith(prefix)
        )
        if not values:
            raise KeyError(group)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: ``{"space": .., "resolution": 192, "width": [..], "depth": [..], ..}``.

        Groups come in the order of the genes; a gene without a dot is a number, a group is the list of its values.
        `SearchSpace.from_dict` is the inverse.
        """
        mapping: dict[str, Any] = {"space": self.space}
        for name, value in zip(self.names, self.values, strict=True):
            group, dot, _ = name.partition(".")
            if dot:
                mapping.setdefault(group, []).append(value)
            else:
                mapping[group] = value
        return mapping

    def short_id(self) -> str:
        """Eight hexadecimal digits that name this arch in file names, logs and reports."""
        return short_id(self.to_dict())


def short_id(arch: Mapping[str, Any]) -> str:
    """`Arch.short_id` of an arch's dict form, whose space need not be known."""
    text = json.dumps(arch, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


ArchOrSupernet: TypeAlias = Arch | Supernet
"""A single arch, or `SUPERNET` for all of them."""


@dataclass(frozen=True)
class SearchSpace:
    """An ordered list of genes with the moves that a search needs.

    `frozen`, where a method takes it, maps gene names to values that the result must have. It never changes how many
    random numbers are drawn, so that freezing one gene leaves the draws of the others as they were.

    Args:
        name: names the space in arch files and error messages.
        genes: at least one, with unique names; the genes of one group stand next to each other.

    Raises:
        ConfigError: no genes, a repeated name, a scattered group, a group that is also a gene, or a gene that needs one
            that there is not or that itself needs another.
    """

    name: str
    genes: tuple[Gene, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        if not self.name or not self.genes:
            raise ConfigError(f"expected a space with a name and genes, got name {self.name!r} and {self.genes!r}")
        names = [gene.name for gene in self.genes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"expected unique gene names in space '{self.name}', got {repeated} more than once")
        seen: list[str] = []
        for gene in self.genes:
            if seen and gene.group == seen[-1] and "." in gene.name and gene.group not in names:
                continue
            if gene.group in seen or gene.group == "space":
                raise ConfigError(
                    f"expected the genes of a group side by side, in a group that is neither a gene itself nor called "
                    f"'space', got gene '{gene.name}' in space '{self.name}'"
                )
            seen.append(gene.group)
        free = {gene.name for gene in self.genes if gene.needs is None}
        for gene in self.genes:
            if gene.needs is not None and gene.needs[0] not in free:
                raise ConfigError(f"expected gene '{gene.name}' to need a gene of the space, got '{gene.needs[0]}'")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The gene names in order."""
        return tuple(gene.name for gene in self.genes)

    @cached_property
    def size(self) -> int:
        """How many archs the space holds: a Python integer, since it exceeds 64 bits easily."""
        return self.count({})

    def count(self, frozen: Mapping[str, int]) -> int:
        """How many archs have these values of the `frozen` genes."""
        dependents: dict[str, list[Gene]] = {}
        for gene in self.genes:
            if gene.needs is not None and gene.name not in frozen:
                dependents.setdefault(gene.needs[0], []).append(gene)
        total = 1
        for gene in self.genes:
            if gene.needs is not None:
                continue
            values = (frozen[gene.name],) if gene.name in frozen else gene.choices
            own = dependents.get(gene.name, [])
            total *= sum(
                math.prod([len(other.choices) for other in own if other.needs and value >= other.needs[1]])
                for value in values
            )
        return total

    @cached_property
    def _needs(self) -> tuple[tuple[int, int, int], ...]:
        """(place, place of the gene that it needs, least value) of the genes that need another."""
        return tuple(
            (place, self._positions[gene.needs[0]], gene.needs[1])
            for place, gene in enumerate(self.genes)
            if gene.needs is not None
        )

    @cached_property
    def _choice_counts(self) -> npt.NDArray[np.int64]:
        return np.array([len(gene.choices) for gene in self.genes], dtype=np.int64)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def smallest(self) -> Arch:
        """The arch with the first choice of every gene."""
        return self.arch([gene.choices[0] for gene in self.genes])

    def largest(self) -> Arch:
        """The arch with the last choice of every gene."""
        return self.arch([gene.choices[-1] for gene in self.genes])

    def arch_or_largest(self, arch: ArchOrSupernet) -> Arch:
        """The arch itself, or the largest arch for the supernet, whose layers have its sizes."""
        return self.largest() if arch is SUPERNET else arch

    def sample(self, rng: np.random.Generator, frozen: Mapping[str, int] | None = None) -> Arch:
        """Draw every gene uniformly and independently; raises ArchError for a `frozen` outside the space."""
        return self.arch(self._freeze(self._draw(rng), frozen))

    def mutate(
        self, arch: Arch, rng: np.random.Generator, probability: float, frozen: Mapping[str, int] | None = None
    ) -> Arch:
        """Redraw each gene with the given probability, uniformly among all its choices (DetNAS, AttentiveNAS).

        The redrawn value may be the old one, so the result may equal `arch`: the caller tells repeated archs apart.

        Raises:
            ArchError: `arch` or `frozen` lies outside the space.
            ConfigError: the probability is not in 0-1.
        """
        if not 0.0 <= probability <= 1.0:
            raise ConfigError(f"expected a mutation probability in 0-1, got {probability}")
        self.validate(arch)
        redraw = rng.random(len(self.genes)) < probability
        drawn = self._draw(rng)
        for place, needed, least in self._needs:  # what meant nothing so far has no value to keep
            redraw[place] = redraw[place] or arch.values[needed] < least
        values = [new if change else old for new, change, old in zip(drawn, redraw, arch.values, strict=True)]
        return self.arch(self._freeze(values, frozen))

    def crossover(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Take each gene from either parent with equal odds (uniform crossover); raises ArchError for a stranger."""
        self.validate(first)
        self.validate(second)
        from_first = rng.random(len(self.genes)) < 0.5
        return self.arch([a if take else b for a, b, take in zip(first.values, second.values, from_first, strict=True)])

    def encode(self, arch: Arch) -> npt.NDArray[np.int64]:
        """The index of each gene's value among its choices, int64 (G,); raises ArchError for a foreign arch."""
        self.validate(arch)
        indices = [gene.choices.index(value) for gene, value in zip(self.genes, arch.values, strict=True)]
        return np.array(indices, dtype=np.int64)

    def decode(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Arch:
        """The arch with these choice indices (G,), the inverse of `encode`; raises ArchError outside the choices."""
        if len(indices) != len(self.genes):
            raise ArchError(f"expected {len(self.genes)} choice indices for space '{self.name}', got {len(indices)}")
        values: list[int] = []
        for gene, index in zip(self.genes, indices, strict=True):
            if int(index) != index or not 0 <= index < len(gene.choices):
                raise ArchError(
                    f"expected an integer index in 0-{len(gene.choices) - 1} for gene '{gene.name}' "
                    f"of space '{self.name}', got {index}"
                )
            values.append(gene.choices[int(index)])
        return self.arch(values)

    def validate(self, arch: Arch) -> None:
        """Check that `arch` is a point of this space; raises ArchError naming the first gene that is not."""
        if arch.space != self.name:
            raise ArchError(f"expected an arch of space '{self.name}', got one of space '{arch.space}'")
        if arch.names is not self.names and arch.names != self.names:
            differing = sorted(set(arch.names) ^ set(self.names)) or "the same ones in another order"
            raise ArchError(f"expected the genes of space '{self.name}', got a difference in {differing}")
        for gene, value in zip(self.genes, arch.values, strict=True):
            if value not in gene.choices:
                raise ArchError(self._value_message(gene, value))
        if self._needs and self._canonical(arch.values) != arch.values:
            raise ArchError(f"expected the first choice of every gene that means nothing here, got {arch.values}")

    def arch(self, values: Sequence[int]) -> Arch:
        """The arch with these values, one of each gene's choices; genes that mean nothing get their first choice."""
        return Arch(self.name, self.names, self._canonical(values))

    def is_active(self, arch: Arch, gene: Gene) -> bool:
        """Whether a gene of this space means anything in `arch`."""
        return gene.needs is None or arch[gene.needs[0]] >= gene.needs[1]

    def from_dict(self, mapping: Mapping[str, Any]) -> Arch:
        """The arch of a JSON or YAML mapping, the inverse of `Arch.to_dict`; its key ``space`` may be left out.

        Raises:
            ArchError: another space, a missing, surplus or misspelt group, a group of the wrong length, or a value
                that is not among the choices; the message names the gene, the value and what is allowed.
        """
        if not isinstance(mapping, Mapping):
            raise ArchError(f"expected a mapping of gene groups for space '{self.name}', got {type(mapping).__name__}")
        stated = mapping.get("space", self.name)
        if stated != self.name:
            raise ArchError(
                f"expected an arch of space '{self.name}', got one of space '{stated}': "
                f"choose the supernet '{stated}' or another arch"
            )
        groups: dict[str, list[Gene]] = {}
        for gene in self.genes:
            groups.setdefault(gene.group, []).append(gene)
        missing = [group for group in groups if group not in mapping]
        surplus = [str(key) for key in mapping if key not in groups and key != "space"]
        if missing or surplus:
            raise ArchError(
                f"expected the groups {list(groups)} for an arch of space '{self.name}', "
                f"got {missing or 'none'} missing and {surplus or 'none'} unknown"
            )
        values: list[int] = []
        for group, genes in groups.items():
            values.extend(self._group_values(group, genes, mapping[group]))
        return self.arch(values)

    def _group_values(self, group: str, genes: list[Gene], given: Any) -> list[int]:
        listed = "." in genes[0].name
        if listed and (not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(genes)):
            where = [gene.name.partition(".")[2] for gene in genes]
            raise ArchError(
                f"expected a list of {len(genes)} values for '{group}' of space '{self.name}', "
                f"one each for {where}, got {given!r}"
            )
        given_values = list(given) if listed else [given]
        for gene, value in zip(genes, given_values, strict=True):
            if not _is_integer(value) or value not in gene.choices:
                raise ArchError(self._value_message(gene, value))
        return [int(value) for value in given_values]

    def _value_message(self, gene: Gene, value: Any) -> str:
        return f"expected one of {list(gene.choices)} for gene '{gene.name}' of space '{self.name}', got {value!r}"

    def _draw(self, rng: np.random.Generator) -> list[int]:
        indices = rng.integers(0, self._choice_counts)
        return [gene.choices[index] for gene, index in zip(self.genes, indices.tolist(), strict=True)]

    def _freeze(self, values: list[int], frozen: Mapping[str, int] | None) -> list[int]:
        for name, value in (frozen or {}).items():
            position = self._positions.get(name)
            if position is None:
                nearest = difflib.get_close_matches(name, self.names, n=3) or list(self.names[:3])
                raise ArchError(
                    f"expected the name of a gene of space '{self.name}' to freeze, got '{name}': try one of {nearest}"
                )
            if not _is_integer(value) or value not in self.genes[position].choices:
                raise ArchError(self._value_message(self.genes[position], value))
            values[position] = int(value)
        return values

    def _canonical(self, values: Sequence[int]) -> tuple[int, ...]:
        if not self._needs:
            return tuple(values)
        fixed = list(values)
        for place, needed, least in self._needs:
            if values[needed] < least:
                fixed[place] = self.genes[place].choices[0]
        return tuple(fixed)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
