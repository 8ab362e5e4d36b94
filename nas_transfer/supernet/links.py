"""What a family of supernets says about its blocks so that `nas_transfer.supernet.repair` can repair its subnets.

A body is a stem and a chain of links. Each link is a block whose output is a linear layer of hidden channels, plus a
shortcut: inverted bottlenecks, the bottlenecks of ResNets and the branch of a ShuffleNet block have this form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.ops import SqueezeExcite
from nas_transfer.supernet.protocol import SupernetTable


@dataclass(frozen=True)
class Link:
    """One block, which computes ``project(gate(inner(features))) + skipped(features)``.

    Args:
        name: name of the block in messages and reports.
        stage: index of the stage; blocks of one stage have outputs of equal size.
        block: the module that holds all parts; replacing what it computes means changing the parts in place.
        inner: the layers before the projection, in order.
        gate: squeeze-and-excitation between `inner` and `project`, or None.
        project: a 1x1 convolution and a BatchNorm without activation.
        skipped: maps the block's input and the output's number of channels to what the shortcut adds, or to None.
    """

    name: str
    stage: int
    block: nn.Module
    inner: tuple[ConvNormActivation, ...]
    gate: SqueezeExcite | None
    project: ConvNormActivation
    skipped: Callable[[Tensor, int], Tensor | None]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.project.norm.num_features

    def hidden(self, features: Tensor) -> Tensor:
        """The input (B, hidden, H', W') of the projection."""
        for layer in self.inner:
            features = layer(features)
        return features if self.gate is None else self.gate(features)

    def join(self, hidden: Tensor, features: Tensor) -> Tensor:
        """The output (B, out, H', W') of a block with this input of its projection and this input."""
        projected = self.project(hidden)
        skipped = self.skipped(features, projected.shape[1])
        return projected if skipped is None else projected + skipped


class RepairModule(Protocol):
    """The functions of the module that a table names as its ``repair_module``."""

    def stem(self, body: Any) -> nn.Module:
        """The module that maps images to the input of the first link."""

    def links(self, body: Any) -> list[Link]:
        """The active blocks of a body in order."""

    def permute_hidden(self, link: Link, order: Tensor) -> bool:
        """Reorder a link's hidden channels in place without changing its function; False where they cannot be."""


def repair_module(table: SupernetTable) -> RepairModule:
    """The functions with which the subnets of a table are repaired.

    Raises:
        ConfigError: the table's family has none.
    """
    name = getattr(table, "repair_module", None)
    if name is None:
        raise ConfigError(
            f"repairing subnets needs a supernet whose table names a repair_module, got '{table.name}', a "
            f"{type(table).__name__} without one"
        )
    return cast("RepairModule", import_module(name))
