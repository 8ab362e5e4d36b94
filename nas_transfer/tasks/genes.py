"""Task genes: choices of input size, neck and head, which a search moves together with the body.

A gene is named after the size that it chooses, in the unit of that size, and its choices ascend from cheap to costly.
The task states the largest value of each size, which an arch file without task genes means. ``task.build.genes`` lists
the smaller choices.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError

Choices: TypeAlias = Mapping[str, Sequence[int] | None]
"""Choices of each gene by name; None for a size that is fixed."""


def task_genes(largest: Mapping[str, int], choices: Choices | None, key: str = "task.build.genes") -> tuple[Gene, ...]:
    """The genes of a task, in the order of `largest`; a size without a smaller choice is none.

    Args:
        largest: the value of each size that a gene may choose, by the name of the gene.
        choices: the choices of some of them. Choices above the value of the task are left out, so that a task with a
            smaller head keeps the choices that are left; the value itself is always one.
        key: dotted key of the choices, for messages.

    Raises:
        ConfigError: an unknown gene, a gene without choices, or a choice that is no integer above 0.
    """
    choices = {} if choices is None else choices
    if not isinstance(choices, Mapping):
        raise ConfigError(f"{key} must hold lists of choices by name, or be null, got {choices!r}")
    for name, listed in choices.items():
        if name not in largest:
            near = difflib.get_close_matches(name, largest, n=3) or list(largest)
            raise ConfigError(f"{key} must name sizes that this task can change, got '{name}': try {' or '.join(near)}")
        if listed is not None and not _are_choices(listed):
            raise ConfigError(
                f"{key}.{name} must be a list of integers above 0, or null for the fixed size "
                f"{largest[name]}, got {list(listed) if isinstance(listed, Sequence) else listed!r}"
            )
    genes = []
    for name, size in largest.items():
        smaller = {choice for choice in choices.get(name) or () if choice < size}
        if smaller:
            genes.append(Gene(name, (*sorted(smaller), size), optional=True))
    return tuple(genes)


def _are_choices(listed: object) -> bool:
    """Whether a value of the configuration is a list of integers above 0, which nothing has checked before."""
    return isinstance(listed, Sequence) and bool(listed) and all(type(one) is int and one > 0 for one in listed)


def values_of(largest: Mapping[str, int], arch: Arch | None) -> dict[str, int]:
    """The value of each size in an arch; those of `largest` for sizes that are no genes, or without an arch."""
    if arch is None:
        return dict(largest)
    chosen = dict(zip(arch.names, arch.values, strict=True))
    return {name: chosen.get(name, size) for name, size in largest.items()}
