"""Semantic segmentation: a class for every pixel, scored by the mean intersection over union (mIoU)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix
from typing_extensions import Self

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.data.drawing import Picture, draw_label_map
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import SegmentationBatch
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL, PADDING
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive
from nas_transfer.runs import Analysis, TaskKind
from nas_transfer.supernet.cost import Cost, Size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.deployed import TOP_STRIDE, Deployed, DeployedNetwork, padded
from nas_transfer.tasks.genes import Choices, task_genes, values_of
from nas_transfer.tasks.label_analysis import MapScores, analyse_maps
from nas_transfer.tasks.metrics import SegmentResults
from nas_transfer.tasks.pixel_losses import (
    CROSS_ENTROPY,
    PixelLossSettings,
    enlarge,
    lovasz_softmax,
    pixel_cross_entropy,
)
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.segmentation_head import SegmentationHead
from nas_transfer.tasks.several_segmentation import SeveralSegmentationHeads
from nas_transfer.tasks.tally import PixelTally
from nas_transfer.tasks.tally_rows import PixelRows
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

SCALE = "scale_percent"
"""The gene of the input size."""
LARGEST_STRIDE = 4 * TOP_STRIDE
"""Images are scored at sides in multiples of the deployed stride, unless it is larger than this, in pixels."""


@dataclass(frozen=True)
class SegmentationEvaluation:
    """How an image is evaluated.

    Args:
        mode: ``whole`` images at their own size, or ``slide``: windows whose logits are averaged where they overlap.
        window: (H, W) of a window, pixels.
        stride: (vertical, horizontal) distance of windows, pixels; at most the window.
        keep_predictions: write the predictions in COCO's result format (one mask a class and image); large for large
            datasets.

    Raises:
        ConfigError: a value out of range, by name.
    """

    mode: Literal["whole", "slide"]
    window: tuple[Positive, Positive]
    stride: tuple[Positive, Positive]
    keep_predictions: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "stride", tuple(self.stride))
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"task.build.evaluation.mode must be whole or slide, got {self.mode!r}")
        if any(not 0 < step <= side for step, side in zip(self.stride, self.window, strict=True)):
            raise ConfigError(
                f"task.build.evaluation.stride must be above 0 and at most the window {list(self.window)}, "
                f"got {list(self.stride)}"
            )


class SegmentationTask(Task[SegmentationBatch, Tensor]):
    """A head with a loss per pixel. In a sandwich, the smaller archs imitate the largest one's soft labels.

    Args:
        settings: `num_classes` counts no background: label 0 is a class like the others.
        head: sizes of the head, the largest ones if there are genes; or several heads, among which an arch chooses.
        evaluation: whole images or windows.
        input_size: (H, W) of the training crop. Costs are stated at its scaled size.
        class_names: for the scores of each class; empty for a task without data, which only states costs.
        genes: smaller choices of ``scale_percent`` (the size of the image in the network, in percent of its own) and of
            the genes of the head; of ``scale_percent`` alone for several heads.
        loss: how much rare classes count in the loss of the labels.

    Raises:
        ConfigError: an unknown gene, or choices that are no integers above 0.
    """

    kind = TaskKind(
        "segmentation", "Semantic segmentation", "miou", model="deeplabv3plus", score_label="mIoU",
        size_label="Crop Size",
    )  # fmt: skip
    input_gene = SCALE
    weightless_genes = (SCALE,)

    def __init__(
        self,
        settings: TaskSettings,
        *,
        head: SegmentationHead | SeveralSegmentationHeads,
        evaluation: SegmentationEvaluation,
        input_size: Sequence[Positive],
        class_names: Sequence[str] = (),
        genes: Choices | None = None,
        loss: PixelLossSettings = CROSS_ENTROPY,
    ) -> None:
        table, arch, num_classes = settings.table, settings.arch, settings.num_classes
        self.head, self.choices = head, genes
        if isinstance(head, SeveralSegmentationHeads):
            self.largest = {SCALE: 100}
            own_genes = head.task_genes(self.largest, genes)
        else:
            self.largest = {SCALE: 100, **head.genes}
            own_genes = task_genes(self.largest, genes)
        channels = table.feature_channels(table.space.arch_or_largest(arch))
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        values = values_of(self.largest, None if arch is SUPERNET else arch)
        own = head if arch is SUPERNET else self.sizes(arch)
        network = own.build(build_body(table, arch), channels, num_classes, layers)
        super().__init__(settings, network, own_genes)
        self.kind = replace(type(self).kind.with_model(head.model), model=own.model)
        self.untrained_genes, self.taps = (SCALE, *head.untrained_genes), head.taps
        self.normalise = Scaled(self.normalise, values[SCALE])
        self.loss = loss
        self.evaluation = evaluation
        self.crop_size = (int(input_size[0]), int(input_size[1]))
        self.class_names = tuple(class_names)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_LABEL, validate_args=False)
        self.segments = SegmentResults()
        self.map_scores = MapScores()
        self.pixels = PixelRows(num_classes)
        self._tallied: str | None = None
        self._details: tuple[Tensor, dict[int, tuple[float, float]]] | None = None

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(
            settings, head=self.head, evaluation=self.evaluation, input_size=self.crop_size,
            class_names=self.class_names, genes=self.choices, loss=self.loss,
        )  # fmt: skip

    def set_genes(self, arch: Arch) -> None:
        """Set the scale of the images and the sizes of the head."""
        self.normalise.percent = values_of(self.largest, arch)[SCALE]
        if isinstance(self.head, SeveralSegmentationHeads):
            self.network.several.active = self.head.candidates.name(arch)
        self.sizes(arch).follow(self.network_of(arch))

    def sizes(self, arch: Arch) -> SegmentationHead:
        """The sizes of the head of an arch."""
        if isinstance(self.head, SeveralSegmentationHeads):
            return self.head.chosen(arch)
        return self.head.with_genes(values_of(self.largest, arch))

    def network_of(self, arch: Arch) -> nn.Module:
        """The network of the head of an arch."""
        if isinstance(self.head, SeveralSegmentationHeads) and self.is_supernet:
            return self.network.several.networks[self.head.candidates.name(arch)]
        return self.network

    def head_name(self, arch: Arch) -> str | None:
        """The name of the head of an arch, if there are several."""
        return self.head.candidates.name(arch) if isinstance(self.head, SeveralSegmentationHeads) else None

    def losses(
        self, batch: SegmentationBatch, *, regularise: bool, teacher: Teacher[Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of the labels, also of the auxiliary head, and cross entropy against the teacher's soft labels.

        Raises:
            ConfigError: fewer images on one device than the head can normalise by.
        """
        head = self.sizes(self.active_arch)
        self.require_images(len(batch["images"]), head.smallest_batch)
        images = torch.stack(batch["images"])
        labels = torch.stack(batch["labels"]).long()
        self.network.set_dropout(head.dropout if regularise else 0.0)
        logits, auxiliary = self.network.with_auxiliary(self.normalise(images))
        share = 0.0 if teacher is None else teacher.share
        losses = {}
        if share < 1:
            losses["cross_entropy"] = (1 - share) * pixel_cross_entropy(logits, labels, self.loss.class_balance)
            if self.loss.lovasz_weight > 0:
                losses["lovasz"] = (1 - share) * self.loss.lovasz_weight * lovasz_softmax(logits, labels)
            if auxiliary is not None:
                weight = (1 - share) * head.auxiliary_weight
                losses["auxiliary"] = weight * pixel_cross_entropy(auxiliary, labels, self.loss.class_balance)
        if teacher is not None and share > 0:
            soft = resized(teacher.outputs, (logits.shape[2], logits.shape[3])).softmax(1)
            losses["distillation"] = share * F.cross_entropy(logits, soft)
        return losses, logits.detach()

    def deployed(self) -> Deployed:
        """``logits`` (B, C, H, W) of images whose scaled sides are multiples of 32."""
        module = DeployedNetwork(self.normalise, self.network, _enlarge_to)
        meanings = {
            "logits": "(B, classes, H, W) at the size of the input; the class of a pixel is that of the largest"
        }
        return Deployed(
            module, ("logits",), stride=self._stride, usual_size=self.crop_size, padding=PADDING, meanings=meanings,
            first_label=0,
        )  # fmt: skip

    @property
    def _stride(self) -> int:
        """The sides of which the scaled ones are multiples of 32 are multiples of this."""
        return TOP_STRIDE * 100 // math.gcd(100, values_of(self.largest, self.active_arch)[SCALE])

    def forward_batch(self, batch: SegmentationBatch) -> Tensor:
        """Logits of all images at once, padded to a common size: for BatchNorm statistics, not for scores."""
        images = [self.normalise(image[None]) for image in batch["images"]]
        height, width = (max(image.shape[side] for image in images) for side in (2, 3))
        padded = [F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in images]
        return self.network(torch.cat(padded))

    def predict(self, image: Tensor) -> Tensor:
        """The class of every pixel of one image uint8 (3, H, W): int64 (H, W)."""
        if self.evaluation.mode == "whole":
            return self._logits(image[None])[0].argmax(0)
        return slide(self._logits, image, self.evaluation)[0].argmax(0)

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of raw images (B, 3, H, W), which are padded to the sides of the deployed network.

        At other sides, the maps of different strides would not cover the same area, and labels would be displaced.
        """
        height, width = images.shape[2:]
        if self._stride <= LARGEST_STRIDE:
            images = padded(images, self._stride, PADDING)
        return _enlarge_to(self.network(self.normalise(images)), images)[:, :, :height, :width]

    def predict_image(self, batch: SegmentationBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """The class of each pixel."""
        labels = self.predict(batch["images"][0]).cpu()

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            return draw_label_map(image, labels, vocabulary.names, side)

        return Prediction({}, draw, np.asarray(vocabulary.ids, dtype=np.uint8)[labels.numpy()])

    def update_metrics(self, batch: SegmentationBatch) -> None:
        """Predict a batch and count its pixels by true and predicted class."""
        for image, labels, sample_id in zip(
            batch["images"], batch["labels"], batch["sample_ids"].tolist(), strict=True
        ):
            predicted = self.predict(image)
            self.confusion.update(predicted.flatten(), labels.long().flatten())
            if self.evaluation.keep_predictions:
                self.segments.update(sample_id, predicted)
            if self.keeps_details or self._tallied is not None:
                self._keep_image(sample_id, predicted, labels)

    def _keep_image(self, sample_id: int, predicted: Tensor, labels: Tensor) -> None:
        counts = multiclass_confusion_matrix(
            predicted.flatten(), labels.long().flatten(), self.settings.num_classes, ignore_index=IGNORE_LABEL,
            validate_args=False,
        ).cpu()  # fmt: skip
        if self._tallied is not None:
            self.pixels.update(sample_id, counts)
        scores = scores_of(counts, ()) if self.keeps_details else {}
        if scores:
            self.map_scores.update(sample_id, scores["miou"], scores["pixel_accuracy"])

    def keep_tally(self, metric: str) -> None:
        """Keep the pixels of each image by class, for ``miou``, an accuracy or the IoU of a class."""
        classes = {f"iou/{name}": str(index) for index, name in enumerate(self.class_names)}
        names = {name: name for name in ("miou", "pixel_accuracy", "mean_accuracy")} | classes
        if metric not in names:
            super().keep_tally(metric)
        self._tallied = names[metric]

    def tally(self, start: int = 0) -> PixelTally:
        """The pixels of each image since the last `compute_metrics`, without the first."""
        return self.pixels.tally(self._tallied or self.score_key).part(start)

    def compute_metrics(self) -> dict[str, float]:
        """Return ``miou``, ``pixel_accuracy``, ``mean_accuracy`` and ``iou/<class>``, and reset them.

        A class that is neither annotated nor predicted anywhere is left out.
        """
        counts = self.confusion.compute().cpu()
        metrics = scores_of(counts, self.class_names)
        self.confusion.reset()
        self._details = (counts, self.map_scores.compute()) if self.keeps_details else None
        self.map_scores.reset()
        self.pixels.reset()
        self.predictions = {"predictions": self.segments.compute()} if self.evaluation.keep_predictions else {}
        self.segments.reset()
        return metrics

    def analyse(self, vocabulary: Vocabulary) -> Analysis | None:
        """IoU by class, confusion matrix and worst images of the last evaluation."""
        return None if self._details is None else analyse_maps(*self._details, vocabulary.names)

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The scaled size of the training crop."""
        return scaled_size(self.crop_size, values_of(self.largest, arch)[SCALE])

    def resize_factor(self, height: int, width: int) -> float:
        """The scale of the images of the active arch."""
        return values_of(self.largest, self.active_arch)[SCALE] / 100

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``, without an auxiliary head, which only trains."""
        values = values_of(self.largest, arch)
        channels = self.table.feature_channels(self.body_arch(arch))
        size = scaled_size(self.crop_size, values[SCALE])
        return {"head": self.sizes(arch).cost(channels, size, self.settings.num_classes)}


class Scaled(nn.Module):
    """Normalises images and scales them to the size at which they enter the network.

    Args:
        normalise: maps uint8 images (B, 3, H, W) to floats of the same size.
        percent: the scaled size in percent of the image's own.
    """

    def __init__(self, normalise: nn.Module, percent: int) -> None:
        super().__init__()
        self.normalise = normalise
        self.percent = percent

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images uint8 (B, 3, H, W) to float (B, 3, h, w)."""
        return resized(self.normalise(images), scaled_size((images.shape[2], images.shape[3]), self.percent))


