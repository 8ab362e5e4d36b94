"""DeepLabV3+ (Chen et al. 2018) with depthwise-separable ASPP, on the undilated body at stride 32.

The first layers behind the body follow the width of their input. The width of the head and the number of its dilated
branches can shrink. The channels of the map at stride 4 are the same for all archs: in ``task=small_seg`` and
``task=cityscapes_seg``, the MACs that depend on them are 2 to 6 % of those of the network. Costs are computed from the
same sizes, module by module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Amount, Count, Positive, ShareBelowOne
from nas_transfer.supernet.cost import Cost, Size, convolution_cost, strided_size
from nas_transfer.supernet.joined import Joined, JoinedBatchNorm2d, JoinedConv2d
from nas_transfer.supernet.layers import ConvNormActivation, Layers
from nas_transfer.tasks.segmentation_head import SegmentationNetwork

LOW, MIDDLE, TOP = 0, 2, 3  # maps of the body at strides 4, 16 and 32


@dataclass(frozen=True)
class DeepLabSize:
    """The sizes of the head.

    Args:
        channels: channels of the ASPP branches and the decoder; 512 in the published nets.
        low_level_channels: channels of the map at stride 4 that the decoder is given; 48 in the paper.
        dilations: dilations of the ASPP branches; 1 is a plain 1x1 convolution, the others are separable 3x3 ones.
        dropout: probability of dropping a channel before the last layer; in a sandwich for the largest arch only.
        auxiliary_channels: channels of an FCN head on the map at stride 16 in training; 0 for none.
        auxiliary_weight: weight of the loss of this head.

    Raises:
        ConfigError: naming the value.
    """

    model: ClassVar[str] = "deeplabv3plus"
    smallest_batch: ClassVar[int] = 2  # the globally pooled branch of one image has no variance to normalise by
    untrained_genes: ClassVar[tuple[str, ...]] = ("num_dilations",)

    channels: Positive
    low_level_channels: Positive
    dilations: tuple[Positive, ...]
    dropout: ShareBelowOne
    auxiliary_channels: Count
    auxiliary_weight: Amount

    def __post_init__(self) -> None:
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if not self.dilations or any(dilation < 1 for dilation in self.dilations):
            raise ConfigError(f"task.build.head.dilations must be at least 1, got {list(self.dilations)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"task.build.head.dropout must be from 0 to below 1, got {self.dropout}")

    @property
    def taps(self) -> tuple[int, ...]:
        """The maps at strides 4 and 32."""
        return LOW, TOP

    @property
    def genes(self) -> dict[str, int]:
        """The width, and the number of leading dilations that are kept."""
        return {"channels": self.channels, "num_dilations": len(self.dilations)}

    def with_genes(self, values: Mapping[str, int]) -> Self:
        """The head with another width and fewer dilations."""
        return replace(self, channels=values["channels"], dilations=self.dilations[: values["num_dilations"]])

    def build(self, body: nn.Module, in_channels: Sequence[int], num_classes: int, layers: Layers) -> DeepLab:
        """The network around a body."""
        return DeepLab(body, in_channels, num_classes, self, layers)

    def follow(self, network: SegmentationNetwork) -> None:
        """Make an elastic network use these sizes."""
        assert isinstance(network, DeepLab)  # that `build` made
        network.set_sizes(self.channels, len(self.dilations))

    def cost(self, in_channels: tuple[int, ...], input_size: Size, num_classes: int) -> Cost:
        """The cost of the head for one image of `input_size` (H, W)."""
        return deeplab_cost(in_channels, input_size, num_classes, self)


class DeepLab(SegmentationNetwork):
    """A body and the DeepLabV3+ head: normalised images (B, 3, H, W) to logits (B, C, ceil(H / 4), ceil(W / 4)).

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        in_channels: their widths; the largest ones for an elastic body.
        num_classes: C.
        sizes: sizes of the head.
        layers: elastic or plain leaf layers.
    """

    def __init__(
        self, body: nn.Module, in_channels: Sequence[int], num_classes: int, sizes: DeepLabSize, layers: Layers
    ) -> None:
        super().__init__()
        width, low = sizes.channels, sizes.low_level_channels
        self.body = body
        self.pooled = layers.conv_norm(in_channels[TOP], width, activation="relu")
        self.branches = nn.ModuleList(
            layers.conv_norm(in_channels[TOP], width, activation="relu")
            if dilation == 1
            else separable(layers, in_channels[TOP], width, dilation)
            for dilation in sizes.dilations
        )
        self.num_branches = len(sizes.dilations)
        self.bottleneck = joined_conv_norm(layers, Joined(self.num_branches + 1, width), width, 3)
        self.low_level = layers.conv_norm(in_channels[LOW], low, activation="relu")
        context_and_low = Joined(1, width, low)
        joined = nn.Sequential(
            joined_conv_norm(layers, context_and_low, width + low, 3, depthwise=True),
            joined_conv_norm(layers, context_and_low, width),
        )
        self.decoder = nn.Sequential(joined, separable(layers, width, width, 1))
        self.dropout = nn.Dropout2d(sizes.dropout)
        self.classifier = layers.conv(width, num_classes, bias=True)
        self.auxiliary: nn.Module | None = None
        if sizes.auxiliary_channels:
            self.auxiliary = nn.Sequential(
                layers.conv_norm(in_channels[MIDDLE], sizes.auxiliary_channels, 3, activation="relu"),
                nn.Dropout2d(sizes.dropout),
                nn.Conv2d(sizes.auxiliary_channels, num_classes, 1),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == num_classes and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, C, ceil(H / 4), ceil(W / 4))."""
        return self.with_auxiliary(images)[0]

    def set_sizes(self, channels: int, num_branches: int) -> None:
        """Set the width of an elastic head and how many of its dilated branches, the leading ones, are kept."""
        self.num_branches = num_branches
        last = (branch[-1] if isinstance(branch, nn.Sequential) else branch for branch in self.branches)
        for module in (self.pooled, *last, self.bottleneck, *(separate[-1] for separate in self.decoder)):
            module.conv.active_out_channels = channels

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits and, in training, those of an auxiliary head, if any: (B, C, ceil(H / 16), ceil(W / 16))."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        top = maps[TOP]
        pooled = self.pooled(top.mean((2, 3), keepdim=True)).expand(-1, -1, *top.shape[2:])
        branches = [branch(top) for branch in self.branches[: self.num_branches]]
        context = self.bottleneck(torch.cat([pooled, *branches], 1))
        low = self.low_level(maps[LOW])
        context = F.interpolate(context, low.shape[2:], mode="bilinear", align_corners=False)
        logits = self.classifier(self.dropout(self.decoder(torch.cat([context, low], 1))))
        auxiliary = self.auxiliary(maps[MIDDLE]) if self.auxiliary is not None and self.training else None
        return logits, auxiliary


