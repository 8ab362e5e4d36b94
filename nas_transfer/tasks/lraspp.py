"""LR-ASPP (Howard et al. 2019, MobileNetV3, section 6.4): a light head for segmentation, on the undilated body.

The layers are those of `torchvision.models.segmentation.LRASPP`, with the whole map pooled in the attention branch. The
paper puts the head on maps at strides 8 and 16 of a body whose last stages are dilated. Here the deep map is at stride
32, and the other one, whose edges the head adds, is chosen by a gene.
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
from nas_transfer.ranges import Positive
from nas_transfer.supernet.cost import Cost, Size, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.segmentation_head import SegmentationNetwork

LEVELS = len(TAP_STRIDES)
FEWEST_LEVELS = 2
"""The maps at strides 16 and 32: the head needs a map beside the deepest one."""


@dataclass(frozen=True)
class LrasppSize:
    """The sizes of the head.

    Args:
        channels: channels of the deep branch and of its attention; 128 in the paper.
        levels: maps of the body from the one with edges to the deepest: 4 for edges and logits at stride 4, 3 at stride
            8 as in the paper, 2 at stride 16.

    Raises:
        ConfigError: naming the value.
    """

    model: ClassVar[str] = "lraspp"
    smallest_batch: ClassVar[int] = 1
    untrained_genes: ClassVar[tuple[str, ...]] = ()
    dropout: ClassVar[float] = 0.0
    auxiliary_weight: ClassVar[float] = 0.0

    channels: Positive
    levels: Positive

    def __post_init__(self) -> None:
        if not FEWEST_LEVELS <= self.levels <= LEVELS:
            raise ConfigError(f"task.build.head.levels must be from {FEWEST_LEVELS} to {LEVELS}, got {self.levels}")

    @property
    def genes(self) -> dict[str, int]:
        """The width and the map with edges."""
        return {"channels": self.channels, "levels": self.levels}

    @property
    def taps(self) -> tuple[int, ...]:
        """The map with edges and the deepest one."""
        return self.low, LEVELS - 1

    @property
    def low(self) -> int:
        """The index of the map with edges among those of the body."""
        return LEVELS - self.levels

    def with_genes(self, values: Mapping[str, int]) -> Self:
        """The head with another width and another map with edges."""
        return replace(self, channels=values["channels"], levels=values["levels"])

    def build(self, body: nn.Module, in_channels: Sequence[int], num_classes: int, layers: Layers) -> Lraspp:
        """The network around a body."""
        return Lraspp(body, in_channels, num_classes, self, layers)

    def follow(self, network: SegmentationNetwork) -> None:
        """Make an elastic network use these sizes."""
        assert isinstance(network, Lraspp)  # that `build` made
        network.set_sizes(self)

    def cost(self, in_channels: tuple[int, ...], input_size: Size, num_classes: int) -> Cost:
        """The cost of the head for one image of `input_size` (H, W)."""
        return lraspp_cost(in_channels, input_size, num_classes, self)


class Lraspp(SegmentationNetwork):
    """A body and LR-ASPP: normalised images (B, 3, H, W) to logits (B, C, ceil(H / s), ceil(W / s)).

    An elastic head has a layer of its own for each map that may be the one with edges.

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        in_channels: their widths; the largest ones for an elastic body.
        num_classes: C.
        sizes: sizes of the head; s is the stride of the map with edges.
        layers: elastic or plain leaf layers.
    """

    def __init__(
        self, body: nn.Module, in_channels: Sequence[int], num_classes: int, sizes: LrasppSize, layers: Layers
    ) -> None:
        super().__init__()
        self.body = body
        self.low = sizes.low
        self.deep = layers.conv_norm(in_channels[-1], sizes.channels, activation="relu")
        self.attention = layers.conv(in_channels[-1], sizes.channels)
        maps = range(sizes.low, LEVELS - 1) if layers.elastic else [sizes.low]
        self.low_classifiers = nn.ModuleDict(
            {str(TAP_STRIDES[index]): layers.conv(in_channels[index], num_classes, bias=True) for index in maps}
        )
        self.high_classifier = layers.conv(sizes.channels, num_classes, bias=True)

    def set_sizes(self, sizes: LrasppSize) -> None:
        """Set the width of an elastic head and the map with edges."""
        self.low = sizes.low
        self.deep.conv.active_out_channels = sizes.channels
        self.attention.active_out_channels = sizes.channels

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits at the stride of the map with edges."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        low, deep = maps[self.low], maps[-1]
        attention = self.attention(deep.mean((2, 3), keepdim=True)).sigmoid()
        context = self.deep(deep) * attention
        context = F.interpolate(context, low.shape[2:], mode="bilinear", align_corners=False)
        return self.low_classifiers[str(TAP_STRIDES[self.low])](low) + self.high_classifier(context)


@lru_cache(maxsize=4096)  # archs in their thousands share few heads
def lraspp_cost(channels: tuple[int, ...], input_size: Size, num_classes: int, sizes: LrasppSize) -> Cost:
    """The cost of the head for one image of `input_size` (H, W).

    Args:
        channels: widths of the body's maps at strides 4, 8, 16, 32.
    """
    maps = [strided_size(strided_size(input_size, 2), 2)]
    for _ in range(LEVELS - 1):
        maps.append(strided_size(maps[-1], 2))
    low, width = sizes.low, sizes.channels
    return Cost((
        convolution_cost("deep", channels[-1], width, 1, maps[-1], batch_norm=True),
        convolution_cost("attention", channels[-1], width, 1, (1, 1)),
        convolution_cost("low_classifier", channels[low], num_classes, 1, maps[low], bias=True),
        convolution_cost("high_classifier", width, num_classes, 1, maps[low], bias=True),
    ))  # fmt: skip
