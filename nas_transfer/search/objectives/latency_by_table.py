"""Latency of a network as the sum over its blocks and layers, each timed once on the device that evaluates it."""

from __future__ import annotations

from pathlib import Path

from nas_transfer.ranges import Count, Positive
from nas_transfer.search.latency_table import LatencyTable
from nas_transfer.search.objectives.base import Direction, TrialSubnet


class LatencyByTable:
    """Milliseconds per batch from a table of blocks and layers: less noisy than timing whole networks.

    Args:
        direction: ``minimize``.
        folder: folder of the tables, which are kept across runs; one file for each device.
        batch_size: images per pass.
        warmup: passes before the measurement of a block that is not in the table yet.
        repeats: measured passes of such a block.
    """

    measured_first = True

    def __init__(
        self, direction: Direction, folder: str, batch_size: Positive, warmup: Count, repeats: Positive
    ) -> None:
        self.direction = direction
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats
        self._table: LatencyTable | None = None

    def measure(self, subnet: TrialSubnet) -> float:
        """Milliseconds of body, neck and head at the input size of the arch."""
        task = subnet.task
        if self._table is None:
            self._table = LatencyTable(self.folder, task.device, self.batch_size, self.warmup, self.repeats)
        return self._table.network_ms(task)
