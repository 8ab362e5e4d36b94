"""Layers that are elastic in a supernet and plain torch in a subnet, so that each network is written only once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nas_transfer.supernet.norms import LayerScale
from nas_transfer.supernet.ops import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticConvTranspose2d,
    ElasticGroupNorm,
    ElasticLinear,
    GroupedConv2d,
    SamePaddingConv2d,
)

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Args:
        elastic: whether the layers can shrink with their input and their active width, or are plain torch layers.
        eps: epsilon of every BatchNorm.
        same_padding: whether strided convolutions pad as TensorFlow's "same" does; with stride 1 both paddings agree.
    """

    elastic: bool
    eps: float
    same_padding: bool = False

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, *,
        depthwise: bool = False, dilation: int = 1, bias: bool = False, transformed_sizes: Sequence[int] = (),
        group_width: int = 0,
    ) -> nn.Conv2d:  # fmt: skip
        """A convolution padded to the output size ceil(n / stride); only elastic ones use `transformed_sizes`.

        With a `group_width`, it keeps the number of channels, without bias, and has groups of this width.
        """
        if group_width:
            if self.elastic:
                return GroupedConv2d(in_channels, group_width, kernel_size, stride)
            groups = in_channels // group_width
            return nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
            )
        same_padding = self.same_padding and stride > 1
        if self.elastic:
            return ElasticConv2d(
                in_channels, out_channels, kernel_size, stride, depthwise=depthwise, dilation=dilation, bias=bias,
                same_padding=same_padding, transformed_sizes=transformed_sizes,
            )  # fmt: skip
        padding = dilation * (kernel_size // 2)
        groups = in_channels if depthwise else 1
        kind = SamePaddingConv2d if same_padding else nn.Conv2d
        return kind(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def upsampling_conv(self, in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
        """A 4x4 transposed convolution of stride 2 without bias, which doubles height and width."""
        kind = ElasticConvTranspose2d if self.elastic else nn.ConvTranspose2d
        return kind(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """A BatchNorm; an elastic one does not update its running statistics in training."""
        return ElasticBatchNorm2d(channels, self.eps) if self.elastic else nn.BatchNorm2d(channels, eps=self.eps)

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """A linear layer with bias."""
        return (ElasticLinear if self.elastic else nn.Linear)(in_features, out_features)

    def conv_norm(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, *,
        activation: str | None, depthwise: bool = False, dilation: int = 1,
    ) -> ConvNormActivation:  # fmt: skip
        """A convolution, a BatchNorm and, unless it is None, an activation."""
        conv = self.conv(in_channels, out_channels, kernel_size, stride, depthwise=depthwise, dilation=dilation)
        return ConvNormActivation(conv, self.norm(out_channels), activation)


class ConvNormActivation(nn.Module):
    """A convolution, unless it is None a normalisation or a `LayerScale`, and, unless it is None, an activation."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, activation: str | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.Identity() if norm is None else norm
        self.activation = None if activation is None else ACTIVATION_MODULES[activation]()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        features = self.norm(self.conv(features))
        return features if self.activation is None else self.activation(features)


def make_elastic(module: nn.Module) -> None:
    """Replace the plain layers inside a module by elastic ones with the same weights and names, in place.

    Raises:
        ValueError: a convolution that is neither dense nor depthwise, or of another padding than an elastic one has.
    """
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            kernel = child.kernel_size[0]
            depthwise = child.groups > 1 and child.groups == child.in_channels == child.out_channels
            if (child.groups > 1 and not depthwise) or child.padding != (child.dilation[0] * (kernel // 2),) * 2:
                raise ValueError(f"an elastic convolution must be dense or depthwise and centred, got {child}")
            elastic: nn.Module = ElasticConv2d(
                child.in_channels, child.out_channels, kernel, child.stride[0], depthwise=depthwise,
                dilation=child.dilation[0], bias=child.bias is not None,
            )  # fmt: skip
        elif type(child) is nn.ConvTranspose2d:
            elastic = ElasticConvTranspose2d(
                child.in_channels, child.out_channels, child.kernel_size[0], child.stride[0], child.padding[0],
                bias=child.bias is not None,
            )  # fmt: skip
        elif type(child) is nn.Linear:
            elastic = ElasticLinear(child.in_features, child.out_features)
        elif type(child) is nn.GroupNorm:
            elastic = ElasticGroupNorm(child.num_groups, child.num_channels, child.eps)
        else:
            make_elastic(child)
            continue
        elastic.load_state_dict(child.state_dict())
        setattr(module, name, elastic)


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-out for convolutions (He et al. 2015), N(0, 0.01) for linear layers, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each BatchNorm and `LayerScale` of a plain network in eval mode into the convolution before it.

    The outputs are equal, and computed faster. The network is changed in place and cannot be trained afterwards.
    """
    for module in network.modules():
        if not isinstance(module, ConvNormActivation):
            continue
        if isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
        elif isinstance(module.norm, LayerScale):
            module.conv, module.norm = _fuse_conv_scale(module.conv, module.norm), nn.Identity()
        module.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fuse_conv_scale(conv: nn.Conv2d, scale: LayerScale) -> nn.Conv2d:
    """A convolution whose outputs are scaled."""
    fused = copy.deepcopy(conv)
    with torch.no_grad():
        fused.weight.mul_(scale.weight[:, None, None, None])
        if fused.bias is not None:
            fused.bias.mul_(scale.weight)
    return fused
