"""The head of top-down pose estimation: deconvolutions that end in one heatmap for each keypoint (Xiao et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, PositiveNumber, Share
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.ops import ElasticConvTranspose2d
from nas_transfer.tasks.deployed import TOP_STRIDE

DECONVOLUTION_KERNEL = 4
LAYERS_PER_DECONVOLUTION = 3


@dataclass(frozen=True)
class PoseHeadSize:
    """The sizes of the heatmap head.

    Args:
        channels: channels of each deconvolution, which doubles height and width. Three of 256 in the paper give maps at
            stride 4.
        sigma: sigma of the Gaussians of the targets, in heatmap cells.
        flip_test: average the maps of each crop and of its mirror image; twice the time, about one AP more.
        score_threshold: keypoints below it do not count in the score of a person.
        oks_threshold: similarity above which two persons of an image are one that a detector found twice; the one with
            the lower score is left out.

    Raises:
        ConfigError: a value out of range, by name.
    """

    channels: tuple[Positive, ...]
    sigma: PositiveNumber
    flip_test: bool
    score_threshold: Share
    oks_threshold: Share

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not 1 <= len(self.channels) <= 5 or min(self.channels) < 1:
            raise ConfigError(f"task.build.head.channels must be one to five widths above 0, got {list(self.channels)}")
        if not self.sigma > 0:
            raise ConfigError(f"task.build.head.sigma must be above 0, got {self.sigma}")

    @property
    def stride(self) -> int:
        """Image pixels per heatmap cell."""
        return TOP_STRIDE >> len(self.channels)


class PoseNetwork(nn.Module):
    """A body and deconvolutions on its last map: normalised crops (B, 3, H, W) to (B, K, H / stride, W / stride).

    In a supernet, smaller heads (`set_size`) use the first deconvolutions and the leading channels of each.

    Args:
        body: its last feature map has `in_channels` channels at stride 32.
        in_channels: those of the largest arch in a supernet.
        num_keypoints: number of maps, K.
        sizes: the sizes of the head, the largest ones in a supernet.
        layers: makes the layers.
        map_channels: the most channels that the last convolution may be given; None for those of the last
            deconvolution. A supernet whose earlier deconvolutions are wider and may be the last needs more.
    """

    def __init__(
        self, body: nn.Module, in_channels: int, num_keypoints: int, sizes: PoseHeadSize, layers: Layers,
        map_channels: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = body
        self.deconvolutions = nn.Sequential()
        for width in sizes.channels:
            self.deconvolutions.extend(
                [layers.upsampling_conv(in_channels, width), layers.norm(width), nn.ReLU(inplace=True)]
            )
            in_channels = width
        self.active_deconvolutions = len(sizes.channels)
        self.maps = layers.conv(map_channels or in_channels, num_keypoints, bias=True)
        for module in (*self.deconvolutions, self.maps):
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_size(self, sizes: PoseHeadSize) -> None:
        """Make a supernet use a head of these sizes, each at most the largest one."""
        self.active_deconvolutions = len(sizes.channels)
        layers = [module for module in self.deconvolutions if isinstance(module, ElasticConvTranspose2d)]
        for layer, width in zip(layers, sizes.channels, strict=False):
            layer.active_out_channels = width

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised crops (B, 3, H, W) to heatmaps (B, K, H / stride, W / stride)."""
        features = self.body(images.contiguous(memory_format=torch.channels_last))[-1]
        for index in range(LAYERS_PER_DECONVOLUTION * self.active_deconvolutions):
            features = self.deconvolutions[index](features)
        return self.maps(features)


@lru_cache(maxsize=4096)
def pose_head_cost(in_channels: int, input_size: tuple[int, int], num_keypoints: int, sizes: PoseHeadSize) -> Cost:
    """The cost of the head for one crop. A deconvolution multiplies each input pixel by all weights of its kernel."""
    size = input_size
    for _ in range(5):
        size = strided_size(size, 2)
    modules = []
    for number, width in enumerate(sizes.channels):
        weights = in_channels * width * DECONVOLUTION_KERNEL**2
        modules.append(ModuleCost(f"deconv_{number}", weights * size[0] * size[1], weights + 2 * width))
        size = (2 * size[0], 2 * size[1])
        in_channels = width
    modules.append(convolution_cost("maps", in_channels, num_keypoints, 1, size, bias=True))
    return Cost(tuple(modules))
