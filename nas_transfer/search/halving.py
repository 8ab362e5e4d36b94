"""How long candidates are trained before they are scored, and which of them are trained for longer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nas_transfer.errors import report_faults
from nas_transfer.runs import Direction, Outcome
from nas_transfer.search.pareto import by_rank
from nas_transfer.search.study import signs


@dataclass(frozen=True)
class Rungs:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) within each batch of candidates.

    At each rung all candidates that are left are scored; the best share goes on from its own state to the next rung.
    Best in all objectives: front after front, of a front those with most room around them (Deb et al. 2002), so that
    small networks are not dropped for being small. Only scores of the last rung become values of the study: those of
    shorter trainings are on another scale.

    Args:
        steps: training steps at each rung, ascending; one rung is no halving, 0 scores inherited weights.
        keep: share that goes on, above 0 and up to 1; at least one does.

    Raises:
        ConfigError: naming the value.
    """

    steps: tuple[int, ...] = (0,)
    keep: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        whole = all(isinstance(count, int) and count >= 0 for count in self.steps)
        faults = []
        if not self.steps or not whole or any(low >= high for low, high in pairwise(self.steps)):
            faults.append(
                "proxy.rungs must be numbers of training steps in ascending order, such as [0, 100, 400], "
                f"got {list(self.steps)}"
            )
        if not 0 < self.keep <= 1:
            faults.append(f"proxy.keep must be above 0 and up to 1, got {self.keep}")
        report_faults(faults)

    @property
    def scorings_per_trial(self) -> float:
        """How often a candidate is scored in the mean."""
        return sum(self.keep**rung for rung in range(len(self.steps)))

    @property
    def steps_per_trial(self) -> float:
        """How many steps a candidate is trained in the mean."""
        return sum(
            self.keep**rung * (high - low) for rung, (low, high) in enumerate(pairwise((0, *self.steps)), start=0)
        )

    def survivors(self, outcomes: Mapping[int, Outcome], directions: Mapping[str, Direction]) -> set[int]:
        """The trials that go on, of those with values.

        Args:
            outcomes: of this rung by trial.
            directions: ``maximize`` or ``minimize`` by objective.
        """
        scored = sorted(number for number, outcome in outcomes.items() if outcome.reason is None)
        if not scored:
            return set()
        values = np.asarray([[outcomes[number].values[name] for name in directions] for number in scored])
        order = by_rank(values * signs(directions.values()))
        return {scored[place] for place in order[: math.ceil(self.keep * len(scored))]}


def dropped(outcome: Outcome, steps: int) -> Outcome:
    """What becomes of a candidate that is not trained beyond `steps`."""
    shown = ", ".join(f"{name} {value:.6g}" for name, value in outcome.values.items())
    reason = f"not among the best of its batch after {steps} training steps: {shown}"
    return Outcome(outcome.trial, outcome.arch, reason=reason, left_out=True, metrics=outcome.metrics)
