"""The damage of a subnet of one trained network, estimated without evaluating it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.search.damage import ArchDamage
from nas_transfer.search.objectives.base import Direction, TrialSubnet
from nas_transfer.tasks.task import Task


class Damage:
    """The sum of the errors that each choice of an arch alone makes in the outputs of the trained network.

    Each error is relative to the variance of the outputs. It is measured once for all archs, on repaired subnets.

    Args:
        direction: ``minimize``.

    Attributes:
        damage: the damages of archs; the search sets them before it asks for any.
    """

    measured_first = True

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.damage: ArchDamage | None = None

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The values (N,).

        Raises:
            ConfigError: the damages of the choices are not known.
        """
        return self._values(archs)

    def measure(self, subnet: TrialSubnet) -> float:
        """The damage of the arch."""
        return float(self._values([subnet.arch])[0])

    def _values(self, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        if self.damage is None:
            raise ConfigError(
                "objective=damage needs the weights of one whole network: add weights=<the folder of a finished run of "
                "arch=max> to stage=search"
            )
        return self.damage(archs)
