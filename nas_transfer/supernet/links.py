"""What a family of supernets says about its blocks so that `nas_transfer.supernet.repair` can repair its subnets.

A body is a stem and a chain of links. The output of each link consists of linear layers of hidden channels, plus a
shortcut, with or without a ReLU behind the sum. Inverted bottlenecks, the bottlenecks of ResNets and the blocks
of ShuffleNets and ConvNeXts have this form.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.norms import ResponseNorm
from nas_transfer.supernet.ops import SqueezeExcite
from nas_transfer.supernet.protocol import SupernetTable

Body = TypeVar("Body", bound=nn.Module, contravariant=True)


def _all_channels(features: Tensor) -> Tensor:
    return features


def _no_shortcut(features: Tensor, channels: int) -> None:
    return None


def beside(tensors: Sequence[Tensor]) -> Tensor:
    """The concatenation along dimension 1, without a copy if there is a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)


class Patches(nn.Module):
    """The neighbourhood of each pixel as channels, so that a convolution with a kernel becomes one of 1x1.

    Args:
        kernel_size: odd; the maps are padded with zeros.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C * kernel_size ** 2, H, W)."""
        patches = F.unfold(features, self.kernel_size, padding=self.kernel_size // 2)
        return patches.view(len(features), -1, *features.shape[2:])


def of_patches(conv: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution of `Patches` that a convolution of stride 1 is; both share their weight."""
    weight = conv.weight.detach()
    if not weight.is_contiguous():
        weight = conv.weight.data = weight.contiguous()
    flat = nn.Conv2d(weight[0].numel(), len(weight), 1, bias=False, device="meta")
    flat.weight = nn.Parameter(weight.view(len(weight), -1, 1, 1), requires_grad=False)
    return flat


@dataclass(frozen=True)
class Branch:
    """Layers that end in a linear one: ``project(gate(inner(reads(features))))``.

    Args:
        inner: the layers before the projection, in order; a convolution has a bias unless a BatchNorm follows.
        project: a 1x1 convolution of stride 1 without activation, either without bias and with a BatchNorm, or with a
            bias and with or without a `nas_transfer.supernet.norms.LayerScale`.
        gate: squeeze-and-excitation or global response normalisation between `inner` and `project`, or None; `Patches`
            where `project` stands for a convolution with a kernel (`of_patches`).
        reads: maps the block's input to the branch's input.
    """

    inner: tuple[ConvNormActivation, ...]
    project: ConvNormActivation
    gate: SqueezeExcite | ResponseNorm | Patches | None = None
    reads: Callable[[Tensor], Tensor] = _all_channels

    def hidden(self, features: Tensor) -> Tensor:
        """The input (B, hidden, H', W') of the projection."""
        features = self.reads(features)
        for layer in self.inner:
            features = layer(features)
        return features if self.gate is None else self.gate(features)

    @property
    def channels(self) -> int:
        """Input channels of the projection."""
        return self.project.conv.in_channels


@dataclass(frozen=True)
class Part:
    """Consecutive output channels of a block: the sum of its branches and of a shortcut.

    Args:
        channels: number of the channels.
        branches: the branches, whose projections are fitted together; none where the channels are the shortcut alone.
        skipped: maps the block's input and `channels` to what the shortcut adds, or to None.
    """

    channels: int
    branches: tuple[Branch, ...]
    skipped: Callable[[Tensor, int], Tensor | None] = _no_shortcut

    def join(self, hidden: Sequence[Tensor], features: Tensor) -> Tensor:
        """The channels (B, C, H', W'), given the input of each branch's projection and the block's input."""
        terms = [branch.project(maps) for branch, maps in zip(self.branches, hidden, strict=True)]
        skipped = self.skipped(features, self.channels)
        if skipped is not None:
            terms.append(skipped)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


@dataclass(frozen=True)
class Link:
    """One block, whose output is the concatenation of its parts, or what a ReLU makes of it.

    Args:
        name: name of the block in messages and reports.
        stage: index of the stage; blocks of one stage have outputs of equal size.
        block: the module that holds all layers; replacing what it computes means changing the layers in place.
        parts: the parts in the order of the output channels.
        rectified: whether a ReLU follows the parts.
        kind: two networks' blocks at the same position share their weights, up to slices, if their kinds are equal.
    """

    name: str
    stage: int
    block: nn.Module
    parts: tuple[Part, ...]
    rectified: bool = False
    kind: Hashable = None

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return sum(part.channels for part in self.parts)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches of all parts in order."""
        return tuple(branch for part in self.parts for branch in part.branches)

    def join(self, hidden: Sequence[Tensor], features: Tensor) -> Tensor:
        """The output (B, out, H', W') before the ReLU, given the input of each branch's projection and the block's."""
        rest, outputs = list(hidden), []
        for part in self.parts:
            outputs.append(part.join(rest[: len(part.branches)], features))
            del rest[: len(part.branches)]
        return beside(outputs)

    def finish(self, joined: Tensor) -> Tensor:
        """The output of the block, given that before the ReLU, of any shape."""
        return joined.relu() if self.rectified else joined


def permute_hidden(branch: Branch, order: Tensor) -> bool:
    """Reorder the input channels of a branch's projection in place, without changing its function up to rounding.

    Args:
        branch: the branch, elastic or plain.
        order: int64 (hidden,), for each new channel the index of the old one. The groups of a grouped convolution stay
            together: they are ordered by the mean place of their channels.

    Returns:
        Whether the channels were reordered. They are not where a branch has depthwise layers alone, or none, before its
        projection: they are channels of the block's input then. Nor are those of `Patches`.
    """
    if isinstance(branch.gate, Patches):
        return False
    dense = [position for position, layer in enumerate(branch.inner) if layer.conv.groups == 1]
    if not dense:
        return False
    for layer in branch.inner[dense[-1] + 1 :]:
        order = _by_groups(order, layer.conv.weight.shape[1])
    with torch.no_grad():
        for layer in branch.inner[dense[-1] :]:
            layer.conv.weight.copy_(layer.conv.weight[order])
            if layer.conv.bias is not None:
                layer.conv.bias.copy_(layer.conv.bias[order])
            for tensor in layer.norm.state_dict(keep_vars=True).values():
                if tensor.dim():
                    tensor.copy_(tensor[order])
        if isinstance(branch.gate, ResponseNorm):
            branch.gate.weight.copy_(branch.gate.weight[order])
            branch.gate.bias.copy_(branch.gate.bias[order])
        elif branch.gate is not None:
            squeeze, excite = branch.gate.squeeze, branch.gate.excite
            squeeze.weight.copy_(squeeze.weight[:, order])
            excite.weight.copy_(excite.weight[order])
            excite.bias.copy_(excite.bias[order])  # type: ignore[union-attr, index]
        branch.project.conv.weight.copy_(branch.project.conv.weight[:, order])
    return True


def _by_groups(order: Tensor, width: int) -> Tensor:
    """An order of channels that moves groups of this width as wholes; the same one for groups of one channel."""
    if width == 1:
        return order
    places = order.argsort().view(-1, width).double().mean(1)
    first = places.argsort(stable=True)[:, None] * width
    return (first + torch.arange(width, device=order.device)).flatten()


class RepairModule(Protocol[Body]):
    """The functions of the module that a table names as its ``repair_module``."""

    def stem(self, body: Body) -> nn.Module:
        """The module that maps images to the input of the first link."""

    def links(self, body: Body) -> list[Link]:
        """The active blocks of a body in order."""


def can_repair(table: SupernetTable) -> bool:
    """Whether the subnets of a table can be repaired."""
    return getattr(table, "repair_module", None) is not None


def repair_module(table: SupernetTable) -> RepairModule[nn.Module]:
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
    return cast("RepairModule[nn.Module]", import_module(name))
