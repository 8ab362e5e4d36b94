"""Recalibrate the BatchNorm statistics of a subnet on given batches.

A supernet keeps no usable statistics (see `nas_transfer.supernet.ops.ElasticBatchNorm2d`), so every extracted subnet is
recalibrated before it is scored. Meanwhile only the BatchNorms are in training mode, so that each layer sees features
normalised by the moments of their batch, as in training; dropout and the rest of the network stay in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


@dataclass
class Moments:
    """Count, mean and sum of squared deviations per channel, merged as Chan, Golub and LeVeque (1983), eq. 2.1.

    Mean and deviations are float64 (C,), None before the first `add`.
    """

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


def _take_moments(norm: nn.Module, inputs: tuple[Tensor, ...], moments: Moments) -> None:
    """Merge the statistics that a BatchNorm with momentum 1 has just computed, without reading its input again."""
    count = inputs[0].numel() // inputs[0].shape[1]
    unbiased: Tensor = norm.running_var  # type: ignore[assignment]
    moments.add(count, norm.running_mean, unbiased * ((count - 1) / count))  # type: ignore[arg-type]


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has statistics that `recalibrate_batch_norm` measures."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Batch], forward: Callable[[Batch], object]) -> int:
    """Replace the running statistics of every BatchNorm in `network` by the moments of its input over all batches.

    Args:
        network: a plain static network; changed in place, its training mode is kept.
        batches: each is passed to `forward`.
        forward: runs the network on one batch; its result is ignored.

    Returns:
        The number of batches; 0 for a network without BatchNorm, which is not run and needs no batch.

    Every element of every batch has the same weight, so a smaller last batch does not distort the moments. The
    variance is the population variance (divided by n), with which training mode normalises: after a single batch, eval
    mode gives exactly the outputs of training mode. A BatchNorm that no batch reached keeps its statistics.

    Raises:
        ValueError: there are BatchNorms, and `batches` is empty.
    """
    if not has_batch_norm(network):
        return 0
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    moments = [Moments() for _ in norms]
    hooks = [
        norm.register_forward_hook(lambda norm, inputs, _, taken=taken: _take_moments(norm, inputs, taken))  # type: ignore[misc]
        for norm, taken in zip(norms, moments, strict=True)
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
    for norm, taken, kept in zip(norms, moments, before, strict=True):
        mean, variance = kept
        if taken.mean is not None and taken.deviation is not None:
            mean, variance = taken.mean, taken.deviation / taken.count
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
    if not used:
        raise ValueError("recalibrating BatchNorm needs at least one batch, got none")
    return used
