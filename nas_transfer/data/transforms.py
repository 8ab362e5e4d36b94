"""Augmentation and evaluation transforms on uint8 images; the tasks normalise, the data part never does."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from nas_transfer.errors import ConfigError

Target = dict[str, torch.Tensor]
DetectionTransform = Callable[[torch.Tensor, Target], tuple[torch.Tensor, Target]]


def classification_train(image_size: int, min_crop_scale: float, color_jitter: float, interpolation: str) -> v2.Compose:
    """Random resized crop, horizontal flip and optional colour jitter: uint8 (3, H, W) -> (3, image_size, image_size).

    Args:
        min_crop_scale: smallest share of the image's area that a crop covers, in (0, 1]; lower is stronger.
        color_jitter: see `colour_jitter`.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    if not 0 < min_crop_scale <= 1:
        raise ConfigError(f"expected a crop scale in (0, 1], got {min_crop_scale}: set data.min_crop_scale.")
    mode = interpolation_mode(interpolation)
    crop = v2.RandomResizedCrop(image_size, scale=(min_crop_scale, 1.0), interpolation=mode, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colour_jitter(color_jitter)])


def classification_eval(image_size: int, crop_ratio: float, interpolation: str) -> v2.Compose:
    """Resize the short side to `image_size / crop_ratio`, then cut out the centre: uint8 (3, H, W)."""
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"expected a crop ratio in (0, 1], got {crop_ratio}: set data.crop_ratio.")
    short_side = round(image_size / crop_ratio)
    resize = v2.Resize(short_side, interpolation=interpolation_mode(interpolation), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size)])


def interpolation_mode(name: str) -> v2.InterpolationMode:
    """``bilinear`` or ``bicubic`` as torchvision names it; ConfigError for another."""
    if name not in ("bilinear", "bicubic"):
        raise ConfigError(f"expected bilinear or bicubic, got {name}: set data.interpolation.")
    return v2.InterpolationMode(name)


def colour_jitter(strength: float) -> list[nn.Module]:
    """Brightness, contrast and saturation from 1 -/+ strength, hue from -/+ strength / 10; empty at strength 0."""
    if not 0 <= strength <= 1:
        raise ConfigError(f"expected a colour jitter strength in [0, 1], got {strength}.")
    return [v2.ColorJitter(strength, strength, strength, hue=strength / 10)] if strength > 0 else []


class DetectionTrain(nn.Module):
    """Horizontal flip, optional scale jitter and colour jitter of an image together with its boxes and masks.

    Args:
        flip: probability of a horizontal flip.
        photometric: strength of the colour jitter (`colour_jitter`).
        scale_jitter: the least and the greatest zoom (`RandomZoom`), or None.
    """

    def __init__(self, flip: float, photometric: float, scale_jitter: tuple[float, float] | None) -> None:
        super().__init__()
        zoom = [] if scale_jitter is None else [RandomZoom(*scale_jitter)]
        self.pipeline = v2.Compose(
            [
                *zoom,
                v2.RandomHorizontalFlip(flip),
                *colour_jitter(photometric),
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

    It changes objects' size even though detectors resize each image to a fixed size afterwards (large-scale jitter,
    arXiv:2012.07177, section 3). `area` is scaled along with the visible part of each box.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ConfigError(f"expected scale jitter as two numbers 0 < low <= high, got {low} and {high}.")
        self.low = low
        self.high = high

    def forward(self, image: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
        """Same shapes as `DetectionTrain`; boxes must be tv_tensors."""
        height, width = image.shape[-2:]
        draws = torch.rand(3)
        zoom = math.exp(math.log(self.low) + float(draws[0]) * math.log(self.high / self.low))
        size = [max(1, round(height * zoom)), max(1, round(width * zoom))]
        top, above, below = _place(size[0], height, float(draws[1]))
        left, before, after = _place(size[1], width, float(draws[2]))
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


def _place(resized: int, original: int, draw: float) -> tuple[int, int, int]:
    """Where a side of `resized` pixels goes in one of `original` pixels: (cut before, padded before, padded after)."""
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
