"""What an arch costs, computed from the arch alone: multiply-accumulates and parameters per module.

Conventions, the ones behind the published numbers of AttentiveNAS and behind this project's tables:

- MACs are those of convolutions and linear layers; bias, normalisation, activation, pooling and resizing count nothing.
- Parameters are everything trainable: convolution and linear weights, biases, and BatchNorm's weight and bias.
- A stride-s convolution with kernel k and padding k // 2 maps n pixels to ceil(n / s).
- AttentiveNAS checkpoints hold a 1x1 shortcut convolution for every block and use it only where the channels differ.
  The unused ones are `unused_params`: not in `params`, which is what an extracted subnet holds, but in
  `params_checkpoint`, which is what the AttentiveNAS paper's code reports.

A cost without its input size means nothing; whoever prints one prints the size and the list of modules beside it.
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
        unused_params: parameters that a public checkpoint holds beside them and that no forward pass reads.
    """

    name: str
    macs: int
    params: int
    unused_params: int = 0


@dataclass(frozen=True)
class Cost:
    """The costs of several modules, in the order in which an image passes them; costs add up by concatenation."""

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
    """Costs of many archs of which only few differ in what the costs depend on.

    Args:
        keys: (N, K), equal rows for equal costs.
        cost_of: MACs and parameters of the arch at a place in 0..N-1; called once for each different row.
    """
    # Rows as single numbers: sorting those is ten times faster than sorting rows.
    codes = np.zeros(len(keys), dtype=np.int64)
    for column in keys.T:
        values, places = np.unique(column, return_inverse=True)
        codes = np.unique(codes * len(values) + places, return_inverse=True)[1]
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    costs = np.asarray([cost_of(int(place)) for place in first], dtype=np.int64).reshape(-1, 2)[group]
    return CostTotals(costs[:, 0], costs[:, 1])


def strided_size(size: Size, stride: int) -> Size:
    """The output size of a convolution with kernel k, padding k // 2 and this stride: ceil(n / stride)."""
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
    """The cost of one 2-D convolution with a square kernel, with BatchNorm's two vectors if it follows.

    Args:
        output_size: (H, W) of the map that the convolution produces.
    """
    weights = out_channels * (in_channels // groups) * kernel_size**2
    vectors = int(bias) + 2 * int(batch_norm)
    return ModuleCost(name, weights * output_size[0] * output_size[1], weights + vectors * out_channels)


def linear_cost(name: str, in_features: int, out_features: int, *, bias: bool = True, rows: int = 1) -> ModuleCost:
    """The cost of one linear layer that is applied to `rows` vectors per image (1000 for a box head's proposals)."""
    weights = in_features * out_features
    return ModuleCost(name, weights * rows, weights + int(bias) * out_features)


def total_cost(name: str, parts: Iterable[ModuleCost]) -> ModuleCost:
    """Several parts as one module."""
    parts = tuple(parts)
    return ModuleCost(
        name,
        sum(part.macs for part in parts),
        sum(part.params for part in parts),
        sum(part.unused_params for part in parts),
    )
