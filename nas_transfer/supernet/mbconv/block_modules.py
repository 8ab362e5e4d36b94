"""The blocks of MBConv networks: inverted bottlenecks, fused ones, and plain convolutions, elastic or plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from nas_transfer.supernet.layers import ConvNormActivation, Layers
from nas_transfer.supernet.mbconv.blocks import IDENTITY, BlockPlan
from nas_transfer.supernet.mbconv.rows import FUSED, INVERTED
from nas_transfer.supernet.ops import SqueezeExcite


class MBConvBlock(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise, squeeze-and-excitation after the activation, project 1x1, shortcut.

    A pooled shortcut averages over the stride and applies its 1x1 convolution only if the channel counts differ. An
    identity shortcut exists only if neither size nor channel count changes.

    Args:
        plan: sizes of the block, in a supernet the largest ones.
        layers: makes elastic or plain layers.
        transformed_sizes: kernel sizes with a transformation of the depthwise kernel, see
            `nas_transfer.supernet.ops.ElasticConv2d`.
    """

    def __init__(self, plan: BlockPlan, layers: Layers, transformed_sizes: Sequence[int] = ()) -> None:
        super().__init__()
        mid = plan.mid_channels
        self.stride = plan.stride
        self.identity = plan.shortcut == IDENTITY
        self.expand = (
            ConvNormActivation(layers.conv(plan.in_channels, mid), layers.norm(mid), plan.activation)
            if plan.expand
            else None
        )
        self.depthwise = ConvNormActivation(
            layers.conv(mid, mid, plan.kernel_size, plan.stride, depthwise=True, transformed_sizes=transformed_sizes),
            layers.norm(mid),
            plan.activation,
        )
        self.squeeze_excite = squeeze_excite(plan, layers) if plan.squeeze_channels else None
        self.project = ConvNormActivation(
            layers.conv(mid, plan.out_channels), layers.norm(plan.out_channels), activation=None
        )
        # In a supernet, the widths before and after the first block of a stage can differ in some arch.
        may_differ = plan.block_index == 0 if layers.elastic else plan.in_channels != plan.out_channels
        pooled = may_differ and not self.identity
        self.shortcut = layers.conv(plan.in_channels, plan.out_channels) if pooled else None
        self.drop_path = 0.0
        self.whole_strides = False  # see `SamePaddingConv2d`

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        projected = self.project(self.hidden(features))
        shortcut = self.skipped(features, projected.shape[1])
        if shortcut is None:
            return projected
        if self.stride == 1 and self.drop_path > 0 and features.shape[1] == projected.shape[1]:
            projected = stochastic_depth(projected, self.drop_path, "row", self.training)
        return projected + shortcut

    def hidden(self, features: Tensor) -> Tensor:
        """The input (B, mid, H', W') of the projection."""
        hidden = self.depthwise(features if self.expand is None else self.expand(features))
        return hidden if self.squeeze_excite is None else self.squeeze_excite(hidden)

    def skipped(self, features: Tensor, out_channels: int) -> Tensor | None:
        """What the shortcut adds to a projection of `out_channels`; None where there is no shortcut."""
        if self.identity and (self.stride > 1 or features.shape[1] != out_channels):
            return None
        if self.stride > 1:
            # As in AttentiveNAS, an odd side gets one row or column of zeros in front; height and width are padded
            # separately, since detection images are not square.
            odd = (features.shape[2] % self.stride, features.shape[3] % self.stride)
            padding = (0, 0) if self.whole_strides else odd
            features = F.avg_pool2d(features, self.stride, self.stride, padding)
        if self.shortcut is not None and features.shape[1] != out_channels:
            return self.shortcut(features)
        return features

    def set_plan(self, plan: BlockPlan) -> None:
        """Set the active sizes of the elastic layers to those of `plan`; input widths follow from the tensors."""
        if self.expand is not None:
            _set_conv(self.expand.conv, plan.mid_channels)
        _set_conv(self.depthwise.conv, plan.mid_channels, plan.kernel_size)
        if self.squeeze_excite is not None:
            _set_conv(self.squeeze_excite.squeeze, plan.squeeze_channels)
            _set_conv(self.squeeze_excite.excite, plan.mid_channels)
        _set_conv(self.project.conv, plan.out_channels)
        if self.shortcut is not None:
            _set_conv(self.shortcut, plan.out_channels)


