"""Which detections of each image match an object, from which COCO's average precision of any sample follows.

Images are matched independently, so that a sample of them needs no further matching.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pycocotools.coco import COCO

from nas_transfer.tasks.coco_metrics import IouType, match_coco
from nas_transfer.tasks.prediction import CocoResult
from nas_transfer.tasks.tally import Booleans, Floats, Integers, Tally

THRESHOLDS: dict[str, tuple[float, ...]] = {
    "map": tuple(np.linspace(0.5, 0.95, 10).tolist()), "map_50": (0.5,), "map_75": (0.75,),
}  # fmt: skip
"""Thresholds of the intersection over union by the name of a score of boxes."""
SAMPLES_AT_ONCE = 64
RECALLS = np.linspace(0, 1, 101)
"""COCO's recalls, at which precisions are averaged."""


@dataclass(frozen=True, eq=False)
class BoxTally(Tally):
    """The detections of each image, and which of them match an object at each threshold.

    Attributes:
        positions: the position in `images` of the image of each detection (D,).
        categories: the index of its category (D,).
        confidences: its score (D,).
        matched: whether it matches an object, (D, T).
        ignored: whether it does not count, since it matches a crowd, (D, T).
        objects: the number of objects of each category in each image, without crowds: (N, K).
    """

    positions: Integers
    categories: Integers
    confidences: Floats
    matched: Booleans
    ignored: Booleans
    objects: Integers

    def scores(self, weights: Integers) -> Floats:
        """COCO's average precision: the mean over the thresholds and the categories with objects."""
        parts = [weights[start : start + SAMPLES_AT_ONCE] for start in range(0, len(weights), SAMPLES_AT_ONCE)]
        columns = list(self._columns())
        return np.concatenate([_mean_precision(part.astype(np.float64), self.objects, columns) for part in parts])

    def _columns(self) -> Iterator[_Column]:
        """The detections of each category, the most confident first; of equal ones, that of the first image id."""
        order = np.lexsort((np.argsort(np.argsort(self.images))[self.positions], -self.confidences, self.categories))
        bounds = np.searchsorted(self.categories[order], np.arange(self.objects.shape[1] + 1))
        for low, high in itertools.pairwise(bounds.tolist()):
            rows = order[low:high]
            yield _Column(self.positions[rows], self.matched[rows], self.ignored[rows])

    def part(self, start: int, end: int | None = None) -> BoxTally:
        """The tally of some images in a row."""
        end = len(self.images) if end is None else end
        kept = (self.positions >= start) & (self.positions < end)
        return BoxTally(
            self.images[start:end], self.positions[kept] - start, self.categories[kept], self.confidences[kept],
            self.matched[kept], self.ignored[kept], self.objects[start:end],
        )  # fmt: skip

    def joined(self, later: BoxTally) -> BoxTally:
        """The tally of these images and of later ones."""
        moved = replace(later, positions=later.positions + len(self.images)).arrays()
        return replace(self, **{name: np.concatenate([value, moved[name]]) for name, value in self.arrays().items()})


@dataclass(frozen=True)
class _Column:
    """The detections of one category, in the order of their scores."""

    positions: Integers
    matched: Booleans
    ignored: Booleans


def _mean_precision(weights: Floats, objects: Integers, columns: Sequence[_Column]) -> Floats:
    """The average precision of each sample (B,), its images weighted (B, N)."""
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    for category, column in enumerate(columns):
        num_objects = weights @ objects[:, category]
        has_objects = num_objects > 0
        if not has_objects.any():
            continue
        precision = _precision(weights, np.where(has_objects, num_objects, 1.0), column)
        total += np.where(has_objects, precision, 0)
        defined += has_objects
    with np.errstate(invalid="ignore"):
        return total / defined


def _precision(weights: Floats, num_objects: Floats, column: _Column) -> Floats:
    """The average precision (B,) of one category, the mean over the thresholds.

    Recall only grows at a match, where precision is highest: all other detections are left out of the curve.
    """
    by_detection = weights[:, column.positions]
    thresholds = column.matched.shape[1]
    total = np.zeros(len(weights))
    for threshold in range(thresholds):
        counted = ~column.ignored[:, threshold]
        matches = np.flatnonzero(column.matched[:, threshold] & counted)
        if not len(matches):
            continue
        found = by_detection[:, matches].cumsum(1)
        seen = (by_detection * counted).cumsum(1)[:, matches]
        precisions = found / (seen + np.spacing(1))
        precisions = np.maximum.accumulate(precisions[:, ::-1], 1)[:, ::-1]
        reached = np.searchsorted(RECALLS, found / num_objects[:, None], side="right")
        total += (precisions * np.diff(reached, axis=1, prepend=0)).sum(1) / len(RECALLS)
    return total / thresholds


def tally_boxes(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    images: Sequence[int],
    iou_type: IouType,
    thresholds: Sequence[float],
) -> BoxTally:
    """Match the predictions of some images with their objects.

    Args:
        ground_truth: the annotations.
        results: predictions in COCO's format.
        images: ids of the images that were predicted, in this order.
        iou_type: ``bbox`` or ``segm``.
        thresholds: of the intersection over union.
    """
    evaluation = match_coco(ground_truth, results, images, iou_type, thresholds)
    parameters = evaluation.params
    position = {image: index for index, image in enumerate(images)}
    category = {number: index for index, number in enumerate(parameters.catIds)}
    objects = np.zeros((len(images), len(category)), dtype=np.int64)
    empty = np.zeros((0, len(thresholds)), dtype=bool)
    positions, categories, confidences, matched, ignored = [], [], [np.zeros(0)], [empty], [empty]
    for entry in evaluation.evalImgs:
        if entry is None:
            continue
        row, column = position[entry["image_id"]], category[entry["category_id"]]
        objects[row, column] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
        count = len(entry["dtScores"])
        positions += [row] * count
        categories += [column] * count
        confidences.append(np.asarray(entry["dtScores"], dtype=np.float64))
        matched.append(np.asarray(entry["dtMatches"]).T.astype(bool))
        ignored.append(np.asarray(entry["dtIgnore"]).T.astype(bool))
    return BoxTally(
        np.asarray(images, dtype=np.int64), np.asarray(positions, dtype=np.int64),
        np.asarray(categories, dtype=np.int64), np.concatenate(confidences), np.concatenate(matched),
        np.concatenate(ignored), objects,
    )  # fmt: skip
