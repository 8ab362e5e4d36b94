"""The protocol of objectives, and what they see of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.tasks.task import Task

Direction = Literal["maximize", "minimize"]


class TrialSubnet(Protocol):
    """The subnet of one trial, as objectives see it."""

    @property
    def arch(self) -> Arch:
        """The arch of the trial."""

    @property
    def task(self) -> Task:
        """The task of the subnet: a private copy with recalibrated BatchNorms, which are folded into convolutions.

        It is built, and trained in a proxy search, when an objective first asks for it.
        """

    def score(self) -> Mapping[str, float]:
        """All metrics of the task on the search split, measured once."""


class Objective(Protocol):
    """A number that is measured of each trial, in a stated unit.

    Attributes:
        direction: whether more or less is better.
        measured_first: whether the objective is cheap compared with the score. It is then measured before the score, so
            that a trial that breaks a limit on it is never scored.
    """

    direction: Direction
    measured_first: bool

    def measure(self, subnet: TrialSubnet) -> float:
        """Measure the subnet of a trial."""


@runtime_checkable
class ArchCost(Objective, Protocol):
    """An objective that follows from the arch alone, so that limits on it are checked before anything is built."""

    def of_archs(self, task: Task, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        """The values (N,) for archs of the space of the task."""
