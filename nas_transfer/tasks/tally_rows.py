"""Metrics that collect what a tally needs of each image."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_transfer.tasks.metrics import RowMetric
from nas_transfer.tasks.tally import HitTally, PixelTally


class HitRows(RowMetric):
    """Whether a classifier recognised each image."""

    def __init__(self) -> None:
        super().__init__()
        self.add_rows("sample_ids", dtype=torch.int64)
        self.add_rows("hits", dtype=torch.bool)

    def update(self, sample_ids: Tensor, labels: Tensor, logits: Tensor, top: int) -> None:
        """Add images whose label (B,) is among the `top` largest logits (B, C), or is not."""
        answers = logits.argmax(1, keepdim=True) if top == 1 else logits.topk(top).indices
        self.append("sample_ids", sample_ids)
        self.append("hits", (answers == labels[:, None]).any(1))

    def tally(self) -> HitTally:
        """The tally of all images."""
        return HitTally(self.rows("sample_ids").numpy(), self.rows("hits").numpy())

    def compute(self) -> float:
        """The share of recognised images."""
        return self.tally().score


class PixelRows(RowMetric):
    """The pixels of each image by class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_rows("sample_ids", dtype=torch.int64)
        self.add_rows("counts", 3, num_classes, dtype=torch.int64)

    def update(self, sample_id: int, confusion: Tensor) -> None:
        """Add the confusion matrix (C, C) of an image, annotated classes in rows."""
        rows = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
        self.append("sample_ids", torch.tensor([sample_id]))
        self.append("counts", rows.long()[None])

    def tally(self, metric: str) -> PixelTally:
        """The tally of all images."""
        return PixelTally(self.rows("sample_ids").numpy(), self.rows("counts").numpy(), metric)

    def compute(self) -> float:
        """The mean IoU."""
        return self.tally("miou").score
