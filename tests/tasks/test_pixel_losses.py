"""Losses of semantic segmentation, against their definitions."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nas_transfer.arch import SUPERNET
from nas_transfer.errors import ConfigError
from nas_transfer.tasks.pixel_losses import CROSS_ENTROPY, PixelLossSettings, lovasz_softmax, pixel_cross_entropy
from nas_transfer.tasks.segmentation import SegmentationTask
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet
from tests.tasks.test_segmentation import HEAD, WHOLE, make_batch

IGNORED = 255


def jaccard_loss(truth: Tensor, wrong: Tensor) -> float:
    """1 - IoU of a class whose pixels are `truth` (N,), where the pixels `wrong` (N,) are predicted wrongly."""
    predicted = truth ^ wrong
    return 1 - float((truth & predicted).sum()) / float((truth | predicted).sum())


def lovasz_extension(truth: Tensor, errors: Tensor) -> float:
    """The Lovász extension as an integral over thresholds: of the Jaccard loss of the pixels whose error is above."""
    thresholds = [0.0, *errors.unique(sorted=True).tolist()]
    steps = ((high - low) * jaccard_loss(truth, errors >= high) for low, high in pairwise(thresholds))
    return sum(steps)


def draw_maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, 4, 3, 5) and labels (2, 12, 20) in which class 3 is absent and a corner is not labelled."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 12, 20), generator=generator)
    labels[0, :8, :8] = IGNORED
    return logits, labels


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_softmax_is_the_mean_lovasz_extension_of_the_jaccard_loss(seed: int) -> None:
    logits, labels = draw_maps(seed)
    cells = labels[:, 2::4, 2::4]
    labelled = cells != IGNORED
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[labelled]
    expected = []
    for label in range(3):
        truth = cells[labelled] == label
        expected.append(lovasz_extension(truth, (truth.double() - probabilities[:, label]).abs()))
    assert lovasz_softmax(logits, labels).item() == pytest.approx(sum(expected) / 3, rel=1e-12)


def test_the_lovasz_loss_of_certain_predictions_is_one_minus_the_iou() -> None:
    _, labels = draw_maps()
    labels[labels == IGNORED] = 0
    predicted = labels[:, 2::4, 2::4].roll(1, 2)
    logits = 1000 * torch.nn.functional.one_hot(predicted, 4).movedim(-1, 1).double()
    truth = labels[:, 2::4, 2::4]
    losses = [jaccard_loss(truth == k, (truth == k) ^ (predicted == k)) for k in range(3)]
    assert lovasz_softmax(logits, labels).item() == pytest.approx(sum(losses) / 3)
    perfect = 1000 * torch.nn.functional.one_hot(truth, 4).movedim(-1, 1).double()
    assert lovasz_softmax(perfect, labels) == 0


def test_the_lovasz_loss_has_the_gradient_of_finite_differences() -> None:
    logits, labels = draw_maps()
    assert torch.autograd.gradcheck(lambda maps: lovasz_softmax(maps, labels), logits.requires_grad_())


def losses_by_pixel(logits: Tensor, labels: Tensor) -> list[tuple[int, float]]:
    """Label and cross entropy of every labelled pixel, written out."""
    enlarged = torch.nn.functional.interpolate(logits, (12, 20), mode="bilinear").log_softmax(1)
    return [
        (label, -enlarged[image, label, row, column].item())
        for image in range(2)
        for row in range(12)
        for column in range(20)
        if (label := int(labels[image, row, column])) != IGNORED
    ]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_classes_weigh_by_a_power_of_their_pixel_counts(balance: float) -> None:
    logits, labels = draw_maps()
    labels[1, :9] = 0  # a frequent class
    pixels = losses_by_pixel(logits, labels)
    counts = Counter(label for label, _ in pixels)
    weights = [counts[label] ** -balance for label, _ in pixels]
    expected = sum(weight * loss for weight, (_, loss) in zip(weights, pixels, strict=True)) / sum(weights)
    assert pixel_cross_entropy(logits, labels, balance).item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    logits, labels = draw_maps()
    nothing = torch.full_like(labels, IGNORED)
    logits.requires_grad_()
    for loss in (
        lovasz_softmax(logits, nothing),
        pixel_cross_entropy(logits, nothing),
        pixel_cross_entropy(logits, nothing, 0.5),
    ):
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


def make_task(loss: PixelLossSettings) -> SegmentationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), SUPERNET, num_classes=4)
    return SegmentationTask(settings, head=HEAD, evaluation=WHOLE, input_size=(64, 96), loss=loss).train()


def test_the_task_adds_the_weighted_loss_which_the_teachers_share_reduces() -> None:
    task = make_task(PixelLossSettings(class_balance=0.5, lovasz_weight=0.5))
    batch = make_batch()
    losses, logits = task.losses(batch, regularise=False, teacher=None)
    labels = torch.stack(batch["labels"]).long()  # type: ignore[arg-type]
    torch.testing.assert_close(losses["lovasz"], 0.5 * lovasz_softmax(logits, labels))
    torch.testing.assert_close(losses["cross_entropy"], pixel_cross_entropy(logits, labels, 0.5))
    imitated, logits = task.losses(batch, regularise=False, teacher=Teacher(logits, 0.75))
    torch.testing.assert_close(imitated["lovasz"], 0.25 * 0.5 * lovasz_softmax(logits, labels))
    assert set(task.extract(task.space.smallest()).losses(batch, regularise=False, teacher=None)[0]) == {
        "cross_entropy", "lovasz", "auxiliary",
    }  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [("class_balance", 1.5), ("lovasz_weight", -1.0)])
def test_a_value_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"task.build.loss.{key}"):
        replace(CROSS_ENTROPY, **{key: value})
