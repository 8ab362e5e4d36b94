"""The head of top-down pose estimation: deconvolutions that end in one heatmap for each keypoint (Xiao et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.data.samples import PoseBatch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, PositiveNumber, Share
from nas_transfer.supernet.cost import Cost, ModuleCost, Size, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.ops import ElasticConvTranspose2d
from nas_transfer.tasks.deployed import TOP_STRIDE
from nas_transfer.tasks.heatmaps import decode_heatmaps, encode_heatmaps, mirror_heatmaps
from nas_transfer.tasks.pose_crops import resized

DECONVOLUTION_KERNEL = 4
LAYERS_PER_DECONVOLUTION = 3
DECONVOLUTIONS = "deconvolutions"
WIDTH = "deconvolution_channels"

LEAST_SIGMA = 1.0  # cells: a narrower Gaussian may fall between the cells
LEAST_SIDE = 3  # cells: a maximum is refined from its neighbours


@dataclass(frozen=True)
class PoseHeadSize:
    """The sizes of the heatmap head.

    Its genes are ``deconvolutions``, their number, and ``deconvolution_channels``, the one width of all. Sigma follows
    the height of the map, as in the code of Xiao et al., who take 2 cells for maps of 64x48 and 3 for 96x72. It stays
    at 1 cell or more, unless the stated one is smaller.

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

    model: ClassVar[str] = "topdown"
    output: ClassVar[str] = "heatmaps"
    untrained_genes: ClassVar[tuple[str, ...]] = ()

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

    @property
    def genes(self) -> dict[str, int]:
        """The number of deconvolutions and their width."""
        return {DECONVOLUTIONS: len(self.channels), WIDTH: max(self.channels)}

    def check(self, choices: Mapping[str, Sequence[int]], listed: Sequence[str], crops: Sequence[Size]) -> None:
        """Raise ConfigError for a width of deconvolutions of several widths, and for maps of less than 3x3 cells."""
        if WIDTH in listed and len(set(self.channels)) > 1:
            raise ConfigError(
                f"task.build.genes.{WIDTH} must be null where the deconvolutions differ in width, got "
                f"task.build.head.channels={list(self.channels)}: make these equal, or set the gene to null"
            )
        size, fewest = crops[0], choices[DECONVOLUTIONS][0]
        if (min(size) << fewest) // TOP_STRIDE < LEAST_SIDE:
            raise ConfigError(
                f"the smallest heatmaps must have {LEAST_SIDE}x{LEAST_SIDE} cells or more, got crops of "
                f"{size[0]}x{size[1]} pixels with {fewest} deconvolutions: leave the smallest of them out of "
                f"task.build.genes"
            )

    def with_genes(self, values: Mapping[str, int], share: float) -> Self:
        """The head of an arch, with sigma in cells of its own maps."""
        number = values[DECONVOLUTIONS]
        channels = tuple(min(width, values[WIDTH]) for width in self.channels[:number])
        sigma = max(min(self.sigma, LEAST_SIGMA), self.sigma * (share / 2 ** (len(self.channels) - number)))
        return replace(self, channels=channels, sigma=sigma)

    def build(
        self, body: nn.Module, in_channels: int, num_keypoints: int, layers: Layers,
        choices: Mapping[str, Sequence[int]],
    ) -> PoseNetwork:  # fmt: skip
        """The network around a body."""
        widest = max(self.channels[number - 1] for number in choices[DECONVOLUTIONS]) if layers.elastic else None
        return PoseNetwork(body, in_channels, num_keypoints, self, layers, widest)

    def follow(self, network: nn.Module) -> None:
        """Make an elastic network use these sizes."""
        assert isinstance(network, PoseNetwork)  # that `build` made
        network.set_size(self)

    def cost(self, in_channels: int, input_size: Size, num_keypoints: int) -> Cost:
        """The deconvolutions and the last convolution."""
        return pose_head_cost(in_channels, input_size, num_keypoints, self)

    def loss(self, outputs: Tensor, batch: PoseBatch) -> Tensor:
        """The mean squared error of the maps of labelled keypoints."""
        size = (outputs.shape[2], outputs.shape[3])
        targets, weights = encode_heatmaps(batch["keypoints"], batch["visible"], size, self.stride, self.sigma)
        squares = (outputs - targets.to(outputs.dtype)).square().mean((2, 3))
        return (squares * weights).mean()

    def imitation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared error against a teacher, whose maps are resized to these."""
        return (outputs - resized(teacher, (outputs.shape[2], outputs.shape[3]))).square().mean()

    def loss_factor(self, largest_input: Size, size: Sequence[int], head: Self) -> float:
        """The share of the largest map that a Gaussian covers, relative to that of a map of this size: 1 or less."""
        tallest, widest = (side // self.stride for side in largest_input)
        return (size[0] * size[1] / head.sigma**2) / (tallest * widest / self.sigma**2)

    def mirrored(self, outputs: Tensor, flip_pairs: Sequence[Sequence[int]]) -> Tensor:
        """The maps that a mirrored crop should give."""
        return mirror_heatmaps(outputs, flip_pairs)

    def decode(self, outputs: Tensor, crop: Size) -> tuple[Tensor, Tensor]:
        """The maxima of the maps, refined between cells."""
        return decode_heatmaps(outputs, self.stride, self.sigma)


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
