"""Successive halving: how long the subnets of trials are trained before they are scored, and which continue."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nas_transfer.errors import report_faults
from nas_transfer.runs import Direction, Outcome
from nas_transfer.search.pareto import by_rank, signs


@dataclass(frozen=True)
class Rungs:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) within each batch of trials.

    At each rung, all remaining trials are scored, and the best share of them continues training from its own state.
    Trials are ranked by all objectives: front after front, and the least crowded first within a front (Deb et al.
    2002). Small networks are therefore not dropped for being small. Only scores of the last rung become values of the
    study, since scores after shorter training are on another scale.

    Args:
        steps: training steps at each rung, ascending. One rung means no halving; 0 steps score inherited weights.
        keep: share of the trials that continue, above 0 and at most 1. At least one trial continues, and baselines on
            top.

    Raises:
        ConfigError: `steps` or `keep` is invalid.
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
        """How often a trial is scored, on average."""
        return sum(self.keep**rung for rung in range(len(self.steps)))

    @property
    def steps_per_trial(self) -> float:
        """How many steps the subnet of a trial is trained, on average."""
        return sum(
            self.keep**rung * (high - low) for rung, (low, high) in enumerate(pairwise((0, *self.steps)), start=0)
        )

    def survivors(
        self, outcomes: Mapping[int, Outcome], directions: Mapping[str, Direction], baselines: Collection[int] = ()
    ) -> set[int]:
        """The numbers of the trials that continue. Trials without values never do.

        Args:
            outcomes: the outcomes at this rung, by trial number.
            directions: ``maximize`` or ``minimize``, by objective.
            baselines: trials that continue in any case. They are ranked with the others, and take no place of one that
                is among the best.
        """
        scored = sorted(number for number, outcome in outcomes.items() if outcome.reason is None)
        if not scored:
            return set()
        values = np.asarray([[outcomes[number].values[name] for name in directions] for number in scored])
        order = by_rank(values * signs(directions.values()))
        best = {scored[index] for index in order[: math.ceil(self.keep * len(scored))]}
        return best | {number for number in scored if number in baselines}


def dropped(outcome: Outcome, steps: int) -> Outcome:
    """The final outcome of a trial that is not trained beyond `steps`."""
    scores = ", ".join(f"{name} {value:.6g}" for name, value in outcome.values.items())
    reason = f"not among the best of its batch after {steps} training steps: {scores}"
    return Outcome(outcome.trial, outcome.arch, reason=reason, left_out=True, metrics=outcome.metrics)
