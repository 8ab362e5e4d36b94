"""An objective: the number of an arch's blocks, all stages together."""

from collections.abc import Sequence

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.search.objectives.base import Direction, TrialSubnet
from nas_transfer.tasks.task import Task


class Blocks:
    """Counts blocks. The count follows from the arch, so a limit on it is checked before anything is evaluated."""

    measured_first = True  # cheap: measure it before the score

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> np.ndarray:
        """The values (N,) of archs, without building a network."""
        return np.array([sum(arch.group("depth")) for arch in archs], dtype=float)

    def measure(self, subnet: TrialSubnet) -> float:
        """The value of the subnet of one trial."""
        return float(self.of_archs(subnet.task, [subnet.arch])[0])
