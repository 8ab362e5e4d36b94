"""FCOS (Tian et al. 2019): a one-stage detector without anchors, torchvision's, around the elastic body.

A supernet holds the largest detector. A smaller one uses the leading channels and groups of its layers, the first
convolutions of both towers, the pyramid up to stride 32, or a smaller image. Losses, the assignment of points to
objects, box coding and non-maximum suppression are torchvision's. Its classes have no background, whose scores no loss
would train.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from nas_transfer.arch import SUPERNET
from nas_transfer.data.samples import DetectionTarget
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, Share
from nas_transfer.supernet.cost import Cost, ModuleCost, Size, convolution_cost, strided_size
from nas_transfer.supernet.layers import make_elastic
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.detection_head import require_sides
from nas_transfer.tasks.detector import Pyramid, PyramidBackbone, convolutions, over_levels
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.raw_detectors import RawFcos
from nas_transfer.tasks.task import TaskSettings

STRIDES = (8, 16, 32, 64, 128)
"""Strides of the levels of the pyramid, P3 to P7."""
LEVELS = (3, 5)
"""Numbers of levels: P3 to P5, or P3 to P7."""
FINEST = 1
"""The index of the finest map that enters the pyramid among the maps of the body."""


@dataclass(frozen=True)
class FcosSize:
    """The sizes of the detector behind the body.

    Args:
        fpn_levels: levels of the pyramid: 5 from stride 8 to 128 (P3 to P7), or 3 to stride 32 (P3 to P5).
        fpn_channels: channels of every level and of both towers; 256 in the paper.
        tower_convolutions: convolutions of each of both towers, for classes and for boxes; 4 in the paper.
        group_channels: channels that a GroupNorm of the towers normalises together; 8 of 256 in torchvision.
        min_size: the short side of the image in pixels after resizing.
        max_size: upper bound of the long side; it takes precedence over `min_size`.
        score_threshold: boxes with a lower score are left out.
        detections: boxes kept per image.

    Raises:
        ConfigError: a value out of range, by name.
    """

    model: ClassVar[str] = "fcos"
    smallest_batch: ClassVar[int] = 1
    untrained_genes: ClassVar[tuple[str, ...]] = ("min_size",)
    weightless_genes: ClassVar[tuple[str, ...]] = ("min_size",)
    width_genes: ClassVar[tuple[str, ...]] = ()
    head_repair: ClassVar[type[HeadRepair]] = HeadRepair

    fpn_levels: Positive
    fpn_channels: Positive
    tower_convolutions: Positive
    group_channels: Positive
    min_size: Positive
    max_size: Positive
    score_threshold: Share
    detections: Positive

    def __post_init__(self) -> None:
        if self.fpn_levels not in LEVELS:
            raise ConfigError(f"task.build.detector.fpn_levels must be 3 or 5, got {self.fpn_levels}")
        if self.fpn_channels % self.group_channels:
            raise ConfigError(
                f"task.build.detector.fpn_channels must be a multiple of group_channels, which is "
                f"{self.group_channels}, got {self.fpn_channels}"
            )
        require_sides(self.min_size, self.max_size)

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, each the larger the costlier."""
        return {
            "min_size": self.min_size,
            "fpn_levels": self.fpn_levels,
            "fpn_channels": self.fpn_channels,
            "tower_convolutions": self.tower_convolutions,
        }

    @property
    def extended(self) -> bool:
        """Whether the pyramid has levels behind the coarsest map of the body."""
        return self.fpn_levels == max(LEVELS)

    def build(self, settings: TaskSettings) -> Fcos:
        """Build torchvision's detector around the body of the supernet, or of one arch as plain static modules."""
        table, arch, elastic = settings.table, settings.arch, settings.arch is SUPERNET
        width = self.fpn_channels
        body = build_body(table, arch)
        extra = LastLevelP6P7(width, width) if self.extended else None
        neck = Pyramid(table.feature_channels(table.space.arch_or_largest(arch)), width, FINEST, extra)
        network = Fcos(
            PyramidBackbone(body, neck, elastic),
            settings.num_classes,
            min_size=self.min_size,
            max_size=self.max_size,
            image_mean=list(table.preprocessing.mean),
            image_std=list(table.preprocessing.std),
            anchor_generator=self.points(),
            head=FcosHead(self, settings.num_classes),
            score_thresh=self.score_threshold,
            detections_per_img=self.detections,
        )
        if elastic:
            make_elastic(neck)
            make_elastic(network.head)
        return network

    def points(self) -> AnchorGenerator:
        """The points of all levels, each as a square with the side of the stride."""
        strides = STRIDES[: self.fpn_levels]
        return AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))

    def follow(self, network: nn.Module) -> None:
        """Make the detector of a supernet that of these sizes."""
        assert isinstance(network, Fcos)  # that `build` made
        network.transform.min_size, network.transform.max_size = (self.min_size,), self.max_size
        network.backbone.neck.extended = self.extended
        towers = [network.head.classification_head.conv, network.head.regression_head.conv]
        for tower in towers:
            tower.active_convolutions = self.tower_convolutions
        for convolution in convolutions(nn.ModuleList([network.backbone.neck, *towers])):
            convolution.active_out_channels = self.fpn_channels
        network.anchor_generator = self.points()

    def raw(self, normalise: nn.Module, network: nn.Module, size: Size) -> RawFcos:
        """The network of an arch without non-maximum suppression."""
        assert isinstance(network, Fcos)  # that `build` made
        return RawFcos(normalise, network, size)

    def costs(self, in_channels: Sequence[int], num_classes: int) -> dict[str, Cost]:
        """``neck`` and ``head``, without torchvision's padding of the image to a multiple of 32."""
        width, size = self.fpn_channels, strided_size((self.min_size, self.max_size), 2)
        sizes = []
        for _ in STRIDES:
            size = strided_size(size, 2)
            sizes.append(size)
        sizes = [*sizes[FINEST:], strided_size(size, 2)][: self.fpn_levels]  # of the strides 8 to 128
        maps = list(zip(STRIDES, in_channels[FINEST:], sizes, strict=False))
        neck = [convolution_cost(f"lateral_{stride}", inputs, width, 1, at, bias=True) for stride, inputs, at in maps]
        neck += [convolution_cost(f"smooth_{stride}", width, width, 3, at, bias=True) for stride, _, at in maps]
        for stride, at in list(zip(STRIDES, sizes, strict=False))[len(maps) :]:
            neck.append(convolution_cost(f"extra_{stride}", width, width, 3, at, bias=True))
        head = [
            cost
            for tower in ("class", "box")
            for number in range(self.tower_convolutions)
            for cost in self.tower_costs(f"{tower}_tower_{number}", sizes)
        ]
        outputs = {"classes": num_classes, "boxes": 4, "centreness": 1}
        head += [over_levels(name, width, channels, 3, sizes) for name, channels in outputs.items()]
        return {"neck": Cost(tuple(neck)), "head": Cost(tuple(head))}

    def tower_costs(self, name: str, sizes: Sequence[Size]) -> list[ModuleCost]:
        """The costs of one convolution of a tower on levels of these sizes."""
        return [over_levels(name, self.fpn_channels, self.fpn_channels, 3, sizes, norm=True)]

    def tower(self, layers: nn.Sequential) -> Tower:
        """A tower from that of torchvision's head."""
        return Tower(layers, self.tower_convolutions)


