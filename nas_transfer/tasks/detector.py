"""torchvision's Faster R-CNN behind an FPN on the body, with every part that costs elastic in a supernet.

A supernet holds the largest detector. A smaller one uses the leading channels of its layers, the pyramid from stride 8
up, fewer proposals or a smaller image (`follow_sizes`). A detector of one arch is torchvision's own, with plain layers
of the same names.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from nas_transfer.arch import SUPERNET
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive
from nas_transfer.supernet.activations import stretched
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, linear_cost, strided_size
from nas_transfer.supernet.layers import make_elastic
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.ops import ElasticConv2d, ElasticLinear
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.detection_head import require_sides
from nas_transfer.tasks.detector_repair import DetectorRepair
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.task import TaskSettings

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
PYRAMID_LEVELS = 5
"""Levels of the whole pyramid, at strides 4, 8, 16, 32 and 64."""
FEWEST_LEVELS = 4
"""Levels of the pyramid without stride 4, whose maps hold three quarters of all pixels."""
ROI_LEVELS = ("0", "1", "2", "3")  # the features of boxes come from strides 4 to 32


@dataclass(frozen=True)
class DetectorSize:
    """The sizes of the detector behind the body.

    Args:
        fpn_levels: levels of the pyramid: 5 from stride 4 to 64, or 4 from stride 8, which is much cheaper and misses
            the smallest anchors.
        fpn_channels: channels of every pyramid level; 256 in the paper.
        box_head_channels: channels of the two fully connected layers; 1024 in the paper.
        anchor_sizes: the side of the anchors in pixels, one for each of the strides 4, 8, 16, 32, 64.
        min_size: the short side of the image in pixels after resizing.
        max_size: upper bound of the long side; it takes precedence over `min_size`.
        proposals_train: proposals after non-maximum suppression in training, per image.
        proposals_test: the same in evaluation; the cost of the box head is that of so many proposals.
        rpn_batch: anchors per image that the loss of the RPN samples.
        box_batch: proposals per image that the loss of the box head samples, a quarter of them objects.
        detections: boxes kept per image.

    Raises:
        ConfigError: a value out of range, by name.
    """

    model: ClassVar[str] = "faster_rcnn"
    smallest_batch: ClassVar[int] = 1
    untrained_genes: ClassVar[tuple[str, ...]] = (
        "min_size", "fpn_levels", "fpn_channels", "box_head_channels", "proposals_test"
    )  # fmt: skip
    weightless_genes: ClassVar[tuple[str, ...]] = ("min_size", "proposals_test")
    width_genes: ClassVar[tuple[str, ...]] = ("fpn_channels", "box_head_channels")
    head_repair: ClassVar[type[HeadRepair]] = DetectorRepair

    fpn_levels: Positive
    fpn_channels: Positive
    box_head_channels: Positive
    anchor_sizes: tuple[Positive, ...]
    min_size: Positive
    max_size: Positive
    proposals_train: Positive
    proposals_test: Positive
    rpn_batch: Positive
    box_batch: Positive
    detections: Positive

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_sizes", tuple(self.anchor_sizes))
        if not FEWEST_LEVELS <= self.fpn_levels <= PYRAMID_LEVELS:
            raise ConfigError(
                f"task.build.detector.fpn_levels must be {FEWEST_LEVELS} or {PYRAMID_LEVELS}, got {self.fpn_levels}"
            )
        if len(self.anchor_sizes) != PYRAMID_LEVELS:
            raise ConfigError(
                f"task.build.detector.anchor_sizes must be {PYRAMID_LEVELS} sizes, one per pyramid level, "
                f"got {list(self.anchor_sizes)}"
            )
        require_sides(self.min_size, self.max_size)

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, each the larger the costlier."""
        return {
            "min_size": self.min_size,
            "fpn_levels": self.fpn_levels,
            "fpn_channels": self.fpn_channels,
            "box_head_channels": self.box_head_channels,
            "proposals_test": self.proposals_test,
        }

    def build(self, settings: TaskSettings) -> FasterRCNN:
        """Build torchvision's detector around the body of the supernet, or of one arch as plain static modules."""
        return elastic_where_shared(FasterRCNN(**detector_arguments(settings, self)), settings)

    def follow(self, network: nn.Module) -> None:
        """Make the detector of a supernet that of these sizes."""
        assert isinstance(network, FasterRCNN)  # that `build` made
        follow_sizes(network, self)

    def costs(self, in_channels: Sequence[int], num_classes: int) -> dict[str, Cost]:
        """``neck`` (FPN) and ``head`` (RPN on all levels, box head on `proposals_test` proposals)."""
        return detector_costs(in_channels, num_classes, self)

    @property
    def finest(self) -> int:
        """The index of the finest map that enters the pyramid among the maps of the body: 0 is stride 4."""
        return PYRAMID_LEVELS - self.fpn_levels

    @property
    def roi_levels(self) -> list[str]:
        """Names of the pyramid levels from which the features of boxes are taken."""
        return list(ROI_LEVELS[self.finest :])


