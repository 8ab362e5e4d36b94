"""A gene, which is one finite choice, and an arch, which holds a value of every gene.

Both are frozen, hashable and free of torch, so that an arch can be drawn, stored and compared, and its cost computed,
without building a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, TypeGuard

import numpy as np

from nas_transfer.errors import ArchError, ConfigError


@dataclass(frozen=True)
class Gene:
    """One finite integer choice, such as the depth of a stage.

    Args:
        name: ``"<group>"`` for a gene on its own (``"resolution"``) or ``"<group>.<where>"`` (``"width.mb1"``).
        choices: the allowed values, ascending and without repetition.
        needs: (name, minimum) of another gene: below that minimum this gene has no effect, like the kernel size of a
            block that the depth drops, and is fixed to its first choice. None if the gene always has an effect.
        optional: whether the dict form of an arch may leave the gene out, which means its last choice.
        only_with: (name, value) of another gene, a branch: with any other value this gene has no effect, like the width
            of a head that is not chosen, and is fixed to its last choice. None if the gene belongs to no branch.

    Raises:
        ConfigError: the name is malformed, the choices are not ascending integers of at least 0, or the gene has both
            `needs` and `only_with`.
    """

    name: str
    choices: tuple[int, ...]
    needs: tuple[str, int] | None = None
    optional: bool = False
    only_with: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.name or self.name.startswith(".") or self.name.endswith("."):
            raise ConfigError(f"a gene's name must be like 'resolution' or 'width.mb1', got {self.name!r}")
        if not self.choices or not all(is_integer(choice) and choice >= 0 for choice in self.choices):
            raise ConfigError(
                f"the choices of gene '{self.name}' must be one or more integers from 0 up, got {list(self.choices)}"
            )
        if any(left >= right for left, right in zip(self.choices, self.choices[1:], strict=False)):
            raise ConfigError(
                f"the choices of gene '{self.name}' must be ascending without repetition, got {list(self.choices)}"
            )
        if self.needs is not None and self.only_with is not None:
            raise ConfigError(
                f"gene '{self.name}' must depend on one gene, got {self.needs[0]} and {self.only_with[0]}"
            )

    @property
    def depends_on(self) -> str | None:
        """The gene without which this gene may have no effect; None if it always has one."""
        condition = self.needs or self.only_with
        return None if condition is None else condition[0]

    def is_active_at(self, value: int) -> bool:
        """Whether this gene has an effect beside this value of the gene that it depends on."""
        if self.only_with is not None:
            return value == self.only_with[1]
        return self.needs is None or value >= self.needs[1]

    @property
    def idle_value(self) -> int:
        """The value of the gene in archs in which it has no effect."""
        return self.choices[0] if self.only_with is None else self.choices[-1]

    @property
    def group(self) -> str:
        """The part of the name before the first dot."""
        return self.name.partition(".")[0]


class Supernet(Enum):
    """The type of `SUPERNET`, its only member."""

    SUPERNET = "supernet"


SUPERNET: Final = Supernet.SUPERNET
"""Used in place of an arch to select the supernet, in which all archs share their weights."""


@dataclass(frozen=True)
class Arch:
    """One point of a search space: a value for every gene, in the order of the space's genes.

    Archs are made by a `SearchSpace`, which checks the values; the constructor only compares the numbers of names and
    values.

    Args:
        space: name of the space.
        names: names of all genes.
        values: their values.

    Raises:
        ArchError: names and values differ in number.
    """

    space: str
    names: tuple[str, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ArchError(
                f"an arch of space '{self.space}' must have one value per gene, got {len(self.values)} values "
                f"for {len(self.names)} genes"
            )

    def __getitem__(self, name: str) -> int:
        """The value of one gene; raises KeyError for an unknown name."""
        try:
            return self.values[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def group(self, group: str) -> tuple[int, ...]:
        """The values of a group's genes in order, e.g. all widths; raises KeyError for an unknown group."""
        prefix = group + "."
        values = tuple(
            value
            for name, value in zip(self.names, self.values, strict=True)
            if name == group or name.startswith(prefix)
        )
        if not values:
            raise KeyError(group)
        return values

    def to_dict(self) -> dict[str, object]:
        """The JSON form: ``{"space": .., "resolution": 192, "width": [..], "depth": [..], ..}``.

        Groups are in the order of the genes. A gene without a dot in its name is a number, a group the list of its
        genes' values. `SearchSpace.from_dict` is the inverse.
        """
        mapping: dict[str, object] = {"space": self.space}
        for name in self.names:
            group, dot, _ = name.partition(".")
            if group not in mapping:
                mapping[group] = list(self.group(group)) if dot else self[name]
        return mapping

    def short_id(self) -> str:
        """Eight hexadecimal digits that identify this arch in file names, logs and reports."""
        return short_id(self.to_dict())


def short_id(arch: Mapping[str, object]) -> str:
    """`Arch.short_id` of the dict form of an arch, without its space."""
    text = json.dumps(arch, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


ArchOrSupernet: TypeAlias = Arch | Supernet
"""A single arch, or `SUPERNET`."""


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of Python or numpy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
