"""Image classification: the task on which supernets are pretrained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from nas_transfer.data.drawing import Picture, draw_texts
from nas_transfer.data.module import Vocabulary
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.tasks.base import Batch, Task, TaskSettings
from nas_transfer.tasks.deployment import Deployed, DeployedNetwork
from nas_transfer.tasks.prediction import Prediction

RESOLUTION = "resolution"
MOST_LIKELY = 5


class Classifier(nn.Module):
    """A body and a classification head: normalised images (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, num_classes)."""
        return self.head(self.body(images)[-1])


class ClassificationTask(Task):
    """Cross entropy with label smoothing; in a sandwich the smaller archs imitate the largest one's soft labels.

    The images are resized to each arch's own resolution gene, as AttentiveNAS does inside its forward, so a batch is
    loaded once at one size and every arch trains at its own.

    Args:
        label_smoothing: of the loss against the labels (Szegedy et al. 2016).
        dropout: before the last layer; in a sandwich only the largest arch's (BigNAS, Yu et al. 2020, section 3.3).
    """

    score_key = "top1"
    input_follows_arch = True

    def __init__(self, settings: TaskSettings, *, label_smoothing: float, dropout: float) -> None:
        table, arch, num_classes = settings.table, settings.arch, settings.num_classes
        super().__init__(settings, Classifier(build_body(table, arch), build_classifier(table, num_classes, arch)))
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.accuracy = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                for k in (1, 5)
                if k == 1 or num_classes > k
            }
        )

    def rebuild(self, settings: TaskSettings) -> ClassificationTask:
        """The same task with new weights for other settings."""
        return ClassificationTask(settings, label_smoothing=self.label_smoothing, dropout=self.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images, or those of `prepared`, to logits (B, num_classes) at the active arch's resolution."""
        inputs = self._inputs(images, self.active_arch) if images.dtype == torch.uint8 else images
        return self.network(inputs)

    def prepared(self, batch: Batch, arch: Arch) -> Batch:
        """The batch with images normalised and resized to the arch's resolution: float32 (B, 3, R, R)."""
        return batch | {"images": self._inputs(batch["images"].to(self.device), arch)}

    def _inputs(self, images: Tensor, arch: Arch) -> Tensor:
        inputs = self.normalise(images)
        size = self.input_size(arch)
        if inputs.shape[-2:] != size:
            inputs = F.interpolate(inputs, size, mode=self.table.preprocessing.interpolation, align_corners=False)
        return inputs.to(memory_format=torch.channels_last)

    @property
    def active_arch(self) -> Arch:
        """The subnet's arch, or the one that is set in the supernet."""
        return self.body.arch if self.arch is SUPERNET else self.arch  # type: ignore[return-value]

    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """Cross entropy against labels, mixed with that against the teacher's softmax (in-place distillation)."""
        largest = teacher is None
        self.network.head.dropout.p = self.dropout if largest else 0.0  # type: ignore[union-attr]
        logits = self(batch["images"])
        share = 0.0 if largest else self.sampling.distillation
        losses = {}
        if share < 1:
            cross_entropy = F.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
            losses["cross_entropy"] = (1 - share) * cross_entropy
        if share > 0:
            losses["distillation"] = share * F.cross_entropy(logits, teacher.softmax(1))
        return losses, logits.detach()

    def deployed(self) -> Deployed:
        """``logits`` (B, C) at the arch's resolution."""
        size = self.input_size(self.active_arch)
        return Deployed(DeployedNetwork(self.normalise, self.network), ("logits",), size)

    def forward_batch(self, batch: Batch) -> Tensor:
        """Logits of an evaluation batch."""
        return self(batch["images"])

    def predict_image(self, batch: Batch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """The most likely classes with their probabilities in ``predictions.csv``."""
        shares = self(batch["images"])[0].float().softmax(0).cpu()
        scores, labels = shares.topk(min(MOST_LIKELY, len(shares)))
        best = [(vocabulary.names[label], score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]
        row: dict[str, Any] = {"image_id": image_id}
        for place, (name, score) in enumerate(best, start=1):
            row |= {f"class_{place}": name, f"score_{place}": score}

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            sure = [f"{name} {score:.2f}" for name, score in best if score >= threshold]
            return draw_texts(image, sure or ["no class at the threshold"], side)

        return Prediction({"predictions.csv": [row]}, draw)

    def update_metrics(self, batch: Batch) -> None:
        """Count a batch's correct answers."""
        self.accuracy.update(self(batch["images"]), batch["labels"])

    def compute_metrics(self) -> dict[str, float]:
        """``top1`` and, with more than five classes, ``top5``."""
        metrics = {name: value.item() for name, value in self.accuracy.compute().items()}
        self.accuracy.reset()
        return metrics

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The arch's own resolution."""
        return arch[RESOLUTION], arch[RESOLUTION]

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """The classification head."""
        return {"head": self.table.classifier_cost(arch, self.input_size(arch), self.settings.num_classes)}
