"""Crops of persons at smaller sizes, with their keypoints in the frame of the smaller crop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_transfer.data.samples import PoseBatch


def resized_crops(batch: PoseBatch, inputs: Tensor, size: tuple[int, int]) -> PoseBatch:
    """A batch with smaller crops, and its keypoints and maps to the image in the frame of these.

    Pixel x of a crop of width W is pixel (x + 0.5) w / W - 0.5 of the crop of width w, for heights alike.

    Args:
        batch: its crops have any size (H, W).
        inputs: float (B, 3, H, W), what stands for the crops.
        size: (h, w) of the result.

    Returns:
        The batch with images float (B, 3, h, w), and keypoints and to_image of the same number formats as before.
    """
    factors = [size[1] / inputs.shape[3], size[0] / inputs.shape[2]]
    keypoints, to_image = batch["keypoints"], batch["to_image"]
    scale = torch.tensor(factors, device=keypoints.device, dtype=keypoints.dtype)
    back = 1 / torch.tensor(factors, device=to_image.device, dtype=to_image.dtype)
    linear = to_image[:, :, :2]
    offset = to_image[:, :, 2:] + linear @ (0.5 * back - 0.5)[:, None]
    return {
        **batch,
        "images": resized(inputs, size),
        "keypoints": (keypoints + 0.5) * scale - 0.5,
        "to_image": torch.cat([linear * back, offset], 2),
    }


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or maps (B, C, H, W), bilinearly resized to (h, w) with antialiasing; the same if they have that size."""
    if images.shape[-2:] == size:
        return images
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # torch has no half precision here on a CPU
    return F.interpolate(exact, size, mode="bilinear", align_corners=False, antialias=True).to(images.dtype)
