"""Metrics of predictions: torchmetrics gathers their states from all ranks, and each prediction counts once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from nas_transfer.tasks.box_tally import BoxTally, tally_boxes
from nas_transfer.tasks.coco_metrics import (
    IouType,
    Persons,
    encode_masks,
    evaluate_coco,
    to_coco_keypoints,
    to_coco_masks,
    to_coco_results,
    to_coco_segments,
)
from nas_transfer.tasks.prediction import CocoResult, RunLengths


class RowMetric(Metric):
    """A metric whose states are tables of rows.

    torchmetrics concatenates the rows of all ranks in the order of the ranks. A rank without any batch adds no rows.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        self._no_rows: dict[str, Tensor] = {}

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """Declare the state `name` with rows of this shape."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._no_rows[name] = torch.zeros(0, *shape, dtype=dtype)

    def append(self, name: str, rows: Tensor) -> None:
        """Add rows to a state."""
        getattr(self, name).append(rows.detach().to(self.device))

    def rows(self, name: str) -> Tensor:
        """All rows of a state, on the CPU."""
        state = getattr(self, name)
        return self._no_rows[name] if isinstance(state, list) and not state else dim_zero_cat(state).cpu()

    def sync(self, *arguments: object, **options: object) -> None:
        """Gather the states of all ranks; a state without rows takes part with the shape and type of its rows."""
        for name, nothing in self._no_rows.items():
            if not getattr(self, name):
                getattr(self, name).append(nothing.to(self.device))
        super().sync(*arguments, **options)


MetricStates: TypeAlias = dict[str, dict[str, Tensor | list[Tensor]]]
"""The states of the metrics of a module, by the name of the metric in it."""


def metric_states(module: nn.Module) -> MetricStates:
    """What the metrics of a module have counted since their reset; it can be saved."""
    metrics = {name: part for name, part in module.named_modules() if isinstance(part, Metric)}
    return {name: dict(metric.metric_state) for name, metric in metrics.items()}


def set_metric_states(module: nn.Module, states: MetricStates) -> None:
    """Let the metrics of a module go on counting from the states of those of another module of its kind."""
    for name, values in states.items():
        metric = module.get_submodule(name)
        assert isinstance(metric, Metric)
        for key, value in values.items():
            on_device = (
                [part.to(metric.device) for part in value] if isinstance(value, list) else value.to(metric.device)
            )
            setattr(metric, key, on_device)


class CocoMetric(RowMetric):
    """COCO's average precisions and recalls of boxes and, if wanted, of masks.

    Args:
        category_ids: the COCO category id of label k at index k - 1.
        with_masks: whether masks are scored too. Their metrics are named ``<name>_segm``.

    Attributes:
        ground_truth: the annotations to compare with, set before `compute`.
        results: the predictions of the last `compute` in COCO's result format, ``bbox`` and ``segm``.
        evaluated: ids of the images of the last `compute`.
    """

    higher_is_better = True

    def __init__(self, category_ids: Sequence[int], *, with_masks: bool = False) -> None:
        super().__init__()
        self.category_ids = list(category_ids)
        self.with_masks = with_masks
        self.ground_truth: COCO | None = None
        self.results: dict[str, list[CocoResult]] = {}
        self.evaluated: list[int] = []
        for name in ("image_ids", "counts", "labels"):
            self.add_rows(name, dtype=torch.int64)
        self.add_rows("boxes", 4, dtype=torch.float32)
        self.add_rows("scores", dtype=torch.float32)
        if with_masks:
            _add_masks(self)

    def update(
        self, image_ids: Sequence[int], outputs: Sequence[Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Add the detections of some images.

        Args:
            image_ids: COCO ids of the images.
            outputs: for each image boxes (N, 4) xyxy in pixels, scores (N,), labels (N,) in 1..C, and masks
                (N, 1, M, M), probabilities inside each box, if masks are scored.
            sizes: (H, W) of the images, if masks are scored.
        """
        self.append("image_ids", torch.tensor(image_ids, dtype=torch.int64))
        self.append("counts", torch.tensor([len(output["scores"]) for output in outputs], dtype=torch.int64))
        for output in outputs:
            for name in ("boxes", "scores", "labels"):
                self.append(name, output[name])
        if self.with_masks:
            for output, size in zip(outputs, sizes, strict=True):
                _append_masks(self, encode_masks(output, size))

    def compute(self) -> dict[str, float]:
        """All metrics as fractions; an image that several ranks predicted counts once.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        truth = _required(self.ground_truth)
        image_ids = self._predicted()
        self.evaluated, self.results = image_ids, self.results_of(image_ids)
        metrics: dict[str, float] = {}
        if self.with_masks:
            scores = evaluate_coco(truth, self.results["segm"], image_ids, "segm")
            metrics = {f"{name}_segm": value for name, value in scores.items()}
        return metrics | evaluate_coco(truth, self.results["bbox"], image_ids)

    def _predicted(self) -> list[int]:
        """Ids of the images so far, in the order in which they were predicted."""
        return list(first_of_each(self.rows("image_ids").tolist()))

    def results_of(self, image_ids: Sequence[int]) -> dict[str, list[CocoResult]]:
        """The predictions of some images in COCO's result format, ``bbox`` and, with masks, ``segm``."""
        counts = self.rows("counts").tolist()
        first = first_of_each(self.rows("image_ids").tolist())
        indices = [first[image_id] for image_id in image_ids]
        split = {name: self.rows(name).split(counts) for name in ("boxes", "scores", "labels")}
        outputs = [{name: parts[index] for name, parts in split.items()} for index in indices]
        results = {"bbox": to_coco_results(image_ids, outputs, self.category_ids)}
        if self.with_masks:
            masks = _masks(self, counts)
            of_images = [masks[index] for index in indices]
            results["segm"] = to_coco_masks(image_ids, outputs, of_images, self.category_ids)
        return results

    def tally(self, iou_type: IouType, thresholds: Sequence[float], start: int) -> BoxTally:
        """What matches in the images so far, without the first `start`.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        image_ids = self._predicted()[start:]
        results = self.results_of(image_ids)[iou_type]
        return tally_boxes(_required(self.ground_truth), results, image_ids, iou_type, thresholds)


class KeypointMetric(RowMetric):
    """COCO's average precisions and recalls of persons by their object keypoint similarity (OKS).

    Args:
        num_keypoints: K of each person.
        category_id: the COCO id of the category.
        sigmas: (K,) of the object keypoint similarity.
        oks_threshold: similarity above which, of two persons of an image, the one with the lower score is left out.

    Attributes:
        ground_truth: the annotations to compare with, set before `compute`.
        results: the predictions of the last `compute` in COCO's result format.
    """

    higher_is_better = True

    def __init__(self, num_keypoints: int, category_id: int, sigmas: Sequence[float], oks_threshold: float) -> None:
        super().__init__()
        self.category_id = category_id
        self.sigmas = list(sigmas)
        self.oks_threshold = oks_threshold
        self.ground_truth: COCO | None = None
        self.results: list[CocoResult] = []
        for name in ("sample_ids", "image_ids"):
            self.add_rows(name, dtype=torch.int64)
        for name in ("areas", "scores"):
            self.add_rows(name, dtype=torch.float64)
        self.add_rows("points", num_keypoints, 2, dtype=torch.float64)
        self.add_rows("point_scores", num_keypoints, dtype=torch.float64)

    def update(self, persons: Persons) -> None:
        """Add the predicted persons of a batch."""
        for name, values in vars(persons).items():
            self.append(name, torch.from_numpy(values))

    def compute(self) -> dict[str, float]:
        """All metrics as fractions; of a sample that was predicted more than once, the last prediction counts.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        truth = _required(self.ground_truth)
        names = ("sample_ids", "image_ids", "areas", "scores", "points", "point_scores")
        columns = {name: self.rows(name).numpy() for name in names}
        last = list({sample: row for row, sample in enumerate(columns["sample_ids"].tolist())}.values())
        persons = Persons(**{name: column[last] for name, column in columns.items()})
        self.results = to_coco_keypoints(persons, self.category_id, self.sigmas, self.oks_threshold)
        return evaluate_coco(truth, self.results, truth.getImgIds(), "keypoints", self.sigmas)


