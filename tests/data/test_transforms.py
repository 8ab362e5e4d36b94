import numpy as np
import pytest
import torch

from nas_transfer.data.augmentation import ClassificationAugmentation, DetectionAugmentation
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.transforms import (
    DetectionTrain,
    Target,
    classification_eval,
    classification_train,
)
from nas_transfer.errors import ConfigError


def image_of(height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def target_with_masks(height: int, width: int) -> Target:
    """Three L-shaped masks, whose boxes are their extents."""
    masks = torch.zeros(3, height, width, dtype=torch.uint8)
    masks[0, 5:20, 8:12] = masks[0, 16:20, 8:30] = 1
    masks[1, 0:9, 20:33] = 1
    masks[2, 30:40, 2:7] = masks[2, 38:40, 2:17] = 1
    return {
        "boxes": extents(masks),
        "labels": torch.tensor([1, 2, 3]),
        "iscrowd": torch.zeros(3, dtype=torch.uint8),
        "area": masks.sum((1, 2)).float(),
        "masks": masks,
    }


def extents(masks: torch.Tensor) -> torch.Tensor:
    """Reference: boxes by brute force, xyxy with the far edge of the last pixel."""
    boxes = []
    for mask in masks:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32)


def test_a_seeded_call_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    transform = classification_train(16, ClassificationAugmentation(min_crop_scale=0.25, color_jitter=0.4), "bicubic")
    image = image_of(30, 40)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = seeded_call(transform, 0, 1, 2, image)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(seeded_call(transform, 0, 1, 2, image), first)
    for other in [(1, 1, 2), (0, 2, 2), (0, 1, 3)]:
        assert not torch.equal(seeded_call(transform, *other, image), first)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (10, 10)])
def test_classification_transforms_give_square_uint8_images(height: int, width: int) -> None:
    train = classification_train(16, ClassificationAugmentation(0.25, 0.0), "bicubic")
    for transform in (train, classification_eval(16, 0.875, "bicubic")):
        out = transform(image_of(height, width))
        assert out.shape == (3, 16, 16)
        assert out.dtype == torch.uint8


def test_evaluation_keeps_the_centre_of_an_image_of_the_right_size() -> None:
    image = image_of(32, 40)  # short side 32 = 28 / 0.875: nothing is resized
    assert torch.equal(classification_eval(28, 0.875, "bicubic")(image), image[:, 2:30, 6:34])


def test_a_flip_mirrors_image_boxes_and_masks_together() -> None:
    image, target = image_of(40, 33), target_with_masks(40, 33)
    flipped, out = DetectionTrain(DetectionAugmentation(flip=1.0, photometric=0.0, scale_jitter=None))(image, target)
    assert torch.equal(flipped, image.flip(-1))
    assert torch.equal(out["masks"], target["masks"].flip(-1))
    assert torch.equal(out["boxes"], extents(out["masks"]))
    assert torch.equal(out["labels"], target["labels"])
    assert all(type(tensor) is torch.Tensor for tensor in [flipped, *out.values()])


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.7])
def test_zoom_keeps_the_size_and_the_alignment_of_boxes_and_masks(zoom: float) -> None:
    image, target = image_of(40, 33), target_with_masks(40, 33)
    transform = DetectionTrain(DetectionAugmentation(flip=0.5, photometric=0.2, scale_jitter=(zoom, zoom)))
    for sample in range(20):
        out_image, out = seeded_call(transform, 0, 0, sample, image, target)
        assert out_image.shape == image.shape
        assert out["masks"].shape[1:] == (40, 33)
        assert len(out["boxes"]) == len(out["labels"]) == len(out["masks"]) == len(out["area"]) == len(out["iscrowd"])
        assert (out["boxes"] >= 0).all()
        assert (out["boxes"] <= torch.tensor([33, 40, 33, 40])).all()
        whole = [k for k in range(len(out["labels"])) if out["masks"][k].any() and zoom < 1]
        for k in whole:  # zooming out cuts nothing off: the box is the mask's extent up to resampling
            assert (out["boxes"][k] - extents(out["masks"][k : k + 1])[0]).abs().max() <= 1
            factor = out["area"][k] / target["area"][int(out["labels"][k]) - 1]
            assert float(factor) == pytest.approx(zoom**2, rel=0.1)


def test_boxes_that_zooming_cuts_off_are_dropped_with_everything_that_belongs_to_them() -> None:
    image, target = image_of(40, 33), target_with_masks(40, 33)
    transform = DetectionTrain(DetectionAugmentation(flip=0.0, photometric=0.0, scale_jitter=(3.0, 3.0)))
    counts = {len(seeded_call(transform, 0, 0, sample, image, target)[1]["labels"]) for sample in range(20)}
    assert min(counts) < 3


def test_an_image_without_boxes_passes_through() -> None:
    target = {name: tensor[:0] for name, tensor in target_with_masks(40, 33).items()}
    _, out = DetectionTrain(DetectionAugmentation(flip=1.0, photometric=0.0, scale_jitter=(0.5, 2.0)))(
        image_of(40, 33), target
    )
    assert out["boxes"].shape == (0, 4)
    assert out["masks"].shape == (0, 40, 33)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.augmentation\.min_crop_scale"):
        ClassificationAugmentation(0.0, 0.0)
    with pytest.raises(ConfigError, match=r"data\.augmentation\.color_jitter .* got 1\.5"):
        ClassificationAugmentation(0.25, 1.5)
    with pytest.raises(ConfigError, match=r"data\.interpolation"):
        classification_eval(16, 0.875, "area")
    with pytest.raises(ConfigError, match=r"data\.augmentation\.scale_jitter .* low <= high"):
        DetectionAugmentation(0.5, 0.0, (2.0, 1.0))
    with pytest.raises(ConfigError, match=r"data\.augmentation\.flip .* got 1\.5"):
        DetectionAugmentation(1.5, 0.0, None)
