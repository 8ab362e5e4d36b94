"""COCO's average precision through pycocotools, from predictions in COCO's result format."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

STATISTICS = {
    "map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5,
    "mar_1": 6, "mar_10": 7, "mar_100": 8, "mar_small": 9, "mar_medium": 10, "mar_large": 11,
}  # fmt: skip
"""Metric names and their places in COCOeval.stats."""

CocoResult = dict[str, Any]
"""One prediction: image_id, category_id, bbox [x, y, width, height] in pixels, score."""


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


def evaluate_coco(
    ground_truth: COCO, results: Sequence[CocoResult], image_ids: Sequence[int], iou_type: str = "bbox"
) -> dict[str, float]:
    """COCO's twelve statistics as fractions in 0-1.

    Args:
        ground_truth: the annotations, crowds included.
        results: predictions for these images.
        image_ids: the images that were predicted; the others do not count.

    A statistic that is undefined (there is no large object, say) is left out, instead of COCO's -1.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = _load_results(ground_truth, results)
        evaluation = COCOeval(ground_truth, predictions, iou_type)
        evaluation.params.imgIds = sorted(set(image_ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    statistics = np.asarray(evaluation.stats)
    return {name: float(statistics[place]) for name, place in STATISTICS.items() if statistics[place] >= 0}


def _load_results(ground_truth: COCO, results: Sequence[CocoResult]) -> COCO:
    if results:
        return ground_truth.loadRes(list(results))
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
