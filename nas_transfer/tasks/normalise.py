"""From stored pixels to what the supernet's weights expect: the one place where a task normalises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.supernet.preprocessing import Preprocessing


class Normalise(nn.Module):
    """Channels in the weights' order, each minus its mean, divided by its deviation.

    Args:
        preprocessing: of the weights, or of the table where there are none.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        moments = torch.tensor([preprocessing.mean, preprocessing.std])
        self.register_buffer("moments", moments[:, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images uint8 (B, 3, H, W), values 0-255, to float (B, 3, H, W)."""
        mean, std = self.moments  # type: ignore[misc]
        return (in_order(images, self.preprocessing) - mean) / std


def in_order(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB images (..., 3, H, W) with their channels in the weights' order."""
    return images.flip(-3) if preprocessing.channel_order == "bgr" else images
