"""How many trials fit into a time, from timed archs."""

import pytest

from nas_transfer.runs.plan import Timing
from nas_transfer.search.halving import Rungs
from nas_transfer.search.planning import (
    Shares,
    TrialSeconds,
    batch_of,
    share_between,
    start_of,
    trial_seconds,
    trials_in,
)

TIMING = Timing((0.2, 0.6), (3.0, 5.0), warmup_seconds=60.0, damage_seconds=0.0, seconds=20.0)


def test_a_trial_takes_as_long_as_an_arch_between_the_smallest_and_the_largest() -> None:
    assert trial_seconds(TIMING, Rungs((100,)), Shares(0.5, 0.5)) == TrialSeconds(pytest.approx(44), pytest.approx(44))
    halved = trial_seconds(TIMING, Rungs((0, 100), keep=0.5), Shares(0.25, 0.75))
    assert halved.average == pytest.approx(0.5 * 100 * 0.3 + 1.5 * 3.5)  # all are scored at once, half of them trained
    assert halved.baseline == pytest.approx(100 * 0.5 + 2 * 4.5)


def test_archs_lie_between_two_others() -> None:
    assert share_between([20.0, 40.0], 10.0, 50.0) == pytest.approx(0.5)
    assert share_between([15.0, 25.0], 10.0, 50.0) == pytest.approx(0.25)
    assert share_between([60.0], 10.0, 50.0) == 1.0
    assert share_between([10.0], 10.0, 10.0) == 0.5


@pytest.mark.parametrize("seconds", [0, 43, 44, 100, 1000, 3000])
@pytest.mark.parametrize("baselines", [0, 4])
def test_no_more_trials_fit(seconds: float, baselines: int) -> None:
    each = TrialSeconds(44.0, 60.0)

    def needed(trials: int) -> float:
        of_baselines = min(trials, baselines) * each.baseline
        return of_baselines + max(0, trials - baselines) * each.average

    trials = trials_in(seconds, each, baselines)
    assert needed(trials) <= seconds + 1e-9
    assert needed(trials + 1) > seconds


def test_a_short_search_has_small_batches_and_a_short_start() -> None:
    assert (batch_of(1000, 50, Rungs()), start_of(1000, 0)) == (50, 20)
    assert (batch_of(60, 10, Rungs()), start_of(60, 0)) == (10, 20)
    assert (batch_of(18, 10, Rungs()), start_of(18, 0)) == (3, 6)
    assert (batch_of(3, 10, Rungs()), start_of(3, 0)) == (2, 4)


@pytest.mark.parametrize(
    ("rungs", "least"), [(Rungs((0, 20), 0.5), 2), (Rungs((0, 20), 0.34), 3), (Rungs((0, 20, 60), 0.5), 4)]
)
def test_a_batch_loses_a_trial_at_each_rung(rungs: Rungs, least: int) -> None:
    assert batch_of(6, 10, rungs) == least
    assert batch_of(60, 10, rungs) == 10


def test_other_first_archs_are_part_of_the_start() -> None:
    assert start_of(45, 7) == 15 - 7
    assert start_of(18, 7) == 4  # at least
    assert start_of(1000, 7) == 20
