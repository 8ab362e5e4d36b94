"""How a search is divided: batches and random start from its length, and its length from minutes and timed archs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.runs import Spent
from nas_transfer.runs.plan import Timing
from nas_transfer.search.halving import Rungs
from nas_transfer.space import SearchSpace

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
    """The duration of a trial: on average, and of a baseline, which trains to the last rung."""

    average: float
    baseline: float


@dataclass(frozen=True)
class Shares:
    """Where archs lie on average between the two that are timed, by multiply-accumulates: 0-1, from `share_between`.

    Attributes:
        typical: archs that a sampler may propose.
        baselines: the archs that a search is compared with.
    """

    typical: float
    baselines: float


def trial_seconds(timing: Timing | Spent, rungs: Rungs, shares: Shares) -> TrialSeconds:
    """The duration of the trials of a search, between those of the smallest and of the largest arch."""
    step, scoring = (_between(seconds, shares.typical) for seconds in (timing.step_seconds, timing.scoring_seconds))
    average = rungs.steps_per_trial * step + rungs.scorings_per_trial * scoring
    step, scoring = (_between(seconds, shares.baselines) for seconds in (timing.step_seconds, timing.scoring_seconds))
    return TrialSeconds(average, rungs.steps[-1] * step + len(rungs.steps) * scoring)


def _between(seconds: Sequence[float], share: float) -> float:
    """A duration between those of the smallest and of the largest arch; 0 if there are none."""
    return (1 - share) * seconds[0] + share * seconds[-1] if seconds else 0.0


def end_archs(space: SearchSpace, *, repairs: bool) -> tuple[Arch, Arch]:
    """The smallest and the largest arch, which are timed before a search.

    Args:
        repairs: whether archs are subnets of one whole network, which has one head.
    """
    ends = space.ends()
    return ends[-2 if repairs else 0], ends[-1]


def share_between(macs: npt.ArrayLike, smallest: float, largest: float) -> float:
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


def batch_of(trials: int, most: int, rungs: Rungs) -> int:
    """The size of a batch of a search: smaller in a short one, which would learn too late.

    Args:
        most: that of a long search.
        rungs: one trial of a batch, at least, is dropped at each of several rungs.
    """
    least = max(LEAST_BATCH, math.ceil(1 / rungs.keep ** (len(rungs.steps) - 1)))
    return max(least, min(most, trials // BATCHES))


def start_of(trials: int, num_more: int) -> int:
    """How many archs are drawn at random at the start: `START_SHARE` of the trials, up to `MOST_START`.

    Args:
        num_more: how many other archs a search begins with, see `Problem.num_more`; they are part of the share.
    """
    return min(MOST_START, max(LEAST_START, int(START_SHARE * trials) - num_more))
