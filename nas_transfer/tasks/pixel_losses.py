"""Losses of semantic segmentation, from logits at the stride of a head and labels of every pixel."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_transfer.data.segmentation_transforms import IGNORE_LABEL
from nas_transfer.errors import ConfigError


@dataclass(frozen=True)
class PixelLossSettings:
    """How much classes that cover few pixels count in the loss.

    Args:
        class_balance: exponent, in 0-1, of the inverse pixel counts that weigh the classes in the cross entropy: 0
            weighs all pixels alike, 1 all classes of a batch.
        lovasz_weight: weight of the Lovász-softmax loss beside the cross entropy; 0 for cross entropy alone.

    Raises:
        ConfigError: a value out of range, by name.
    """

    class_balance: float
    lovasz_weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.class_balance <= 1:
            raise ConfigError(f"task.build.loss.class_balance must be in 0-1, got {self.class_balance}")
        if not self.lovasz_weight >= 0:
            raise ConfigError(f"task.build.loss.lovasz_weight must be at least 0, got {self.lovasz_weight}")


CROSS_ENTROPY = PixelLossSettings(class_balance=0.0, lovasz_weight=0.0)


def pixel_cross_entropy(logits: Tensor, labels: Tensor, class_balance: float = 0.0) -> Tensor:
    """Mean cross entropy over the labelled pixels of labels (B, H, W); 0 if no pixel is labelled.

    The logits (B, C, h, w) are enlarged to the size of the labels. A `class_balance` above 0 weighs the mean by
    `class_weights`.
    """
    enlarged = enlarge(logits, (labels.shape[1], labels.shape[2]))
    weights = None
    if class_balance > 0:
        weights = class_weights(labels, logits.shape[1], class_balance)
        weights = weights.to(torch.promote_types(logits.dtype, weights.dtype))
    total = F.cross_entropy(enlarged, labels, weights, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / (labels != IGNORE_LABEL).sum().clamp(min=1)


def class_weights(labels: Tensor, num_classes: int, exponent: float) -> Tensor:
    """Weights of the classes in a batch by their pixel counts n: n^-exponent, scaled to a mean of 1 over the pixels.

    An exponent of 1 weighs by inverse frequency, as the median frequency balancing of Eigen and Fergus (2015,
    arXiv:1411.4734) does with the counts of a dataset. An exponent of 0.5 gives rare classes part of that weight.

    Args:
        labels: int64 (B, H, W), `IGNORE_LABEL` where a pixel is not labelled.
        num_classes: C.
        exponent: in 0-1.

    Returns:
        (C,): 0 for a class without pixels.
    """
    counts = torch.bincount(labels[labels != IGNORE_LABEL], minlength=num_classes).float()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -exponent, 0)
    return weights * counts.sum() / (weights * counts).sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """The Lovász-softmax loss (Berman et al. 2018, arXiv:1705.08790) of a batch; 0 if no pixel is labelled.

    This is the mean over the classes that are labelled in the batch of a convex surrogate of 1 - IoU (equation 11), so
    a class that covers few pixels weighs as much as one that covers many. It is computed at the size of the logits,
    from the label at the centre of each of their cells: at stride 4, there is a sixteenth of the pixels to sort.

    Args:
        logits: (B, C, h, w).
        labels: int64 (B, H, W), `IGNORE_LABEL` where a pixel is not labelled.
    """
    cells = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
    labelled = cells != IGNORE_LABEL
    truth = F.one_hot(cells[labelled], logits.shape[1]).T  # (C, N)
    probabilities = logits.movedim(1, -1)[labelled].softmax(1).T
    present = truth.sum(1) > 0
    if not present.any():
        return logits.sum() * 0
    truth, probabilities = truth[present].to(probabilities.dtype), probabilities[present]
    errors, order = (truth - probabilities).abs().sort(dim=1, descending=True)
    return (errors * _jaccard_gradient(truth.gather(1, order))).sum(1).mean()


def _jaccard_gradient(truth: Tensor) -> Tensor:
    """By how much 1 - IoU grows with each further pixel that is wrong, in the order of the errors (algorithm 1).

    Args:
        truth: (C, N), 1 where a pixel belongs to the class.
    """
    total = truth.sum(1, keepdim=True)
    intersection = total - truth.cumsum(1)
    union = total + (1 - truth).cumsum(1)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)


def enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) at another size, bilinear."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
