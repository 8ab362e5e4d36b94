"""Batches by task, and how they get to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor

Value = TypeVar("Value")


def to_device(value: Value, device: torch.device) -> Value:
    """The value with all tensors in it, inside dictionaries, lists and tuples too, on a device."""
    moved: object = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=device.type == "cuda")
    elif isinstance(value, Mapping):
        moved = {key: to_device(part, device) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        moved = type(value)(to_device(part, device) for part in value)
    return cast(Value, moved)


class ClassificationImages(TypedDict):
    """Images uint8 (B, 3, image_size, image_size)."""

    images: torch.Tensor


class ClassificationBatch(ClassificationImages, total=False):
    """Also labels int64 (B,) and sample_ids int64 (B,)."""

    labels: torch.Tensor
    sample_ids: torch.Tensor


class InstanceTarget(TypedDict):
    """The N objects of an image.

    boxes float32 (N, 4) xyxy, in pixels and clipped to the image; labels int64 (N,) in 1..C; iscrowd uint8 (N,); area
    float32 (N,) in pixels; image_id, the COCO id of the image.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    iscrowd: torch.Tensor
    area: torch.Tensor
    image_id: int


class DetectionTarget(InstanceTarget, total=False):
    """Also masks uint8 (N, H, W), where the data is read with them."""

    masks: torch.Tensor


class ImageList(TypedDict):
    """B images uint8 (3, H, W) of any sizes."""

    images: list[torch.Tensor]


class DetectionBatch(ImageList, total=False):
    """Also the targets of the B images and sample_ids int64 (B,)."""

    targets: list[DetectionTarget]
    sample_ids: torch.Tensor


class PoseBatch(TypedDict):
    """B crops.

    images uint8 (B, 3, H, W); keypoints float32 (B, K, 2); visible float32 (B, K); to_image float64 (B, 2, 3);
    image_ids and sample_ids int64 (B,); areas and box_scores float32 (B,).
    """

    images: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    to_image: torch.Tensor
    image_ids: torch.Tensor
    sample_ids: torch.Tensor
    areas: torch.Tensor
    box_scores: torch.Tensor


class SegmentationBatch(ImageList, total=False):
    """Also the label maps of the B images and sample_ids int64 (B,)."""

    labels: list[torch.Tensor]
    sample_ids: torch.Tensor
