"""COCO's average precision through pycocotools, and predictions in COCO's result format.

Where the extra ``coco`` is installed, faster-coco-eval computes the statistics of boxes and masks. They are equal, and
take less time.

These are functions of predictions that are complete. The metrics of `nas_transfer.tasks.metrics` collect predictions
over batches and ranks, and call them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from nas_transfer.tasks.heatmaps import suppress_duplicates
from nas_transfer.tasks.prediction import CocoResult, RunLengths

MASK_THRESHOLD = 0.5

BOX_STATISTICS = {
    "map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5,
    "mar_1": 6, "mar_10": 7, "mar_100": 8, "mar_small": 9, "mar_medium": 10, "mar_large": 11,
}  # fmt: skip
KEYPOINT_STATISTICS = {
    "ap": 0, "ap_50": 1, "ap_75": 2, "ap_medium": 3, "ap_large": 4,
    "ar": 5, "ar_50": 6, "ar_75": 7, "ar_medium": 8, "ar_large": 9,
}  # fmt: skip
"""Names of metrics and their indices in COCOeval.stats: of boxes and masks, and of keypoints."""

IouType = Literal["bbox", "segm", "keypoints"]


@dataclass(frozen=True)
class Persons:
    """Predicted persons, one row each.

    Attributes:
        sample_ids: (N,) of the crops, one for each person.
        image_ids: (N,) COCO ids of their images.
        areas: (N,) pixels^2 of the image.
        scores: (N,) of the persons.
        points: (N, K, 2) keypoints x, y in pixels of the image, float64.
        point_scores: (N, K) of the keypoints, float64.
    """

    sample_ids: np.ndarray
    image_ids: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    points: np.ndarray
    point_scores: np.ndarray


def to_coco_results(
    image_ids: Sequence[int], outputs: Sequence[Mapping[str, Tensor]], category_ids: Sequence[int]
) -> list[CocoResult]:
    """The boxes of a detector in COCO's result format.

    Args:
        image_ids: COCO ids of the images.
        outputs: for each image boxes (N, 4) xyxy in pixels, scores (N,), labels (N,) in 1..C.
        category_ids: the COCO category id of label k at index k - 1.
    """
    results: list[CocoResult] = []
    for image_id, output in zip(image_ids, outputs, strict=True):
        corners = output["boxes"].detach().cpu().double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        for box, score, label in zip(boxes, output["scores"].tolist(), output["labels"].tolist(), strict=True):
            results.append(
                {"image_id": int(image_id), "category_id": category_ids[label - 1], "bbox": box, "score": score}
            )
    return results


def encode_masks(output: Mapping[str, Tensor], size: tuple[int, int]) -> list[RunLengths]:
    """The masks of one image, run-length encoded. They are pasted into the image one by one to bound the memory.

    Args:
        output: boxes (N, 4) xyxy in pixels and masks (N, 1, M, M): probabilities inside each box.
        size: (H, W) of the image.
    """
    pasted = (paste_mask(mask, box, size) for mask, box in zip(output["masks"], output["boxes"], strict=True))
    return [encode_mask(mask) for mask in pasted]


def encode_mask(mask: Tensor) -> RunLengths:
    """A mask (H, W) of zeros and ones in COCO's compressed run-length encoding."""
    encoded = rle.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": encoded["counts"].decode()}


def to_coco_masks(
    image_ids: Sequence[int],
    outputs: Sequence[Mapping[str, Tensor]],
    masks: Sequence[Sequence[RunLengths]],
    category_ids: Sequence[int],
) -> list[CocoResult]:
    """The masks of a detector in COCO's result format.

    Args:
        image_ids: COCO ids of the images.
        outputs: for each image scores (N,) and labels (N,) in 1..C.
        masks: for each image those of `encode_masks`.
        category_ids: the COCO category id of label k at index k - 1.
    """
    results: list[CocoResult] = []
    for image_id, output, encoded in zip(image_ids, outputs, masks, strict=True):
        for label, score, mask in zip(output["labels"].tolist(), output["scores"].tolist(), encoded, strict=True):
            results.append(
                {"image_id": int(image_id), "category_id": category_ids[label - 1], "segmentation": mask,
                 "score": score}
            )  # fmt: skip
    return results


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste a mask (1, M, M) of probabilities inside a box (4,) xyxy into an image (H, W): uint8 (H, W) of 0 and 1."""
    pasted = paste_masks_in_image(mask[None].detach().float().cpu(), box[None].detach().float().cpu(), size)
    return (pasted[0, 0] >= MASK_THRESHOLD).to(torch.uint8)


def to_coco_segments(image_id: int, labels: Tensor) -> list[CocoResult]:
    """A label map (H, W) in COCO's result format: a mask for each class in it; category ids are label + 1."""
    labels = labels.cpu()
    return [
        {"image_id": image_id, "category_id": label + 1, "segmentation": encode_mask(labels == label), "score": 1.0}
        for label in labels.unique().tolist()
    ]


