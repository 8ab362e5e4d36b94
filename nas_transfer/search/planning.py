"""How a search is divided: batches and random start from its length, and its length from minutes and timed archs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_transfer.runs import Spent
from nas_transfer.runs.plan import Timing
from nas_transfer.search.halving import Rungs

MOST_TRIALS = 1000
START_SHARE = 1 / 3
"""Share of the trials that are drawn before a sampler learns from scores."""
LEAST_START, MOST_START = 4, 20
LEAST_BATCH, MOST_BATCH, MOST_TRAINED_BATCH = 2, 50, 10
BATCHES = 6
"""Batches of a search, at least: a batch learns nothing from itself."""
TYPICAL_ARCHS = 64


@dataclass(frozen=True)
class TrialSeconds:
    """The duration of a trial: on average, and of one that trains to the last rung."""

    average: float
    baseline: float


def trial_seconds(timing: Timing | Spent, rungs: Rungs, share: float) -> TrialSeconds:
    """The duration of the trials of a search, from the smallest and the largest arch.

    Args:
        share: where an arch lies between these two, from `typical_share`. Durations are taken to grow with the
            multiply-accumulates.
    """
    step, scoring = (_between(seconds, share) for seconds in (timing.step_seconds, timing.scoring_seconds))
    return TrialSeconds(
        rungs.steps_per_trial * step + rungs.scorings_per_trial * scoring,
        rungs.steps[-1] * step + len(rungs.steps) * scoring,
    )


def _between(seconds: Sequence[float], share: float) -> float:
    """A duration between those of the smallest and of the largest arch; 0 if there are none."""
    return (1 - share) * seconds[0] + share * seconds[-1] if seconds else 0.0


def typical_share(macs: npt.ArrayLike, smallest: float, largest: float) -> float:
    """Where archs with these multiply-accumulates (N,) lie on average between two: 0-1, 0.5 if these are equal."""
    if largest <= smallest:
        return 0.5
    return float(np.clip((np.mean(macs) - smallest) / (largest - smallest), 0.0, 1.0))


def trials_in(seconds: float, each: TrialSeconds, baselines: int) -> int:
    """How many trials fit into a time, up to `MOST_TRIALS`; 0 if not one does.

    Args:
        seconds: the time for all trials.
        each: the duration of one.
        baselines: how many of the first ones train to the last rung.
    """
    if seconds <= 0:
        return 0
    of_baselines = baselines * each.baseline
    if seconds < of_baselines:
        return int(seconds / each.baseline)
    if each.average <= 0:
        return MOST_TRIALS
    return min(MOST_TRIALS, int(baselines + (seconds - of_baselines) / each.average))


def batch_of(trials: int, most: int) -> int:
    """The size of a batch of a search: smaller in a short one, which would learn too late.

    Args:
        most: that of a long search.
    """
    return min(most, max(LEAST_BATCH, trials // BATCHES))


def start_of(trials: int, num_more: int) -> int:
    """How many archs are drawn at random at the start: `START_SHARE` of the trials, up to `MOST_START`.

    Args:
        num_more: how many other archs a search begins with, see `Problem.num_more`; they are part of the share.
    """
    return min(MOST_START, max(LEAST_START, int(START_SHARE * trials) - num_more))
