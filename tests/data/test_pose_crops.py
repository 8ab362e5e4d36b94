"""Crops: exact maps there and back, and pixels that lie where the maps say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_transfer.data.augmentation import PoseAugmentation
from nas_transfer.data.pose_crops import Crop, CropAugmentation, box_crop, cut, inverse, move
from nas_transfer.data.randomness import seeded_call

SIZE = (64, 48)


def random_crops(count: int) -> list[Crop]:
    rng = np.random.default_rng(0)
    return [
        Crop(tuple(rng.uniform(20, 180, 2).tolist()), rng.uniform(20, 400), rng.uniform(-180, 180), bool(k % 2))  # type: ignore[arg-type]
        for k in range(count)
    ]


def test_keypoints_go_into_the_crop_and_back_exactly() -> None:
    points = np.random.default_rng(1).uniform(-50, 300, (17, 2))
    for crop in random_crops(40):
        there = crop.to_image(SIZE)
        assert np.abs(move(there, move(inverse(there), points)) - points).max() < 1e-9
        assert abs(np.linalg.det(there[:, :2])) == pytest.approx((crop.width / SIZE[1]) ** 2)


def test_a_crop_of_an_images_own_rectangle_is_its_pixels() -> None:
    image = torch.randint(256, (3, 64, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    crop = box_crop([0, 0, 48, 64], SIZE, padding=1.0)
    assert np.abs(crop.to_image(SIZE) - np.array([[1, 0, 0], [0, 1, 0]])).max() < 1e-12
    assert torch.equal(cut(image, crop.to_image(SIZE), SIZE), image)
    mirrored = replace(crop, flipped=True).to_image(SIZE)
    assert move(inverse(mirrored), np.array([[5.0, 7.0]])).tolist() == [[48 - 1 - 5.0, 7.0]]
    assert torch.equal(cut(image, mirrored, SIZE), image.flip(2))


def test_a_box_keeps_its_centre_and_is_widened_to_the_inputs_aspect() -> None:
    assert box_crop([10, 20, 30, 10], SIZE, 1.25) == Crop((25.0, 25.0), 37.5, 0.0, False)
    assert box_crop([10, 20, 3, 64], SIZE, 1.0) == Crop((11.5, 52.0), 48.0, 0.0, False)


@pytest.mark.parametrize("width", [24, 48, 130, 210])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_bright_blob_is_found_where_its_centre_is_mapped(width: float, flipped: bool) -> None:
    rows, columns = np.mgrid[:200, :200]
    for turn in (0.0, 30.0, -110.0):
        centre = (100.3, 96.8)
        blob = 250 * np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * (width / 12) ** 2))
        image = torch.from_numpy(blob.astype(np.uint8)).expand(3, -1, -1)
        to_image = Crop((104.0, 101.0), width, turn, flipped).to_image(SIZE)
        pixels = cut(image, to_image, SIZE)[0].double().numpy()
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        found = np.array([(pixels * x).sum(), (pixels * y).sum()]) / pixels.sum()
        expected = move(inverse(to_image), np.array(centre))
        assert np.abs(found - expected).max() < 0.1


def test_augmentation_stays_in_its_limits_and_crops_half_bodies() -> None:
    keypoints = np.zeros((12, 3))
    keypoints[:, 0], keypoints[:, 1], keypoints[:, 2] = 50, np.arange(12) * 10, 2
    crop = box_crop([30, -5, 40, 120], SIZE, 1.25)
    whole = CropAugmentation(PoseAugmentation(0.5, 0.0, 0.16, [0.5, 1.5], 80, 0, 0), range(6, 12))
    drawn = [seeded_call(whole, 0, 0, k, crop, keypoints, SIZE, 1.25) for k in range(400)]
    factors = np.array([other.width / crop.width for other in drawn])
    turns = np.array([other.rotation for other in drawn])
    moves = np.array([math.dist(other.centre, crop.centre) for other in drawn])
    assert 0.5 <= factors.min() < 0.55
    assert 1.45 < factors.max() <= 1.5
    assert 60 < np.abs(turns).max() <= 80
    assert 150 < (turns == 0).sum() < 250
    assert 80 < (moves > 0).sum() < 160
    assert 150 < sum(other.flipped for other in drawn) < 250

    still = CropAugmentation(PoseAugmentation(0.0, 1.0, 0.0, [1.0, 1.0], 0, 0, 0), range(6, 12))
    centres = {round(seeded_call(still, 0, 0, k, crop, keypoints, SIZE, 1.25).centre[1], 6) for k in range(20)}
    assert centres == {25.5, 85.5}  # of the upper and of the lower six, in the pixel-area frame
    keypoints[4:, 2] = 0
    assert seeded_call(still, 0, 0, 0, crop, keypoints, SIZE, 1.25) == crop


def test_colours_change_and_rectangles_are_erased_on_request() -> None:
    image = torch.full((3, *SIZE), 120, dtype=torch.uint8)
    plain = CropAugmentation(PoseAugmentation(0.0, 0.0, 0.0, [1.0, 1.0], 0, 0, 0), ())
    assert torch.equal(plain.pixels(image), image)
    erased = CropAugmentation(PoseAugmentation(0.0, 0.0, 0.0, [1.0, 1.0], 0, 0, 1.0), ())
    shares = [float((seeded_call(erased.pixels, 0, 0, k, image) == 0).double().mean()) for k in range(50)]
    assert 0.015 < min(shares) < 0.1 < max(shares) < 0.21
    jittered = CropAugmentation(PoseAugmentation(0.0, 0.0, 0.0, [1.0, 1.0], 0, 0.4, 0), ())
    levels = [float(seeded_call(jittered.pixels, 0, 0, k, image).double().mean()) for k in range(50)]
    assert 60 < min(levels) < 110 < 130 < max(levels) < 180
