"""SimCC (Li et al. 2022): keypoints as two classifications, of the column and of the row, without a deconvolution.

As in RTMPose (Jiang et al. 2023), a large convolution makes one map for each keypoint, and a hidden layer lies between
the map and the bins; its gated attention unit is left out. The bins of all archs are those of the largest crop, so that
an arch with smaller crops shares all weights: its maps are enlarged to the size of the largest. An arch with fewer bins
averages neighbouring rows of the last layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.data.samples import PoseBatch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, PositiveNumber, Share
from nas_transfer.supernet.cost import Cost, Size, convolution_cost, linear_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.ops import ElasticLinear, shared_slice
from nas_transfer.tasks.deployed import TOP_STRIDE

BINS = "bins_per_pixel"


@dataclass(frozen=True)
class SimccSize:
    """The sizes of the head.

    Args:
        input_size: (H, W) of the largest crops, whose pixels are divided into bins.
        channels: features of the hidden layer of each keypoint; 256 in RTMPose.
        bins_per_pixel: bins for each pixel of the largest crop in both directions; the splitting factor of the paper, 2
            in RTMPose.
        kernel_size: of the convolution that makes the maps, odd; 7 in RTMPose.
        sigma_percent: sigma of the Gaussian targets in percent of each side of the crop; 1.1 and 1.3 in RTMPose.
        flip_test: average the outputs of each crop and of its mirror image; twice the time.
        score_threshold: keypoints below it do not count in the score of a person.
        oks_threshold: similarity above which two persons of an image are one that a detector found twice; the one with
            the lower score is left out.

    Raises:
        ConfigError: a value out of range, by name.
    """

    model: ClassVar[str] = "simcc"
    output: ClassVar[str] = "simcc"
    untrained_genes: ClassVar[tuple[str, ...]] = (BINS,)

    input_size: tuple[Positive, Positive]
    channels: Positive
    bins_per_pixel: Positive
    kernel_size: Positive
    sigma_percent: PositiveNumber
    flip_test: bool
    score_threshold: Share
    oks_threshold: Share

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", tuple(self.input_size))
        if not self.kernel_size % 2:
            raise ConfigError(f"task.build.head.kernel_size must be odd, got {self.kernel_size}")
        if not self.sigma_percent > 0:
            raise ConfigError(f"task.build.head.sigma_percent must be above 0, got {self.sigma_percent}")

    @property
    def genes(self) -> dict[str, int]:
        """The width of the hidden layer and the fineness of the bins."""
        return {"channels": self.channels, BINS: self.bins_per_pixel}

    @property
    def grid(self) -> Size:
        """The size of the map of the largest crop."""
        return self.input_size[0] // TOP_STRIDE, self.input_size[1] // TOP_STRIDE

    @property
    def bins(self) -> tuple[int, int]:
        """The numbers of columns and of rows."""
        return self.input_size[1] * self.bins_per_pixel, self.input_size[0] * self.bins_per_pixel

    def check(self, choices: Mapping[str, Sequence[int]], listed: Sequence[str], crops: Sequence[Size]) -> None:
        """Raise ConfigError for bins that do not divide each other, and for other crops than those of the task."""
        uneven = [number for number in choices[BINS] if self.bins_per_pixel % number]
        if uneven:
            raise ConfigError(
                f"task.build.genes.{BINS} must divide task.build.head.{BINS}, which is {self.bins_per_pixel}, "
                f"got {uneven[0]}"
            )
        if crops[-1] != self.input_size:
            raise ConfigError(
                f"task.build.head.input_size must be task.build.input_size, which is {list(crops[-1])}, got "
                f"{list(self.input_size)}"
            )

    def with_genes(self, values: Mapping[str, int], share: float) -> Self:
        """The head of an arch; the size of its crops changes nothing."""
        return replace(self, channels=values["channels"], bins_per_pixel=values[BINS])

    def build(
        self, body: nn.Module, in_channels: int, num_keypoints: int, layers: Layers,
        choices: Mapping[str, Sequence[int]],
    ) -> SimccNetwork:  # fmt: skip
        """The network around a body."""
        return SimccNetwork(body, in_channels, num_keypoints, self, layers)

    def follow(self, network: nn.Module) -> None:
        """Make an elastic network use these sizes."""
        assert isinstance(network, SimccNetwork)  # that `build` made
        network.set_size(self)

    def cost(self, in_channels: int, input_size: Size, num_keypoints: int) -> Cost:
        """The cost of the head for one crop of `input_size` (H, W)."""
        return simcc_cost(in_channels, input_size, num_keypoints, self)

    def loss(self, outputs: Tensor, batch: PoseBatch) -> Tensor:
        """The mean divergence of the bins of labelled keypoints from a Gaussian, over both directions.

        Keypoints outside of the crop have no bin and do not count.
        """
        height, width = batch["images"].shape[2:]
        places = (batch["keypoints"] + 0.5) / torch.tensor([width, height], device=outputs.device)  # 0-1 inside
        inside = ((places > 0) & (places < 1)).all(-1)
        divergences = []
        for logits, share in zip(self._apart(outputs), places.to(outputs.dtype).unbind(-1), strict=True):
            target = self.target(share, logits.shape[-1])
            likely = logits.log_softmax(-1)
            divergences.append(F.kl_div(likely, target, reduction="none").sum(-1))
        return (torch.stack(divergences).mean(0) * (batch["visible"] * inside)).mean()

    def target(self, places: Tensor, bins: int) -> Tensor:
        """Gaussians over bins whose sum is 1: (..., bins).

        Args:
            places: (...,) centres as shares of the side of the crop, 0-1.
            bins: how many there are.
        """
        centres = (torch.arange(bins, device=places.device, dtype=places.dtype) + 0.5) / bins
        return (-(centres - places[..., None]).square() / (2 * (self.sigma_percent / 100) ** 2)).softmax(-1)

    def imitation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The mean divergence from the bins of a teacher, which are joined where it has more of them."""
        divergences = []
        for logits, finer in zip(self._apart(outputs), self._apart(teacher), strict=True):
            wanted = finer.softmax(-1).unflatten(-1, (logits.shape[-1], -1)).sum(-1)
            divergences.append(F.kl_div(logits.log_softmax(-1), wanted, reduction="none").sum(-1).mean())
        return torch.stack(divergences).mean()

    def loss_factor(self, largest_input: Size, size: Sequence[int], head: Self) -> float:
        """1: the divergence of a keypoint depends neither on the size of the crop nor on the number of bins."""
        return 1.0

    def mirrored(self, outputs: Tensor, flip_pairs: Sequence[Sequence[int]]) -> Tensor:
        """The outputs that a mirrored crop should give: columns reversed, left and right keypoints exchanged."""
        order = list(range(outputs.shape[1]))
        for left, right in flip_pairs:
            order[left], order[right] = right, left
        columns, rows = self._apart(outputs)
        return torch.cat([columns.flip(2), rows], 2)[:, order]

    def decode(self, outputs: Tensor, crop: Size) -> tuple[Tensor, Tensor]:
        """The centres of the likeliest column and row.

        The score is the smaller of both probabilities, as in RTMPose, as a share of that of a perfect answer.
        """
        places, scores = [], []
        for logits, side in zip(self._apart(outputs), (crop[1], crop[0]), strict=True):
            bins = logits.shape[-1]
            highest, best = logits.softmax(-1).max(-1)
            places.append((best + 0.5) * (side / bins) - 0.5)
            scores.append(highest * max(1.0, math.sqrt(2 * math.pi) * self.sigma_percent / 100 * bins))
        return torch.stack(places, -1), torch.minimum(*scores).clamp(max=1)

    def _apart(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of columns (B, K, W') and rows (B, K, H')."""
        height, width = self.input_size
        columns = outputs.shape[2] * width // (height + width)
        return outputs[..., :columns], outputs[..., columns:]


class BinLinear(ElasticLinear):
    """A linear layer to bins, of which a smaller layer joins equal numbers of neighbours by averaging their rows."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., in) to (..., active out)."""
        shape = (self.active_out_features, features.shape[-1])
        return F.linear(features, self.weight_of(shape), self.bias_of(shape[:1]))

    def weight_of(self, shape: tuple[int, ...]) -> Tensor:
        """The weight (out, in) of the active layer."""
        return _joined(shared_slice(self.weight, (self.out_features, shape[1])), shape[0])

    def bias_of(self, shape: tuple[int, ...]) -> Tensor:
        """The bias (out,) of the active layer."""
        return _joined(self.bias, shape[0])

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """Weight and bias."""
        return {"weight": self.weight_of, "bias": self.bias_of}


def _joined(rows: Tensor, count: int) -> Tensor:
    """The means of `count` groups of neighbouring rows."""
    return rows if len(rows) == count else rows.unflatten(0, (count, -1)).mean(1)


class SimccNetwork(nn.Module):
    """A body and SimCC: normalised crops (B, 3, H, W) to logits (B, K, columns + rows).

    Args:
        body: its last feature map has `in_channels` channels at stride 32.
        in_channels: those of the largest arch in a supernet.
        num_keypoints: K.
        sizes: the sizes of the head, the largest ones in a supernet.
        layers: makes the layers.
    """

    def __init__(self, body: nn.Module, in_channels: int, num_keypoints: int, sizes: SimccSize, layers: Layers) -> None:
        super().__init__()
        linear = BinLinear if layers.elastic else nn.Linear
        columns, rows = sizes.bins
        self.body = body
        self.grid = sizes.grid
        self.maps = layers.conv(in_channels, num_keypoints, sizes.kernel_size, bias=True)
        self.hidden = layers.linear(math.prod(sizes.grid), sizes.channels)
        self.activation = nn.SiLU()
        self.columns = linear(sizes.channels, columns)
        self.rows = linear(sizes.channels, rows)

    def set_size(self, sizes: SimccSize) -> None:
        """Make a supernet use a head of these sizes, each at most the largest one."""
        self.hidden.active_out_features = sizes.channels
        self.columns.active_out_features, self.rows.active_out_features = sizes.bins

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised crops (B, 3, H, W) to logits (B, K, columns + rows)."""
        maps = self.maps(self.body(images.contiguous(memory_format=torch.channels_last))[-1])
        if maps.shape[2:] != self.grid:
            maps = F.interpolate(maps, self.grid, mode="bilinear", align_corners=False)
        hidden = self.activation(self.hidden(maps.flatten(2)))
        return torch.cat([self.columns(hidden), self.rows(hidden)], 2)


@lru_cache(maxsize=4096)
def simcc_cost(in_channels: int, input_size: Size, num_keypoints: int, sizes: SimccSize) -> Cost:
    """The cost of the head for one crop; all keypoints share the layers behind their maps."""
    size = input_size
    for _ in range(5):
        size = strided_size(size, 2)
    columns, rows = sizes.bins
    return Cost((
        convolution_cost("maps", in_channels, num_keypoints, sizes.kernel_size, size, bias=True),
        linear_cost("hidden", math.prod(sizes.grid), sizes.channels, rows=num_keypoints),
        linear_cost("columns", sizes.channels, columns, rows=num_keypoints),
        linear_cost("rows", sizes.channels, rows, rows=num_keypoints),
    ))  # fmt: skip
