"""Turn stored pixels into the input that the weights expect. Tasks normalise images only here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.supernet.preprocessing import Preprocessing


class Normalise(nn.Module):
    """Puts channels in the order of the weights, subtracts their mean and divides by their standard deviation.

    Args:
        preprocessing: preprocessing of the weights, or of the table if there are none.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        moments = torch.tensor([preprocessing.mean, preprocessing.std])
        self.register_buffer("moments", moments[:, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images uint8 (B, 3, H, W), values 0-255, to float (B, 3, H, W)."""
        mean, std = self.moments
        return (in_order(images, self.preprocessing) - mean) / std


def in_order(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """RGB images (..., 3, H, W) with their channels in the order of the weights."""
    return images.flip(-3) if preprocessing.channel_order == "bgr" else images
