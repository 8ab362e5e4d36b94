"""What a search gained over the obvious alternatives: the whole network at smaller input sizes and with narrower heads.

The curve of these baselines consists of the non-dominated ones, joined by straight lines of score over cost, since
sizes in between could be had as well. Beyond an end of the curve, that end stands for it. A trial of the front has

- a gain in score: its score minus that of the curve at its cost;
- a saving: one minus its cost divided by that of the curve at its score.

A trial that is both cheaper and worse than all baselines is not compared. One that is both costlier and better than all
of them has a gain in score, but no saving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.runs import Front, Trial
from nas_transfer.search.pareto import non_dominated, signs

SCORE = "score"
LEAST_GAIN = 1e-9
"""What counts as a gain; less is an error of rounding."""

Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Advantage:
    """A trial of a front against the curve of the baselines.

    Attributes:
        trial: number of the trial.
        score: its gain in score at equal cost, a fraction.
        saving: its saving of cost at equal score, a fraction; None beyond the costly end of the curve.
    """

    trial: int
    score: float
    saving: float | None


@dataclass(frozen=True)
class Gain:
    """A front against the curve of the baselines, over one cost.

    Attributes:
        cost: name of the cost.
        num_sizes: input sizes of the whole network.
        num_heads: narrower heads of the whole network.
        advantages: those of all compared trials; of the front, and not the baselines themselves.
        num_cheaper: trials of the front that are not compared, since they are cheaper and worse than all baselines.
    """

    cost: str
    num_sizes: int
    num_heads: int
    advantages: tuple[Advantage, ...]
    num_cheaper: int

    @property
    def best_score(self) -> Advantage | None:
        """The largest gain in score, None if there is none above 0."""
        best = max(self.advantages, key=lambda one: one.score, default=None)
        return best if best is not None and best.score > LEAST_GAIN else None

    @property
    def best_saving(self) -> tuple[int, float] | None:
        """The trial with the largest saving and its saving, None if there is none above 0."""
        trial, saving = max(self._savings(), key=lambda one: one[1], default=(0, 0.0))
        return (trial, saving) if saving > LEAST_GAIN else None

    def _savings(self) -> list[tuple[int, float]]:
        return [(one.trial, one.saving) for one in self.advantages if one.saving is not None]

    @property
    def baseline(self) -> str:
        """What the front is compared with, in words."""
        if self.num_heads:
            return f"the whole network, {'resized or ' if self.num_sizes > 1 else ''}with narrower heads"
        return "resizing the whole network" if self.num_sizes > 1 else "the whole network"

    def __str__(self) -> str:
        whole = "all of these" if self.num_heads else "every size of it"
        cheaper = f"{_networks(self.num_cheaper)} of the front cost less and score less than {whole}"
        if self.best_score is None and self.best_saving is None:
            if self.num_cheaper and not self.advantages:
                return f"the search found nothing that can be compared with {self.baseline}: {cheaper}"
            text = f"the search found nothing better than {self.baseline} in score and {self.cost}"
            return f"{text}; {cheaper}" if self.num_cheaper else text
        parts = []
        if self.best_score is not None:
            mean = np.mean([one.score for one in self.advantages])
            parts.append(
                f"up to {100 * self.best_score.score:.2f} points more score at equal {self.cost} "
                f"(trial {self.best_score.trial}; {100 * mean:.2f} on average over {_networks(len(self.advantages))})"
            )
        if self.best_saving is not None:
            trial, saving = self.best_saving
            savings = [value for _, value in self._savings()]
            parts.append(
                f"up to {100 * saving:.1f} % less {self.cost} at equal score "
                f"(trial {trial}; {100 * np.mean(savings):.1f} % on average over {_networks(len(savings))})"
            )
        text = f"compared with {self.baseline}, the front has {' and '.join(parts)}"
        return f"{text}; {cheaper}" if self.num_cheaper else text


def _networks(count: int) -> str:
    return f"{count} network{'' if count == 1 else 's'}"


def trials_of(trials: Sequence[Trial], archs: Sequence[Arch]) -> tuple[Trial, ...]:
    """The first trial of each of these archs, in the order of the trials."""
    contents = [arch.to_dict() for arch in archs]
    found: list[Trial] = []
    for trial in trials:
        if trial.arch in contents:
            contents.remove(dict(trial.arch))
            found.append(trial)
    return tuple(found)


def gains_of(front: Front) -> list[Gain]:
    """The gain of a front over each minimised cost; none without a score, or without baselines."""
    if SCORE not in front.objectives or not front.baselines:
        return []
    costs = [name for name, direction in front.objectives.items() if name != SCORE and direction == "minimize"]
    return [_gain(front, cost) for cost in costs]


def curve_of(front: Front, cost: str) -> list[Trial]:
    """The baselines that make up their curve over a cost, cheapest first."""
    if not front.baselines:
        return []
    points = _points(front, front.baselines, cost)
    kept = sorted(np.flatnonzero(non_dominated(points)), key=lambda index: (points[index, 0], index))
    distinct: dict[float, Trial] = {}
    for index in kept:
        distinct.setdefault(points[index, 0], front.baselines[index])
    return list(distinct.values())


def _gain(front: Front, cost: str) -> Gain:
    curve = _points(front, curve_of(front, cost), cost)
    whole = {trial.number for trial in front.baselines}
    everything = [*front.trials, *front.baselines]
    best = [trial for trial, kept in zip(everything, non_dominated(_points(front, everything, cost))) if kept]
    searched = [trial for trial in best if trial.number not in whole]
    points = _points(front, searched, cost)
    gains, savings = advantages(curve * [1, -1], points * [1, -1])
    found = [
        Advantage(trial.number, float(gain), None if np.isnan(saving) else float(saving))
        for trial, gain, saving in zip(searched, gains, savings, strict=True)
        if not np.isnan(gain)
    ]
    return Gain(cost, len(front.resized), len(front.narrowed), tuple(found), len(searched) - len(found))


def _points(front: Front, trials: Sequence[Trial], cost: str) -> Values:
    """Cost and minimised score of trials: (N, 2)."""
    sign = signs([front.objectives[SCORE]])[0]
    points = [[trial.values[cost], sign * trial.values[SCORE]] for trial in trials]
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def advantages(curve: Values, points: Values) -> tuple[Values, Values]:
    """How far points lie above a curve, and how far to its left, as the module says.

    Args:
        curve: costs and scores (S, 2), S at least 1, with both columns ascending strictly.
        points: costs and scores (N, 2). More score is better.

    Returns:
        The gains in score (N,) and the savings (N,), NaN where they are not defined.
    """
    cost, score = points[:, 0], points[:, 1]
    gains = score - np.interp(cost, curve[:, 0], curve[:, 1])
    at_score = np.interp(score, curve[:, 1], curve[:, 0])
    savings = 1 - np.divide(cost, at_score, out=np.ones_like(cost), where=at_score > 0)
    below = (cost < curve[0, 0]) & (score < curve[0, 1])
    above = (cost > curve[-1, 0]) & (score > curve[-1, 1])
    return np.where(below, np.nan, gains), np.where(below | above, np.nan, savings)