class FusedBlock(nn.Module):
    """A fused inverted bottleneck (Tan and Le 2021): expand with the kernel, squeeze-and-excitation, project 1x1.

    The shortcut is the identity where neither size nor channel count changes.

    Args:
        plan: sizes of the block, in a supernet the largest ones.
        layers: makes elastic or plain layers.
    """

    def __init__(self, plan: BlockPlan, layers: Layers) -> None:
        super().__init__()
        mid = plan.mid_channels
        self.stride = plan.stride
        conv = layers.conv(plan.in_channels, mid, plan.kernel_size, plan.stride)
        self.expand = ConvNormActivation(conv, layers.norm(mid), plan.activation)
        self.squeeze_excite = squeeze_excite(plan, layers) if plan.squeeze_channels else None
        self.project = ConvNormActivation(layers.conv(mid, plan.out_channels), layers.norm(plan.out_channels), None)
        self.drop_path = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        return _add(self, features, self.project(self.hidden(features)))

    def hidden(self, features: Tensor) -> Tensor:
        """The input (B, mid, H', W') of the projection."""
        hidden = self.expand(features)
        return hidden if self.squeeze_excite is None else self.squeeze_excite(hidden)

    def skipped(self, features: Tensor, out_channels: int) -> Tensor | None:
        """What the shortcut adds to a projection of `out_channels`; None where there is no shortcut."""
        return features if self.stride == 1 and features.shape[1] == out_channels else None

    def set_plan(self, plan: BlockPlan) -> None:
        """Set the active sizes of the elastic layers to those of `plan`."""
        _set_conv(self.expand.conv, plan.mid_channels, plan.kernel_size)
        if self.squeeze_excite is not None:
            _set_conv(self.squeeze_excite.squeeze, plan.squeeze_channels)
            _set_conv(self.squeeze_excite.excite, plan.mid_channels)
        _set_conv(self.project.conv, plan.out_channels)


class PlainBlock(nn.Module):
    """One convolution with BatchNorm and activation; the shortcut is the identity where size and channels are kept.

    Args:
        plan: sizes of the block, in a supernet the largest ones.
        layers: makes elastic or plain layers.
    """

    def __init__(self, plan: BlockPlan, layers: Layers) -> None:
        super().__init__()
        self.stride = plan.stride
        conv = layers.conv(plan.in_channels, plan.out_channels, plan.kernel_size, plan.stride)
        self.project = ConvNormActivation(conv, layers.norm(plan.out_channels), plan.activation)
        self.drop_path = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        return _add(self, features, self.project(features))

    def skipped(self, features: Tensor, out_channels: int) -> Tensor | None:
        """What the shortcut adds to `out_channels`; None where there is no shortcut."""
        return features if self.stride == 1 and features.shape[1] == out_channels else None

    def set_plan(self, plan: BlockPlan) -> None:
        """Set the active sizes of the elastic layers to those of `plan`."""
        _set_conv(self.project.conv, plan.out_channels, plan.kernel_size)


Block: TypeAlias = MBConvBlock | FusedBlock | PlainBlock


def make_block(plan: BlockPlan, layers: Layers, transformed_sizes: Sequence[int] = ()) -> Block:
    """The block of a plan; `transformed_sizes` as in `MBConvBlock`."""
    if plan.kind == INVERTED:
        return MBConvBlock(plan, layers, transformed_sizes)
    return FusedBlock(plan, layers) if plan.kind == FUSED else PlainBlock(plan, layers)


def squeeze_excite(plan: BlockPlan, layers: Layers) -> SqueezeExcite:
    """Squeeze-and-excitation of a block."""
    mid, between = plan.mid_channels, plan.squeeze_channels
    squeeze = layers.conv(mid, between, bias=True)
    return SqueezeExcite(squeeze, layers.conv(between, mid, bias=True), *plan.squeeze_activations)


def _add(block: FusedBlock | PlainBlock, features: Tensor, projected: Tensor) -> Tensor:
    """Add the shortcut, and skip the block at random in training."""
    shortcut = block.skipped(features, projected.shape[1])
    if shortcut is None:
        return projected
    if block.drop_path > 0:
        projected = stochastic_depth(projected, block.drop_path, "row", block.training)
    return projected + shortcut


def _set_conv(conv: nn.Module, out_channels: int, kernel_size: int = 1) -> None:
    conv.active_out_channels = out_channels  # type: ignore[assignment]
    conv.active_kernel_size = kernel_size  # type: ignore[assignment]