def separable(layers: Layers, in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
    """A depthwise 3x3 and a 1x1 convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        layers.conv_norm(in_channels, in_channels, 3, depthwise=True, dilation=dilation, activation="relu"),
        layers.conv_norm(in_channels, out_channels, activation="relu"),
    )


def joined_conv_norm(
    layers: Layers, joined: Joined, out_channels: int, kernel_size: int = 1, *, depthwise: bool = False
) -> ConvNormActivation:
    """A convolution of joined maps, BatchNorm and ReLU; `out_channels` is that of the largest sizes."""
    if not layers.elastic:
        return layers.conv_norm(joined.channels, out_channels, kernel_size, depthwise=depthwise, activation="relu")
    conv = JoinedConv2d(joined, out_channels, kernel_size, depthwise=depthwise)
    norm = JoinedBatchNorm2d(joined, layers.eps) if depthwise else layers.norm(out_channels)
    return ConvNormActivation(conv, norm, "relu")


@lru_cache(maxsize=4096)  # archs in their thousands share few heads
def deeplab_cost(channels: tuple[int, ...], input_size: Size, num_classes: int, sizes: DeepLabSize) -> Cost:
    """The costs of the head for one image of `input_size` (H, W), without the auxiliary head, which only trains.

    Args:
        channels: widths of the body's maps at strides 4, 8, 16, 32.
    """
    width, low = sizes.channels, sizes.low_level_channels
    quarter = strided_size(strided_size(input_size, 2), 2)
    smallest = quarter
    for _ in range(3):
        smallest = strided_size(smallest, 2)
    top = channels[TOP]
    modules = [convolution_cost("pooled", top, width, 1, (1, 1), batch_norm=True)]
    for dilation in sizes.dilations:
        name = f"aspp_{dilation}"
        if dilation > 1:
            modules.append(convolution_cost(f"{name}_depthwise", top, top, 3, smallest, groups=top, batch_norm=True))
        modules.append(convolution_cost(name, top, width, 1, smallest, batch_norm=True))
    joined = (len(sizes.dilations) + 1) * width
    modules += [
        convolution_cost("bottleneck", joined, width, 3, smallest, batch_norm=True),
        convolution_cost("low_level", channels[LOW], low, 1, quarter, batch_norm=True),
    ]
    for number, inputs in enumerate((width + low, width)):
        modules += [
            convolution_cost(f"decoder_{number}_dw", inputs, inputs, 3, quarter, groups=inputs, batch_norm=True),
            convolution_cost(f"decoder_{number}", inputs, width, 1, quarter, batch_norm=True),
        ]
    modules.append(convolution_cost("classifier", width, num_classes, 1, quarter, bias=True))
    return Cost(tuple(modules))
