"""Normalisations and scales that hold no statistics, for networks without BatchNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_transfer.supernet.ops import shared_pair

INITIAL_SCALE = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        last = features.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """One learned factor for each channel, at first `INITIAL_SCALE` (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), INITIAL_SCALE))

    def forward(self, features: Tensor) -> Tensor:
        """Scale (B, C, H, W)."""
        return features * self.weight[:, None, None]


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, arXiv 2301.00808, section 3.2) of the leading channels.

    A channel is scaled by its norm over the image, relative to the mean norm of the channels that are active.
    """

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W) and add it to itself."""
        weight, bias = shared_pair(self.weight, self.bias, features.shape[1])
        norm = torch.linalg.vector_norm(features, dim=(2, 3), keepdim=True)
        relative = norm / (norm.mean(1, keepdim=True) + self.eps)
        return features + torch.addcmul(bias[:, None, None], weight[:, None, None], features * relative)
