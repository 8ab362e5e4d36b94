"""SSDLite (Sandler et al. 2018, Howard et al. 2019): separable box predictors on the maps of the body and extra layers.

Losses, anchors, box coding and non-maximum suppression are those of `torchvision.models.detection.SSD`, and the layers
those of its SSDLite. Two things differ: the maps of the body are its own outputs, not those of an expansion layer, and
images keep their aspect, as in the other detectors. So the sides of the anchors are shares of a constant instead of the
sides of the image: equal pixels mean equal boxes in wide, tall and padded images.

A supernet holds the largest detector. A smaller one uses fewer maps of the body, fewer or narrower extra layers, or a
smaller image. The anchors of an arch are spread over its maps.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nas_transfer.arch import SUPERNET
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, PositiveShare, Share
from nas_transfer.supernet.cost import Cost, ModuleCost, Size, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.detection_head import require_sides
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.raw_detectors import RawSsd
from nas_transfer.tasks.task import TaskSettings

ASPECT_RATIOS = [2, 3]
ANCHORS = 2 + 2 * len(ASPECT_RATIOS)
"""Anchors of each position of a map."""
TAPS = (2, 3)
"""Numbers of maps of the body: strides 16 and 32, or 8 to 32."""
WIDTHS = (2.0, 1.0, 1.0, 0.5)
"""Widths of the extra layers as multiples of `SsdliteSize.extra_channels`: 512, 256, 256 and 128 in torchvision."""


@dataclass(frozen=True)
class SsdliteSize:
    """The sizes of the detector behind the body.

    Args:
        taps: maps of the body on which boxes are predicted: 2 at strides 16 and 32, as published, or 3 from stride 8.
        extra_layers: layers behind the body, each of which halves height and width; 4 in the paper.
        extra_channels: width of the second and third of them, in multiples of 4; the first is twice and the fourth half
            as wide. 256 in torchvision.
        smallest_anchor: side of the anchors of the finest map, as a share of the geometric mean of `min_size` and
            `max_size`; 0.2 in torchvision, whose images are square.
        largest_anchor: side of the anchors of the coarsest map, as a share of the same; 0.95 in torchvision.
        min_size: the short side of the image in pixels after resizing.
        max_size: upper bound of the long side; it takes precedence over `min_size`.
        score_threshold: boxes with a lower score are left out.
        detections: boxes kept per image.

    Raises:
        ConfigError: a value out of range, by name.
    """

    model: ClassVar[str] = "ssdlite"
    smallest_batch: ClassVar[int] = 2  # the last maps may have one pixel, which one image cannot be normalised by
    untrained_genes: ClassVar[tuple[str, ...]] = ("min_size",)
    weightless_genes: ClassVar[tuple[str, ...]] = ("min_size",)
    width_genes: ClassVar[tuple[str, ...]] = ()
    head_repair: ClassVar[type[HeadRepair]] = HeadRepair

    taps: Positive
    extra_layers: Positive
    extra_channels: Positive
    smallest_anchor: PositiveShare
    largest_anchor: PositiveShare
    min_size: Positive
    max_size: Positive
    score_threshold: Share
    detections: Positive

    def __post_init__(self) -> None:
        if self.taps not in TAPS:
            raise ConfigError(f"task.build.detector.taps must be 2 or 3, got {self.taps}")
        if self.extra_layers > len(WIDTHS):
            raise ConfigError(
                f"task.build.detector.extra_layers must be at most {len(WIDTHS)}, got {self.extra_layers}"
            )
        if self.extra_channels % 4:
            raise ConfigError(f"task.build.detector.extra_channels must be a multiple of 4, got {self.extra_channels}")
        if not self.smallest_anchor < self.largest_anchor:
            raise ConfigError(
                f"task.build.detector.smallest_anchor must be below task.build.detector.largest_anchor, got "
                f"{self.smallest_anchor} and {self.largest_anchor}"
            )
        require_sides(self.min_size, self.max_size)

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, each the larger the costlier."""
        return {
            "min_size": self.min_size,
            "taps": self.taps,
            "extra_layers": self.extra_layers,
            "extra_channels": self.extra_channels,
        }

    @property
    def widths(self) -> list[int]:
        """Channels of the extra layers."""
        return [int(share * self.extra_channels) for share in WIDTHS[: self.extra_layers]]

    @property
    def strides(self) -> list[int]:
        """Strides of the maps on which boxes are predicted, which name them."""
        return [*TAP_STRIDES[-self.taps :], *(TAP_STRIDES[-1] * 2 ** (1 + index) for index in range(self.extra_layers))]

    def build(self, settings: TaskSettings) -> SSD:
        """Build torchvision's detector around the body of the supernet, or of one arch as plain static modules."""
        table, arch = settings.table, settings.arch
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        channels = table.feature_channels(table.space.arch_or_largest(arch))
        backbone = SsdliteBackbone(build_body(table, arch), channels[-1], self, layers)
        widths = [*channels[-self.taps :], *self.widths]
        mean, std = list(table.preprocessing.mean), list(table.preprocessing.std)
        network = SSD(
            backbone,
            self.anchors(),
            (self.min_size, self.max_size),
            settings.num_classes + 1,
            head=SsdliteHead(widths, settings.num_classes + 1, self, layers),
            score_thresh=self.score_threshold,
            nms_thresh=0.55,  # this and the candidates as torchvision's SSDLite
            topk_candidates=300,
            detections_per_img=self.detections,
        )
        network.transform = GeneralizedRCNNTransform(self.min_size, self.max_size, mean, std)
        return network

    def anchors(self) -> SsdliteAnchors:
        """The anchors of all maps."""
        ratios = [ASPECT_RATIOS] * len(self.strides)
        anchors = SsdliteAnchors(ratios, min_ratio=self.smallest_anchor, max_ratio=self.largest_anchor)
        anchors.whole = math.sqrt(self.min_size * self.max_size)
        return anchors

    def follow(self, network: nn.Module) -> None:
        """Make the detector of a supernet that of these sizes."""
        assert isinstance(network, SSD)  # that `build` made
        network.transform.min_size, network.transform.max_size = (self.min_size,), self.max_size
        network.backbone.set_sizes(self)
        network.head.strides = self.strides
        network.anchor_generator = self.anchors()

    def raw(self, normalise: nn.Module, network: nn.Module, size: Size) -> RawSsd:
        """The network of an arch without non-maximum suppression."""
        assert isinstance(network, SSD)  # that `build` made
        return RawSsd(normalise, network, size)

    def costs(self, in_channels: Sequence[int], num_classes: int) -> dict[str, Cost]:
        """``neck``, the extra layers, and ``head``, without torchvision's padding of the image to a multiple of 32."""
        size: Size = (self.min_size, self.max_size)
        sizes: dict[int, Size] = {}
        stride = 1
        while stride < self.strides[-1]:
            size, stride = strided_size(size, 2), 2 * stride
            sizes[stride] = size
        neck: list[ModuleCost] = []
        inputs = in_channels[-1]
        for stride, width in zip(self.strides[self.taps :], self.widths, strict=True):
            middle = width // 2
            neck += [
                convolution_cost(f"extra_{stride}_in", inputs, middle, 1, sizes[stride // 2], batch_norm=True),
                convolution_cost(
                    f"extra_{stride}_dw", middle, middle, 3, sizes[stride], groups=middle, batch_norm=True
                ),
                convolution_cost(f"extra_{stride}_out", middle, width, 1, sizes[stride], batch_norm=True),
            ]
            inputs = width
        head: list[ModuleCost] = []
        for stride, width in zip(self.strides, [*in_channels[-self.taps :], *self.widths], strict=True):
            for name, outputs in (("classes", ANCHORS * (num_classes + 1)), ("boxes", ANCHORS * 4)):
                at = sizes[stride]
                head += [
                    convolution_cost(f"{name}_{stride}_dw", width, width, 3, at, groups=width, batch_norm=True),
                    convolution_cost(f"{name}_{stride}", width, outputs, 1, at, bias=True),
                ]
        return {"neck": Cost(tuple(neck)), "head": Cost(tuple(head))}


class SsdliteAnchors(DefaultBoxGenerator):
    """torchvision's anchors, which an exported graph makes for images of any size.

    Their centres are spread over the image. Their sides depend on `whole` instead of the image, and are those of
    torchvision in square images of this side.

    Attributes:
        whole: pixels of which their sides are shares.
    """

    whole: float = 0.0

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (N, 4) xyxy of each image, in pixels."""
        like = feature_maps[0]
        height, width = image_list.tensors.shape[-2:]
        grids = [list(features.shape[-2:]) for features in feature_maps]
        anchors = self._grid_default_boxes(grids, [height, width], dtype=like.dtype).to(like.device)
        # Tracing would make a constant of torch.tensor([width, height]).
        sides = torch.stack([like.new_empty(()).fill_(side) for side in (width, height)])
        centres, halves = anchors[:, :2], 0.5 * anchors[:, 2:]
        centres, halves = centres * sides, halves * self.whole
        boxes = torch.cat([centres - halves, centres + halves], -1)
        return [boxes for _ in image_list.image_sizes]


class SsdliteBackbone(nn.Module):
    """A body and extra layers as torchvision's detector wants them: images to maps by their stride, finest first.

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        in_channels: channels of the last of them; the largest number for an elastic body.
        sizes: the sizes of the detector, the largest ones in a supernet.
        layers: makes the layers.
    """

    def __init__(self, body: nn.Module, in_channels: int, sizes: SsdliteSize, layers: Layers) -> None:
        super().__init__()
        self.body = body
        self.extra = nn.ModuleList()
        for width in sizes.widths:
            middle = width // 2
            self.extra.append(
                nn.Sequential(
                    layers.conv_norm(in_channels, middle, activation="relu6"),
                    layers.conv_norm(middle, middle, 3, 2, depthwise=True, activation="relu6"),
                    layers.conv_norm(middle, width, activation="relu6"),
                )
            )
            in_channels = width
        self.strides = sizes.strides
        self.taps = sizes.taps
        _initialise(self.extra)

    def set_sizes(self, sizes: SsdliteSize) -> None:
        """Make a supernet use these sizes, each at most the largest one."""
        self.strides, self.taps = sizes.strides, sizes.taps
        for layer, width in zip(self.extra, sizes.widths, strict=False):
            layer[0].conv.active_out_channels = width // 2
            layer[2].conv.active_out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, 3, H, W) to the maps on which boxes are predicted."""
        maps = list(self.body(images.contiguous(memory_format=torch.channels_last)))[-self.taps :]
        for layer in self.extra[: len(self.strides) - self.taps]:
            maps.append(layer(maps[-1]))
        return OrderedDict(zip(map(str, self.strides), maps, strict=True))


class SsdliteHead(nn.Module):
    """Scores and boxes of all anchors, predicted from each map by a depthwise and a 1x1 convolution.

    Args:
        widths: channels of the maps, finest first; the largest ones in a supernet.
        num_outputs: classes with the background.
        sizes: the sizes of the detector, the largest ones in a supernet.
        layers: makes the layers.
    """

    def __init__(self, widths: Sequence[int], num_outputs: int, sizes: SsdliteSize, layers: Layers) -> None:
        super().__init__()
        self.strides = sizes.strides
        self.num_outputs = num_outputs
        self.classes, self.boxes = (
            nn.ModuleDict(
                {
                    str(stride): nn.Sequential(
                        layers.conv_norm(width, width, 3, depthwise=True, activation="relu6"),
                        layers.conv(width, ANCHORS * columns, bias=True),
                    )
                    for stride, width in zip(sizes.strides, widths, strict=True)
                }
            )
            for columns in (num_outputs, 4)
        )
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map the maps to logits (B, N, C + 1) and offsets (B, N, 4) of N anchors."""
        return {
            "bbox_regression": self._predicted(self.boxes, maps, 4),
            "cls_logits": self._predicted(self.classes, maps, self.num_outputs),
        }

    def _predicted(self, layers: nn.ModuleDict, maps: Sequence[Tensor], columns: int) -> Tensor:
        rows = []
        for stride, features in zip(self.strides, maps, strict=True):
            values = layers[str(stride)](features)
            rows.append(values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, columns))  # (B, H W anchors, columns)
        return torch.cat(rows, 1)


def _initialise(module: nn.Module) -> None:
    """N(0, 0.03) for convolutions and zero biases, as torchvision's SSDLite."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