class Pyramid(FeaturePyramidNetwork):
    """torchvision's FPN, which can leave out the finest map and the levels behind the coarsest one.

    Args:
        in_channels: widths of the maps of the body at strides 4, 8, 16, 32.
        out_channels: channels of every level.
        finest: index of the finest map that is used.
        extra_blocks: makes the levels behind the coarsest map; None for no such levels.

    Attributes:
        extended: whether the extra levels are used.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, finest: int, extra_blocks: ExtraFPNBlock | None
    ) -> None:
        super().__init__(list(in_channels), out_channels, extra_blocks=extra_blocks)
        self.finest = finest
        self.extended = extra_blocks is not None
        for unused in range(finest):
            self.inner_blocks[unused] = nn.Identity()
            self.layer_blocks[unused] = nn.Identity()

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the four maps of the body to the levels of the pyramid, by name, finest first."""
        names, maps = list(x)[self.finest :], list(x.values())
        merged = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](merged)]
        for index in range(len(maps) - 2, self.finest - 1, -1):
            lateral = self.inner_blocks[index](maps[index])
            merged = lateral + nn.functional.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[index](merged))
        if self.extra_blocks is not None and self.extended:
            levels, names = self.extra_blocks(levels, maps, names)
        return OrderedDict(zip(names, levels, strict=True))


class PyramidBackbone(nn.Module):
    """A body and an FPN as torchvision's detectors want them: images to an ordered dict of maps.

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        neck: maps these to the levels of the pyramid.
        elastic: whether the lateral convolutions follow the width of their input.
    """

    def __init__(self, body: nn.Module, neck: Pyramid, elastic: bool) -> None:
        super().__init__()
        self.body = body
        self.out_channels: int = neck.layer_blocks[-1][0].out_channels
        self.neck = neck
        if elastic:
            make_elastic(self.neck.inner_blocks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, 3, H, W) to maps (B, out_channels, H_i, W_i) of the pyramid, finest first."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.neck(OrderedDict((str(level), features) for level, features in enumerate(maps)))


class DetectorArguments(TypedDict):
    """Arguments of torchvision's Faster R-CNN and of the detectors derived from it."""

    backbone: PyramidBackbone
    min_size: int
    max_size: int
    image_mean: list[float]
    image_std: list[float]
    rpn_anchor_generator: AnchorGenerator
    rpn_pre_nms_top_n_train: int
    rpn_pre_nms_top_n_test: int
    rpn_post_nms_top_n_train: int
    rpn_post_nms_top_n_test: int
    rpn_batch_size_per_image: int
    box_roi_pool: MultiScaleRoIAlign
    box_head: TwoMLPHead
    box_predictor: FastRCNNPredictor
    box_batch_size_per_image: int
    box_detections_per_img: int


def elastic_where_shared(network: FasterRCNN, settings: TaskSettings) -> FasterRCNN:
    """The detector with elastic layers behind the body, if it is that of a supernet."""
    if settings.arch is SUPERNET:
        for part in (network.backbone.neck, network.rpn.head, network.roi_heads):
            make_elastic(part)
    return network


