"""The attempts of a trial: one that is asked again is a new trial of Optuna, which names the first attempt."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from nas_transfer.search.samplers.base import ORIGIN
from nas_transfer.search.study import REASON

HISTORY = "retry_history"
"""Optuna's system attribute of a trial that is asked again: the attempts that have died."""


def latest_attempts(trials: Sequence[FrozenTrial]) -> list[tuple[int, FrozenTrial]]:
    """The latest attempts of trials, with the numbers that files and reports use."""
    latest: dict[int, FrozenTrial] = {}  # by the number of the first attempt, in this order
    for trial in trials:
        latest[origin(trial)] = trial
    return list(enumerate(latest.values()))


def origin(trial: FrozenTrial) -> int:
    """Optuna's number of the first attempt."""
    return int(trial.system_attrs.get(ORIGIN, trial.number))


def num_dead(trial: FrozenTrial) -> int:
    """How many attempts have died before this one."""
    return len(trial.system_attrs.get(HISTORY, []))


def reason_of(trial: FrozenTrial) -> str | None:
    """Why a trial has no values; None for one that has, or that is not finished."""
    if trial.state not in (TrialState.FAIL, TrialState.PRUNED):
        return None
    times = num_dead(trial) + 1
    died = f"its worker died {times} times" if times > 1 else "its worker died"
    return str(trial.user_attrs.get(REASON) or died)
