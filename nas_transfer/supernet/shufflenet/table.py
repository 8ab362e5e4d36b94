"""DetNAS's supernet: a chain of ShuffleNetV2 blocks, each of which chooses one of four operations.

Reference: Chen et al., "DetNAS: Backbone Search for Object Detection", NeurIPS 2019 (arXiv 1903.10979), with the blocks
of ShuffleNetV2 (Ma et al. 2018). Operations do not share weights; an arch is one path through the supernet.

The authors' code, https://github.com/megvii-model/DetNAS, has two ways to shuffle and split the channels that enter a
block of stride 1 (``shuffle_blocks.py``, the functions ``channel_shuffle1`` and ``channel_shuffle2``). Of the channels
0 to 7,

- method 1 passes 0 4 1 5 on and sends 2 6 3 7 through the main branch: the two halves are interleaved, then cut in the
  middle, as ShuffleNetV2 describes it,
- method 2 passes 0 2 4 6 on and sends 1 3 5 7 through the main branch.

Weights that were trained with one method compute something else with the other. The code trains its supernets with
method 1 (hard-coded in ``Supernet-ImageNet/shuffle_blocks.py``, ``CHANNEL_SHUFFLE_METHOD: 1`` in the configurations
named ``*_search.yaml``) and its final networks with method 2, the default in ``maskrcnn_benchmark/config/defaults.py``.
New weights are trained with method 2 here: it is that of the published results, and that of all files that this program
wrote before it knew both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, Range
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.cost import (
    Cost,
    CostTotals,
    ModuleCost,
    Size,
    convolution_cost,
    linear_cost,
    strided_size,
    total_cost,
    totals_by_group,
)
from nas_transfer.supernet.fields import OF_WEIGHTS, as_record, as_tuple, check_positive
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS, Preprocessing

OPERATIONS = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3")
"""The operations that the values 0 to 3 of a gene select."""
KERNEL_SIZES = (3, 5, 7, 3)
XCEPTION = 3
NUM_STAGES = 4
STEM_STRIDE = 2
INTERLEAVE_HALVES, SPLIT_BY_PARITY = SHUFFLE_METHODS = (1, 2)
"""The numbers of the two channel shuffles in DetNAS's code, ``CHANNEL_SHUFFLE_METHOD``."""