class SegmentResults(RowMetric):
    """Collects label maps in COCO's result format: one mask for each class of an image."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("image_ids", "counts", "category_ids"):
            self.add_rows(name, dtype=torch.int64)
        _add_masks(self)

    def update(self, image_id: int, labels: Tensor) -> None:
        """Add the predicted label map (H, W) of an image."""
        results = to_coco_segments(image_id, labels)
        self.append("image_ids", torch.tensor([image_id]))
        self.append("counts", torch.tensor([len(results)]))
        self.append("category_ids", torch.tensor([result["category_id"] for result in results]))
        _append_masks(self, [result["segmentation"] for result in results])

    def compute(self) -> list[CocoResult]:
        """The records of all images; an image that several ranks predicted counts once."""
        counts = self.rows("counts").tolist()
        categories, masks = self.rows("category_ids").split(counts), _masks(self, counts)
        return [
            {"image_id": image_id, "category_id": category, "segmentation": mask, "score": 1.0}
            for image_id, index in first_of_each(self.rows("image_ids").tolist()).items()
            for category, mask in zip(categories[index].tolist(), masks[index], strict=True)
        ]


def _required(ground_truth: COCO | None) -> COCO:
    if ground_truth is None:
        raise RuntimeError("an evaluation needs ground truth, got none: set ground_truth first")
    return ground_truth


def first_of_each(image_ids: Sequence[int]) -> dict[int, int]:
    """The index of the first prediction of each image, in the order of these."""
    first: dict[int, int] = {}
    for index, image_id in enumerate(image_ids):
        first.setdefault(image_id, index)
    return first


def _add_masks(metric: RowMetric) -> None:
    """Declare states for run-length encoded masks: [height, width], and the bytes of all codes with their lengths."""
    metric.add_rows("mask_sizes", 2, dtype=torch.int64)
    metric.add_rows("mask_lengths", dtype=torch.int64)
    metric.add_rows("mask_bytes", dtype=torch.uint8)


def _append_masks(metric: RowMetric, masks: Sequence[RunLengths]) -> None:
    codes = [mask["counts"].encode() for mask in masks]
    metric.append("mask_sizes", torch.tensor([mask["size"] for mask in masks], dtype=torch.int64).reshape(-1, 2))
    metric.append("mask_lengths", torch.tensor([len(code) for code in codes], dtype=torch.int64))
    metric.append("mask_bytes", torch.from_numpy(np.frombuffer(b"".join(codes), dtype=np.uint8).copy()))


def _masks(metric: RowMetric, counts: Sequence[int]) -> list[list[RunLengths]]:
    """The masks of each image, of which there are `counts`."""
    codes = metric.rows("mask_bytes").split(metric.rows("mask_lengths").tolist())
    masks: list[RunLengths] = [
        {"size": size, "counts": code.numpy().tobytes().decode()}
        for size, code in zip(metric.rows("mask_sizes").tolist(), codes, strict=True)
    ]
    ends = np.cumsum([0, *counts]).tolist()
    return [masks[start:end] for start, end in itertools.pairwise(ends)]
