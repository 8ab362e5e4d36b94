"""COCO's average precision through pycocotools, from predictions in COCO's result format."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as distributed
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

MASK_THRESHOLD = 0.5

BOX_STATISTICS = {
    "map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5,
    "mar_1": 6, "mar_10": 7, "mar_100": 8, "mar_small": 9, "mar_medium": 10, "mar_large": 11,
}  # fmt: skip
KEYPOINT_STATISTICS = {
    "ap": 0, "ap_50": 1, "ap_75": 2, "ap_medium": 3, "ap_large": 4,
    "ar": 5, "ar_50": 6, "ar_75": 7, "ar_medium": 8, "ar_large": 9,
}  # fmt: skip
"""Metric names and their places in COCOeval.stats, of boxes and masks, and of keypoints."""

CocoResult = dict[str, Any]
"""One prediction: image_id, category_id, score, and bbox [x, y, width, height] in pixels, or segmentation (an RLE), or
keypoints [x, y, score, ...]."""


def to_coco_results(
    image_ids: Sequence[int], outputs: Sequence[dict[str, Tensor]], category_ids: Sequence[int]
) -> list[CocoResult]:
    """A detector's outputs in COCO's result format.

    Args:
        image_ids: COCO ids of the images.
        outputs: for each image boxes (N, 4) xyxy in pixels, scores (N,), labels (N,) in 1..C.
        category_ids: the COCO category id of label k at place k - 1.
    """
    results = []
    for image_id, output in zip(image_ids, outputs, strict=True):
        corners = output["boxes"].detach().cpu().double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        for box, score, label in zip(boxes, output["scores"].tolist(), output["labels"].tolist(), strict=True):
            results.append(
                {"image_id": int(image_id), "category_id": category_ids[label - 1], "bbox": box, "score": score}
            )
    return results


def to_coco_masks(
    image_ids: Sequence[int],
    outputs: Sequence[dict[str, Tensor]],
    sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
) -> list[CocoResult]:
    """A mask head's outputs in COCO's result format, pasted into the images one by one to bound the memory.

    Args:
        image_ids: COCO ids of the images.
        outputs: as in `to_coco_results`, and masks (N, 1, M, M): probabilities inside each box.
        sizes: (H, W) of the images.
        category_ids: the COCO category id of label k at place k - 1.
    """
    results = []
    for image_id, output, (height, width) in zip(image_ids, outputs, sizes, strict=True):
        labels, scores = output["labels"].tolist(), output["scores"].tolist()
        for number, (label, score) in enumerate(zip(labels, scores, strict=True)):
            pasted = paste_mask(output["masks"][number], output["boxes"][number], (height, width))
            encoded = rle.encode(np.asfortranarray(pasted.numpy()))
            segmentation = {"size": [height, width], "counts": encoded["counts"].decode()}
            results.append(
                {
                    "image_id": int(image_id), "category_id": category_ids[label - 1],
                    "segmentation": segmentation, "score": score,
                }
            )  # fmt: skip
    return results


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1, M, M) of probabilities inside a box (4,) xyxy, in an image (H, W): uint8 (H, W) of 0 and 1."""
    pasted = paste_masks_in_image(mask[None].detach().float().cpu(), box[None].detach().float().cpu(), size)
    return (pasted[0, 0] >= MASK_THRESHOLD).to(torch.uint8)


def evaluate_coco(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    iou_type: Literal["bbox", "segm", "keypoints"] = "bbox",
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    """COCO's statistics as fractions in 0-1: twelve of boxes or masks, ten of keypoints.

    Args:
        ground_truth: the annotations, crowds included.
        results: predictions for these images, each with the key that `iou_type` compares.
        image_ids: the images that were predicted; the others do not count.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        sigmas: of the object keypoint similarity, one a keypoint (COCO's definition: a third of the tolerance).

    A statistic that is undefined (there is no large object, say) is left out, instead of COCO's -1.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = _load_results(ground_truth, results)
        evaluation = COCOeval(ground_truth, predictions, iou_type)
        evaluation.params.imgIds = sorted(set(image_ids))
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    statistics = np.asarray(evaluation.stats)
    places = KEYPOINT_STATISTICS if iou_type == "keypoints" else BOX_STATISTICS
    return {name: float(statistics[place]) for name, place in places.items() if statistics[place] >= 0}


def _load_results(ground_truth: COCO, results: Sequence[CocoResult]) -> COCO:
    if results:
        return ground_truth.loadRes([dict(result) for result in results])  # it adds keys to them
    predictions = COCO()  # loadRes refuses an empty list
    predictions.dataset = {**{key: ground_truth.dataset[key] for key in ("images", "categories")}, "annotations": []}
    predictions.createIndex()
    return predictions


def gather_results(results: list[CocoResult], image_ids: list[int]) -> tuple[list[CocoResult], list[int]]:
    """Predictions and image ids of all ranks; an image that several ranks predicted counts once."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return results, image_ids
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, (results, image_ids))
    seen: set[int] = set()
    all_results: list[CocoResult] = []
    for part_results, part_ids in parts:
        new = set(part_ids) - seen
        all_results += [result for result in part_results if result["image_id"] in new]
        seen |= new
    return all_results, sorted(seen)
