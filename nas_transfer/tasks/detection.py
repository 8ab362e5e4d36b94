"""Object detection: torchvision's Faster R-CNN (Ren et al. 2015) behind an FPN (Lin et al. 2017) on the elastic body.

Only the lateral convolutions of the FPN depend on the arch: they are elastic in their input width. Everything behind
them is stock torchvision. The smaller archs of a sandwich may imitate the pyramid of the largest one (feature
distillation as in FitNets, Romero et al. 2015): its maps have the same shape for every arch.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from typing_extensions import Self

from nas_transfer.data.drawing import Picture, draw_instances
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import DetectionBatch
from nas_transfer.errors import ConfigError
from nas_transfer.runs import TaskKind
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, linear_cost, strided_size
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.ops import ElasticConv2d
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.coco_metrics import paste_mask, to_coco_results
from nas_transfer.tasks.deployed import Deployed
from nas_transfer.tasks.metrics import CocoMetric
from nas_transfer.tasks.normalise import in_order
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ROI_SIZE = 7
PYRAMID_LEVELS = 5
RESULT_FILES = {"bbox": "predictions", "segm": "predictions_segm"}
"""Names of the files of predicted boxes and masks."""
ROI_LEVELS = ("0", "1", "2", "3")  # the features of boxes come from strides 4 to 32


@dataclass(frozen=True)
class DetectorSize:
    """The sizes of the detector behind the body.

    Args:
        fpn_channels: channels of every pyramid level; 256 in the paper.
        box_head_channels: channels of the two fully connected layers; 1024 in the paper.
        anchor_sizes: the side of the anchors in pixels, one for each pyramid level (strides 4, 8, 16, 32, 64).
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
                f"task.build.detector.anchor_sizes must be {PYRAMID_LEVELS} sizes, one per pyramid level, "
                f"got {list(self.anchor_sizes)}"
            )
        if self.min_size > self.max_size:
            raise ConfigError(
                f"task.build.detector.min_size must be at most task.build.detector.max_size, got {self.min_size} "
                f"and {self.max_size}"
            )


