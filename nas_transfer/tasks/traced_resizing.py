"""The resizing of torchvision's detectors, traced to the same size as without tracing.

torchvision computes the size of a resized image in float64, but in float32 where it is traced for ONNX. For one image
size in ten, one of the sides is then a pixel longer or shorter, and all boxes differ.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


def with_traced_resizing(network: nn.Module) -> nn.Module:
    """The same detector, whose traced graph resizes as the network itself does. All weights are shared."""
    stock = network.transform
    if not isinstance(stock, GeneralizedRCNNTransform) or stock.fixed_size is not None:
        return network
    transform, shared = copy.copy(stock), copy.copy(network)
    transform.resize = partial(_resize, stock)
    shared._modules = {**network._modules, "transform": transform}
    return shared


def _resize(
    stock: GeneralizedRCNNTransform, image: Tensor, target: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """An image (3, H, W) at the size that torchvision computes without tracing."""
    if not torchvision._is_tracing():
        return stock.resize(image, target)
    sides = shape_as_tensor(image)[-2:].to(torch.float64)
    # Tensors of one element: the exporter takes those without a dimension for numbers, and makes them float32.
    shortest = torch.tensor([stock.min_size[-1]], dtype=torch.float64)
    longest = torch.tensor([stock.max_size], dtype=torch.float64)
    scale = torch.minimum(shortest / sides.amin(0, keepdim=True), longest / sides.amax(0, keepdim=True))
    rows, columns = (sides * scale).floor().to(torch.int64)
    return F.interpolate(image[None], (rows, columns), mode="bilinear", align_corners=False)[0], target  # type: ignore[arg-type]
