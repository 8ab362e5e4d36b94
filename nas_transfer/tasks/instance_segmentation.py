"""Instance segmentation: torchvision's Mask R-CNN (He et al. 2017), a mask head beside the detector's box head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import DetectionBatch
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive
from nas_transfer.runs import TaskKind
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost
from nas_transfer.supernet.ops import ElasticConv2d
from nas_transfer.tasks.coco_metrics import encode_masks, to_coco_masks, to_coco_results
from nas_transfer.tasks.detection import DetectionTask, draw_detections
from nas_transfer.tasks.detector import (
    DetectorSize,
    PyramidMaps,
    detector_arguments,
    elastic_where_shared,
    follow_levels,
    roi_pool,
)
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import TaskSettings, Teacher

MASK_ROI_SIZE = 14


@dataclass(frozen=True)
class MaskDetectorSize(DetectorSize):
    """The sizes of a detector with a mask head.

    Args:
        mask_channels: channels of the convolutions and the deconvolution of the mask head; 256 in the paper.
        mask_convolutions: number of convolutions before the deconvolution; 4 in the paper.
    """

    model: ClassVar[str] = "mask_rcnn"

    mask_channels: Positive
    mask_convolutions: Positive

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, each the larger the costlier."""
        own = {"mask_channels": self.mask_channels, "mask_convolutions": self.mask_convolutions}
        return super().genes | own

    def build(self, settings: TaskSettings) -> FasterRCNN:
        """Build torchvision's detector around the body of the supernet, or of one arch as plain static modules."""
        network = MaskRCNN(
            **detector_arguments(settings, self),
            mask_roi_pool=roi_pool(self, MASK_ROI_SIZE),
            mask_head=MaskHead(self.fpn_channels, self.mask_channels, self.mask_convolutions),
            mask_predictor=MaskRCNNPredictor(self.mask_channels, self.mask_channels, settings.num_classes + 1),
        )
        stock = network.transform
        network.transform = _UnpastedMasks(stock.min_size, stock.max_size, stock.image_mean, stock.image_std)
        return elastic_where_shared(network, settings)

    def follow(self, network: nn.Module) -> None:
        """Make the detector of a supernet that of these sizes."""
        super().follow(network)
        heads = network.roi_heads
        follow_levels(heads.mask_roi_pool, self)
        heads.mask_head.active_depth = self.mask_convolutions
        for convolution in heads.mask_head.modules():
            if isinstance(convolution, ElasticConv2d):
                convolution.active_out_channels = self.mask_channels
        heads.mask_predictor.conv5_mask.active_out_channels = self.mask_channels

    def costs(self, in_channels: Sequence[int], num_classes: int) -> dict[str, Cost]:
        """``neck``, ``head`` and ``mask_head``, which runs on `detections` boxes."""
        return super().costs(in_channels, num_classes) | {"mask_head": mask_head_cost(self, num_classes)}


class MaskHead(MaskRCNNHeads):
    """torchvision's convolutions of the mask head, of which a supernet may run only the first `active_depth`."""

    def __init__(self, in_channels: int, width: int, depth: int) -> None:
        super().__init__(in_channels, (width,) * depth, dilation=1)
        self.active_depth = depth

    def forward(self, features: Tensor) -> Tensor:
        """Map the features of boxes (N, in_channels, 14, 14) to (N, width, 14, 14)."""
        for block in list(self)[: self.active_depth]:
            features = block(features)
        return features


class InstanceSegmentationTask(DetectionTask):
    """Mask R-CNN on boxes and masks in COCO's format, scored by COCO's mAP of masks (``map_segm``) and boxes (``map``).

    Args:
        settings: `num_classes` does not count the background.
        detector: the sizes of the detector, the largest ones for a supernet.
        genes, category_ids: as for `DetectionTask`.

    Raises:
        ConfigError: at the first training batch, if the data was loaded without masks.
    """

    kind = TaskKind(
        "instance_segmentation", "Instance segmentation", "map_segm", model="mask_rcnn", score_label="mask mAP",
        size_label=None,
    )  # fmt: skip
    outputs = ("boxes", "labels", "scores", "masks")
    detector: MaskDetectorSize

    def __init__(
        self,
        settings: TaskSettings,
        *,
        detector: MaskDetectorSize,
        genes: Choices | None = None,
        category_ids: Sequence[int] = (),
    ) -> None:
        if not isinstance(detector, MaskDetectorSize):
            raise ConfigError(
                f"task.build.detector must be a MaskDetectorSize, got {type(detector).__name__}: set its _target_ and "
                "mask_channels"
            )
        super().__init__(settings, detector=detector, genes=genes, category_ids=category_ids)

    def losses(
        self, batch: DetectionBatch, *, regularise: bool, teacher: Teacher[PyramidMaps] | None
    ) -> tuple[dict[str, Tensor], PyramidMaps]:
        """The losses of the detector, with ``loss_mask``, and with a teacher the distance to its pyramid."""
        if any("masks" not in target for target in batch["targets"]):
            raise ConfigError("instance segmentation needs masks, got none in the data: set data.with_masks=true")
        return super().losses(batch, regularise=regularise, teacher=teacher)

    def predict_image(self, batch: DetectionBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Boxes in ``predictions.json``, masks in ``predictions_segm.json``."""
        output = {name: values.cpu() for name, values in self.forward_batch(batch)[0].items()}
        image = batch["images"][0]
        boxes = to_coco_results([image_id], [output], vocabulary.ids)
        encoded = encode_masks(output, (image.shape[1], image.shape[2]))
        masks = to_coco_masks([image_id], [output], [encoded], vocabulary.ids)
        rows = {"predictions.json": boxes, "predictions_segm.json": masks}
        return Prediction(rows, partial(draw_detections, output, vocabulary.names))


class _UnpastedMasks(GeneralizedRCNNTransform):
    """torchvision's resizing, but predicted masks stay inside their boxes.

    The stock transform pastes all masks of an image at once as floats: more than a gigabyte for a photograph.
    """

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if self.training:
            return result
        masks = [output.pop("masks") for output in result]
        resized = super().postprocess(result, image_shapes, original_image_sizes)
        return [output | {"masks": unpasted} for output, unpasted in zip(resized, masks, strict=True)]


def mask_head_cost(sizes: MaskDetectorSize, num_classes: int) -> Cost:
    """The cost of the mask head for one image with `detections` boxes. Its deconvolution doubles the 14x14 maps.

    A 2x2 deconvolution of stride 2 multiplies every input by its four weights, which is once for each output pixel.
    """
    width, side = sizes.mask_channels, (MASK_ROI_SIZE, MASK_ROI_SIZE)
    doubled = (2 * MASK_ROI_SIZE, 2 * MASK_ROI_SIZE)
    once = [
        convolution_cost(f"conv_{number}", width if number else sizes.fpn_channels, width, 3, side, bias=True)
        for number in range(sizes.mask_convolutions)
    ]
    deconvolution = convolution_cost("deconv", width, width, 1, doubled)
    once.append(ModuleCost("deconv", deconvolution.macs, 4 * width * width + width))
    once.append(convolution_cost("logits", width, num_classes + 1, 1, doubled, bias=True))
    return Cost(tuple(ModuleCost(part.name, part.macs * sizes.detections, part.params) for part in once))
