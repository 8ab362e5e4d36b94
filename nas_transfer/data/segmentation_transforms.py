"""Augmentation of an image together with its label map, for semantic segmentation."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from nas_transfer.data.augmentation import SegmentationAugmentation
from nas_transfer.errors import ConfigError

IGNORE_LABEL = 255  # of pixels that are neither trained nor scored

PADDING = 114  # the grey with which `transforms.RandomZoom` pads
_CROP_DRAWS = 10  # mmsegmentation's RandomCrop


class SegmentationTrain(nn.Module):
    """Random scale, random crop without a dominant class, horizontal flip and photometric distortion.

    This is mmsegmentation's recipe for Cityscapes and ADE20K. All draws are from torch's default generator, so that
    `seeded_call` makes them repeatable.

    The factor is drawn uniformly from `scale_range`. Crops are drawn again, up to ten times, until the most frequent
    class covers less than `max_class_share` of the labelled pixels and at least two classes are in the crop.

    Args:
        crop_size: height and width of the result in pixels; a smaller scaled image is padded bottom and right to it.
        augmentation: augmentation of each image.

    Raises:
        ConfigError: a crop size that is not two positive numbers.
    """

    def __init__(self, crop_size: Sequence[int], augmentation: SegmentationAugmentation) -> None:
        super().__init__()
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ConfigError(f"data.crop_size must be [height, width] in pixels, got {list(crop_size)}")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.augmentation = augmentation

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image uint8 (3, H, W) and labels uint8 (H, W) to the same at `crop_size`."""
        height, width = self.crop_size
        image, labels = self._scale(image, labels)
        top, left = self._choose_crop(labels)
        image, labels = (part[..., top : top + height, left : left + width] for part in (image, labels))
        if torch.rand(()) < self.augmentation.flip:
            image, labels = functional.horizontal_flip(image), functional.horizontal_flip(labels)
        if self.augmentation.photometric:
            image = distort_colours(image)
        return image.contiguous(), labels.contiguous()

    def _scale(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale both by one factor, then pad them to at least the crop's size."""
        low, high = self.augmentation.scale_range
        factor = low + (high - low) * float(torch.rand(()))
        size = [max(1, round(side * factor)) for side in labels.shape]
        image = functional.resize(image, size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
        # Both modes treat pixels as squares, so image and labels are aligned; plain "nearest" is off by half a pixel.
        nearest = v2.InterpolationMode.NEAREST_EXACT
        labels = functional.resize(labels[None], size, interpolation=nearest, antialias=False)[0]
        below, after = (max(0, crop - side) for crop, side in zip(self.crop_size, size, strict=True))
        if below or after:
            border = [0, 0, after, below]
            image = functional.pad(image, border, fill=PADDING)
            labels = functional.pad(labels[None], border, fill=IGNORE_LABEL)[0]
        return image, labels

    def _choose_crop(self, labels: torch.Tensor) -> tuple[int, int]:
        """Top and left of a crop that `max_class_share` allows, or of the last one tried."""
        height, width = self.crop_size
        slack = (labels.shape[0] - height, labels.shape[1] - width)
        top = left = 0
        for _ in range(_CROP_DRAWS if any(slack) else 1):
            top, left = (int(torch.randint(room + 1, ())) for room in slack)
            if self._is_mixed(labels[top : top + height, left : left + width]):
                break
        return top, left

    def _is_mixed(self, labels: torch.Tensor) -> bool:
        if self.augmentation.max_class_share == 1:
            return True
        pixels = torch.bincount(labels.flatten(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
        most_frequent = int(pixels.max())
        return int((pixels > 0).sum()) > 1 and most_frequent < self.augmentation.max_class_share * int(pixels.sum())


def distort_colours(image: torch.Tensor) -> torch.Tensor:
    """SSD's photometric distortion (Liu et al. 2016, arXiv:1512.02325) of an image uint8 (3, H, W).

    Each with probability 0.5: brightness (plus or minus up to 32 of 255), contrast (times 0.5 to 1.5), saturation (0.5
    to 1.5) and hue (up to 18 of 360 degrees); contrast comes first or last. SSD's contrast multiplies the pixels, which
    torchvision calls brightness.
    """
    used = (torch.rand(4) < 0.5).tolist()
    contrast_first = bool(torch.rand(()) < 0.5)
    amounts = (2 * torch.rand(4) - 1).tolist()  # each in [-1, 1)
    pixels = functional.to_dtype(image, torch.float32, scale=True)
    if used[0]:
        pixels = (pixels + amounts[0] * 32 / 255).clamp(0, 1)
    if used[1] and contrast_first:
        pixels = functional.adjust_brightness(pixels, 1 + amounts[1] / 2)
    if used[2]:
        pixels = functional.adjust_saturation(pixels, 1 + amounts[2] / 2)
    if used[3]:
        pixels = functional.adjust_hue(pixels, amounts[3] * 18 / 360)
    if used[1] and not contrast_first:
        pixels = functional.adjust_brightness(pixels, 1 + amounts[1] / 2)
    return (pixels * 255).round().to(torch.uint8)