def scaled_size(size: Size, percent: int) -> Size:
    """A size (H, W) scaled and rounded, at least one pixel each."""
    return max(1, (size[0] * percent + 50) // 100), max(1, (size[1] * percent + 50) // 100)


def resized(maps: Tensor, size: Size) -> Tensor:
    """Maps (B, C, H, W) at another size, with as much smoothing as shrinking needs; themselves at their own size."""
    if maps.shape[2:] == size:
        return maps
    whole = maps.to(torch.promote_types(maps.dtype, torch.float32))  # a CPU smooths no shorter format
    return F.interpolate(whole, size, mode="bilinear", align_corners=False, antialias=True).to(maps.dtype)


def slide(network: Callable[[Tensor], Tensor], image: Tensor, evaluation: SegmentationEvaluation) -> Tensor:
    """Mean logits over windows that cover an image (3, H, W): (1, C, H, W). `network` gives those of one window.

    The last window of a row or column is moved back so that it ends at the border. A smaller image is one window.
    """
    size = (image.shape[1], image.shape[2])
    starts = []
    for side, window, stride in zip(size, evaluation.window, evaluation.stride, strict=True):
        last = max(0, side - window)
        starts.append([*range(0, last, stride), last])
    total: Tensor | None = None
    counts = torch.zeros(size, device=image.device)
    for top in starts[0]:
        for left in starts[1]:
            area = (slice(top, top + evaluation.window[0]), slice(left, left + evaluation.window[1]))
            part = image[None, :, area[0], area[1]]
            logits = network(part)
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], *size)
            total[:, :, area[0], area[1]] += logits
            counts[area] += 1
    assert total is not None  # there is always one window
    return total / counts


def scores_of(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """The metrics of a confusion matrix (C, C) with true classes in rows, as fractions; none if all is unlabelled."""
    counts = confusion.double()
    hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + predicted - hits
    if union.sum() == 0:
        return {}
    seen, labelled = union > 0, truth > 0
    names = class_names or [str(label) for label in range(len(hits))]
    ious = {f"iou/{name}": (hits[k] / union[k]).item() for k, name in enumerate(names) if seen[k]}
    return {
        "miou": (hits[seen] / union[seen]).mean().item(),
        "pixel_accuracy": (hits.sum() / truth.sum()).item(),
        "mean_accuracy": (hits[labelled] / truth[labelled]).mean().item(),
    } | ious


def _enlarge_to(logits: Tensor, images: Tensor) -> Tensor:
    return enlarge(logits, (images.shape[2], images.shape[3]))
