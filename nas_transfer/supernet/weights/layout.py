"""How the tensors of a public file map to those of a supernet, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.weights.origin import WeightsOrigin

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Table = TypeVar("Table", bound=SupernetTable)


@dataclass
class Layout:
    """Which tensor of a file fills which tensor of a supernet.

    Attributes:
        sources: name in the file by name in the supernet; names of the body begin with ``body.``, names of the
            classification head with ``head.``.
        ignored: reason by name, for tensors of the file that are not used.
    """

    sources: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def norm(self, target: str, source: str) -> None:
        """Map a BatchNorm."""
        self.sources |= {f"{target}.{name}": f"{source}.{name}" for name in NORM_TENSORS}

    def conv(self, target: str, source: str, *, bias: bool = False) -> None:
        """Map a convolution or a linear layer."""
        self.sources |= {f"{target}.{name}": f"{source}.{name}" for name in ("weight", "bias")[: 1 + bias]}

    def conv_norm(self, target: str, conv: str, norm: str, *, bias: bool = False) -> None:
        """Map a `nas_transfer.supernet.layers.ConvNormActivation`."""
        self.conv(f"{target}.conv", conv, bias=bias)
        self.norm(f"{target}.norm", norm)


@dataclass(frozen=True)
class Importer(Generic[Table]):
    """Imports the weights of one origin into supernets of one family.

    Attributes:
        origin: origin of the weights.
        matches: whether the names of a file's tensors are those of this layout.
        layout: maps the tensors of a table's supernet to those of a file, given the names in the file.
        table: the family's table.
    """

    origin: WeightsOrigin
    matches: Callable[[Collection[str]], bool]
    layout: Callable[[Table, Collection[str]], Layout]
    table: type[Table]

    def layout_of(self, table: SupernetTable, names: Collection[str]) -> Layout | None:
        """The layout for this table, or None if the table belongs to another family."""
        return self.layout(table, names) if isinstance(table, self.table) else None
