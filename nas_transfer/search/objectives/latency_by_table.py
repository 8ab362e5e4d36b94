"""Latency of a candidate as the sum over its blocks, each timed once on the device that evaluates."""

from __future__ import annotations

from pathlib import Path

from nas_transfer.search.latency_table import LatencyTable
from nas_transfer.search.objectives.base import Candidate, Direction


class LatencyByTable:
    """Milliseconds a batch of the body, from a table of its blocks; steadier and faster than whole measurements.

    Args:
        direction: ``minimize``.
        folder: of the tables, kept across runs; a file for each device.
        batch_size: images a pass.
        warmup, repeats: passes for each block that the table does not know yet.
    """

    measured_first = True

    def __init__(self, direction: Direction, folder: str, batch_size: int, warmup: int, repeats: int) -> None:
        self.direction = direction
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats
        self._table: LatencyTable | None = None

    def measure(self, candidate: Candidate) -> float:
        """Milliseconds of the body at the task's input size."""
        task = candidate.subnet
        if self._table is None:
            self._table = LatencyTable(self.folder, task.device, self.batch_size, self.warmup, self.repeats)
        return self._table.body_ms(task.table, candidate.arch, task.input_size(candidate.arch))
