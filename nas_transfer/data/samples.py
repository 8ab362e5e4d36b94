"""Samples of datasets and batches of loaders, by task: typed dictionaries of one sample and of one batch.

A batch for prediction holds what the network reads and no annotations, so all other keys of a batch are optional.
"""

from typing import TypedDict

import torch


class ClassificationSample(TypedDict):
    """An image uint8 (3, image_size, image_size) with its class in 0..C-1."""

    image: torch.Tensor
    label: int
    sample_id: int


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


class DetectionSample(TypedDict):
    """An image uint8 (3, H, W) with its objects; `sample_id` is the COCO id of the image."""

    image: torch.Tensor
    target: DetectionTarget
    sample_id: int


class ImageList(TypedDict):
    """B images uint8 (3, H, W) of any sizes."""

    images: list[torch.Tensor]


class DetectionBatch(ImageList, total=False):
    """Also the targets of the B images and sample_ids int64 (B,)."""

    targets: list[DetectionTarget]
    sample_ids: torch.Tensor


class PoseSample(TypedDict):
    """The crop of one person.

    image uint8 (3, H, W); keypoints float32 (K, 2), x and y in the pixel-index frame of the crop; visible float32 (K,),
    1 where labelled; to_image float64 (2, 3), the map from the frame of the crop to that of the image; area in pixels
    of the image; box_score of the detector, 1 for an annotated box.
    """

    image: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    to_image: torch.Tensor
    image_id: int
    area: float
    box_score: float
    sample_id: int


class PoseBatch(TypedDict):
    """B crops.

    images uint8 (B, 3, H, W); keypoints float32 (B, K, 2); visible float32 (B, K); to_image float64 (B, 2, 3);
    image_ids and sample_ids int64 (B,); areas and box_scores float32 (B,). See `PoseSample` for their meaning.
    """

    images: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    to_image: torch.Tensor
    image_ids: torch.Tensor
    sample_ids: torch.Tensor
    areas: torch.Tensor
    box_scores: torch.Tensor


class SegmentationSample(TypedDict):
    """An image uint8 (3, H, W) with its label map uint8 (H, W), 0..C-1 and IGNORE_LABEL."""

    image: torch.Tensor
    labels: torch.Tensor
    sample_id: int


class SegmentationBatch(ImageList, total=False):
    """Also the label maps of the B images and sample_ids int64 (B,)."""

    labels: list[torch.Tensor]
    sample_ids: torch.Tensor


class ScoredBox(TypedDict):
    """A person that a detector found: bbox [x, y, width, height] in pixels of the image, and its score."""

    bbox: list[float]
    score: float


class DetectedBox(ScoredBox, total=False):
    """The same in COCO's result format, in which the image and the category are named."""

    image_id: int
    category_id: int
    file_name: str
