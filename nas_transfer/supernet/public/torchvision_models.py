"""torchvision's classification models: what their weights say of themselves, and how they are built."""

from __future__ import annotations

import difflib
import re

from torch import nn
from torchvision import models

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.preprocessing import LARGEST_PIXEL, Preprocessing
from nas_transfer.supernet.readers import PublicNet

LIBRARY = "torchvision"
LICENCE = "BSD-3-Clause (torchvision), trained on ImageNet, whose images are for research"
NEAREST = 4
ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")


def describe(model: str) -> PublicNet:
    """What torchvision says of a model.

    Raises:
        ConfigError: torchvision has no such model.
    """
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, NEAREST) or [name for name in known if name in model]
        instead = f": did you mean {', '.join(near)}?" if near else ": see torchvision.models.list_models()"
        raise ConfigError(f"torchvision has no classification model '{model}'{instead}")
    weights = models.get_model_weights(model)["DEFAULT"]
    transforms = weights.transforms()
    mean, std = (
        tuple(round(value * LARGEST_PIXEL, 6) for value in getattr(transforms, field)) for field in ("mean", "std")
    )
    paper = ARXIV.search(models.get_model_builder(model).__doc__ or "")
    (size,), (short_side,) = transforms.crop_size, transforms.resize_size
    return PublicNet(
        library=LIBRARY,
        model=model,
        tag=weights.name,
        url=weights.url,
        paper="" if paper is None else paper[1],
        licence=LICENCE,
        preprocessing=Preprocessing(mean, std, interpolation=transforms.interpolation.value),  # type: ignore[arg-type]
        resolution=size,
        crop_ratio=size / short_side,
        num_classes=len(weights.meta["categories"]),
    )


def build(net: PublicNet) -> nn.Module:
    """The model with random weights."""
    return models.get_model(net.model, weights=None)


def download(net: PublicNet) -> nn.Module:
    """The model with its newest weights, from torch's cache or the network."""
    return models.get_model(net.model, weights=net.tag)
