"""Latency of a candidate, measured on the device that evaluates it."""

from __future__ import annotations

import time

import numpy as np
import torch

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
        height, width = task.input_size(candidate.arch)
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, height, width)
        images = torch.rand(shape, generator=generator).to(task.device).to(memory_format=torch.channels_last)
        found = []
        with torch.inference_mode():
            for number in range(self.warmup + self.repeats):
                _wait_for(task.device)
                start = time.perf_counter()
                task.run_network(images)
                _wait_for(task.device)
                if number >= self.warmup:
                    found.append(1000 * (time.perf_counter() - start))
        return np.asarray(found)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
