"""What a classifier or a segmentation network is good at, class by class: from its confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from nas_transfer.runs import Analysis, ClassScores, ConfusionMatrix, ImageScore
from nas_transfer.tasks.coco_analysis import worst_of
from nas_transfer.tasks.metrics import RowMetric, first_of_each


class Answers(RowMetric):
    """The answers of a classifier, one row for each image."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("sample_ids", "labels", "answers"):
            self.add_rows(name, dtype=torch.int64)
        for name in ("losses", "probabilities"):
            self.add_rows(name, dtype=torch.float32)

    def update(self, sample_ids: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add the logits (B, C) of images with these labels (B,)."""
        probabilities = logits.float().log_softmax(1)
        best = probabilities.max(1)
        self.append("sample_ids", sample_ids)
        self.append("labels", labels)
        self.append("answers", best.indices)
        self.append("losses", -probabilities.gather(1, labels[:, None])[:, 0])
        self.append("probabilities", best.values.exp())

    def compute(self) -> dict[str, np.ndarray]:
        """All rows; an image that several ranks predicted counts once."""
        rows = list(first_of_each(self.rows("sample_ids").tolist()).values())
        names = ("sample_ids", "labels", "answers", "losses", "probabilities")
        return {name: self.rows(name)[rows].numpy() for name in names}


class MapScores(RowMetric):
    """The scores of a segmentation network, one row for each image with labelled pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.add_rows("sample_ids", dtype=torch.int64)
        for name in ("ious", "accuracies"):
            self.add_rows(name, dtype=torch.float64)

    def update(self, sample_id: int, iou: float, accuracy: float) -> None:
        """Add the mean IoU and the pixel accuracy of an image."""
        self.append("sample_ids", torch.tensor([sample_id]))
        self.append("ious", torch.tensor([iou], dtype=torch.float64))
        self.append("accuracies", torch.tensor([accuracy], dtype=torch.float64))

    def compute(self) -> dict[int, tuple[float, float]]:
        """Mean IoU and pixel accuracy by image; an image that several ranks predicted counts once."""
        ious, accuracies = self.rows("ious").tolist(), self.rows("accuracies").tolist()
        first = first_of_each(self.rows("sample_ids").tolist())
        return {sample_id: (ious[index], accuracies[index]) for sample_id, index in first.items()}


def analyse_answers(answers: Mapping[str, np.ndarray], names: Sequence[str]) -> Analysis:
    """Analyse a classifier.

    Args:
        answers: the rows of `Answers`.
        names: of the classes.
    """
    predicted, labels = (torch.from_numpy(answers[name]) for name in ("answers", "labels"))
    counts = multiclass_confusion_matrix(predicted, labels, len(names))
    images = []
    rows = zip(*(answers[name].tolist() for name in ("sample_ids", "labels", "answers", "losses", "probabilities")))
    for sample_id, label, answer, loss, probability in rows:
        wrong = f"{names[label]} taken for {names[answer]}" if label != answer else f"{names[label]}, found"
        images.append(ImageScore(sample_id, "", loss, f"{wrong} ({100 * probability:.0f} %)"))
    return Analysis(
        images=len(images),
        counted="images",
        classes_are="class",
        classes=class_scores(counts, names, {"accuracy": "recall"}),
        confusion=confusion_matrix(counts, names),
        worst=worst_of(images, highest=True),
        worst_by="loss (minus the log of the probability of the annotated class)",
    )


def analyse_maps(counts: Tensor, images: Mapping[int, tuple[float, float]], names: Sequence[str]) -> Analysis:
    """Analyse a segmentation network.

    Args:
        counts: (C, C) pixels, annotated classes in rows.
        images: mean IoU and pixel accuracy of each image by its id.
        names: of the classes.
    """
    scores = [
        ImageScore(image_id, "", iou, f"mIoU {100 * iou:.1f} %, {100 * (1 - accuracy):.1f} % of the pixels wrong")
        for image_id, (iou, accuracy) in images.items()
    ]
    return Analysis(
        images=len(images),
        counted="pixels",
        classes_are="class",
        classes=class_scores(counts, names, {"iou": "iou", "accuracy": "recall"}),
        confusion=confusion_matrix(counts, names),
        worst=worst_of(scores),
        worst_by="mIoU of the image",
    )


def class_scores(counts: Tensor, names: Sequence[str], first: Mapping[str, str]) -> tuple[ClassScores, ...]:
    """Scores of each class from a confusion matrix (C, C) with annotated classes in rows.

    Args:
        first: the first scores, and which of ``iou`` and ``recall`` each is; ``precision`` and ``f1`` follow.
    """
    rows = []
    matrix = counts.double()
    hits, truth, predicted = (x.tolist() for x in (matrix.diagonal(), matrix.sum(1), matrix.sum(0)))
    for name, hit, annotated, answered in zip(names, hits, truth, predicted, strict=True):
        union = annotated + answered - hit
        values = {"iou": hit / union} if union else {}
        values |= {"recall": hit / annotated} if annotated else {}
        scores = {key: values[source] for key, source in first.items() if source in values}
        scores |= {"precision": hit / answered} if answered else {}
        scores |= {"f1": 2 * hit / (annotated + answered)} if annotated + answered else {}
        rows.append(ClassScores(name, int(annotated), scores))
    return tuple(rows)


def confusion_matrix(counts: Tensor, names: Sequence[str]) -> ConfusionMatrix:
    """The record of a confusion matrix."""
    return ConfusionMatrix(tuple(names), tuple(map(tuple, counts.long().tolist())))
