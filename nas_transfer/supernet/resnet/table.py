"""torchvision's ResNets of bottleneck blocks as spaces of one arch: baselines with the same necks and heads.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), with the stride in
the 3x3 convolution, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
from nas_transfer.supernet.fields import as_record, as_tuple, check_positive
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS, Preprocessing

STEM_WIDTH = 64
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


@dataclass(frozen=True)
class Position:
    """One bottleneck block: its input channels, inner width and stride; it has 4 x `width` output channels."""

    in_channels: int
    width: int
    stride: int

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.stride > 1 or self.in_channels != EXPANSION * self.width


@dataclass(frozen=True)
class ResNetTable:
    """A ResNet as a supernet of one arch, whose tensors have torchvision's names.

    Hydra instantiates it from YAML with ``_convert_: all``.

    Args:
        name: name of the supernet and of its space.
        resolution: height and width of images in classification, in pixels.
        blocks: number of blocks of each of the four stages; (3, 4, 6, 3) is ResNet-50.
        batch_norm_eps: epsilon of every BatchNorm.
        preprocessing: preprocessing of images, unless the weights come with a preprocessing of their own.

    Raises:
        ConfigError: a field is malformed.
    """

    network_module: ClassVar[str] = "nas_transfer.supernet.resnet.network"
    repair_module: ClassVar[str] = "nas_transfer.supernet.resnet.repair"

    name: str
    resolution: Positive
    blocks: tuple[Positive, ...]
    batch_norm_eps: Annotated[float, Range(above=0, below=1)]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        blocks = as_tuple(self.blocks, "blocks")
        check_positive("blocks", blocks)
        check_positive("resolution", (self.resolution,))
        if len(blocks) != len(WIDTHS):
            raise ConfigError(f"supernet.blocks must be {len(WIDTHS)} values in '{self.name}', got {list(blocks)}")
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "preprocessing", as_record(self.preprocessing, Preprocessing, "preprocessing"))

    @cached_property
    def space(self) -> SearchSpace:
        """One arch, whose only gene is the resolution in classification."""
        return SearchSpace(self.name, (Gene("resolution", (self.resolution,)),))

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """All blocks in order."""
        positions = []
        channels = STEM_WIDTH
        for stage, (width, count) in enumerate(zip(WIDTHS, self.blocks, strict=True)):
            for number in range(count):
                positions.append(Position(channels, width, 2 if stage and not number else 1))
                channels = EXPANSION * width
        return tuple(positions)

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32."""
        four, eight, sixteen, thirty_two = (EXPANSION * width for width in WIDTHS)
        return four, eight, sixteen, thirty_two

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the stem and of every block for one image of `input_size` (H, W)."""
        self.space.validate(arch)
        size = strided_size((int(input_size[0]), int(input_size[1])), 2)
        modules = [convolution_cost("conv1", IMAGE_CHANNELS, STEM_WIDTH, 7, size, batch_norm=True)]
        size = strided_size(size, 2)  # the pooling
        for number, position in enumerate(self.positions):
            modules.append(_block_cost(f"block{number}", position, size))
            size = strided_size(size, position.stride)
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Totals of `body_cost` for many archs, each at its own input size (H, W)."""
        sizes = np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2)

        def body(row: int) -> tuple[int, int]:
            cost = self.body_cost(archs[row], (int(sizes[row, 0]), int(sizes[row, 1])))
            return cost.macs, cost.params

        return totals_by_group(sizes, body)

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Zeros (N, 1): there is only one arch."""
        return np.zeros((len(archs), 1), dtype=np.int64)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution."""
        return ("resolution",)

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``classifier``."""
        return Cost((linear_cost("classifier", EXPANSION * WIDTHS[-1], num_classes),))


def _block_cost(name: str, position: Position, size: Size) -> ModuleCost:
    inside, outside, width = position.in_channels, EXPANSION * position.width, position.width
    after = strided_size(size, position.stride)
    parts = [
        convolution_cost("conv1", inside, width, 1, size, batch_norm=True),
        convolution_cost("conv2", width, width, 3, after, batch_norm=True),
        convolution_cost("conv3", width, outside, 1, after, batch_norm=True),
    ]
    if position.projects:
        parts.append(convolution_cost("downsample", inside, outside, 1, after, batch_norm=True))
    return total_cost(name, parts)