class PyramidBackbone(nn.Module):
    """A body and an FPN as torchvision's detectors want them: images to an ordered dict of five maps.

    Args:
        body: gives maps at strides 4, 8, 16, 32.
        in_channels: widths of these maps; the largest ones for an elastic body.
        out_channels: channels of every pyramid level.
        elastic: whether the lateral convolutions follow the width of their input.
    """

    def __init__(self, body: nn.Module, in_channels: Sequence[int], out_channels: int, elastic: bool) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.neck = FeaturePyramidNetwork(list(in_channels), out_channels, extra_blocks=LastLevelMaxPool())
        if elastic:
            for lateral in self.neck.inner_blocks:
                stock = lateral[0]
                conv = ElasticConv2d(stock.in_channels, stock.out_channels, bias=True)
                conv.load_state_dict(stock.state_dict())
                lateral[0] = conv

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, 3, H, W) to maps (B, out_channels, H_i, W_i) at strides 4, 8, 16, 32, 64."""
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.neck(OrderedDict((str(level), features) for level, features in enumerate(maps)))


class DetectionTask(Task[DetectionBatch, list[Tensor]]):
    """Faster R-CNN on boxes in COCO's format, scored by COCO's mAP. `ground_truth` must be set before an evaluation.

    Args:
        settings: `num_classes` does not count the background.
        detector: the sizes of the detector.
        category_ids: the COCO category ids of the data in the order of the labels; empty for a task without data, which
            only states costs.
    """

    kind = TaskKind("detection", "Object detection", "map", model="faster_rcnn", score_label="mAP", size_label=None)
    input_gene = "min_size"
    outputs: ClassVar[tuple[str, ...]] = ("boxes", "labels", "scores")
    detector: DetectorSize

    def __init__(self, settings: TaskSettings, *, detector: DetectorSize, category_ids: Sequence[int] = ()) -> None:
        super().__init__(settings, self.build_network(settings, detector))
        self.category_ids = list(category_ids)
        self.detector = detector
        self.metric = CocoMetric(category_ids, with_masks="masks" in self.outputs)

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(settings, category_ids=self.category_ids, detector=self.detector)

    @staticmethod
    def build_network(settings: TaskSettings, detector: DetectorSize) -> FasterRCNN:
        """Build torchvision's detector around the body of the supernet, or of one arch as plain static modules."""
        return FasterRCNN(**detector_arguments(settings, detector))

    @property
    def body(self) -> nn.Module:
        """The body of the table inside the network."""
        return self.network.backbone.body

    def losses(
        self, batch: DetectionBatch, *, regularise: bool, teacher: Teacher[list[Tensor]] | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The losses of the detector and, with a teacher, the distance to its pyramid. The detector has no dropout."""
        with _outputs_of(self.network.backbone) as outputs:
            losses = self.network(self.as_floats(batch["images"]), batch["targets"])
        maps = list(outputs[0].values())
        if teacher is not None:
            losses = {name: (1 - teacher.share) * loss for name, loss in losses.items()}
            losses["distillation"] = teacher.share * pyramid_distance(maps, teacher.outputs)
        return losses, [level.detach() for level in maps]

    def as_floats(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 images as torchvision's detectors take them, which normalise by themselves."""
        return [in_order(image, self.table.preprocessing).to(self.dtype) for image in images]

    def run_network(self, images: Tensor) -> object:
        """Run the whole detector, resizing included."""
        return self.network(list(images))

    def deployed(self) -> Deployed:
        """The detector with its resizing, for one image: boxes (N, 4) xyxy in pixels, labels (N,) and scores (N,)."""
        return Deployed(
            _DeployedDetector(self.network, self.table.preprocessing, self.outputs), self.outputs, one_image=True
        )

    def forward_batch(self, batch: DetectionBatch) -> list[dict[str, Tensor]]:
        """Boxes (N, 4) xyxy in pixels of the image, labels (N,) in 1..C and scores (N,), for each image."""
        return self.network(self.as_floats(batch["images"]))

    def predict_image(self, batch: DetectionBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Boxes in ``predictions.json``."""
        output = {name: values.cpu() for name, values in self.forward_batch(batch)[0].items()}
        boxes = to_coco_results([image_id], [output], vocabulary.ids)
        return Prediction({"predictions.json": boxes}, partial(draw_detections, output, vocabulary.names))

    def update_metrics(self, batch: DetectionBatch) -> None:
        """Predict a batch and keep the detections."""
        image_ids = [int(target["image_id"]) for target in batch["targets"]]
        sizes = [(image.shape[-2], image.shape[-1]) for image in batch["images"]]
        self.metric.update(image_ids, self.forward_batch(batch), sizes)

    def compute_metrics(self) -> dict[str, float]:
        """Return COCO's average precisions and recalls, ``map`` first, and reset them.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        self.metric.ground_truth = self.ground_truth
        metrics = self.metric.compute()
        self.metric.reset()
        self.predictions = {RESULT_FILES[kind]: results for kind, results in self.metric.results.items()}
        return metrics

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """min_size x max_size for every arch, as the literature states costs of detectors (800 x 1333)."""
        return self.detector.min_size, self.detector.max_size

    def resize_factor(self, height: int, width: int) -> float:
        """The scale at which the short side becomes min_size, or a smaller one if the long side exceeds max_size."""
        return min(self.detector.min_size / min(height, width), self.detector.max_size / max(height, width))

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``neck`` (FPN) and ``head`` (RPN on five levels, box head on `proposals_test` proposals)."""
        channels = self.table.feature_channels(arch)
        return detector_costs(channels, self.input_size(arch), self.settings.num_classes, self.detector)


class _DeployedDetector(nn.Module):
    """A detector from one raw RGB image (1, 3, H, W) to its named outputs."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.preprocessing, self.outputs = network, preprocessing, tuple(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the only image."""
        detections = self.network([in_order(images[0], self.preprocessing)])[0]
        return tuple(detections[name] for name in self.outputs)


def draw_detections(
    output: Mapping[str, Tensor], names: Sequence[str], image: Tensor, threshold: float, side: int
) -> Picture:
    """Draw the boxes, and masks if there are any, of all detections with at least this score on an image."""
    sure = output["scores"] >= threshold
    boxes, scores = output["boxes"][sure], output["scores"][sure].tolist()
    labels = [label - 1 for label in output["labels"][sure].tolist()]
    masks = None
    if "masks" in output and len(boxes):
        size = (image.shape[1], image.shape[2])
        masks = torch.stack([paste_mask(*pair, size) for pair in zip(output["masks"][sure], boxes, strict=True)])
    return draw_instances(image, boxes, labels, names, masks, scores, side)


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


def detector_arguments(settings: TaskSettings, sizes: DetectorSize) -> DetectorArguments:
    """Build the parts of a detector around the body of the table."""
    table, arch = settings.table, settings.arch
    channels = table.feature_channels(table.space.arch_or_largest(arch))
    return {
        "backbone": PyramidBackbone(build_body(table, arch), channels, sizes.fpn_channels, elastic=arch is SUPERNET),
        "min_size": sizes.min_size,
        "max_size": sizes.max_size,
        "image_mean": list(table.preprocessing.mean),
        "image_std": list(table.preprocessing.std),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((size,) for size in sizes.anchor_sizes), (ANCHOR_RATIOS,) * PYRAMID_LEVELS
        ),
        "rpn_pre_nms_top_n_train": sizes.proposals_train,
        "rpn_pre_nms_top_n_test": sizes.proposals_test,
        "rpn_post_nms_top_n_train": sizes.proposals_train,
        "rpn_post_nms_top_n_test": sizes.proposals_test,
        "rpn_batch_size_per_image": sizes.rpn_batch,
        "box_roi_pool": MultiScaleRoIAlign(list(ROI_LEVELS), ROI_SIZE, sampling_ratio=2),
        "box_head": TwoMLPHead(sizes.fpn_channels * ROI_SIZE**2, sizes.box_head_channels),
        "box_predictor": FastRCNNPredictor(sizes.box_head_channels, settings.num_classes + 1),
        "box_batch_size_per_image": sizes.box_batch,
        "box_detections_per_img": sizes.detections,
    }


def pyramid_distance(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """The mean over the levels of |map - target|^2 / |target|^2: 1 for maps of zeros, whatever the scale of targets."""
    distances = [
        (level - target).square().sum() / target.square().sum().clamp(min=1e-12)
        for level, target in zip(maps, targets, strict=True)
    ]
    return torch.stack(distances).mean()


@contextlib.contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Mapping[str, Tensor]]]:
    """Collect what a module returns while it runs inside a larger network."""
    outputs: list[Mapping[str, Tensor]] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def detector_costs(
    channels: Sequence[int], input_size: tuple[int, int], num_classes: int, sizes: DetectorSize
) -> dict[str, Cost]:
    """The costs of the detector behind the body for one image, by part: ``neck`` and ``head``.

    Args:
        channels: widths of the maps of the body at strides 4, 8, 16, 32.
        input_size: (H, W) of the resized image, without torchvision's padding to a multiple of 32.
        num_classes: without background.
        sizes: sizes of the detector; the box head runs on `proposals_test` proposals.
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
