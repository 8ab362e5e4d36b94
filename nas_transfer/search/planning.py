"""How many trials a budget in minutes allows, computed from timed archs before the search begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_transfer.runs import Spent
from nas_transfer.runs.plan import Timing
from nas_transfer.search.halving import Rungs

MOST_TRIALS = 1000
START_SHARE = 1 / 3
"""Share of the trials that are drawn before a sampler learns from scores."""
LEAST_START, LEAST_BATCH = 4, 2
BATCHES = 6
"""Batches of a search, at least: a batch learns nothing from itself."""


@dataclass(frozen=True)
class TrialSeconds:
    """The duration of a trial: on average, and of one that trains to the last rung."""

    average: float
    baseline: float


def trial_seconds(timing: Timing | Spent, rungs: Rungs) -> TrialSeconds:
    """The duration of the trials of a search, from the smallest and the largest arch."""
    step = float(np.mean(timing.step_seconds or 0.0))
    scoring = float(np.mean(timing.scoring_seconds))
    return TrialSeconds(
        rungs.steps_per_trial * step + rungs.scorings_per_trial * scoring,
        rungs.steps[-1] * step + len(rungs.steps) * scoring,
    )


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


def batch_of(trials: int, ask_batch: int) -> int:
    """The size of a batch: that of the configuration, but smaller in a short search, which would learn too late."""
    return min(ask_batch, max(LEAST_BATCH, trials // BATCHES))


def start_of(trials: int, num_random: int) -> int:
    """How many archs are drawn at the start: as configured, but at most `START_SHARE` of a short search."""
    return min(num_random, max(LEAST_START, int(START_SHARE * trials)))
