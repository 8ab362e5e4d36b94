"""The cost of an arch, computed from the arch alone: multiply-accumulates (MACs) and parameters of each module.

The conventions are those of the published numbers of AttentiveNAS:

- Only convolutions and linear layers have MACs; bias, normalisation, activation, pooling and resizing count as 0.
- All trainable parameters count: weights and biases of convolutions and linear layers, BatchNorm's weight and bias.
- A convolution of stride s with kernel size k and padding k // 2 maps n pixels to ceil(n / s).
- AttentiveNAS checkpoints hold a 1x1 shortcut convolution for every block and use it only where the channel counts
  differ. The unused ones are `unused_params`. They are part of `params_checkpoint`, which the code of the AttentiveNAS
  paper reports, but not of `params`, which counts what an extracted subnet holds.

A cost is meaningless without its input size: print both, and the list of the modules that the cost includes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]
"""Height and width of an image or a feature map, in pixels."""


@dataclass(frozen=True)
class ModuleCost:
    """The cost of one named module for one image of a given size.

    Args:
        name: e.g. ``"first_conv"``, ``"mb1.0"`` (stage mb1, block 0), ``"classifier"``.
        macs: multiply-accumulates for one image.
        params: trainable parameters that an extracted subnet holds.
        unused_params: further parameters that a public checkpoint holds and that no forward pass reads.
    """

    name: str
    macs: int
    params: int
    unused_params: int = 0


@dataclass(frozen=True)
class Cost:
    """The costs of several modules, in the order in which an image passes them. Adding costs joins their modules."""

    modules: tuple[ModuleCost, ...]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum([module.macs for module in self.modules])

    @cached_property
    def params(self) -> int:
        """Trainable parameters of the extracted subnet."""
        return sum([module.params for module in self.modules])

    @cached_property
    def params_checkpoint(self) -> int:
        """`params` plus the shortcut convolutions that the public checkpoints hold but never use."""
        return self.params + sum([module.unused_params for module in self.modules])

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.modules + other.modules)


@dataclass(frozen=True)
class CostTotals:
    """The costs of many archs at once.

    Attributes:
        macs: int64 (N,), multiply-accumulates for one image.
        params: int64 (N,), trainable parameters of each extracted subnet.
    """

    macs: npt.NDArray[np.int64]
    params: npt.NDArray[np.int64]

    def __add__(self, other: CostTotals) -> CostTotals:
        return CostTotals(self.macs + other.macs, self.params + other.params)


def totals_by_group(keys: npt.NDArray[np.int64], cost_of: Callable[[int], tuple[int, int]]) -> CostTotals:
    """Costs of many archs, computed once for each distinct row of `keys`.

    Args:
        keys: (N, K); archs with equal rows have equal costs.
        cost_of: MACs and parameters of the arch with an index in 0..N-1.
    """
    # Encode each row as a single number: sorting numbers is ten times faster than sorting rows.
    codes = np.zeros(len(keys), dtype=np.int64)
    for column in keys.T:
        values, indices = np.unique(column, return_inverse=True)
        codes = np.unique(codes * len(values) + indices, return_inverse=True)[1]
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    costs = np.asarray([cost_of(int(index)) for index in first], dtype=np.int64).reshape(-1, 2)[group]
    return CostTotals(costs[:, 0], costs[:, 1])


def strided_size(size: Size, stride: int) -> Size:
    """The output size of a convolution with kernel size k, padding k // 2 and this stride: ceil(n / stride)."""
    return -(-size[0] // stride), -(-size[1] // stride)


def convolution_cost(
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    output_size: Size,
    *,
    groups: int = 1,
    bias: bool = False,
    batch_norm: bool = False,
) -> ModuleCost:
    """The cost of one 2-D convolution with a square kernel, including a BatchNorm that follows it.

    Args:
        output_size: (H, W) of the output.
    """
    weights = out_channels * (in_channels // groups) * kernel_size**2
    vectors = int(bias) + 2 * int(batch_norm)
    return ModuleCost(name, weights * output_size[0] * output_size[1], weights + vectors * out_channels)


def linear_cost(name: str, in_features: int, out_features: int, *, bias: bool = True, rows: int = 1) -> ModuleCost:
    """The cost of one linear layer applied to `rows` vectors per image (1000 for the proposals of a box head)."""
    weights = in_features * out_features
    return ModuleCost(name, weights * rows, weights + int(bias) * out_features)


def total_cost(name: str, parts: Iterable[ModuleCost]) -> ModuleCost:
    """The sum of several parts as one module."""
    parts = tuple(parts)
    return ModuleCost(
        name,
        sum(part.macs for part in parts),
        sum(part.params for part in parts),
        sum(part.unused_params for part in parts),
    )
