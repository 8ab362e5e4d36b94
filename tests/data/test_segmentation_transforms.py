"""The augmentation of images with label maps: aligned, repeatable, and within its limits."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from nas_transfer.data.augmentation import SegmentationAugmentation
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL, SegmentationTrain, distort_colours
from nas_transfer.errors import ConfigError

PLAIN: dict[str, Any] = {
    "crop_size": [20, 30], "scale_range": [1.0, 1.0], "max_class_share": 1.0, "flip": 0.0, "photometric": False,
}  # fmt: skip


def train_transform(**changes: Any) -> SegmentationTrain:
    arguments = PLAIN | changes
    return SegmentationTrain(arguments.pop("crop_size"), SegmentationAugmentation(**arguments))


def blocks(height: int, width: int, side: int = 12) -> torch.Tensor:
    """Labels uint8 (H, W): squares of 0..6."""
    rows, columns = np.meshgrid(np.arange(height) // side, np.arange(width) // side, indexing="ij")
    return torch.from_numpy(((3 * rows + 2 * columns) % 7).astype(np.uint8))


def picture_of(labels: torch.Tensor) -> torch.Tensor:
    """An image whose grey value tells the label: 30 apart."""
    return (labels * 30 + 20).expand(3, -1, -1).contiguous()


def many(transform: SegmentationTrain, image: torch.Tensor, labels: torch.Tensor, count: int) -> list[Any]:
    return [seeded_call(transform, 0, 0, k, image, labels) for k in range(count)]


def test_image_and_labels_stay_aligned() -> None:
    labels = blocks(40, 60)
    transform = train_transform(scale_range=[0.4, 2.0], flip=0.5)
    for image, out in many(transform, picture_of(labels), labels, 60):
        assert image.shape == (3, 20, 30)
        assert out.shape == (20, 30)
        assert image.dtype == out.dtype == torch.uint8
        inside = torch.zeros_like(out, dtype=torch.bool)  # whose eight neighbours have the same label
        windows = out.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)
        inside[1:-1, 1:-1] = (windows == out[1:-1, 1:-1, None]).all(-1) & (out[1:-1, 1:-1] != IGNORE_LABEL)
        assert inside.sum() > 40
        expected = out[inside].int() * 30 + 20
        assert (image[:, inside].int() - expected).abs().max() <= 14  # another label would be 30 away


def test_borders_between_labels_are_where_those_of_the_image_are() -> None:
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:, 32:] = 1
    image = (labels * 200).expand(3, -1, -1).contiguous()
    shifts: dict[str, list[float]] = {"even": [], "odd": []}  # in an odd width the middle pixel is of both labels
    for scaled, out in many(train_transform(crop_size=[16, 200], scale_range=[0.5, 2.5]), image, labels, 60):
        real = out[0] != IGNORE_LABEL
        shift = (scaled[0, 0, real].float() / 200).sum() - out[0, real].sum()
        shifts["odd" if int(real.sum()) % 2 else "even"].append(abs(float(shift)))
    assert min(len(found) for found in shifts.values()) > 15
    assert max(shifts["even"]) < 0.02  # pixels
    assert max(shifts["odd"]) < 0.52


def test_small_images_are_padded_below_and_to_the_right() -> None:
    labels = blocks(10, 12)
    image, out = train_transform()(picture_of(labels), labels)
    assert torch.equal(out[:10, :12], labels)
    assert torch.equal(image[:, :10, :12], picture_of(labels))
    assert (out[10:] == IGNORE_LABEL).all()
    assert (out[:, 12:] == IGNORE_LABEL).all()
    assert (image[:, 10:] == 114).all()
    assert (image[:, :, 12:] == 114).all()


def test_every_window_is_cropped_and_half_of_the_crops_are_flipped() -> None:
    labels = torch.arange(22 * 31, dtype=torch.int64).reshape(22, 31) % 251
    labels = labels.to(torch.uint8)
    windows = {
        (top, left, flip): window.flip(-1) if flip else window
        for top in range(3)
        for left in range(2)
        for flip in (0, 1)
        for window in [labels[top : top + 20, left : left + 30]]
    }
    seen: list[tuple[int, int, int]] = []
    for image, out in many(train_transform(flip=0.5), labels.expand(3, -1, -1), labels, 200):
        assert torch.equal(image, out.expand(3, -1, -1))
        seen += [place for place, window in windows.items() if torch.equal(window, out)]
    assert len(seen) == 200
    assert set(seen) == set(windows)
    assert 70 < sum(flip for _, _, flip in seen) < 130


def test_factors_fill_the_scale_range() -> None:
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    transform = train_transform(crop_size=[200, 200], scale_range=[0.5, 2.0])
    sides = [int((out[0] == 0).sum()) for _, out in many(transform, labels.expand(3, -1, -1), labels, 100)]
    assert min(sides) >= 50
    assert min(sides) < 65
    assert max(sides) > 185
    assert sum(side > 125 for side in sides) > 35  # uniform: half of them


def test_crops_of_one_class_are_drawn_again() -> None:
    labels = torch.zeros(60, 90, dtype=torch.uint8)
    labels[:, 45:] = 1
    labels[:30] = IGNORE_LABEL  # takes no part in the shares
    image = picture_of(labels)

    def too_uniform(share: float) -> int:
        crops = [out for _, out in many(train_transform(max_class_share=share), image, labels, 100)]
        counts = [torch.bincount(out.flatten(), minlength=256)[:2].tolist() for out in crops]
        return sum(max(pair) >= 0.75 * sum(pair) for pair in counts)

    assert too_uniform(1.0) > 70
    assert too_uniform(0.75) < 40  # about one crop in six is allowed, and ten are tried


def test_the_last_crop_is_taken_when_none_is_mixed() -> None:
    labels = torch.full((60, 60), 3, dtype=torch.uint8)
    for _, out in many(train_transform(max_class_share=0.75), picture_of(labels), labels, 3):
        assert (out == 3).all()


def test_the_same_seed_epoch_and_id_give_the_same_sample() -> None:
    labels = blocks(40, 60)
    transform = train_transform(scale_range=[0.5, 2.0], flip=0.5, photometric=True, max_class_share=0.6)
    first = seeded_call(transform, 0, 1, 2, picture_of(labels), labels)
    torch.rand(5)
    again = seeded_call(transform, 0, 1, 2, picture_of(labels), labels)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in [(1, 1, 2), (0, 2, 2), (0, 1, 3)]:
        assert not torch.equal(seeded_call(transform, *other, picture_of(labels), labels)[0], first[0])


def test_distortion_changes_colours_within_ssd_limits_and_not_labels() -> None:
    labels = blocks(20, 30)
    grey = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    values = []
    for image, out in many(train_transform(photometric=True), grey, labels, 200):
        assert torch.equal(out, labels)
        assert image.float().std() == 0  # neither saturation nor hue changes grey, and no channel is swapped
        values.append(int(image[0, 0, 0]))
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5 + 1
    assert min(values) < 60
    assert max(values) > 145
    assert 20 < values.count(100) < 80  # a quarter has neither brightness nor contrast changed


def test_hue_turns_by_at_most_18_degrees() -> None:
    red = torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    turns = []
    for k in range(150):
        pixels = seeded_call(distort_colours, 0, 0, k, red)[:, 0, 0].int().tolist()
        assert pixels[0] == max(pixels)
        turns.append(60 * abs(pixels[1] - pixels[2]) / max(1, max(pixels) - min(pixels)))
    assert 14 < max(turns) <= 18.7  # 8 bits are coarse
    assert sum(turn < 0.5 for turn in turns) > 40
    assert functional.adjust_hue(red, 0.05)[1, 0, 0] != red[1, 0, 0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_size", [20]), ("crop_size", [0, 20]), ("scale_range", [2.0, 0.5]), ("scale_range", [0.0, 1.0]),
        ("scale_range", [1.0]), ("max_class_share", 0.0), ("max_class_share", 1.5), ("flip", -0.1), ("flip", 1.1),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{'' if key == 'crop_size' else 'augmentation.'}{key} "):
        train_transform(**{key: value})
