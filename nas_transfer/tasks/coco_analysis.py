"""What a detector is good at, class by class: from predictions in COCO's result format, through pycocotools.

Average precisions and precision-recall curves are COCO's own. Precision, recall and F1 over the threshold of the score
count COCO's matches at IoU 0.5, and so does the confusion matrix, except that its boxes may match across classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nas_transfer.runs import (
    BACKGROUND,
    Analysis,
    ClassScores,
    ConfusionMatrix,
    ImageScore,
    PrecisionRecall,
    ThresholdCurve,
)
from nas_transfer.tasks.coco_metrics import IouType, run_coco
from nas_transfer.tasks.prediction import CocoResult

MATCH_IOU = 0.5
MOST_WORST = 16
"""Number of images that are named."""
DECIMALS = 5
"""Of the points of curves."""
THRESHOLDS = np.linspace(0, 1, 101)

Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The predictions of a category with their matches at IoU or OKS 0.5.

    Attributes:
        scores: (N,).
        right: (N,) whether each is matched to an annotation.
        annotated: number of annotations that can be matched.
    """

    scores: Values
    right: npt.NDArray[np.bool_]
    annotated: int


def analyse_detections(
    ground_truth: COCO,
    results: Mapping[str, Sequence[CocoResult]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    names: Sequence[str],
) -> Analysis:
    """Analyse a detector.

    Args:
        ground_truth: the annotations.
        results: predictions by COCO's name of the kind: ``bbox``, and ``segm`` of a detector with masks, by which the
            curves and the confusion matrix are then measured.
        image_ids: the images that were predicted.
        category_ids, names: COCO ids and names of the classes in the order of the labels.
    """
    kind: IouType = "segm" if "segm" in results else "bbox"
    evaluations = {name: run_coco(ground_truth, rows, image_ids, _iou_type(name)) for name, rows in results.items()}
    scored = scored_predictions(evaluations[kind])
    threshold = threshold_curve([scored[category] for category in category_ids if category in scored])
    least = threshold.recommended if threshold is not None else 0.0
    own = {category: threshold_curve([one]) for category, one in scored.items()}
    classes = []
    for category, name in zip(category_ids, names, strict=True):
        values: dict[str, float] = {}
        for each, evaluation in sorted(evaluations.items(), reverse=True):  # masks first, as in the metrics
            values |= average_precisions(evaluation, category, "_segm" if each == "segm" else "")
        one, curve = scored.get(category), own.get(category)
        if one is not None and one.annotated:
            values |= scores_at(one, least)
        if curve is not None:
            values["best_threshold"] = curve.recommended
        classes.append(ClassScores(name, one.annotated if one is not None else 0, values))
    confusion, worst = confusions(ground_truth, results[kind], image_ids, category_ids, names, least)
    return Analysis(
        images=len(set(image_ids)),
        counted="objects",
        classes_are="class",
        classes=tuple(classes),
        matched=f"{'mask' if kind == 'segm' else 'box'} IoU of at least {MATCH_IOU}",
        precision_recall=precision_recall(evaluations[kind], category_ids),
        threshold=threshold,
        confusion=confusion,
        worst=worst,
        worst_by="F1 of the image at the recommended threshold",
    )


def _iou_type(name: str) -> IouType:
    return "segm" if name == "segm" else "bbox"


def average_precisions(evaluation: COCOeval, category: int, suffix: str = "") -> dict[str, float]:
    """``map``, ``map_50`` and ``map_75`` of a category; none without annotations."""
    index = list(evaluation.params.catIds).index(category) if category in evaluation.params.catIds else None
    if index is None:
        return {}
    precision = evaluation.eval["precision"][:, :, index, 0, -1]  # (T, R): all sizes, most detections
    if (precision < 0).any():
        return {}
    at = {"map_50": 0.5, "map_75": 0.75}
    rows = {name: int(np.abs(np.asarray(evaluation.params.iouThrs) - iou).argmin()) for name, iou in at.items()}
    means = {"map": float(precision.mean()), **{name: float(precision[row].mean()) for name, row in rows.items()}}
    return {f"{name}{suffix}": value for name, value in means.items()}


def precision_recall(evaluation: COCOeval, category_ids: Sequence[int]) -> PrecisionRecall | None:
    """The curves at IoU or OKS 0.5; None without annotations."""
    known = list(evaluation.params.catIds)
    curves: list[Values] = []
    for category in category_ids:
        index = known.index(category) if category in known else None
        curve = np.zeros(0) if index is None else evaluation.eval["precision"][0, :, index, 0, -1]
        curves.append(np.zeros(0) if (curve < 0).any() else curve)
    defined = [curve for curve in curves if len(curve)]
    if not defined:
        return None
    return PrecisionRecall(
        _rounded(np.asarray(evaluation.params.recThrs)),
        tuple(_rounded(curve) for curve in curves),
        _rounded(np.mean(defined, axis=0)),
    )


def scored_predictions(evaluation: COCOeval) -> dict[int, Scored]:
    """The predictions of each category with their matches at the lowest IoU or OKS, which is 0.5."""
    areas, most = evaluation.params.areaRng[0], evaluation.params.maxDets[-1]
    found: dict[int, Scored] = {}
    by_category: dict[int, list[Mapping[str, object]]] = {}
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"] == areas:
            by_category.setdefault(one["category_id"], []).append(one)
    for category, images in by_category.items():
        scores = np.concatenate([np.asarray(one["dtScores"], dtype=np.float64)[:most] for one in images])
        right = np.concatenate([np.asarray(one["dtMatches"])[0, :most] > 0 for one in images])
        ignored = np.concatenate([np.asarray(one["dtIgnore"], dtype=bool)[0, :most] for one in images])
        annotated = sum(int((np.asarray(one["gtIgnore"]) == 0).sum()) for one in images)
        found[category] = Scored(scores[~ignored], right[~ignored].astype(bool), annotated)
    return found


def scores_at(scored: Scored, threshold: float) -> dict[str, float]:
    """Precision, recall and F1 of the predictions that score at least `threshold`; without any, F1 and recall are 0."""
    shown = scored.scores >= threshold
    right, total = int((scored.right & shown).sum()), int(shown.sum())
    values = {"precision": right / total} if total else {}
    return values | {"recall": right / scored.annotated, "f1": 2 * right / (total + scored.annotated)}


def threshold_curve(scored: Sequence[Scored]) -> ThresholdCurve | None:
    """The curve over all categories together; None without annotations or predictions."""
    annotated = sum(one.annotated for one in scored)
    scores = np.concatenate([one.scores for one in scored]) if scored else np.zeros(0)
    if not annotated or not len(scores):
        return None
    together = Scored(scores, np.concatenate([one.right for one in scored]), annotated)
    thresholds = THRESHOLDS[scores.max() >= THRESHOLDS]
    values = [scores_at(together, threshold) for threshold in thresholds]
    f1 = np.asarray([one["f1"] for one in values])
    best = np.flatnonzero(f1 == f1.max())
    return ThresholdCurve(
        _rounded(thresholds),
        _rounded([one["precision"] for one in values]),
        _rounded([one["recall"] for one in values]),
        _rounded(f1),
        round(float(thresholds[best[(len(best) - 1) // 2]]), DECIMALS),  # the middle of the thresholds that are as good
    )


def confusions(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    names: Sequence[str],
    threshold: float,
) -> tuple[ConfusionMatrix, tuple[ImageScore, ...]]:
    """The confusion matrix of the predictions that score at least `threshold`, and the images with most errors.

    Predictions and annotations of an image are paired from the largest IoU down, whatever their classes, as long as it
    is at least 0.5; each has one partner. Those without a partner are in the column and in the row of the background.
    Predictions in the area of a crowd are left out.
    """
    labels = {category: label for label, category in enumerate(category_ids)}
    counts = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
    by_image: dict[int, list[CocoResult]] = {}
    for result in results:
        if result["score"] >= threshold:
            by_image.setdefault(result["image_id"], []).append(result)
    images = []
    for image_id in sorted(set(image_ids)):
        pairs = list(_pairs(ground_truth, by_image.get(image_id, []), image_id, labels))
        for pair in pairs:
            counts[pair] += 1
        score = _image_score(pairs, image_id, len(names))
        images += [] if score is None else [score]
    names = (*names, BACKGROUND)
    return ConfusionMatrix(names, tuple(map(tuple, counts.tolist()))), worst_of(images)


def _pairs(
    ground_truth: COCO, results: Sequence[CocoResult], image_id: int, labels: Mapping[int, int]
) -> Iterator[tuple[int, int]]:
    """(annotated, predicted) labels of an image; the background has the label behind the last."""
    nothing = len(labels)
    all_annotations = ground_truth.loadAnns(ground_truth.getAnnIds(imgIds=[image_id]))
    all_annotations = [one for one in all_annotations if one["category_id"] in labels]
    annotations = [one for one in all_annotations if not one.get("iscrowd", 0)]
    crowds = [one for one in all_annotations if one.get("iscrowd", 0)]
    ious = _ious(ground_truth, results, annotations)
    partners: dict[int, int] = {}
    for row, column in zip(*np.unravel_index(np.argsort(-ious, axis=None, kind="stable"), ious.shape), strict=True):
        if ious[row, column] < MATCH_IOU:
            break
        if row not in partners and column not in partners.values():
            partners[int(row)] = int(column)
    for row, column in partners.items():
        yield labels[annotations[column]["category_id"]], labels[results[row]["category_id"]]
    for column in sorted(set(range(len(annotations))) - set(partners.values())):
        yield labels[annotations[column]["category_id"]], nothing
    in_crowd = _ious(ground_truth, results, crowds)
    for row in sorted(set(range(len(results))) - set(partners)):
        if not (in_crowd[row] >= MATCH_IOU).any():
            yield nothing, labels[results[row]["category_id"]]


def _ious(ground_truth: COCO, results: Sequence[CocoResult], annotations: Sequence[Mapping[str, object]]) -> Values:
    """The IoU of each pair (R, A) of masks, or of boxes where predictions have none; by COCO's rule for crowds."""
    if not results or not annotations:
        return np.zeros((len(results), len(annotations)))
    crowds = [int(bool(one.get("iscrowd", 0))) for one in annotations]
    if "segmentation" in results[0]:
        predicted = [result["segmentation"] for result in results]
        return np.asarray(rle.iou(predicted, [ground_truth.annToRLE(one) for one in annotations], crowds))
    boxes = [np.asarray([one["bbox"] for one in rows], dtype=np.float64) for rows in (results, annotations)]
    return np.asarray(rle.iou(boxes[0], boxes[1], crowds))


def _image_score(pairs: Sequence[tuple[int, int]], image_id: int, nothing: int) -> ImageScore | None:
    """F1 of an image over all classes; None where nothing is wrong."""
    annotated = sum(truth != nothing for truth, _ in pairs)
    predicted = sum(label != nothing for _, label in pairs)
    right = sum(truth == label for truth, label in pairs)
    if right == annotated == predicted:
        return None
    missed = sum(label == nothing for _, label in pairs)
    wrong = sum(truth == nothing for truth, _ in pairs)
    confused = len(pairs) - right - missed - wrong
    texts = [f"{missed} of {annotated} missed"] if missed else []
    texts += [f"{confused} of another class"] if confused else []
    texts += [f"{wrong} where nothing is annotated"] if wrong else []
    return ImageScore(image_id, "", 2 * right / (annotated + predicted), ", ".join(texts))


def worst_of(images: Sequence[ImageScore], *, highest: bool = False) -> tuple[ImageScore, ...]:
    """The images with the lowest values, or with the highest."""
    ordered = sorted(images, key=lambda one: (-one.value if highest else one.value, one.image_id))
    return tuple(ordered[:MOST_WORST])


def with_files(analysis: Analysis, files: Mapping[int, str]) -> Analysis:
    """The same with the files of the worst images, by image id."""
    named = tuple(replace(one, file=files.get(one.image_id, "")) for one in analysis.worst)
    return replace(analysis, worst=named)


def _rounded(values: Values | Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), DECIMALS) for value in values)
