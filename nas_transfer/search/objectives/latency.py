"""Latency of a network, measured on the device that evaluates it."""

from __future__ import annotations

import numpy as np

from nas_transfer.ranges import Count, Positive
from nas_transfer.search.latency_table import pass_times
from nas_transfer.search.objectives.base import Direction, TrialSubnet


class Latency:
    """The median time of a forward pass of the whole network, in milliseconds per batch.

    Args:
        direction: ``minimize``.
        batch_size: images per pass.
        warmup: passes before the measurement.
        repeats: measured passes.
    """

    measured_first = True

    def __init__(self, direction: Direction, batch_size: Positive, warmup: Count, repeats: Positive) -> None:
        self.direction = direction
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats

    def measure(self, subnet: TrialSubnet) -> float:
        """Milliseconds, on random images of the input size of the task."""
        return float(np.median(self.times(subnet)))

    def times(self, subnet: TrialSubnet) -> np.ndarray:
        """Milliseconds of each measured pass: (repeats,)."""
        task = subnet.task
        shape = (self.batch_size, 3, *task.input_size(subnet.arch))
        return pass_times(task.run_network, shape, task.device, self.warmup, self.repeats)