@dataclass(frozen=True)
class Layer:
    """A convolution with BatchNorm, followed by ReLU if `relu` is set."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    depthwise: bool
    relu: bool


@dataclass(frozen=True)
class BlockPlan:
    """One block: its operation, channels and stride, from which the layers of both branches follow.

    A block of stride 1 passes half of its channels on unchanged and the others through the main branch. A block of
    stride 2 passes all channels through both the projection and the main branch.
    """

    operation: int
    in_channels: int
    out_channels: int
    stride: int

    @property
    def main(self) -> tuple[Layer, ...]:
        """The layers of the main branch."""
        kernel, mid = KERNEL_SIZES[self.operation], self.out_channels // 2
        inside = self.in_channels if self.stride == 2 else self.in_channels // 2
        outside = self.out_channels - inside
        if self.operation == XCEPTION:
            widths = (inside, mid, mid, outside)
            layers: list[Layer] = []
            for number, (before, after) in enumerate(pairwise(widths)):
                stride = self.stride if number == 0 else 1
                layers.append(Layer(before, before, kernel, stride, depthwise=True, relu=False))
                layers.append(Layer(before, after, 1, 1, depthwise=False, relu=True))
            return tuple(layers)
        return (
            Layer(inside, mid, 1, 1, depthwise=False, relu=True),
            Layer(mid, mid, kernel, self.stride, depthwise=True, relu=False),
            Layer(mid, outside, 1, 1, depthwise=False, relu=True),
        )

    @property
    def projection(self) -> tuple[Layer, ...]:
        """The layers of the projection branch, none for stride 1."""
        if self.stride == 1:
            return ()
        kernel, width = KERNEL_SIZES[self.operation], self.in_channels
        return (
            Layer(width, width, kernel, 2, depthwise=True, relu=False),
            Layer(width, width, 1, 1, depthwise=False, relu=True),
        )


@dataclass(frozen=True)
class ShuffleNetTable:
    """A supernet of ShuffleNetV2 blocks in four stages.

    Hydra instantiates it from YAML with ``_convert_: all``.

    Args:
        name: name of the supernet and of its space.
        resolution: height and width of images in classification, in pixels.
        stem_width: channels of the first convolution, whose stride is 2.
        widths: output channels of the four stages at strides 4, 8, 16 and 32, even numbers.
        repeats: number of blocks of each stage.
        last_width: channels of the classification head's 1x1 convolution.
        batch_norm_eps: epsilon of every BatchNorm.
        preprocessing: preprocessing of images, unless the weights come with a preprocessing of their own.
        channel_shuffle_method: 1 or 2, unless the weights come with a method of their own.

    Raises:
        ConfigError: a field is malformed.
    """

    network_module: ClassVar[str] = "nas_transfer.supernet.shufflenet.network"
    repair_module: ClassVar[str] = "nas_transfer.supernet.shufflenet.repair"

    name: str
    resolution: Positive
    stem_width: Positive
    widths: tuple[Positive, ...]
    repeats: tuple[Positive, ...]
    last_width: Positive
    batch_norm_eps: Annotated[float, Range(above=0, below=1)]
    preprocessing: Preprocessing
    channel_shuffle_method: int = field(default=SPLIT_BY_PARITY, metadata=OF_WEIGHTS)

    def __post_init__(self) -> None:
        for name in ("widths", "repeats"):
            values = as_tuple(getattr(self, name), name)
            check_positive(name, values)
            if len(values) != NUM_STAGES:
                raise ConfigError(f"supernet.{name} must be {NUM_STAGES} values in '{self.name}', got {list(values)}")
            object.__setattr__(self, name, values)
        for name in ("resolution", "stem_width", "last_width"):
            check_positive(name, (getattr(self, name),))
        if self.channel_shuffle_method not in SHUFFLE_METHODS or isinstance(self.channel_shuffle_method, bool):
            raise ConfigError(
                f"supernet.channel_shuffle_method must be 1 or 2 in '{self.name}', got {self.channel_shuffle_method!r}"
            )
        if any(width % 2 for width in self.widths):
            raise ConfigError(f"supernet.widths must be even in '{self.name}', got {list(self.widths)}")
        object.__setattr__(self, "preprocessing", as_record(self.preprocessing, Preprocessing, "preprocessing"))

    @cached_property
    def space(self) -> SearchSpace:
        """The genes ``resolution``, with one choice, and ``op.<block>``, the index of an operation in `OPERATIONS`."""
        operations = tuple(range(len(OPERATIONS)))
        genes = [Gene(f"op.{number}", operations) for number in range(sum(self.repeats))]
        return SearchSpace(self.name, (Gene("resolution", (self.resolution,)), *genes))

    @cached_property
    def positions(self) -> tuple[tuple[int, int, int], ...]:
        """Input channels, output channels and stride of every block."""
        positions = []
        channels = self.stem_width
        for width, repeats in zip(self.widths, self.repeats, strict=True):
            for number in range(repeats):
                positions.append((channels, width, 1 if number else 2))
                channels = width
        return tuple(positions)

    @cached_property
    def tap_blocks(self) -> tuple[int, ...]:
        """The last block of each stage, whose outputs are the feature maps."""
        return tuple(int(end) - 1 for end in np.cumsum(self.repeats))

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32, the same for every arch."""
        four, eight, sixteen, thirty_two = self.widths
        return four, eight, sixteen, thirty_two

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the stem and of ``<block>.<operation>`` for one image of `input_size` (H, W)."""
        self.space.validate(arch)
        size = strided_size((int(input_size[0]), int(input_size[1])), STEM_STRIDE)
        modules = [_stem_cost(self.stem_width, size)]
        for number, ((in_channels, width, stride), operation) in enumerate(
            zip(self.positions, arch.group("op"), strict=True)
        ):
            cost = _block_cost(BlockPlan(operation, in_channels, width, stride), size)
            modules.append(ModuleCost(f"{number}.{OPERATIONS[operation]}", cost.macs, cost.params))
            size = strided_size(size, stride)
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Totals of `body_cost` for many archs of this space, each at its own input size (H, W)."""
        values = np.asarray([arch.values for arch in archs], dtype=np.int64).reshape(len(archs), -1)
        sizes = -(-np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2) // STEM_STRIDE)

        def stem(row: int) -> tuple[int, int]:
            cost = _stem_cost(self.stem_width, (int(sizes[row, 0]), int(sizes[row, 1])))
            return cost.macs, cost.params

        totals = totals_by_group(sizes, stem)
        for number, position in enumerate(self.positions):
            keys = np.concatenate([sizes, values[:, number + 1 : number + 2]], 1)
            totals = totals + totals_by_group(keys, partial(_block_totals, position, keys))
            sizes = -(-sizes // position[2])
        return totals

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Zeros (N, 1): the cost of neck and head is the same for all archs."""
        return np.zeros((len(archs), 1), dtype=np.int64)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution."""
        return ("resolution",)

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``last_conv`` and ``classifier`` for one image of `input_size` (H, W)."""
        size = (int(input_size[0]), int(input_size[1]))
        for _ in range(NUM_STAGES + 1):
            size = strided_size(size, 2)
        return Cost(
            (
                convolution_cost("last_conv", self.widths[-1], self.last_width, 1, size, bias=True, batch_norm=True),
                linear_cost("classifier", self.last_width, num_classes),
            )
        )


@lru_cache(maxsize=1 << 12)
def _stem_cost(width: int, size: Size) -> ModuleCost:
    return convolution_cost("first_conv", IMAGE_CHANNELS, width, 3, size, bias=True, batch_norm=True)


@lru_cache(maxsize=1 << 16)
def _block_cost(plan: BlockPlan, input_size: Size) -> ModuleCost:
    parts = []
    for branch in (plan.main, plan.projection):
        size = input_size
        for layer in branch:
            size = strided_size(size, layer.stride)
            groups = layer.in_channels if layer.depthwise else 1
            parts.append(
                convolution_cost(
                    "layer", layer.in_channels, layer.out_channels, layer.kernel_size, size,
                    groups=groups, batch_norm=True,
                )
            )  # fmt: skip
    return total_cost("block", parts)


def _block_totals(position: tuple[int, int, int], keys: npt.NDArray[np.int64], row: int) -> tuple[int, int]:
    """MACs and parameters of a block; a row of `keys` holds H, W and the operation."""
    height, width, operation = keys[row].tolist()
    cost = _block_cost(BlockPlan(operation, *position), (height, width))
    return cost.macs, cost.params
