"""Latency of a candidate, measured on the device that evaluates it."""

from __future__ import annotations

import numpy as np

from nas_transfer.search.latency_table import pass_times
from nas_transfer.search.objectives.base import Candidate, Direction


class Latency:
    """The median time of a forward pass of the whole network, in milliseconds a batch.

    Args:
        direction: ``minimize``.
        batch_size: images a pass.
        warmup: passes before the first that counts.
        repeats: passes that count.
    """

    measured_first = True

    def __init__(self, direction: Direction, batch_size: int, warmup: int, repeats: int) -> None:
        self.direction = direction
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats

    def measure(self, candidate: Candidate) -> float:
        """Milliseconds, on random images of the task's input size."""
        return float(np.median(self.times(candidate)))

    def times(self, candidate: Candidate) -> np.ndarray:
        """Milliseconds of each pass that counts: (repeats,)."""
        task = candidate.subnet
        shape = (self.batch_size, 3, *task.input_size(candidate.arch))
        return pass_times(task.run_network, shape, task.device, self.warmup, self.repeats)
