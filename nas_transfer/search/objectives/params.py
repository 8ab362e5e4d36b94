"""The number of parameters of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.search.objectives.base import Direction, TrialSubnet
from nas_transfer.tasks.task import Task


class Params:
    """All parameters of the body and of what follows it.

    Args:
        direction: ``minimize``.
    """

    measured_first = True

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The values (N,)."""
        return task.cost_totals(archs).params.astype(np.float64)

    def measure(self, subnet: TrialSubnet) -> float:
        """The number of parameters."""
        return float(self.of_archs(subnet.task, [subnet.arch])[0])
