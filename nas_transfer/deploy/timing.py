"""Latencies of engines on this machine, measured in rounds in which each has its turn."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from nas_transfer.deploy.engines import Run

PASSES = 3
"""Passes of an engine in one round."""
BUSY_SHARE = 0.1
"""Share of the time of all cores that other processes may take before a measurement counts as disturbed."""


@dataclass(frozen=True)
class Latency:
    """The time of one pass, in milliseconds.

    Attributes:
        wall: median over the rounds.
        low, high: quartiles of the rounds.
        cpu: median time of the processor, over all threads.
    """

    wall: float
    low: float
    high: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ms ({self.low:.1f} to {self.high:.1f}; {self.cpu:.1f} ms of CPU)"


def measure(engines: Mapping[str, Run], image: Tensor, rounds: int) -> tuple[dict[str, Latency], float | None]:
    """Time engines on one batch of images.

    Args:
        engines: by name.
        image: float32 (B, 3, H, W).
        rounds: in each, every engine runs `PASSES` times; one more round before them is not counted.

    Returns:
        The latencies by name, and the share of the time of all cores that other processes took; None where the system
        does not tell.
    """
    wall: dict[str, list[float]] = {name: [] for name in engines}
    cpu: dict[str, list[float]] = {name: [] for name in engines}
    busy_before, own_before, start = _busy_seconds(), time.process_time(), time.perf_counter()
    for number in range(rounds + 1):
        for name, engine in engines.items():
            began, used = time.perf_counter(), time.process_time()
            for _ in range(PASSES):
                engine(image)
            if number:
                wall[name].append(1000 * (time.perf_counter() - began) / PASSES)
                cpu[name].append(1000 * (time.process_time() - used) / PASSES)
    seconds, own = time.perf_counter() - start, time.process_time() - own_before
    busy_after = _busy_seconds()
    others = None
    if busy_before is not None and busy_after is not None and seconds > 0:
        others = max(0.0, busy_after - busy_before - own) / (seconds * (os.cpu_count() or 1))
    found = {}
    for name, times in wall.items():
        low, median, high = np.percentile(times, [25, 50, 75]).tolist()
        found[name] = Latency(median, low, high, float(np.median(cpu[name])))
    return found, others


def _busy_seconds() -> float | None:
    """Seconds that the cores have worked, or were withheld, since the start of the machine; None if unknown."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
