"""Semantic segmentation: a class for every pixel, scored by the mean intersection over union (mIoU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from nas_transfer.data.drawing import Picture, draw_label_map
from nas_transfer.data.module import Vocabulary
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL
from nas_transfer.errors import ConfigError
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.base import Batch, Task, TaskSettings
from nas_transfer.tasks.deeplab import DeepLab, DeepLabSize, deeplab_cost
from nas_transfer.tasks.deployment import TOP_STRIDE, Deployed, DeployedNetwork, Run
from nas_transfer.tasks.prediction import Prediction


@dataclass(frozen=True)
class SegmentationEvaluation:
    """How an image is evaluated.

    Args:
        mode: ``whole`` images at their own size, or ``slide``: windows whose logits are averaged where they overlap.
        window: (H, W) of a window, pixels.
        stride: (vertical, horizontal) distance of windows, pixels; at most the window.
        keep_predictions: write them in COCO's result format (one RLE a class and image); large for large sets.

    Raises:
        ConfigError: naming the value.
    """

    mode: Literal["whole", "slide"]
    window: tuple[int, int]
    stride: tuple[int, int]
    keep_predictions: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "stride", tuple(self.stride))
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"expected evaluation.mode to be whole or slide, got {self.mode!r}")
        if any(not 0 < step <= side for step, side in zip(self.stride, self.window, strict=True)):
            raise ConfigError(
                f"expected evaluation.stride above 0 and at most the window {list(self.window)}, "
                f"got {list(self.stride)}"
            )


class SegmentationTask(Task):
    """DeepLabV3+ with cross entropy per pixel; in a sandwich the smaller archs imitate the largest one's soft labels.

    Args:
        settings: `num_classes` counts no background: label 0 is a class like the others.
        head: sizes of the head.
        evaluation: whole images or windows.
        input_size: (H, W) of the training crop, at which costs are stated.
        class_names: for the scores of each class; only a task without data, for costs, has none.
    """

    score_key = "miou"

    def __init__(
        self,
        settings: TaskSettings,
        *,
        head: DeepLabSize,
        evaluation: SegmentationEvaluation,
        input_size: Sequence[int],
        class_names: Sequence[str] = (),
    ) -> None:
        table, arch, num_classes = settings.table, settings.arch, settings.num_classes
        channels = table.feature_channels(table.space.arch_or_largest(arch))
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        super().__init__(settings, DeepLab(build_body(table, arch), channels, num_classes, head, layers))
        self.head = head
        self.evaluation = evaluation
        self.crop_size = (int(input_size[0]), int(input_size[1]))
        self.class_names = tuple(class_names)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_LABEL, validate_args=False)
        self._pending: list[dict[str, Any]] = []

    def rebuild(self, settings: TaskSettings) -> SegmentationTask:
        """The same task with new weights for other settings."""
        return SegmentationTask(
            settings, head=self.head, evaluation=self.evaluation, input_size=self.crop_size,
            class_names=self.class_names,
        )  # fmt: skip

    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """Cross entropy at full resolution, that of the auxiliary head, and with a teacher that of its soft labels.

        Raises:
            ConfigError: a batch of one image on one device, whose pooled branch has no variance to normalise by.
        """
        if len(batch["images"]) == 1 and self.trainer_world_size == 1:
            raise ConfigError(
                "expected two images or more a step, got one: the pooled branch's BatchNorm needs them; "
                "set data.batch_size=2, or use several devices with trainer.sync_batchnorm=true"
            )
        images = torch.stack(batch["images"])
        labels = torch.stack(batch["labels"]).long()
        logits, auxiliary = self.network.with_auxiliary(self.normalise(images))  # type: ignore[operator]
        share = 0.0 if teacher is None else self.sampling.distillation
        losses = {}
        if share < 1:
            losses["cross_entropy"] = (1 - share) * pixel_cross_entropy(logits, labels)
            if auxiliary is not None:
                weight = (1 - share) * self.head.auxiliary_weight
                losses["auxiliary"] = weight * pixel_cross_entropy(auxiliary, labels)
        if share > 0:
            losses["distillation"] = share * F.cross_entropy(logits, teacher.softmax(1))
        return losses, logits.detach()

    @property
    def trainer_world_size(self) -> int:
        """Ranks that train together, 1 outside of a training."""
        return self._trainer.world_size if self._trainer is not None else 1

    def deployed(self) -> Deployed:
        """``logits`` (B, C, H, W)."""
        return Deployed(DeployedNetwork(self.normalise, self.network, _enlarge_to), ("logits",))

    def run_by(self, run: Run) -> None:
        """Let another engine run the network, on images that are padded to the sizes that it takes."""

        def padded(images: Tensor) -> tuple[Tensor, ...]:
            height, width = images.shape[2:]
            logits = run(F.pad(images, (0, -width % TOP_STRIDE, 0, -height % TOP_STRIDE)))[0]
            return (logits[:, :, :height, :width],)

        super().run_by(padded)

    def forward_batch(self, batch: Batch) -> Tensor:
        """Logits of all images at once, padded to a common size: for BatchNorm statistics, not for scores."""
        height, width = (max(image.shape[side] for image in batch["images"]) for side in (1, 2))
        padded = [
            F.pad(self.normalise(image[None]), (0, width - image.shape[2], 0, height - image.shape[1]))
            for image in batch["images"]
        ]
        return self.network(torch.cat(padded))

    def predict(self, image: Tensor) -> Tensor:
        """The class of every pixel of one image uint8 (3, H, W): int64 (H, W)."""
        size = (image.shape[1], image.shape[2])
        if self.evaluation.mode == "whole":
            return _enlarge(self.network(self.normalise(image[None])), size)[0].argmax(0)
        return slide(lambda part: self.network(self.normalise(part)), image, self.evaluation)[0].argmax(0)

    def predict_image(self, batch: Batch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """A label image."""
        labels = self.predict(batch["images"][0]).cpu()

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            return draw_label_map(image, labels, vocabulary.names, side)

        return Prediction({}, draw, np.asarray(vocabulary.ids, dtype=np.uint8)[labels.numpy()])

    def update_metrics(self, batch: Batch) -> None:
        """Predict a batch and count its pixels."""
        for image, labels, sample_id in zip(
            batch["images"], batch["labels"], batch["sample_ids"].tolist(), strict=True
        ):
            predicted = self.predict(image)
            self.confusion.update(predicted.flatten(), labels.long().flatten())
            if self.evaluation.keep_predictions:
                self._pending += to_coco_segments(sample_id, predicted)

    def compute_metrics(self) -> dict[str, float]:
        """``miou``, ``pixel_accuracy``, ``mean_accuracy`` and ``iou/<class>``; a class that is nowhere is left out."""
        metrics = scores_of(self.confusion.compute().cpu(), self.class_names)
        self.confusion.reset()
        self.predictions = {"predictions": self._pending} if self.evaluation.keep_predictions else {}
        self._pending = []
        return metrics

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The training crop, for every arch."""
        return self.crop_size

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``: the ASPP and the decoder, without the auxiliary head."""
        channels = self.table.feature_channels(arch)
        return {"head": deeplab_cost(channels, self.crop_size, self.settings.num_classes, self.head)}


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels of labels (B, H, W), the logits enlarged to them; 0 without any."""
    enlarged = _enlarge(logits, (labels.shape[1], labels.shape[2]))
    total = F.cross_entropy(enlarged, labels, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / (labels != IGNORE_LABEL).sum().clamp(min=1)


def slide(network: Any, image: Tensor, evaluation: SegmentationEvaluation) -> Tensor:
    """Mean logits over windows that cover an image (3, H, W): (1, C, H, W).

    The last window of a row or column is moved back to end at the border; an image smaller than it is one window.
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
            logits = _enlarge(network(part), (part.shape[2], part.shape[3]))
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], *size)
            total[:, :, area[0], area[1]] += logits
            counts[area] += 1
    assert total is not None  # there is always one window
    return total / counts


def scores_of(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """The metrics of a confusion matrix (C, C), rows the truth, as fractions; empty without a labelled pixel."""
    counts = confusion.double()
    hits, truth, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + found - hits
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


def to_coco_segments(image_id: int, predicted: Tensor) -> list[dict[str, Any]]:
    """A label map (H, W) in COCO's result format: an RLE for each class in it; category ids are label + 1."""
    labels = predicted.cpu().numpy()
    records = []
    for label in np.unique(labels).tolist():
        encoded = rle.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        segmentation = {"size": list(labels.shape), "counts": encoded["counts"].decode()}
        records.append({"image_id": image_id, "category_id": label + 1, "segmentation": segmentation, "score": 1.0})
    return records


def _enlarge_to(logits: Tensor, images: Tensor) -> Tensor:
    return _enlarge(logits, (images.shape[2], images.shape[3]))


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