def detector_arguments(settings: TaskSettings, sizes: DetectorSize) -> DetectorArguments:
    """Build the parts of a detector around the body of the table."""
    table, arch = settings.table, settings.arch
    channels = table.feature_channels(table.space.arch_or_largest(arch))
    body = build_body(table, arch)
    neck = Pyramid(channels, sizes.fpn_channels, sizes.finest, LastLevelMaxPool())
    return {
        "backbone": PyramidBackbone(body, neck, elastic=arch is SUPERNET),
        "min_size": sizes.min_size,
        "max_size": sizes.max_size,
        "image_mean": list(table.preprocessing.mean),
        "image_std": list(table.preprocessing.std),
        "rpn_anchor_generator": anchor_generator(sizes),
        "rpn_pre_nms_top_n_train": sizes.proposals_train,
        "rpn_pre_nms_top_n_test": sizes.proposals_test,
        "rpn_post_nms_top_n_train": sizes.proposals_train,
        "rpn_post_nms_top_n_test": sizes.proposals_test,
        "rpn_batch_size_per_image": sizes.rpn_batch,
        "box_roi_pool": roi_pool(sizes, ROI_SIZE),
        "box_head": TwoMLPHead(sizes.fpn_channels * ROI_SIZE**2, sizes.box_head_channels),
        "box_predictor": FastRCNNPredictor(sizes.box_head_channels, settings.num_classes + 1),
        "box_batch_size_per_image": sizes.box_batch,
        "box_detections_per_img": sizes.detections,
    }


@dataclass(frozen=True)
class PyramidMaps:
    """The maps of a pyramid, in which the padding of a batch may follow each image at the right and at the bottom.

    Attributes:
        levels: maps (B, C, H, W) by the name of their level, finest first.
        shares: the share of the width and of the height of the maps that each image takes, (B, 2), on the CPU.
    """

    levels: Mapping[str, Tensor]
    shares: Tensor


def pyramid_distance(maps: PyramidMaps, targets: PyramidMaps) -> Tensor:
    """The mean over the levels of |map - target|^2 / |target|^2: 1 for maps of zeros, whatever the scale of targets.

    A smaller pyramid is compared with the leading channels of the levels of the target with its names, resized to its
    maps. If the images take other shares of the maps, the targets are moved to where the images are, and padding does
    not count.
    """
    distances = []
    factors = None if torch.allclose(maps.shares, targets.shares) else targets.shares / maps.shares
    for name, found in maps.levels.items():
        wanted = targets.levels[name][:, : found.shape[1]]
        height, width = found.shape[2:]
        if factors is not None:
            across, down = factors.mean(0).tolist()
            height, width = max(1, round(height / down)), max(1, round(width / across))
        if wanted.shape[2:] != (height, width):
            wanted = nn.functional.interpolate(wanted, (height, width), mode="bilinear", antialias=True)
        if factors is not None:
            inside = _inside(maps.shares, found)
            wanted = stretched(wanted, found.shape[2:], factors) * inside
            distances.append((found * inside - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12))
        else:
            distances.append((found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12))
    return torch.stack(distances).mean()


def _inside(shares: Tensor, maps: Tensor) -> Tensor:
    """Where the middle of a cell of maps (B, C, H, W) belongs to the image: bool (B, 1, H, W)."""
    across, down = (
        (torch.arange(side, device=maps.device) + 0.5) / side < shares[:, axis, None].to(maps)
        for axis, side in ((0, maps.shape[3]), (1, maps.shape[2]))
    )
    return (down[:, :, None] & across[:, None, :])[:, None]


def follow_sizes(network: FasterRCNN, sizes: DetectorSize) -> None:
    """Make the detector of a supernet that of these sizes, none of which exceeds its own."""
    network.transform.min_size, network.transform.max_size = (sizes.min_size,), sizes.max_size
    pyramid = network.backbone.neck
    pyramid.finest = sizes.finest
    for convolution in (*convolutions(pyramid), *convolutions(network.rpn.head.conv)):
        convolution.active_out_channels = sizes.fpn_channels
    network.rpn.anchor_generator = anchor_generator(sizes)
    network.rpn._post_nms_top_n["testing"] = sizes.proposals_test
    network.rpn._pre_nms_top_n["testing"] = sizes.proposals_test
    follow_levels(network.roi_heads.box_roi_pool, sizes)
    for layer in network.roi_heads.box_head.modules():
        if isinstance(layer, ElasticLinear):
            layer.active_out_features = sizes.box_head_channels


