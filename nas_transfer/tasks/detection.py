"""Object detection: torchvision's Faster R-CNN (Ren et al. 2015) behind an FPN (Lin et al. 2017) on the elastic body.

Only the FPN's lateral convolutions meet the arch: they are elastic in their input width. Everything behind them is
stock torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, linear_cost, strided_size
from nas_transfer.supernet.ops import ElasticConv2d
from nas_transfer.supernet.table import TAP_STRIDES
from nas_transfer.tasks.base import Batch, Task, TaskSettings
from nas_transfer.tasks.coco_metrics import CocoResult, evaluate_coco, gather_results, to_coco_results

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
PYRAMID_LEVELS = 5


@dataclass(frozen=True)
class DetectorSize:
    """The sizes of the detector behind the body.

    Args:
        fpn_channels: of every pyramid level; 256 in the paper.
        box_head_channels: of the two fully connected layers; 1024 in the paper.
        anchor_sizes: the anchors' side in pixels on the pyramid levels at strides 4, 8, 16, 32, 64, one each.
        min_size: the image's short side in pixels after resizing.
        max_size: the largest long side; it wins over `min_size`.
        proposals_train: proposals after non-maximum suppression in training, per image.
        proposals_test: the same in evaluation; the box head's cost is that of so many.
        rpn_batch: anchors per image that the RPN's loss samples.
        box_batch: proposals per image that the box head's loss samples, a quarter of them objects.
        detections: boxes kept per image.

    Raises:
        ConfigError: naming the value.
    """

    fpn_channels: int
    box_head_channels: int
    anchor_sizes: tuple[int, ...]
    min_size: int
    max_size: int
    proposals_train: int
    proposals_test: int
    rpn_batch: int
    box_batch: int
    detections: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_sizes", tuple(self.anchor_sizes))
        if len(self.anchor_sizes) != PYRAMID_LEVELS:
            raise ConfigError(
                f"expected {PYRAMID_LEVELS} detector.anchor_sizes, one a pyramid level, got {list(self.anchor_sizes)}"
            )
        if self.min_size > self.max_size:
            raise ConfigError(
                f"expected detector.min_size of at most max_size, got {self.min_size} and {self.max_size}"
            )


class PyramidBackbone(nn.Module):
    """A body and an FPN as torchvision's detectors want them: images to an ordered dict of five maps.

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        in_channels: their widths; the largest ones for an elastic body.
        out_channels: of every pyramid level.
        elastic: whether the lateral convolutions follow their input's width.
    """

    def __init__(self, body: nn.Module, in_channels: Sequence[int], out_channels: int, elastic: bool) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.neck = FeaturePyramidNetwork(list(in_channels), out_channels, extra_blocks=LastLevelMaxPool())
        if elastic:
            for lateral in self.neck.inner_blocks:
                stock = lateral[0]  # type: ignore[index]
                conv = ElasticConv2d(stock.in_channels, stock.out_channels, bias=True)
                conv.load_state_dict(stock.state_dict())
                lateral[0] = conv  # type: ignore[index]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, 3, H, W) to maps (B, out_channels, H_i, W_i) at strides 4, 8, 16, 32, 64."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.neck(OrderedDict((str(level), features) for level, features in enumerate(maps)))


class DetectionTask(Task):
    """Faster R-CNN on COCO-style boxes, scored by COCO's mAP.

    Args:
        settings: `num_classes` is without background.
        detector: the sizes of the detector.
        category_ids: the data's COCO category ids in label order; only a task without data, for costs, has none.

    `ground_truth` must be set before an evaluation to the annotations of the split that is evaluated; afterwards
    `results` holds the predictions in COCO's format.

    Raises:
        ConfigError: distillation is asked for.
    """

    score_key = "map"

    def __init__(self, settings: TaskSettings, *, detector: DetectorSize, category_ids: Sequence[int] = ()) -> None:
        if settings.sampling.distillation > 0:
            raise ConfigError(
                f"expected task.sampling.distillation=0 for detection, got {settings.sampling.distillation}: "
                "its archs learn from the boxes alone"
            )
        super().__init__(settings, build_detector(settings, detector))
        self.category_ids = list(category_ids)
        self.detector = detector
        self.results: list[CocoResult] = []
        self._pending: list[CocoResult] = []
        self._pending_images: list[int] = []

    def rebuild(self, settings: TaskSettings) -> DetectionTask:
        """The same task with new weights for other settings."""
        task = DetectionTask(settings, category_ids=self.category_ids, detector=self.detector)
        task.ground_truth = self.ground_truth
        return task

    @property
    def body(self) -> nn.Module:
        """The table's body inside the network."""
        return self.network.backbone.body  # type: ignore[union-attr, return-value]

    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """The four losses of Faster R-CNN: objectness and box of the RPN, class and box of the box head."""
        return self.network(_as_floats(batch["images"]), batch["targets"]), None

    def forward_batch(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Boxes (N, 4) xyxy in the image's own pixels, labels (N,) in 1..C and scores (N,), for each image."""
        return self.network(_as_floats(batch["images"]))

    def update_metrics(self, batch: Batch) -> None:
        """Predict a batch and keep the boxes."""
        image_ids = [int(target["image_id"]) for target in batch["targets"]]
        self._pending += to_coco_results(image_ids, self.forward_batch(batch), self.category_ids)
        self._pending_images += image_ids

    def compute_metrics(self) -> dict[str, float]:
        """COCO's average precisions and recalls, ``map`` first; RuntimeError without `ground_truth`."""
        if self.ground_truth is None:
            raise RuntimeError("set ground_truth before an evaluation")
        self.results, image_ids = gather_results(self._pending, self._pending_images)
        self._pending, self._pending_images = [], []
        return evaluate_coco(self.ground_truth, self.results, image_ids)

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """min_size x max_size, as the literature states detection costs (800 x 1333), for every arch."""
        return self.detector.min_size, self.detector.max_size

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``neck`` (FPN) and ``head`` (RPN on five levels, box head on `proposals_test` proposals)."""
        channels = self.table.feature_channels(arch)
        return detector_costs(channels, self.input_size(arch), self.settings.num_classes, self.detector)


def build_detector(settings: TaskSettings, sizes: DetectorSize) -> FasterRCNN:
    """torchvision's Faster R-CNN around the table's body: of the supernet, or of one arch as plain static modules."""
    table, arch = settings.table, settings.arch
    channels = table.feature_channels(arch or table.space.largest())
    return FasterRCNN(
        PyramidBackbone(table.build_body(arch), channels, sizes.fpn_channels, elastic=arch is None),
        min_size=sizes.min_size,
        max_size=sizes.max_size,
        image_mean=list(table.preprocessing.mean),
        image_std=list(table.preprocessing.std),
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in sizes.anchor_sizes), (ANCHOR_RATIOS,) * PYRAMID_LEVELS
        ),
        rpn_pre_nms_top_n_train=sizes.proposals_train,
        rpn_pre_nms_top_n_test=sizes.proposals_test,
        rpn_post_nms_top_n_train=sizes.proposals_train,
        rpn_post_nms_top_n_test=sizes.proposals_test,
        rpn_batch_size_per_image=sizes.rpn_batch,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], ROI_SIZE, sampling_ratio=2),
        box_head=TwoMLPHead(sizes.fpn_channels * ROI_SIZE**2, sizes.box_head_channels),
        box_predictor=FastRCNNPredictor(sizes.box_head_channels, settings.num_classes + 1),
        box_batch_size_per_image=sizes.box_batch,
        box_detections_per_img=sizes.detections,
    )


def detector_costs(
    channels: Sequence[int], input_size: tuple[int, int], num_classes: int, sizes: DetectorSize
) -> dict[str, Cost]:
    """What the detector behind the body costs for one image.

    Args:
        channels: widths of the body's maps at strides 4, 8, 16, 32.
        input_size: (H, W) of the resized image, without torchvision's padding to a multiple of 32.
        num_classes: without background.
        sizes: of the detector; the box head runs on `proposals_test` proposals.
    """
    width = sizes.fpn_channels
    level_sizes = [strided_size(input_size, 2)]
    for _ in range(PYRAMID_LEVELS):
        level_sizes.append(strided_size(level_sizes[-1], 2))
    level_sizes = level_sizes[1:]  # strides 4 to 64
    neck = [
        convolution_cost(f"lateral_{stride}", channels[level], width, 1, level_sizes[level], bias=True)
        for level, stride in enumerate(TAP_STRIDES)
    ]
    neck += [
        convolution_cost(f"smooth_{stride}", width, width, 3, level_sizes[level], bias=True)
        for level, stride in enumerate(TAP_STRIDES)
    ]
    anchors = len(ANCHOR_RATIOS)
    head = [
        _over_levels("rpn_conv", width, width, 3, level_sizes),
        _over_levels("rpn_objectness", width, anchors, 1, level_sizes),
        _over_levels("rpn_box", width, 4 * anchors, 1, level_sizes),
    ]
    layers = {
        "box_head_1": (width * ROI_SIZE**2, sizes.box_head_channels),
        "box_head_2": (sizes.box_head_channels, sizes.box_head_channels),
        "box_class": (sizes.box_head_channels, num_classes + 1),
        "box_regression": (sizes.box_head_channels, 4 * (num_classes + 1)),
    }
    head += [linear_cost(name, *widths, rows=sizes.proposals_test) for name, widths in layers.items()]
    return {"neck": Cost(tuple(neck)), "head": Cost(tuple(head))}


def _over_levels(
    name: str, in_channels: int, out_channels: int, kernel_size: int, level_sizes: Sequence[tuple[int, int]]
) -> ModuleCost:
    """One convolution that all pyramid levels share: its parameters count once."""
    costs = [convolution_cost(name, in_channels, out_channels, kernel_size, size, bias=True) for size in level_sizes]
    return ModuleCost(name, sum(cost.macs for cost in costs), costs[0].params)


def _as_floats(images: Sequence[Tensor]) -> list[Tensor]:
    """uint8 images as fractions, which torchvision's detectors normalise by themselves."""
    return [image / 255 for image in images]
