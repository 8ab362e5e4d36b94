"""Keypoints as heatmaps and back: Gaussians as targets, sub-pixel maxima as predictions, mirrored images, OKS.

Keypoints and heatmap cells are in pixel-index frames. Cell h of a map that is s times smaller than the image covers
pixels s h .. s h + s - 1 of the image, so that its centre is at x = s (h + 0.5) - 0.5. The map of a mirrored image is
exactly the mirrored map; nothing has to be shifted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GAUSSIAN_REACH = 3.0  # sigmas: a keypoint that is further off the map leaves nothing on it


def encode_heatmaps(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], stride: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """Gaussian targets around the exact positions (Xiao et al. 2018; unrounded as in Zhang et al. 2020, section 3.3).

    Args:
        keypoints: (B, K, 2) x, y in the image.
        visible: (B, K), 1 where labelled.
        size: (H, W) of the maps.
        stride: image pixels a cell.
        sigma: sigma of the Gaussian, in cells.

    Returns:
        Targets (B, K, H, W) with a maximum of 1, and weights (B, K): 0 where unlabelled or off the map.
    """
    cells = (keypoints + 0.5) / stride - 0.5
    columns = torch.arange(size[1], device=cells.device, dtype=cells.dtype)
    rows = torch.arange(size[0], device=cells.device, dtype=cells.dtype)
    across = torch.exp(-(columns - cells[..., :1]).square() / (2 * sigma**2))
    down = torch.exp(-(rows - cells[..., 1:]).square() / (2 * sigma**2))
    limits = torch.tensor([size[1] - 1, size[0] - 1], device=cells.device, dtype=cells.dtype)
    reach = GAUSSIAN_REACH * sigma
    near = ((cells > -reach) & (cells < limits + reach)).all(-1)
    return down[..., :, None] * across[..., None, :], visible * near


def decode_heatmaps(heatmaps: Tensor, stride: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Positions (B, K, 2) in the image and scores (B, K), by a Taylor expansion of the log map at its maximum.

    The logarithm of a Gaussian is a parabola, so that its centre is found exactly (DARK, Zhang et al. 2020, eq. 9). The
    map is first smoothed by a Gaussian of the same sigma. This does not move a centre, except near the border, which
    cuts the Gaussian off: there the map is not smoothed. Scores are the maxima of the unsmoothed maps.
    """
    height, width = heatmaps.shape[2:]
    scores = heatmaps.flatten(2).amax(2)
    smooth = _smooth_inside(heatmaps, sigma)
    best = smooth.flatten(2).argmax(2)
    # The expansion needs a neighbour on each side: at the border it is made one cell further inside.
    x, y = (best % width).clamp(1, width - 2), (best // width).clamp(1, height - 2)
    logs = smooth.clamp(min=1e-10).log().flatten(2)

    def at(dx: int, dy: int) -> Tensor:
        return logs.gather(2, ((y + dy) * width + x + dx)[..., None])[..., 0]

    gradient = torch.stack([(at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2], -1)
    xx, yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = xx * yy - xy.square()
    concave = (determinant > 1e-10) & (xx < 0)
    step = torch.stack(
        [xy * gradient[..., 1] - yy * gradient[..., 0], xy * gradient[..., 0] - xx * gradient[..., 1]], -1
    )
    step = step / torch.where(concave, determinant, torch.ones_like(determinant))[..., None]
    # Beyond the neighbouring cells the expansion does not hold.
    step = torch.where(concave[..., None], step, torch.zeros_like(step)).clamp(-1.5, 1.5)
    cells = torch.stack([x, y], -1) + step
    return (cells + 0.5) * stride - 0.5, scores


def _smooth_inside(heatmaps: Tensor, sigma: float) -> Tensor:
    """Smooth the maps whose maximum is far enough from the border, and leave the others."""
    radius = max(1, round(2 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=heatmaps.device, dtype=heatmaps.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    batch, count, height, width = heatmaps.shape
    maps = F.pad(heatmaps.reshape(batch * count, 1, height, width), (radius,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(maps, kernel[None, None, None]), kernel[None, None, :, None]).view_as(heatmaps)
    best = smooth.flatten(2).argmax(2)
    x, y = best % width, best // width
    gap = torch.minimum(torch.minimum(x, width - 1 - x), torch.minimum(y, height - 1 - y))
    # Half a sigma beyond the reach of the kernel, the border moves a maximum by less than a hundredth of a pixel.
    return torch.where((gap > radius + sigma / 2)[..., None, None], smooth, heatmaps)


def mirror_heatmaps(heatmaps: Tensor, flip_pairs: Sequence[Sequence[int]]) -> Tensor:
    """The maps (B, K, H, W) that a mirrored image should give: mirrored, with left and right keypoints exchanged."""
    order = list(range(heatmaps.shape[1]))
    for left, right in flip_pairs:
        order[left], order[right] = right, left
    return heatmaps.flip(3)[:, order]


def object_keypoint_similarity(points: np.ndarray, others: np.ndarray, area: float, sigmas: np.ndarray) -> np.ndarray:
    """COCO's OKS of predicted keypoints (K, 2) with others (N, K, 2), over all keypoints: float64 (N,).

    Args:
        area: area of the object, pixels^2.
        sigmas: (K,) a third of the tolerance of each keypoint; COCO's variance is (2 sigma)^2.
    """
    distances = np.square(others - points).sum(2)
    return np.exp(-distances / (2 * np.square(2 * sigmas) * (area + np.spacing(1)))).mean(1)


def suppress_duplicates(
    points: np.ndarray, areas: np.ndarray, scores: np.ndarray, sigmas: np.ndarray, threshold: float
) -> list[int]:
    """Indices of the persons of one image that remain once duplicates are removed.

    Of two persons whose OKS exceeds the threshold, the one with the lower score is removed.

    Args:
        points: (N, K, 2); areas, scores: (N,).
    """
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        area = float(areas[index])
        if not kept or object_keypoint_similarity(points[index], points[kept], area, sigmas).max() <= threshold:
            kept.append(index)
    return kept
