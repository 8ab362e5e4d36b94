"""Elastic layers behind joined maps, whose active channels are a leading slice of each map and not of the whole.

The input is `count` maps of one width, of which the leading ones are kept and all of which shrink alike, followed by
channels that are always kept. How many maps there are and how wide they are follows from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nas_transfer.supernet.ops import ElasticBatchNorm2d, ElasticConv2d, leading_slice

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""Start and length of each part of a dimension."""


@dataclass(frozen=True)
class Joined:
    """The channels of joined maps.

    Args:
        count: the largest number of maps that can shrink.
        width: the largest number of channels of each of them.
        fixed: channels behind them that are always kept.
    """

    count: int
    width: int
    fixed: int = 0

    @property
    def channels(self) -> int:
        """All channels at the largest sizes."""
        return self.count * self.width + self.fixed

    def ranges(self, channels: int, width: int) -> Ranges:
        """Where the active channels are.

        Args:
            channels: how many are active.
            width: how many of them each map has.

        Raises:
            ValueError: there are no maps of this width with these channels.
        """
        count, rest = divmod(channels - self.fixed, width)
        if rest or not 0 < count <= self.count or width > self.width:
            raise ValueError(
                f"{self.count} joined maps of up to {self.width} channels and {self.fixed} fixed ones must hold "
                f"{channels} channels in maps of {width}"
            )
        ranges = [(number * self.width, width) for number in range(count)]
        return [*ranges, (self.count * self.width, self.fixed)] if self.fixed else ranges


class JoinedConv2d(ElasticConv2d):
    """An elastic convolution of joined maps; state and largest case are those of `ElasticConv2d`.

    Each map is as wide as the output. The output of a depthwise convolution has the channels of its input, which is
    then a single map with fixed channels.

    Args:
        joined: the input.
        out_channels: the largest output width, which is the largest width of each map.
        kernel_size: the kernel size, odd, which is fixed.
        depthwise: whether each channel has a single filter; `out_channels` is then not used.
    """

    def __init__(self, joined: Joined, out_channels: int, kernel_size: int = 1, *, depthwise: bool = False) -> None:
        if (depthwise and joined.count > 1) or not (depthwise or out_channels == joined.width):
            raise ValueError(
                f"a joined convolution must be as wide as its maps, or depthwise with one map, got {out_channels} "
                f"channels from {joined}"
            )
        super().__init__(
            joined.channels, joined.channels if depthwise else out_channels, kernel_size, depthwise=depthwise
        )
        self.joined = joined

    def weight_of(self, shape: tuple[int, ...]) -> Tensor:
        """The weight (out, in, k, k) of the active layer, a copy unless it is the whole weight."""
        if self.depthwise:
            return shared_join(self.weight, shape, 0, self.joined.ranges(shape[0], shape[0] - self.joined.fixed))
        return shared_join(self.weight, shape, 1, self.joined.ranges(shape[1], shape[0]))

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """The weight."""
        return {"weight": self.weight_of}


class JoinedBatchNorm2d(ElasticBatchNorm2d):
    """An elastic BatchNorm of one map that can shrink, followed by fixed channels."""

    def __init__(self, joined: Joined, eps: float) -> None:
        if joined.count > 1:
            raise ValueError(f"a joined BatchNorm must have one map that can shrink, got {joined}")
        super().__init__(joined.channels, eps)
        self.joined = joined

    def scale_and_shift(self, channels: int) -> tuple[Tensor, Tensor]:
        """The weight and the bias (channels,) of the active channels."""
        return self.part_of(self.weight, channels), self.part_of(self.bias, channels)

    def part_of(self, tensor: Tensor, channels: int) -> Tensor:
        """The values (channels,) of the active channels."""
        return shared_join(tensor, (channels,), 0, self.joined.ranges(channels, channels - self.joined.fixed))

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """Scales, shifts and statistics."""

        def cut(name: str) -> Callable[[tuple[int, ...]], Tensor]:
            return lambda shape: self.part_of(getattr(self, name), shape[0])

        return {name: cut(name) for name in ("weight", "bias", "running_mean", "running_var")}


class _SharedJoin(torch.autograd.Function):
    """Parts of a parameter, joined, whose gradient is added to the same parts of ``parameter.grad``."""

    @staticmethod
    def forward(context: Any, parameter: Tensor, shape: tuple[int, ...], dimension: int, ranges: Ranges) -> Tensor:
        context.parameter, context.dimension, context.ranges = parameter, dimension, ranges
        return _join(parameter, shape, dimension, ranges)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        parameter, dimension, ranges = context.parameter, context.dimension, context.ranges
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parts = gradient.split([length for _, length in ranges], dimension)
        for own, part in zip(_parts(parameter.grad, gradient.shape, dimension, ranges), parts, strict=True):
            own.add_(part)
        return None, None, None, None


def shared_join(parameter: Tensor, shape: tuple[int, ...], dimension: int, ranges: Ranges) -> Tensor:
    """The parts of a parameter that the active subnet uses, joined to this shape.

    Args:
        parameter: a parameter or buffer; the gradient of a leaf is treated as by `ops.shared_slice`.
        shape: the shape of the result.
        dimension: the dimension of the joined channels; the others take their leading slices.
        ranges: start and length of each part.
    """
    if parameter.shape == shape:
        return parameter
    if parameter.is_leaf and parameter.requires_grad and torch.is_grad_enabled():
        return _SharedJoin.apply(parameter, shape, dimension, ranges)
    return _join(parameter, shape, dimension, ranges)


def _join(tensor: Tensor, shape: tuple[int, ...], dimension: int, ranges: Ranges) -> Tensor:
    return torch.cat(_parts(tensor, shape, dimension, ranges), dimension)


def _parts(tensor: Tensor, shape: Sequence[int], dimension: int, ranges: Ranges) -> list[Tensor]:
    """Views of the parts."""
    parts = []
    for start, length in ranges:
        part = tensor.narrow(dimension, start, length)
        parts.append(leading_slice(part, (*shape[:dimension], length, *shape[dimension + 1 :]), "a joined parameter"))
    return parts