@dataclass(frozen=True)
class SeparableFcosSize(FcosSize):
    """FCOS with towers of separable convolutions: a depthwise and a 1x1 convolution instead of each 3x3 convolution.

    At 64 channels, a tower costs an eighth. Its sizes are those of `FcosSize`, and its pyramid and predictors are the
    same.
    """

    model: ClassVar[str] = "fcos_separable"

    def tower_costs(self, name: str, sizes: Sequence[Size]) -> list[ModuleCost]:
        """The costs of one separable convolution of a tower on levels of these sizes."""
        width = self.fpn_channels
        return [
            over_levels(f"{name}_dw", width, width, 3, sizes, groups=width, bias=False),
            over_levels(name, width, width, 1, sizes, norm=True),
        ]

    def tower(self, layers: nn.Sequential) -> Tower:
        """A tower from that of torchvision's head, with new convolutions."""
        separable: list[nn.Module] = []
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                inputs, outputs = layer.in_channels, layer.out_channels
                separable.append(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False))
                separable.append(nn.Conv2d(inputs, outputs, 1))
            else:
                separable.append(layer)
        return Tower(separable, self.tower_convolutions)


class Tower(nn.Sequential):
    """The convolutions of a head, each with a norm and a ReLU; the first `active_convolutions` are run.

    Args:
        layers: of all convolutions, equally many for each.
        convolutions: how many there are.
    """

    def __init__(self, layers: Iterable[nn.Module], convolutions: int) -> None:
        super().__init__(*layers)
        self.active_convolutions = convolutions
        self.layers_per_convolution = len(self) // convolutions

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        for layer in list(self)[: self.layers_per_convolution * self.active_convolutions]:
            features = layer(features)
        return features


class FcosHead(FCOSHead):
    """torchvision's heads with towers of any depth and groups of any width, shared by all levels."""

    def __init__(self, sizes: FcosSize, num_classes: int) -> None:
        nn.Module.__init__(self)  # torchvision's own constructor fixes the number of groups at 32
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        width, depth = sizes.fpn_channels, sizes.tower_convolutions
        norm = partial(nn.GroupNorm, width // sizes.group_channels)
        self.classification_head = FCOSClassificationHead(width, 1, num_classes, depth, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(width, 1, depth, norm_layer=norm)
        self.classification_head.conv = sizes.tower(self.classification_head.conv)
        self.regression_head.conv = sizes.tower(self.regression_head.conv)


class Fcos(FCOS):
    """torchvision's detector with labels from 1, as in its other detectors and in the data."""

    def forward(
        self, images: list[Tensor], targets: list[DetectionTarget] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Map images (3, H, W) to losses in training and to detections otherwise."""
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        found = super().forward(images, targets)
        if self.training:
            return found
        return [{**detections, "labels": detections["labels"] + 1} for detections in found]
