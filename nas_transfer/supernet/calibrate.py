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

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Merge the population moments (C,) of `count` values a channel."""
        mean, deviation = mean.double(), variance.double() * count
        if self.mean is None or self.deviation is None:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviation = self.deviation + deviation + delta.square() * (self.count * count / total)
        self.count = total


def _take_moments(norm: nn.Module, inputs: tuple[Tensor, ...], own: _Moments) -> None:
    """Merge what a BatchNorm of momentum 1 has just measured, so that no value is read a second time."""
    count = inputs[0].numel() // inputs[0].shape[1]
    unbiased: Tensor = norm.running_var  # type: ignore[assignment]
    own.add(count, norm.running_mean, unbiased * ((count - 1) / count))  # type: ignore[arg-type]


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
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    moments = [_Moments() for _ in norms]
    hooks = [
        norm.register_forward_hook(lambda norm, inputs, _, own=own: _take_moments(norm, inputs, own))  # type: ignore[misc]
        for norm, own in zip(norms, moments, strict=True)
    ]
    used = 0
    network.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # its statistics are then those of the last batch
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
    for norm, own, kept in zip(norms, moments, before, strict=True):
        mean, variance = kept if own.mean is None or own.deviation is None else (own.mean, own.deviation / own.count)
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
    if not used:
        raise ValueError("expected at least one batch to recalibrate BatchNorm on, got none")
    return used
