"""Several heads of one task: a gene chooses the head of an arch, and each head has genes of its own.

All heads share one body, and with it everything that is learnt about it. The gene ``head`` numbers the heads from 1, in
the order of the configuration. A gene ``<name>_<gene>`` belongs to the head of that name alone, and has one value in
the archs of the others, so that equal networks are equal archs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from torch import nn

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.tasks.genes import Choices, task_genes, values_of

HEAD = "head"
"""The gene that chooses the head."""


class Head(Protocol):
    """What the heads of all tasks have in common."""

    @property
    def model(self) -> str:
        """Name of the head in reports."""

    @property
    def untrained_genes(self) -> tuple[str, ...]:
        """Genes whose smaller choices can do with the weights of the largest."""

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose."""


HeadT = TypeVar("HeadT", bound=Head)


class Heads(Generic[HeadT]):
    """The heads among which an arch chooses, from the smallest to the largest.

    Args:
        names: the names of those that are chosen from.
        heads: the largest sizes of each head, by name.
        choices: the choices of the genes of each head, by name.
        key: dotted key of the configuration, for messages.
        shared: genes that all heads have in common, such as the size of the image.

    Raises:
        ConfigError: fewer than two names, a name twice or one that is unknown.
    """

    def __init__(
        self, names: Sequence[str], heads: Mapping[str, HeadT], choices: Mapping[str, Choices | None], key: str,
        shared: Collection[str] = (),
    ) -> None:  # fmt: skip
        if len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(heads):
            raise ConfigError(
                f"{key}.heads must be at least two of {', '.join(sorted(heads))}, each once, got {list(names)}"
            )
        self.names = tuple(names)
        self.largest = {name: heads[name] for name in names}
        self.choices = choices
        self.key = key
        self.shared = frozenset(shared)

    @property
    def model(self) -> str:
        """The names of all heads; weights of one set of heads do not fit another."""
        return "+".join(self.largest[name].model for name in self.names)

    @property
    def last(self) -> str:
        """The name of the largest head, that of the largest arch."""
        return self.names[-1]

    @property
    def untrained_genes(self) -> tuple[str, ...]:
        """Those of the largest head: weights of the largest arch hold no other."""
        return self.renamed(self.last, self.largest[self.last].untrained_genes)

    def genes(self) -> tuple[Gene, ...]:
        """The choice of the head, and the genes of each head that are not shared.

        Raises:
            ConfigError: choices of a gene that `task_genes` refuses.
        """
        genes = [Gene(HEAD, tuple(range(1, len(self.names) + 1)), optional=True)]
        for number, name in enumerate(self.names, 1):
            own = {gene: size for gene, size in self.largest[name].genes.items() if gene not in self.shared}
            for gene in task_genes(own, self.choices[name], f"{self.key}.of.{name}.genes"):
                genes.append(replace(gene, name=_of(name, gene.name), only_with=(HEAD, number)))
        return tuple(genes)

    def renamed(self, name: str, genes: Sequence[str]) -> tuple[str, ...]:
        """The names of genes of one head among the genes of all."""
        return tuple(gene if gene in self.shared else _of(name, gene) for gene in genes)

    def name(self, arch: Arch) -> str:
        """The name of the head of an arch."""
        return self.names[arch[HEAD] - 1]

    def chosen(self, arch: Arch) -> tuple[HeadT, dict[str, int]]:
        """The head of an arch in its largest sizes, and its sizes by the names that the head gives them."""
        head = self.largest[self.name(arch)]
        return head, values_of(head.genes, self.alone(arch))

    def alone(self, arch: Arch) -> Arch:
        """The same network as an arch of the task with this head alone."""
        own = {_of(self.name(arch), gene): gene for gene in self.largest[self.name(arch)].genes}
        others = {_of(name, gene) for name in self.names for gene in self.largest[name].genes} | {HEAD}
        kept = [(own.get(name, name), value) for name, value in zip(arch.names, arch.values, strict=True)
                if name in own or name not in others]  # fmt: skip
        names, values = zip(*kept, strict=True)
        return Arch(arch.space, names, values)


def _of(name: str, gene: str) -> str:
    return f"{name}_{gene}"


def made(make: Callable[..., HeadT], shared: Mapping[str, object], key: str, own_key: str) -> HeadT:
    """One of several heads, made with what all of them share.

    Args:
        make: makes the head from `shared`.
        key: dotted key of the only head of a task, which the messages of a head name.
        own_key: dotted key of this one.

    Raises:
        ConfigError: a size that the head cannot have.
    """
    try:
        return make(**shared)
    except ConfigError as error:
        raise ConfigError(*(fault.replace(f"{key}.", f"{own_key}.") for fault in error.faults)) from error


class SeveralHeads(ABC, Generic[HeadT]):
    """What the sizes of several heads have in common, whatever the task.

    Attributes:
        heads: the names of those that are chosen from.
    """

    heads: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))  # dataclasses of sizes are frozen
        _ = self.candidates  # an error of a head shows here

    @property
    @abstractmethod
    def candidates(self) -> Heads[HeadT]:
        """The heads that are chosen from."""

    @property
    def model(self) -> str:
        """The names of all heads."""
        return self.candidates.model

    @property
    def untrained_genes(self) -> tuple[str, ...]:
        """Those of the largest head."""
        return self.candidates.untrained_genes


class SeveralNetworks(nn.Module):
    """The networks of several heads around one body, of which one is active.

    Args:
        networks: by the name of the head; each holds a body, in whose place the body of the last one is put.
        holders: the module of each network whose attribute ``body`` is the body.
    """

    def __init__(self, networks: Mapping[str, nn.Module], holders: Sequence[nn.Module]) -> None:
        super().__init__()
        for holder in holders[:-1]:
            holder.body = holders[-1].body
        self.networks = nn.ModuleDict(networks)
        self.active = list(networks)[-1]

    @property
    def network(self) -> nn.Module:
        """The active network."""
        return self.networks[self.active]

    def forward(self, *inputs: object) -> object:
        """Run the active network."""
        return self.network(*inputs)
