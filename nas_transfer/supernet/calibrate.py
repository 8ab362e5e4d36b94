"""BatchNorm statistics of a subnet, measured anew on given batches.

A supernet keeps no usable statistics (see `nas_transfer.supernet.ops.ElasticBatchNorm2d`), so every extracted subnet is
recalibrated before it is scored. While it is, only the BatchNorms are in training mode (each layer sees features that
were normalised by their batch's own moments, as in training); dropout and the rest of the network stay in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations per channel, merged as Chan, Golub and LeVeque (1983), eq. 2.1."""

    count: int = 0
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def add(self, features: Tensor) -> None:
        values = features.detach().transpose(0, 1).flatten(1).double()  # (C, N)
        count = values.shape[1]
        mean = values.mean(1)
        deviation = (values - mean[:, None]).square().sum(1)
        if self.mean is None or self.deviation is None:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviation = self.deviation + deviation + delta.square() * (self.count * count / total)
        self.count = total


def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> int:
    """Replace the running statistics of every BatchNorm in `network` by its input's moments over all batches.

    Args:
        network: a plain static network; changed in place, its training mode is kept.
        batches: each is passed to `forward`.
        forward: runs the network on one batch; what it returns is ignored.

    Returns:
        How many batches were used.

    Every element of every batch weighs the same, so a smaller last batch does not distort the moments. The variance is
    the population's (divided by n), as training mode normalises: on a single batch, eval mode then equals it exactly.
    A BatchNorm that no batch reached keeps its statistics.

    Raises:
        ValueError: `batches` is empty.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    moments = [_Moments() for _ in norms]
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, own=own: own.add(inputs[0]))  # type: ignore[misc]
        for norm, own in zip(norms, moments, strict=True)
    ]
    used = 0
    network.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0
        with torch.no_grad():
            for batch in batches:
                forward(batch)
                used += 1
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not used:
        raise ValueError("expected at least one batch to recalibrate BatchNorm on, got none")
    for norm, own in zip(norms, moments, strict=True):
        if own.mean is not None and own.deviation is not None and norm.running_mean is not None:
            norm.running_mean.copy_(own.mean)
            norm.running_var.copy_(own.deviation / own.count)  # type: ignore[union-attr]
    return used
