"""The blocks of MBConv archs: the numbers from which their modules are built, and their costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nas_transfer.supernet.cost import (
    Cost,
    ModuleCost,
    Size,
    convolution_cost,
    linear_cost,
    strided_size,
    total_cost,
)
from nas_transfer.supernet.mbconv.rows import FUSED, INVERTED, PLAIN, FirstConv, LastConv, StageTable
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS

POOLED, IDENTITY = "pooled", "identity"
SHORTCUTS = (POOLED, IDENTITY)
SQUEEZE_ACTIVATIONS = ("relu", "hardsigmoid")


@dataclass(frozen=True)
class BlockPlan:
    """One active inverted-bottleneck block: every number that its module and its cost depend on.

    Args:
        stage_index: 0-based index of the stage in the table.
        block_index: 0-based index of the block in its stage.
        in_channels, mid_channels, out_channels: widths of input, depthwise convolution and output.
        kernel_size, stride: kernel size and stride of the depthwise convolution.
        expand: whether there is an expansion convolution; without one, `mid_channels` equals `in_channels`.
        squeeze_channels: 0 if the block has no squeeze-and-excitation.
        activation: one of `nas_transfer.supernet.mbconv.rows.ACTIVATIONS`.
        shortcut: ``pooled`` (AttentiveNAS: in every block, averaged over the stride, with a 1x1 convolution if the
            channel counts differ) or ``identity`` (MobileNetV2: only if neither size nor channel count changes).
        same_padding: whether a strided depthwise convolution pads as TensorFlow's "same" does.
        kind: as in `nas_transfer.supernet.mbconv.rows.StageTable`; `kernel_size` and `stride` are those of the one
            convolution that has a kernel.
        squeeze_activations: names of the two activations of squeeze-and-excitation.
    """

    stage_index: int
    block_index: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expand: bool
    squeeze_channels: int
    activation: str
    shortcut: str = POOLED
    same_padding: bool = False
    kind: str = INVERTED
    squeeze_activations: tuple[str, str] = SQUEEZE_ACTIVATIONS


class StageChoice(NamedTuple):
    """One stage of an arch.

    Attributes:
        stage, stage_index: the row of the table and its index.
        in_width, width, depth: input channels, and the chosen output channels and number of blocks.
        kernel_sizes, expand_ratios: one for all blocks, or one for each block.
        shortcut, same_padding, squeeze_activations: as in the whole table.
    """

    stage: StageTable
    stage_index: int
    in_width: int
    width: int
    depth: int
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    shortcut: str
    same_padding: bool
    squeeze_activations: tuple[str, str] = SQUEEZE_ACTIVATIONS


@lru_cache(maxsize=1 << 16)
def plan_stage(choice: StageChoice) -> tuple[BlockPlan, ...]:
    """The active blocks of a stage in order."""
    stage = choice.stage
    blocks = []
    for block_index in range(choice.depth):
        choice_index = block_index if stage.per_block else 0
        in_channels = choice.width if block_index else choice.in_width
        mid_channels = stage.block_mid_channels(block_index, in_channels, choice.expand_ratios[choice_index])
        blocks.append(
            BlockPlan(
                stage_index=choice.stage_index,
                block_index=block_index,
                in_channels=in_channels,
                mid_channels=mid_channels,
                out_channels=choice.width,
                kernel_size=stage.block_kernel_size(block_index, choice.kernel_sizes[choice_index]),
                stride=1 if block_index else stage.stride,
                expand=stage.block_expands(block_index),
                squeeze_channels=stage.block_squeeze_channels(block_index, mid_channels),
                activation=stage.activation,
                shortcut=choice.shortcut,
                same_padding=choice.same_padding,
                kind=stage.kind,
                squeeze_activations=choice.squeeze_activations,
            )
        )
    return tuple(blocks)


@lru_cache(maxsize=1 << 16)
def stage_cost(choice: StageChoice, input_size: Size) -> tuple[tuple[ModuleCost, ...], Size]:
    """The costs of a stage's blocks for one image of `input_size` (H, W), and the size of its output."""
    modules = []
    for plan in plan_stage(choice):
        modules.append(block_cost(f"{choice.stage.name}.{plan.block_index}", plan, input_size))
        input_size = strided_size(input_size, plan.stride)
    return tuple(modules), input_size


def block_cost(name: str, plan: BlockPlan, input_size: Size) -> ModuleCost:
    """The cost of one inverted-bottleneck block, including squeeze-and-excitation and shortcut.

    A pooled shortcut (AttentiveNAS) has a 1x1 convolution without BatchNorm if the channel counts differ; an identity
    costs nothing.
    """
    output_size = strided_size(input_size, plan.stride)
    mid = plan.mid_channels
    if plan.kind == PLAIN:
        inside, outside = plan.in_channels, plan.out_channels
        return total_cost(
            name, [convolution_cost("project", inside, outside, plan.kernel_size, output_size, batch_norm=True)]
        )
    parts = [convolution_cost("project", mid, plan.out_channels, 1, output_size, batch_norm=True)]
    if plan.kind == FUSED:
        parts.append(convolution_cost("expand", plan.in_channels, mid, plan.kernel_size, output_size, batch_norm=True))
    else:
        parts.append(
            convolution_cost("depthwise", mid, mid, plan.kernel_size, output_size, groups=mid, batch_norm=True)
        )
    if plan.expand and plan.kind == INVERTED:
        parts.append(convolution_cost("expand", plan.in_channels, mid, 1, input_size, batch_norm=True))
    if plan.squeeze_channels:
        parts.append(convolution_cost("squeeze", mid, plan.squeeze_channels, 1, (1, 1), bias=True))
        parts.append(convolution_cost("excite", plan.squeeze_channels, mid, 1, (1, 1), bias=True))
    if plan.shortcut == IDENTITY:
        return total_cost(name, parts)
    shortcut = convolution_cost("shortcut", plan.in_channels, plan.out_channels, 1, output_size)
    if plan.in_channels == plan.out_channels:
        shortcut = ModuleCost("shortcut", 0, 0, unused_params=shortcut.params)
    return total_cost(name, [*parts, shortcut])


@lru_cache(maxsize=1 << 12)
def first_conv_cost(first_conv: FirstConv, width: int, input_size: Size) -> tuple[ModuleCost, Size]:
    """The cost of the stem for one image of `input_size` (H, W), and the size of its output."""
    size = strided_size(input_size, first_conv.stride)
    cost = convolution_cost("first_conv", IMAGE_CHANNELS, width, first_conv.kernel_size, size, batch_norm=True)
    return cost, size


@lru_cache(maxsize=1 << 12)
def last_conv_cost(
    last_conv: LastConv, last_stage_width: int, width: int, feature_size: Size, num_classes: int
) -> Cost:
    """The cost of the classification head for a feature map of this size (H, W)."""
    pooled = last_conv.pooled_channels(last_stage_width, width)
    modules = []
    if not last_conv.pools_first:
        modules.append(convolution_cost("final_expand", last_stage_width, pooled, 1, feature_size, batch_norm=True))
    if last_conv.mixes:
        modules.append(convolution_cost("feature_mix", pooled, width, 1, (1, 1), bias=last_conv.bias))
    return Cost((*modules, linear_cost("classifier", width, num_classes)))
