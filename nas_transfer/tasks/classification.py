"""Image classification: the task on which supernets are pretrained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import Self

from nas_transfer.arch import Arch
from nas_transfer.data.drawing import Picture, draw_texts
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import ClassificationBatch
from nas_transfer.ranges import ShareBelowOne
from nas_transfer.runs import Analysis, TaskKind
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.tasks.deployed import Deployed, DeployedNetwork
from nas_transfer.tasks.label_analysis import Answers, analyse_answers
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.tally import HitTally
from nas_transfer.tasks.tally_rows import HitRows
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

RESOLUTION = "resolution"
NUM_PREDICTED = 5


class Classifier(nn.Module):
    """A body and a classification head: normalised images (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, num_classes)."""
        return self.head(self.body(images)[-1])


class ClassificationTask(Task[ClassificationBatch, Tensor]):
    """Cross entropy with label smoothing. In a sandwich, the smaller archs imitate the soft labels of the largest one.

    Each arch sees the images at its own resolution gene: a batch is loaded once at one size and resized for each arch,
    as AttentiveNAS does.

    Args:
        settings: settings of all tasks.
        label_smoothing: label smoothing of the loss against the labels (Szegedy et al. 2016).
        dropout: before the last layer; in a sandwich for the largest arch only (BigNAS, Yu et al. 2020, section 3.3).
    """

    kind = TaskKind("classification", "Image classification", "top1", model="classifier", score_label="top-1")
    uses_classifier_genes = True
    pretrains = True
    input_gene = RESOLUTION
    weightless_genes = (RESOLUTION,)
    taps = (3,)

    def __init__(self, settings: TaskSettings, *, label_smoothing: ShareBelowOne, dropout: ShareBelowOne) -> None:
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
        self.answers = Answers()
        self.hits = HitRows()
        self._top: int | None = None
        self._details: dict[str, np.ndarray] = {}

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(settings, label_smoothing=self.label_smoothing, dropout=self.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images, or those of `prepared`, to logits (B, num_classes) at the resolution of the active arch."""
        inputs = self._inputs(images, self.active_arch) if images.dtype == torch.uint8 else images
        return self.network(inputs)

    def prepared(self, batch: ClassificationBatch, arch: Arch) -> ClassificationBatch:
        """The batch with images normalised and resized to the resolution R of the arch: float32 (B, 3, R, R)."""
        return {**batch, "images": self._inputs(batch["images"].to(self.device), arch)}

    def _inputs(self, images: Tensor, arch: Arch) -> Tensor:
        inputs = self.normalise(images)
        size = self.input_size(arch)
        if inputs.shape[-2:] != size:
            mode = self.table.preprocessing.resolution_interpolation
            inputs = F.interpolate(inputs, size, mode=mode, align_corners=False)
        return inputs.to(memory_format=torch.channels_last)

    def losses(
        self, batch: ClassificationBatch, *, regularise: bool, teacher: Teacher[Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Cross entropy against the labels, mixed with cross entropy against the soft labels of the teacher."""
        self.network.head.dropout.p = self.dropout if regularise else 0.0
        logits = self(batch["images"])
        share = 0.0 if teacher is None else teacher.share
        losses = {}
        if share < 1:
            cross_entropy = F.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
            losses["cross_entropy"] = (1 - share) * cross_entropy
        if teacher is not None and share > 0:
            losses["distillation"] = share * F.cross_entropy(logits, teacher.outputs.softmax(1))
        return losses, logits.detach()

    def deployed(self) -> Deployed:
        """``logits`` (B, C) at the resolution of the arch."""
        size = self.input_size(self.active_arch)
        meanings = {"logits": "(B, classes), of which the softmax is the probabilities"}
        module = DeployedNetwork(self.normalise, self.network)
        return Deployed(module, ("logits",), size, meanings=meanings, first_label=0)

    def forward_batch(self, batch: ClassificationBatch) -> Tensor:
        """Logits (B, C) of an evaluation batch."""
        return self(batch["images"])

    def predict_image(self, batch: ClassificationBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """The most likely classes with their probabilities in ``predictions.csv``."""
        probabilities = self(batch["images"])[0].float().softmax(0).cpu()
        scores, labels = probabilities.topk(min(NUM_PREDICTED, len(probabilities)))
        best = [(vocabulary.names[label], score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]
        row: dict[str, object] = {"image_id": image_id}
        for rank, (name, score) in enumerate(best, start=1):
            row |= {f"class_{rank}": name, f"score_{rank}": score}

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            sure = [f"{name} {score:.2f}" for name, score in best if score >= threshold]
            guess = [f"perhaps {best[0][0]} {best[0][1]:.2f}"]
            return replace(draw_texts(image, sure or guess, side), guessed=not sure)

        return Prediction({"predictions.csv": [row]}, draw)

    def update_metrics(self, batch: ClassificationBatch) -> None:
        """Count the correct answers of a batch."""
        logits = self(batch["images"])
        self.accuracy.update(logits, batch["labels"])
        if self.keeps_details:
            self.answers.update(batch["sample_ids"], batch["labels"], logits)
        if self._top is not None:
            self.hits.update(batch["sample_ids"], batch["labels"], logits, self._top)

    def keep_tally(self, metric: str) -> None:
        """Keep which images are recognised, for ``top1`` or ``top5``."""
        if metric not in self.accuracy:
            super().keep_tally(metric)
        self._top = int(metric.removeprefix("top"))

    def tally(self, start: int = 0) -> HitTally:
        """Which images were recognised since the last `compute_metrics`, without the first."""
        return self.hits.tally().part(start)

    def compute_metrics(self) -> dict[str, float]:
        """Return ``top1`` and, with more than five classes, ``top5``; reset them."""
        metrics = {name: value.item() for name, value in self.accuracy.compute().items()}
        self.accuracy.reset()
        self._details = self.answers.compute() if self.keeps_details else {}
        self.answers.reset()
        self.hits.reset()
        return metrics

    def analyse(self, vocabulary: Vocabulary) -> Analysis | None:
        """Accuracy by class, confusion matrix and worst images of the last evaluation."""
        return analyse_answers(self._details, vocabulary.names) if self._details else None

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The resolution of the arch."""
        return arch[RESOLUTION], arch[RESOLUTION]

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``: the classification head."""
        return {"head": self.table.classifier_cost(arch, self.input_size(arch), self.settings.num_classes)}
