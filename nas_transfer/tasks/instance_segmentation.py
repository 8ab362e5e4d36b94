"""Instance segmentation: torchvision's Mask R-CNN (He et al. 2017), a mask head beside the detector's box head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from nas_transfer.data.module import Vocabulary
from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost
from nas_transfer.tasks.base import Batch, TaskSettings
from nas_transfer.tasks.coco_metrics import CocoResult, evaluate_coco, gather_results, to_coco_masks, to_coco_results
from nas_transfer.tasks.detection import ROI_LEVELS, DetectionTask, DetectorSize, detector_arguments, draw_detections
from nas_transfer.tasks.prediction import Prediction

MASK_ROI_SIZE = 14
MASK_CONVOLUTIONS = 4


@dataclass(frozen=True)
class MaskDetectorSize(DetectorSize):
    """The sizes of a detector with a mask head.

    Args:
        mask_channels: of the mask head's four convolutions and its deconvolution; 256 in the paper.
    """

    mask_channels: int


class InstanceSegmentationTask(DetectionTask):
    """Mask R-CNN on COCO-style boxes and masks, scored by COCO's mAP over masks (``map_segm``) and boxes (``map``).

    Args: those of `DetectionTask`; `detector` is a `MaskDetectorSize`.

    Raises:
        ConfigError: at the first batch, if the data was loaded without masks.
    """

    score_key = "map_segm"
    outputs = ("boxes", "labels", "scores", "masks")
    detector: MaskDetectorSize

    def __init__(self, settings: TaskSettings, *, detector: MaskDetectorSize, category_ids: Sequence[int] = ()) -> None:
        super().__init__(settings, detector=detector, category_ids=category_ids)
        self.pending_masks: list[CocoResult] = []

    @staticmethod
    def build_network(settings: TaskSettings, detector: MaskDetectorSize) -> FasterRCNN:
        """torchvision's detector around the table's body: of the supernet, or of one arch as plain static modules."""
        width = detector.mask_channels
        network = MaskRCNN(
            **detector_arguments(settings, detector),
            mask_roi_pool=MultiScaleRoIAlign(list(ROI_LEVELS), MASK_ROI_SIZE, sampling_ratio=2),
            mask_head=MaskRCNNHeads(detector.fpn_channels, (width,) * MASK_CONVOLUTIONS, dilation=1),
            mask_predictor=MaskRCNNPredictor(width, width, settings.num_classes + 1),
        )
        stock = network.transform
        network.transform = _UnpastedMasks(stock.min_size, stock.max_size, stock.image_mean, stock.image_std)
        return network

    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """The losses of the detector, ``loss_mask`` among them, and with a teacher the distance to its pyramid."""
        if any("masks" not in target for target in batch["targets"]):
            raise ConfigError("expected masks in the data of an instance segmentation, got none: data.with_masks=true")
        return super().losses(batch, teacher)

    def predict_image(self, batch: Batch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Boxes in ``predictions.json``, masks in ``predictions_segm.json``."""
        output = {name: values.cpu() for name, values in self.forward_batch(batch)[0].items()}
        image = batch["images"][0]
        boxes = to_coco_results([image_id], [output], vocabulary.ids)
        masks = to_coco_masks([image_id], [output], [(image.shape[1], image.shape[2])], vocabulary.ids)
        rows = {"predictions.json": boxes, "predictions_segm.json": masks}
        return Prediction(rows, partial(draw_detections, output, vocabulary.names))

    def update_metrics(self, batch: Batch) -> None:
        """Predict a batch and keep the boxes and masks."""
        outputs = self.forward_batch(batch)
        self.keep(batch, outputs)
        image_ids = [int(target["image_id"]) for target in batch["targets"]]
        sizes = [(image.shape[-2], image.shape[-1]) for image in batch["images"]]
        self.pending_masks += to_coco_masks(image_ids, outputs, sizes, self.category_ids)

    def compute_metrics(self) -> dict[str, float]:
        """COCO's average precisions and recalls of masks (``<name>_segm``) and boxes; resets them."""
        masks, image_ids = gather_results(self.pending_masks, self.pending_images)
        self.pending_masks = []
        boxes = super().compute_metrics()
        self.predictions["predictions_segm"] = masks
        scores = evaluate_coco(self.require_ground_truth(), masks, image_ids, "segm")
        return {f"{name}_segm": value for name, value in scores.items()} | boxes

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``neck``, ``head`` and ``mask_head``, the last on as many boxes as an image has detections."""
        return super().head_costs(arch) | {"mask_head": mask_head_cost(self.detector, self.settings.num_classes)}


class _UnpastedMasks(GeneralizedRCNNTransform):
    """torchvision's resizing, but predicted masks stay as they are inside their boxes.

    The stock one pastes all masks of an image at once, as floats: more than a gigabyte for a photograph.
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
        return [output | {"masks": own} for output, own in zip(resized, masks, strict=True)]


def mask_head_cost(sizes: MaskDetectorSize, num_classes: int) -> Cost:
    """What the mask head costs for one image with `detections` boxes; its deconvolution doubles the 14x14 maps.

    A 2x2 deconvolution of stride 2 multiplies every input by its four weights: once for each output pixel.
    """
    width, side = sizes.mask_channels, (MASK_ROI_SIZE, MASK_ROI_SIZE)
    doubled = (2 * MASK_ROI_SIZE, 2 * MASK_ROI_SIZE)
    once = [
        convolution_cost(f"conv_{number}", width if number else sizes.fpn_channels, width, 3, side, bias=True)
        for number in range(MASK_CONVOLUTIONS)
    ]
    deconvolution = convolution_cost("deconv", width, width, 1, doubled)
    once.append(ModuleCost("deconv", deconvolution.macs, 4 * width * width + width))
    once.append(convolution_cost("logits", width, num_classes + 1, 1, doubled, bias=True))
    return Cost(tuple(ModuleCost(part.name, part.macs * sizes.detections, part.params) for part in once))