def to_coco_keypoints(
    persons: Persons, category_id: int, sigmas: Sequence[float], oks_threshold: float
) -> list[CocoResult]:
    """Persons in COCO's result format, in the order of their samples and without duplicates.

    Args:
        persons: each sample once.
        category_id: the COCO id of the category.
        sigmas: (K,) of the object keypoint similarity.
        oks_threshold: similarity above which, of two persons of an image, the one with the lower score is left out.
    """
    rows_by_image: dict[int, list[int]] = {}
    for row in np.argsort(persons.sample_ids, kind="stable").tolist():
        rows_by_image.setdefault(int(persons.image_ids[row]), []).append(row)
    results: list[CocoResult] = []
    for image_id, rows in rows_by_image.items():
        points, areas, scores = persons.points[rows], persons.areas[rows], persons.scores[rows]
        for index in suppress_duplicates(points, areas, scores, np.asarray(sigmas), oks_threshold):
            keypoints = np.concatenate([points[index], persons.point_scores[rows[index]][:, None]], 1)
            results.append(
                {
                    "image_id": image_id, "category_id": category_id,
                    "keypoints": keypoints.flatten().tolist(), "score": float(scores[index]),
                }
            )  # fmt: skip
    return results


def evaluate_coco(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    iou_type: IouType = "bbox",
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    """COCO's statistics as fractions in 0-1: twelve of boxes or masks, ten of keypoints.

    Args:
        ground_truth: the annotations, crowds included.
        results: predictions for these images, each with the key that `iou_type` compares.
        image_ids: the images that were predicted; the others do not count.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        sigmas: sigmas of the object keypoint similarity, one for each keypoint (as in COCO, a third of the tolerance).

    A statistic that is undefined (because there is no large object, for example) is left out, where COCO gives -1.
    """
    faster = None if iou_type == "keypoints" else _faster_evaluation()
    evaluation = _run(faster or COCOeval, ground_truth, results, image_ids, iou_type, sigmas)
    statistics = np.asarray(evaluation.stats)
    indices = KEYPOINT_STATISTICS if iou_type == "keypoints" else BOX_STATISTICS
    return {name: float(statistics[index]) for name, index in indices.items() if statistics[index] >= 0}


def run_coco(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    iou_type: IouType,
    sigmas: Sequence[float] | None = None,
) -> COCOeval:
    """pycocotools' evaluation after all of its steps, for the arguments of `evaluate_coco`."""
    return _run(COCOeval, ground_truth, results, image_ids, iou_type, sigmas)


def match_coco(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    iou_type: IouType,
    thresholds: Sequence[float],
) -> COCOeval:
    """pycocotools' evaluation after its matching, at these IoU thresholds and for objects of any size."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, _load_results(ground_truth, results), iou_type)
        parameters = evaluation.params
        parameters.imgIds = sorted(set(image_ids))
        parameters.iouThrs = np.asarray(thresholds)
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def _run(
    build: Callable[[COCO, COCO, str], COCOeval],
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    iou_type: IouType,
    sigmas: Sequence[float] | None,
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = _load_results(ground_truth, results)
        evaluation = build(ground_truth, predictions, iou_type)
        evaluation.params.imgIds = sorted(set(image_ids))
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@cache
def _faster_evaluation() -> Callable[[COCO, COCO, str], COCOeval] | None:
    """The evaluation of faster-coco-eval: silent, in one thread, without marks in the annotations; None without it."""
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError:
        return None
    return partial(
        COCOeval_faster,
        print_function=lambda *_: None,  # it would log its summary of 17 lines
        separate_eval=True,
        extra_calc=False,
        rle_iou_max_workers=1,
    )


def _load_results(ground_truth: COCO, results: Sequence[CocoResult]) -> COCO:
    if results:
        return ground_truth.loadRes([dict(result) for result in results])  # it adds keys to them
    predictions = COCO()  # loadRes refuses an empty list
    predictions.dataset = {**{key: ground_truth.dataset[key] for key in ("images", "categories")}, "annotations": []}
    predictions.createIndex()
    return predictions
