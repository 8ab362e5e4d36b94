"""Multiply-accumulates (MACs) of a network: convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.ranges import Positive
from nas_transfer.search.objectives.base import Direction, TrialSubnet
from nas_transfer.tasks.task import Task


class Macs:
    """Multiply-accumulates for one image: of the whole network, or of its body at a given input size.

    Args:
        direction: ``minimize``.
        body_size: (H, W) at which the body alone is counted, as in DetNAS; None for the whole network at the input
            size of the task.
    """

    measured_first = True

    def __init__(self, direction: Direction, body_size: tuple[Positive, Positive] | None) -> None:
        self.direction = direction
        self.body_size = None if body_size is None else (int(body_size[0]), int(body_size[1]))

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The values (N,)."""
        if self.body_size is not None:
            bodies = [task.body_arch(arch) for arch in archs]
            return task.table.body_totals(bodies, [self.body_size] * len(bodies)).macs.astype(np.float64)
        return task.cost_totals(archs).macs.astype(np.float64)

    def measure(self, subnet: TrialSubnet) -> float:
        """The number of multiply-accumulates."""
        return float(self.of_archs(subnet.task, [subnet.arch])[0])
