"""Build the networks that a supernet's table describes.

A table is free of torch. It names the module that builds its networks (`SupernetTable.network_module`), which is
imported here when the first network is built. That module provides three functions, see `NetworkModule`; a family of
supernets outside this package works in the same way and needs no registration.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, TypeVar, cast

from torch import nn

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.cost import Size
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.protocol import SupernetTable

Table = TypeVar("Table", bound=SupernetTable, contravariant=True)


class NetworkModule(Protocol[Table]):
    """The functions that a family's network module provides for its own kind of table."""

    def build_body(self, table: Table, arch: ArchOrSupernet) -> nn.Module:
        """See `nas_transfer.supernet.networks.build_body`."""

    def build_classifier(self, table: Table, num_classes: int, arch: ArchOrSupernet) -> nn.Module:
        """See `nas_transfer.supernet.networks.build_classifier`."""

    def build_pieces(self, table: Table, arch: Arch, input_size: Size) -> list[Piece]:
        """See `nas_transfer.supernet.networks.latency_pieces`."""


def build_body(table: SupernetTable, arch: ArchOrSupernet = SUPERNET) -> nn.Module:
    """The body of a supernet or of one arch: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32.

    Args:
        table: the supernet's table.
        arch: `SUPERNET` builds the supernet, which holds the weights of all archs and starts at the largest one; an
            arch builds a plain static module. Genes behind those of the table belong to a task and change nothing.

    Returns:
        A module with random weights and the method ``set_drop_path(rate)``; a supernet also has ``set_arch(arch)``.

    Raises:
        ArchError: `arch` does not belong to the table's space.
        ConfigError: the table's network module cannot be used.
    """
    return _network_module(table).build_body(table, _part(table, arch))


def build_classifier(table: SupernetTable, num_classes: int, arch: ArchOrSupernet = SUPERNET) -> nn.Module:
    """The classification head of a supernet or of one arch: the last feature map (B, C, H, W) to logits (B, classes).

    Args:
        table: the supernet's table.
        num_classes: number of logits.
        arch: as in `build_body`.

    Raises:
        ArchError: `arch` does not belong to the table's space.
        ConfigError: the table's network module cannot be used.
    """
    return _network_module(table).build_classifier(table, num_classes, _part(table, arch))


def latency_pieces(table: SupernetTable, arch: Arch, input_size: Size) -> list[Piece]:
    """The parts of an arch's body for one image of `input_size` (H, W), in order: the stem, then one for each block.

    Raises:
        ArchError: `arch` does not belong to the table's space.
        ConfigError: the table's network module cannot be used.
    """
    return _network_module(table).build_pieces(table, table.space.part_of(arch), input_size)


def _part(table: SupernetTable, arch: ArchOrSupernet) -> ArchOrSupernet:
    return SUPERNET if arch is SUPERNET else table.space.part_of(arch)


def _network_module(table: SupernetTable) -> NetworkModule[SupernetTable]:
    try:
        module = import_module(table.network_module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the network_module '{table.network_module}' of {type(table).__name__} cannot be imported: {error}"
        ) from error
    missing = [name for name in ("build_body", "build_classifier", "build_pieces") if not hasattr(module, name)]
    if missing:
        raise ConfigError(
            f"the network_module '{table.network_module}' must define build_body, build_classifier and build_pieces, "
            f"got no {', '.join(missing)}"
        )
    return cast("NetworkModule[SupernetTable]", module)
