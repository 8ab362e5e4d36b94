"""Augmentation and evaluation transforms on uint8 images; tasks normalise, data modules never do."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from nas_transfer.data.augmentation import ClassificationAugmentation, DetectionAugmentation
from nas_transfer.errors import ConfigError

Target = dict[str, torch.Tensor]
DetectionTransform = Callable[[torch.Tensor, Target], tuple[torch.Tensor, Target]]


def classification_train(image_size: int, augmentation: ClassificationAugmentation, interpolation: str) -> v2.Compose:
    """Random resized crop, horizontal flip and optional colour jitter: uint8 (3, H, W) -> (3, image_size, image_size).

    `interpolation` is ``bilinear`` or ``bicubic``; ConfigError for another.
    """
    mode = interpolation_mode(interpolation)
    scale = (augmentation.min_crop_scale, 1.0)
    crop = v2.RandomResizedCrop(image_size, scale=scale, interpolation=mode, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colour_jitter(augmentation.color_jitter)])


def classification_eval(image_size: int, crop_ratio: float, interpolation: str) -> v2.Compose:
    """Resize the short side to `image_size / crop_ratio`, then cut out the centre: uint8 (3, H, W)."""
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"data.crop_ratio must lie in (0, 1], got {crop_ratio}")
    short_side = round(image_size / crop_ratio)
    resize = v2.Resize(short_side, interpolation=interpolation_mode(interpolation), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size)])


def interpolation_mode(name: str) -> v2.InterpolationMode:
    """``bilinear`` or ``bicubic`` as torchvision names it; ConfigError for another."""
    if name not in ("bilinear", "bicubic"):
        raise ConfigError(f"data.interpolation must be bilinear or bicubic, got {name}")
    return v2.InterpolationMode(name)


def colour_jitter(strength: float) -> list[nn.Module]:
    """Brightness, contrast and saturation from 1 -/+ strength, hue from -/+ strength / 10; empty at strength 0."""
    return [v2.ColorJitter(strength, strength, strength, hue=strength / 10)] if strength > 0 else []


class DetectionTrain(nn.Module):
    """Horizontal flip, optional zoom (`RandomZoom`) and colour jitter of an image with its boxes and masks."""

    def __init__(self, augmentation: DetectionAugmentation) -> None:
        super().__init__()
        zoom = [] if augmentation.scale_jitter is None else [RandomZoom(*augmentation.scale_jitter)]
        self.pipeline = v2.Compose(
            [
                *zoom,
                v2.RandomHorizontalFlip(augmentation.flip),
                *colour_jitter(augmentation.photometric),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(labels_getter=_per_instance),  # under a pixel wide: no use for training
            ]
        )

    def forward(self, image: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
        """Image uint8 (3, H, W); target: boxes float32 (N, 4) xyxy, masks uint8 (N, H, W) if any, others (N,)."""
        wrapped: Target = dict(target)
        height, width = image.shape[-2:]
        wrapped["boxes"] = tv_tensors.BoundingBoxes(
            target["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
        )
        if "masks" in target:
            wrapped["masks"] = tv_tensors.Mask(target["masks"])
        image, wrapped = self.pipeline(tv_tensors.Image(image), wrapped)
        return _plain(image), {name: _plain(value) for name, value in wrapped.items()}


class RandomZoom(nn.Module):
    """Zoom by a random factor, keeping the image's size: above 1 a random part is cut out, below 1 grey surrounds it.

    It changes the size of objects even though detectors resize each image to a fixed size afterwards (large-scale
    jitter, arXiv:2012.07177, section 3). `area` is scaled along with the visible part of each box.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, image: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
        """Same shapes as `DetectionTrain`; boxes must be tv_tensors."""
        height, width = image.shape[-2:]
        draws = torch.rand(3)
        zoom = math.exp(math.log(self.low) + float(draws[0]) * math.log(self.high / self.low))
        size = [max(1, round(height * zoom)), max(1, round(width * zoom))]
        top, above, below = _crop_and_pad(size[0], height, float(draws[1]))
        left, before, after = _crop_and_pad(size[1], width, float(draws[2]))
        area_before = _box_area(target["boxes"])

        def move(tensor: torch.Tensor, fill: float) -> torch.Tensor:
            resized = functional.resize(tensor, size, antialias=True)
            inner = functional.crop(resized, top, left, min(height, size[0]), min(width, size[1]))
            return functional.pad(inner, [before, above, after, below], fill=fill)

        moved: Target = dict(target)
        moved["boxes"] = functional.clamp_bounding_boxes(move(target["boxes"], 0))
        if "masks" in target:
            moved["masks"] = move(target["masks"], 0)
        moved["area"] = target["area"] * (_box_area(moved["boxes"]) / area_before)
        return move(image, 114), moved


def _crop_and_pad(resized: int, original: int, draw: float) -> tuple[int, int, int]:
    """How a side of `resized` pixels becomes one of `original` pixels: (cut before, padded before, padded after)."""
    slack = abs(resized - original)
    offset = min(int(draw * (slack + 1)), slack)
    return (offset, 0, 0) if resized >= original else (0, offset, slack - offset)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    plain = _plain(boxes)
    return (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])


def _per_instance(inputs: tuple[torch.Tensor, Target]) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[1][name] for name in ("labels", "iscrowd", "area"))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)
