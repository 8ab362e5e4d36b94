"""Crops of persons: the exact affine map between a crop and its image, and the augmentation of that map.

Positions are in the pixel-index frame, where the centre of the top-left pixel is (0, 0). Corners of boxes and
coordinates of PIL are in the pixel-area frame, where that centre is (0.5, 0.5).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from nas_transfer.data.augmentation import PoseAugmentation
from nas_transfer.data.transforms import colour_jitter

BODY_SHIFT_PROBABILITY = 0.3  # this rate and the next are those of RandomBBoxTransform in mmpose
ROTATION_PROBABILITY = 0.5
HALF_BODY_LEAST_TOTAL = 9
HALF_BODY_LEAST_PART = 3
HALF_BODY_PADDING = 1.5
ERASED_SHARES = (0.02, 0.2)  # of the area of a crop


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image that becomes a network input.

    Args:
        centre: (x, y) in the pixel-area frame of the image.
        width: width of the rectangle in pixels of the image; its height follows from the aspect ratio of the input.
        rotation: clockwise in the image, degrees.
        flipped: whether the result is mirrored left to right.
    """

    centre: tuple[float, float]
    width: float
    rotation: float
    flipped: bool

    def to_image(self, input_size: tuple[int, int]) -> np.ndarray:
        """The map from crop to image, both in the pixel-index frame, for an input (H, W): float64 (2, 3)."""
        height, width = input_size
        scale = self.width / width
        turn = math.radians(self.rotation)
        linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        # The centre of the crop, (W - 1) / 2 in its index frame, is at `centre` - 0.5 in that of the image.
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = np.array(self.centre) - 0.5 - linear @ middle
        if self.flipped:  # x becomes W - 1 - x
            offset = offset + linear[:, 0] * (width - 1)
            linear = linear * np.array([[-1.0, 1.0]])
        return np.concatenate([linear, offset[:, None]], 1)


def box_crop(box: Sequence[float], input_size: tuple[int, int], padding: float) -> Crop:
    """The crop of a box [x, y, width, height]: extended to the aspect ratio of the input, then padded."""
    x, y, width, height = box
    aspect = input_size[1] / input_size[0]
    return Crop((x + width / 2, y + height / 2), max(width, height * aspect) * padding, 0.0, False)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of an affine map (2, 3)."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], 1)


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine map (2, 3) to points (..., 2): float64."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def cut(image: torch.Tensor, to_image: np.ndarray, input_size: tuple[int, int]) -> torch.Tensor:
    """Cut the pixels of a crop, uint8 (3, h, w), out of an image, uint8 (3, H, W); black outside of the image.

    Pixels are interpolated bilinearly. An image that is shrunk to less than half is first averaged over squares of
    pixels, which keeps the map exact and prevents aliasing.
    """
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    linear = to_image[:, :2]
    offset = to_image[:, 2] + 0.5 - linear @ np.array([0.5, 0.5])  # between pixel-area frames
    factor = int(np.sqrt(abs(np.linalg.det(linear))))
    if factor > 1:
        pixels = pixels.reduce(factor)
        linear, offset = linear / factor, offset / factor
    data = (linear[0, 0], linear[0, 1], offset[0], linear[1, 0], linear[1, 1], offset[1])
    size = (input_size[1], input_size[0])
    moved = pixels.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(moved)).permute(2, 0, 1).contiguous()


class CropAugmentation:
    """Flip, half body, shift, scale and rotation of a crop, and changes of its pixels.

    All draws are from torch's default generator.

    Args:
        augmentation: how much of each.
        lower_body: indices of the keypoints from the hips down.
    """

    def __init__(self, augmentation: PoseAugmentation, lower_body: Sequence[int]) -> None:
        self.augmentation = augmentation
        self.lower_body = frozenset(lower_body)
        erasing = [v2.RandomErasing(augmentation.erasing, scale=ERASED_SHARES)] if augmentation.erasing > 0 else []
        changes = [*colour_jitter(augmentation.photometric), *erasing]
        self._pixels = v2.Compose(changes) if changes else None

    def __call__(self, crop: Crop, keypoints: np.ndarray, input_size: tuple[int, int], padding: float) -> Crop:
        """Another crop of the same person, whose keypoints (K, 3) are x, y, v in the image."""
        limits = self.augmentation
        draws = torch.rand(8).tolist()
        if draws[0] < limits.half_body:
            crop = self._half(crop, keypoints, input_size, padding, upper=draws[1] < 0.5)
        low, high = limits.scale_range
        width = crop.width * (low + (high - low) * draws[2])
        centre, rotation = crop.centre, 0.0
        if draws[3] < BODY_SHIFT_PROBABILITY:
            height = crop.width * input_size[0] / input_size[1]
            moves = (2 * draws[4] - 1) * limits.shift * crop.width, (2 * draws[5] - 1) * limits.shift * height
            centre = (centre[0] + moves[0], centre[1] + moves[1])
        if draws[6] < ROTATION_PROBABILITY:
            rotation = float(torch.randn(()).clamp(-2, 2)) * limits.rotation / 2
        return replace(crop, centre=centre, width=width, rotation=rotation, flipped=draws[7] < limits.flip)

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Other colours and an erased rectangle in a crop, uint8 (3, h, w)."""
        changed: torch.Tensor = image if self._pixels is None else self._pixels(image)
        return changed

    def _half(
        self, crop: Crop, keypoints: np.ndarray, input_size: tuple[int, int], padding: float, upper: bool
    ) -> Crop:
        labelled = [k for k in range(len(keypoints)) if keypoints[k, 2] > 0]
        halves = [[k for k in labelled if (k in self.lower_body) != wanted] for wanted in (upper, not upper)]
        chosen = next((half for half in halves if len(half) >= HALF_BODY_LEAST_PART), [])
        if len(labelled) < HALF_BODY_LEAST_TOTAL or not chosen:
            return crop
        points = keypoints[chosen, :2]
        (left, top), (right, bottom) = points.min(0), points.max(0)
        sides = max(right - left, 1.0) * HALF_BODY_PADDING, max(bottom - top, 1.0) * HALF_BODY_PADDING
        box = [(left + right + 1 - sides[0]) / 2, (top + bottom + 1 - sides[1]) / 2, *sides]
        return box_crop(box, input_size, padding)
