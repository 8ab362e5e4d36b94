"""What an objective is, and what it gets to see of a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nas_transfer.space import Arch
from nas_transfer.tasks.base import Task

Direction = Literal["maximize", "minimize"]


@dataclass
class Candidate:
    """One arch under evaluation.

    Attributes:
        arch: the arch.
        subnet: its network, a private copy with recalibrated BatchNorm, which is folded into the convolutions.
        score: runs the subnet over the search split; all of the task's metrics.
    """

    arch: Arch
    subnet: Task
    score: Callable[[], Mapping[str, float]]


class Objective(Protocol):
    """A number to be had of each candidate, in a stated unit.

    `direction` says whether more is better. `measured_first` objectives are cheap beside the score: they are measured
    before it, so that a candidate that breaks a limit on one is never scored.
    """

    direction: Direction
    measured_first: bool

    def measure(self, candidate: Candidate) -> float:
        """The value for a candidate."""


@runtime_checkable
class ArchCost(Objective, Protocol):
    """An objective that is known from the arch alone, so that limits on it are kept before anything is built."""

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The values (N,) for archs of the task's space."""
