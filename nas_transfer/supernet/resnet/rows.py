"""The rows of a residual supernet's table, the plans of its blocks, and their costs."""

from __future__ import annotations

from dataclasses import dataclass

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.cost import ModuleCost, Size, convolution_cost, strided_size, total_cost
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS

IDENTITY, CONV, POOL = "identity", "conv", "pool"
SHORTCUTS = (CONV, POOL)


@dataclass(frozen=True)
class StemConv:
    """One convolution of the stem, with BatchNorm and ReLU.

    Args:
        width: choices of its output channels; the last convolution of a stem has one.
        kernel_size: odd choices of its kernel size; a smaller kernel is a learned map of the largest one's centre.
        stride: 1 or 2.
    """

    width: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class ResidualStage:
    """One stage of residual blocks, which share their widths.

    Args:
        name: name of the stage, in the names of its genes and modules.
        width: output channels, which are fixed, since the shortcuts add them up.
        inner_width: choices of the channels inside the blocks, multiples of `group_width`.
        depth: choices of the number of active blocks.
        stride: of the first block, 1 or 2.
        bottleneck: whether a block is 1x1, 3x3, 1x1 (ResNet-50) or 3x3, 3x3 (ResNet-18).
        group_width: channels of a group of the 3x3 convolution of a bottleneck; 0: it has no groups.
        squeeze_channels: for each block the channels between the two layers of squeeze-and-excitation; 0: none.
        shortcut: of the first block, where size or channels change: ``conv``, a 1x1 convolution of the block's stride,
            or ``pool``, an average over the stride before a 1x1 convolution (ResNet-D).
    """

    name: str
    width: int
    inner_width: tuple[int, ...]
    depth: tuple[int, ...]
    stride: int
    bottleneck: bool
    group_width: int
    squeeze_channels: tuple[int, ...]
    shortcut: str

    def __post_init__(self) -> None:
        if self.group_width and any(width % self.group_width for width in self.inner_width):
            raise ConfigError(
                f"inner widths of stage {self.name} must be multiples of {self.group_width}, got {self.inner_width}"
            )
        if len(self.squeeze_channels) != self.depth[-1]:
            raise ConfigError(
                f"stage {self.name} must have {self.depth[-1]} values of squeeze_channels, got {self.squeeze_channels}"
            )
        if self.shortcut not in SHORTCUTS:
            raise ConfigError(f"the shortcut of stage {self.name} must be one of {SHORTCUTS}, got {self.shortcut!r}")


@dataclass(frozen=True)
class ResidualPlan:
    """One active block: every number that its module and its cost depend on.

    Args:
        stage_index, block_index: 0-based index of the stage, and of the block in its stage.
        in_channels, inner_channels, out_channels: widths of input, inner convolutions and output.
        stride: of the block.
        bottleneck, group_width, squeeze_channels: as in `ResidualStage`.
        shortcut: ``identity``, ``conv`` or ``pool``.
    """

    stage_index: int
    block_index: int
    in_channels: int
    inner_channels: int
    out_channels: int
    stride: int
    bottleneck: bool
    group_width: int
    squeeze_channels: int
    shortcut: str


def plan_of(stage: ResidualStage, index: int, block: int, in_channels: int, inner_channels: int) -> ResidualPlan:
    """The plan of a block of a stage, given its input channels and the chosen inner width."""
    stride = 1 if block else stage.stride
    changes = stride > 1 or in_channels != stage.width
    return ResidualPlan(
        stage_index=index,
        block_index=block,
        in_channels=in_channels,
        inner_channels=inner_channels,
        out_channels=stage.width,
        stride=stride,
        bottleneck=stage.bottleneck,
        group_width=stage.group_width,
        squeeze_channels=stage.squeeze_channels[block],
        shortcut=stage.shortcut if changes else IDENTITY,
    )


def stem_cost(stem: tuple[StemConv, ...], widths: tuple[int, ...], kernels: tuple[int, ...], size: Size) -> ModuleCost:
    """The cost of the stem for one image of this size (H, W)."""
    parts, channels = [], IMAGE_CHANNELS
    for conv, width, kernel in zip(stem, widths, kernels, strict=True):
        size = strided_size(size, conv.stride)
        parts.append(convolution_cost("conv", channels, width, kernel, size, batch_norm=True))
        channels = width
    return total_cost("stem", parts)


def block_cost(name: str, plan: ResidualPlan, size: Size) -> ModuleCost:
    """The cost of one block for an input of this size (H, W)."""
    after = strided_size(size, plan.stride)
    inside, inner, outside = plan.in_channels, plan.inner_channels, plan.out_channels
    if plan.bottleneck:
        groups = inner // plan.group_width if plan.group_width else 1
        parts = [
            convolution_cost("inner.0", inside, inner, 1, size, batch_norm=True),
            convolution_cost("inner.1", inner, inner, 3, after, groups=groups, batch_norm=True),
            convolution_cost("project", inner, outside, 1, after, batch_norm=True),
        ]
    else:
        parts = [
            convolution_cost("inner.0", inside, inner, 3, after, batch_norm=True),
            convolution_cost("project", inner, outside, 3, after, batch_norm=True),
        ]
    if plan.squeeze_channels:
        parts.append(convolution_cost("squeeze", inner, plan.squeeze_channels, 1, (1, 1), bias=True))
        parts.append(convolution_cost("excite", plan.squeeze_channels, inner, 1, (1, 1), bias=True))
    if plan.shortcut != IDENTITY:
        parts.append(convolution_cost("shortcut", inside, outside, 1, after, batch_norm=True))
    return total_cost(name, parts)