def roi_pool(sizes: DetectorSize, side: int) -> MultiScaleRoIAlign:
    """The pooling of boxes to `side` x `side` cells."""
    pool = MultiScaleRoIAlign(sizes.roi_levels, side, sampling_ratio=2)
    follow_levels(pool, sizes)
    return pool


def follow_levels(pool: MultiScaleRoIAlign, sizes: DetectorSize) -> None:
    """Make a pooling layer take the features of boxes from the levels of the pyramid that there are.

    The scales are stated: torchvision would guess them from the first batch, and wrongly where the padding of a small
    image is more than two fifths of it.
    """
    strides = TAP_STRIDES[sizes.finest :]
    finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.featmap_names, pool.scales = sizes.roi_levels, [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)


def convolutions(module: nn.Module) -> list[ElasticConv2d]:
    """The elastic convolutions inside a module."""
    return [layer for layer in module.modules() if isinstance(layer, ElasticConv2d)]


def anchor_generator(sizes: DetectorSize) -> AnchorGenerator:
    """Anchors of one size and three aspect ratios on each level of the pyramid."""
    kept = sizes.anchor_sizes[sizes.finest :]
    return AnchorGenerator(tuple((size,) for size in kept), (ANCHOR_RATIOS,) * len(kept))


def detector_costs(channels: Sequence[int], num_classes: int, sizes: DetectorSize) -> dict[str, Cost]:
    """The costs of the detector behind the body for one image, by part: ``neck`` and ``head``.

    Args:
        channels: widths of the maps of the body at strides 4, 8, 16, 32.
        num_classes: without background.
        sizes: sizes of the detector. The image is min_size x max_size, without torchvision's padding to a multiple of
            32, and the box head runs on `proposals_test` proposals.
    """
    width = sizes.fpn_channels
    level_sizes = [strided_size((sizes.min_size, sizes.max_size), 2)]
    for _ in range(PYRAMID_LEVELS):
        level_sizes.append(strided_size(level_sizes[-1], 2))
    level_sizes = level_sizes[1:]  # strides 4 to 64
    taps = list(enumerate(TAP_STRIDES))[sizes.finest :]
    neck = [
        convolution_cost(f"lateral_{stride}", channels[level], width, 1, level_sizes[level], bias=True)
        for level, stride in taps
    ]
    neck += [
        convolution_cost(f"smooth_{stride}", width, width, 3, level_sizes[level], bias=True) for level, stride in taps
    ]
    level_sizes = level_sizes[sizes.finest :]
    anchors = len(ANCHOR_RATIOS)
    head = [
        over_levels("rpn_conv", width, width, 3, level_sizes),
        over_levels("rpn_objectness", width, anchors, 1, level_sizes),
        over_levels("rpn_box", width, 4 * anchors, 1, level_sizes),
    ]
    layers = {
        "box_head_1": (width * ROI_SIZE**2, sizes.box_head_channels),
        "box_head_2": (sizes.box_head_channels, sizes.box_head_channels),
        "box_class": (sizes.box_head_channels, num_classes + 1),
        "box_regression": (sizes.box_head_channels, 4 * (num_classes + 1)),
    }
    head += [linear_cost(name, *widths, rows=sizes.proposals_test) for name, widths in layers.items()]
    return {"neck": Cost(tuple(neck)), "head": Cost(tuple(head))}


def over_levels(
    name: str, in_channels: int, out_channels: int, kernel_size: int, level_sizes: Sequence[tuple[int, int]],
    *, norm: bool = False, groups: int = 1, bias: bool = True,
) -> ModuleCost:  # fmt: skip
    """One convolution that all pyramid levels share, with a norm or none: its parameters count once."""
    costs = [
        convolution_cost(name, in_channels, out_channels, kernel_size, size, groups=groups, bias=bias, batch_norm=norm)
        for size in level_sizes
    ]
    return ModuleCost(name, sum(cost.macs for cost in costs), costs[0].params)
